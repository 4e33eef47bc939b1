"""Mechanisms as a look at single columns suggests them: where fits start, and hard limits."""

import numpy as np
import torch
from scipy.special import ndtri

from skbilevel.estimators.mechanism_em import NARROWEST
from skbilevel.objectives.self_masking import SelfMasking


def self_masking(side: np.ndarray, threshold: np.ndarray, width: np.ndarray) -> SelfMasking:
    """A mechanism of arrays (d,)."""
    parts = (torch.as_tensor(part, dtype=torch.float64) for part in (side, threshold, width))
    return SelfMasking(*parts)


def hard_limits(
    Z: np.ndarray, side: np.ndarray | float, limits: np.ndarray | None = None
) -> SelfMasking:
    """A hard limit for every column that has a side.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows with NaN at missing cells.
    side : float or ndarray of shape (d,)
        1 where values above the limit are missing, -1 where those below it are, 0 for none.
    limits : ndarray of shape (d,), optional
        Limits that are known; NaN is estimated by the largest, or smallest, observed value.

    Returns
    -------
    SelfMasking
        Estimated limits have the least width rather than none, so that the evidence of a new row
        slightly beyond them is finite. A column of one value has no limit that could be estimated.
    """
    missing = np.isnan(Z)
    low, high = np.where(missing, np.inf, Z).min(axis=0), np.where(missing, -np.inf, Z).max(axis=0)
    known = np.full(Z.shape[1], np.nan) if limits is None else limits
    # Also of a column without a missing cell: the limit holds for rows to come.
    has = (np.broadcast_to(side, Z.shape[1]) != 0) & (~np.isnan(known) | (low < high))
    threshold = np.where(np.isnan(known), np.where(np.greater(side, 0), high, low), known)
    width = np.where(np.isnan(known), NARROWEST, 0.0)
    return self_masking(has * side, np.where(has, threshold, 0.0), np.where(has, width, 1.0))


def normal_limits(Z: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Limits (d,) that standard normal values exceed at the rates of the missing cells."""
    rates = (np.isnan(Z).sum(axis=0) + 0.5) / (len(Z) + 1)  # never 0 or 1
    return -side * ndtri(rates)


def with_limits(learnt: SelfMasking, hard: SelfMasking, is_hard: np.ndarray) -> SelfMasking:
    """The columns of ``hard`` where ``is_hard`` (d,), those of ``learnt`` elsewhere."""
    chosen = torch.from_numpy(is_hard)
    return SelfMasking(*(a.where(chosen, b) for a, b in zip(hard, learnt, strict=True)))
