"""The smoother against dense ridge regressions, and its weights against its predictions."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Ridge

from skbilevel.estimators.smoother import RIDGES, KernelFeatures, fit_smoother

N, Q, K = 60, 7, 3


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, Q)) @ rng.normal(size=(Q, Q)) + 3
    slopes = rng.normal(size=(Q, K)) * [1.0, 0.1, 0.0]
    return features, features @ slopes + rng.normal(size=(N, K)), rng.normal(size=(9, Q))


def test_features_have_the_kernel_as_their_products():
    rng = np.random.default_rng(1)
    centres, X = rng.normal(size=(12, 2)), rng.normal(size=(5, 2))
    features = KernelFeatures.of(centres, 0.8)
    at_centres = features(centres)
    squared = ((X[:, None] - centres) ** 2).sum(axis=2)
    assert_allclose(features(X) @ at_centres.T, np.exp(-squared / (2 * 0.64)), atol=1e-6)
    # A centre that is there twice adds nothing.
    again = KernelFeatures.of(np.vstack([centres, centres[:3]]), 0.8)(X)
    assert again.shape == (5, at_centres.shape[1])
    assert_allclose(again @ again.T, features(X) @ features(X).T, atol=1e-6)


def test_predictions_are_those_of_ridge_regressions_of_each_output(data):
    features, Y, new = data
    found = fit_smoother(features, Y)
    told = found.predict(found.coordinates(new))
    for output in range(K):
        model = Ridge(alpha=N * found.ridges[output], tol=1e-12, solver="svd")
        assert_allclose(told[:, output], model.fit(features, Y[:, output]).predict(new), rtol=1e-7)


def test_ridges_have_the_least_generalised_cross_validation_error(data):
    features, Y, _ = data
    centred, found = features - features.mean(axis=0), fit_smoother(features, Y)
    for output in range(K):
        errors = []
        for ridge in RIDGES:
            inner = np.linalg.inv(centred.T @ centred + N * ridge * np.eye(Q))
            hat = centred @ inner @ centred.T + 1 / N
            residuals = Y[:, output] - hat @ Y[:, output]
            errors.append(N * residuals @ residuals / (N - np.trace(hat)) ** 2)
        assert found.ridges[output] == RIDGES[int(np.argmin(errors))]
    assert len(set(found.ridges)) > 1
    assert_allclose(fit_smoother(features, Y, undersmooth=0.1).ridges, 0.1 * found.ridges)


def test_weights_are_what_training_rows_have_in_a_prediction(data):
    features, Y, new = data
    found = fit_smoother(features, Y)
    at = found.coordinates(new)
    for output in range(K):
        weights = found.weights(at, output)
        assert weights.shape == (9, N)
        assert_allclose(weights @ Y[:, output], found.predict(at)[:, output], rtol=1e-9)
        assert_allclose(weights.sum(axis=1), 1, rtol=1e-10)


def test_noise_is_the_residual_over_what_leverage_leaves(data):
    features, Y, _ = data
    found = fit_smoother(features, Y)
    for output in range(K):
        hat = found.weights(found.train, output)
        residuals = Y[:, output] - hat @ Y[:, output]
        assert_allclose(
            found.noise[:, output], residuals / np.sqrt(1 - np.diag(hat)), rtol=1e-8, atol=1e-12
        )


def test_leverage_of_a_row_that_is_fitted_exactly_is_bounded():
    rng = np.random.default_rng(2)
    features = np.eye(10) + 1e-3 * rng.normal(size=(10, 10))
    found = fit_smoother(features, rng.normal(size=(10, 1)), ridges=[1e-9])
    assert np.isfinite(found.noise).all()


def test_shared_noise_is_the_mean_of_sums_over_training_rows(data):
    features, Y, new = data
    found = fit_smoother(features, Y)
    at = found.coordinates(new)
    expected = np.zeros((K, K))
    for one in range(K):
        for other in range(K):
            weights = found.weights(at, one) * found.weights(at, other)
            shared = found.noise[:, one] * found.noise[:, other]
            expected[one, other] = (weights @ shared).mean()
    assert_allclose(found.shared_noise(at), expected, rtol=1e-9)
    assert np.abs(expected).min() > 0


def test_products_of_weights_are_what_the_product_of_two_smooths_expects_too_much(data):
    """Over all outcomes of the noise of three training rows, whose outputs are noisy together."""
    features, _, new = data
    found = fit_smoother(features[:3], features[:3, :2], ridges=[0.7])
    at = found.coordinates(new)
    noise, means = np.array([[1.0, 0.7], [-0.5, 1.5], [2.0, -0.2]]), features[:3, 3:5]
    one, other = (found.weights(at, output) for output in range(2))
    of_product, of_sum = np.zeros(len(new)), np.zeros(len(new))
    for signs in product([-1.0, 1.0], repeat=3):
        e = np.array(signs)[:, None] * noise
        of_product += (one @ (means + e)[:, 0]) * (other @ (means + e)[:, 1]) / 8
        of_sum += (one * other) @ (e[:, 0] * e[:, 1]) / 8
    expected = (one @ means[:, 0]) * (other @ means[:, 1])
    assert_allclose(of_product - of_sum, expected, rtol=1e-10)
    assert np.abs(of_sum).min() > 1e-3


def test_constant_output_is_its_mean(data):
    features, _, new = data
    found = fit_smoother(features, np.full((N, 1), 2.5))
    assert_allclose(found.predict(found.coordinates(new)), 2.5, rtol=1e-12)
    assert_allclose(found.noise, 0, atol=1e-12)


def test_more_features_than_rows_and_a_feature_twice_are_no_trouble(data):
    features, Y, new = data
    wide = np.hstack([features, features, features[:, :2] @ np.ones((2, 60))])[:20]
    found = fit_smoother(wide, Y[:20])
    assert np.isfinite(found.predict(found.coordinates(wide))).all()
    twice = fit_smoother(np.hstack([features, features]), Y, ridges=[2e-3])
    once = fit_smoother(np.sqrt(2) * features, Y, ridges=[2e-3])
    told = twice.predict(twice.coordinates(np.hstack([new, new])))
    assert_allclose(told, once.predict(once.coordinates(np.sqrt(2) * new)), rtol=1e-8)
    assert_array_equal(twice.ridges, 2e-3)
