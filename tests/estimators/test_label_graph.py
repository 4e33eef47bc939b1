"""Diffused labels against dense loops; a row's own label does not count."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators.label_graph import label_graph, label_margins, told_by_neighbours

K = 3


def case(seed=0, n=30, m=8):
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(K, 2))
    y, y_target = rng.integers(K, size=n), rng.integers(K, size=m)
    X, X_target = (centres[part] + rng.normal(size=(len(part), 2)) for part in (y, y_target))
    return X, np.eye(K)[y], X_target, np.eye(K)[y_target]


def graph_of(X, X_target, seed=0):
    return label_graph(X, X_target, np.random.RandomState(seed))


def shares_of(graph, Y, Y_target, voices=None, **parts):
    voices = np.ones(len(Y) + len(Y_target)) if voices is None else voices
    return graph.heard(Y, Y_target, voices, **parts).shares()


def dense_adjacency(rows, n_neighbours=10):
    """D^-1/2 W D^-1/2 with W = exp(-d^2 / s) between neighbours in either direction."""
    n = len(rows)
    squared = np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])
    near = []
    for i in range(n):
        order = [j for j in np.argsort(squared[i], kind="stable") if j != i]
        near.append(order[:n_neighbours])
    scale = np.median([squared[i, near[i][-1]] for i in range(n)])
    W = np.zeros((n, n))
    for i in range(n):
        for j in near[i]:
            W[i, j] = W[j, i] = np.exp(-squared[i, j] / scale)
    degree = W.sum(axis=1)
    return W / np.sqrt(np.outer(degree, degree))


def test_adjacency_is_that_of_ten_neighbours():
    X, _, X_target, _ = case()
    graph = graph_of(X, X_target)
    assert_allclose(
        graph.adjacency.toarray(), dense_adjacency(np.vstack([X, X_target])), atol=1e-12
    )


def test_shares_are_labels_diffused_without_the_fold_of_the_row():
    X, Y, X_target, Y_target = case()
    graph, S = graph_of(X, X_target), dense_adjacency(np.vstack([X, X_target]))
    told = shares_of(graph, Y, Y_target)
    for i in range(len(X)):
        given = np.zeros((len(S), K))
        for j in range(len(X)):
            if graph.folds[j] != graph.folds[i]:
                given[j] = Y[j] - 1 / K
        given[len(X) :] = 10 * (Y_target - 1 / K)
        F = given
        for _ in range(15):
            F = 0.9 * S @ F + 0.1 * given
        assert_allclose(told[i], F[i] / np.abs(F[i]).sum(), rtol=1e-9)


def test_rows_are_heard_as_their_voices_are_loud():
    X, Y, X_target, Y_target = case()
    graph, S = graph_of(X, X_target), dense_adjacency(np.vstack([X, X_target]))
    voices = np.random.default_rng(0).random(len(S)) + 0.1
    told = shares_of(graph, Y, Y_target, voices)
    for i in (0, 11, 29):
        given = np.vstack([Y - 1 / K, 10 * (Y_target - 1 / K)]) * voices[:, None]
        given[: len(X)][graph.folds == graph.folds[i]] = 0
        F = given
        for _ in range(15):
            F = 0.9 * S @ F + 0.1 * given
        assert_allclose(told[i], F[i] / np.abs(F[i]).sum(), rtol=1e-9)
    assert np.abs(told - shares_of(graph, Y, Y_target)).max() > 0.01


def test_margin_is_that_of_the_label():
    X, Y, X_target, Y_target = case()
    graph = graph_of(X, X_target)
    told = shares_of(graph, Y, Y_target)
    margins = label_margins(told, Y)
    for i in range(len(X)):
        own = Y[i].argmax()
        others = [told[i, c] for c in range(K) if c != own]
        assert margins[i] == pytest.approx(told[i, own] - max(others), rel=1e-12)
    assert np.median(margins) > 0.3


def test_own_label_does_not_count_and_a_wrong_one_shows():
    X, Y, X_target, Y_target = case()
    graph, wrong = graph_of(X, X_target), Y.copy()
    wrong[4] = np.roll(Y[4], 1)
    told, told_wrong = shares_of(graph, Y, Y_target), shares_of(graph, wrong, Y_target)
    assert_array_equal(told_wrong[4], told[4])
    assert label_margins(told_wrong, wrong)[4] < 0 < label_margins(told, Y)[4]


def test_labels_for_rows_outside_are_diffused_with_none_set_aside():
    X, Y, X_target, Y_target = case()
    graph, S = graph_of(X, X_target), dense_adjacency(np.vstack([X, X_target]))
    voices = np.random.default_rng(0).random(len(S)) + 0.5
    given = voices[:, None] * np.vstack([Y - 1 / K, 10 * (Y_target - 1 / K)])
    F = given
    for _ in range(15):
        F = 0.9 * S @ F + 0.1 * given
    assert_allclose(graph.heard(Y, Y_target, voices).of_all(), F, rtol=1e-9)
    shares = F[: len(X)] / np.abs(F[: len(X)]).sum(axis=1, keepdims=True)
    assert np.abs(shares_of(graph, Y, Y_target, voices) - shares).max() > 0.01


@pytest.mark.parametrize(("n", "n_near"), [(38, 10), (6, 6)])
def test_row_outside_is_told_by_its_ten_nearest_nodes(n, n_near):
    rng = np.random.default_rng(1)
    nodes, told, rows = (rng.normal(size=shape) for shape in ((n, 2), (n, K), (9, 2)))
    found = told_by_neighbours(nodes, told, 0.7, rows)
    for row, shares in zip(rows, found, strict=True):
        squared = np.array([np.sum((row - node) ** 2) for node in nodes])
        total = np.zeros(K)
        for j in np.argsort(squared)[:n_near]:
            total = total + np.exp(-squared[j] / 0.7) * told[j]
        assert_allclose(shares, total / np.abs(total).sum(), rtol=1e-10)


def test_row_beside_a_cluster_is_told_its_label():
    X, Y, X_target, Y_target = case()
    graph, nodes = graph_of(X, X_target), np.vstack([X, X_target])
    told = graph.heard(Y, Y_target, np.ones(len(nodes))).of_all()
    centres = np.stack([X[Y[:, c] == 1].mean(axis=0) for c in range(K)])
    shares = told_by_neighbours(nodes, told, graph.scale, centres)
    assert_array_equal(shares.argmax(axis=1), np.arange(K))
    right, wrong = label_margins(shares, np.eye(K)), label_margins(shares, np.eye(K)[[1, 2, 0]])
    assert wrong.max() < 0 < right.min()


def test_row_from_which_all_nodes_are_far_is_told_nothing():
    """Edges underflow: no share is larger than another, and none is not a number."""
    nodes, told = np.zeros((12, 2)), np.eye(K)[np.zeros(12, int)]
    assert_array_equal(told_by_neighbours(nodes, told, 1.0, np.full((1, 2), 1e3)), 0)


@pytest.mark.parametrize("loud", [[1], [0, 2], [], [0, 1, 2]])
def test_parts_of_the_target_that_are_left_out_say_nothing(loud):
    X, Y, X_target, Y_target = case()
    graph, S = graph_of(X, X_target), dense_adjacency(np.vstack([X, X_target]))
    parts = [np.array([0, 5]), np.array([7, 2, 3]), np.array([1, 4, 6])]
    heard = graph.heard(Y, Y_target, np.ones(len(S)), parts)
    told, given = heard.shares(loud), np.zeros((len(S), K))
    others = graph.folds != graph.folds[0]
    given[: len(X)][others] = Y[others] - 1 / K
    for number in loud:
        given[len(X) + parts[number]] = 10 * (Y_target[parts[number]] - 1 / K)
    F = given
    for _ in range(15):
        F = 0.9 * S @ F + 0.1 * given
    assert_allclose(told[0], F[0] / np.abs(F[0]).sum(), rtol=1e-9)
    assert_allclose(heard.shares(), shares_of(graph, Y, Y_target), rtol=1e-12)
    gap = np.abs(told - heard.shares()).max()
    assert gap > 1e-3 if len(loud) < 3 else gap == 0


def test_rows_that_are_there_twice_and_few_rows_make_a_graph():
    X = np.zeros((4, 2))
    graph = graph_of(X, X[:1])
    assert np.isfinite(shares_of(graph, np.eye(K)[[0, 1, 0, 2]], np.eye(K)[:1])).all()
