"""Linear models of weights against scikit-learn's."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression, Ridge

from skbilevel.estimators.linear_proxy import Sample, best_ridge, fitted, losses, margins
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
CODES = (X @ RNG.normal(size=(4, 3)) + RNG.normal(size=(60, 3))).argmax(axis=1)
CLASSES = Sample(X, np.eye(3)[CODES])
NUMBERS = Sample(X, X[:, :1] + 0.3 * RNG.normal(size=(60, 1)))
W = RNG.dirichlet(np.ones(60))


def test_squares_are_a_weighted_ridge_regression():
    model = Ridge(alpha=0.2, fit_intercept=False).fit(X, NUMBERS.Y, sample_weight=W)
    assert_allclose(fitted(NUMBERS, SQUARED, 0.2, W).ravel(), model.coef_.ravel(), rtol=1e-8)


def test_cross_entropy_is_a_weighted_logistic_regression():
    model = LogisticRegression(C=1 / 0.01, fit_intercept=False, tol=1e-10, max_iter=2000)
    model.fit(X, CODES, sample_weight=W)
    found = fitted(CLASSES, CROSS_ENTROPY, 0.01, W)
    assert_allclose(found.T, model.coef_, atol=2e-3 * np.abs(model.coef_).max())
    shares = model.predict_proba(X)[np.arange(60), CODES]
    assert_allclose(losses(CLASSES, found, CROSS_ENTROPY), -np.log(shares), atol=5e-3)


def test_equal_weights_are_the_default_and_those_of_nothing_are_left_out():
    equal = fitted(NUMBERS, SQUARED, 0.1)
    assert_allclose(fitted(NUMBERS, SQUARED, 0.1, np.full(60, 1 / 60)), equal, rtol=1e-12)
    half = np.where(np.arange(60) < 30, 1 / 30, 0.0)
    assert_allclose(
        fitted(NUMBERS, SQUARED, 0.1, half),
        fitted(NUMBERS.at(np.arange(30)), SQUARED, 0.1),
        rtol=1e-10,
    )


def test_margins_are_against_the_best_other_class():
    theta = fitted(CLASSES, CROSS_ENTROPY, 0.01)
    for row, label, margin in zip(X, CODES, margins(CLASSES, theta), strict=True):
        outputs = row @ theta
        assert margin == pytest.approx(outputs[label] - np.delete(outputs, label).max())


def test_best_ridge_is_that_of_the_least_loss_out_of_fold():
    folds = np.array_split(np.arange(60), 4)
    ridges = (1e-4, 1e-2, 1.0)
    total = []
    for ridge in ridges:
        each = []
        for fold in folds:
            seen = np.setdiff1d(np.arange(60), fold)
            model = Ridge(alpha=ridge * len(seen), fit_intercept=False)
            told = model.fit(X[seen], NUMBERS.Y[seen]).predict(X[fold])
            each.append(np.square(told.reshape(-1, 1) - NUMBERS.Y[fold]).sum() / 2)
        total.append(sum(each))
    assert best_ridge(NUMBERS, SQUARED, ridges, folds) == ridges[int(np.argmin(total))]
    noise = Sample(X, RNG.normal(size=(60, 1)))
    assert best_ridge(noise, SQUARED, ridges, folds) == 1.0
