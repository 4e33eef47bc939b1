"""Newton steps of several problems at once."""

import pytest
import torch
from numpy.testing import assert_allclose

from skbilevel.solvers.separable_newton import Quadratic, newton_step


def quadratic(optimum, curvature):
    """Values -1/2 (theta - optimum)' C (theta - optimum)."""

    def evaluate(theta):
        difference = theta - optimum
        pull = (curvature @ difference.unsqueeze(2)).squeeze(2)
        return Quadratic(-0.5 * (difference * pull).sum(1), -pull, curvature)

    return evaluate


def test_one_step_solves_quadratic_problems():
    optimum = torch.tensor([[0.3, -0.2], [0.1, 0.5]], dtype=torch.float64)
    curvature = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[30.0, -4.0], [-4.0, 2.0]]]).double()
    found = newton_step(quadratic(optimum, curvature), torch.zeros(2, 2).double())
    # The ridge of a thousandth is all that is left.
    assert_allclose(found, optimum, atol=6e-3)


def logarithms(theta):
    """log x - x in theta = log x, with curvature x: a full step from far left overshoots."""
    x = theta.exp()
    return Quadratic((theta - x).squeeze(1), 1 - x, x.unsqueeze(2))


@pytest.mark.parametrize("start", [-6.0, -1.0, 3.0])
def test_repeated_steps_reach_the_maximum_and_never_lower_the_value(start):
    theta = torch.tensor([[start], [0.5]], dtype=torch.float64)
    for _ in range(30):
        before = logarithms(theta).value
        theta = newton_step(logarithms, theta)
        assert (logarithms(theta).value >= before).all()
    assert_allclose(theta, 0.0, atol=1e-8)


def test_problem_that_a_step_would_lower_is_shortened_alone():
    """A curvature that is far too small sends the first problem past its maximum."""

    def evaluate(theta):
        curvature = torch.tensor([[[1e-3]], [[1.0]]]).double()
        return Quadratic(-0.5 * theta.squeeze(1) ** 2, -theta, curvature)

    start = torch.tensor([[0.2], [0.4]], dtype=torch.float64)
    found = newton_step(evaluate, start)
    assert found[0].abs() <= 0.2
    assert found[0] != start[0]
    assert_allclose(found[1], 0.0, atol=1e-3)


def test_problem_without_data_stays_and_is_finite():
    optimum = torch.tensor([[0.3, -0.2], [9.0, 9.0]], dtype=torch.float64)
    curvature = torch.stack([torch.eye(2).double(), torch.zeros(2, 2).double()])
    found = newton_step(quadratic(optimum, curvature), torch.zeros(2, 2).double())
    assert_allclose(found[0], optimum[0], atol=1e-3)
    assert found[1].tolist() == [0.0, 0.0]


def test_problem_without_an_ascent_stays():
    def evaluate(theta):
        gradient = torch.full_like(theta, 1.0)
        return Quadratic(-theta.squeeze(1).abs(), gradient, torch.ones(1, 1, 1).double())

    assert newton_step(evaluate, torch.zeros(1, 1).double()).item() == 0.0
