"""One cell given that it is missing: the integral over its value, in closed form or a finite sum.

======================  ==============  ============  ======================================
symbol                  code name       shape         meaning
======================  ==============  ============  ======================================
m, sd                   location,       (r, ..., d)   a normal x, or one of r components
                        scale
t, rho                  ratio,          (r, ..., d)   of the mechanism beside x, see
                        correlation                   `skbilevel.objectives.masking_links`
pi                      share           (r, ..., d)   weight of a component, given missing
xi                      excess          any           the deciding variable, standard normal,
                                                      above -t where the cell is missing
eta                     remainder       any           standard normal, independent of xi
lambda                  `hazard`        any           phi(t) / Phi(t)
a_c                     codes           (c,)          values of a discrete x
p_c                     log_joint       (c, ..., d)   log of their probabilities times those of
                                                      being missing
======================  ==============  ============  ======================================

A cell is missing where ``xi > -t``, and x = m + sd (rho xi + sqrt(1 - rho^2) eta)::

    log p(missing) = log sum pi0 Phi(t)                                           (1)
    E[x | missing] = sum pi (m + sd rho lambda(t))                                (2)

pi0 being the weights before. A draw of x is a draw of xi from a truncated normal and one of eta.
For a discrete x all are sums over its values.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from skbilevel.objectives.masking_links import Link
from skbilevel.objectives.normal import LOG_2PI
from skbilevel.objectives.self_masking import hazard, log_normal_cdf

N_UNIFORMS = 3


class GivenMissing(Protocol):
    """Every cell of a row, were it missing; tensors are (..., d)."""

    @property
    def log_probability(self) -> Tensor:
        """log p(s = 0 | z)."""

    @property
    def mean(self) -> Tensor:
        """E[x | z, s = 0]."""

    def drawn(self, uniforms: Tensor) -> Tensor:
        """Draws of x given z and s = 0 from ``uniforms`` (3, ..., d) in (0, 1); no gradient.

        ``uniforms`` may have dimensions in front of those of z, for several draws each.
        """


@dataclass(frozen=True)
class NormalGivenMissing:
    """Of a normal cell, or of a mixture of normals with one location, beside a `Link`.

    Attributes
    ----------
    location : Tensor of shape (..., d)
    scale : Tensor that broadcasts to (r, ..., d)
    log_weight : Tensor that broadcasts to (r, ..., d)
        log pi0, whose exponentials add up to 1 over r.
    ratio, correlation : Tensor of shape (r, ..., d)
    """

    location: Tensor
    scale: Tensor
    log_weight: Tensor
    ratio: Tensor
    correlation: Tensor

    @cached_property
    def _log_cdf(self) -> Tensor:
        return log_normal_cdf(self.ratio)

    @property
    def _log_joint(self) -> Tensor:
        return self.log_weight + self._log_cdf

    @property
    def log_probability(self) -> Tensor:
        """Eq. (1); (..., d)."""
        return _log_sum(self._log_joint)

    @property
    def _share(self) -> Tensor:
        return self._log_joint.softmax(0)

    @property
    def mean(self) -> Tensor:
        """Eq. (2); (..., d)."""
        shift = self.scale * self.correlation * hazard(self.ratio, self._log_cdf)
        return self.location + (self._share * shift).sum(0)

    @torch.no_grad()
    def drawn(self, uniforms: Tensor) -> Tensor:
        """Component by the first uniform, xi by the second, eta by the third; (..., d)."""
        index = _picked(self._share, uniforms[0])
        ratio, correlation, scale = (
            _taken(part.expand_as(self.ratio), index)
            for part in (self.ratio, self.correlation, self.scale)
        )
        excess = -normal_quantile(uniforms[1].log() + log_normal_cdf(ratio))
        remainder = _remainder(correlation) * torch.special.ndtri(uniforms[2])
        return self.location + scale * (correlation * excess + remainder)


def normal_given_missing(
    location: Tensor, scale: Tensor, log_weight: Tensor, link: Link
) -> NormalGivenMissing:
    """Components (r', ..., d) of normals of one location, each beside each probit of the link.

    Parameters
    ----------
    location : Tensor of shape (..., d)
    scale, log_weight : Tensor of shape (r', ..., d)
        The dimensions between may be 1.
    link : Link
    """
    spread = scale.expand(*scale.shape[:1], *location.shape)
    # The probits of the link come first, before the components and the rows.
    beside = link.against(location.expand_as(spread), spread.square())
    weight = beside.log_weight.view(-1, *[1] * spread.dim()) + log_weight
    scales = spread.expand_as(beside.ratio)
    return NormalGivenMissing(
        location,
        scales.flatten(0, 1),
        weight.flatten(0, 1),
        beside.ratio.flatten(0, 1),
        beside.correlation.flatten(0, 1),
    )


@dataclass(frozen=True)
class DiscreteGivenMissing:
    """Of a discrete cell.

    Attributes
    ----------
    codes : Tensor of shape (c,)
        The values that it takes, ascending.
    log_joint : Tensor of shape (c, ..., d)
        log p(x = a_c | z) + log p(s = 0 | x = a_c).
    """

    codes: Tensor
    log_joint: Tensor

    @property
    def log_probability(self) -> Tensor:
        """log of the sum over values; (..., d)."""
        return _log_sum(self.log_joint)

    @property
    def probabilities(self) -> Tensor:
        """p(x = a_c | z, s = 0); (c, ..., d)."""
        return self.log_joint.softmax(0)

    @property
    def mean(self) -> Tensor:
        """Mean of the codes; (..., d)."""
        return _along(self.codes, self.log_joint).mul(self.probabilities).sum(0)

    @torch.no_grad()
    def probability(self, codes: Tensor) -> Tensor:
        """p(x = codes | z, s = 0); (..., d)."""
        equal = _along(self.codes, self.log_joint) == codes
        return (self.probabilities * equal).sum(0)

    @torch.no_grad()
    def drawn(self, uniforms: Tensor) -> Tensor:
        """The code at which the sum of probabilities passes the first uniform; (..., d)."""
        return self.codes[_picked(self.probabilities, uniforms[0])]


@dataclass(frozen=True)
class JoinedGivenMissing:
    """Columns of several kinds, side by side.

    Attributes
    ----------
    parts : tuple of GivenMissing
    columns : tuple of Tensor
        Where the columns of each part stand.
    """

    parts: tuple[GivenMissing, ...]
    columns: tuple[Tensor, ...]

    @property
    def log_probability(self) -> Tensor:
        """Of every part; (..., d)."""
        return joined([part.log_probability for part in self.parts], self.columns)

    @property
    def mean(self) -> Tensor:
        """Of every part; (..., d)."""
        return joined([part.mean for part in self.parts], self.columns)

    def drawn(self, uniforms: Tensor) -> Tensor:
        """Of every part; (..., d)."""
        pairs = zip(self.parts, self.columns, strict=True)
        return joined([part.drawn(uniforms[..., index]) for part, index in pairs], self.columns)


def joined(parts: list[Tensor], columns: tuple[Tensor, ...]) -> Tensor:
    """Tensors (..., d_i) in one of shape (..., d), each at its columns."""
    return torch.cat(parts, dim=-1)[..., torch.cat(columns).argsort()]


def normal_quantile(log_p: Tensor) -> Tensor:
    """x with log Phi(x) = log_p, also where exp(log_p) underflows."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).tiny)
    is_far = log_p < -5
    near = torch.special.ndtri(torch.where(is_far, -1.0, log_p).exp())
    depth = torch.where(is_far, -2 * log_p, 10.0)
    far = -(depth - depth.log() - 1.8).sqrt()
    for _ in range(3):  # Newton's method doubles the digits, of which the start has two
        reached = log_normal_cdf(far)
        slope = (-0.5 * (far.square() + LOG_2PI) - reached).exp()
        far = far - (reached + depth / 2) / slope
    return torch.where(is_far, far, near)


def _remainder(correlation: Tensor) -> Tensor:
    """The root of 1 - rho^2."""
    return (1 - correlation.square()).clamp(min=0).sqrt()


def _log_sum(log_terms: Tensor) -> Tensor:
    return log_terms[0] if len(log_terms) == 1 else log_terms.logsumexp(0)


def _along(codes: Tensor, like: Tensor) -> Tensor:
    """Codes (c,) as (c, 1, ..., 1)."""
    return codes.view(-1, *[1] * (like.dim() - 1))


def _picked(shares: Tensor, uniform: Tensor) -> Tensor:
    """Index of the share, along the first dimension, in which a uniform number falls."""
    # One share after the other: there may be many more numbers than shares.
    index = torch.zeros_like(uniform, dtype=torch.long)
    for edge in shares.cumsum(0)[:-1]:
        index += edge <= uniform
    return index


def _taken(parts: Tensor, index: Tensor) -> Tensor:
    """Parts (r, ..., d) at an index with more dimensions in front, (..., d)."""
    aligned = parts.view(len(parts), *[1] * (index.dim() - parts.dim() + 1), *parts.shape[1:])
    return aligned.expand(-1, *index.shape).gather(0, index.unsqueeze(0)).squeeze(0)
