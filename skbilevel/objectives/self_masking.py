"""Self-masking: a value is missing by a probit of itself, softly or beyond a hard limit.

======================  ==============  ==========  ======================================
symbol                  code name       shape       meaning
======================  ==============  ==========  ======================================
s_j                     side            (d,)        1: high values are missing, -1: low
                                                    ones, 0: whatever the value
b_j                     threshold       (d,)        where half of the values are missing
w_j                     width           (d,)        standard deviation of the probit, 1 over
                                                    its slope; 0 is a hard limit
m, v                    mean, variance  any         a normal variable x
t                       ratio           any         s (m - b) / sqrt(w^2 + v)
======================  ==============  ==========  ======================================

A cell is missing with probability ::

    p(s_j = 0 | x_j) = Phi(s_j (x_j - b_j) / w_j)                                 (1)

so that a normal x ~ N(m, v) that is missing has, with lambda = phi(t) / Phi(t), ::

    log p(missing) = log Phi(t)                                                   (2)
    E[x | missing] = m + s v lambda / sqrt(w^2 + v)                               (3)
    V[x | missing] = v - v^2 lambda (lambda + t) / (w^2 + v)                      (4)

The slope and curvature of (2) in (b, log w), with r^2 = w^2 + v, are ::

    d log Phi(t) = lambda (-s / r, -t w^2 / r^2)                                  (5)
    curvature >= lambda (lambda + t) (-s / r, -t w^2 / r^2)^2                     (6)

(6) is what is left without the second derivatives of t, and not negative. An observed cell is
one with side -s and v = 0.

These are smooth in m, v and b also for a hard limit, w = 0, where draws of x would have no
gradient. Reference: the missing model of Ipsen, Mattei and Frellsen (2021), not-MIWAE, with a
probit for its logistic function; the moments are those of a truncated normal with noise.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_LOG_SQRT_2PI = 0.9189385332046727
# Below this ratio (4) cancels, and its series is exact to 1e-8; coefficients are of powers of
# 1/u^2.
_TAIL = -20.0
_HAZARD_SERIES = (1.0, -2.0, 10.0, -74.0, 706.0)
_VARIANCE_SERIES = (1.0, -6.0, 50.0, -518.0, 6354.0)


class SelfMasking(NamedTuple):
    """side, threshold and width of every column, float64 tensors of shape (d,)."""

    side: Tensor
    threshold: Tensor
    width: Tensor

    def columns(self, index: Tensor) -> "SelfMasking":
        """The mechanism of the columns at ``index``, in its shape."""
        return SelfMasking(*(parameter[index] for parameter in self))


class Tilted(NamedTuple):
    """A normal variable given that it is missing: eqs. (2), (3) and (4)."""

    log_probability: Tensor
    mean: Tensor
    variance: Tensor


def log_normal_cdf(ratio: Tensor) -> Tensor:
    """log Phi(t), accurate far in both tails."""
    return torch.special.log_ndtr(ratio)


def hazard(ratio: Tensor, log_cdf: Tensor) -> Tensor:
    """lambda(t) = phi(t) / Phi(t), from t and log Phi(t); for t = -u far below 0
    u + 1/u - 2/u^3 + ..."""
    u = -ratio.clamp(max=_TAIL)
    far = u + _series(u, _HAZARD_SERIES) / u
    near = torch.exp(-0.5 * ratio.square() - _LOG_SQRT_2PI - log_cdf)
    return torch.where(ratio < _TAIL, far, near)


def variance_left(ratio: Tensor, pull: Tensor) -> Tensor:
    """1 - lambda (lambda + t), 0 to 1; for t = -u far below 0 1/u^2 - 6/u^4 + ..."""
    u = -ratio.clamp(max=_TAIL)
    far = _series(u, _VARIANCE_SERIES) / u.square()
    return torch.where(ratio < _TAIL, far, 1 - pull * (pull + ratio))


def _series(u: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    inverse, value = 1 / u.square(), torch.zeros_like(u)
    for coefficient in reversed(coefficients):
        value = value * inverse + coefficient
    return value


def tilted(mean: Tensor, variance: Tensor, mechanism: SelfMasking) -> Tilted:
    """Eqs. (2) to (4); all arguments broadcast. A column of side 0 has no factor."""
    total = mechanism.width.square() + variance
    ratio = mechanism.side * (mean - mechanism.threshold) / total.sqrt()
    log_cdf = log_normal_cdf(ratio)
    pull = hazard(ratio, log_cdf)
    share = variance / total
    shift = mechanism.side * share * total.sqrt() * pull
    share = share * mechanism.side.abs()
    shrunk = variance * (1 - share + share * variance_left(ratio, pull))
    return Tilted(mechanism.side.abs() * log_cdf, mean + shift, shrunk)


def log_observed(values: Tensor, mechanism: SelfMasking) -> Tensor:
    """log p(s = 1 | x): log Phi(-s (x - b) / w), and 0 within a hard limit, -inf beyond it.

    A column of side 0 has no factor: its log is 0.
    """
    distance = -mechanism.side * (values - mechanism.threshold)
    is_hard = mechanism.width == 0
    soft = mechanism.side.abs() * log_normal_cdf(distance / mechanism.width.where(~is_hard, 1.0))
    return torch.where(is_hard, torch.where(distance >= 0, 0.0, -torch.inf), soft)


def log_probability_terms(
    mean: Tensor, variance: Tensor, mechanism: SelfMasking
) -> tuple[Tensor, Tensor, Tensor]:
    """Eqs. (2), (5) and (6) of each cell, for a positive width: value (c,), slope (c, 2) and
    curvature (c, 2, 2) in (b, log w)."""
    total = mechanism.width.square() + variance
    ratio = mechanism.side * (mean - mechanism.threshold) / total.sqrt()
    log_cdf = log_normal_cdf(ratio)
    pull = hazard(ratio, log_cdf)
    by_threshold = -mechanism.side / total.sqrt()
    by_log_width = -ratio * mechanism.width.square() / total
    direction = torch.stack([by_threshold, by_log_width], dim=1)
    curvature = direction.unsqueeze(2) * direction.unsqueeze(1)
    return (
        log_cdf,
        pull.unsqueeze(1) * direction,
        (1 - variance_left(ratio, pull)).view(-1, 1, 1) * curvature,
    )
