"""Factor analysis with missing cells, for many columns.

======================  ==============  ==========  ======================================
symbol                  code name       shape       meaning
======================  ==============  ==========  ======================================
mu, W, psi              location,       (d,),       parameters, in standardised units:
                        loadings,       (d, q),     S = W W' + diag(psi)
                        log_noise       (d,)
z                       factors         (b, q)      E[z | x_o], z ~ N(0, I)
V                       inverse         (b, q, q)   covariance of z given x_o
t = (z, 1)              design          (b, q + 1)  what column j is regressed on
lambda                  shrinkage       scalar      weight of the prior, in rows
======================  ==============  ==========  ======================================

Given x_o only the observed cells enter, so that missing cells need no sum of their own::

    V = (I + sum_o w_j w_j' / psi_j)^-1,   z = V sum_o w_j (x_j - mu_j) / psi_j   (1)
    log det S_oo = log det V^-1 + sum_o log psi_j                                 (2)
    delta = sum_o (x_j - mu_j)^2 / psi_j - z' V^-1 z                              (3)

and the M-step is one regression of q + 1 coefficients for each column j over the rows in which
it is observed, with a conjugate prior of lambda rows::

    (w_j, mu_j) = (sum E[t t'] + lambda diag(I, 0))^-1 sum E[t] x_j               (4)
    psi_j = (sum x_j^2 - (w_j, mu_j)' sum E[t] x_j + lambda) / (n_j + lambda)     (5)

Reference: Rubin and Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from skbilevel.numerics.row_groups import RowGroup
from skbilevel.objectives.family import FirstEstimate, pack, unpack
from skbilevel.objectives.normal import log_normal


@dataclass(frozen=True)
class FactorParameters:
    """Location (d,), loadings (d, q) and log noise variance (d,), as float64 tensors."""

    location: Tensor
    loadings: Tensor
    log_noise: Tensor


@dataclass(frozen=True)
class FactorModel:
    """The parameters with w_j / psi_j, (d, q), and w_j w_j' / psi_j, (d, q * q)."""

    parameters: FactorParameters
    scaled: Tensor
    products: Tensor


class FactorMoments(NamedTuple):
    """Sums over the rows in which column j is observed, for every j.

    n_rows is the number of all rows, n_observed (d,) is n_j, design (d, (q+1)^2) is E[t t'],
    cross (d, q+1) is E[t] x_j, square (d,) is x_j^2; log_likelihood is over all rows.
    """

    n_rows: Tensor
    n_observed: Tensor
    design: Tensor
    cross: Tensor
    square: Tensor
    log_likelihood: Tensor


@dataclass(frozen=True)
class Factors:
    """z (b, q), the Cholesky factor of V^-1 (b, q, q), delta (b,), log det S_oo (b,)."""

    factors: Tensor
    root: Tensor
    distance: Tensor
    log_det: Tensor


class FactorPredictive(NamedTuple):
    """The factors given x_o of every row, and the parameters that make cells of them."""

    factors: Factors
    parameters: FactorParameters


def posterior(group: RowGroup, model: FactorModel) -> Factors:
    """Eqs. (1) to (3) for the rows of a group."""
    observed, log_noise = group.observed(), model.parameters.log_noise
    n_factors = model.scaled.shape[1]
    residual = (group.values - model.parameters.location) * observed
    system = (observed @ model.products).view(-1, n_factors, n_factors)
    root = torch.linalg.cholesky(system + torch.eye(n_factors, dtype=system.dtype))
    rhs = residual @ model.scaled
    factors = torch.cholesky_solve(rhs.unsqueeze(2), root).squeeze(2)
    distance = (residual.square() @ (-log_noise).exp()) - (rhs * factors).sum(1)
    log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1) + observed @ log_noise
    return Factors(factors, root, distance, log_det)


def fill(group: RowGroup, values: Tensor) -> Tensor:
    """The rows of the group with their missing cells taken from ``values``; both (b, d)."""
    rows = group.values.clone()
    return rows.scatter_(1, group.missing.T, values.gather(1, group.missing.T))


