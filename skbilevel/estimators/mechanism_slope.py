"""The slope of a self-masking mechanism of known side.

All columns share it: slopes of their own have more evidence and are worse where columns are not
normal.
"""

import numpy as np
import torch

from skbilevel.estimators.linear_model import NO_LIMIT
from skbilevel.estimators.mechanism_candidates import (
    Form,
    as_they_are,
    completed,
    fitted,
    thinned,
)
from skbilevel.estimators.mechanism_em import NARROWEST, MechanismFit, fit_self_masked
from skbilevel.estimators.mechanism_start import hard_limits, normal_limits, self_masking
from skbilevel.objectives.normal import left_out, precision
from skbilevel.objectives.self_masking import SelfMasking, log_probability_terms
from skbilevel.solvers.separable_newton import Quadratic, newton_step

# Widths that are compared: slopes of 50, 12, 3 and 1.5.
_WIDTHS = (NARROWEST, 1 / 12, 1 / 3, 1 / 1.5)
_THRESHOLD_STEPS = 8
# Enough to compare widths: on 60 development tables, a third of them with a limit, 30 iterations
# pick the same ones, by gaps that differ by at most .07 where they matter.
_FIRST_ITERATIONS, _ITERATIONS = 5, 10
# What a probit has to gain over a limit, in nats per missing cell: columns that are not normal
# may prefer a flat one by .03 if a limit hid their cells; true ones were ahead by .3 and more.
_FOR_SOFT = 0.1


def known_sign(
    Z: np.ndarray, side: np.ndarray | float, rng: np.random.RandomState
) -> MechanismFit:
    """The mechanism of known side whose slope is learnt.

    The steepest stands for a limit at the largest, or smallest, observed value, and is kept
    unless another is ahead by a margin. A column without a missing cell has a limit, or no
    mechanism; one of a single value has none.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows with NaN at missing cells.
    side : float or ndarray of shape (d,)
        1 where high values are missing, -1 where low ones are, 0 for missing at random.
    rng : RandomState
        Draws the rows to compare on, where there are many.

    Returns
    -------
    MechanismFit
        With the mechanism for all rows, and the normal of those compared on.
    """
    rows = thinned(Z, rng)
    varies = np.nanmin(Z, axis=0) < np.nanmax(Z, axis=0)
    own = np.where(np.isnan(Z).any(axis=0) & varies, side, 0.0)
    steep, *soft = (_with_shared_width(rows, own, width) for width in _WIDTHS)
    best = max(soft, key=lambda fit: fit.evidence)
    n_missing = np.count_nonzero(np.isnan(rows[:, own != 0]))
    if (best.evidence - steep.evidence) * len(rows) > _FOR_SOFT * n_missing:
        return best
    return steep._replace(mechanism=hard_limits(Z, side))


def _with_shared_width(Z: np.ndarray, side: np.ndarray, width: float) -> MechanismFit:
    """Thresholds are learnt from what a first fit tells of every cell by the others."""
    if width == NARROWEST:
        return fitted(Z, Form(side, side != 0), _ITERATIONS)
    widths = np.where(side == 0, 1.0, width)
    mechanism = self_masking(side, normal_limits(Z, side) * np.hypot(1, width), widths)
    first = fit_self_masked(as_they_are(Z), mechanism, max_iter=_FIRST_ITERATIONS, limit=NO_LIMIT)
    mechanism = mechanism._replace(threshold=_learnt_thresholds(Z, first))
    return fit_self_masked(as_they_are(Z), mechanism, max_iter=_ITERATIONS, limit=NO_LIMIT)


def _learnt_thresholds(Z: np.ndarray, fit: MechanismFit) -> torch.Tensor:
    values, missing = torch.from_numpy(Z), torch.from_numpy(Z).isnan()
    rows, model = torch.from_numpy(completed(Z, fit)), precision(fit.parameters)
    mean, variance = left_out(rows, model)
    location = mean.where(missing, values).reshape(-1)
    spread = variance.where(missing, 0.0).reshape(-1)
    side = fit.mechanism.side * torch.where(missing, 1.0, -1.0)
    width = fit.mechanism.width.expand(side.shape).reshape(-1)

    def evaluate(theta: torch.Tensor) -> Quadratic:
        threshold = theta.T.expand(side.shape).reshape(-1)
        own = SelfMasking(side.reshape(-1), threshold, width)
        value, gradient, curvature = log_probability_terms(location, spread, own)
        by_column = (*side.shape, -1)
        return Quadratic(
            value.reshape(side.shape).sum(0),
            gradient[:, :1].reshape(by_column).sum(0),
            curvature[:, :1, :1].reshape(*by_column, 1).sum(0),
        )

    theta = fit.mechanism.threshold[:, None]
    for _ in range(_THRESHOLD_STEPS):
        theta = newton_step(evaluate, theta)
    return theta[:, 0]
