"""What families of weights share: sizes in rows, penalties in losses, and target rows held out."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators.linear_proxy import Sample
from skbilevel.estimators.weight_task import Task, pooled, size
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED
from tests.problems import central_differences

N, M, P, RIDGE = 9, 6, 3, 0.2
RNG = np.random.default_rng(0)
COUNTS, COUNTS_TARGET = 1.0 + np.arange(N) % 3, 1.0 + np.arange(M) % 2


def task_of(loss=SQUARED, k=1, has_constant=True, seed=0):
    rng = np.random.default_rng(1)
    X, X_target = (np.column_stack([rng.normal(size=(b, P - 1)), np.ones(b)]) for b in (N, M))
    Y, Y_target = rng.normal(size=(N, k)), rng.normal(size=(M, k))
    if loss is CROSS_ENTROPY:
        Y, Y_target = (np.eye(k)[part.argmax(axis=1)] for part in (Y, Y_target))
    train, target = Sample(X, Y, COUNTS), Sample(X_target, Y_target, COUNTS_TARGET)
    return Task(train, target, loss, RIDGE, has_constant, np.zeros(N, int), None, seed)


def test_size_of_equal_weights_is_the_number_of_rows():
    ones = np.ones(5)
    assert size(np.full(5, 0.2), ones) == pytest.approx(5, rel=1e-15)
    assert size(np.array([0.5, 0.5, 0, 0, 0]), ones) == pytest.approx(2, rel=1e-15)
    assert size(np.array([0, 0, 7.0, 0, 0]), ones) == 1
    assert size(np.array([3.0, 1.0]), np.ones(2)) == pytest.approx(16 / 10, rel=1e-15)
    # A row that occurs four times, and one that occurs once, with the same weight altogether.
    assert size(np.array([0.5, 0.5]), np.array([4.0, 1.0])) == pytest.approx(3.2, rel=1e-15)


def test_size_is_that_of_rows_that_are_repeated():
    weights = RNG.random(N)
    each = np.repeat(weights / COUNTS, COUNTS.astype(int))
    assert size(weights, COUNTS) == pytest.approx(each.sum() ** 2 / np.sum(each**2), rel=1e-13)
    assert size(10 * weights, COUNTS) == pytest.approx(size(weights, COUNTS), rel=1e-13)


def test_training_rows_count_as_many_as_their_size_and_each_target_row_once():
    ones = Sample(np.zeros((4, 1)), np.zeros((4, 1)), np.ones(4))
    half = pooled(np.array([0.5, 0.5, 0.0, 0.0]), ones, ones.at(np.arange(2)))
    assert_allclose(half, [1, 1, 0, 0, 1, 1], rtol=1e-15)
    uneven = pooled(np.array([0.75, 0.25, 0.0, 0.0]), ones, ones.at(np.arange(2)))
    assert_allclose(uneven, [1.2, 0.4, 0, 0, 1, 1], rtol=1e-15)
    none = pooled(np.zeros(4), ones, ones.at(np.arange(2)).weighted(np.array([3.0, 2.0])))
    assert_array_equal(none, [0, 0, 0, 0, 3, 2])
    given = pooled(np.array([0.75, 0.25, 0.0, 0.0]), ones, ones.at(np.arange(2)), 0.4)
    assert_allclose(given, [0.3, 0.1, 0, 0, 1, 1], rtol=1e-15)


def test_pooled_weights_are_those_of_rows_that_are_repeated():
    task, rows = task_of(), np.repeat(np.arange(N), COUNTS.astype(int))
    weights = RNG.dirichlet(np.ones(N))
    counted = pooled(weights, task.train, task.target)
    train = Sample(task.train.X[rows], task.train.Y[rows], np.ones(len(rows)))
    repeated = pooled((weights / COUNTS)[rows], train, task.target)
    assert_allclose(
        counted[:N], np.bincount(rows, weights=repeated[: len(rows)], minlength=N), rtol=1e-12
    )
    assert_array_equal(counted[N:], COUNTS_TARGET)


def test_equal_weights_are_pooled_to_counts():
    task = task_of()
    found = pooled(task.train.shares, task.train, task.target)
    assert_allclose(found, np.concatenate([COUNTS, COUNTS_TARGET]), rtol=1e-14)


@pytest.mark.parametrize(("loss", "k"), [(SQUARED, 1), (CROSS_ENTROPY, 4)])
def test_penalty_is_the_divergence_from_counts_in_losses_of_one_who_knows_nothing(loss, k):
    task, weights = task_of(loss, k), RNG.dirichlet(np.ones(N))
    unit = np.log(k)
    if loss is SQUARED:
        X, Y, shares = task.train.X, task.train.Y[:, 0], COUNTS / COUNTS.sum()
        theta = np.linalg.solve((X.T * shares) @ X + RIDGE * np.eye(P), (X.T * shares) @ Y)
        gaps = task.target.X @ theta - task.target.Y[:, 0]
        unit = np.average(gaps**2 / 2, weights=COUNTS_TARGET)
    penalty = task.penalty(0.3)

    def value(w):
        return 0.3 * unit * np.sum(w * np.log(w * COUNTS.sum() / COUNTS))

    found, slope = penalty(torch.from_numpy(weights))
    assert float(found) == pytest.approx(value(weights), rel=1e-12)
    assert_allclose(slope, central_differences(value, weights, step=1e-6), rtol=1e-8)
    assert_allclose(penalty(torch.from_numpy(COUNTS / COUNTS.sum()))[0], 0, atol=1e-15)
    assert float(found) > 0.01


def test_problem_judges_by_the_rows_that_it_is_given():
    task, fold = task_of(), np.array([4, 1])
    problem = task.problem(task.target.at(fold))
    theta = RNG.normal(size=P)
    gaps = task.target.X[fold] @ theta - task.target.Y[fold, 0]
    assert float(problem.target_loss(torch.from_numpy(theta))) == pytest.approx(
        np.average(gaps**2 / 2, weights=COUNTS_TARGET[fold]), rel=1e-14
    )
    weights = RNG.dirichlet(np.ones(N))
    residuals = task.train.X @ theta - task.train.Y[:, 0]
    inner = problem.at(torch.from_numpy(theta)).value(torch.from_numpy(weights))
    expected = weights @ residuals**2 / 2 + RIDGE / 2 * theta @ theta
    assert float(inner) == pytest.approx(expected, rel=1e-14)


def test_target_rows_that_are_held_out_are_gone_and_training_rows_stay():
    task = task_of()
    rest = task.judged_by_others(np.array([0, 3]))
    assert_array_equal(rest.target.X, task.target.X[[1, 2, 4, 5]])
    assert_array_equal(rest.target.counts, COUNTS_TARGET[[1, 2, 4, 5]])
    assert rest.train is task.train
    # The unit is that of the rows which are left.
    theta = np.linalg.solve(
        (task.train.X.T * COUNTS) @ task.train.X / COUNTS.sum() + RIDGE * np.eye(P),
        (task.train.X.T * COUNTS) @ task.train.Y / COUNTS.sum(),
    )
    gaps = (rest.target.X @ theta - rest.target.Y)[:, 0]
    assert rest.unit == pytest.approx(np.average(gaps**2 / 2, weights=rest.target.counts))
    assert rest.unit != pytest.approx(task.unit)


def test_features_are_columns_without_the_constant():
    with_constant, without = task_of(), task_of(has_constant=False)
    assert_array_equal(with_constant.features(with_constant.train), with_constant.train.X[:, :-1])
    assert_array_equal(without.features(without.train), without.train.X)


def test_generator_starts_alike_for_whoever_asks():
    task = task_of(seed=3)
    draws = [task.rng().random_sample(4) for _ in range(2)]
    assert_array_equal(draws[0], draws[1])
    assert_array_equal(draws[0], np.random.RandomState(3).random_sample(4))
