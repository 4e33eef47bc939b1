"""Accelerated EM on maps whose fixed points, and whose every step, are known."""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
import pytest
import torch

from skbilevel.solvers.em import (
    Evaluation,
    accelerated_em,
    extrapolate,
    stepwise_sums,
    stepwise_weight,
)
from tests.problems import symmetric_matrix


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


class Contraction:
    """g(x) = x* + A (x - x*) with A symmetric; the objective -|x - x*|^2 never falls under g."""

    def __init__(self, *eigenvalues):
        self.matrix = torch.from_numpy(symmetric_matrix(np.array(eigenvalues)))
        self.fixed_point = torch.arange(1.0, len(eigenvalues) + 1, dtype=torch.float64)
        self.start = torch.zeros_like(self.fixed_point)
        self.visited = []

    def image(self, theta):
        return self.fixed_point + self.matrix @ (theta - self.fixed_point)

    def __call__(self, theta):
        self.visited.append(theta)
        error = theta - self.fixed_point
        objective = -float(error @ error)
        return Evaluation(objective, self.image(theta), {"error": float(error.norm())}, theta)


class RowSums(NamedTuple):
    """What stepwise EM needs of sums, and a sum that tells the rows apart."""

    n_rows: torch.Tensor
    table: torch.Tensor


class Scripted:
    """The n-th call has the n-th objective of a script, the image theta + 1 and the sums theta."""

    def __init__(self, *objectives):
        self.objectives = list(objectives)
        self.visited = []

    def __call__(self, theta):
        self.visited.append(theta.item())
        return Evaluation(self.objectives[len(self.visited) - 1], theta + 1, {}, theta.item())


def anderson(g, start, window, n_steps):
    """Anderson's iteration in NumPy: weights of sum one that make the residual smallest."""
    thetas, images = [start], [g(start)]
    visited = [start]
    for step in range(n_steps):
        if step == 0:
            theta = images[-1]
        else:
            residuals = np.array(images) - np.array(thetas)
            n = len(residuals)
            # Stationarity of |sum a_i r_i|^2 under sum a_i = 1, with its multiplier.
            system = np.ones((n + 1, n + 1))
            system[:n, :n], system[n, n] = residuals @ residuals.T, 0.0
            weights = np.linalg.solve(system, np.append(np.zeros(n), 1.0))[:n]
            theta = weights @ np.array(images)
        visited.append(theta)
        thetas, images = [*thetas, theta][-window - 1 :], [*images, g(theta)][-window - 1 :]
    return np.array(visited)


def test_window_zero_is_plain_em():
    problem = Contraction(0.9, 0.5, 0.1)
    result = accelerated_em(problem, problem.start, max_iter=7, tol=0.0, window=0)
    expected = [problem.start]
    for _ in range(8):
        expected.append(problem.image(expected[-1]))
    assert torch.equal(torch.stack(problem.visited), torch.stack(expected[:8]))
    assert torch.equal(result.inner, expected[8])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_linear_map_is_solved_in_one_iteration_more_than_its_dimensions(n):
    """With as many differences as dimensions Anderson's method is GMRES."""
    problem = Contraction(*np.linspace(0.5, 0.95, n))
    result = accelerated_em(problem, problem.start, max_iter=50, tol=1e-12, window=n)
    error = torch.tensor(result.history["error"])
    assert error[n] > 1e-4
    assert error[n + 1] < 1e-8
    assert result.converged
    np.testing.assert_allclose(result.inner, problem.fixed_point, atol=1e-8)


def test_acceleration_needs_a_fraction_of_the_iterations_of_plain_em():
    eigenvalues = np.linspace(0.1, 0.99, 10)
    n_iter = []
    for window in (0, 5):
        problem = Contraction(*eigenvalues)
        result = accelerated_em(problem, problem.start, max_iter=5000, tol=1e-14, window=window)
        assert result.converged
        n_iter.append(result.n_iter)
    assert n_iter[1] < n_iter[0] / 10


