"""Cross-fitted linear moments: against loops, and on a design whose gradient is known."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators.moment_fit import Nuisances, moment_fit, smoothed
from skbilevel.estimators.smoother import KernelFeatures, fit_smoother
from skbilevel.objectives.orthogonal import moment_score

N, P = 60, 2
OMEGA = np.array([0.3, -0.8])
NONE = np.zeros((P + 1, P + 1))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, 4))
    D = features[:, :P] + rng.normal(size=(N, P))
    y = D @ [1.0, 2.0] + rng.normal(size=N)
    return features, y, D, np.array_split(rng.permutation(N), 4)


def test_scores_are_those_of_a_conditional_moment(rows):
    features, y, D, folds = rows
    told = smoothed(features, y, D, folds, second_order=False)
    assert_array_equal(told.shared, 0)
    tensors = told.kappa @ OMEGA - told.mu, told.kappa, D @ OMEGA - y, D
    expected = moment_score(*map(torch.from_numpy, tensors))
    fit = moment_fit(y, D, told)
    assert_allclose(fit.scores(OMEGA), expected, rtol=1e-10, atol=1e-12)
    gradient = fit.gradient(OMEGA)
    assert_allclose(gradient.scores_, expected, rtol=1e-10, atol=1e-12)
    assert_allclose(gradient.coef_, expected.mean(dim=0), rtol=1e-10)
    centred = expected.numpy() - gradient.coef_
    assert_allclose(gradient.cov_, centred.T @ centred / (N - 1) / N, rtol=1e-10)


def test_root_has_no_gradient_and_the_covariance_of_an_estimating_equation(rows):
    features, y, D, folds = rows
    fit = moment_fit(y, D, smoothed(features, y, D, folds))
    omega, covariance = fit.root()
    gradient = fit.gradient(omega)
    assert_allclose(gradient.coef_, 0, atol=1e-12)
    inverse = np.linalg.inv(fit.matrix)
    assert_allclose(covariance, inverse @ gradient.cov_ @ inverse.T, rtol=1e-10)


def test_rows_are_told_by_models_that_have_not_seen_them(rows):
    features, y, D, folds = rows
    told = smoothed(features, y, D, folds)
    for fold in folds:
        rest = np.setdiff1d(np.arange(N), fold)
        smoother = fit_smoother(features[rest], np.column_stack([y, D])[rest])
        expected = smoother.predict(smoother.coordinates(features[fold]))
        assert_allclose(np.column_stack([told.mu, told.kappa])[fold], expected, rtol=1e-12)
        other = y.copy()
        other[fold] = 100.0
        again = smoothed(features, other, D, folds)
        assert_array_equal(again.mu[fold], told.mu[fold])
        assert np.abs(again.mu[rest] - told.mu[rest]).max() > 1


def test_shared_noise_is_the_mean_over_rows_of_all_folds(rows):
    features, y, D, _ = rows
    folds, outputs = [np.arange(10), np.arange(10, N)], np.column_stack([y, D])
    total = np.zeros((P + 1, P + 1))
    for fold in folds:
        rest = np.setdiff1d(np.arange(N), fold)
        smoother = fit_smoother(features[rest], outputs[rest])
        at = smoother.coordinates(features[fold])
        for one in range(P + 1):
            for other in range(P + 1):
                weights = smoother.weights(at, one) * smoother.weights(at, other)
                noise = smoother.noise[:, one] * smoother.noise[:, other]
                total[one, other] += (weights @ noise).sum() / N
    assert_allclose(smoothed(features, y, D, folds).shared, total, rtol=1e-9)


def test_second_order_correction_goes_to_products_of_nuisances(rows):
    features, y, D, folds = rows
    told = smoothed(features, y, D, folds)
    plain = moment_fit(y, D, Nuisances(told.mu, told.kappa, NONE))
    fit = moment_fit(y, D, told)
    assert_allclose(fit.matrix - plain.matrix, told.shared[1:, 1:], rtol=1e-8)
    gap = fit.scores(OMEGA) - plain.scores(OMEGA)
    expected = told.shared[1:, 1:] @ OMEGA - told.shared[1:, 0]
    assert_allclose(gap, np.broadcast_to(expected, gap.shape), rtol=1e-8, atol=1e-10)


def test_singular_matrix_has_no_root(rows):
    _, y, D, _ = rows
    exact = Nuisances(y, np.column_stack([D[:, 0], D[:, 0]]), NONE)
    fit = moment_fit(y, np.column_stack([D[:, 0], D[:, 0]]), exact)
    with pytest.raises(np.linalg.LinAlgError):
        fit.root()


def instrumental(n, seed):
    """T is told by X, and noisy together with the outcome; E[(1, T, T^2) | X] is known."""
    r = np.random.default_rng(seed)
    X = r.uniform(-1, 1, (n, 2))
    U, V, e = r.standard_normal((3, n))
    g = np.sin(np.pi * X[:, 0]) + X[:, 1]
    t = g + 0.4 * U + 0.3 * V
    D, K = (np.column_stack([np.ones(n), a, b]) for a, b in ((t, t**2), (g, g**2 + 0.25)))
    return X, D @ [0.5, 1.0, -1.5] + U + 0.5 * e, D, K


@pytest.fixture(scope="module")
def repeated():
    """Of 60 draws of 500 rows the gradients at 0 and their errors, by what is told of rows."""
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 9)]), axis=-1).reshape(-1, 2)
    kernel, found = KernelFeatures.of(grid, 0.6), {"oracle": [], "second": [], "plug-in": []}
    for seed in range(60):
        X, y, D, K = instrumental(500, seed)
        folds = np.array_split(np.random.default_rng(seed).permutation(500), 5)
        told = smoothed(kernel(X), y, D, folds)
        exact = Nuisances(K @ [0.5, 1.0, -1.5], K, np.zeros((4, 4)))
        for name, nuisances in (("oracle", exact), ("second", told)):
            gradient = moment_fit(y, D, nuisances).gradient(np.zeros(3))
            found[name].append((gradient.coef_, gradient.stderr_))
        rows = -told.mu[:, None] * told.kappa
        found["plug-in"].append((rows.mean(axis=0), rows.std(axis=0, ddof=1) / np.sqrt(500)))
    return {name: np.array(each) for name, each in found.items()}


TRUTH = np.array([1.125, -5 / 6, 2.5396])


def coverage(each):
    """Of 95 % intervals of the two gradients that have a nuisance."""
    inside = np.abs(each[:, 0] - TRUTH) <= 1.96 * each[:, 1]
    return inside[:, 1:].mean()


def test_intervals_cover_as_they_say_and_those_of_a_plug_in_do_not(repeated):
    """120 intervals: .95 less three standard errors is .89."""
    assert coverage(repeated["oracle"]) >= 0.89
    assert coverage(repeated["second"]) >= 0.89
    assert coverage(repeated["plug-in"]) < 0.87


def test_error_is_about_that_of_one_who_knows_the_nuisances(repeated):
    squares = {name: np.square(each[:, 0] - TRUTH).sum() for name, each in repeated.items()}
    assert np.sqrt(squares["second"] / squares["oracle"]) < 1.1
