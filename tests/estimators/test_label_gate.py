"""The gate finds wrong labels of digits, and what judges it has not been seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from skbilevel.estimators import label_gate
from skbilevel.estimators.label_gate import fit_label_gate, standardised
from skbilevel.estimators.label_graph import label_margins
from skbilevel.estimators.linear_proxy import Sample, fitted
from skbilevel.estimators.weight_task import Task, pooled
from skbilevel.objectives.linear_loss import CROSS_ENTROPY
from skbilevel.solvers.result import SolverResult

RIDGE = 1e-4


def task_of(train, target, kl=None, seed=0):
    groups = np.zeros(train.n_rows, int)
    return Task(train, target, CROSS_ENTROPY, RIDGE, True, groups, kl, seed)


def sample_of(X, codes):
    return Sample(X, np.eye(10)[codes], np.ones(len(X)))


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
    train = sample_of(X[650:], noisy[650:])
    target = sample_of(X[500:650], labels[500:650])
    return X[:500], labels[:500], task_of(train, target), is_wrong[650:]


@pytest.fixture(scope="module")
def gated(digits):
    return fit_label_gate(digits[2])


def test_weights_are_on_right_labels_and_as_even_as_those_of_an_oracle(digits, gated):
    is_wrong, w = digits[3], gated.weights
    assert w.sum() == pytest.approx(1, rel=1e-12)
    assert w[~is_wrong].sum() > 0.95
    assert roc_auc_score(~is_wrong, w) > 0.98
    entropy = -np.sum(w * np.log(w))
    assert abs(entropy - np.log((~is_wrong).sum())) < 0.15
    assert (gated.phi[1:] > 0.5).all()


def test_weighted_rows_and_target_rows_do_better_than_either_alone(digits, gated):
    X_test, y_test, task, is_wrong = digits

    def accuracy(sample, ridge=RIDGE):
        theta = fitted(sample, CROSS_ENTROPY, ridge)
        return np.mean((X_test @ theta).argmax(axis=1) == y_test)

    def with_target(weights, mass=None):
        both = task.train.with_rows(task.target)
        return accuracy(both.weighted(pooled(weights, task.train, task.target, mass)))

    found = with_target(gated.weights, gated.mass)
    assert found > accuracy(task.target, 1e-5) + 0.005
    assert found > accuracy(task.train) + 0.2
    assert found > with_target(~is_wrong / (~is_wrong).sum()) - 0.03


def small(digits, **changes):
    """200 training rows, and 60 of the target, which judge by 20."""
    task = digits[2]
    train, target = task.train.at(np.arange(200)), task.target.at(np.arange(60))
    return task_of(train, target, **changes)


def weights_of_folds(task, monkeypatch, phis):
    """Of each fold the rows that judge, and what the weights are for some phi."""
    told, found = [], SolverResult([], np.zeros(3), {"objective": [0.0]}, 1, True)

    def spy(folds, *args, **options):
        for fold in folds:
            judges = [
                int(np.flatnonzero((x == task.target.X).all(axis=1))[0])
                for x in fold.problem.target.X.numpy()
            ]
            weights = [
                fold.family(torch.tensor(phi, dtype=torch.float64)).value.numpy() for phi in phis
            ]
            told.append((judges, np.stack(weights)))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(label_gate, "parametric_weights", spy)
        # One ridge to choose from: which is best is a matter of all target rows.
        patch.setattr(label_gate, "_RIDGES", (1e-4,))
        fit_label_gate(task)
    return told


def test_rows_that_judge_a_fold_are_in_none_of_its_features(digits, monkeypatch):
    """Labels of the fold may be anything: what its weights are made of stays as it was, and that
    of the other folds does not."""
    task, phis = small(digits), [(0, 1, 0), (0, 0, 1), (-1, 2, 1)]
    before = weights_of_folds(task, monkeypatch, phis)
    assert [len(judges) for judges, _ in before] == [20, 20, 20]
    assert_array_equal(np.sort(np.concatenate([judges for judges, _ in before])), np.arange(60))
    for number, (judges, weights) in enumerate(before):
        labels = task.target.Y.copy()
        labels[judges] = np.roll(labels[judges], 1, axis=1)
        changed = task_of(task.train, Sample(task.target.X, labels, task.target.counts))
        after = weights_of_folds(changed, monkeypatch, phis)
        assert after[number][0] == judges
        assert_array_equal(after[number][1], weights)
        for other in {0, 1, 2} - {number}:
            gaps = np.abs(after[other][1] - before[other][1]).max(axis=1)
            assert (gaps > 1e-3).all()


def test_fold_of_a_label_that_others_lack_is_judged_all_the_same(digits):
    """A class of one target row is in one fold alone."""
    task = small(digits)
    codes = task.target.Y.argmax(axis=1)
    keep = np.flatnonzero((codes != 3) | (np.cumsum(codes == 3) == 1))
    found = fit_label_gate(task_of(task.train, task.target.at(keep)))
    assert np.isfinite(found.weights).all()
    assert found.weights.sum() == pytest.approx(1, rel=1e-12)


def test_strong_divergence_makes_weights_equal(digits):
    equal = fit_label_gate(small(digits, kl=1e4)).weights
    free = fit_label_gate(small(digits, kl=0.0)).weights
    assert np.abs(200 * equal - 1).max() < 0.05
    assert np.abs(200 * free - 1).max() > 1


def test_counts_are_occurrences_of_a_row(digits, monkeypatch):
    """Of weights, of units of margins, and of what a row has to say to its neighbours."""
    phi, graphs, told = np.array([-1.0, 1.0, 2.0]), [], []
    found = SolverResult([], phi, {"objective": [0.0]}, 1, True)
    real_graph, real_standardised = label_gate.label_graph, label_gate.standardised

    def graph_of(*args):
        graphs.append(real_graph(*args))
        return graphs[-1]

    def spy(each, *args, **options):
        features = real_standardised(each, *args, **options)[0]
        told.append((each, features))
        return features, args

    monkeypatch.setattr(label_gate, "parametric_weights", lambda *args, **options: found)
    monkeypatch.setattr(label_gate, "label_graph", graph_of)
    monkeypatch.setattr(label_gate, "standardised", spy)
    task, counts, counts_target = small(digits), 1.0 + np.arange(200) % 3, 1.0 + np.arange(60) % 2
    train, target = task.train.weighted(counts), task.target.weighted(counts_target)
    fit = fit_label_gate(task_of(train, target))

    assert len(told) == 4
    for each, features in told:
        repeated = np.repeat(each, counts.astype(int), axis=0)
        standard = (each - repeated.mean(axis=0)) / repeated.std(axis=0)
        expected = np.column_stack([np.ones(200), standard.clip(-4, 4)])
        assert_allclose(features, expected, atol=1e-10)
    # Target rows of the whole are heard, which were not in the graph of a fold.
    heard = np.concatenate([counts / counts.mean(), counts_target / counts_target.mean()])
    of_neighbours = graphs[0].heard(train.Y, target.Y, heard)
    by_neighbours = label_margins(of_neighbours.shares(), train.Y)
    whole = [features for each, features in told if np.allclose(each[:, 1], by_neighbours)]
    assert len(whole) == 1
    shares = counts * expit(whole[0] @ phi)
    assert_allclose(fit.weights, shares / shares.sum(), rtol=1e-10)
    assert fit.mass == pytest.approx(shares.sum(), rel=1e-10)
    assert_allclose(fit.rule["told"], of_neighbours.of_all(), rtol=1e-12)


def test_training_rows_are_learnt_with_beside_target_rows_as_likely_as_they_are_right(
    digits, monkeypatch
):
    """The model that a fold judges is of all rows but those of the fold; a target row counts in
    full, and training rows as much as their gate is open."""
    counts, counts_target = 1.0 + np.arange(200) % 3, 1.0 + np.arange(60) % 2
    task, phi, spied = small(digits, kl=0.5), np.array([-1.0, 1.0, 2.0]), []
    task = task_of(task.train.weighted(counts), task.target.weighted(counts_target), kl=0.5)

    def spy(folds, *args, **options):
        spied.extend(folds)
        return SolverResult([], np.array([0.7, 0.0, 0.0]), {"objective": [0.0]}, 1, True)

    monkeypatch.setattr(label_gate, "parametric_weights", spy)
    fit = fit_label_gate(task)
    # Where neither margin tells anything every row is open alike, here by two thirds.
    assert_allclose(fit.weights, counts / counts.sum(), rtol=1e-12)
    assert fit.mass == pytest.approx(expit(0.7) * counts.sum(), rel=1e-12)
    assert len(spied) == 3
    for fold in spied:
        rows, judges = fold.problem.train.X.numpy(), fold.problem.target.X.numpy()
        assert_array_equal(rows[:200], task.train.X)
        rest = [int(np.flatnonzero((x == task.target.X).all(axis=1))[0]) for x in rows[200:]]
        judging = [int(np.flatnonzero((x == task.target.X).all(axis=1))[0]) for x in judges]
        assert sorted(rest + judging) == list(range(60))
        assert_array_equal(fold.problem.train.Y.numpy()[200:], task.target.Y[rest])
        open_alike = fold.family(torch.tensor([0.7, 0.0, 0.0], dtype=torch.float64)).value.numpy()
        expected = np.concatenate([expit(0.7) * counts, counts_target[rest]])
        assert_allclose(open_alike, expected / expected.sum(), rtol=1e-12)
        weights = fold.family(torch.from_numpy(phi)).value
        assert_allclose(
            weights[200:] / weights[200], counts_target[rest] / counts_target[rest[0]], rtol=1e-12
        )
        per_count = weights[:200].numpy() / counts / float(weights[200] / counts_target[rest[0]])
        assert 0 < per_count.min() < 0.1
        assert 0.5 < per_count.max() < 1
        equal = np.concatenate([counts, counts_target[rest]])
        divergence = np.sum(weights.numpy() * np.log(weights.numpy() * equal.sum() / equal))
        assert float(fold.penalty(weights)[0]) == pytest.approx(
            0.5 * np.log(10) * divergence, rel=1e-10
        )


def test_gate_that_is_to_stand_alone_is_learnt_alone(digits, monkeypatch):
    task, spied = replace(small(digits), pools=False), []
    real = label_gate.parametric_weights

    def spy(folds, *args, **options):
        spied.extend(folds)
        return real(folds, *args, **options)

    monkeypatch.setattr(label_gate, "parametric_weights", spy)
    fit = fit_label_gate(task)
    assert fit.mass is None
    assert len(spied) == 3
    for fold in spied:
        assert_array_equal(fold.problem.train.X.numpy(), task.train.X)
        closed = fold.family(torch.tensor([-20.0, 0.0, 0.0], dtype=torch.float64)).value
        assert_allclose(closed, np.full(200, 1 / 200), rtol=1e-12)


def test_common_scale_of_counts_says_nothing(digits):
    task = small(digits)
    counts, counts_target = 1.0 + np.arange(200) % 3, 1.0 + np.arange(60) % 2
    found, scaled = (
        fit_label_gate(
            task_of(task.train.weighted(by * counts), task.target.weighted(by * counts_target))
        )
        for by in (1.0, 8.0)
    )
    assert_allclose(scaled.weights, found.weights, rtol=1e-9)
    assert scaled.mass == pytest.approx(8 * found.mass, rel=1e-9)


def test_margins_are_standardised_and_cut_at_four():
    each = np.column_stack([np.r_[np.zeros(99), 100.0], np.ones(100)])
    features, units = standardised(each)
    assert_allclose(units, [[1.0, 1.0], [each[:, 0].std(), 1.0]], rtol=1e-13)
    assert_array_equal(features[:, 0], 1)
    assert features[-1, 1] == 4.0
    assert_allclose(features[0, 1], -1 / each[:, 0].std(), rtol=1e-13)
    assert_array_equal(features[:, 2], 0)
    again, _ = standardised(np.array([[1.0, 3.0], [-1e9, 1e9]]), units)
    assert_allclose(again, [[1, 0, 2], [1, -4, 4]], atol=1e-13)


def test_margins_are_standardised_as_their_rows_are_repeated():
    each, counts = np.random.default_rng(0).normal(size=(30, 2)), 1.0 + np.arange(30) % 2
    weighted, units = standardised(each, shares=counts / counts.sum())
    repeated, expected = standardised(np.repeat(each, counts.astype(int), axis=0))
    assert_allclose(units, expected, rtol=1e-12)
    assert_allclose(np.repeat(weighted, counts.astype(int), axis=0), repeated, atol=1e-12)


def test_margins_that_do_not_differ_say_nothing():
    for value in np.arange(1, 20) / 10:
        features, _ = standardised(np.full((50, 2), value), shares=np.full(50, 0.02))
        assert_allclose(features[:, 1:], 0, atol=1e-10)