@pytest.mark.parametrize("window", [1, 2, 3])
def test_iterates_are_those_of_andersons_method(window):
    """The objective counts calls, so that every candidate is accepted."""
    visited = []

    def g(theta):
        return np.cos(theta) * [0.5, 0.7, 0.9] + 0.1 * theta[::-1]

    def step(theta):
        visited.append(theta.numpy())
        image = torch.from_numpy(g(theta.numpy()))
        return Evaluation(float(len(visited)), image, {})

    start = np.array([0.1, 2.0, -1.0])
    result = accelerated_em(step, torch.from_numpy(start), max_iter=8, tol=0.0, window=window)
    expected = anderson(g, start, window, 8)
    assert result.n_iter == 8
    np.testing.assert_allclose(visited, expected, atol=1e-6)
    np.testing.assert_allclose(visited[:5], expected[:5], atol=1e-11)


@pytest.mark.parametrize("n_pairs", [2, 3, 5])
def test_extrapolation_is_the_combination_of_images_with_the_smallest_residual(n_pairs):
    rng = np.random.default_rng(0)
    thetas, images = rng.normal(size=(2, n_pairs, 6))
    residuals = images - thetas
    # Weights (a_1, ..., 1 - sum a_i), by a least-squares problem in the others.
    system = (residuals[:-1] - residuals[-1]).T
    weights = np.linalg.lstsq(system, -residuals[-1])[0]
    expected = np.append(weights, 1 - weights.sum()) @ images
    past = deque(zip(*map(torch.from_numpy, (thetas, images)), strict=True))
    np.testing.assert_allclose(extrapolate(past), expected, atol=1e-13)


def test_extrapolation_from_equal_residuals_is_the_last_image():
    past = deque([(vector(0.0, 0.0), vector(1.0, 1.0)), (vector(1.0, 1.0), vector(2.0, 2.0))])
    assert torch.equal(extrapolate(past), vector(2.0, 2.0))


@pytest.mark.parametrize("window", [0, 3])
def test_history_has_one_value_an_iteration_and_its_objective_never_falls(window):
    problem = Contraction(0.99, 0.9, 0.5, 0.2)
    result = accelerated_em(problem, problem.start, max_iter=60, tol=1e-13, window=window)
    assert set(result.history) == {"objective", "error"}
    objective, error = (np.array(result.history[name]) for name in ("objective", "error"))
    assert len(objective) == len(error) == result.n_iter + 1
    assert objective[0] == -30.0
    np.testing.assert_allclose(objective, -(error**2), rtol=1e-13, atol=1e-16)
    assert (np.diff(objective) >= 0).all()


def test_a_candidate_that_lowers_the_objective_is_replaced_by_the_plain_image():
    """Images differ by one everywhere, so that the candidate is the last image, tried twice."""
    # Calls: start, image, candidate (rejected), image, candidate, candidate.
    step = Scripted(0.0, 1.0, 0.5, 2.0, 3.0, 4.0)
    result = accelerated_em(step, vector(0.0), max_iter=4, tol=0.0)
    assert step.visited == [0.0, 1.0, 2.0, 2.0, 3.0, 4.0]
    assert result.history["objective"] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert (result.n_iter, result.inner.item()) == (4, 5.0)


@pytest.mark.parametrize("bad", [-math.inf, math.nan, 0.5])
def test_an_overshooting_candidate_costs_one_evaluation_and_the_memory(bad):
    """g(x) = x / 2 - 1 towards -2, where everything below -1.8 is infeasible or worse."""
    visited = []

    def step(theta):
        visited.append(theta.item())
        objective = bad if theta.item() < -1.8 else -theta.item()
        return Evaluation(objective, theta / 2 - 1, {})

    result = accelerated_em(step, vector(0.0), max_iter=3, tol=0.0)
    assert visited == pytest.approx([0.0, -1.0, -2.0, -1.5, -2.0, -1.75])
    assert result.history["objective"] == [0.0, 1.0, 1.5, 1.75]
    assert result.n_iter == 3


