"""The precision form against the textbook form, and EM against the likelihood it climbs."""

import numpy as np
import pytest
import torch
from scipy.linalg import logm
from scipy.stats import multivariate_normal

from skbilevel.objectives.family import PatternFamily, first_estimate
from skbilevel.objectives.normal import (
    NormalFamily,
    log_normal,
    shrunk_scatter,
)
from tests.problems import assert_is_maximum, symmetric_matrix
from tests.reference.families import (
    ObservedLikelihood,
    climb,
    each_group,
    expectation,
    group_of,
    normal_parameters,
    pairwise,
    with_holes,
)
from tests.reference.gaussian import naive_expectation

FAMILY = NormalFamily(shrinkage=2.0)
# Up to 4 and up to 15 missing cells, which take both layouts of `masked_inverse`.
SIZES = [(40, 4, 0.4), (60, 15, 0.8)]


def incomplete(n=40, d=4, rate=0.4, seed=0):
    """Rows with holes, the first complete and the second wholly missing; mu and S."""
    rng = np.random.default_rng(seed)
    location, covariance = rng.normal(size=d), symmetric_matrix(np.linspace(0.2, 4, d), seed)
    X = rng.multivariate_normal(location, covariance, n)
    return with_holes(X, rate, rng), location, covariance


def expected_complete(sums, location, covariance):
    """What the M-step maximises: E log-likelihood of complete rows, from n, s1 and s2 alone."""
    scatter = (
        sums.second
        - torch.outer(sums.first, location)
        - torch.outer(location, sums.first)
        + sums.n_rows * torch.outer(location, location)
    )
    fit = torch.linalg.solve(covariance, scatter).trace()
    return float(-0.5 * (sums.n_rows * torch.logdet(covariance) + fit))


@pytest.mark.parametrize("size", SIZES)
def test_expectation_of_each_group_is_the_loop_over_its_rows(size):
    X, location, covariance = incomplete(*size)
    model = FAMILY.model(normal_parameters(location, covariance))
    n_rows = 0
    for group, rows in each_group(X):
        sums = FAMILY.expectation(group, model)
        expected = naive_expectation(rows, location, covariance)
        np.testing.assert_allclose(sums.first, expected.completed.sum(axis=0), atol=1e-10)
        np.testing.assert_allclose(sums.second, expected.second, atol=1e-10)
        assert sums.log_likelihood.item() == pytest.approx(expected.log_likelihood, abs=1e-10)
        assert sums.n_rows.item() == len(rows)
        n_rows += len(rows)
    assert n_rows == len(X)


