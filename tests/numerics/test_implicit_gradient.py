from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from skbilevel.numerics.implicit_gradient import CURVATURES, Hypergradient, implicit_gradient
from skbilevel.numerics.linear_solve import LinearSolve, conjugate_gradient, direct_solve
from skbilevel.numerics.problem import BilevelProblem, CompositeLoss
from tests.problems import (
    Quadratic,
    SoftmaxReweightedRidge,
    TanhRegression,
    TanhTeacherLinearStudent,
    WeightedLogistic,
    central_differences,
)

TIGHT = partial(conjugate_gradient, rtol=1e-13, max_iter=50)
SEEDS = range(3)


def hypergradient(problem, phi, **options) -> Hypergradient:
    """At the closed-form inner solution."""
    theta = torch.from_numpy(problem.theta_star(phi))
    solve = direct_solve if options.get("curvature") == "exact" else TIGHT
    options = {"solve": solve} | options
    return implicit_gradient(problem.bilevel(), theta, torch.from_numpy(phi), **options)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("seed", SEEDS)
def test_reweighted_ridge_matches_finite_differences_of_the_closed_form(seed, curvature):
    problem = SoftmaxReweightedRidge.random(seed)
    a = np.random.default_rng(seed + 10).normal(size=12)
    result = hypergradient(problem, a, curvature=curvature)
    expected = central_differences(problem.value, a)
    assert np.linalg.norm(expected) > 1e-2
    np.testing.assert_allclose(result.total, expected, rtol=0, atol=1e-8)
    assert not result.direct.any()
    assert torch.equal(result.total, result.implicit)
    assert result.adjoint.converged


