"""The smoother against dense ridge regressions, and its weights against its predictions."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Ridge

from skbilevel.estimators.smoother import (
    RIDGES,
    Axes,
    Echo,
    Gram,
    KernelFeatures,
    Products,
    fitted_smoother,
)

N, Q, K = 60, 7, 3


def fit(features, Y, ridges=RIDGES, undersmooth=1.0, weights=None):
    axes = Axes.of(Gram.of(features, weights))
    return fitted_smoother(axes, Products.of(features, Y, weights), ridges, undersmooth)


def noise_of(found, features, Y):
    """Residuals without the row's own part in its prediction, from the weights."""
    noise = np.empty_like(Y)
    for output in range(Y.shape[1]):
        hat = found.weights(features, features, output)
        residuals = Y[:, output] - hat @ Y[:, output]
        noise[:, output] = residuals / np.sqrt(1 - np.diag(hat))
    return noise


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
    found = fit(features, Y)
    told = found.predict(new)
    for output in range(K):
        model = Ridge(alpha=N * found.ridges[output], tol=1e-12, solver="svd")
        assert_allclose(told[:, output], model.fit(features, Y[:, output]).predict(new), rtol=1e-7)


def test_ridges_have_the_least_generalised_cross_validation_error(data):
    features, Y, _ = data
    centred, found = features - features.mean(axis=0), fit(features, Y)
    for output in range(K):
        errors = []
        for ridge in RIDGES:
            inner = np.linalg.inv(centred.T @ centred + N * ridge * np.eye(Q))
            hat = centred @ inner @ centred.T + 1 / N
            residuals = Y[:, output] - hat @ Y[:, output]
            errors.append(N * residuals @ residuals / (N - np.trace(hat)) ** 2)
        assert found.ridges[output] == RIDGES[int(np.argmin(errors))]
    assert len(set(found.ridges)) > 1
    assert_allclose(fit(features, Y, undersmooth=0.1).ridges, 0.1 * found.ridges)


def test_sums_of_parts_are_those_of_all_rows(data):
    features, Y, new = data
    parts = np.split(np.arange(N), [7, 30])
    gram = sum((Gram.of(features[p]) for p in parts[1:]), Gram.of(features[parts[0]]))
    products = Products.of(features[parts[0]], Y[parts[0]])
    for part in parts[1:]:
        products = products + Products.of(features[part], Y[part])
    found = fitted_smoother(Axes.of(gram), products)
    assert_allclose(found.predict(new), fit(features, Y).predict(new), rtol=1e-9)


def test_a_weight_of_two_is_a_row_twice(data):
    features, Y, new = data
    weights = np.where(np.arange(N) < 20, 2.0, 1.0)
    twice = np.concatenate([np.arange(20), np.arange(N)])
    weighted, repeated = fit(features, Y, weights=weights), fit(features[twice], Y[twice])
    assert_array_equal(weighted.ridges, repeated.ridges)
    assert_allclose(weighted.predict(new), repeated.predict(new), rtol=1e-9)
    assert np.abs(weighted.predict(new) - fit(features, Y).predict(new)).max() > 1e-3


def test_weights_are_what_training_rows_have_in_a_prediction(data):
    features, Y, new = data
    found = fit(features, Y)
    for output in range(K):
        weights = found.weights(new, features, output)
        assert weights.shape == (9, N)
        assert_allclose(weights @ Y[:, output], found.predict(new)[:, output], rtol=1e-9)
        assert_allclose(weights.sum(axis=1), 1, rtol=1e-10)


def test_echo_is_the_mean_of_sums_over_training_rows(data):
    features, Y, new = data
    found = fit(features, Y)
    noise, expected = noise_of(found, features, Y), np.zeros((K, K))
    for one in range(K):
        for other in range(K):
            each = [found.weights(new, features, output) for output in (one, other)]
            expected[one, other] = (each[0] * each[1] @ (noise[:, one] * noise[:, other])).mean()
    echo, residuals = Echo.of(found, Gram.of(new)), Y - found.predict(features)
    assert_allclose(echo.of_rows(features, residuals), expected, rtol=1e-6)
    assert np.abs(expected).min() > 0
    parts = [echo.of_rows(features[p], residuals[p]) for p in (slice(13), slice(13, None))]
    assert_allclose(sum(parts), echo.of_rows(features, residuals), rtol=1e-10)


def test_echo_leaves_out_axes_that_weights_hardly_use(data):
    """Of features that differ by rounding, and of those whose variance no ridge lets through."""
    features, Y, new = data
    small = np.hstack([features, 1e-7 * np.random.default_rng(3).normal(size=(N, 5))])
    at = np.hstack([new, np.zeros((9, 5))])
    found, plain = fit(small, Y), fit(features, Y)
    echo = Echo.of(found, Gram.of(at))
    assert echo.axes.axes.shape[1] == Q
    expected = Echo.of(plain, Gram.of(new)).of_rows(features, Y - plain.predict(features))
    assert_allclose(echo.of_rows(small, Y - found.predict(small)), expected, rtol=1e-5)


def test_leverage_of_a_row_that_is_fitted_exactly_is_bounded():
    rng = np.random.default_rng(2)
    features = np.eye(10) + 1e-3 * rng.normal(size=(10, 10))
    Y = rng.normal(size=(10, 1))
    found = fit(features, Y, ridges=[1e-9])
    echo = Echo.of(found, Gram.of(features)).of_rows(features, Y - found.predict(features))
    assert np.isfinite(echo).all()


def test_products_of_weights_are_what_the_product_of_two_smooths_expects_too_much(data):
    """Over all outcomes of the noise of three training rows, whose outputs are noisy together."""
    features, _, new = data
    found = fit(features[:3], features[:3, :2], ridges=[0.7])
    noise, means = np.array([[1.0, 0.7], [-0.5, 1.5], [2.0, -0.2]]), features[:3, 3:5]
    one, other = (found.weights(new, features[:3], output) for output in range(2))
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
    found = fit(features, np.full((N, 1), 2.5))
    assert_allclose(found.predict(new), 2.5, rtol=1e-12)


def test_more_features_than_rows_and_a_feature_twice_are_no_trouble(data):
    features, Y, new = data
    wide = np.hstack([features, features, features[:, :2] @ np.ones((2, 60))])[:20]
    found = fit(wide, Y[:20])
    assert np.isfinite(found.predict(wide)).all()
    twice = fit(np.hstack([features, features]), Y, ridges=[2e-3])
    once = fit(np.sqrt(2) * features, Y, ridges=[2e-3])
    told = twice.predict(np.hstack([new, new]))
    assert_allclose(told, once.predict(np.sqrt(2) * new), rtol=1e-8)
    assert_array_equal(twice.ridges, 2e-3)


def test_where_every_ridge_uses_up_the_rows_the_strongest_is_taken():
    rng = np.random.default_rng(4)
    features, Y = np.eye(4) * 1e3 + rng.normal(size=(4, 4)), rng.normal(size=(4, 2))
    # Rows that count a tenth each are fewer than any fit has degrees of freedom.
    found = fit(features, Y, [1e-2, 1e8], weights=np.full(4, 0.1))
    assert_array_equal(found.ridges, 1e8)
