"""What a decoder says of each cell: distributions p(x_j | z).

======================  ==============  ==========  ======================================
symbol                  code name       shape       meaning
======================  ==============  ==========  ======================================
mu(z)                   location        (..., d)    decoder's output, for draws and rows in
                                                    the leading dimensions
sigma_j                 scale           (d,)
nu_j                    degrees         (d,)        degrees of freedom, above 1
g                       precision       (r, d)      of a Student-t given its mixing variable
p(x_j = a | z)          logits          (..., d)    Bernoulli: log odds of 1; categorical:
                                        (.., d, c)  unnormalised log probabilities
======================  ==============  ==========  ======================================

Cells are independent given z. The Student-t is a normal of precision g / sigma^2 with
g ~ Gamma(nu/2, nu/2), and all integrals of it are sums over a grid of log g, which is spaced by
a hyperbolic sine: the integrand then falls off at both ends faster than an exponential. Draws
take uniform numbers; those of the Student-t (Bailey, 1994, Polar generation of random variates
with the t distribution, Mathematics of Computation 62)::

    x = mu + sigma sqrt(nu (u^(-2/nu) - 1)) cos(2 pi v)                           (1)

and those of discrete distributions add Gumbel noise to the logits, so that a temperature makes
of them a smooth function with a gradient.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from skbilevel.objectives.given_missing import (
    DiscreteGivenMissing,
    GivenMissing,
    JoinedGivenMissing,
    NormalGivenMissing,
    joined,
    normal_given_missing,
)
from skbilevel.objectives.masking_links import Link
from skbilevel.objectives.normal import LOG_2PI


class Observation(Protocol):
    """The cells of rows given their codes; tensors are (..., d) with draws and rows in front."""

    @property
    def n_uniforms(self) -> int:
        """Uniform numbers that a draw of one cell takes."""

    @property
    def mean(self) -> Tensor:
        """E[x | z]."""

    def log_density(self, values: Tensor) -> Tensor:
        """log p(x_j | z) of every cell; values must be finite also where they are missing."""

    def drawn(self, uniforms: Tensor) -> Tensor:
        """x from ``uniforms`` (n_uniforms, ..., d) in (0, 1); with a gradient in the parameters
        unless the distribution is discrete and has no temperature."""

    def given_missing(self, link: Link) -> GivenMissing:
        """Every cell were it missing by a self-masking mechanism."""


@dataclass(frozen=True)
class Gaussian:
    """Normal with location (..., d) and scale (d,)."""

    location: Tensor
    scale: Tensor
    n_uniforms = 1

    @property
    def mean(self) -> Tensor:
        """The location."""
        return self.location

    def log_density(self, values: Tensor) -> Tensor:
        """log N(x; mu, sigma^2)."""
        standardized = (values - self.location) / self.scale
        return -0.5 * (standardized.square() + LOG_2PI) - self.scale.log()

    def drawn(self, uniforms: Tensor) -> Tensor:
        """mu + sigma Phi^-1(u)."""
        return self.location + self.scale * torch.special.ndtri(uniforms[0])

    def given_missing(self, link: Link) -> NormalGivenMissing:
        """One normal beside the mechanism."""
        scale = self.scale.expand(1, *self.location.shape)
        return normal_given_missing(self.location, scale, torch.zeros_like(scale), link)


@dataclass(frozen=True)
class StudentT:
    """Student-t with location (..., d), scale (d,), degrees (d,); n_nodes for its integrals."""

    location: Tensor
    scale: Tensor
    degrees: Tensor
    n_nodes: int = 24
    n_uniforms = 2

    @property
    def mean(self) -> Tensor:
        """The location."""
        return self.location

    def log_density(self, values: Tensor) -> Tensor:
        """log of the density."""
        half = self.degrees / 2
        standardized = (values - self.location) / self.scale
        log_norm = (half + 0.5).lgamma() - half.lgamma() - 0.5 * (math.pi * self.degrees).log()
        tail = (half + 0.5) * (standardized.square() / self.degrees).log1p()
        return log_norm - self.scale.log() - tail

    def drawn(self, uniforms: Tensor) -> Tensor:
        """Eq. (1)."""
        # expm1 keeps the digits that u^(-2/nu) - 1 loses for many degrees of freedom.
        radius = (self.degrees * torch.expm1(-2 / self.degrees * uniforms[0].log())).sqrt()
        return self.location + self.scale * radius * (2 * math.pi * uniforms[1]).cos()

    def given_missing(self, link: Link) -> NormalGivenMissing:
        """The normals of the grid of g beside the mechanism."""
        scale, log_weight = self._components()
        return normal_given_missing(self.location, scale, log_weight, link)

    def _components(self) -> tuple[Tensor, Tensor]:
        """Scale and log weight of the normals, (r, 1, ..., d)."""
        log_precision, log_weight = student_mixture(self.degrees, self.n_nodes)
        shape = (-1, *[1] * (self.location.dim() - 1), self.location.shape[-1])
        scale = self.scale * (-0.5 * log_precision).exp()
        return scale.view(shape), log_weight.view(shape)


def student_mixture(degrees: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """log g and log weights of a Student-t as a sum of normals; (n_nodes, d) each.

    With 24 nodes the error of a distribution function is about 1e-6 of it around the centre. The
    gradient in ``degrees`` is that of the weights: the grid itself does not matter.
    """
    half = degrees / 2
    steps = torch.linspace(-3.6, 2.1, n_nodes, dtype=degrees.dtype, device=degrees.device)
    stretch = torch.special.polygamma(1, half.detach()).sqrt()
    log_precision = steps.sinh().unsqueeze(1) * stretch
    log_density = half * (log_precision - log_precision.exp())
    log_weight = log_density + steps.cosh().log().unsqueeze(1)
    return log_precision, log_weight.log_softmax(0)


@dataclass(frozen=True)
class Bernoulli:
    """0 or 1, with log odds (..., d) of 1; ``temperature`` makes draws smooth, for gradients."""

    logits: Tensor
    temperature: float | None = None
    n_uniforms = 1

    @property
    def mean(self) -> Tensor:
        """p(x = 1 | z)."""
        return self.logits.sigmoid()

    def log_density(self, values: Tensor) -> Tensor:
        """x log p + (1 - x) log(1 - p); finite also for a filling between 0 and 1."""
        return values * logsigmoid(self.logits) + (1 - values) * logsigmoid(-self.logits)

    def drawn(self, uniforms: Tensor) -> Tensor:
        """1 where log odds and logistic noise are above 0; smoothed by the temperature."""
        noisy = self.logits + uniforms[0].logit()
        if self.temperature is None:
            return (noisy > 0).to(self.logits.dtype)
        return (noisy / self.temperature).sigmoid()

    def given_missing(self, link: Link) -> DiscreteGivenMissing:
        """The two values beside the mechanism."""
        return _discrete(self._log_prior, link)

    @property
    def _log_prior(self) -> Tensor:
        return torch.stack([logsigmoid(-self.logits), logsigmoid(self.logits)])


@dataclass(frozen=True)
class Categorical:
    """Codes 0 to c - 1, with logits (..., d, c).

    Columns of fewer categories have logits of -inf behind their last one. ``temperature`` makes
    draws smooth, for gradients: a code is then a mean of codes.
    """

    logits: Tensor
    temperature: float | None = None

    @property
    def n_uniforms(self) -> int:
        """One a category."""
        return self.logits.shape[-1]

    @property
    def _codes(self) -> Tensor:
        return torch.arange(self.n_uniforms, dtype=self.logits.dtype, device=self.logits.device)

    @property
    def mean(self) -> Tensor:
        """Mean of the codes."""
        return (self.logits.softmax(-1) * self._codes).sum(-1)

    def log_density(self, values: Tensor) -> Tensor:
        """log p of the code; a filling between two codes counts as the nearer one."""
        log_prior = self.logits.log_softmax(-1)
        index = values.round().long().clamp(0, self.n_uniforms - 1)
        shape = torch.broadcast_shapes(index.shape, log_prior.shape[:-1])
        index = index.expand(shape).unsqueeze(-1)
        return log_prior.expand(*shape, -1).gather(-1, index).squeeze(-1)

    @torch.no_grad()
    def probability(self, codes: Tensor) -> Tensor:
        """p(x = codes | z)."""
        return self.log_density(codes).exp()

    def drawn(self, uniforms: Tensor) -> Tensor:
        """The code whose logit and Gumbel noise are largest; smoothed by the temperature."""
        noisy = self.logits - (-uniforms.movedim(0, -1).log()).log()
        if self.temperature is None:
            return noisy.argmax(-1).to(self.logits.dtype)
        return ((noisy / self.temperature).softmax(-1) * self._codes).sum(-1)

    def given_missing(self, link: Link) -> DiscreteGivenMissing:
        """All codes beside the mechanism."""
        return _discrete(self._log_prior, link)

    @property
    def _log_prior(self) -> Tensor:
        return self.logits.log_softmax(-1).movedim(-1, 0)


@dataclass(frozen=True)
class Joined:
    """Columns of several kinds, side by side.

    Attributes
    ----------
    parts : tuple of Observation
    columns : tuple of Tensor
        Where the columns of each part stand; together all of 0 to d - 1.
    """

    parts: tuple[Observation, ...]
    columns: tuple[Tensor, ...]

    @property
    def n_uniforms(self) -> int:
        """What the part that takes most of them takes."""
        return max(part.n_uniforms for part in self.parts)

    @property
    def mean(self) -> Tensor:
        """Of every part."""
        return joined([part.mean for part in self.parts], self.columns)

    def log_density(self, values: Tensor) -> Tensor:
        """Of every part."""
        pairs = zip(self.parts, self.columns, strict=True)
        return joined(
            [part.log_density(values[..., index]) for part, index in pairs], self.columns
        )

    def drawn(self, uniforms: Tensor) -> Tensor:
        """Of every part, from the first of the uniform numbers."""
        pairs = zip(self.parts, self.columns, strict=True)
        draws = [part.drawn(uniforms[: part.n_uniforms, ..., index]) for part, index in pairs]
        return joined(draws, self.columns)

    def given_missing(self, link: Link) -> JoinedGivenMissing:
        """Every part beside the mechanism of its columns."""
        pairs = zip(self.parts, self.columns, strict=True)
        given = [part.given_missing(link.columns(index)) for part, index in pairs]
        return JoinedGivenMissing(tuple(given), self.columns)


def _codes_and(log_prior: Tensor) -> DiscreteGivenMissing:
    """Codes 0 to c - 1 with log probabilities (c, ..., d)."""
    codes = torch.arange(len(log_prior), dtype=log_prior.dtype, device=log_prior.device)
    return DiscreteGivenMissing(codes, log_prior)


def _discrete(log_prior: Tensor, link: Link) -> DiscreteGivenMissing:
    prior = _codes_and(log_prior)
    log_missing = link.log_missing(prior.codes.unsqueeze(1))
    shape = (len(prior.codes), *[1] * (log_prior.dim() - 2), -1)
    return DiscreteGivenMissing(prior.codes, log_prior + log_missing.view(shape))
