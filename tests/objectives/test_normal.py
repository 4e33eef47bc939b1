"""The precision form against the textbook form, and EM against the likelihood it climbs."""

from functools import reduce

import numpy as np
import pytest
import torch
from scipy.linalg import logm
from scipy.stats import multivariate_normal

from skbilevel.numerics.row_groups import row_block
from skbilevel.objectives.family import add, pairwise_sums
from skbilevel.objectives.normal import NormalFamily, NormalParameters
from tests.problems import symmetric_matrix
from tests.reference.gaussian import naive_expectation

FAMILY = NormalFamily(shrinkage=2.0)
# Up to 4 and up to 15 missing cells, which take both layouts of `masked_inverse`.
SIZES = [(40, 4, 0.4), (60, 15, 0.8)]


def incomplete(n=40, d=4, rate=0.4, seed=0):
    """Rows with holes, the first complete and the second wholly missing; mu and S."""
    rng = np.random.default_rng(seed)
    location, covariance = rng.normal(size=d), symmetric_matrix(np.linspace(0.2, 4, d), seed)
    X = rng.multivariate_normal(location, covariance, n)
    holes = rng.random(X.shape) < rate
    holes[0], holes[1] = False, True
    return np.where(holes, np.nan, X), location, covariance


def block_of(X):
    return row_block(X, np.zeros(X.shape[1]), np.ones(X.shape[1]))


def parameters_of(location, covariance):
    return NormalParameters(torch.from_numpy(location), torch.from_numpy(covariance))


def each_group(X):
    """Every group with the rows of X in it."""
    block = block_of(X)
    start = 0
    for group in block.groups:
        stop = start + len(group.values)
        yield group, X[block.order[start:stop]]
        start = stop


def total(family, X, model):
    return reduce(add, (family.expectation(group, model) for group in block_of(X).groups))


def climb(family, X, n_steps):
    """Parameters after plain EM from the standard normal, and the objective before each step."""
    groups, d = block_of(X).groups, X.shape[1]
    parameters, history = parameters_of(np.zeros(d), np.eye(d)), []
    for _ in range(n_steps):
        model = family.model(parameters)
        sums = reduce(add, (family.expectation(group, model) for group in groups))
        history.append(float(sums.log_likelihood) + family.log_prior(model))
        parameters = family.maximisation(sums)
    return parameters, history


def penalised_likelihood(X, location, root, shrinkage):
    """sum log N(x_o; mu_o, S_oo) - lambda/2 (log det S + tr S^-1) with S = root root'."""
    covariance = root @ root.T
    value = -0.5 * shrinkage * (torch.logdet(covariance) + torch.linalg.inv(covariance).trace())
    for row in torch.from_numpy(X):
        o = ~row.isnan()
        if o.any():
            density = torch.distributions.MultivariateNormal(location[o], covariance[o][:, o])
            value = value + density.log_prob(row[o])
    return value


def gradient(X, location, covariance, shrinkage):
    """Of `penalised_likelihood` in mu and the lower Cholesky factor of S."""
    factor = torch.linalg.cholesky(covariance)
    variables = [location.clone().requires_grad_(), factor.clone().requires_grad_()]
    slopes = torch.autograd.grad(penalised_likelihood(X, *variables, shrinkage), variables)
    return torch.cat([slopes[0], slopes[1].tril().view(-1)])


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
    model = FAMILY.model(parameters_of(location, covariance))
    n_rows = 0
    for group, rows in each_group(X):
        sums = FAMILY.expectation(group, model)
        expected = naive_expectation(rows, location, covariance)
        second = expected.completed.T @ expected.completed + expected.covariances.sum(axis=0)
        np.testing.assert_allclose(sums.first, expected.completed.sum(axis=0), atol=1e-10)
        np.testing.assert_allclose(sums.second, second, atol=1e-10)
        assert sums.log_likelihood.item() == pytest.approx(expected.log_likelihood, abs=1e-10)
        assert sums.n_rows.item() == len(rows)
        n_rows += len(rows)
    assert n_rows == len(X)


@pytest.mark.parametrize("size", SIZES)
def test_summed_expectation_is_the_loop_over_all_rows(size):
    X, location, covariance = incomplete(*size)
    sums = total(FAMILY, X, FAMILY.model(parameters_of(location, covariance)))
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
    model = FAMILY.model(parameters_of(location, covariance))
    for group, rows in each_group(X):
        for row, value in zip(rows, FAMILY.log_density(group, model), strict=True):
            o = ~np.isnan(row)
            expected = 0.0
            if o.any():
                expected = multivariate_normal(location[o], covariance[np.ix_(o, o)]).logpdf(
                    row[o]
                )
            assert value.item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("size", SIZES)
