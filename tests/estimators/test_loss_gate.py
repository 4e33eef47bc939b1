"""The gate finds rows that follow another relation, and what judges it has not been seen.

Half of the training rows of each design have the coefficients of the target, half have others.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from skbilevel.estimators import loss_gate
from skbilevel.estimators.linear_head import units_of
from skbilevel.estimators.linear_proxy import RidgeChoice, Sample
from skbilevel.estimators.loss_gate import fit_loss_gate, gate_features
from skbilevel.estimators.weight_rules import log_weights
from skbilevel.estimators.weight_task import Task
from skbilevel.objectives.linear_loss import SQUARED
from skbilevel.solvers.result import SolverResult

RIDGE = 1e-4


def toy(n, m, d, noise, seed, sep=1.5):
    """Rows (n, d) at plus and minus `sep` along the first axis, of which those at plus are like
    the m target rows; also 400 fresh ones, and the coefficients of the target."""
    r = np.random.RandomState(seed)
    mu = np.zeros(d)
    mu[0] = sep
    own, other = (v / np.linalg.norm(v) for v in (r.randn(d), r.randn(d)))
    other = -other if own @ other > 0 else other
    is_right = r.rand(n) < 0.5
    X = np.where(is_right[:, None], mu, -mu) + r.randn(n, d)
    y = np.where(is_right, X @ own, X @ other) + noise * r.randn(n)
    X_target = mu + r.randn(m, d)
    y_target = X_target @ own + noise * r.randn(m)
    is_fresh_right = np.arange(400) < 200
    fresh = np.where(is_fresh_right[:, None], mu, -mu) + r.randn(400, d)
    y_fresh = np.where(is_fresh_right, fresh @ own, fresh @ other) + noise * r.randn(400)
    return (X, y), is_right, (X_target, y_target), (fresh, y_fresh), is_fresh_right, own


def task_of(train, target, kl=None):
    """In units of all rows, without a constant."""
    rows, numbers = map(np.concatenate, zip(train, target, strict=True))
    units = units_of(rows, numbers, np.full(len(rows), 1 / len(rows)), True, False)
    samples = [
        Sample(units.rows(X), units.numbers(y), np.ones(len(X))) for X, y in (train, target)
    ]
    groups = np.zeros(len(train[0]), int)
    return Task(*samples, SQUARED, RIDGE, False, groups, kl, 0), units


def coefficients(X, y, weights):
    """Weighted least squares, (d,)."""
    return np.linalg.solve((X.T * weights) @ X, (X.T * weights) @ y)


def error_with_target(train, target, weights, own):
    """Distance of the coefficients of rows that weigh so, and of target rows, from the true."""
    X, y = map(np.concatenate, zip(train, target, strict=True))
    size = weights.sum() ** 2 / np.sum(weights**2)
    every = np.concatenate([weights / weights.sum() * size, np.ones(len(target[0]))])
    return np.linalg.norm(coefficients(X, y, every) - own)


CASES = {
    # n, m, d, noise, seed, sep; least weight on right rows, and most error in that of an oracle.
    "clear": ((500, 100, 2, 0.1, 0), 0.97, 1.3),
    "few target rows": ((500, 15, 2, 0.1, 3), 0.96, 3.0),
    "many columns": ((1000, 60, 20, 0.5, 0), 0.78, 1.6),
    "no shift of X": ((300, 40, 5, 0.2, 0, 0.0), 0.92, 1.3),
}


@pytest.fixture(scope="module")
def gated():
    return {name: fit_loss_gate(task_of(*toy(*at)[:3:2])[0]) for name, (at, *_) in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_on_rows_of_the_relation_of_the_target(gated, name):
    at, least, most = CASES[name]
    train, is_right, target, *_, own = toy(*at)
    w = gated[name].weights
    assert w.sum() == pytest.approx(1, rel=1e-12)
    assert w[is_right].sum() > least
    size = 1 / np.sum(w**2) / is_right.sum()
    assert 0.9 < size < 1.1
    found = error_with_target(train, target, w, own)
    oracle = error_with_target(train, target, is_right.astype(float), own)
    assert found < most * oracle
    alone = np.linalg.norm(coefficients(*target, np.ones(len(target[0]))) - own)
    assert found < alone < error_with_target(train, target, np.ones(len(w)), own)


@pytest.mark.parametrize("name", CASES)
def test_rule_tells_apart_rows_that_were_not_there(gated, name):
    train, is_right, target, fresh, is_fresh_right, _ = toy(*CASES[name][0])
    units = task_of(train, target)[1]
    rows = Sample(units.rows(fresh[0]), units.numbers(fresh[1]), np.ones(400))
    log = log_weights(gated[name].rule, rows, rows.X, np.zeros(400, int))
    seen = roc_auc_score(is_right, gated[name].weights)
    assert roc_auc_score(is_fresh_right, log) > seen - 0.02
    assert seen > 0.88


def weights_of_folds(task, monkeypatch, phis):
    """In every round, of each fold the rows that judge and what the weights are for some phi.

    Every round is as if phi had been learnt to be the first of these.
    """
    rounds = []
    found = SolverResult([], np.array(phis[0], float), {"objective": [0.0]}, 1, True)

    def spy(folds, *args, **options):
        told = []
        for fold in folds:
            judges = [
                int(np.flatnonzero((x == task.target.X).all(axis=1))[0])
                for x in fold.problem.target.X.numpy()
            ]
            weights = [fold.family(torch.tensor(phi).double()).value.numpy() for phi in phis]
            told.append((judges, np.stack(weights)))
        rounds.append(told)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(loss_gate, "parametric_weights", spy)
        patch.setattr(loss_gate, "best_ridge", lambda *args: RidgeChoice(1e-3, []))
        patch.setattr(loss_gate, "_SETTLED", 0.0)
        patch.setattr(loss_gate, "_MOST_ROUNDS", 3)
        fit_loss_gate(task)
    return rounds


def test_rows_that_judge_a_fold_are_in_none_of_its_features(monkeypatch):
    """Numbers of the fold may be anything: what its weights are made of stays as it was in every
    round, and that of the other folds does not."""
    train, _, target, *_ = toy(60, 12, 2, 0.3, 0)
    task, phis = task_of(train, target)[0], [(-1, -1, 1), (0, -1, 0), (0, 0, 1)]
    before = weights_of_folds(task, monkeypatch, phis)
    assert len(before) == 3
    assert [len(judges) for judges, _ in before[0]] == [4, 4, 4]
    for number in range(3):
        judges = before[0][number][0]
        numbers = task.target.Y.copy()
        numbers[judges] = 10 - 3 * numbers[judges]
        other = Sample(task.target.X, numbers, task.target.counts)
        changed = Task(task.train, other, SQUARED, RIDGE, False, task.groups, None, 0)
        after = weights_of_folds(changed, monkeypatch, phis)
        for old, new in zip(before, after, strict=True):
            assert new[number][0] == old[number][0] == judges
            assert_array_equal(new[number][1], old[number][1])
            for rest in {0, 1, 2} - {number}:
                assert np.abs(new[rest][1] - old[rest][1]).max() > 1e-3


@pytest.mark.parametrize("n_rounds", [1, 2, 3])
def test_rounds_share_out_rows_between_two_models_that_have_not_seen_them(monkeypatch, n_rounds):
    """Transcribed with a phi that is given: the weights after so many rounds, of counted rows."""
    phi, own_ridge, n, m = np.array([-0.5, -1.0, 1.5]), 1e-2, 40, 12
    train, _, target, *_ = toy(n, m, 2, 0.3, 1)
    task = task_of(train, target)[0]
    counts, counts_target = 1.0 + np.arange(n) % 3, 1.0 + np.arange(m) % 2
    task = replace(
        task, train=task.train.weighted(counts), target=task.target.weighted(counts_target)
    )
    folds = [np.arange(n)[start::3] for start in range(3)]
    found = SolverResult([], phi, {"objective": [0.0]}, 1, True)
    monkeypatch.setattr(loss_gate, "parametric_weights", lambda *args, **options: found)
    monkeypatch.setattr(loss_gate, "best_ridge", lambda *args: RidgeChoice(own_ridge, []))
    monkeypatch.setattr(loss_gate, "random_folds", lambda size, *_: [f[f < size] for f in folds])
    monkeypatch.setattr(loss_gate, "_MOST_ROUNDS", n_rounds)
    monkeypatch.setattr(loss_gate, "_SETTLED", 0.0)
    fit = fit_loss_gate(task)

    X, y = task.train.X, task.train.Y[:, 0]
    X_target, y_target = task.target.X, task.target.Y[:, 0]

    def ridge_regression(rows, numbers, weights, ridge):
        w = weights / weights.sum()
        return np.linalg.solve((rows.T * w) @ rows + ridge * np.eye(2), (rows.T * w) @ numbers)

    use = None
    for _ in range(n_rounds):
        losses = np.zeros((n, 2))
        for fold in folds:
            rest = np.setdiff1d(np.arange(n), fold)
            if use is None:
                one = ridge_regression(X_target, y_target, counts_target, own_ridge)
                other = ridge_regression(X[rest], y[rest], counts[rest], RIDGE)
            else:
                w = counts[rest] * use[rest]
                size = w.sum() ** 2 / np.sum(w**2 / counts[rest])
                one = ridge_regression(
                    np.vstack([X[rest], X_target]),
                    np.concatenate([y[rest], y_target]),
                    np.concatenate([w / w.sum() * size, counts_target]),
                    RIDGE,
                )
                other = ridge_regression(X[rest], y[rest], counts[rest] * (1 - use[rest]), RIDGE)
            for number, theta in enumerate((one, other)):
                losses[fold, number] = (X[fold] @ theta - y[fold]) ** 2 / 2
        repeated = np.sort(np.repeat(losses, counts.astype(int), axis=0), axis=0)
        scale = 2 * repeated[int(np.ceil(len(repeated) / 4)) - 1].min()
        use = expit(phi[0] + np.log1p(losses / scale) @ phi[1:])
    assert_allclose(fit.weights, counts * use / (counts @ use), rtol=1e-6)
    assert fit.rule["scale"] == pytest.approx(scale, rel=1e-8)


def test_rounds_end_where_shares_stay(monkeypatch):
    train, _, target, *_ = toy(200, 20, 2, 0.1, 0)
    n_rounds = []
    real = loss_gate.parametric_weights

    def spy(*args, **options):
        n_rounds.append(1)
        return real(*args, **options)

    monkeypatch.setattr(loss_gate, "parametric_weights", spy)
    fit = fit_loss_gate(task_of(train, target)[0])
    assert 2 <= len(n_rounds) < 8
    monkeypatch.setattr(loss_gate, "_MOST_ROUNDS", len(n_rounds) + 3)
    monkeypatch.setattr(loss_gate, "_SETTLED", 0.0)
    longer = fit_loss_gate(task_of(train, target)[0])
    assert np.abs(longer.weights - fit.weights).max() < 0.1 / 200


def test_units_of_columns_and_numbers_change_nothing(gated):
    train, _, target, *_ = toy(*CASES["clear"][0])
    by = np.array([1e3, 1e-3])
    scaled = [(X * by, 1e4 * y) for X, y in (train, target)]
    found = fit_loss_gate(task_of(*scaled)[0])
    expected = gated["clear"].weights
    assert_allclose(found.weights, expected, rtol=1e-5, atol=1e-8 * expected.max())


def test_strong_divergence_makes_weights_equal():
    train, _, target, *_ = toy(200, 20, 2, 0.1, 0)
    equal = fit_loss_gate(task_of(train, target, kl=1e4)[0]).weights
    free = fit_loss_gate(task_of(train, target, kl=0.0)[0]).weights
    assert np.abs(200 * equal - 1).max() < 0.1
    assert np.abs(200 * free - 1).max() > 0.9


def test_features_are_those_of_two_t_distributions():
    each = np.array([[0.0, 3.0], [1.5, 0.0]])
    expected = [[1, 0, np.log(3)], [1, np.log(2), 0]]
    assert_allclose(gate_features(each, 1.5), expected, rtol=1e-15)
