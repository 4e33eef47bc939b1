"""Labels for rows whose own look wrong are those on which neighbours and a model agree."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits

from skbilevel.estimators import label_suggestion
from skbilevel.estimators.label_suggestion import suggested
from skbilevel.estimators.linear_proxy import Sample
from skbilevel.estimators.weight_task import Task
from skbilevel.objectives.linear_loss import CROSS_ENTROPY

RIDGE = 1e-4
PARTS = slice(0, 600), slice(600, 700)


@pytest.fixture(scope="module")
def digits():
    """600 training rows of which half have a wrong label, and 100 clean target rows."""
    X, y = load_digits(return_X_y=True)
    r = np.random.RandomState(0)
    order = r.permutation(len(X))[:700]
    X, labels = X[order] / np.sqrt((X**2).sum(axis=1).mean()), y[order]
    X = np.column_stack([X, np.full(700, 0.3)])
    noisy, is_wrong = labels.copy(), r.random_sample(700) < 0.5
    is_wrong[600:] = False
    noisy[is_wrong] = (labels + r.randint(1, 10, 700))[is_wrong] % 10
    samples = [Sample(X[part], np.eye(10)[noisy[part]], np.ones(len(X[part]))) for part in PARTS]
    task = Task(*samples, CROSS_ENTROPY, RIDGE, True, np.zeros(600, int), None, 0)
    return task, labels[:600], is_wrong[:600]


def weights_of(is_wrong, wrong):
    """Of right rows and target rows 1, and probabilities of labels to be right."""
    right = np.where(is_wrong, wrong, 1.0)
    return np.concatenate([right, np.ones(100)]), right


def test_codes_of_rows_with_wrong_labels_are_right(digits):
    task, labels, is_wrong = digits
    found = suggested(task, *weights_of(is_wrong, 0.05), RIDGE)
    assert np.mean(found.codes[is_wrong] == labels[is_wrong]) > 0.93
    assert_array_equal(found.is_wrong, is_wrong)
    # Suggestions that are less sure are less often right.
    sure = found.weights[is_wrong] > 0.95 - 1e-9
    right = found.codes[is_wrong] == labels[is_wrong]
    assert right[sure].mean() > 0.98
    assert right[~sure].mean() < 0.95


def test_own_label_of_a_row_says_nothing_by_its_neighbours_or_a_model_without_it(digits):
    """A row that weighs nothing may have any label."""
    task, _, is_wrong = digits
    weights, right = weights_of(is_wrong, 0.05)
    row = int(np.flatnonzero(is_wrong)[0])
    weights[row] = 0.0
    before = suggested(task, weights, right, RIDGE)
    Y = task.train.Y.copy()
    Y[row] = np.roll(Y[row], 1)
    moved = Task(
        Sample(task.train.X, Y, task.train.counts),
        *(task.target, CROSS_ENTROPY, RIDGE, True, task.groups, None, 0),
    )
    after = suggested(moved, weights, right, RIDGE)
    assert after.codes[row] == before.codes[row]
    assert after.weights[row] == before.weights[row]


def test_rows_that_are_right_for_certain_get_no_label_and_others_do(digits):
    task, _, is_wrong = digits
    found = suggested(task, *weights_of(is_wrong, 0.0), RIDGE)
    assert_array_equal(found.weights[~is_wrong], 0)
    assert_array_equal(found.is_wrong, is_wrong)
    assert found.weights[is_wrong].min() > 0
    assert found.weights.max() <= 1
    none = suggested(task, np.ones(700), np.ones(600), RIDGE)
    assert_array_equal(none.weights, 0)
    assert not none.is_wrong.any()


def test_shares_are_the_root_of_the_product_of_both(monkeypatch):
    """By hand, for three rows and two classes; of a row with three occurrences all three."""
    by_neighbours = np.array([[0.9, -0.1], [0.2, 0.8], [0.0, 1.0]])
    logits = np.log([[0.5, 0.5], [0.6, 0.4], [1.0, 1e-30]])
    told = []
    heard = SimpleNamespace(shares=lambda: by_neighbours)
    graph = SimpleNamespace(heard=lambda *labels: told.append(labels) or heard)
    monkeypatch.setattr(label_suggestion, "label_graph", lambda *args: graph)
    monkeypatch.setattr(label_suggestion, "fitted", lambda *args: np.eye(2))
    train = Sample(logits, np.eye(2)[[1, 0, 0]], np.array([1.0, 3.0, 1.0]))
    target = Sample(logits[:1], np.eye(2)[:1], np.ones(1))
    task = Task(train, target, CROSS_ENTROPY, RIDGE, False, np.zeros(3, int), None, 0)
    found = suggested(task, np.ones(4), np.array([0.5, 0.45, 1.0]), RIDGE)
    assert_array_equal(found.codes, [0, 1, 1])
    # Of the first and the third row neighbours name one class, and of the second two.
    sure = np.sqrt(0.8 * 0.4) / (np.sqrt(0.8 * 0.4) + np.sqrt(0.2 * 0.6))
    assert_allclose(found.weights, [0.5 * 1.0, 3 * 0.55 * sure, 0], rtol=1e-12)
    assert_array_equal(found.is_wrong, [False, True, False])
    # Neighbours are heard as often as they occur, in units of an average row.
    labels, labels_target, voices = told[0]
    assert_array_equal(labels, train.Y)
    assert_array_equal(labels_target, target.Y)
    assert_allclose(voices, [0.6, 1.8, 0.6, 1.0], rtol=1e-14)


def test_row_of_which_nobody_says_anything_gets_nothing(monkeypatch):
    heard = SimpleNamespace(shares=lambda: np.zeros((2, 2)))
    graph = SimpleNamespace(heard=lambda *labels: heard)
    monkeypatch.setattr(label_suggestion, "label_graph", lambda *args: graph)
    monkeypatch.setattr(label_suggestion, "fitted", lambda *args: np.eye(2))
    train = Sample(np.eye(2), np.eye(2), np.ones(2))
    task = Task(train, train, CROSS_ENTROPY, RIDGE, False, np.zeros(2, int), None, 0)
    found = suggested(task, np.ones(4), np.array([0.1, 1.0]), RIDGE)
    assert_array_equal(found.weights, 0)
    assert_array_equal(found.is_wrong, [True, False])


def test_model_is_of_the_rows_as_they_weigh(digits, monkeypatch):
    seen = []
    monkeypatch.setattr(
        label_suggestion, "fitted", lambda *args: seen.append(args) or np.zeros((65, 10))
    )
    task, _, is_wrong = digits
    suggested(task, *weights_of(is_wrong, 0.0), 0.7)
    sample, loss, ridge = seen[0]
    X = np.vstack([task.train.X[~is_wrong], task.target.X])
    Y = np.vstack([task.train.Y[~is_wrong], task.target.Y])
    assert_array_equal(sample.X, X)
    assert_array_equal(sample.Y, Y)
    assert_array_equal(sample.counts, 1)
    assert (loss, ridge) == (CROSS_ENTROPY, 0.7)
