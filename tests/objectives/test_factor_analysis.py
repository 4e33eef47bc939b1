"""Factor analysis is the normal with S = W W' + diag(psi), and its M-step a regression."""

import numpy as np
import pytest
import torch

from skbilevel.objectives.factor_analysis import FactorFamily, FactorParameters
from skbilevel.objectives.family import PatternFamily, first_estimate
from skbilevel.objectives.normal import NormalFamily
from tests.problems import assert_is_maximum
from tests.reference.families import (
    ObservedLikelihood,
    climb,
    each_group,
    estimate_of,
    expectation,
    group_of,
    normal_parameters,
    pairwise,
    with_holes,
)
from tests.reference.gaussian import naive_expectation

SIZES = [(40, 4, 1), (40, 6, 3), (40, 3, 3)]


def incomplete(n=40, d=6, q=2, rate=0.4, seed=0):
    """Rows with holes, the first complete, the second wholly missing; mu, W and log psi."""
    rng = np.random.default_rng(seed)
    location, loadings = rng.normal(size=d), rng.normal(size=(d, q))
    log_noise = rng.normal(-0.5, 0.5, size=d)
    X = location + rng.normal(size=(n, q)) @ loadings.T
    X += rng.normal(size=(n, d)) * np.exp(log_noise / 2)
    return with_holes(X, rate, rng), location, loadings, log_noise


def parameters_of(*arrays):
    return FactorParameters(*map(torch.from_numpy, arrays))


def covariance_of(loadings, log_noise):
    return loadings @ loadings.T + np.diag(np.exp(log_noise))


def factor_moments(row, location, loadings, log_noise):
    """E[t] and E[t t'] for t = (z, 1): regression of z on x_o, the textbook way."""
    o = ~np.isnan(row)
    W_o = loadings[o]
    regression = np.linalg.solve(covariance_of(loadings, log_noise)[np.ix_(o, o)], W_o).T
    z = regression @ (row - location)[o]
    t = np.append(z, 1.0)
    second = np.outer(t, t)
    second[:-1, :-1] += np.eye(len(z)) - regression @ W_o
    return t, second


def naive_step(X, shrinkage, *parameters):
    """One EM step, column by column and row by row."""
    d, q = parameters[1].shape
    moments = [factor_moments(row, *parameters) for row in X]
    coefficients, noise = np.zeros((d, q + 1)), np.zeros(d)
    for j in range(d):
        system = shrinkage * np.diag(np.append(np.ones(q), 0.0))
        cross, square, n = np.zeros(q + 1), 0.0, 0
        for row, (t, second) in zip(X, moments, strict=True):
            if not np.isnan(row[j]):
                system, cross = system + second, cross + row[j] * t
                square, n = square + row[j] ** 2, n + 1
        coefficients[j] = np.linalg.solve(system, cross)
        noise[j] = (square - coefficients[j] @ cross + shrinkage) / (n + shrinkage)
    return coefficients[:, -1], coefficients[:, :-1], np.log(noise)


@pytest.mark.parametrize("size", SIZES)
def test_density_and_conditional_mean_are_those_of_the_normal_with_its_covariance(size):
    X, *parameters = incomplete(*size)
    covariance = covariance_of(*parameters[1:])
    family, normal_family = FactorFamily(1.0, size[2]), NormalFamily(1.0)
    model = family.model(parameters_of(*parameters))
    normal = normal_family.model(normal_parameters(parameters[0], covariance))
    for group, rows in each_group(X):
        expected = naive_expectation(rows, parameters[0], covariance)
        log_density, completed = family.log_density(group, model), family.completed(group, model)
        np.testing.assert_allclose(log_density, expected.row_log_likelihood, atol=1e-11)
        np.testing.assert_allclose(
            log_density, normal_family.log_density(group, normal), atol=1e-11
        )
        np.testing.assert_allclose(completed, expected.completed, atol=1e-11)
        np.testing.assert_array_equal(completed[~np.isnan(rows)], rows[~np.isnan(rows)])
        sums = family.expectation(group, model)
        assert sums.log_likelihood.item() == pytest.approx(expected.log_likelihood, abs=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_sums_of_each_group_are_the_loop_over_its_rows(size):
    X, *parameters = incomplete(*size)
    family = FactorFamily(1.0, size[2])
    model = family.model(parameters_of(*parameters))
    for group, rows in each_group(X):
        observed = ~np.isnan(rows)
        moments = [factor_moments(row, *parameters) for row in rows]
        first, second = (np.array(parts) for parts in zip(*moments, strict=True))
        zeroed = np.nan_to_num(rows)
        sums = family.expectation(group, model)
        assert sums.n_rows.item() == len(rows)
        np.testing.assert_array_equal(sums.n_observed, observed.sum(axis=0))
        design = np.einsum("ij,ikl->jkl", observed, second).reshape(size[1], -1)
        np.testing.assert_allclose(sums.design, design, atol=1e-10)
        np.testing.assert_allclose(sums.cross, zeroed.T @ first, atol=1e-10)
        np.testing.assert_allclose(sums.square, (zeroed**2).sum(axis=0), atol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.1, 5.0])
