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

The mask itself must not contradict the tilt. With odds exp(a_j + gamma_j x_j), what other columns
know of the mask m_j of a column (1 = missing) goes through x_j: a line in e_j, the column as
predicted from the others, fits m_j about as well as all predicted columns do, and rises where
gamma_j > 0. Where other columns drive the mask it fits less, and where nothing does, it fits as
badly as any other direction. Over all columns ::

    r_j = corr(m_j, e_j),   R_j^2 = that of m_j on all columns predicted without x_j   (8)
    agreement = sum_j gamma_j r_j |r_j| / sum_j |gamma_j| R_j^2                        (9)
    gamma_j <- 0 where gamma_j r_j < 0                                                 (10)

and it has to be evident that it does: where the mask goes by nothing, sqrt(n) r_j is about
standard normal, and so is ::

    score = sqrt(n) sum_j a_j r_j / sqrt(sum_j a_j^2),   a_j = gamma_j sd(e_j)        (11)

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
# Of what does not vary, 0 is known rather than 0 / 0.
_TINY = 1e-30


class ShadowTarget(NamedTuple):
    """A target and the rows that predict it, or a stack of targets.

    Rows are laid out by fold; the short folds are filled up with rows of zeros.

    Attributes
    ----------
    mean : Tensor of shape (..., f, b, d)
        E of the predicting columns, conditioned without the target; 0 in the column of the target.
    covariance : Tensor of shape (..., f, b, d, d)
        C of them; 0 in row and column of the target.
    values : Tensor of shape (..., f, b, q)
        The target, about standardised.
    present : Tensor of shape (..., f, b, 1)
        1 for a row, 0 for a filler: also the predictor whose coefficient is the intercept.
    """

    mean: Tensor
    covariance: Tensor
    values: Tensor
    present: Tensor


def stacked(targets: list[ShadowTarget]) -> ShadowTarget:
    """Targets in one, (t, f, b, ...), with as many filler rows and zero values as that takes."""
    n_rows, n_values = (max(target.values.shape[k] for target in targets) for k in (-2, -1))

    def part(k: int) -> Tensor:
        first = targets[0][k]
        shape = [len(targets), first.shape[0], n_rows, *first.shape[2:]]
        if k == ShadowTarget._fields.index("values"):
            shape[-1] = n_values
        whole = first.new_zeros(shape)
        for own, target in zip(whole, targets, strict=True):
            own[tuple(slice(size) for size in target[k].shape)] = target[k]
        return whole

    return ShadowTarget(*map(part, range(4)))


def tilted_rows(mean: Tensor, covariance: Tensor, tilt: Tensor) -> Tensor:
    """Eq. (1): (..., d)."""
    return mean + covariance @ tilt


def students(rows: Tensor, target: ShadowTarget, ridge: float) -> Tensor:
    """Eq. (2) for every fold, from rows (..., f, b, p): (..., f, p, q)."""
    grams, moments = rows.mT @ rows, rows.mT @ target.values
    ridges = ridge * torch.eye(rows.shape[-1], dtype=rows.dtype)
    others = grams.sum(-3, keepdim=True) - grams + ridges
    return torch.linalg.solve(others, moments.sum(-3, keepdim=True) - moments)


def held_out_loss(predictors: Tensor, target: ShadowTarget, ridge: float) -> Tensor:
    """Eq. (3) in nats, from predictors (..., f, b, p): (...)."""
    rows = torch.cat([predictors, target.present], dim=-1)
    residual = target.values - rows @ students(rows, target, ridge)
    n_rows = target.present.sum((-3, -2, -1))
    return n_rows / 2 * (residual.square().sum((-3, -2, -1)) / n_rows + _FLOOR).log()


def losses(targets: ShadowTarget, tilt: Tensor, ridge: float) -> Tensor:
    """Eq. (3) of every target for a tilt (d,)."""
    return held_out_loss(tilted_rows(targets.mean, targets.covariance, tilt), targets, ridge)


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


def mask_fit(missing: Tensor, predicted: Tensor, column: int) -> Tensor:
    """Eq. (8) from m_j (n,) and all columns (n, d), predicted without x_j: r_j, R_j^2, sd(e_j)."""
    m, others = missing - missing.mean(), predicted - predicted.mean(0)
    e = others[:, column]
    correlation = e @ m / ((e @ e) * (m @ m) + _TINY).sqrt()
    solution = torch.linalg.lstsq(others, m[:, None], driver="gelsd").solution[:, 0]
    by_all = (others @ solution) @ m / (m @ m + _TINY)
    return torch.stack([correlation, by_all, e.square().mean().sqrt()])


def mask_agreement(tilt: Tensor, fits: Tensor) -> Tensor:
    """Eq. (9) of a tilt (k,) whose columns have the fits (k, 3)."""
    by_line, by_all, _ = fits.unbind(1)
    told = (tilt * by_line * by_line.abs()).sum()
    return told / ((tilt.abs() * by_all).sum() + _TINY)


def mask_score(tilt: Tensor, fits: Tensor, n_rows: int) -> Tensor:
    """Eq. (11), in standard errors, of a tilt (k,) whose columns have the fits (k, 3)."""
    told = tilt * fits[:, 2]
    return n_rows**0.5 * (told @ fits[:, 0]) / (told.norm() + _TINY)


def unopposed(tilt: Tensor, fits: Tensor) -> Tensor:
    """Eq. (10) of a tilt (k,) whose columns have the fits (k, 3)."""
    return torch.where(tilt * fits[:, 0] < 0, 0.0, tilt)
