"""The multivariate t with missing cells: rows far from the centre get less weight.

======================  ==================  ==========  ==================================
symbol                  code name           shape       meaning
======================  ==================  ==========  ==================================
mu, S                   location,           (d,),       parameters, in standardised units
                        covariance          (d, d)
nu                      degrees             scalar      degrees of freedom
p_o, delta              n_observed,         scalar,     observed cells of a row and their
                        distance            (b,)        squared Mahalanobis distance
u                       weights             (b,)        E[u | x_o]: weight of a row
======================  ==================  ==========  ==================================

x given u is N(mu, S / u) with u ~ Gamma(nu/2, nu/2), which gives the E-step ::

    E[u | x_o] = (nu + p_o) / (nu + delta)                                        (1)
    E[log u | x_o] = psi((nu + p_o) / 2) - log((nu + delta) / 2)                  (2)

the sums s1 = sum u e, s2 = sum u e e' + C about zero, and the M-step ::

    mu = s1 / sum u,   S = (s2 - sum u mu mu' + lambda I) / (n + lambda)          (3)
    0 = log(nu/2) + 1 - psi(nu/2) + mean(E[log u] - E[u])                         (4)

Reference: Liu and Rubin (1995), ML estimation of the t distribution using EM and its extensions,
Statistica Sinica 5. The e, C and log det of a row are those of the normal.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, psi
from torch import Tensor

from skbilevel.numerics.row_groups import RowGroup
from skbilevel.objectives.family import FirstEstimate
from skbilevel.objectives.normal import (
    NormalParameters,
    Precision,
    Predictive,
    completed,
    condition,
    drawn,
    log_prior,
    observed_distance,
    pack_with_log,
    precision,
    predictive,
    scatter_sums,
    shrunk_scatter,
    unpack_with_log,
)

# Beyond 200 degrees of freedom the t is the normal for every practical purpose; below 1 it has
# no mean that could be imputed.
LEAST_DEGREES, MOST_DEGREES = 1.0, 200.0


@dataclass(frozen=True)
class StudentParameters:
    """Location (d,), scale matrix (d, d) and log degrees of freedom (), as float64 tensors."""

    location: Tensor
    covariance: Tensor
    log_degrees: Tensor


@dataclass(frozen=True)
class StudentModel:
    """The precision of the scale matrix and the degrees of freedom."""

    precision: Precision
    degrees: float


@dataclass(frozen=True)
class StudentPredictive:
    """The normal of the missing cells at u = 1, and shape and rate (b,) of the gamma of u."""

    normal: Predictive
    shape: float
    rate: Tensor


class StudentMoments(NamedTuple):
    """Sums over rows: n, u, s1 (d,), s2 (d, d), E[log u] - E[u], the observed log-likelihood."""

    n_rows: Tensor
    weight: Tensor
    first: Tensor
    second: Tensor
    log_weight_excess: Tensor
    log_likelihood: Tensor


def log_student(distance: Tensor, log_det: Tensor, n_observed: int, degrees: float) -> Tensor:
    """Log density of the multivariate t for the observed cells of each row; shape (b,)."""
    constant = (
        math.lgamma((degrees + n_observed) / 2)
        - math.lgamma(degrees / 2)
        - n_observed / 2 * math.log(degrees * math.pi)
    )
    return constant - 0.5 * log_det - (degrees + n_observed) / 2 * torch.log1p(distance / degrees)


def solve_degrees(mean_log_weight_excess: float) -> float:
    """Eq. (4) for nu, within ``LEAST_DEGREES`` and ``MOST_DEGREES``."""

    def slope(degrees: float) -> float:
        return math.log(degrees / 2) + 1 - float(psi(degrees / 2)) + mean_log_weight_excess

    # The slope falls in nu: where it has one sign the optimum is at a bound.
    if slope(LEAST_DEGREES) <= 0:
        return LEAST_DEGREES
    if slope(MOST_DEGREES) >= 0:
        return MOST_DEGREES
    return float(brentq(slope, LEAST_DEGREES, MOST_DEGREES))


@dataclass(frozen=True)
class StudentFamily:
    """Multivariate t with a full scale matrix and estimated degrees of freedom.

    Parameters
    ----------
    shrinkage : float
        lambda of eq. (3), in rows.
    """

    shrinkage: float

    def start(self, estimate: FirstEstimate) -> StudentParameters:
        """The centre and the identity.

        The columns come standardised by robust statistics; a pairwise covariance would carry the
        outliers into the first weights.
        """
        n_columns = len(estimate.mean)
        return StudentParameters(
            torch.zeros(n_columns, dtype=torch.float64),
            torch.eye(n_columns, dtype=torch.float64),
            torch.tensor(math.log(5.0), dtype=torch.float64),
        )

    def model(self, parameters: StudentParameters) -> StudentModel:
        """P, log det S and nu."""
        normal = NormalParameters(parameters.location, parameters.covariance)
        degrees = math.exp(float(parameters.log_degrees))
        return StudentModel(precision(normal), min(max(degrees, LEAST_DEGREES), MOST_DEGREES))

    def expectation(self, group: RowGroup, model: StudentModel) -> StudentMoments:
        """Eqs. (1) and (2) and the weighted sums of a group."""
        given = condition(group, model.precision)
        n_observed, degrees = group.n_observed, model.degrees
        weights = (degrees + n_observed) / (degrees + given.distance)
        log_weights = psi((degrees + n_observed) / 2) - ((degrees + given.distance) / 2).log()
        first, second = scatter_sums(given, model.precision.location, weights)
        return StudentMoments(
            group.count,
            weights.sum(),
            first,
            second,
            (log_weights - weights).sum(),
            log_student(given.distance, given.log_det, n_observed, degrees).sum(),
        )

    def maximisation(self, sums: StudentMoments) -> StudentParameters:
        """Eqs. (3) and (4)."""
        location, covariance = shrunk_scatter(
            sums.weight, sums.first, sums.second, sums.n_rows, self.shrinkage
        )
        degrees = solve_degrees(float(sums.log_weight_excess / sums.n_rows))
        log_degrees = torch.tensor(math.log(degrees), dtype=torch.float64)
        return StudentParameters(location, covariance, log_degrees)

    def pack(self, parameters: StudentParameters) -> Tensor:
        """mu, log S and log nu."""
        return pack_with_log(parameters)

    def unpack(self, theta: Tensor, like: StudentParameters) -> StudentParameters:
        """The inverse of `pack`."""
        return unpack_with_log(theta, like)

    def log_prior(self, model: StudentModel) -> float:
        """Log density of the inverse-Wishart prior of S, up to a constant."""
        return log_prior(model.precision, self.shrinkage)

    def log_density(self, group: RowGroup, model: StudentModel) -> Tensor:
        """Log density of the t at the observed cells of each row."""
        given = condition(group, model.precision)
        return log_student(given.distance, given.log_det, group.n_observed, model.degrees)

    def completed(self, group: RowGroup, model: StudentModel) -> Tensor:
        """Rows with missing cells at their conditional mean, which is the normal's."""
        return completed(group, model.precision)

    def noise_width(self, n_columns: int) -> int:
        """One normal a cell and one for the row's weight."""
        return n_columns + 1

    def given(self, group: RowGroup, model: StudentModel) -> StudentPredictive:
        """The normal's mean and C of every row, and the gamma distribution of u."""
        normal = predictive(group, model.precision)
        shape = (model.degrees + group.n_observed) / 2
        rate = (model.degrees + observed_distance(normal, model.precision)) / 2
        return StudentPredictive(normal, shape, rate)

    def drawn(self, group: RowGroup, given: StudentPredictive, noise: Tensor) -> Tensor:
        """Rows with missing cells drawn from their conditional t.

        u | x_o ~ Gamma((nu + p_o)/2, (nu + delta)/2), then x_m | x_o, u ~ N(mu_m + e_m, C / u).
        """
        if group.n_missing == 0:
            return given.normal.mean
        gamma = gammaincinv(given.shape, ndtr(noise[:, -1].numpy()))
        weights = torch.from_numpy(gamma) / given.rate
        return drawn(group, given.normal, noise[:, :-1] / weights.sqrt().unsqueeze(1))