def test_completed_rows_have_the_textbook_conditional_mean_and_their_observed_cells(size):
    X, location, covariance = incomplete(*size)
    model = FAMILY.model(parameters_of(location, covariance))
    for group, rows in each_group(X):
        completed = FAMILY.completed(group, model)
        expected = naive_expectation(rows, location, covariance).completed
        np.testing.assert_allclose(completed, expected, atol=1e-12)


def test_rows_with_nothing_observed_are_worth_nothing_and_get_the_mean():
    _, location, covariance = incomplete()
    model = FAMILY.model(parameters_of(location, covariance))
    (group,) = block_of(np.full((3, 4), np.nan)).groups
    np.testing.assert_allclose(FAMILY.log_density(group, model), np.zeros(3), atol=1e-14)
    np.testing.assert_array_equal(FAMILY.completed(group, model), np.tile(location, (3, 1)))


def test_groups_are_left_as_they_were():
    X, location, covariance = incomplete()
    model = FAMILY.model(parameters_of(location, covariance))
    noise = torch.ones(len(X), 4, dtype=torch.float64)
    for group, _ in each_group(X):
        before = group.values.clone()
        FAMILY.expectation(group, model)
        FAMILY.completed(group, model)
        FAMILY.drawn(group, model, noise[: len(before)])
        assert torch.equal(group.values, before)


@pytest.mark.parametrize("shrinkage", [0.0, 3.0])
def test_one_step_on_complete_rows_is_the_shrunk_sample_covariance(shrinkage):
    X, location, covariance = incomplete(rate=0.0)
    X = np.delete(X, 1, axis=0)
    family = NormalFamily(shrinkage)
    fit = family.maximisation(total(family, X, family.model(parameters_of(location, covariance))))
    np.testing.assert_allclose(fit.location, X.mean(axis=0), atol=1e-13)
    n = len(X)
    expected = (n * np.cov(X.T, ddof=0) + shrinkage * np.eye(4)) / (n + shrinkage)
    np.testing.assert_allclose(fit.covariance, expected, atol=1e-13)


def test_the_covariance_is_symmetric_where_rounding_made_the_sums_not_so():
    X, location, covariance = incomplete()
    sums = total(FAMILY, X, FAMILY.model(parameters_of(location, covariance)))
    rounding = 1e-12 * torch.arange(16.0, dtype=torch.float64).view(4, 4)
    fit = FAMILY.maximisation(sums._replace(second=sums.second + rounding))
    assert torch.equal(fit.covariance, fit.covariance.T)


@pytest.mark.parametrize("shrinkage", [0.5, 20.0])
def test_log_prior_is_that_of_an_inverse_wishart_whose_mode_is_the_identity(shrinkage):
    family = NormalFamily(shrinkage)

    def value(covariance):
        return family.log_prior(family.model(parameters_of(np.zeros(4), covariance)))

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
    sums = total(family, X, family.model(parameters_of(location, covariance)))
    fit = family.maximisation(sums)
    root = torch.linalg.cholesky(fit.covariance)

    def value(mean, factor):
        parameters = NormalParameters(mean, factor @ factor.T)
        return expected_complete(sums, mean, factor @ factor.T) + family.log_prior(
            family.model(parameters)
        )

    rng, h, best = np.random.default_rng(1), 1e-4, value(fit.location, root)
    for _ in range(4):
        u, V = (torch.from_numpy(rng.normal(size=size)) for size in (4, (4, 4)))
        up, down = (value(fit.location + t * u, root + t * V) for t in (h, -h))
        slope, curvature = (up - down) / (2 * h), (up - 2 * best + down) / h**2
        assert curvature < 0
        assert abs(slope / curvature) < 1e-6


@pytest.mark.parametrize(("shrinkage", "n_steps"), [(0.01, 220), (2.0, 120)])
def test_em_climbs_to_where_the_gradient_of_the_penalised_likelihood_is_zero(shrinkage, n_steps):
    X, *_ = incomplete(n=60)
    parameters, history = climb(NormalFamily(shrinkage), X, n_steps)
    start = parameters_of(np.zeros(4), np.eye(4))
    assert gradient(X, start.location, start.covariance, shrinkage).norm() > 10
    assert gradient(X, parameters.location, parameters.covariance, shrinkage).norm() < 1e-9
    assert np.diff(history).min() > -1e-11
    root = torch.linalg.cholesky(parameters.covariance)
    expected = penalised_likelihood(X, parameters.location, root, shrinkage)
    assert history[-1] == pytest.approx(float(expected), abs=1e-9)