def test_after_a_rejection_only_newer_pairs_are_extrapolated():
    """The pairs before it would bend the next candidate; the two after it give the secant."""
    visited = []

    def g(x):
        return 0.5 * x + 0.1 * x**2

    def step(theta):
        visited.append(theta.item())
        objective = -math.inf if len(visited) == 4 else float(len(visited))
        return Evaluation(objective, g(theta), {})

    accelerated_em(step, vector(1.0), max_iter=4, tol=0.0, window=5)
    x2, x3 = visited[2], visited[4]
    assert x3 == pytest.approx(g(x2), rel=1e-15)
    r2, r3 = g(x2) - x2, g(x3) - x3
    secant = g(x3) - (g(x3) - g(x2)) * r3 / (r3 - r2)
    assert visited[5] == pytest.approx(secant, rel=1e-12)
    assert len(visited) == 6


@pytest.mark.parametrize(("fall", "converged"), [(1e-10, True), (1e-6, False)])
@pytest.mark.parametrize("level", [0.0, -1000.0])
def test_an_image_that_lowers_the_objective_ends_the_loop(fall, converged, level):
    """Which EM does only by rounding: a fall beyond that is no convergence."""
    fall *= 1 + abs(level)
    step = Scripted(level - 1, level, level - 2 * fall, level - fall)
    result = accelerated_em(step, vector(0.0), max_iter=9, tol=0.0)
    assert len(step.visited) == 4
    assert (result.converged, result.n_iter) == (converged, 1)
    assert result.history["objective"] == [level - 1, level]
    assert (result.sums, result.inner.item()) == (1.0, 2.0)


def test_an_infeasible_image_ends_the_loop_at_the_last_feasible_theta():
    step = Scripted(0.0, 1.0, -math.inf, -math.inf)
    result = accelerated_em(step, vector(0.0), max_iter=9, tol=0.0)
    assert (result.converged, result.n_iter) == (False, 1)
    assert result.history["objective"] == [0.0, 1.0]
    assert result.sums == result.inner.item() == 1.0


def test_the_sums_are_those_of_the_last_theta_and_the_solution_is_their_image():
    """Not those of a candidate that was tried after it."""
    step = Scripted(0.0, 1.0, 2.0, 1.5, -math.inf)
    result = accelerated_em(step, vector(0.0), max_iter=9, tol=0.0)
    assert step.visited == [0.0, 1.0, 2.0, 3.0, 3.0]
    assert result.sums == result.inner.item() == 2.0
    step = Scripted(0.0, 1.0, 2.0, 1.5, 2.5, 2.5, 2.5)
    result = accelerated_em(step, vector(0.0), max_iter=9, tol=0.1)
    assert result.converged
    assert result.sums == result.inner.item() - 1 == 5.0


def test_a_start_that_is_not_feasible_is_refused():
    with pytest.raises(ArithmeticError, match="not feasible"):
        accelerated_em(Scripted(-math.inf), vector(0.0), max_iter=9, tol=0.0)


@pytest.mark.parametrize("max_iter", [0, 1, 4])
def test_max_iter_bounds_the_iterations_and_is_no_convergence(max_iter):
    step = Scripted(*range(100))
    result = accelerated_em(step, vector(0.0), max_iter=max_iter, tol=0.0)
    assert (result.n_iter, result.converged) == (max_iter, False)
    assert len(step.visited) == len(result.history["objective"]) == max_iter + 1
    assert result.inner.item() == max_iter + 1


@pytest.mark.parametrize(("tol", "n_iter"), [(1.5, 4), (1.0, 5), (0.6, 5), (0.5, 6)])
def test_two_rises_of_less_than_tol_in_a_row_are_convergence(tol, n_iter):
    step = Scripted(0.0, 5.0, 7.0, 8.0, 8.5, 8.75, 8.8)
    result = accelerated_em(step, vector(0.0), max_iter=6, tol=tol)
    assert (result.n_iter, result.converged) == (n_iter, True)
    assert result.history["objective"] == step.objectives[: n_iter + 1]


def climb_by(*rises, **kwargs):
    """The result of EM whose objective rises so, with a tolerance of 1."""
    step = Scripted(*np.cumsum([0.0, *rises]).tolist())
    return accelerated_em(step, vector(0.0), max_iter=len(rises), tol=1.0, **kwargs)


