"""Shadow targets: what other columns, or y, tell of values that are missing because of themselves.

======================  ==============  ============  ========================================
symbol                  code name       shape         meaning
======================  ==============  ============  ========================================
E_i, C_i                mean,           (n, d),       a row given its observed cells, under a
                        covariance      (n, d, d)     normal; C is 0 at observed cells
gamma                   tilt            (d,)          log odds of being missing per unit of x_j
t                       values          (n, q)        a target: a column where it is observed,
                                                      or y of the labelled rows
w                       coefficients    (f, d+1, q)   the student that each fold does not see
lambda                  ridge           scalar        of the student
l_t, g_t                loss, gain      ()            of a target, in nats
c                       cap             scalar        most that a target gains
theta                   theta           (d+1,)        what is learnt: a shared and own parts
sigma, tau              shared, own     scalars       prior deviations of the parts of gamma
======================  ==============  ============  ========================================

Where cells are missing with odds exp(a_j + gamma_j x_j), the law of the missing ones is that of
observed ones, tilted: p(x_m | x_o) exp(gamma_m' x_m) up to a constant, where the normal that is
fitted as if cells were missing at random stands for p. Its covariance stays, and the mean moves ::

    x_i(gamma) = E_i + C_i gamma                                                  (1)

gamma = 0 is missing at random. A target is predicted by a ridge regression on the tilted rows
Z_i = [x_i(gamma), 1], for every fold of rows from the others. For a column as target the rows are
conditioned without it, as it would else predict itself ::

    w_f(gamma) = argmin sum_{i not in f} |t_i - w' Z_i|^2 + lambda |w|^2          (2)
    l_t(gamma) = n/2 log(1/n sum_f sum_{i in f} |t_i - w_f' Z_i|^2 + .001)        (3)

If values are missing because of themselves, the right tilt makes every target easier to predict.
No target may decide alone, and harm to any counts in full ::

    g_t = l_t(0) - l_t(gamma)                                                     (4)
    phi(g) = c (1 - exp(-g / c)) if g > 0 else g                                  (5)
    gamma_j = sigma theta_0 + tau theta_j                                         (6)
    J(theta) = - sum_t phi(g_t) + |theta|^2 / 2                                   (7)

The students of (2) are solved exactly, so that the gradient of (7) through the solution is the
implicit gradient of the bilevel problem.

Reference: Miao, Liu, Tchetgen Tchetgen and Geng (2015), Identification and semiparametric
efficiency of nonignorable missing data with a shadow variable, arXiv 1509.02556.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Of eq. (3), which keeps a target that is predicted to the last digit from being all.
_FLOOR = 1e-3


class ShadowTarget(NamedTuple):
    """A target and the rows that predict it.

    Attributes
    ----------
    mean : Tensor of shape (n, p)
        E of the predicting columns, conditioned without the target.
    covariance : Tensor of shape (n, p, d)
        Rows of C of the predicting columns; 0 in the column of the target.
    values : Tensor of shape (n, q)
        The target, about standardised.
    folds : Tensor of shape (f, n)
        1 for the rows of each fold, else 0.
    """

    mean: Tensor
    covariance: Tensor
    values: Tensor
    folds: Tensor


def tilted_rows(mean: Tensor, covariance: Tensor, tilt: Tensor) -> Tensor:
    """Eq. (1): (n, p)."""
    return mean + covariance @ tilt


def students(predictors: Tensor, target: ShadowTarget, ridge: float) -> Tensor:
    """Eq. (2) for every fold, from predictors (n, p): (f, p + 1, q), the intercept last."""
    rows = _with_intercept(predictors)
    grams = torch.einsum("fn,ni,nj->fij", target.folds, rows, rows)
    moments = torch.einsum("fn,ni,nj->fij", target.folds, rows, target.values)
    ridges = ridge * torch.eye(rows.shape[1], dtype=rows.dtype)
    return torch.linalg.solve(grams.sum(0) - grams + ridges, moments.sum(0) - moments)


def held_out_loss(predictors: Tensor, target: ShadowTarget, ridge: float) -> Tensor:
    """Eq. (3) in nats, from predictors (n, p)."""
    by_fold = torch.einsum(
        "ni,fij->fnj", _with_intercept(predictors), students(predictors, target, ridge)
    )
    predicted = torch.einsum("fn,fnj->nj", target.folds, by_fold)
    n_rows = len(predictors)
    return n_rows / 2 * ((target.values - predicted).square().sum() / n_rows + _FLOOR).log()


def losses(targets: list[ShadowTarget], tilt: Tensor, ridge: float) -> Tensor:
    """Eq. (3) of every target for a tilt (d,)."""
    return torch.stack(
        [
            held_out_loss(tilted_rows(target.mean, target.covariance, tilt), target, ridge)
            for target in targets
        ]
    )


def capped(gains: Tensor, cap: float) -> Tensor:
    """Eq. (5)."""
    # Where a gain is negative its exponential could overflow, and spoil the gradient.
    return torch.where(gains > 0, cap * -torch.expm1(-gains.clamp(min=0) / cap), gains)


def tilt_of(theta: Tensor, shared: float, own: float) -> Tensor:
    """Eq. (6): theta (d + 1,), the shared part first, to (d,)."""
    return shared * theta[0] + own * theta[1:]


def objective(gains: Tensor, theta: Tensor, cap: float) -> Tensor:
    """Eq. (7)."""
    return theta.square().sum() / 2 - capped(gains, cap).sum()


def _with_intercept(predictors: Tensor) -> Tensor:
    return torch.cat([predictors, predictors.new_ones(len(predictors), 1)], dim=1)
