"""Descents on weights: step by step as the paper has them, and the theory of their limits.

Reference: Ivanova and Ablin (2023), arXiv 2310.17386, whose propositions and theorems are named.
"""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED
from skbilevel.objectives.reweighting import PARAMETRISATIONS, reweighted_linear
from skbilevel.solvers.exact import exact_descent
from skbilevel.solvers.soba import soba
from skbilevel.solvers.warm_started import warm_started
from skbilevel.solvers.weight_descent import Descent
from skbilevel.solvers.weighted_newton import Minimum, adjoint, minimum
from tests.reference import reweighting as reference

LOSSES = {"squared": SQUARED, "softmax": CROSS_ENTROPY}
RIDGE = 0.05


class Mirror:
    """Of rows that count once, however many."""

    counts = torch.ones(1, dtype=torch.float64)

    def weights(self, a):
        return PARAMETRISATIONS["mirror"](torch.ones_like(a)).weights(a)

    def direction(self, a, g):
        return PARAMETRISATIONS["mirror"](torch.ones_like(a)).direction(a, g)


MIRROR = Mirror()


def data(kind="squared", n=12, m=8, p=3, k=2, seed=0):
    rng = np.random.default_rng(seed)
    X, X_target = rng.normal(size=(n, p)), rng.normal(0.3, 1, size=(m, p))
    truth = rng.normal(size=(p, k))
    Y, Y_target = (rows @ truth + 0.5 * rng.normal(size=(len(rows), k)) for rows in (X, X_target))
    if kind == "softmax":
        Y, Y_target = (np.eye(k)[part.argmax(axis=1)] for part in (Y, Y_target))
    return X, Y, X_target, Y_target


def problem_of(kind, parts, ridge=RIDGE):
    return reweighted_linear(*map(torch.from_numpy, parts), LOSSES[kind], ridge)


def start_of(problem):
    return Minimum(torch.zeros(problem.n_parameters, dtype=torch.float64))


# The inner problem


@pytest.mark.parametrize("ridge", [1e-6, 0.05, 10.0])
@pytest.mark.parametrize("kind", LOSSES)
def test_minimum_and_adjoint_are_those_of_dense_matrices(kind, ridge):
    parts, weights = data(kind), np.random.default_rng(1).dirichlet(np.ones(12))
    problem, w = problem_of(kind, parts, ridge), torch.from_numpy(weights)
    found = adjoint(problem, w, minimum(problem, w, start_of(problem)))
    X, Y, X_target, Y_target = parts
    theta = reference.solution(kind, weights, X, Y, ridge)
    assert found.converged
    size = np.abs(theta).max()
    assert_allclose(found.theta.view(3, 2), theta, rtol=0, atol=1e-6 * size)
    H = reference.hessian(kind, theta, weights, X, ridge)
    right = reference.target_gradient(kind, theta, X_target, Y_target).ravel()
    v = np.linalg.solve(H, right)
    assert_allclose(found.adjoint, v, rtol=0, atol=1e-5 * np.abs(v).max())


@pytest.mark.parametrize("kind", LOSSES)
def test_start_does_not_matter_but_for_time(kind):
    problem = problem_of(kind, data(kind))
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.dirichlet(np.ones(12))) for _ in range(2))
    cold = minimum(problem, other, start_of(problem))
    warm = minimum(problem, other, minimum(problem, one, start_of(problem)))
    far = minimum(problem, other, Minimum(torch.full_like(cold.theta, 30.0)))
    assert_allclose(warm.theta, cold.theta, rtol=1e-7)
    assert_allclose(far.theta, cold.theta, rtol=1e-7)


def test_separable_classes_are_solved_with_little_ridge():
    X = np.r_[np.ones(20), -np.ones(20)][:, None] * [[5.0, 1.0]]
    Y = np.eye(2)[(X[:, 0] > 0).astype(int)]
    problem = problem_of("softmax", (X, Y, X, Y), ridge=1e-8)
    w = torch.full((40,), 1 / 40, dtype=torch.float64)
    found = minimum(problem, w, start_of(problem))
    gradient = problem.at(found.theta).gradient(w).norm()
    assert float(gradient) < 1e-8
    assert float(found.theta.abs().max()) > 1