@pytest.mark.parametrize("window", [0, 5])
def test_a_small_rise_between_large_ones_is_no_convergence(window):
    """However many of them there are."""
    result = climb_by(*[5.0, 0.25] * 6, window=window)
    assert (result.n_iter, result.converged) == (12, False)


@pytest.mark.parametrize(
    ("rises", "n_iter"),
    [
        ([0.5, 0.5, 9.0], 2),
        ([0.0, 0.0, 9.0], 2),
        ([9.0, 0.5, 0.5, 9.0], 3),
        ([9.0, 0.5, 9.0, 0.5, 0.5, 9.0], 5),
        ([0.5, 9.0, 0.5, 9.0, 9.0, 0.5, 0.5, 0.5], 7),
    ],
)
def test_the_second_of_two_small_rises_ends_the_loop(rises, n_iter):
    result = climb_by(*rises)
    assert (result.n_iter, result.converged) == (n_iter, True)


def test_a_small_rise_of_a_candidate_and_one_of_the_plain_image_are_two():
    """A rejected candidate in between is no iteration."""
    # Calls: start, image, candidate (small), candidate (rejected), image (small).
    step = Scripted(0.0, 5.0, 5.5, 5.0, 6.0, 99.0)
    result = accelerated_em(step, vector(0.0), max_iter=9, tol=1.0)
    assert result.history["objective"] == [0.0, 5.0, 5.5, 6.0]
    assert result.converged


@pytest.mark.parametrize(("rises", "converged"), [([9.0, 0.5], False), ([9.0, 0.5, 0.5], True)])
def test_convergence_in_the_last_allowed_iteration_counts(rises, converged):
    result = climb_by(*rises)
    assert (result.n_iter, result.converged) == (len(rises), converged)


def assert_same_results(left, right):
    assert torch.equal(left.inner, right.inner)
    assert left.history == right.history
    assert (left.n_iter, left.converged) == (right.n_iter, right.converged)
    assert left.outer is right.outer is None
    np.testing.assert_array_equal(left.sums, right.sums)


@pytest.mark.parametrize(
    ("problem", "start", "tol", "n_iter"),
    [
        (lambda: Contraction(0.9, 0.5, 0.1), vector(0.0, 0.0, 0.0), 1e-12, 6),
        (lambda: Scripted(0.0, 1.0, 2.0, 1.5, 2.5, 2.51, 2.52), vector(0.0), 0.1, 5),
    ],
    ids=["a linear map", "with a rejected candidate"],
)
def test_on_step_sees_the_result_of_a_run_that_ends_at_that_iteration(problem, start, tol, n_iter):
    """And what it has seen does not change any more."""
    seen = []
    last = accelerated_em(problem(), start, max_iter=20, tol=tol, on_step=seen.append)
    assert (last.n_iter, last.converged) == (n_iter, True)
    assert [result.n_iter for result in seen] == [*range(1, n_iter + 1)]
    assert [result.converged for result in seen] == [False] * (n_iter - 1) + [True]
    for result in seen:
        alone = accelerated_em(problem(), start, max_iter=result.n_iter, tol=tol)
        assert_same_results(result, alone)
    assert_same_results(seen[-1], last)


def test_on_step_stops_the_loop_at_what_it_has_seen():
    problem, seen = Contraction(0.9, 0.5, 0.1), []

    def on_step(result):
        seen.append(result)
        return len(seen) == 3

    result = accelerated_em(problem, problem.start, max_iter=9, tol=0.0, on_step=on_step)
    assert (result.n_iter, result.converged) == (len(seen), False) == (3, False)
    assert_same_results(result, seen[-1])
    assert torch.equal(result.inner, problem.image(problem.visited[-1]))


def test_on_step_is_not_called_for_an_iteration_that_was_undone():
    seen = []
    accelerated_em(
        Scripted(0.0, 1.0, 0.9, 0.95), vector(0.0), max_iter=9, tol=0.0, on_step=seen.append
    )
    assert [result.inner.item() for result in seen] == [2.0]


def test_the_start_is_left_as_it_was():
    problem = Contraction(0.9, 0.5)
    start = problem.start.clone()
    accelerated_em(problem, start, max_iter=5, tol=0.0)
    assert torch.equal(start, problem.start)


