"""The weight of a row that was not there: that of the training row which it is like."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from skbilevel.estimators.density_weights import fit_groups, fit_log_linear
from skbilevel.estimators.label_gate import fit_label_gate
from skbilevel.estimators.linear_proxy import Sample
from skbilevel.estimators.loss_gate import fit_loss_gate
from skbilevel.estimators.weight_rules import log_weights
from skbilevel.estimators.weight_task import Task
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED

N, M, P, K = 240, 60, 3, 3


def numbers_of(seed=0):
    """Rows with a constant, of which half have coefficients of another sign; 100 more of each."""
    r = np.random.RandomState(seed)
    theta = np.array([1.0, -2.0, 0.5])
    is_right = np.arange(N) % 2 == 0
    is_fresh_right = np.arange(200) % 2 == 0

    def sample(right):
        X = r.randn(len(right), P)
        y = np.where(right, 1, -1) * (X @ theta) + 0.2 * r.randn(len(right))
        counts = 1.0 + np.arange(len(right)) % 3
        return Sample(np.column_stack([X, np.ones(len(X))]), y[:, None], counts)

    train, target, fresh = map(sample, (is_right, np.full(M, True), is_fresh_right))
    groups = np.where(is_right, np.arange(N) % 4 // 2, 2)
    task = Task(train, target, SQUARED, 1e-4, True, groups, None, 0)
    return task, is_right, fresh, is_fresh_right


def labels_of(seed=0):
    """Rows of three clusters, of which half have the label of another; 200 more."""
    r = np.random.RandomState(seed)
    centres = 3 * r.randn(K, 2)

    def sample(right):
        codes = r.randint(K, size=len(right))
        X = (centres[codes] + r.randn(len(codes), 2)) / 5
        told = np.where(right, codes, (codes + r.randint(1, K, len(codes))) % K)
        counts = 1.0 + np.arange(len(right)) % 3
        return Sample(np.column_stack([X, np.full(len(X), 0.3)]), np.eye(K)[told], counts)

    is_right, is_fresh_right = (r.rand(n) < 0.5 for n in (N, 200))
    train, target, fresh = map(sample, (is_right, np.full(M, True), is_fresh_right))
    task = Task(train, target, CROSS_ENTROPY, 1e-4, True, np.zeros(N, int), None, 0)
    return task, is_right, fresh, is_fresh_right


def by_rule(fit, rows, groups=None):
    """In units of an average training row."""
    groups = np.full(rows.n_rows, -1) if groups is None else groups
    return np.exp(log_weights(fit.rule, rows, rows.X[:, :-1], groups))


@pytest.mark.parametrize("fit", [fit_log_linear, fit_groups])
def test_weights_of_training_rows_are_those_that_were_learnt(fit):
    task, *_ = numbers_of()
    found = fit(task, 0.01)
    relative = by_rule(found, task.train, task.groups)
    assert_allclose(task.train.shares * relative, found.weights, rtol=1e-9)
    assert np.ptp(relative) > 0.3


@pytest.mark.parametrize(
    ("fit", "make", "least"), [(fit_loss_gate, numbers_of, 0.99), (fit_label_gate, labels_of, 0.9)]
)
@pytest.mark.parametrize("seed", range(3))
def test_weights_of_training_rows_are_near_those_that_were_learnt_without_them(
    fit, make, least, seed
):
    task, is_right, fresh, is_fresh_right = make(seed)
    found = fit(task)
    learnt = found.weights / task.train.shares
    relative = by_rule(found, task.train)
    assert np.corrcoef(relative, learnt)[0, 1] > least
    assert task.train.shares @ relative == pytest.approx(1, rel=0.1)
    again = by_rule(found, fresh)
    assert roc_auc_score(is_fresh_right, again) > roc_auc_score(is_right, learnt) - 0.03
    assert roc_auc_score(is_right, learnt) > 0.85


def test_group_that_was_not_there_weighs_what_an_average_row_does():
    task, *_ = numbers_of()
    found = fit_groups(task, 0.01)
    groups = np.array([-1, 0, 2, -1, 1])
    relative = by_rule(found, task.train.at(np.arange(5)), groups)
    assert_array_equal(relative[[0, 3]], 1)
    each = [
        found.weights[task.groups == g][0] / task.train.shares[task.groups == g][0]
        for g in range(3)
    ]
    assert_allclose(relative[[1, 4, 2]], each, rtol=1e-9)
    assert relative[2] < 0.1 < 1 < relative[1]


def test_log_linear_weight_is_that_of_the_place_alone():
    task, _, fresh, _ = numbers_of()
    found = fit_log_linear(task, 0.01)
    relative = by_rule(found, fresh)
    other = Sample(fresh.X, fresh.Y + 100, fresh.counts)
    assert_array_equal(by_rule(found, other), relative)
    rows = task.train.X[:, :-1]
    center = task.train.shares @ rows
    scale = np.sqrt(task.train.shares @ (rows - center) ** 2)
    z, every = (fresh.X[:, :-1] - center) / scale, (rows - center) / scale
    density = np.exp(np.hstack([z, z**2]) @ found.phi)
    average = task.train.shares @ np.exp(np.hstack([every, every**2]) @ found.phi)
    assert_allclose(relative, density / average, rtol=1e-9)


def test_loss_gate_asks_the_two_models_how_well_they_predict():
    task, _, fresh, _ = numbers_of()
    found = fit_loss_gate(task)
    rule, expected = found.rule, []
    for x, y in zip(fresh.X, fresh.Y, strict=True):
        odds = found.phi[0]
        for number, theta in enumerate(rule["thetas"].T):
            odds += found.phi[1 + number] * np.log(1 + (x @ theta - y[0]) ** 2 / 2 / rule["scale"])
        expected.append(expit(odds))
    ratio = by_rule(found, fresh) / expected
    assert_allclose(ratio, ratio[0], rtol=1e-9)
    # Both models are right of their own half, so that the weight falls with one loss alone.
    truth = np.array([1.0, -2.0, 0.5, 0.0])
    assert_allclose(rule["thetas"], np.column_stack([truth, -truth]), atol=0.15)
    assert found.phi[1] < 0 < found.phi[2]


def test_label_gate_asks_the_model_of_the_target_and_ten_neighbours():
    task, _, fresh, _ = labels_of()
    found = fit_label_gate(task)
    rule, expected = found.rule, []
    for x, y in zip(fresh.X, fresh.Y, strict=True):
        squared = np.sum((rule["nodes"] - x[:-1]) ** 2, axis=1)
        told = np.zeros(K)
        for j in np.argsort(squared)[:10]:
            told = told + np.exp(-squared[j] / rule["scale"]) * rule["told"][j]
        odds = found.phi[0]
        for number, each in enumerate((x @ rule["theta"], told / np.abs(told).sum())):
            margin = each[y == 1][0] - each[y == 0].max()
            standard = (margin - rule["units"][0, number]) / rule["units"][1, number]
            odds += found.phi[1 + number] * np.clip(standard, -4, 4)
        expected.append(expit(odds))
    ratio = by_rule(found, fresh) / expected
    assert_allclose(ratio, ratio[0], rtol=1e-9)
    nodes = np.vstack([task.train.X, task.target.X])[:, :-1]
    assert_array_equal(rule["nodes"], nodes)


def test_weights_of_rows_do_not_depend_on_the_rows_beside_them():
    for fit, (task, _, fresh, _) in ((fit_loss_gate, numbers_of()), (fit_label_gate, labels_of())):
        found = fit(task)
        together = by_rule(found, fresh)
        part = by_rule(found, fresh.at(np.arange(7)))
        assert_allclose(part, together[:7], rtol=1e-9)
