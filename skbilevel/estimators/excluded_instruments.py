"""What instruments that are not regressors tell, beyond those that are.

Where some regressors are their own instruments, a model that is linear in them can be identified
by its shape alone: then the estimate has a small standard error, and instruments no part in it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from skbilevel._sklearn import warn_user
from skbilevel.estimators.moment_learning import Repetition
from skbilevel.estimators.nuisances import Learner, varying

# Of the variance that controls leave, the share that instruments should tell.
_LEAST = 0.01


def shared_columns(columns: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each column (n, p) is one of the others (n, q), (p,)."""
    same = [bool((others == column[:, np.newaxis]).all(axis=0).any()) for column in columns.T]
    return np.array(same, dtype=bool)


def told_beyond_controls(
    instruments: np.ndarray,
    controls: np.ndarray,
    features: np.ndarray,
    kappa: np.ndarray,
    learner: Learner,
    repetition: Repetition,
) -> np.ndarray:
    """Of what controls leave of each feature (n, p), the share that all instruments tell.

    Parameters
    ----------
    instruments : ndarray of shape (n, q)
    controls : ndarray of bool of shape (q,)
        Which of them are regressors as well.
    features : ndarray of shape (n, p)
        Of the rows that the repetition tells.
    kappa : ndarray of shape (n, p)
        What all instruments tell of them.
    learner : Learner
    repetition : Repetition

    Returns
    -------
    ndarray of shape (p,)
        ``1 - |f - E[f|Z]|^2 / |f - E[f|controls]|^2`` on rows that the models have not seen; NaN
        for a feature that does not vary, or that controls tell exactly.
    """
    rows = repetition.rows
    by_controls = np.broadcast_to(features[rows].mean(axis=0), features[rows].shape)
    if controls.any():
        plain = replace(learner, correction="none")
        known, splits = instruments[:, controls], repetition.splits
        by_controls = plain.tell(known, features, splits, repetition.side).means[rows]
    left, beyond = (np.square(features[rows] - told).mean(axis=0) for told in (by_controls, kappa))
    told = varying(features) & (left > 0)
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
