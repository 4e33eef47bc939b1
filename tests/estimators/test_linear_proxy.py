"""Linear models of weights against scikit-learn's."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, Ridge

from skbilevel.estimators.linear_proxy import (
    Sample,
    best_ridge,
    fitted,
    losses,
    margins,
    random_folds,
)
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
CODES = (X @ RNG.normal(size=(4, 3)) + RNG.normal(size=(60, 3))).argmax(axis=1)
CLASSES = Sample(X, np.eye(3)[CODES], np.ones(60))
NUMBERS = Sample(X, X[:, :1] + 0.3 * RNG.normal(size=(60, 1)), np.ones(60))
W = RNG.dirichlet(np.ones(60))


def test_squares_are_a_weighted_ridge_regression():
    model = Ridge(alpha=0.2, fit_intercept=False).fit(X, NUMBERS.Y, sample_weight=W)
    found = fitted(NUMBERS.weighted(W), SQUARED, 0.2)
    assert_allclose(found.ravel(), model.coef_.ravel(), rtol=1e-10)


def test_cross_entropy_is_a_weighted_logistic_regression():
    model = LogisticRegression(
        C=1 / 0.01, fit_intercept=False, tol=1e-10, max_iter=2000, solver="newton-cg"
    )
    model.fit(X, CODES, sample_weight=W)
    weighted = CLASSES.weighted(W)
    found = fitted(weighted, CROSS_ENTROPY, 0.01, tol=1e-10)
    assert_allclose(found.T, model.coef_, atol=1e-6 * np.abs(model.coef_).max())
    shares = model.predict_proba(X)[np.arange(60), CODES]
    assert_allclose(losses(CLASSES, found, CROSS_ENTROPY), -np.log(shares), rtol=1e-5)
    rough = fitted(weighted, CROSS_ENTROPY, 0.01)
    assert_allclose(rough, found, atol=2e-3 * np.abs(found).max())


def test_start_is_where_newton_starts_and_changes_nothing():
    """From the solution no step is taken: it is handed back as it is."""
    found = fitted(CLASSES, CROSS_ENTROPY, 0.01, tol=1e-10)
    assert_array_equal(fitted(CLASSES, CROSS_ENTROPY, 0.01, found), found)
    far = fitted(CLASSES, CROSS_ENTROPY, 0.01, found + 5.0, tol=1e-10)
    assert_allclose(far, found, rtol=1e-6)


def test_row_that_counts_twice_is_two_rows_and_the_scale_of_counts_says_nothing():
    counts = 1.0 + np.arange(60) % 3
    repeated = np.repeat(np.arange(60), counts.astype(int))
    for sample, loss in ((NUMBERS, SQUARED), (CLASSES, CROSS_ENTROPY)):
        expected = fitted(sample.at(repeated), loss, 0.1, tol=1e-12)
        for scale in (1.0, 1e-3, 1e3):
            found = fitted(sample.weighted(scale * counts), loss, 0.1, tol=1e-12)
            assert_allclose(found, expected, rtol=1e-9)
        assert np.abs(fitted(sample, loss, 0.1) - expected).max() > 5e-3


def test_rows_of_nothing_are_left_out_and_the_others_stay():
    half = np.where(np.arange(60) < 30, 1 / 30, 0.0)
    half[[31, 32]] = 1e-9 / 30, 1.1e-9 / 30
    kept = NUMBERS.weighted(half)
    assert_array_equal(kept.X, np.vstack([X[:30], X[32]]))
    assert_array_equal(kept.Y[-1], NUMBERS.Y[32])
    assert_array_equal(kept.counts, half[[*range(30), 32]])
    assert_allclose(
        fitted(kept, SQUARED, 0.1), fitted(NUMBERS.at(np.arange(30)), SQUARED, 0.1), rtol=1e-7
    )


def test_parts_and_unions_of_rows():
    counts = np.arange(1.0, 61.0)
    sample, fold = NUMBERS.weighted(counts), np.array([3, 0, 59])
    part, rest = sample.at(fold), sample.without(fold)
    assert_array_equal(part.counts, [4.0, 1.0, 60.0])
    assert_array_equal(part.Y, NUMBERS.Y[fold])
    assert_array_equal(rest.X, np.delete(X, fold, axis=0))
    assert_array_equal(rest.counts, np.delete(counts, fold))
    both = part.with_rows(rest)
    assert both.n_rows == 60
    assert_array_equal(both.X[[0, -1]], X[[3, 58]])
    assert_array_equal(both.counts[[0, -1]], [4.0, 59.0])
    assert_allclose(part.shares, np.array([4, 1, 60]) / 65, rtol=1e-15)


def test_losses_are_half_squares_and_minus_log_shares():
    theta = np.arange(12.0).reshape(4, 3) / 10
    outputs = X @ theta
    assert_allclose(
        losses(CLASSES, theta, CROSS_ENTROPY),
        logsumexp(outputs, axis=1) - outputs[np.arange(60), CODES],
        rtol=1e-13,
    )
    gap = X @ theta[:, :1] - NUMBERS.Y
    assert_allclose(losses(NUMBERS, theta[:, :1], SQUARED), gap[:, 0] ** 2 / 2, rtol=1e-13)


def test_margins_are_against_the_best_other_class():
    theta = fitted(CLASSES, CROSS_ENTROPY, 0.01)
    for row, label, margin in zip(X, CODES, margins(CLASSES, theta), strict=True):
        outputs = row @ theta
        expected = outputs[label] - np.delete(outputs, label).max()
        assert margin == pytest.approx(expected, rel=1e-12)


def test_folds_hold_every_row_once_and_are_as_many_as_rows_if_these_are_fewer():
    folds = random_folds(11, 4, np.random.RandomState(0))
    assert sorted(len(fold) for fold in folds) == [2, 3, 3, 3]
    assert_array_equal(np.sort(np.concatenate(folds)), np.arange(11))
    assert not all((np.diff(fold) > 0).all() for fold in folds)
    assert [len(fold) for fold in random_folds(2, 4, np.random.RandomState(0))] == [1, 1]


@pytest.mark.parametrize("seed", range(6))
def test_best_ridge_is_that_of_the_least_loss_out_of_fold(seed):
    """Rows of one fold count ten times as much as others."""
    rng = np.random.default_rng(seed)
    counts, folds = rng.integers(1, 4, size=20), np.array_split(np.arange(20), 4)
    counts[folds[2]] *= 10
    rows, ridges = rng.normal(size=(20, 4)), (1e-2, 1e-4, 1.0, 0.1)
    Y = rows[:, :1] + rng.normal(size=(20, 1))
    total = np.zeros(4)
    for number, ridge in enumerate(ridges):
        for fold in folds:
            seen = np.setdiff1d(np.arange(20), fold)
            model = Ridge(alpha=ridge * counts[seen].sum(), fit_intercept=False)
            told = model.fit(rows[seen], Y[seen], sample_weight=counts[seen]).predict(rows[fold])
            total[number] += counts[fold] @ np.square(told.ravel() - Y[fold, 0])
    found = best_ridge(Sample(rows, Y, counts.astype(float)), SQUARED, ridges, folds)
    best = ridges[int(np.argmin(total))]
    assert found.ridge == best
    for fold, theta in zip(folds, found.thetas, strict=True):
        seen = np.setdiff1d(np.arange(20), fold)
        model = Ridge(alpha=best * counts[seen].sum(), fit_intercept=False)
        model.fit(rows[seen], Y[seen, 0], sample_weight=counts[seen])
        assert_allclose(theta[:, 0], model.coef_, rtol=1e-8)


def test_best_ridge_is_weak_where_numbers_are_sure_and_strong_where_they_are_noise():
    folds, ridges = np.array_split(np.arange(60), 4), (1e-2, 1e-4, 1.0)
    assert best_ridge(NUMBERS, SQUARED, ridges, folds).ridge < 1
    noise = Sample(X, RNG.normal(size=(60, 1)), np.ones(60))
    assert best_ridge(noise, SQUARED, ridges, folds).ridge == 1.0


def test_best_ridge_of_classes_is_weak_where_labels_are_sure_and_strong_where_they_are_noise():
    folds, ridges = random_folds(60, 3, np.random.RandomState(0)), (1e-3, 1e-1, 10.0)
    sure = Sample(X, np.eye(2)[(X[:, 0] > 0).astype(int)], np.ones(60))
    noise = Sample(X, np.eye(2)[RNG.integers(2, size=60)], np.ones(60))
    assert best_ridge(sure, CROSS_ENTROPY, ridges, folds).ridge == 1e-3
    assert best_ridge(noise, CROSS_ENTROPY, ridges, folds).ridge == 10.0