@pytest.mark.parametrize("size", SIZES)
def test_summed_expectation_is_the_loop_over_all_rows(size):
    X, location, covariance = incomplete(*size)
    sums = expectation(FAMILY, X, FAMILY.model(normal_parameters(location, covariance)))
    expected = naive_expectation(X, location, covariance)
    n = len(X)
    mean = torch.from_numpy(location)
    s1 = sums.first - n * mean
    s2 = sums.second - torch.outer(sums.first, mean) - torch.outer(mean, s1)
    assert sums.n_rows.item() == n
    np.testing.assert_allclose(s1, expected.s1, atol=1e-10)
    np.testing.assert_allclose(s2, expected.s2, atol=1e-10)
    assert sums.log_likelihood.item() == pytest.approx(expected.log_likelihood, abs=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_log_density_is_scipys_at_the_observed_cells(size):
    X, location, covariance = incomplete(*size)
    model = FAMILY.model(normal_parameters(location, covariance))
    for group, rows in each_group(X):
        for row, value in zip(rows, FAMILY.log_density(group, model), strict=True):
            o = ~np.isnan(row)
            expected = 0.0
            if o.any():
                expected = multivariate_normal(location[o], covariance[np.ix_(o, o)]).logpdf(
                    row[o]
                )
            assert value.item() == pytest.approx(expected, abs=1e-11)


def test_log_normal_of_many_rows_is_that_of_the_sums_of_its_arguments():
    """The sum over rows of scipy's densities, from |o|, log det S_oo and distances alone."""
    X, location, covariance = incomplete()
    counts, log_dets, distances, expected = [], [], [], []
    for row in np.delete(X, 1, axis=0):
        o = ~np.isnan(row)
        residual, S_oo = (row - location)[o], covariance[np.ix_(o, o)]
        counts.append(o.sum())
        log_dets.append(np.linalg.slogdet(S_oo)[1])
        distances.append(residual @ np.linalg.solve(S_oo, residual))
        expected.append(multivariate_normal(location[o], S_oo).logpdf(row[o]))
    arguments = [torch.tensor(np.array(values, dtype=float)) for values in (log_dets, distances)]
    n_observed = torch.tensor(counts)
    np.testing.assert_allclose(log_normal(n_observed, *arguments), expected, atol=1e-11)
    total = log_normal(int(n_observed.sum()), *(argument.sum() for argument in arguments))
    assert total.item() == pytest.approx(sum(expected), abs=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_completed_rows_have_the_textbook_conditional_mean_and_their_observed_cells(size):
    X, location, covariance = incomplete(*size)
    model = FAMILY.model(normal_parameters(location, covariance))
    for group, rows in each_group(X):
        completed = FAMILY.completed(group, model)
        expected = naive_expectation(rows, location, covariance).completed
        np.testing.assert_allclose(completed, expected, atol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.0, 3.0])
def test_one_step_on_complete_rows_is_the_shrunk_sample_covariance(shrinkage):
    X, location, covariance = incomplete(rate=0.0)
    X = np.delete(X, 1, axis=0)
    family = NormalFamily(shrinkage)
    fit = family.maximisation(
        expectation(family, X, family.model(normal_parameters(location, covariance)))
    )
    np.testing.assert_allclose(fit.location, X.mean(axis=0), atol=1e-13)
    n = len(X)
    expected = (n * np.cov(X.T, ddof=0) + shrinkage * np.eye(4)) / (n + shrinkage)
    np.testing.assert_allclose(fit.covariance, expected, atol=1e-13)


@pytest.mark.parametrize("shrinkage", [0.0, 3.0])
def test_shrunk_scatter_is_that_of_weighted_rows_over_their_number(shrinkage):
    """The weights divide the mean, but the number of rows the scatter."""
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(30, 4)) + 3, rng.uniform(0.1, 2, size=30)
    sums = [w.sum(), w @ X, X.T * w @ X, 30.0]
    location, covariance = shrunk_scatter(*map(torch.tensor, sums), shrinkage)
    mean = np.average(X, axis=0, weights=w)
    expected = ((X - mean).T * w @ (X - mean) + shrinkage * np.eye(4)) / (30 + shrinkage)
    np.testing.assert_allclose(location, mean, atol=1e-13)
    np.testing.assert_allclose(covariance, expected, atol=1e-13)


def test_the_e_step_can_be_had_by_pattern():
    assert isinstance(FAMILY, PatternFamily)


def test_the_covariance_is_symmetric_where_rounding_made_the_sums_not_so():
    X, location, covariance = incomplete()
    sums = expectation(FAMILY, X, FAMILY.model(normal_parameters(location, covariance)))
    rounding = 1e-12 * torch.arange(16.0, dtype=torch.float64).view(4, 4)
    fit = FAMILY.maximisation(sums._replace(second=sums.second + rounding))
    assert torch.equal(fit.covariance, fit.covariance.T)


@pytest.mark.parametrize("shrinkage", [0.5, 20.0])
def test_log_prior_is_that_of_an_inverse_wishart_whose_mode_is_the_identity(shrinkage):
    family = NormalFamily(shrinkage)

    def value(covariance):
        return family.log_prior(family.model(normal_parameters(np.zeros(4), covariance)))

    S = symmetric_matrix(np.array([0.2, 0.5, 1.5, 4.0]))
    expected = -shrinkage / 2 * (np.log(0.6) + np.trace(np.linalg.inv(S)))
    assert value(S) == pytest.approx(expected, rel=1e-14)
    best = value(np.eye(4))
    for seed in range(3):
        assert value(symmetric_matrix(np.array([0.9, 1.0, 1.0, 1.1]), seed)) < best


@pytest.mark.parametrize("shrinkage", [0.5, 20.0])
def test_m_step_maximises_the_expected_log_likelihood_plus_the_log_prior(shrinkage):
    X, location, covariance = incomplete()
    family = NormalFamily(shrinkage)
    sums = expectation(family, X, family.model(normal_parameters(location, covariance)))
    fit = family.maximisation(sums)

    def value(mean, factor):
        parameters = normal_parameters(mean, factor @ factor.T)
        complete = expected_complete(sums, parameters.location, parameters.covariance)
        return complete + family.log_prior(family.model(parameters))

    root = torch.linalg.cholesky(fit.covariance)
    assert_is_maximum(value, fit.location.numpy(), root.numpy())