# The algorithms, step by step


@pytest.mark.parametrize("kind", LOSSES)
def test_exact_descent_is_algorithm_1(kind):
    parts = data(kind)
    found = exact_descent(problem_of(kind, parts), MIRROR, Descent(5, 0.7))
    expected = reference.algorithm_1(kind, *parts, RIDGE, 0.7, 5)
    assert_allclose(found.outer, expected, rtol=1e-6)
    theta = reference.solution(kind, expected, *parts[:2], RIDGE)
    assert_allclose(found.inner.view(3, 2), theta, rtol=1e-5)
    assert found.converged
    assert np.abs(expected - 1 / 12).max() > 0.05


@pytest.mark.parametrize("kind", LOSSES)
def test_warm_started_descent_is_algorithm_2(kind):
    parts = data(kind)
    found = warm_started(problem_of(kind, parts), MIRROR, Descent(6, 0.7, 0.2))
    theta, weights = reference.algorithm_2(kind, *parts, RIDGE, 0.2, 0.7, 6)
    assert_allclose(found.outer, weights, rtol=1e-6)
    assert_allclose(found.inner.view(3, 2), theta, rtol=1e-7)
    assert np.abs(weights - 1 / 12).max() > 0.05


@pytest.mark.parametrize("kind", LOSSES)
def test_soba_is_the_published_recursion(kind):
    parts = data(kind)
    found = soba(problem_of(kind, parts), MIRROR, Descent(9, 0.7, 0.3))
    theta, weights = reference.soba(kind, *parts, RIDGE, 0.3, 0.7, 9)
    assert_allclose(found.outer, weights, rtol=1e-11)
    assert_allclose(found.inner.view(3, 2), theta, rtol=1e-11)
    assert np.abs(weights - 1 / 12).max() > 0.03


@pytest.mark.parametrize("solver", [exact_descent, warm_started, soba])
def test_history_is_that_of_the_weights_and_callbacks_stop(solver):
    seen = []

    def stop(state):
        seen.append({name: values[-1] for name, values in state.history.items()})
        return len(seen) == 4

    problem = problem_of("squared", data())
    found = solver(problem, MIRROR, Descent(50, 0.5, 0.2), stop)
    assert len(seen) == 4
    assert found.n_iter == 4 - (solver is exact_descent)  # which also tells of its start
    w = found.outer.numpy()
    last = seen[-1]
    assert last["entropy"] == pytest.approx(-sum(w * np.log(w)), rel=1e-12)
    assert last["effective_sample_size"] == pytest.approx(1 / sum(w**2), rel=1e-12)
    assert last["target_loss"] == pytest.approx(float(problem.target_loss(found.inner)), rel=1e-9)


def least_target_loss(parts):
    """Of training on the target alone, without a ridge."""
    _, _, X_target, Y_target = parts
    theta = np.linalg.lstsq(X_target, Y_target, rcond=None)[0]
    return np.square(X_target @ theta - Y_target).sum(axis=1).mean() / 2


def test_safe_rate_descends_without_being_told_one():
    parts = data(n=60, p=2, k=1)
    found = exact_descent(problem_of("squared", parts, 1e-9), MIRROR, Descent(60))
    losses = np.array(found.history["target_loss"]) - least_target_loss(parts)
    assert abs(losses[-1]) < 1e-3 * losses[0]
    assert (np.diff(losses) <= 1e-15).all()


# Theory


def test_exact_descent_ends_at_training_on_the_target_alone():
    """With more rows than parameters some weights give argmin F, and h can gain no more."""
    parts = data(n=60, p=2, k=1)
    found = exact_descent(problem_of("squared", parts, 1e-9), MIRROR, Descent(300))
    alone = np.linalg.lstsq(*parts[2:], rcond=None)[0]
    assert_allclose(found.inner.view(2, 1), alone, rtol=0, atol=1e-3 * np.abs(alone).max())
    uniform = reference.solution("squared", np.full(60, 1 / 60), *parts[:2], 1e-9)
    assert np.abs(uniform - alone).max() > 0.05 * np.abs(alone).max()