@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_the_loop_over_columns_and_rows(size, shrinkage):
    X, *parameters = incomplete(*size)
    family = FactorFamily(shrinkage, size[2])
    fit = family.maximisation(expectation(family, X, family.model(parameters_of(*parameters))))
    location, loadings, log_noise = naive_step(X, shrinkage, *parameters)
    np.testing.assert_allclose(fit.location, location, atol=1e-10)
    np.testing.assert_allclose(fit.loadings, loadings, atol=1e-10)
    np.testing.assert_allclose(fit.log_noise, log_noise, atol=1e-10)


@pytest.mark.parametrize("shrinkage", [0.5, 20.0])
def test_m_step_maximises_the_expected_log_likelihood_plus_the_log_prior(shrinkage):
    X, *parameters = incomplete()
    family = FactorFamily(shrinkage, 2)
    sums = expectation(family, X, family.model(parameters_of(*parameters)))
    fit = family.maximisation(sums)

    def value(*arrays):
        at = parameters_of(*arrays)
        value = family.log_prior(family.model(at))
        for j, log_noise in enumerate(at.log_noise):
            b = torch.cat([at.loadings[j], at.location[j : j + 1]])
            squares = sums.square[j] - 2 * b @ sums.cross[j] + b @ sums.design[j].view(3, 3) @ b
            value -= 0.5 * float(sums.n_observed[j] * log_noise + squares * (-log_noise).exp())
        return value

    assert_is_maximum(value, *(field.numpy() for field in vars(fit).values()))


def test_log_prior_is_its_formula():
    _, location, loadings, log_noise = incomplete()
    family = FactorFamily(3.0, 2)
    got = family.log_prior(family.model(parameters_of(location, loadings, log_noise)))
    noise = np.exp(log_noise)
    expected = -1.5 * np.sum((loadings**2).sum(axis=1) / noise + np.log(noise) + 1 / noise)
    assert got == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("q", "shrinkage"), [(1, 0.5), (1, 5.0), (2, 2.0)])
def test_em_never_lowers_the_penalised_likelihood(q, shrinkage):
    X, *_ = incomplete(q=q)
    family = FactorFamily(shrinkage, q)
    parameters, history = climb(family, X, 60)
    assert history[-1] > history[0] + 1
    assert np.diff(history).min() > -1e-11
    model = family.model(parameters)
    got = float(expectation(family, X, model).log_likelihood) + family.log_prior(model)
    expected = ObservedLikelihood(X, shrinkage).of(parameters)
    assert got == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize(("q", "shrinkage", "n_steps"), [(1, 1.0, 150), (2, 3.0, 230)])
def test_em_ends_where_the_gradient_of_the_penalised_likelihood_is_zero(q, shrinkage, n_steps):
    X, *_ = incomplete(n=100, d=5, q=q, rate=0.25)
    family = FactorFamily(shrinkage, q)
    start, _ = climb(family, X, 0)
    parameters, _ = climb(family, X, n_steps)
    likelihood = ObservedLikelihood(X, shrinkage)
    assert likelihood.gradient(start).norm() > 1
    assert likelihood.gradient(parameters).norm() < 1e-7
    assert parameters.loadings.norm() > 1


