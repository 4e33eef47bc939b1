"""The multivariate t against SciPy, and against its definition as a normal of random scale."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import logm
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, psi

from skbilevel.objectives.family import PatternFamily
from skbilevel.objectives.normal import NormalFamily
from skbilevel.objectives.student_t import (
    LEAST_DEGREES,
    MOST_DEGREES,
    StudentFamily,
    StudentModel,
    StudentParameters,
    solve_degrees,
)
from tests.problems import assert_is_maximum, symmetric_matrix
from tests.reference.families import (
    ObservedLikelihood,
    block_of,
    climb,
    each_group,
    expectation,
    group_of,
    normal_parameters,
    with_holes,
)
from tests.reference.gaussian import naive_expectation

FAMILY = StudentFamily(shrinkage=2.0)
DEGREES = 3.5


def incomplete(n=40, d=4, rate=0.4, seed=0):
    """Rows of a t with 2.5 degrees; the first complete, the second wholly missing; mu and S."""
    rng = np.random.default_rng(seed)
    location, covariance = rng.normal(size=d), symmetric_matrix(np.linspace(0.2, 4, d), seed)
    X = stats.multivariate_t(location, covariance, df=2.5).rvs(n, random_state=rng)
    return with_holes(X, rate, rng), location, covariance


def parameters_of(location, covariance, degrees=DEGREES):
    log_degrees = torch.tensor(math.log(degrees), dtype=torch.float64)
    return StudentParameters(torch.from_numpy(location), torch.from_numpy(covariance), log_degrees)


def naive_given(row, location, covariance, degrees=DEGREES):
    """Observed cells, completed row, C, and shape and rate of the Gamma of u given x_o."""
    o = ~np.isnan(row)
    expected = naive_expectation(row[None], location, covariance)
    residual = (row - location)[o]
    distance = residual @ np.linalg.solve(covariance[np.ix_(o, o)], residual)
    shape, rate = (degrees + o.sum()) / 2, (degrees + distance) / 2
    return o, expected.completed[0], expected.covariances[0], shape, rate


@pytest.mark.parametrize("size", [(40, 4, 0.4), (30, 15, 0.8)])
@pytest.mark.parametrize("degrees", [1.0, 4.2, 150.0])
def test_log_density_is_scipys_at_the_observed_cells(size, degrees):
    X, location, covariance = incomplete(*size)
    model = FAMILY.model(parameters_of(location, covariance, degrees))
    for group, rows in each_group(X):
        for row, value in zip(rows, FAMILY.log_density(group, model), strict=True):
            o, expected = ~np.isnan(row), 0.0
            if o.any():
                marginal = stats.multivariate_t(location[o], covariance[np.ix_(o, o)], df=degrees)
                expected = marginal.logpdf(row[o])
            assert value.item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("size", [(40, 4, 0.4), (60, 15, 0.8)])
def test_expectation_of_each_group_is_the_loop_over_its_rows(size):
    """With E[u] = a/b and E[log u] = psi(a) - log b of the Gamma(a, b) of u given x_o."""
    X, location, covariance = incomplete(*size)
    d = X.shape[1]
    model = FAMILY.model(parameters_of(location, covariance))
    for group, rows in each_group(X):
        weight, first, second, excess = 0.0, np.zeros(d), np.zeros((d, d)), 0.0
        for row in rows:
            _, completed, C, shape, rate = naive_given(row, location, covariance)
            u = shape / rate
            weight += u
            first += u * completed
            second += u * np.outer(completed, completed) + C
            excess += psi(shape) - np.log(rate) - u
        sums = FAMILY.expectation(group, model)
        assert sums.n_rows.item() == len(rows)
        assert sums.weight.item() == pytest.approx(weight, abs=1e-10)
        assert sums.log_weight_excess.item() == pytest.approx(excess, abs=1e-10)
        np.testing.assert_allclose(sums.first, first, atol=1e-10)
        np.testing.assert_allclose(sums.second, second, atol=1e-10)
        log_density = FAMILY.log_density(group, model).sum()
        assert sums.log_likelihood.item() == pytest.approx(log_density.item(), abs=1e-10)


def test_weights_and_density_are_those_of_bayes_theorem():
    """Prior Gamma(nu/2, nu/2) of u times N(x_o; mu_o, S_oo/u), integrated over log u."""
    X, location, covariance = incomplete(n=6)
    model = FAMILY.model(parameters_of(location, covariance))
    u, step = np.exp(np.linspace(-25, 5, 301)), 0.1
    for row in X:
        o = ~np.isnan(row)
        joint = stats.gamma(DEGREES / 2, scale=2 / DEGREES).pdf(u) * u * step
        if o.any():
            S_oo = covariance[np.ix_(o, o)]
            joint *= [stats.multivariate_normal(location[o], S_oo / v).pdf(row[o]) for v in u]
        sums = FAMILY.expectation(group_of(row), model)
        weight, log_weight = joint @ u / joint.sum(), joint @ np.log(u) / joint.sum()
        assert sums.weight.item() == pytest.approx(weight, rel=1e-10)
        assert sums.log_weight_excess.item() == pytest.approx(log_weight - weight, rel=1e-10)
        assert sums.log_likelihood.item() == pytest.approx(np.log(joint.sum()), abs=1e-10)


def test_with_many_degrees_the_density_and_the_sums_are_the_normals():
    """The difference is of order 1 / nu, which this resolves."""
    X, location, covariance = incomplete()
    normal_family = NormalFamily(2.0)
    normal = normal_family.model(normal_parameters(location, covariance))
    for group in block_of(X).groups:
        gaps = []
        for degrees in (1e5, 1e6):
            model = StudentModel(normal, degrees)
            sums, expected = (
                FAMILY.expectation(group, model),
                normal_family.expectation(group, normal),
            )
            gaps.append(
                [
                    (FAMILY.log_density(group, model) - normal_family.log_density(group, normal))
                    .abs()
                    .max(),
                    (sums.first - expected.first).abs().max(),
                    (sums.second - expected.second).abs().max(),
                    (sums.weight - expected.n_rows).abs(),
                ]
            )
        wide, narrow = np.array(gaps)
        empty = group.n_missing == 4
        assert empty or wide.min() > 1e-8
        np.testing.assert_allclose(narrow, 0.1 * wide, rtol=0.02, atol=1e-8)


def test_degrees_stay_within_their_bounds():
    location, covariance = np.zeros(2), np.eye(2)
    for degrees, expected in [(0.01, LEAST_DEGREES), (7.0, 7.0), (1e6, MOST_DEGREES)]:
        model = FAMILY.model(parameters_of(location, covariance, degrees))
        assert model.degrees == pytest.approx(expected, rel=1e-15)


def test_coordinates_are_the_mean_the_logarithm_of_the_scale_matrix_and_log_degrees():
    _, location, covariance = incomplete()
    parameters = parameters_of(location, covariance)
    theta = FAMILY.pack(parameters)
    expected = np.concatenate([location, logm(covariance).ravel(), [np.log(DEGREES)]])
    np.testing.assert_allclose(theta, expected, atol=1e-14)
    again = FAMILY.unpack(theta, parameters)
    np.testing.assert_array_equal(again.location, location)
    np.testing.assert_allclose(again.covariance, covariance, atol=1e-14)
    assert torch.equal(again.log_degrees, parameters.log_degrees)


@pytest.mark.parametrize("degrees", [1.01, 2.0, 5.0, 30.0, 199.0])
def test_degrees_of_gamma_weights_are_found_from_their_moments(degrees):
    """For u ~ Gamma(nu/2, nu/2) itself E[log u] - E[u] = psi(nu/2) - log(nu/2) - 1."""
    excess = psi(degrees / 2) - math.log(degrees / 2) - 1
    assert solve_degrees(excess) == pytest.approx(degrees, rel=1e-8)


@pytest.mark.parametrize(("degrees", "bound"), [(0.3, 1.0), (1000.0, 200.0)])
def test_degrees_beyond_the_bounds_are_put_there(degrees, bound):
    assert solve_degrees(psi(degrees / 2) - math.log(degrees / 2) - 1) == bound


@pytest.mark.parametrize("excess", [-3.0, -1.5, -1.2, -1.02, -1.001])
def test_degrees_maximise_the_expected_log_density_of_the_weights(excess):
    def loss(nu):
        return -(nu / 2 * np.log(nu / 2) - gammaln(nu / 2) + nu / 2 * excess)

    best = minimize_scalar(loss, bounds=(1, 200), method="bounded", options={"xatol": 1e-8})
    assert solve_degrees(excess) == pytest.approx(best.x, rel=1e-4)


@pytest.mark.parametrize("shrinkage", [0.5, 20.0])
def test_m_step_maximises_the_expected_log_likelihood_plus_the_log_prior(shrinkage):
    X, location, covariance = incomplete()
    family = StudentFamily(shrinkage)
    model = family.model(parameters_of(location, covariance))
    sums = expectation(family, X, model)
    fit = family.maximisation(sums)

    def value(mean, factor):
        parameters = parameters_of(mean, factor @ factor.T, fit.log_degrees.exp())
        mean, S = parameters.location, parameters.covariance
        scatter = sums.second - torch.outer(sums.first, mean) - torch.outer(mean, sums.first)
        scatter += sums.weight * torch.outer(mean, mean)
        expected = -0.5 * (sums.n_rows * torch.logdet(S) + torch.linalg.solve(S, scatter).trace())
        return float(expected) + family.log_prior(family.model(parameters))

    root = torch.linalg.cholesky(fit.covariance)
    assert_is_maximum(value, fit.location.numpy(), root.numpy())
    degrees = solve_degrees(float(sums.log_weight_excess) / len(X))
    assert fit.log_degrees.exp().item() == pytest.approx(degrees, rel=1e-15)


def test_weights_differ_from_row_to_row_so_that_patterns_do_not_suffice():
    assert not isinstance(FAMILY, PatternFamily)


def test_the_scale_matrix_is_symmetric_where_rounding_made_the_sums_not_so():
    X, location, covariance = incomplete()
    model = FAMILY.model(parameters_of(location, covariance))
    sums = expectation(FAMILY, X, model)
    rounding = 1e-12 * torch.arange(16.0, dtype=torch.float64).view(4, 4)
    fit = FAMILY.maximisation(sums._replace(second=sums.second + rounding))
    assert torch.equal(fit.covariance, fit.covariance.T)


@pytest.mark.parametrize("shrinkage", [0.5, 10.0])
def test_em_climbs_to_where_the_gradient_of_the_penalised_likelihood_is_zero(shrinkage):
    X, *_ = incomplete(n=100, d=3, rate=0.25)
    family = StudentFamily(shrinkage)
    start, _ = climb(family, X, 0)
    parameters, history = climb(family, X, 160)
    likelihood = ObservedLikelihood(X, shrinkage)
    assert likelihood.gradient(start).norm() > 10
    assert abs(likelihood.gradient(start)[-1]) > 1
    assert likelihood.gradient(parameters).norm() < 1e-7
    assert LEAST_DEGREES < parameters.log_degrees.exp() < MOST_DEGREES
    assert np.diff(history).min() > -1e-11
    assert history[-1] == pytest.approx(likelihood.of(parameters).item(), abs=1e-9)


def test_rows_with_light_tails_drive_the_degrees_up_to_their_bound():
    X = np.random.default_rng(0).uniform(-1, 1, size=(200, 3))
    degrees = [5.0, 50.0, MOST_DEGREES]
    for before, after in zip(degrees, [6.0, 51.0, MOST_DEGREES], strict=True):
        model = FAMILY.model(parameters_of(X.mean(axis=0), np.cov(X.T), before))
        sums = expectation(FAMILY, X, model)
        assert FAMILY.maximisation(sums).log_degrees.exp().item() >= after * (1 - 1e-14)


def test_start_is_the_centre_the_identity_and_five_degrees():
    X, *_ = incomplete()
    start, _ = climb(FAMILY, X, 0)
    np.testing.assert_array_equal(start.location, np.zeros(4))
    np.testing.assert_array_equal(start.covariance, np.eye(4))
    assert start.log_degrees.exp().item() == pytest.approx(5, rel=1e-15)


def test_completed_rows_have_the_conditional_mean_of_the_normal():
    X, location, covariance = incomplete()
    model = FAMILY.model(parameters_of(location, covariance))
    for group, rows in each_group(X):
        expected = naive_expectation(rows, location, covariance).completed
        np.testing.assert_allclose(FAMILY.completed(group, model), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(40, 4, 0.4), (60, 15, 0.8)])
def test_the_weight_of_a_row_is_gamma_with_the_distance_of_its_observed_cells(size):
    """Shape (nu + p_o) / 2 and rate (nu + delta) / 2, delta with S_oo alone."""
    X, location, covariance = incomplete(*size)
    model = FAMILY.model(parameters_of(location, covariance))
    for group, rows in each_group(X):
        given = FAMILY.given(group, model)
        for row, rate in zip(rows, given.rate, strict=True):
            *_, shape, expected = naive_given(row, location, covariance)
            assert given.shape == shape
            assert rate.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("last", [-8.2, -1.0, 0.0, 2.0, 7.0])
def test_draws_given_the_weight_are_normal_with_covariance_c_over_u(last):
    """The last noise is turned into the same quantile of the Gamma of u given x_o."""
    X, location, covariance = incomplete()
    model = FAMILY.model(parameters_of(location, covariance))
    assert FAMILY.noise_width(4) == 5
    noise = torch.from_numpy(
        np.hstack([np.vstack([np.zeros(4), np.eye(4)]), np.full((5, 1), last)])
    )
    for row in X[:12]:
        o, completed, C, shape, rate = naive_given(row, location, covariance)
        group = group_of(row, 5)
        drawn = FAMILY.drawn(group, FAMILY.given(group, model), noise).numpy()
        np.testing.assert_allclose(drawn[0], completed, atol=1e-12)
        np.testing.assert_allclose(drawn[:, o], np.tile(row[o], (5, 1)), atol=1e-13)
        images = drawn[1:] - drawn[0]
        np.testing.assert_allclose(images[o], 0.0, atol=1e-13)
        u = stats.gamma(shape, scale=1 / rate).ppf(stats.norm.cdf(last))
        np.testing.assert_allclose(u * images.T @ images, C, atol=1e-9)


def test_draws_of_one_missing_cell_follow_the_conditional_t():
    """P(draw <= q), integrated over the noise, is that of nu + p_o degrees of freedom."""
    X, location, covariance = incomplete()
    model = FAMILY.model(parameters_of(location, covariance))
    nodes, masses = np.polynomial.legendre.leggauss(200)
    nodes, masses = 8 * nodes, 8 * masses * stats.norm.pdf(8 * nodes)
    noise = np.column_stack([np.ones((len(nodes), 4)), nodes])
    for row in X[np.isnan(X).sum(axis=1) == 1]:
        o, completed, C, shape, rate = naive_given(row, location, covariance)
        group = group_of(row, len(nodes))
        drawn = FAMILY.drawn(group, FAMILY.given(group, model), torch.from_numpy(noise)).numpy()
        spread = (drawn - completed)[:, ~o][:, 0]
        scale = np.sqrt(C[~o, ~o].item() * rate / shape)
        for q in (-3.0, -1.0, 0.5, 2.0):
            probability = masses @ stats.norm.cdf(q * scale / spread)
            assert probability == pytest.approx(stats.t(2 * shape).cdf(q), abs=1e-9)


def test_draws_from_the_ends_of_the_uniform_grid_are_finite():
    """The furthest noise that 52-bit uniforms can give is 8.21."""
    X, location, covariance = incomplete()
    model = FAMILY.model(parameters_of(location, covariance, LEAST_DEGREES))
    for last in (-8.2096, 8.2096):
        for group, rows in each_group(X):
            noise = torch.full((len(rows), 5), last, dtype=torch.float64)
            assert FAMILY.drawn(group, FAMILY.given(group, model), noise).isfinite().all()