def frozen(problem, theta, rate, n_iter, a=None):
    """The mirror flow of Section 3.2, by small steps."""
    return warm_started(problem, MIRROR, Descent(n_iter, rate, 0.0), a=a, theta=theta)


def test_frozen_flow_with_one_hessian_ends_on_the_row_of_the_least_field():
    """Proposition 6: log w falls along a constant field, w_t ~ exp(-t g)."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(1, 3)), 9, axis=0)
    parts = (X, rng.normal(size=(9, 1)), rng.normal(size=(7, 3)), rng.normal(size=(7, 1)))
    problem = problem_of("squared", parts, ridge=0.5)
    theta = torch.from_numpy(rng.normal(size=3))
    g = reference.hypergradient("squared", theta.numpy()[:, None], np.full(9, 1 / 9), *parts, 0.5)
    soon = frozen(problem, theta, 0.01, 100).outer.numpy()
    expected = np.exp(-1.0 * g) / np.exp(-1.0 * g).sum()
    assert_allclose(soon, expected, rtol=1e-9)
    late = frozen(problem, theta, 50 / np.ptp(g), 200).outer.numpy()
    assert late.argmax() == g.argmin()
    assert late.max() > 1 - 1e-9


@pytest.mark.parametrize("seed", [1, 2])
def test_frozen_flow_ends_on_at_most_as_many_rows_as_parameters(seed):
    """Proposition 8, for flows that converge."""
    problem = problem_of("squared", data(n=40, p=4, k=1, seed=seed))
    theta = torch.from_numpy(np.random.default_rng(seed).normal(size=4))
    found = frozen(problem, theta, 0.05, 2000)
    history = found.history["entropy"]
    assert abs(history[-1] - history[-200]) < 1e-6
    assert (found.outer > 1e-6).sum() <= 4


def euler(problem, ratio, time, step):
    """Eq. (8) to a time of the weights, theta so many times faster."""
    n_iter = round(time / step)
    return warm_started(problem, MIRROR, Descent(n_iter, step, step / ratio)).outer.numpy()


def test_steps_of_algorithm_2_follow_the_flow():
    """Proposition 2: the distance to the flow falls with the steps."""
    problem = problem_of("squared", data(n=8, p=2, k=1))
    fine = euler(problem, 1.0, 1.0, 0.001)
    coarse, finer = (np.abs(euler(problem, 1.0, 1.0, h) - fine).max() for h in (0.05, 0.01))
    assert coarse > 1e-4
    assert finer < 0.35 * coarse


def test_fast_parameters_give_the_exact_flow():
    """Theorem 1: the distance is about proportional to the ratio of speeds."""
    problem, step = problem_of("squared", data(n=8, p=2, k=1), ridge=0.2), 2e-3
    exact = exact_descent(problem, MIRROR, Descent(500, step)).outer.numpy()
    ratios = (0.04, 0.01)
    slow, fast = (np.abs(euler(problem, ratio, 1.0, step) - exact).max() for ratio in ratios)
    assert slow > 1e-4
    assert fast < 0.4 * slow


def test_fast_weights_make_theta_follow_few_rows():
    """Theorem 2: theta moves along the gradient of G with the limit of frozen weights."""
    problem = problem_of("squared", data(n=30, p=2, k=1), ridge=0.2)
    start = torch.zeros(2, dtype=torch.float64)
    limit = frozen(problem, start, 4.0, 700).outer
    moved = warm_started(problem, MIRROR, Descent(1500, 4.0, 1e-6))
    along = problem.at(start).gradient(limit)
    step = moved.inner - start
    cosine = float(step @ -along / step.norm() / along.norm())
    assert cosine > 0.99
    assert (moved.outer > 1e-6).sum() <= 2
