"""The gate finds wrong labels of digits, and what judges it has not been seen."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from skbilevel.estimators import label_gate
from skbilevel.estimators.label_gate import fit_label_gate, with_target
from skbilevel.estimators.linear_proxy import Sample, fitted
from skbilevel.objectives.linear_loss import CROSS_ENTROPY

RIDGE = 1e-4


@pytest.fixture(scope="module")
def digits():
    """500 test rows, 150 clean target rows, and the others, four fifths with a wrong label."""
    X, y = load_digits(return_X_y=True)
    X = X / np.sqrt((X**2).sum(axis=1).mean())
    X = np.hstack([X, np.full((len(X), 1), 0.3)])
    r = np.random.RandomState(40)
    order = r.permutation(len(X))
    X, labels = X[order], y[order]
    noisy = labels.copy()
    is_wrong = r.random_sample(len(X)) < 0.8
    noisy[is_wrong] = (labels + r.randint(1, 10, len(X)))[is_wrong] % 10
    train = Sample(X[650:], np.eye(10)[noisy[650:]])
    target = Sample(X[500:650], np.eye(10)[labels[500:650]])
    return X[:500], labels[:500], train, target, is_wrong[650:]


@pytest.fixture(scope="module")
def gated(digits):
    return fit_label_gate(*digits[2:4], RIDGE, np.random.RandomState(0))


def test_weights_are_on_right_labels_and_as_even_as_those_of_an_oracle(digits, gated):
    is_wrong, w = digits[4], gated.weights
    assert w.sum() == pytest.approx(1, rel=1e-12)
    assert w[~is_wrong].sum() > 0.93
    assert roc_auc_score(~is_wrong, w) > 0.97
    entropy = -np.sum(w * np.log(w))
    assert abs(entropy - np.log((~is_wrong).sum())) < 0.25
    assert (gated.phi[1:] > 0.5).all()


def test_weighted_rows_and_target_rows_do_better_than_either_alone(digits, gated):
    X_test, y_test, train, target, is_wrong = digits

    def accuracy(theta):
        return np.mean((X_test @ theta).argmax(axis=1) == y_test)

    both = with_target(gated.weights, len(target.X))
    found = accuracy(fitted(train.with_rows(target), CROSS_ENTROPY, RIDGE, both))
    assert found > accuracy(fitted(target, CROSS_ENTROPY, 1e-5)) + 0.005
    assert found > accuracy(fitted(train, CROSS_ENTROPY, RIDGE)) + 0.2
    right = with_target(~is_wrong / (~is_wrong).sum(), len(target.X))
    oracle = accuracy(fitted(train.with_rows(target), CROSS_ENTROPY, RIDGE, right))
    assert found > oracle - 0.03


def test_rows_that_judge_a_fold_are_in_none_of_its_features(digits, monkeypatch):
    """Labels of the fold may be anything: what the weights are made of stays as it was."""
    train, target = digits[2].at(np.arange(200)), digits[3].at(np.arange(60))
    seen = []
    real = label_gate._features

    def spy(train, target, index, graph, ridge):
        features = real(train, target, index, graph, ridge)
        hidden = np.setdiff1d(np.arange(len(target.X)), index)
        other = target.Y.copy()
        other[hidden] = np.roll(other[hidden], 1, axis=1)
        again = real(train, Sample(target.X, other), index, graph, ridge)
        seen.append((len(hidden), float((features - again).abs().max())))
        return features

    monkeypatch.setattr(label_gate, "_features", spy)
    fit_label_gate(train, target, RIDGE, np.random.RandomState(0))
    assert sorted(seen) == [(0, 0.0), (20, 0.0), (20, 0.0), (20, 0.0)]


def test_target_rows_count_as_rows_of_the_effective_size():
    weights = np.array([0.5, 0.5, 0.0, 0.0])
    assert_allclose(with_target(weights, 2), np.array([1, 1, 0, 0, 1, 1]) / 4)
