"""The multivariate normal with missing cells: conditional moments, likelihood and M-step.

======================  ==============  ==========  ======================================
symbol                  code name       shape       meaning
======================  ==============  ==========  ======================================
mu, S                   location,       (d,),       parameters, in standardised units
                        covariance      (d, d)
P = S^-1                precision       (d, d)
m, o                    missing         (k, b)      missing and observed columns of a row
e = x - mu              residual        (b, d)      its missing cells at their conditional
                                                    mean
C = (P_mm)^-1           inverse         (b, k, k)   conditional covariance of missing cells
delta                   distance        (b,)        e_o' (S_oo)^-1 e_o
s1, s2                  first, second   (d,),       sums over rows of E[x | x_o] and
                                        (d, d)      E[x x' | x_o]
lambda                  shrinkage       scalar      weight of the prior, in rows of
                                                    covariance I
======================  ==============  ==========  ======================================

With the precision only a k x k matrix is factorised for a row with k missing cells, where the
textbook form factorises the (d - k) x (d - k) matrix of its observed ones::

    e_m = -C (P e~)_m   with e~ = e at observed cells, 0 at missing ones          (1)
    delta = e~' P e~ + (P e~)_m' e_m                                              (2)
    log det S_oo = log det S + log det P_mm                                       (3)

which is block inversion; the E- and M-steps are those of Little and Rubin, Statistical Analysis
with Missing Data, chapter 11. The M-step has an inverse-Wishart prior whose mode is I::

    mu = s1 / n,   S = (s2 - n mu mu' + lambda I) / (n + lambda)                  (4)
"""

import math
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skbilevel.numerics.masked_inverse import (
    MaskedInverse,
    embedded_sum,
    masked_cholesky,
    masked_inverse,
    masked_solve,
)
from skbilevel.numerics.pattern_sums import PatternSums
from skbilevel.numerics.row_groups import RowGroup
from skbilevel.numerics.sites import Normal, Sites
from skbilevel.numerics.symmetric import symmetric_exp, symmetric_log
from skbilevel.objectives.family import FirstEstimate, Parameters, add, pack, unpack

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class NormalParameters:
    """Location (d,) and covariance (d, d) in standardised units, float64 tensors."""

    location: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Precision:
    """What every row needs of the parameters, computed once: mu, P and log det S."""

    location: Tensor
    matrix: Tensor
    log_det_covariance: Tensor


class Moments(NamedTuple):
    """Sums over rows: their number n, s1 (d,), s2 (d, d) and the observed log-likelihood."""

    n_rows: Tensor
    first: Tensor
    second: Tensor
    log_likelihood: Tensor


@dataclass(frozen=True)
class Conditional:
    """Rows of a group given their observed cells.

    Attributes
    ----------
    residual : Tensor of shape (b, d)
        e, with missing cells at their conditional mean.
    distance : Tensor of shape (b,)
        delta.
    log_det : Tensor of shape (b,)
        log det S_oo.
    inverse : MaskedInverse or None
        C of every row; None for complete rows.
    """

    residual: Tensor
    distance: Tensor
    log_det: Tensor
    inverse: MaskedInverse | None


def precision(parameters: NormalParameters) -> Precision:
    """Factorise S once for all rows; ``torch.linalg.LinAlgError`` where it is not definite."""
    factor = torch.linalg.cholesky(parameters.covariance)
    log_det = 2 * factor.diagonal().log().sum()
    return Precision(parameters.location, torch.cholesky_inverse(factor), log_det)


def condition(group: RowGroup, model: Precision, sites: Sites | None = None) -> Conditional:
    """Eqs. (1) to (3) for the rows of a group.

    With ``sites`` (k, b) on the missing cells these are multiplied into the normal::

        e_m = (P_mm + diag tau)^-1 (nu - tau mu_m - (P e~)_m)

    and the determinant and the distance are such that `log_normal` of them, plus
    ``sum nu mu_m - tau mu_m^2 / 2``, is the log of the integral of the product.
    """
    residual, pulled = _pull(group, model)
    distance = (pulled * residual).sum(1)
    log_det = model.log_det_covariance.expand(len(residual))
    if group.n_missing == 0:
        return Conditional(residual, distance, log_det, None)
    cells = group.cells
    rhs = torch.index_select(pulled.view(-1), 0, cells).view_as(group.missing)
    if sites is not None:
        rhs = rhs - (sites.shift - sites.precision * model.location[group.missing])
    added = None if sites is None else sites.precision
    inverse = masked_inverse(model.matrix, group.missing, rhs, added)
    residual.view(-1).index_copy_(0, cells, -inverse.solution.reshape(-1))
    distance -= (rhs * inverse.solution).sum(0)
    return Conditional(residual, distance, log_det + inverse.log_det, inverse)


