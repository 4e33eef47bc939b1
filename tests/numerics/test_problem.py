"""The contract: scalar functions of two flat vectors, and one lambda, as lambda/2 |theta|^2."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from torch.func import grad, jacrev

from skbilevel.numerics.problem import BilevelProblem, CompositeLoss
from tests.problems import Quadratic, SoftmaxReweightedRidge, TanhRegression, WeightedLogistic

THETA = torch.tensor([0.3, -1.2], dtype=torch.float64)
PHI = torch.tensor([2.0, 0.7], dtype=torch.float64)


def composite(ridge: float = 0.0) -> CompositeLoss:
    """sum_ij phi_j cos(theta_i phi_j) + |phi|^2, by way of a matrix of outputs."""
    return CompositeLoss(
        model=lambda theta, phi: torch.outer(theta, phi),
        loss=lambda outputs, phi: (outputs.cos() @ phi).sum() + phi.dot(phi),
        ridge=ridge,
    )


def hessian(inner):
    return jacrev(grad(inner))


def test_value_of_a_composite_loss_is_its_formula():
    theta, phi = THETA.numpy(), PHI.numpy()
    value = (np.cos(np.outer(theta, phi)) * phi).sum() + phi @ phi + 0.8 / 2 * theta @ theta
    assert composite(ridge=0.8)(THETA, PHI).item() == pytest.approx(value, rel=1e-15)


def test_loss_sees_the_phi_that_the_model_sees():
    seen = []

    def note(first, phi):
        seen.append(phi)
        return first.sum()

    CompositeLoss(model=note, loss=note)(THETA, PHI)
    assert len(seen) == 2
    assert all(phi is PHI for phi in seen)


def test_there_is_no_ridge_unless_it_is_given():
    inner = CompositeLoss(lambda theta, phi: theta, lambda outputs, phi: outputs.sum())
    assert inner.ridge == 0
    assert inner(THETA, PHI) == THETA.sum()


def test_ridge_adds_lambda_theta_to_the_gradient():
    difference = grad(composite(ridge=0.8))(THETA, PHI) - grad(composite())(THETA, PHI)
    torch.testing.assert_close(difference, 0.8 * THETA, rtol=1e-14, atol=1e-15)


def test_ridge_adds_lambda_to_the_diagonal_of_the_hessian():
    difference = hessian(composite(ridge=0.8))(THETA, PHI) - hessian(composite())(THETA, PHI)
    expected = 0.8 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(difference, expected, rtol=1e-14, atol=1e-14)


def test_ridge_is_not_in_the_cross_derivative():
    def cross(inner):
        return jacrev(grad(inner), argnums=1)(THETA, PHI)

    assert torch.equal(cross(composite(ridge=0.8)), cross(composite()))
    assert cross(composite()).norm() > 0.1


@pytest.mark.parametrize("ridge", [0.0, 0.25])
def test_minimiser_has_the_ridge_of_the_hessian(ridge):
    """|theta - phi|^2/2 + ridge/2 |theta|^2 is least at phi / (1 + ridge)."""
    inner = CompositeLoss(
        lambda theta, phi: theta - phi, lambda outputs, phi: outputs.square().sum() / 2, ridge
    )
    newton = torch.linalg.solve(hessian(inner)(THETA, PHI), -grad(inner)(THETA, PHI))
    torch.testing.assert_close(THETA + newton, PHI / (1 + ridge), rtol=1e-14, atol=0)


@pytest.mark.parametrize("cls", [Quadratic, SoftmaxReweightedRidge, WeightedLogistic])
def test_both_levels_are_scalars_and_the_inner_one_is_least_at_theta_star(cls):
    problem = cls.random()
    size = {Quadratic: 3, SoftmaxReweightedRidge: 12, WeightedLogistic: 15}[cls]
    phi = np.linspace(-1, 1, size)
    theta = torch.from_numpy(problem.theta_star(phi))
    bilevel = problem.bilevel()
    assert bilevel.inner(theta, torch.from_numpy(phi)).shape == ()
    assert bilevel.outer(theta, torch.from_numpy(phi)).shape == ()
    gradient = grad(bilevel.inner)
    assert gradient(theta, torch.from_numpy(phi)).norm() < 1e-10
    assert gradient(theta + 0.1, torch.from_numpy(phi)).norm() > 1e-3


def test_composite_loss_can_be_the_inner_level():
    inner = TanhRegression.random().composite(ridge=0.01)
    problem = BilevelProblem(inner=inner, outer=lambda theta, phi: theta.sum())
    assert problem.inner is inner


def test_levels_are_named_in_the_order_inner_outer():
    def inner(theta, phi): ...
    def outer(theta, phi): ...

    problem = BilevelProblem(inner, outer)
    assert (problem.inner, problem.outer) == (inner, outer)


def test_contracts_are_frozen_and_changed_by_a_copy():
    inner = composite(ridge=0.5)
    problem = BilevelProblem(inner, inner)
    with pytest.raises(FrozenInstanceError):
        inner.ridge = 0.1
    with pytest.raises(FrozenInstanceError):
        problem.outer = composite()
    changed = replace(inner, ridge=0.1)
    assert (inner.ridge, changed.ridge, changed.model) == (0.5, 0.1, inner.model)
