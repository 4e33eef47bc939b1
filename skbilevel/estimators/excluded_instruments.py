"""What instruments that are not regressors tell, beyond those that are.

Where some regressors are their own instruments, a model that is linear in them can be identified
by its shape alone: then the estimate has a small standard error, and instruments no part in it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from skbilevel._sklearn import warn_user
from skbilevel.estimators.nuisances import Folds, Learner, varying

# Of the variance that controls leave, the share that instruments should tell.
_LEAST = 0.01
# Correlations nearer to 1 are those of one column in two units; what controls tell but for this
# share of its variance is a function of them.
_SAME, _TOLD = 1e-10, 0.01


def shared_columns(columns: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each column (n, p) is one of the others (n, q) in some units, (p,): scaled, moved or
    rounded to single precision it is still the same."""
    first, second = _standardised(columns), _standardised(others)
    same = np.abs(first.T @ second) / len(columns) > 1 - _SAME
    return same.any(axis=1)


def _standardised(columns: np.ndarray) -> np.ndarray:
    """With mean 0 and variance 1, or 0 where they do not vary."""
    centred, varies = columns - columns.mean(axis=0), varying(columns)
    return np.where(varies, centred / np.where(varies, columns.std(axis=0), 1.0), 0.0)


def told_beyond_controls(
    instruments: np.ndarray,
    controls: np.ndarray,
    features: np.ndarray,
    kappa: np.ndarray,
    learner: Learner,
    folds: Folds,
) -> np.ndarray:
    """Of what controls leave of each feature (n, p), the share that all instruments tell.

    Parameters
    ----------
    instruments : ndarray of shape (n, q)
    controls : ndarray of bool of shape (q,)
        Which of them are regressors as well.
    features : ndarray of shape (n, p)
        Of all rows.
    kappa : ndarray of shape (m, p)
        What all instruments tell of those of ``folds.rows``.
    learner : Learner
    folds : Folds

    Returns
    -------
    ndarray of shape (p,)
        ``1 - |f - E[f|Z]|^2 / |f - E[f|controls]|^2`` on rows that the models have not seen; NaN
        for a feature that does not vary, or is a function of controls: they tell 99 % of it.
    """
    rows = folds.rows
    by_controls = np.broadcast_to(features[rows].mean(axis=0), features[rows].shape)
    if controls.any():
        plain = replace(learner, correction="none")
        by_controls = plain.tell(instruments[:, controls], features, folds).means[rows]
    left, beyond = (np.square(features[rows] - told).mean(axis=0) for told in (by_controls, kappa))
    told = varying(features) & (left > _TOLD * features[rows].var(axis=0))
    return np.where(told, 1 - beyond / np.where(told, left, 1.0), np.nan)


def warn_of_instruments(scores: dict[str, float]) -> None:
    """Warn of features whose coefficient is identified by something else."""
    if scores and min(scores.values()) < _LEAST:
        worst = min(scores, key=lambda name: scores[name])
        warn_user(
            f"What Z holds besides columns of X tells next to nothing more of {worst!r} (R2 "
            f"{scores[worst]:.3f} of what these leave): as far as its coefficient is identified, "
            "it is by the shape of the model and not by instruments."
        )
