import numpy as np
import pytest
from scipy import stats

from skbilevel.datasets import make_correlated_gaussian, make_low_rank, make_ring


def low_rank_design(n, d, seed, p=0.3):
    """Transcription of the benchmark's text; its mask is True where MISSING."""
    r = np.random.RandomState(seed)
    U = r.randn(n, 5)
    V = r.randn(5, d)
    X = U @ V + 0.3 * np.sqrt(5) * r.randn(n, d)
    mu, sd = X.mean(0), X.std(0)
    X = (X - mu) / sd
    M = r.random_sample(X.shape) < p
    return X, M, -mu / sd, (V.T @ V + 0.45 * np.eye(d)) / np.outer(sd, sd)


@pytest.mark.parametrize(("n", "d", "seed"), [(60, 20, 0), (80, 100, 0), (200, 20, 3)])
def test_low_rank_is_the_design_of_the_benchmark_to_the_bit(n, d, seed):
    X, missing, location, covariance = low_rank_design(n, d, seed)
    data = make_low_rank(n, d, random_state=seed)
    np.testing.assert_array_equal(data.X, X)
    np.testing.assert_array_equal(data.mask, ~missing)
    np.testing.assert_array_equal(data.location, location)
    np.testing.assert_allclose(data.covariance, covariance, rtol=1e-14)


def test_low_rank_columns_are_standardised():
    X = make_low_rank(300, 7, random_state=0).X
    np.testing.assert_allclose(X.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(X.std(axis=0), 1, atol=1e-12)


def test_low_rank_parameters_are_the_limit_of_the_sample_moments():
    data = make_low_rank(200_000, 4, random_state=0)
    np.testing.assert_allclose(data.location, 0, atol=0.01)
    np.testing.assert_allclose(data.covariance, np.cov(data.X.T), atol=0.015)


def test_low_rank_without_noise_has_that_rank():
    data = make_low_rank(50, 12, rank=3, noise=0.0, random_state=0)
    assert np.linalg.matrix_rank(data.covariance) == 3
    centered = data.X - data.location
    assert np.linalg.matrix_rank(centered) == 3


def test_noise_is_relative_to_the_signal():
    data = make_low_rank(100_000, 30, rank=8, noise=0.5, random_state=0)
    smallest = np.linalg.eigvalsh(data.covariance)[0]
    largest_rest = np.linalg.eigvalsh(data.covariance)[: 30 - 8].max()
    noise = 8 * 0.25  # in units where the mean signal variance of a column is 8
    assert smallest <= noise / (8 + noise) * 3 and largest_rest >= noise / (8 + noise) / 3


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.9])
def test_low_rank_mask_has_the_missing_rate_and_leaves_the_data_alone(rate):
    data = make_low_rank(2_000, 10, missing_rate=rate, random_state=0)
    assert abs(1 - data.mask.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / data.mask.size)
    np.testing.assert_array_equal(data.X, make_low_rank(2_000, 10, random_state=0).X)


def test_correlated_gaussian_is_one_call_of_the_generator():
    r = np.random.default_rng(4)
    expected = r.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 500)
    np.testing.assert_array_equal(make_correlated_gaussian(random_state=4), expected)
    r = np.random.default_rng(4)
    np.testing.assert_array_equal(make_correlated_gaussian(random_state=r), expected)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.8])
def test_correlated_gaussian_has_unit_variances_and_that_correlation(correlation):
    X = make_correlated_gaussian(100_000, correlation=correlation, random_state=0)
    expected = [[1, correlation], [correlation, 1]]
    np.testing.assert_allclose(np.cov(X.T), expected, atol=0.02)
    np.testing.assert_allclose(X.mean(axis=0), 0, atol=0.02)


def test_ring_is_angles_then_radii():
    r = np.random.default_rng(4)
    t = r.uniform(0, 2 * np.pi, 1500)
    R = r.normal(4.5, 0.5, 1500)
    expected = np.array([R * np.cos(t), R * np.sin(t)]).T
    np.testing.assert_array_equal(make_ring(random_state=4), expected)


def test_ring_has_normal_radii_and_uniform_angles():
    X = make_ring(5_000, radius=3.0, noise=0.2, random_state=0)
    assert stats.kstest(np.hypot(*X.T), stats.norm(3.0, 0.2).cdf).pvalue > 0.01
    angle = np.arctan2(X[:, 1], X[:, 0])
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01


@pytest.mark.parametrize("make", [make_correlated_gaussian, make_ring])
def test_without_a_seed_two_draws_differ(make):
    assert not np.array_equal(make(5), make(5))