@pytest.mark.parametrize("exponent", [0.6, 0.9])
def test_stepwise_weights_of_equal_batches_are_powers_of_t_plus_two(exponent):
    """t counts the updates already made; the first batch, which is fitted, is not an update."""
    for t in range(6):
        weight = stepwise_weight(n_seen=32 * (t + 1), n_batch=32, exponent=exponent)
        assert weight == pytest.approx((t + 2) ** -exponent, rel=1e-15)


def test_stepwise_weights_fall_as_the_power_six_tenths_by_default():
    assert stepwise_weight(100, 100) == pytest.approx(2**-0.6, rel=1e-15)


def test_the_first_batch_has_the_weight_one():
    assert stepwise_weight(0, 10) == 1.0


def test_with_exponent_one_the_weight_is_the_share_of_the_rows():
    """Stepwise EM then sums all rows equally, whatever the sizes of the batches."""
    assert stepwise_weight(30, 10, exponent=1.0) == 10 / 40
    assert stepwise_weight(5, 20, exponent=1.0) == 20 / 25


def stepwise(sizes):
    """Sums over batches of these sizes one after the other, as the weight of every row in them."""
    n_rows, seen, total = sum(sizes), 0, None
    for size in sizes:
        rows = torch.zeros(n_rows, dtype=torch.float64)
        rows[seen : seen + size] = 1.0
        batch = RowSums(rows.sum(), rows)
        total = batch if total is None else stepwise_sums(total, batch)
        seen += size
    return total


@pytest.mark.parametrize("sizes", [[10, 10], [4, 32, 1, 7], [100, 3, 3, 3, 3], [1, 1000]])
def test_weights_of_rows_add_up_to_the_number_of_rows(sizes):
    total = stepwise(sizes)
    assert total.n_rows.item() == pytest.approx(sum(sizes), rel=1e-15)
    assert total.table.sum().item() == pytest.approx(sum(sizes), rel=1e-14)
    assert total.table.min() > 0


@pytest.mark.parametrize("sizes", [[10, 10], [4, 32, 1, 7]])
def test_stepwise_sums_are_the_written_formula_per_row(sizes):
    """s_t / N_t = (1 - w_t) s_(t-1) / N_(t-1) + w_t (batch mean), w_t = (1 + N_(t-1) / n_t)^-0.6.

    Unrolled: a row of batch t has the weight w_t / n_t times all later 1 - w, times N.
    """
    seen = np.cumsum(sizes)
    w = np.append(1.0, (1 + seen[:-1] / sizes[1:]) ** -0.6)
    later = np.append(np.cumprod((1 - w)[:0:-1])[::-1], 1.0)
    expected = np.repeat(w * later / sizes, sizes) * seen[-1]
    np.testing.assert_allclose(stepwise(sizes).table, expected, rtol=1e-13)


def test_stepwise_sums_keep_their_type_and_their_arguments():
    past = RowSums(torch.tensor(4.0), torch.tensor([[1.0, 2.0]]))
    batch = RowSums(torch.tensor(2.0), torch.tensor([[3.0, 5.0]]))
    total = stepwise_sums(past, batch)
    assert type(total) is RowSums
    w = 3**-0.6
    expected = 6 * ((1 - w) * np.array([[1.0, 2.0]]) / 4 + w * np.array([[3.0, 5.0]]) / 2)
    np.testing.assert_allclose(total.table, expected, rtol=1e-6)
    assert (past.n_rows, past.table.tolist()) == (4.0, [[1.0, 2.0]])
    assert (batch.n_rows, batch.table.tolist()) == (2.0, [[3.0, 5.0]])


def test_sums_of_equal_rows_are_those_of_as_many_rows():
    """What does not differ from batch to batch is not weighted away."""
    past, batch = (RowSums(torch.tensor(n), n * torch.eye(2)) for n in (30.0, 7.0))
    total = stepwise_sums(past, batch)
    assert total.n_rows.item() == pytest.approx(37, rel=1e-6)
    np.testing.assert_allclose(total.table, 37 * np.eye(2), rtol=1e-6)
