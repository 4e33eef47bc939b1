"""The tilt of a table, learnt from its shadow targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.shadow_targets import (
    RIDGE,
    affordable,
    column_target,
    free_loss,
    mask_fits,
    most_rows,
    outcome_target,
    target_columns,
)
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.normal import NormalParameters
from skbilevel.objectives.shadow_tilt import (
    ShadowTarget,
    capped,
    losses,
    mask_agreement,
    mask_score,
    objective,
    stacked,
    tilt_of,
    unopposed,
)
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.tilt import Rule, learn_tilt

# Deviation of the prior of what all columns share, and the most that a target counts, in nats.
_SHARED, _CAP = 2.0, 8.0
# A column with fewer missing cells has no tilt of its own to be learnt.
_FEWEST_MISSING = 10


@dataclass(frozen=True)
class TiltFit:
    """What shadow targets say of a table.

    Attributes
    ----------
    tilt : ndarray of shape (d,)
        Log odds of being missing per standard deviation of each column; 0 if not accepted.
    is_accepted : bool
    columns : list of int
        The columns that served as targets; -1 is y.
    gains, free_gains : ndarray of shape (t,)
        Of each target in nats: by the tilt, before it was accepted or not, and by free indicators.
    kept : ndarray of shape (t,), bool
        Targets that counted.
    gain_per_target : float
        Mean of the capped gains of the targets that counted, under the narrow prior: callers who
        lose more by a false tilt may ask for more of it.
    evidence : float
        For a tilt against none, in nats.
    agreement, score : float
        Of the tilt with the mask: at most 1, and in standard errors.
    """

    tilt: np.ndarray
    is_accepted: bool
    columns: list[int]
    gains: np.ndarray
    free_gains: np.ndarray
    kept: np.ndarray
    gain_per_target: float = 0.0
    evidence: float = 0.0
    agreement: float = 0.0
    score: float = 0.0

    @property
    def signs(self) -> np.ndarray:
        """1 where larger values are missing more often, -1 where smaller ones are, 0 where nothing
        is known."""
        return np.sign(self.tilt)


@single_thread()
def fit_tilt(
    Z: np.ndarray,
    parameters: NormalParameters,
    rng: np.random.RandomState,
    *,
    y: np.ndarray | None = None,
    targets: str = "shadow",
    rule: Rule | None = None,
) -> TiltFit:
    """Learn the tilt.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows with NaN at missing cells.
    parameters : NormalParameters
        The normal that was fitted to them as if cells were missing at random.
    rng : RandomState
        Draws the folds, and the rows where there are too many.
    y : ndarray of shape (n, q), optional
        About standardised, NaN where there is no label.
    targets : {"shadow", "y", "both"}, default="shadow"
        Other columns, y, or both.
    rule : Rule, optional
    """
    columns = [] if targets == "y" else affordable(target_columns(Z, parameters), *Z.shape)
    if targets != "shadow" and y is not None and not np.isnan(y).any(axis=1).all():
        columns = [*columns, -1]
    n_columns = Z.shape[1]
    active = np.isnan(Z).sum(axis=0) >= _FEWEST_MISSING
    if not columns or not active.any():
        none = np.zeros(len(columns))
        return TiltFit(np.zeros(n_columns), False, columns, none, none, none > 0)
    Z, y = _thinned(Z, y, most_rows(n_columns, len(columns)), rng)
    found = [_target(Z, y, column, parameters, rng) for column in columns]
    free = torch.stack([free_loss(target) for target in found])
    fits = mask_fits(Z, list(np.flatnonzero(active)), parameters)
    return _learnt(stacked(found), free, fits, len(Z), active, columns, rule or Rule())


def _learnt(
    targets: ShadowTarget,
    free: Tensor,
    fits: Tensor,
    n_rows: int,
    active: np.ndarray,
    columns: list[int],
    rule: Rule,
) -> TiltFit:
    is_active = torch.from_numpy(active)
    at_random = losses(targets, torch.zeros(len(active), dtype=torch.float64), RIDGE)

    def tilt(theta: Tensor, own: float) -> Tensor:
        return tilt_of(theta, _SHARED, own) * is_active

    def gains(theta: Tensor, own: float) -> Tensor:
        return at_random - losses(targets, tilt(theta, own), RIDGE)

    def of_theta(theta: Tensor, own: float, kept: Tensor) -> Tensor:
        return objective(gains(theta, own)[kept], theta, _CAP)

    def counted(gained: Tensor) -> Tensor:
        return capped(gained, _CAP)

    def agreement(theta: Tensor, own: float) -> tuple[float, float]:
        told = tilt(theta, own)[is_active]
        return float(mask_agreement(told, fits)), float(mask_score(told, fits, n_rows))

    free_gains = at_random - free
    found = learn_tilt(of_theta, gains, counted, agreement, free_gains, len(active) + 1, rule)
    outer = found.outer
    learnt = tilt(torch.from_numpy(outer.theta), outer.width)
    learnt[is_active] = unopposed(learnt[is_active], fits)
    return _report(found, learnt.numpy(), free_gains.numpy(), columns)


def _report(
    found: SolverResult, tilt: np.ndarray, free_gains: np.ndarray, columns: list[int]
) -> TiltFit:
    outer, support = found.outer, found.outer.support
    return TiltFit(
        tilt=tilt,
        is_accepted=outer.is_accepted,
        columns=columns,
        gains=found.inner.numpy(),
        free_gains=free_gains,
        kept=outer.kept,
        gain_per_target=support.gain_per_target,
        evidence=support.evidence,
        agreement=support.agreement,
        score=support.score,
    )


def _target(
    Z: np.ndarray,
    y: np.ndarray | None,
    column: int,
    parameters: NormalParameters,
    rng: np.random.RandomState,
) -> ShadowTarget:
    if column >= 0:
        return column_target(Z, column, parameters, rng)
    assert y is not None
    return outcome_target(Z, y, parameters, rng)


def _thinned(
    Z: np.ndarray, y: np.ndarray | None, n_rows: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray | None]:
    if len(Z) <= n_rows:
        return Z, y
    order = rng.permutation(len(Z))
    if y is not None:
        # Few rows may have a label: they come first.
        order = order[np.argsort(np.isnan(y[order]).any(axis=1), kind="stable")]
    index = np.sort(order[:n_rows])
    return Z[index], None if y is None else y[index]