@pytest.mark.parametrize("q", [1, 2, 4])
def test_start_is_probabilistic_pca_of_the_pairwise_covariance(q):
    """S = W W' + s I with orthogonal columns of W is found to rounding."""
    rng = np.random.default_rng(0)
    W = np.linalg.qr(rng.normal(size=(5, q)))[0] * np.arange(1.0, q + 1)
    means = rng.normal(size=5)
    start = FactorFamily(1.0, q).start(estimate_of(means, W @ W.T + 0.5 * np.eye(5)))
    np.testing.assert_allclose(start.location, means, atol=1e-15)
    assert start.loadings.shape == (5, q)
    np.testing.assert_allclose(start.loadings @ start.loadings.T, W @ W.T, atol=1e-12)
    np.testing.assert_allclose(start.log_noise.exp(), np.full(5, 0.5), atol=1e-12)


def test_start_with_as_many_factors_as_columns_leaves_noise_in_every_column():
    covariance = np.diag([1.0, 2.0, 3.0])
    start = FactorFamily(1.0, 3).start(estimate_of(np.zeros(3), covariance))
    np.testing.assert_allclose(start.log_noise.exp(), [0.5, 0.5, 0.5], atol=1e-14)
    implied = start.loadings @ start.loadings.T + start.log_noise.exp().diag()
    np.testing.assert_allclose(implied, covariance, atol=1e-14)


@pytest.mark.parametrize("q", [1, 3, 6])
@pytest.mark.parametrize("n", [8, 200])
def test_start_is_that_of_numpys_eigenvectors_of_the_covariance(n, q):
    """The estimate brings its own; from few rows its lowest eigenvalue is raised."""
    X, *_ = incomplete(n)
    estimate = first_estimate(pairwise(X))
    lowest = first_estimate(pairwise(X), floor=1e-6).eigenvalues[0]
    assert (lowest < estimate.eigenvalues[0]) == (n == 8)
    family = FactorFamily(1.0, q)
    start = family.start(estimate)
    expected = family.start(estimate_of(estimate.mean.numpy(), estimate.covariance.numpy()))
    np.testing.assert_allclose(start.location, np.nanmean(X, axis=0), atol=1e-14)
    np.testing.assert_allclose(start.log_noise, expected.log_noise, atol=1e-11)
    np.testing.assert_allclose(
        start.loadings @ start.loadings.T, expected.loadings @ expected.loadings.T, atol=1e-11
    )


def test_factors_differ_from_row_to_row_so_that_patterns_do_not_suffice():
    assert not isinstance(FactorFamily(1.0, 2), PatternFamily)


def test_noise_that_underflows_is_refused():
    location, loadings = np.zeros(2), np.ones((2, 1))
    with pytest.raises(torch.linalg.LinAlgError, match="underflows"):
        FactorFamily(1.0, 1).model(parameters_of(location, loadings, np.array([0.0, -800.0])))


def test_coordinates_are_the_parameters_one_after_the_other():
    _, *arrays = incomplete()
    family, parameters = FactorFamily(1.0, 2), parameters_of(*arrays)
    theta = family.pack(parameters)
    np.testing.assert_array_equal(theta, np.concatenate([array.ravel() for array in arrays]))
    again = family.unpack(theta, parameters)
    for one, other in zip(vars(again).values(), arrays, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", SIZES)
def test_draws_are_linear_in_the_noise_with_exactly_the_conditional_covariance(size):
    """The images of the basis vectors are the columns of a root of C."""
    X, *parameters = incomplete(*size)
    d, q = parameters[1].shape
    family = FactorFamily(1.0, q)
    model = family.model(parameters_of(*parameters))
    width = family.noise_width(d)
    assert width == q + d
    weights = np.arange(1.0, width + 1)
    noise = torch.from_numpy(np.vstack([np.zeros(width), np.eye(width), weights]))
    for row in X[:12]:
        group = group_of(row, width + 2)
        drawn = family.drawn(group, family.given(group, model), noise).numpy()
        expected = naive_expectation(row[None], parameters[0], covariance_of(*parameters[1:]))
        np.testing.assert_allclose(drawn[0], expected.completed[0], atol=1e-12)
        images = drawn[1:-1] - drawn[0]
        np.testing.assert_allclose(images.T @ images, expected.covariances[0], atol=1e-12)
        np.testing.assert_allclose(drawn[-1], drawn[0] + weights @ images, atol=1e-12)
        o = ~np.isnan(row)
        assert not images[q:][o].any()
        np.testing.assert_array_equal(drawn[:, o], np.tile(row[o], (width + 2, 1)))