def test_reweighted_ridge_matches_its_analytic_gradient():
    """w * (g - w'g) with g_i = (y_i - x_i'theta) x_i'v and H v = grad F."""
    problem = SoftmaxReweightedRidge.random()
    a = np.random.default_rng(10).normal(size=12)
    theta, w = problem.theta_star(a), np.exp(a) / np.exp(a).sum()
    outer = problem.X_target.T @ (problem.X_target @ theta - problem.y_target) / 8
    v = np.linalg.solve(problem.hessian(a), outer)
    g = (problem.y - problem.X @ theta) * (problem.X @ v)
    result = hypergradient(problem, a)
    np.testing.assert_allclose(result.total, w * (g - w @ g), rtol=0, atol=1e-13)
    np.testing.assert_allclose(result.adjoint.value, v, rtol=1e-11)
    assert np.linalg.norm(result.total) > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_direct_part_moves_the_teacher_and_holds_the_student(seed):
    problem = TanhTeacherLinearStudent.random(seed)
    phi = np.random.default_rng(seed + 10).normal(size=9)
    theta = problem.theta_star(phi)
    expected = central_differences(lambda moved: problem.outer(theta, moved), phi)
    assert np.linalg.norm(expected) > 1e-2
    np.testing.assert_allclose(hypergradient(problem, phi).direct, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("seed", SEEDS)
def test_implicit_part_moves_the_student_through_the_teacher(seed, curvature):
    problem = TanhTeacherLinearStudent.random(seed)
    phi = np.random.default_rng(seed + 10).normal(size=9)
    expected = central_differences(
        lambda moved: problem.outer(problem.theta_star(moved), phi), phi
    )
    assert np.linalg.norm(expected) > 1e-2
    result = hypergradient(problem, phi, curvature=curvature)
    np.testing.assert_allclose(result.implicit, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_of_a_quadratic_problem_are_their_closed_forms(seed):
    problem = Quadratic.random(seed)
    phi = np.random.default_rng(seed + 10).normal(size=3)
    result = hypergradient(problem, phi)
    np.testing.assert_allclose(result.direct, problem.direct(phi), rtol=1e-12)
    np.testing.assert_allclose(result.implicit, problem.implicit(phi), rtol=1e-11)
    torch.testing.assert_close(result.total, result.direct + result.implicit)
    assert min(result.direct.norm(), result.implicit.norm()) > 0.1


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("seed", SEEDS)
def test_inner_problem_solved_again_for_a_hessian_that_depends_on_theta(seed, curvature):
    problem = WeightedLogistic.random(seed)
    phi = np.random.default_rng(seed + 10).normal(size=15)
    expected = central_differences(problem.value, phi)
    assert np.linalg.norm(expected) > 1e-2
    result = hypergradient(problem, phi, curvature=curvature)
    np.testing.assert_allclose(result.total, expected, rtol=0, atol=1e-9)


def test_default_options_are_as_accurate_as_the_tolerance_of_the_solver():
    problem = WeightedLogistic.random()
    phi = np.zeros(15)
    theta = torch.from_numpy(problem.theta_star(phi))
    result = implicit_gradient(problem.bilevel(), theta, torch.from_numpy(phi))
    assert result.adjoint.converged
    expected = central_differences(problem.value, phi)
    assert np.linalg.norm(expected) > 1e-2
    np.testing.assert_allclose(result.total, expected, rtol=0, atol=1e-7)


def test_inner_problem_free_of_phi_has_no_implicit_part():
    problem = BilevelProblem(
        inner=lambda theta, phi: (theta - 1).square().sum(),
        outer=lambda theta, phi: theta.sum() * phi.sum(),
    )
    result = implicit_gradient(problem, torch.ones(2), torch.ones(3))
    assert torch.equal(result.implicit, torch.zeros(3))
    assert torch.equal(result.direct, torch.full((3,), 2.0))
    assert result.adjoint.value.any()


def test_outer_problem_free_of_theta_has_no_implicit_part_and_converges():
    problem = BilevelProblem(
        inner=lambda theta, phi: (theta - phi).square().sum(),
        outer=lambda theta, phi: phi.square().sum() / 2,
    )
    result = implicit_gradient(problem, torch.ones(2), torch.ones(2))
    assert torch.equal(result.total, torch.ones(2))
    assert result.adjoint.converged


def test_damping_of_the_solver_is_added_once_to_the_curvature():
    problem = Quadratic.random()
    phi = np.ones(3)
    residual = problem.theta_star(phi) - problem.t + problem.C @ phi
    expected = problem.B.T @ np.linalg.solve(problem.A + 0.5 * np.eye(5), residual)
    result = hypergradient(problem, phi, solve=partial(TIGHT, damping=0.5))
    np.testing.assert_allclose(result.implicit, expected, rtol=1e-11)
    assert np.linalg.norm(expected) > 0.1


@pytest.mark.parametrize("curvature", CURVATURES)
def test_ridge_inside_the_inner_loss_is_ridge_over_two_without_damping(curvature):
    """(theta - phi)^2/2 + ridge/2 theta^2 has its minimum at theta* = phi / (1 + ridge)."""
    ridge = 0.25
    inner = CompositeLoss(
        lambda theta, phi: theta - phi, lambda z, phi: z.square().sum() / 2, ridge
    )
    problem = BilevelProblem(inner, lambda theta, phi: theta.sum())
    phi = torch.tensor([2.0], dtype=torch.float64)
    result = implicit_gradient(problem, phi / (1 + ridge), phi, curvature=curvature)
    assert result.total.item() == pytest.approx(1 / (1 + ridge), rel=1e-14)


def test_gauss_newton_converges_where_the_hessian_shows_negative_curvature():
    curved = TanhRegression.random()
    theta, phi = torch.from_numpy(curved.theta), torch.zeros(1, dtype=torch.float64)
    problem = BilevelProblem(curved.composite(ridge=0.01), lambda theta, phi: theta.sum())
    hessian = implicit_gradient(problem, theta, phi)
    gauss_newton = implicit_gradient(problem, theta, phi, curvature="gauss_newton", solve=TIGHT)
    assert hessian.adjoint.negative_curvature
    assert not hessian.adjoint.converged
    assert gauss_newton.adjoint.converged
    expected = np.linalg.solve(curved.gauss_newton() + 0.01 * np.eye(4), np.ones(4))
    np.testing.assert_allclose(gauss_newton.adjoint.value, expected, rtol=1e-10)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_model_of_the_inner_loss_is_run_once(curvature):
    calls = []

    def model(theta, phi):
        calls.append(theta.shape)
        return theta - phi

    inner = CompositeLoss(model, lambda z, phi: z.square().sum() / 2)
    problem = BilevelProblem(inner, lambda theta, phi: theta.sum())
    phi = torch.ones(3, dtype=torch.float64)
    solve = direct_solve if curvature == "exact" else TIGHT
    result = implicit_gradient(problem, phi, phi, curvature=curvature, solve=solve)
    assert calls == [(3,)]
    np.testing.assert_allclose(result.implicit, np.ones(3), rtol=1e-14)


@pytest.mark.parametrize("curvature", ["gauss_newton", "exact"])
def test_gauss_newton_without_a_composite_loss_says_what_is_missing(curvature):
    problem = Quadratic.random()
    message = f"curvature='{curvature}' needs.*must be a CompositeLoss, got function"
    with pytest.raises(TypeError, match=message):
        hypergradient(problem, np.ones(3), curvature=curvature)


def test_exact_curvature_is_factorised_where_the_hessian_is_indefinite():
    curved = TanhRegression.random()
    theta, phi = torch.from_numpy(curved.theta), torch.zeros(1, dtype=torch.float64)
    problem = BilevelProblem(curved.composite(ridge=0.01), lambda theta, phi: theta.sum())
    result = implicit_gradient(problem, theta, phi, curvature="exact", solve=direct_solve)
    expected = np.linalg.solve(curved.gauss_newton() + 0.01 * np.eye(4), np.ones(4))
    np.testing.assert_allclose(result.adjoint.value, expected, rtol=1e-12)


def test_gradients_in_theta_are_told_and_the_inner_one_is_zero_at_a_solution():
    problem, phi = Quadratic.random(), np.ones(3)
    theta = np.random.default_rng(5).normal(size=5)
    moved = implicit_gradient(problem.bilevel(), torch.from_numpy(theta), torch.from_numpy(phi))
    inner, outer = problem.A @ theta - problem.B @ phi - problem.c, theta - problem.t
    np.testing.assert_allclose(moved.inner_gradient, inner, rtol=1e-12)
    np.testing.assert_allclose(moved.outer_gradient, outer + problem.C @ phi, rtol=1e-12)
    assert min(moved.inner_gradient.norm(), moved.outer_gradient.norm()) > 1
    solved = hypergradient(problem, phi)
    np.testing.assert_allclose(solved.inner_gradient, np.zeros(5), rtol=0, atol=1e-14)


def test_curvature_can_be_a_callable():
    """With the identity for A, u = d_theta outer: one step of the unrolled inner problem."""
    problem = Quadratic.random()
    phi = np.ones(3)
    result = hypergradient(problem, phi, curvature=lambda graph: lambda v: v)
    expected = problem.B.T @ (problem.theta_star(phi) - problem.t + problem.C @ phi)
    np.testing.assert_allclose(result.implicit, expected, rtol=1e-12)
    assert set(CURVATURES) == {"hessian", "gauss_newton", "exact"}


def test_solver_can_be_a_callable_that_sees_the_operator_and_the_right_hand_side():
    problem = Quadratic.random()

    def direct_solver(operator, b):
        matrix = torch.stack([operator(e) for e in torch.eye(5, dtype=torch.float64)])
        return LinearSolve(torch.linalg.solve(matrix, b), 0.0, 1, True, False)

    phi = np.ones(3)
    result = hypergradient(problem, phi, solve=direct_solver)
    np.testing.assert_allclose(result.implicit, problem.implicit(phi), rtol=1e-12)
    assert result.adjoint.n_iter == 1


def test_few_steps_of_the_solver_are_reported_with_their_residual():
    result = hypergradient(
        Quadratic.random(), np.ones(3), solve=partial(conjugate_gradient, max_iter=1)
    )
    assert not result.adjoint.converged
    assert result.adjoint.residual_norm > 1e-3


def test_each_objective_is_evaluated_once():
    exact = Quadratic.random().bilevel()
    counted = BilevelProblem(Mock(wraps=exact.inner), Mock(wraps=exact.outer))
    theta, phi = torch.zeros(5, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    result = implicit_gradient(counted, theta, phi)
    assert result.adjoint.n_iter > 1
    assert counted.inner.call_count == counted.outer.call_count == 1


def test_result_has_no_graph_and_is_frozen():
    result = hypergradient(Quadratic.random(), np.ones(3))
    tensors = (result.direct, result.implicit, result.total, result.adjoint.value)
    tensors += (result.inner_gradient, result.outer_gradient)
    assert not any(tensor.requires_grad for tensor in tensors)
    with pytest.raises(AttributeError):
        result.direct = result.implicit


def test_unknown_curvature_is_refused_by_name():
    problem = Quadratic.random()
    with pytest.raises(ValueError, match=r"curvature must be one of.*'fisher'"):
        hypergradient(problem, np.zeros(3), curvature="fisher")
