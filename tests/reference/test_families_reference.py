"""The likelihood that EM is held against is itself checked against SciPy, row by row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, multivariate_t

from skbilevel.objectives.factor_analysis import FactorParameters
from skbilevel.objectives.student_t import StudentParameters
from tests.problems import central_differences, symmetric_matrix
from tests.reference.families import (
    ObservedLikelihood,
    estimate_of,
    normal_parameters,
    with_holes,
)

RNG = np.random.default_rng(0)
LOCATION, COVARIANCE = RNG.normal(size=4), symmetric_matrix(np.linspace(0.3, 3, 4))
X = with_holes(RNG.multivariate_normal(LOCATION, COVARIANCE, 20), 0.4, RNG)
LOADINGS, LOG_NOISE = RNG.normal(size=(4, 2)), RNG.normal(size=4)
NORMAL = normal_parameters(LOCATION, COVARIANCE)
STUDENT = StudentParameters(**vars(NORMAL), log_degrees=torch.tensor(3.5).double().log())
FACTOR = FactorParameters(*map(torch.from_numpy, (LOCATION, LOADINGS, LOG_NOISE)))


def density_of_rows(covariance, distribution, **options):
    total = 0.0
    for row in X:
        o = ~np.isnan(row)
        if o.any():
            marginal = distribution(LOCATION[o], covariance[np.ix_(o, o)], **options)
            total += marginal.logpdf(row[o])
    return total


def inverse_wishart(shrinkage):
    inverse = np.linalg.inv(COVARIANCE)
    return -shrinkage / 2 * (np.linalg.slogdet(COVARIANCE)[1] + np.trace(inverse))


@pytest.mark.parametrize("shrinkage", [0.0, 3.0])
def test_likelihood_of_each_family_is_the_sum_of_scipys_densities_and_the_prior(shrinkage):
    likelihood = ObservedLikelihood(X, shrinkage)
    noise = np.exp(LOG_NOISE)
    implied = LOADINGS @ LOADINGS.T + np.diag(noise)
    columns = ((LOADINGS**2).sum(axis=1) + 1) / noise + LOG_NOISE
    cases = [
        (NORMAL, density_of_rows(COVARIANCE, multivariate_normal) + inverse_wishart(shrinkage)),
        (
            STUDENT,
            density_of_rows(COVARIANCE, multivariate_t, df=3.5) + inverse_wishart(shrinkage),
        ),
        (FACTOR, density_of_rows(implied, multivariate_normal) - shrinkage / 2 * columns.sum()),
    ]
    for parameters, expected in cases:
        assert likelihood.of(parameters).item() == pytest.approx(expected, abs=1e-11)
        # The second row is wholly missing and is not counted.
        assert likelihood.per_row(parameters) == pytest.approx(expected / 19, abs=1e-12)


@pytest.mark.parametrize(
    "parameters", [NORMAL, STUDENT, FACTOR], ids=lambda value: type(value).__name__
)
def test_gradient_is_that_of_finite_differences(parameters):
    likelihood = ObservedLikelihood(X, 2.0)
    fields = dict(vars(parameters))
    if "covariance" in fields:
        fields["covariance"] = torch.linalg.cholesky(fields["covariance"])

    def value(theta):
        parts = torch.from_numpy(theta).split([field.numel() for field in fields.values()])
        at = {
            name: part.view(field.shape)
            for (name, field), part in zip(fields.items(), parts, strict=True)
        }
        if "covariance" in at:
            at["covariance"] = at["covariance"].tril() @ at["covariance"].tril().T
        return likelihood.of(replace(parameters, **at)).item()

    theta = torch.cat([field.reshape(-1) for field in fields.values()]).numpy()
    expected = central_differences(value, theta)
    assert np.linalg.norm(expected) > 1
    np.testing.assert_allclose(likelihood.gradient(parameters), expected, atol=1e-7)


def test_estimate_of_a_covariance_has_that_covariance():
    estimate = estimate_of(LOCATION, COVARIANCE)
    np.testing.assert_array_equal(estimate.mean, LOCATION)
    np.testing.assert_allclose(estimate.covariance, COVARIANCE, atol=1e-14)