def test_rows_with_nothing_observed_do_not_move_the_maximum():
    X, *_ = incomplete(n=60)
    best, _ = climb(FAMILY, X, 120)
    padded = np.vstack([X, np.full((30, 4), np.nan)])
    moved = FAMILY.maximisation(total(FAMILY, padded, FAMILY.model(best)))
    np.testing.assert_allclose(moved.location, best.location, atol=1e-10)
    np.testing.assert_allclose(moved.covariance, best.covariance, atol=1e-10)


def test_start_is_the_observed_mean_and_the_pairwise_covariance():
    X, *_ = incomplete(n=400)
    sums = reduce(add, map(pairwise_sums, block_of(X).groups))
    start = FAMILY.start(sums)
    np.testing.assert_allclose(start.location, np.nanmean(X, axis=0), atol=1e-13)
    np.testing.assert_allclose(start.covariance.diagonal(), np.nanvar(X, axis=0), atol=1e-12)
    assert torch.equal(start.covariance, sums.covariance())


def test_a_covariance_that_is_not_definite_is_refused():
    with pytest.raises(torch.linalg.LinAlgError):
        FAMILY.model(parameters_of(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])))


def test_coordinates_are_the_mean_and_the_logarithm_of_the_covariance():
    _, location, covariance = incomplete()
    parameters = parameters_of(location, covariance)
    theta = FAMILY.pack(parameters)
    np.testing.assert_allclose(theta, np.append(location, logm(covariance)), atol=1e-14)
    again = FAMILY.unpack(theta, parameters)
    np.testing.assert_array_equal(again.location, location)
    np.testing.assert_allclose(again.covariance, covariance, atol=1e-14)


def test_any_coordinates_are_feasible():
    _, location, covariance = incomplete()
    parameters = parameters_of(location, covariance)
    theta = FAMILY.pack(parameters)
    reflected = FAMILY.unpack(-theta, parameters)
    np.testing.assert_allclose(reflected.covariance, np.linalg.inv(covariance), atol=1e-13)
    for factor in (-5.0, 5.0):
        model = FAMILY.model(FAMILY.unpack(factor * theta, parameters))
        log_det = factor * np.linalg.slogdet(covariance)[1]
        assert model.log_det_covariance.item() == pytest.approx(log_det, rel=1e-9)


def test_a_covariance_singular_by_rounding_has_finite_coordinates():
    column = np.array([[1.0], [2.0], [3.0], [4.0]])
    parameters = parameters_of(np.zeros(4), column @ column.T)
    theta = FAMILY.pack(parameters)
    assert theta.isfinite().all()
    again = FAMILY.unpack(theta, parameters).covariance
    np.testing.assert_allclose(again, column @ column.T, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_draws_are_linear_in_the_noise_with_exactly_the_conditional_covariance(size):
    """The images of the basis vectors are a square root of C; those of observed columns are 0."""
    X, location, covariance = incomplete(*size)
    d = X.shape[1]
    model = FAMILY.model(parameters_of(location, covariance))
    assert FAMILY.noise_width(d) == d
    weights = np.arange(1.0, d + 1)
    noise = torch.from_numpy(np.vstack([np.zeros(d), np.eye(d), weights]))
    for row in X[:12]:
        (group,) = block_of(np.tile(row, (d + 2, 1))).groups
        drawn = FAMILY.drawn(group, model, noise).numpy()
        expected = naive_expectation(row[None], location, covariance)
        np.testing.assert_allclose(drawn[0], expected.completed[0], atol=1e-12)
        images = drawn[1:-1] - drawn[0]
        np.testing.assert_allclose(images.T @ images, expected.covariances[0], atol=1e-12)
        np.testing.assert_allclose(drawn[-1], drawn[0] + weights @ images, atol=1e-12)
        o = ~np.isnan(row)
        np.testing.assert_allclose(drawn[:, o], np.tile(row[o], (d + 2, 1)), atol=1e-14)
        np.testing.assert_allclose(images[o], 0.0, atol=1e-13)


def test_each_row_is_drawn_from_its_own_noise():
    X, location, covariance = incomplete()
    model = FAMILY.model(parameters_of(location, covariance))
    rng = np.random.default_rng(3)
    for group, rows in each_group(X):
        noise = torch.from_numpy(rng.normal(size=rows.shape))
        together = FAMILY.drawn(group, model, noise)
        for i, row in enumerate(rows):
            (alone,) = block_of(row[None]).groups
            expected = FAMILY.drawn(alone, model, noise[i : i + 1])[0]
            np.testing.assert_allclose(together[i], expected, atol=1e-13)
