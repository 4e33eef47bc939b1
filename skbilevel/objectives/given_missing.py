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
a_c, p_c                codes, log      (c,),         values of a discrete x and their
                                        (c, .., d)    probabilities
======================  ==============  ============  ======================================

A cell is missing where ``xi > -t``, and x = m + sd (rho xi + r eta) with r^2 = 1 - rho^2::

    log p(missing) = log sum pi0 Phi(t)                                           (1)
    E[x | missing] = sum pi (m + sd rho lambda(t))                                (2)
    P(x > c | missing) = E[Phi((rho xi - h) / r) | xi > -t],  h = (c - m) / sd    (3)

pi0 being the weights before, and rho positive, else the signs of rho and h turn. A draw of x is
a draw of xi from a truncated normal and one of eta. The integrand of (3) is between 0 and 1;
where it is steep the variables change their roles, with e = (h + rho t) / r::

    P(x > c | missing) = Phi(-e) + Phi(e) E[Phi((r eta - h) / rho) / Phi(t) | eta < e]  (4)

so that (3) and (4) with few nodes cover soft mechanisms and hard limits alike. For a discrete x
all are sums over its values.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
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

    def cdf(self, values: Tensor) -> Tensor:
        """P(x <= values | z, s = 0); no gradient."""

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
    def cdf(self, values: Tensor) -> Tensor:
        """Eqs. (3) and (4); (..., d)."""
        sign = torch.where(self.correlation < 0, -1.0, 1.0).to(values.dtype)
        height = sign * (values - self.location) / self.scale
        above = _survival(height, self.ratio, self.correlation.abs())
        below = torch.where(sign > 0, 1 - above, above)
        return (self._share * below).sum(0).clamp(0, 1)

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
    def cdf(self, values: Tensor) -> Tensor:
        """Probability of the codes up to ``values``; (..., d)."""
        below = _along(self.codes, self.log_joint) <= values
        return (self.probabilities * below).sum(0).clamp(0, 1)

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

    def cdf(self, values: Tensor) -> Tensor:
        """Of every part; (..., d)."""
        pairs = zip(self.parts, self.columns, strict=True)
        return joined([part.cdf(values[..., index]) for part, index in pairs], self.columns)

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


def _survival(height: Tensor, ratio: Tensor, correlation: Tensor) -> Tensor:
    """Eq. (3) or (4), whichever integrand is the flatter one, to 1e-4; correlation >= 0."""
    smallest = torch.finfo(ratio.dtype).eps
    remainder = _remainder(correlation).clamp(min=smallest)
    correlation = correlation.clamp(min=smallest)
    log_scale = log_normal_cdf(ratio)
    # Beyond +-30 the edge is at infinity to the last bit, where its logarithm would be infinite.
    edge = ((height + correlation * ratio) / remainder).clamp(-30, 30)
    log_edge = log_normal_cdf(edge)
    pull = hazard(ratio, log_scale)
    spread = (1 - pull * (pull + ratio)).clamp(min=0).sqrt()

    def over_excess(log_u: float) -> Tensor:
        excess = -normal_quantile(log_u + log_scale)
        return torch.special.ndtr((correlation * excess - height) / remainder)

    def over_remainder(log_u: float) -> Tensor:
        eta = normal_quantile(log_u + log_edge)
        tail = log_normal_cdf((remainder * eta - height) / correlation)
        return (tail - log_scale).clamp(max=0).exp()

    nodes, weights = np.polynomial.legendre.leggauss(24)
    log_nodes = np.log((nodes + 1) / 2).tolist()
    by_excess = torch.zeros_like(edge)
    by_remainder = torch.zeros_like(edge)
    for log_u, weight in zip(log_nodes, (weights / 2).tolist(), strict=True):
        by_excess += weight * over_excess(log_u)
        by_remainder += weight * over_remainder(log_u)
    by_remainder = torch.special.ndtr(-edge) + log_edge.exp() * by_remainder
    return torch.where(remainder > correlation * spread, by_excess, by_remainder)


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
