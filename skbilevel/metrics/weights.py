"""Spread of the weights of samples."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from skbilevel.metrics.imputation import Array


def effective_sample_size(weights: ArrayLike) -> float:
    """Kish's number of equally weighted samples, (sum w)^2 / sum w^2.

    Parameters
    ----------
    weights : array-like of shape (n_samples,)
        Non-negative, not all zero; their sum does not matter.

    Returns
    -------
    size : float
        Between 1 (one weight is not zero) and n_samples (all are equal).

    Examples
    --------
    >>> from skbilevel.metrics import effective_sample_size
    >>> effective_sample_size([1.0, 1.0, 0.0])
    2.0
    """
    return float(1 / np.sum(_normalized(weights) ** 2))


def entropy(weights: ArrayLike) -> float:
    """Entropy of the normalised weights, -sum p log p in nats, with 0 log 0 = 0.

    Parameters
    ----------
    weights : array-like of shape (n_samples,)
        Non-negative, not all zero; their sum does not matter.

    Returns
    -------
    entropy : float
        Between 0 and log n_samples; its exponential is a number of samples.

    Examples
    --------
    >>> from skbilevel.metrics import entropy
    >>> round(entropy([1.0, 1.0, 0.0]), 4)
    0.6931
    """
    return float(entr(_normalized(weights)).sum())


def _normalized(weights: ArrayLike) -> Array:
    w = np.asarray(weights, dtype=float)
    if w.ndim != 1 or not (np.isfinite(w) & (w >= 0)).all() or not w.any():
        raise ValueError("weights must be one-dimensional, finite, non-negative and not all zero")
    w = w / w.max()
    return w / w.sum()