@dataclass(frozen=True)
class FactorFamily:
    """Normal with covariance W W' + diag(psi).

    Parameters
    ----------
    shrinkage : float
        lambda of eqs. (4) and (5), in rows.
    n_factors : int
        Number q of factors.
    """

    shrinkage: float
    n_factors: int

    def start(self, estimate: FirstEstimate) -> FactorParameters:
        """Leading eigenvectors of the pairwise covariance above the mean of the other values."""
        values, vectors = estimate.eigenvalues, estimate.eigenvectors
        leading, rest = values[-self.n_factors :], values[: -self.n_factors]
        level = rest.mean() if len(rest) else values[0] / 2
        loadings = vectors[:, -self.n_factors :] * (leading - level).clamp(min=1e-3).sqrt()
        variances = vectors.square() @ values
        noise = (variances - loadings.square().sum(1)).clamp(min=0.1)
        return FactorParameters(estimate.mean, loadings, noise.log())

    def model(self, parameters: FactorParameters) -> FactorModel:
        """The products that eq. (1) sums over observed columns."""
        scaled = parameters.loadings * (-parameters.log_noise).exp().unsqueeze(1)
        if not scaled.isfinite().all():
            raise torch.linalg.LinAlgError("noise variance underflows")
        products = scaled.unsqueeze(2) * parameters.loadings.unsqueeze(1)
        return FactorModel(parameters, scaled, products.flatten(1))

    def expectation(self, group: RowGroup, model: FactorModel) -> FactorMoments:
        """The sums of eqs. (4) and (5) over a group."""
        given, observed = posterior(group, model), group.observed()
        design = torch.nn.functional.pad(given.factors, (0, 1), value=1.0)
        outer = design.unsqueeze(2) * design.unsqueeze(1)
        outer[:, :-1, :-1] += torch.cholesky_inverse(given.root)
        return FactorMoments(
            group.count,
            observed.sum(0),
            observed.T @ outer.flatten(1),
            group.values.T @ design,
            group.values.square().sum(0),
            log_normal(group.n_observed, given.log_det, given.distance).sum(),
        )

    def maximisation(self, sums: FactorMoments) -> FactorParameters:
        """Eqs. (4) and (5)."""
        size = self.n_factors + 1
        design = sums.design.view(-1, size, size).clone()
        design.diagonal(dim1=1, dim2=2)[:, :-1].add_(self.shrinkage)
        coefficients = torch.linalg.solve(design, sums.cross)
        explained = (coefficients * sums.cross).sum(1)
        noise = (sums.square - explained).clamp(min=0.0) + self.shrinkage
        noise /= sums.n_observed + self.shrinkage
        return FactorParameters(coefficients[:, -1], coefficients[:, :-1], noise.log())

    def pack(self, parameters: FactorParameters) -> Tensor:
        """mu, W and log psi."""
        return pack(parameters)

    def unpack(self, theta: Tensor, like: FactorParameters) -> FactorParameters:
        """The inverse of `pack`."""
        return unpack(theta, like)

    def log_prior(self, model: FactorModel) -> float:
        """``-lambda/2 sum_j (|w_j|^2 / psi_j + log psi_j + 1 / psi_j)``."""
        log_noise = model.parameters.log_noise
        penalties = model.scaled * model.parameters.loadings
        total = penalties.sum() + log_noise.sum() + (-log_noise).exp().sum()
        return float(-0.5 * self.shrinkage * total)

    def log_density(self, group: RowGroup, model: FactorModel) -> Tensor:
        """log N(x_o; mu_o, S_oo) per row."""
        given = posterior(group, model)
        return log_normal(group.n_observed, given.log_det, given.distance)

    def completed(self, group: RowGroup, model: FactorModel) -> Tensor:
        """Rows with missing cells at mu + W z."""
        factors = posterior(group, model).factors
        return fill(group, model.parameters.location + factors @ model.parameters.loadings.T)

    def noise_width(self, n_columns: int) -> int:
        """One normal a factor and one a cell."""
        return self.n_factors + n_columns

    def given(self, group: RowGroup, model: FactorModel) -> FactorPredictive:
        """z given x_o of every row."""
        return FactorPredictive(posterior(group, model), model.parameters)

    def drawn(self, group: RowGroup, given: FactorPredictive, noise: Tensor) -> Tensor:
        """Rows with missing cells at mu + W z + psi^1/2 eta for a draw of z given x_o."""
        factors, parameters = given.factors, given.parameters
        for_factors, for_cells = noise[:, : self.n_factors], noise[:, self.n_factors :]
        spread = torch.linalg.solve_triangular(
            factors.root.mT, for_factors.unsqueeze(2), upper=True
        ).squeeze(2)
        means = parameters.location + (factors.factors + spread) @ parameters.loadings.T
        return fill(group, means + for_cells * (parameters.log_noise / 2).exp())
