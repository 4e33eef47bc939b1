"""The loop over minibatches: closed forms of its steps, its schedule, and how it ends."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal, assert_equal

from skbilevel.solvers.training import ParameterGroup, Schedule, train
from tests.problems import symmetric_matrix

# The optimiser's, as of torch.
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def parameter(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def once():
    return [None]


def linear(*tensors):
    """A loss whose gradient is 1 everywhere."""
    return lambda batch: sum(tensor.sum() for tensor in tensors)


def constant(*tensors):
    """A loss whose gradient is 0."""
    return lambda batch: sum(0.0 * tensor.sum() for tensor in tensors)


def test_quadratic_reaches_its_minimum():
    matrix = torch.from_numpy(symmetric_matrix(np.array([0.5, 1.0, 3.0])))
    target = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    theta = parameter(0.0, 0.0, 0.0)
    result = train(
        lambda batch: (theta - target) @ matrix @ (theta - target) / 2,
        once,
        [ParameterGroup([theta], 0.0)],
        Schedule(600, 1, 0.1),
    )
    assert_allclose(theta.detach(), target, atol=1e-6)
    assert result.inner[0] is theta
    assert result.n_iter == len(result.history["loss"]) == 600
    assert result.converged
    assert result.history["loss"][0] == pytest.approx(float(target @ matrix @ target) / 2)
    assert result.history["loss"][-1] < 1e-12


def test_least_squares_over_minibatches_reach_the_solution_of_the_normal_equations():
    rng = np.random.default_rng(0)
    X, order = rng.normal(size=(60, 3)), np.random.default_rng(1)
    y = X @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=60)
    theta, X_, y_ = parameter(0.0, 0.0, 0.0), torch.from_numpy(X), torch.from_numpy(y)
    train(
        lambda rows: (y_[rows] - X_[rows] @ theta).square().mean(),
        lambda: np.split(order.permutation(60), 6),
        [ParameterGroup([theta], 0.0)],
        Schedule(100, 6, 0.05),
    )
    assert_allclose(theta.detach(), np.linalg.lstsq(X, y)[0], atol=2e-4)


def test_history_is_the_mean_loss_of_the_batches_of_each_epoch():
    theta = parameter(0.0)
    sizes = iter([[1.0, 2.0, 6.0], [4.0, 5.0, 6.0]])
    result = train(
        lambda batch: batch + 0.0 * theta.sum(),
        lambda: next(sizes),
        [ParameterGroup([theta], 0.0)],
        Schedule(2, 3, 0.1),
    )
    assert result.history == {"loss": [3.0, 5.0]}


# The schedule


def test_rate_rises_in_equal_steps_and_falls_by_a_cosine_to_nothing():
    schedule = Schedule(n_epochs=100, n_batches=10, learning_rate=1.0, n_warm_up=50)
    ours = [schedule.share(step) for step in range(1000)]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 1000)) for step in range(1000)]
    assert_allclose(np.array(ours[:50]) / cosine[:50], np.arange(1, 51) / 50, rtol=1e-14)
    assert_allclose(ours[50:], cosine[50:], rtol=1e-14)
    assert schedule.share(500) == pytest.approx(0.5)
    assert schedule.share(1000) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("n_steps", [1, 5, 30])
def test_short_run_warms_up_in_a_tenth_of_its_steps(n_steps):
    schedule = Schedule(n_epochs=n_steps, n_batches=1, learning_rate=1.0)
    warm_up = max(1, n_steps // 10)
    assert schedule.share(0) == pytest.approx(1 / warm_up)
    assert schedule.share(warm_up - 1) > 0.95


def test_steps_of_a_constant_gradient_are_the_learning_rate_times_the_schedule():
    """Adam divides the gradient by its root mean square, which is 1."""
    theta, schedule = parameter(0.0), Schedule(4, 5, 0.01, n_warm_up=2)
    places = []
    train(
        linear(theta),
        lambda: (places.append(theta.item()) for _ in range(5)),
        [ParameterGroup([theta], 0.0)],
        schedule,
    )
    places.append(theta.item())
    expected = [-0.01 * schedule.share(step) / (1 + EPSILON) for step in range(20)]
    assert_allclose(np.diff(places), expected, rtol=1e-9)
    assert expected[0] < -0.004


# Weight decay and clipping


def test_weight_decay_is_decoupled_and_for_its_group_alone():
    """With a gradient of 0, theta <- (1 - rate * decay) theta at every step."""
    decayed, free = parameter(2.0, -3.0), parameter(1.0, 5.0)
    schedule = Schedule(3, 2, 0.1, n_warm_up=1)
    groups = [ParameterGroup([decayed], 0.7), ParameterGroup([free], 0.0)]
    train(constant(decayed, free), lambda: [None, None], groups, schedule)
    share = np.prod([1 - 0.1 * schedule.share(step) * 0.7 for step in range(6)])
    assert share < 0.9
    assert_allclose(decayed.detach(), [2 * share, -3 * share], rtol=1e-12)
    assert_array_equal(free.detach(), [1.0, 5.0])


def test_long_gradient_is_cut_to_the_largest_norm():
    """By which a step of many times the length moves the moments no more than the cut one.

    After gradients g_1 and g_2 the second step of Adam is -rate m / (sqrt(v) + eps) with
    m = (b1 (1 - b1) g_1 + (1 - b1) g_2) / (1 - b1^2), and v likewise.
    """
    theta, schedule = parameter(0.0, 0.0), Schedule(1, 2, 0.1, n_warm_up=1, largest_norm=5.0)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    places, lengths = [], [1.0, 1000.0]
    train(
        lambda length: length * (theta @ direction),
        lambda: (places.append(theta.detach().clone()) or length for length in lengths),
        [ParameterGroup([theta], 0.0)],
        schedule,
    )
    g = np.array([0.6, 0.8])
    m = (BETA_1 * g + 5 * g) * (1 - BETA_1) / (1 - BETA_1**2)
    v = (BETA_2 * g**2 + (5 * g) ** 2) * (1 - BETA_2) / (1 - BETA_2**2)
    expected = -0.1 * schedule.share(1) * m / (np.sqrt(v) + EPSILON)
    assert_allclose(theta.detach() - places[1], expected, rtol=1e-6)


def test_norm_is_that_of_all_groups_together():
    """(3, 4) is cut to (.6, .8), and the epsilon of the optimiser shows it: its step is
    g / (|g| + eps)."""
    first, second = parameter(0.0), parameter(0.0)
    schedule = Schedule(1, 1, 1.0, n_warm_up=1, largest_norm=1e-8)
    train(
        lambda batch: 3 * first.sum() + 4 * second.sum(),
        once,
        [ParameterGroup([first], 0.0), ParameterGroup([second], 0.0)],
        schedule,
    )
    # clip_grad_norm_ adds 1e-6 to the norm that it divides by.
    cut = 1e-8 / (5 + 1e-6)
    assert_allclose(first.detach(), [-3 * cut / (3 * cut + EPSILON)], rtol=1e-6)
    assert_allclose(second.detach(), [-4 * cut / (4 * cut + EPSILON)], rtol=1e-6)


# How it ends


def test_callback_sees_the_history_of_every_epoch_and_stops_the_loop():
    theta, seen = parameter(1.0), []

    def on_epoch(history):
        seen.append(list(history["loss"]))
        return len(seen) == 3

    result = train(
        lambda batch: theta.square().sum(),
        once,
        [ParameterGroup([theta], 0.0)],
        Schedule(10, 1, 0.1),
        on_epoch,
    )
    assert [len(losses) for losses in seen] == [1, 2, 3]
    assert seen[-1] == result.history["loss"]
    assert result.n_iter == 3
    assert not result.converged


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_an_error_and_moves_nothing(bad):
    theta = parameter(1.0)
    with pytest.raises(FloatingPointError, match="loss of a batch is"):
        train(
            lambda batch: theta.sum() * bad,
            once,
            [ParameterGroup([theta], 0.1)],
            Schedule(5, 1, 0.1),
        )
    assert theta.item() == 1.0


def test_gradient_that_is_not_finite_is_an_error_and_moves_nothing():
    """The root at 0."""
    theta = parameter(0.0)
    with pytest.raises(FloatingPointError, match="its gradient inf"):
        train(
            lambda batch: theta.sqrt().sum(),
            once,
            [ParameterGroup([theta], 0.0)],
            Schedule(5, 1, 0.1),
        )
    assert theta.item() == 0.0


def global_states():
    return torch.get_rng_state().numpy(), np.random.get_state()[1].copy()  # noqa: NPY002


def test_no_global_random_state_is_consumed():
    theta = parameter(1.0)
    states = global_states()
    train(linear(theta), once, [ParameterGroup([theta], 0.1)], Schedule(3, 1, 0.1))
    assert_equal(global_states(), states)


def test_the_same_call_gives_the_same_steps():
    def end():
        theta = parameter(1.0, -2.0)
        groups = [ParameterGroup([theta], 0.1)]
        train(lambda batch: theta.pow(4).sum(), once, groups, Schedule(20, 1, 0.1))
        return theta.detach()

    assert torch.equal(end(), end())
