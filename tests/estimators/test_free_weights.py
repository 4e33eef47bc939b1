"""One weight for each row: the algorithms of the paper, and where the exact one is to stop."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit, softmax

from skbilevel.estimators import free_weights
from skbilevel.estimators.free_weights import (
    SOLVERS,
    Algorithm,
    fit_free,
    fit_stopped,
    stopping_time,
)
from skbilevel.estimators.linear_proxy import Sample, random_folds
from skbilevel.estimators.weight_task import Task
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED
from skbilevel.objectives.reweighting import PARAMETRISATIONS, reweighted_linear
from skbilevel.solvers.exact import exact_descent
from skbilevel.solvers.weight_descent import Descent
from tests.reference import reweighting as reference

LOSSES = {"squared": SQUARED, "softmax": CROSS_ENTROPY}
RIDGE = 0.05


def task_of(parts, loss=SQUARED, counts=None, seed=0, ridge=RIDGE):
    X, Y, X_target, Y_target = parts
    if counts is None:
        counts = np.ones(len(X)), np.ones(len(X_target))
    train, target = Sample(X, Y, counts[0]), Sample(X_target, Y_target, counts[1])
    return Task(train, target, loss, ridge, False, np.zeros(len(X), int), None, seed)


def data(kind="squared", n=10, m=6, p=2, k=2, seed=0):
    rng = np.random.default_rng(seed)
    X, X_target = rng.normal(size=(n, p)), rng.normal(0.3, 1, size=(m, p))
    truth = rng.normal(size=(p, k))
    Y, Y_target = (rows @ truth + 0.5 * rng.normal(size=(len(rows), k)) for rows in (X, X_target))
    if kind == "softmax":
        Y, Y_target = (np.eye(k)[part.argmax(axis=1)] for part in (Y, Y_target))
    return X, Y, X_target, Y_target


def mixture(n, m, seed, noise=0.3):
    """Half of the rows have the coefficients of the target, half have others of other signs."""
    r = np.random.RandomState(seed)
    theta = r.randn(3)
    X, X_target, is_right = r.randn(n, 3), r.randn(m, 3), r.rand(n) < 0.5
    y = np.where(is_right, 1, -1) * (X @ theta) + noise * r.randn(n)
    y_target = X_target @ theta + noise * r.randn(m)
    return (X, y[:, None], X_target, y_target[:, None]), is_right


# Algorithms


def weights_and_chain(parametrisation, a):
    """w(a), and dh/dw -> what a moves against."""
    if parametrisation == "sigmoid":
        shares = expit(a)
        return shares / len(a), lambda g: g * shares * (1 - shares) / len(a)
    w = softmax(a)
    if parametrisation == "mirror":
        return w, lambda g: g
    return w, lambda g: w * (g - w @ g)


def transcribed(kind, solver, parametrisation, parts, settings):
    """Weights with sum 1 and theta, by loops over rows."""
    X, Y, X_target, Y_target = parts
    a, theta = np.zeros(len(X)), np.zeros((X.shape[1], Y.shape[1]))
    v = np.zeros(theta.size)
    rho, eta = settings.inner_rate, settings.outer_rate
    for _ in range(settings.n_iter):
        weights, chain = weights_and_chain(parametrisation, a)
        rows = list(zip(weights, X, Y, strict=True))
        moved = RIDGE * theta
        for w, x, y in rows:
            moved = moved + w * reference.row_gradient(kind, theta, x, y)
        if solver == "soba":
            g = np.array(
                [-reference.row_gradient(kind, theta, x, y).ravel() @ v for _, x, y in rows]
            )
            H = reference.hessian(kind, theta, weights, X, RIDGE)
            right = reference.target_gradient(kind, theta, X_target, Y_target).ravel()
            theta, v = theta - rho * moved, v - rho * (H @ v - right)
        else:
            if solver == "exact":
                theta = reference.solution(kind, weights, X, Y, RIDGE)
            else:
                theta = theta - rho * moved
            g = reference.hypergradient(kind, theta, weights, *parts, RIDGE)
        a = a - eta * chain(g)
    weights, _ = weights_and_chain(parametrisation, a)
    if solver == "exact":
        theta = reference.solution(kind, weights, X, Y, RIDGE)
    return weights / weights.sum(), theta


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_algorithm_is_that_of_the_paper(kind, solver, parametrisation):
    parts = data(kind)
    rate = {"mirror": 1.0, "softmax": 20.0, "sigmoid": 50.0}[parametrisation]
    settings = Descent(4, rate, 0.3)
    found = fit_free(task_of(parts, LOSSES[kind]), Algorithm(solver, parametrisation, settings))
    weights, theta = transcribed(kind, solver, parametrisation, parts, settings)
    assert_allclose(found.weights, weights, rtol=1e-6)
    assert_allclose(found.theta, theta, rtol=1e-5, atol=1e-7)
    assert len(found.history["target_loss"]) == (5 if solver == "exact" else 4)
    assert np.abs(10 * weights - 1).max() > 0.01


def test_transcription_is_that_of_the_reference():
    parts, settings = data(), Descent(3, 0.7, 0.3)
    weights, _ = transcribed("squared", "exact", "mirror", parts, settings)
    expected = reference.algorithm_1("squared", *parts, RIDGE, 0.7, 3)
    assert_allclose(weights, expected, rtol=1e-12)
    for solver, algorithm in (("warm_started", reference.algorithm_2), ("soba", reference.soba)):
        weights, theta = transcribed("squared", solver, "mirror", parts, settings)
        expected = algorithm("squared", *parts, RIDGE, 0.3, 0.7, 3)
        assert_allclose(theta, expected[0], rtol=1e-12)
        assert_allclose(weights, expected[1], rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_row_that_counts_twice_is_two_rows(solver, parametrisation):
    parts = data()
    counts, counts_target = 1.0 + np.arange(10) % 3, 1.0 + np.arange(6) % 2
    rows, rows_target = (
        np.repeat(np.arange(len(c)), c.astype(int)) for c in (counts, counts_target)
    )
    repeated = (*(part[rows] for part in parts[:2]), *(part[rows_target] for part in parts[2:]))
    rate = {"mirror": 1.0, "softmax": 20.0, "sigmoid": 50.0}[parametrisation]
    algorithm = Algorithm(solver, parametrisation, Descent(5, rate, 0.3))
    once = fit_free(task_of(parts, counts=(counts, counts_target)), algorithm)
    many = fit_free(task_of(repeated), algorithm)
    assert_allclose(once.weights, np.bincount(rows, weights=many.weights), rtol=1e-9)
    assert_allclose(once.theta, many.theta, rtol=1e-8)


def test_exact_method_has_rates_of_its_own_that_never_raise_the_loss():
    parts, is_right = mixture(80, 20, 0)
    found = fit_stopped(task_of(parts), 20)
    path = np.array(found.history["target_loss"])
    assert (np.diff(path) <= 0).all()
    assert path[-1] < 0.2 * path[0]
    assert found.weights[is_right].sum() > 0.8
    assert_allclose(fit_stopped(task_of(parts), 0).weights, 1 / 80, rtol=1e-12)


@pytest.mark.parametrize("solver", ["warm_started", "soba"])
def test_solver_that_leaves_the_range_of_numbers_is_named(solver):
    algorithm = Algorithm(solver, "mirror", Descent(3000, 1.0, 1e3))
    with pytest.raises(FloatingPointError, match=f"{solver}.*inner_rate"):
        fit_free(task_of(data()), algorithm)


def test_solver_that_runs_away_has_not_converged():
    for inner_rate, converged in ((0.3, True), (3.0, False)):
        algorithm = Algorithm("warm_started", "mirror", Descent(20, 0.1, inner_rate))
        assert fit_free(task_of(data()), algorithm).converged == converged


# Where to stop


def losses_of_steps(task, n_most, fold):
    """Loss of target rows that are held out after 0, 1, ... steps, each from the start."""
    rest = np.setdiff1d(np.arange(task.target.n_rows), fold)
    arrays = (task.train.X, task.train.Y, task.target.X[rest], task.target.Y[rest])
    shares = task.target.counts[rest] / task.target.counts[rest].sum()
    problem = reweighted_linear(
        *map(torch.from_numpy, arrays), task.loss, RIDGE, torch.from_numpy(shares)
    )
    form = PARAMETRISATIONS["mirror"](torch.from_numpy(task.train.counts))
    path = []
    for n_iter in range(n_most + 1):
        found = exact_descent(problem, form, Descent(n_iter, tol=1e-4))
        theta = found.inner.numpy().reshape(task.train.X.shape[1], -1)
        outputs = task.target.X[fold] @ theta
        kind = "squared" if task.loss is SQUARED else "softmax"
        each = [
            reference.row_loss(kind, *row)
            for row in zip(outputs, task.target.Y[fold], strict=True)
        ]
        path.append(task.target.counts[fold] @ np.array(each))
    return np.array(path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", LOSSES)
def test_stopping_time_is_that_of_the_least_loss_of_rows_that_do_not_steer(
    monkeypatch, kind, seed
):
    """Every number of steps is tried from the start, with no end to patience; rows of one fold
    count more than others."""
    parts, _ = mixture(60, 20, seed)
    if kind == "softmax":
        parts = tuple(
            np.eye(2)[(part[:, 0] > 0).astype(int)] if number % 2 else part
            for number, part in enumerate(parts)
        )
    folds = random_folds(20, 3, np.random.RandomState(seed))
    counts = 1.0 + np.arange(60) % 2, 1.0 + np.arange(20) % 3
    counts[1][folds[1]] *= 20
    task = task_of(parts, LOSSES[kind], counts, seed)
    total = np.sum([losses_of_steps(task, 12, fold) for fold in folds], axis=0)
    monkeypatch.setattr(free_weights, "_PATIENCE", 1000)
    found = stopping_time(task, Algorithm(settings=Descent(12, tol=1e-4)))
    assert found == int(total.argmin())


def test_stopping_times_differ_so_that_the_loop_can_tell():
    times = {stopping_time(task_of(mixture(60, 20, seed)[0], seed=seed)) for seed in range(4)}
    assert len(times) > 1


def test_path_that_has_gained_nothing_for_some_steps_is_followed_no_further(monkeypatch):
    """It counts as staying where it is, then."""
    watched, real = [], free_weights.fit_free

    def spy(task, algorithm, on_step=None):
        def counted(state):
            watched[-1] += 1
            return on_step(state)

        watched.append(0)
        return real(task, algorithm, counted)

    monkeypatch.setattr(free_weights, "fit_free", spy)
    monkeypatch.setattr(free_weights, "_PATIENCE", 4)
    task = task_of(mixture(60, 20, 3)[0])
    found = stopping_time(task, Algorithm(settings=Descent(20, tol=1e-4)))
    total, expected = np.zeros(21), []
    for fold in random_folds(20, 3, np.random.RandomState(0)):
        path = losses_of_steps(task, 20, fold)
        gained = [t for t in range(21) if path[t] < path[:t].min(initial=np.inf)]
        last = next((t for t in range(21) if t - max(g for g in gained if g <= t) == 4), 20)
        expected.append(last + 1)
        path[last:] = path[last]
        total += path
    assert watched == expected
    assert min(watched) < 21
    assert found == int(total.argmin())


def test_without_a_shift_equal_weights_stay_and_with_one_they_do_not():
    without, with_one = [], []
    for seed in range(6):
        r = np.random.RandomState(seed)
        theta, X = r.randn(4, 1), r.randn(230, 4)
        Y = X @ theta + 0.5 * r.randn(230, 1)
        task = task_of((X[:200], Y[:200], X[200:], Y[200:]), ridge=1e-4)
        without.append(stopping_time(task))
        with_one.append(stopping_time(task_of(mixture(200, 30, seed)[0], ridge=1e-4)))
    assert without.count(0) >= 4
    assert min(with_one) > 0


def test_weights_that_are_stopped_are_more_even_than_those_at_the_end():
    """To the end the model is that of the target rows alone, and gains nothing by the others."""
    gaps = []
    for seed in range(4):
        parts, _ = mixture(200, 20, seed)
        task, (_, _, X_target, Y_target) = task_of(parts, ridge=1e-6), parts
        alone = np.linalg.lstsq(X_target, Y_target)[0]
        stopped, ended = (fit_stopped(task, n) for n in (stopping_time(task), 300))
        assert np.sum(stopped.weights**2) < np.sum(ended.weights**2)
        gaps.append([np.linalg.norm(fit.theta - alone) for fit in (stopped, ended)])
    assert np.median(gaps, axis=0)[1] < 1e-5
    assert np.median(gaps, axis=0)[0] > 0.05