@pytest.mark.parametrize(("shrinkage", "n_steps"), [(0.01, 220), (2.0, 120)])
def test_em_climbs_to_where_the_gradient_of_the_penalised_likelihood_is_zero(shrinkage, n_steps):
    X, *_ = incomplete(n=60)
    start = normal_parameters(np.zeros(4), np.eye(4))
    parameters, history = climb(NormalFamily(shrinkage), X, n_steps, start)
    likelihood = ObservedLikelihood(X, shrinkage)
    assert likelihood.gradient(start).norm() > 10
    assert likelihood.gradient(parameters).norm() < 1e-9
    assert np.diff(history).min() > -1e-11
    assert history[-1] == pytest.approx(likelihood.of(parameters).item(), abs=1e-9)


def test_rows_with_nothing_observed_do_not_move_the_maximum():
    X, *_ = incomplete(n=60)
    best, _ = climb(FAMILY, X, 120, normal_parameters(np.zeros(4), np.eye(4)))
    padded = np.vstack([X, np.full((30, 4), np.nan)])
    moved = FAMILY.maximisation(expectation(FAMILY, padded, FAMILY.model(best)))
    np.testing.assert_allclose(moved.location, best.location, atol=1e-10)
    np.testing.assert_allclose(moved.covariance, best.covariance, atol=1e-10)


def test_start_is_the_observed_mean_and_the_pairwise_covariance():
    X, *_ = incomplete(n=400)
    estimate = first_estimate(pairwise(X))
    start = FAMILY.start(estimate)
    np.testing.assert_allclose(start.location, np.nanmean(X, axis=0), atol=1e-13)
    np.testing.assert_allclose(start.covariance.diagonal(), np.nanvar(X, axis=0), atol=1e-12)
    assert torch.equal(start.covariance, estimate.covariance)


def test_a_covariance_that_is_not_definite_is_refused():
    with pytest.raises(torch.linalg.LinAlgError):
        FAMILY.model(normal_parameters(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])))


def test_coordinates_are_the_mean_and_the_logarithm_of_the_covariance():
    _, location, covariance = incomplete()
    parameters = normal_parameters(location, covariance)
    theta = FAMILY.pack(parameters)
    np.testing.assert_allclose(theta, np.append(location, logm(covariance)), atol=1e-14)
    again = FAMILY.unpack(theta, parameters)
    np.testing.assert_array_equal(again.location, location)
    np.testing.assert_allclose(again.covariance, covariance, atol=1e-14)


def test_any_coordinates_are_feasible():
    _, location, covariance = incomplete()
    parameters = normal_parameters(location, covariance)
    theta = FAMILY.pack(parameters)
    reflected = FAMILY.unpack(-theta, parameters)
    np.testing.assert_allclose(reflected.covariance, np.linalg.inv(covariance), atol=1e-13)
    for factor in (-5.0, 5.0):
        model = FAMILY.model(FAMILY.unpack(factor * theta, parameters))
        log_det = factor * np.linalg.slogdet(covariance)[1]
        assert model.log_det_covariance.item() == pytest.approx(log_det, rel=1e-9)


def test_a_covariance_singular_by_rounding_has_finite_coordinates():
    column = np.array([[1.0], [2.0], [3.0], [4.0]])
    parameters = normal_parameters(np.zeros(4), column @ column.T)
    theta = FAMILY.pack(parameters)
    assert theta.isfinite().all()
    again = FAMILY.unpack(theta, parameters).covariance
    np.testing.assert_allclose(again, column @ column.T, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_draws_are_linear_in_the_noise_with_exactly_the_conditional_covariance(size):
    """The images of the basis vectors are a square root of C; those of observed columns are 0."""
    X, location, covariance = incomplete(*size)
    d = X.shape[1]
    model = FAMILY.model(normal_parameters(location, covariance))
    assert FAMILY.noise_width(d) == d
    weights = np.arange(1.0, d + 1)
    noise = torch.from_numpy(np.vstack([np.zeros(d), np.eye(d), weights]))
    for row in X[:12]:
        group = group_of(row, d + 2)
        drawn = FAMILY.drawn(group, FAMILY.given(group, model), noise).numpy()
        expected = naive_expectation(row[None], location, covariance)
        np.testing.assert_allclose(drawn[0], expected.completed[0], atol=1e-12)
        images = drawn[1:-1] - drawn[0]
        np.testing.assert_allclose(images.T @ images, expected.covariances[0], atol=1e-12)
        np.testing.assert_allclose(drawn[-1], drawn[0] + weights @ images, atol=1e-12)
        o = ~np.isnan(row)
        np.testing.assert_allclose(drawn[:, o], np.tile(row[o], (d + 2, 1)), atol=1e-14)
        np.testing.assert_allclose(images[o], 0.0, atol=1e-13)