def _pull(group: RowGroup, model: Precision) -> tuple[Tensor, Tensor]:
    """The residual with 0 at missing cells, e~, and P e~; both (b, d)."""
    residual = group.values - model.location
    residual.view(-1).index_fill_(0, group.cells, 0.0)
    return residual, residual @ model.matrix


def completed(group: RowGroup, model: Precision) -> Tensor:
    """Rows (b, d) with missing cells at their conditional mean: eq. (1) without the inverse."""
    residual, pulled = _pull(group, model)
    if group.n_missing:
        cells = group.cells
        rhs = torch.index_select(pulled.view(-1), 0, cells).view_as(group.missing)
        solution = masked_solve(model.matrix, group.missing, rhs)
        residual.view(-1).index_copy_(0, cells, -solution.reshape(-1))
    return residual + model.location


def left_out(rows: Tensor, model: Precision) -> Normal:
    """Every cell of completed rows (b, d) as the others of its row tell it, (P e)_j taken off:
    x_j - (P e)_j / P_jj, with variance 1 / P_jj."""
    variance = 1 / model.matrix.diagonal()
    mean = rows - (rows - model.location) @ model.matrix * variance
    return Normal(mean, variance.expand_as(mean))


def log_normal(n_observed: Tensor | int, log_det: Tensor, distance: Tensor) -> Tensor:
    """log N(x_o; mu_o, S_oo) in nats; of one row, or of many from the sums of the arguments."""
    return -0.5 * (n_observed * LOG_2PI + log_det + distance)


@dataclass(frozen=True)
class Predictive:
    """Distribution of the missing cells of a group: the rows (b, d) with them at their
    conditional mean, and the Cholesky factor (b, k, k) of P_mm, None for complete rows."""

    mean: Tensor
    root: Tensor | None


def predictive(group: RowGroup, model: Precision) -> Predictive:
    """Eq. (1) with the factor of P_mm, one factorisation for all draws."""
    residual, pulled = _pull(group, model)
    if group.n_missing == 0:
        return Predictive(residual + model.location, None)
    root = masked_cholesky(model.matrix, group.missing)
    solution = torch.cholesky_solve(pulled.gather(1, group.missing.T).unsqueeze(2), root)
    residual.scatter_(1, group.missing.T, -solution.squeeze(2))
    return Predictive(residual + model.location, root)


def observed_distance(given: Predictive, model: Precision) -> Tensor:
    """delta = e' P e with the missing cells of e at their conditional mean, eq. (2); (b,)."""
    residual = given.mean - model.location
    return ((residual @ model.matrix) * residual).sum(1)


def drawn(group: RowGroup, given: Predictive, noise: Tensor) -> Tensor:
    """Rows (b, d) with missing cells at their mean + L^-T z, L L' = P_mm, whose covariance is C.

    z are the noise's missing columns; ``noise`` is (b, d), one standard normal a cell.
    """
    if given.root is None:
        return given.mean
    at_missing = noise.gather(1, group.missing.T).unsqueeze(2)
    spread = torch.linalg.solve_triangular(given.root.mT, at_missing, upper=True).squeeze(2)
    return given.mean.scatter_add(1, group.missing.T, spread)


