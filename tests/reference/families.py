"""What the tests of all families share: rows and their groups, plain EM, and what it climbs.

Nothing of the E-step is shared with the package: `ObservedLikelihood` works in the covariance
form, and its gradient is torch's.
"""

import math
from functools import reduce

import numpy as np
import pytest
import torch

from skbilevel.numerics.row_groups import row_block
from skbilevel.objectives.factor_analysis import FactorFamily
from skbilevel.objectives.family import FirstEstimate, add, first_estimate, pairwise_sums
from skbilevel.objectives.normal import NormalFamily, NormalParameters
from skbilevel.objectives.student_t import StudentFamily

FAMILIES = [NormalFamily(1.0), StudentFamily(1.0), FactorFamily(1.0, 2)]
of_each_family = pytest.mark.parametrize(
    "family", FAMILIES, ids=lambda family: type(family).__name__
)


def with_holes(X, rate, rng):
    """X with NaN in a share of its cells; the first row complete, the second wholly missing."""
    holes = rng.random(X.shape) < rate
    holes[0], holes[1] = False, True
    return np.where(holes, np.nan, X)


def normal_parameters(location, covariance):
    return NormalParameters(torch.from_numpy(location), torch.from_numpy(covariance))


def estimate_of(mean, covariance):
    """The first estimate with this mean and this definite covariance, by NumPy."""
    values, vectors = np.linalg.eigh(covariance)
    return FirstEstimate(*map(torch.from_numpy, (mean, values, vectors)))


def block_of(X):
    """The rows of X as they are, in groups."""
    return row_block(X, np.zeros(X.shape[1]), np.ones(X.shape[1]))


def group_of(row, n_copies=1):
    """One group of copies of a row."""
    (group,) = block_of(np.tile(row, (n_copies, 1))).groups
    return group


def each_group(X):
    """Every group with the rows of X in it."""
    for group, rows in block_of(X).placed():
        yield group, X[rows]


def pairwise(X):
    return reduce(add, map(pairwise_sums, block_of(X).groups))


def expectation(family, X, model):
    """The E-step over all rows of X."""
    return reduce(add, (family.expectation(group, model) for group in block_of(X).groups))


def climb(family, X, n_steps, start=None):
    """Parameters after so many plain EM steps, and the objective in nats before each of them."""
    parameters = family.start(first_estimate(pairwise(X))) if start is None else start
    groups, history = block_of(X).groups, []
    for _ in range(n_steps):
        model = family.model(parameters)
        sums = reduce(add, (family.expectation(group, model) for group in groups))
        history.append(float(sums.log_likelihood) + family.log_prior(model))
        parameters = family.maximisation(sums)
    return parameters, history


class ObservedLikelihood:
    """Penalised log-likelihood in nats of the observed cells of X, a differentiable torch scalar.

    S_oo is padded by the identity to (d, d), so that one Cholesky call serves all rows. Rows
    without an observed cell are left out: their density is 1.
    """

    def __init__(self, X, shrinkage):
        rows = torch.from_numpy(X)
        self.rows = rows[~rows.isnan().all(1)]
        self.observed = (~self.rows.isnan()).double()
        self.shrinkage = shrinkage

    def parts(self, location, covariance):
        """Squared distances and log det S_oo, row by row."""
        residual = (self.rows - location).nan_to_num() * self.observed
        keep = self.observed.unsqueeze(2) * self.observed.unsqueeze(1)
        padded = covariance * keep + torch.diag_embed(1 - self.observed)
        root = torch.linalg.cholesky(padded)
        white = torch.linalg.solve_triangular(root, residual.unsqueeze(2), upper=False)
        log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
        return white.square().sum((1, 2)), log_det

    def unpenalised(self, location, covariance):
        """sum log N(x_o; mu_o, S_oo)"""
        distance, log_det = self.parts(location, covariance)
        n_observed = self.observed.sum()
        return -0.5 * (n_observed * math.log(2 * math.pi) + log_det.sum() + distance.sum())

    def prior(self, covariance):
        """-lambda/2 (log det S + tr S^-1)"""
        inverse = torch.linalg.inv(covariance)
        return -0.5 * self.shrinkage * (torch.logdet(covariance) + inverse.trace())

    def normal(self, location, covariance):
        return self.unpenalised(location, covariance) + self.prior(covariance)

    def student(self, location, covariance, log_degrees):
        """sum log t(x_o; mu_o, S_oo, nu) + prior"""
        distance, log_det = self.parts(location, covariance)
        p, nu = self.observed.sum(1), log_degrees.exp()
        value = torch.lgamma((nu + p) / 2) - torch.lgamma(nu / 2) - p / 2 * (nu * math.pi).log()
        value = value - 0.5 * log_det - (nu + p) / 2 * (1 + distance / nu).log()
        return value.sum() + self.prior(covariance)

    def factor(self, location, loadings, log_noise):
        """sum log N(x_o; mu_o, S_oo) - lambda/2 sum_j ((|w_j|^2 + 1) / psi_j + log psi_j)."""
        value = self.unpenalised(location, loadings @ loadings.T + log_noise.exp().diag())
        penalties = (loadings.square().sum(1) + 1) / log_noise.exp() + log_noise
        return value - 0.5 * self.shrinkage * penalties.sum()

    def of(self, parameters):
        """The value at parameters of any of the families."""
        fields = vars(parameters)
        if "loadings" in fields:
            return self.factor(**fields)
        return self.student(**fields) if "log_degrees" in fields else self.normal(**fields)

    def per_row(self, parameters):
        return float(self.of(parameters)) / len(self.rows)

    def gradient(self, parameters):
        """Flat, in the fields of the parameters; in the lower Cholesky factor of a covariance."""
        fields = dict(vars(parameters))
        if "covariance" in fields:
            fields["covariance"] = torch.linalg.cholesky(fields["covariance"])
        variables = {name: field.clone().requires_grad_() for name, field in fields.items()}
        at = dict(variables)
        if "covariance" in at:
            root = at["covariance"].tril()
            at["covariance"] = root @ root.T
        slopes = torch.autograd.grad(self.of(type(parameters)(**at)), list(variables.values()))
        return torch.cat([slope.reshape(-1) for slope in slopes])
