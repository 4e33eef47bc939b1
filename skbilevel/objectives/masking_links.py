"""Self-masking by a noisy threshold: the probit, the hard limit, and the logistic function.

======================  ==============  ==========  ======================================
symbol                  code name       shape       meaning
======================  ==============  ==========  ======================================
a_j, c_j                gain,           (d,)        a cell is missing where
                        intercept                   a x + c + w e > 0, e ~ N(0, 1)
w_j                     noise           (d,)        0 is a hard limit
kappa                   noise / 2       (r,)        half the noise of a mixture of probits
m, v                    mean, variance  any         a normal variable x
t                       ratio           any         (a m + c) / sqrt(w^2 + a^2 v)
rho                     correlation     any         a sqrt(v) / sqrt(w^2 + a^2 v)
======================  ==============  ==========  ======================================

The probit has, for x given and for a normal x, ::

    p(s_j = 0 | x_j) = Phi((a_j x_j + c_j) / w_j)                                 (1)
    p(s_j = 0) = Phi(t)                                                           (2)

The logistic function is a mixture of probits over the noise w = 2 kappa, where kappa has the
limiting distribution of Kolmogorov and Smirnov (Andrews and Mallows, 1974, Scale mixtures of
normal distributions, JRSS B 36)::

    1 / (1 + e^-u) = E[Phi(u / (2 kappa))]                                        (3)

so that all that holds for a probit holds for it under one more sum. The sum is over an even grid
of log kappa, on which the integrand is smooth and falls off at either end faster than an
exponential function. Unlike a quadrature over x it needs no more nodes for a steep slope.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from skbilevel.objectives.self_masking import SelfMasking, log_normal_cdf

# Phi is 1, and its density 0, to the last bit of either dtype; infinity has no gradient.
_CERTAIN = 40.0


class NoisyThreshold(NamedTuple):
    """A normal x beside the variable that decides: log weights, t and rho, (r, ..., d)."""

    log_weight: Tensor
    ratio: Tensor
    correlation: Tensor


class Link(Protocol):
    """A self-masking mechanism, of which all integrals over a normal x are closed or sums."""

    def columns(self, index: Tensor) -> "Link":
        """The mechanism of the columns at ``index``."""

    def log_missing(self, values: Tensor) -> Tensor:
        """log p(s_j = 0 | x_j) of values (..., d)."""

    def log_observed(self, values: Tensor) -> Tensor:
        """log p(s_j = 1 | x_j) of values (..., d)."""

    def against(self, mean: Tensor, variance: Tensor) -> NoisyThreshold:
        """The mechanism beside a normal variable; arguments (..., d), results (r, ..., d)."""


@dataclass(frozen=True)
class ProbitLink:
    """Eq. (1).

    Attributes
    ----------
    gain, intercept, noise : Tensor of shape (d,)
        a, c and w. A gain and a noise of 0 say nothing about the column: both logs are 0.
    """

    gain: Tensor
    intercept: Tensor
    noise: Tensor

    def columns(self, index: Tensor) -> "ProbitLink":
        """The mechanism of the columns at ``index``."""
        return ProbitLink(self.gain[index], self.intercept[index], self.noise[index])

    def log_missing(self, values: Tensor) -> Tensor:
        """log Phi((a x + c) / w); of a hard limit 0 beyond it, -inf at it and within it."""
        return self._log_probability(values, 1.0, lambda excess: excess > 0)

    def log_observed(self, values: Tensor) -> Tensor:
        """log Phi(-(a x + c) / w); of a hard limit 0 at it and within it, -inf beyond it."""
        return self._log_probability(values, -1.0, lambda excess: excess <= 0)

    def _log_probability(
        self, values: Tensor, sign: float, is_certain: Callable[[Tensor], Tensor]
    ) -> Tensor:
        excess = self.gain * values + self.intercept
        is_hard = self.noise == 0
        soft = log_normal_cdf(sign * excess / self.noise.where(~is_hard, 1.0))
        hard = torch.where(is_certain(excess) | self._is_silent(), 0.0, -torch.inf)
        return torch.where(is_hard, hard.to(soft.dtype), soft)

    def _is_silent(self) -> Tensor:
        return (self.gain == 0) & (self.noise == 0)

    def against(self, mean: Tensor, variance: Tensor) -> NoisyThreshold:
        """Eq. (2); one component."""
        silent = self._is_silent()
        spread = (self.noise.square() + self.gain.square() * variance + silent).sqrt()
        ratio = torch.where(silent, _CERTAIN, (self.gain * mean + self.intercept) / spread)
        correlation = self.gain * variance.sqrt() / spread
        return NoisyThreshold(ratio.new_zeros(1), ratio.unsqueeze(0), correlation.unsqueeze(0))


def probit_of(mechanism: SelfMasking) -> ProbitLink:
    """The same mechanism: a = side, c = -side * threshold, w = width, silent for side 0."""
    silent = mechanism.side == 0
    noise = torch.where(silent, 0.0, mechanism.width)
    return ProbitLink(mechanism.side, -mechanism.side * mechanism.threshold, noise)


@dataclass(frozen=True)
class LogitLink:
    """p(s_j = 0 | x_j) = 1 / (1 + exp(-(a_j x_j + c_j))), eq. (3).

    Attributes
    ----------
    gain, intercept : Tensor of shape (d,)
    n_nodes : int
        Probits in the sum. With 16 the relative error of the probability is 2e-8 for log odds
        of x above -5, 2e-6 at -10 and 5e-3 at -30; with 8 it is 5e-3 at -5.
    active : Tensor of shape (d,), optional
        1, or 0 where the mechanism says nothing about a column: both logs are 0.
    """

    gain: Tensor
    intercept: Tensor
    n_nodes: int = 16
    active: Tensor | None = None

    def columns(self, index: Tensor) -> "LogitLink":
        """The mechanism of the columns at ``index``."""
        active = None if self.active is None else self.active[index]
        return LogitLink(self.gain[index], self.intercept[index], self.n_nodes, active)

    def log_missing(self, values: Tensor) -> Tensor:
        """log of the logistic function of a x + c."""
        return self._if_active(logsigmoid(self.gain * values + self.intercept))

    def log_observed(self, values: Tensor) -> Tensor:
        """log of the logistic function of -(a x + c)."""
        return self._if_active(logsigmoid(-self.gain * values - self.intercept))

    def against(self, mean: Tensor, variance: Tensor) -> NoisyThreshold:
        """Eq. (2) for every probit of eq. (3)."""
        noise, log_weight = (torch.from_numpy(part).to(mean) for part in logistic(self.n_nodes))
        noise = noise.view(-1, *[1] * mean.dim())
        spread = (noise.square() + self.gain.square() * variance).sqrt()
        ratio = (self.gain * mean + self.intercept) / spread
        if self.active is not None:
            ratio = torch.where(self.active > 0, ratio, _CERTAIN)
        return NoisyThreshold(log_weight, ratio, self.gain * variance.sqrt() / spread)

    def _if_active(self, log_probability: Tensor) -> Tensor:
        return log_probability if self.active is None else self.active * log_probability


def logistic(n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise 2 kappa and log weights of eq. (3), float64 of shape (n_nodes,).

    The grid ends where the density leaves less than 1e-13 of the mass, and goes further up than
    down: the upper end is what the function is far in its lower tail.
    """
    log_kappa = np.linspace(math.log(0.19), math.log(4.5), n_nodes)
    kappa = np.exp(log_kappa)
    log_weight = _log_kolmogorov_density(kappa) + log_kappa
    return 2 * kappa, log_weight - np.logaddexp.reduce(log_weight)


def _log_kolmogorov_density(kappa: np.ndarray) -> np.ndarray:
    """From the series in exp(-2 i^2 kappa^2) above 0.8, in exp(-i^2 pi^2 / 8 kappa^2) below."""
    i = np.arange(1, 13)[:, np.newaxis]
    odd = ((2 * i - 1) * np.pi / 2) ** 2
    with np.errstate(under="ignore"):
        # The first exponential is taken out, so that neither end underflows.
        above = (-1.0) ** (i + 1) * i**2 * np.exp(-2 * (i**2 - 1) * kappa**2)
        below = (odd / kappa**2 - 1) * np.exp(-(odd - odd[0]) / (2 * kappa**2))
    large = np.log(8 * kappa) - 2 * kappa**2 + np.log(np.where(kappa > 0.8, above.sum(0), 1.0))
    small = 0.5 * np.log(2 * np.pi) - 2 * np.log(kappa) - odd[0] / (2 * kappa**2)
    small = small + np.log(np.where(kappa > 0.8, 1.0, below.sum(0)))
    return np.where(kappa > 0.8, large, small)