def scatter_sums(
    given: Conditional, location: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of w E[x | x_o], (d,), and of w E[x | x_o] E[x | x_o]' + C, (d, d); w = 1 if None."""
    residual = given.residual
    weighted = residual if weights is None else residual * weights.unsqueeze(1)
    total_weight = len(residual) if weights is None else weights.sum()
    second = residual.T @ weighted
    if given.inverse is not None:
        second += embedded_sum(given.inverse, len(location))
    return about_zero(total_weight, weighted.sum(0), second, location)


def about_zero(
    weight: Tensor | float, first: Tensor, second: Tensor, location: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sums of x and x x' from those of e = x - mu and e e'."""
    cross = torch.outer(first, location)
    second = second + cross + cross.T + weight * torch.outer(location, location)
    return first + weight * location, second


def pattern_moments(patterns: PatternSums, model: Precision) -> Moments:
    """The E-step from sums by pattern: e = T e~ with T = diag(o) - C P diag(o), eq. (1)."""
    n_rows, observed, location = patterns.n_rows, patterns.observed, model.location
    missing = 1 - observed
    identity_at_observed = torch.diag_embed(observed)
    both_missing = missing.unsqueeze(2) * missing.unsqueeze(1)
    root = torch.linalg.cholesky(model.matrix * both_missing + identity_at_observed)
    covariance = torch.cholesky_inverse(root) * both_missing
    completion = identity_at_observed - (covariance @ model.matrix) * observed.unsqueeze(1)
    center = observed * location
    crossed = patterns.first.unsqueeze(2) * center.unsqueeze(1)
    weights = n_rows.view(-1, 1, 1)
    visible = patterns.second - crossed - crossed.mT
    visible += weights * center.unsqueeze(2) * center.unsqueeze(1)
    total = (completion @ (patterns.first - n_rows.unsqueeze(1) * center).unsqueeze(2)).sum(0)
    scatter = (completion @ visible @ completion.mT).sum(0)
    log_dets = model.log_det_covariance + 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    distance = (model.matrix * scatter).sum()
    log_likelihood = log_normal((n_rows @ observed).sum(), n_rows @ log_dets, distance)
    second = scatter + (weights * covariance).sum(0)
    sums = about_zero(n_rows.sum(), total.squeeze(1), second, location)
    return Moments(n_rows.sum(), *sums, log_likelihood)


def shrunk_scatter(
    weight: Tensor, first: Tensor, second: Tensor, n_rows: Tensor, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Eq. (4) from weighted sums of n rows, ``weight`` the sum of their weights: (mu, S)."""
    location = first / weight
    scatter = second - weight * torch.outer(location, location)
    scatter.diagonal().add_(shrinkage)
    covariance = scatter / (n_rows + shrinkage)
    return location, (covariance + covariance.T) / 2


def pack_with_log(parameters: Any) -> Tensor:
    """All fields flat, the covariance as log S: any vector is feasible, and permuting columns
    permutes coordinates."""
    return pack(replace(parameters, covariance=symmetric_log(parameters.covariance)))


def unpack_with_log(theta: Tensor, like: Parameters) -> Parameters:
    """The inverse of `pack_with_log`."""
    parameters: Any = unpack(theta, like)
    return replace(parameters, covariance=symmetric_exp(parameters.covariance))


def log_prior(model: Precision, shrinkage: float) -> float:
    """-lambda/2 (log det S + tr P): what eq. (4) adds to the log-likelihood, up to a constant."""
    return float(-0.5 * shrinkage * (model.log_det_covariance + model.matrix.trace()))


@dataclass(frozen=True)
class NormalFamily:
    """Multivariate normal with a full covariance.

    Parameters
    ----------
    shrinkage : float
        lambda of eq. (4), in rows; positive, so that S is definite also where n < d.
    """

    shrinkage: float

    def start(self, estimate: FirstEstimate) -> NormalParameters:
        """Observed means and the pairwise covariance."""
        return NormalParameters(estimate.mean, estimate.covariance)

    def model(self, parameters: NormalParameters) -> Precision:
        """mu, P and log det S."""
        return precision(parameters)

    def expectation(self, group: RowGroup, model: Precision) -> Moments:
        """n, s1, s2 and the log-likelihood of a group."""
        given = condition(group, model)
        first, second = scatter_sums(given, model.location)
        densities = log_normal(group.n_observed, given.log_det, given.distance)
        return Moments(group.count, first, second, densities.sum())

    def pattern_expectation(self, patterns: PatternSums, model: Precision) -> Moments:
        """`expectation` of all rows from their sums by pattern."""
        return reduce(add, (pattern_moments(chunk, model) for chunk in patterns.chunks()))

    def maximisation(self, sums: Moments) -> NormalParameters:
        """Eq. (4)."""
        return NormalParameters(
            *shrunk_scatter(sums.n_rows, sums.first, sums.second, sums.n_rows, self.shrinkage)
        )

    def pack(self, parameters: NormalParameters) -> Tensor:
        """mu and log S."""
        return pack_with_log(parameters)

    def unpack(self, theta: Tensor, like: NormalParameters) -> NormalParameters:
        """The inverse of `pack`."""
        return unpack_with_log(theta, like)

    def log_prior(self, model: Precision) -> float:
        """Log density of the inverse-Wishart prior, up to a constant."""
        return log_prior(model, self.shrinkage)

    def log_density(self, group: RowGroup, model: Precision) -> Tensor:
        """log N(x_o; mu_o, S_oo) per row."""
        given = condition(group, model)
        return log_normal(group.n_observed, given.log_det, given.distance)

    def completed(self, group: RowGroup, model: Precision) -> Tensor:
        """Rows with missing cells at mu_m + e_m."""
        return completed(group, model)

    def noise_width(self, n_columns: int) -> int:
        """One normal a cell."""
        return n_columns

    def given(self, group: RowGroup, model: Precision) -> Predictive:
        """N(mu_m + e_m, C) of every row."""
        return predictive(group, model)

    def drawn(self, group: RowGroup, given: Predictive, noise: Tensor) -> Tensor:
        """Rows with missing cells drawn from N(mu_m + e_m, C)."""
        return drawn(group, given, noise)
