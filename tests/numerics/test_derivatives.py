from unittest.mock import Mock

import numpy as np
import pytest
import torch

from skbilevel.numerics.derivatives import (
    GradientGraph,
    cross_vjp,
    gauss_newton,
    gauss_newton_matrix,
    gauss_newton_vp,
    grad,
    hvp,
    row_jacobian,
    vjp,
)
from tests.problems import SoftmaxReweightedRidge, TanhRegression, WeightedLogistic


def normal(n, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=n)).to(dtype)


def matrix_of(operator, n):
    """The matrix of an operator, column by column."""
    return np.stack([operator(e).numpy() for e in torch.eye(n, dtype=torch.float64)], axis=1)


def cubic(theta, phi):
    """sum_ij theta_i^3 phi_j^2: every derivative is known."""
    return theta.pow(3).sum() * phi.square().sum()


THETA, PHI, V = normal(4, 1), normal(3, 2), normal(4, 3)


def test_gradient_of_a_cubic_in_both_arguments():
    d_theta, d_phi = grad(cubic, THETA, PHI)
    torch.testing.assert_close(d_theta, 3 * THETA**2 * PHI.square().sum())
    torch.testing.assert_close(d_phi, 2 * PHI * THETA.pow(3).sum())
    assert min(d_theta.norm(), d_phi.norm()) > 0.1


def test_gradient_takes_any_number_of_arguments():
    (d_theta,) = grad(lambda theta: theta.square().sum() / 2, THETA)
    assert torch.equal(d_theta, THETA)


def test_hessian_vector_product_of_a_cubic():
    result = hvp(cubic, THETA, PHI, V)
    torch.testing.assert_close(result, 6 * THETA * V * PHI.square().sum())
    assert result.norm() > 0.1


def test_cross_product_of_a_cubic():
    """d/dphi <3 theta^2 |phi|^2, u> = 6 <theta^2, u> phi."""
    result = cross_vjp(cubic, THETA, PHI, V)
    torch.testing.assert_close(result, 6 * (THETA**2 @ V) * PHI)
    assert result.norm() > 0.1


def test_hessian_of_the_logistic_loss_is_its_closed_form():
    problem = WeightedLogistic.random()
    theta, phi = normal(3, 4), normal(15, 5)
    graph = GradientGraph(problem.bilevel().inner, theta, phi)
    expected = problem.hessian(theta.numpy(), phi.numpy())
    np.testing.assert_allclose(matrix_of(graph.hvp, 3), expected, rtol=1e-12)


def test_cross_derivative_of_reweighted_ridge_is_its_closed_form():
    """d/da <sum_i w_i (z_i - y_i) x_i, u> = w * (s - w's), s_i = (z_i - y_i) x_i'u."""
    problem = SoftmaxReweightedRidge.random()
    theta, a, u = normal(4, 4), normal(12, 5), normal(4, 6)
    w = a.softmax(0).numpy()
    s = (problem.X @ theta.numpy() - problem.y) * (problem.X @ u.numpy())
    expected = w * (s - w @ s)
    assert np.linalg.norm(expected) > 0.05
    result = cross_vjp(problem.bilevel().inner, theta, a, u)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-15)


FREE_OF_SOMETHING = {
    "theta": lambda theta, phi: phi.pow(3).sum(),
    "phi": lambda theta, phi: theta.pow(3).sum(),
    "both": lambda theta, phi: torch.ones((), dtype=torch.float64),
    "curvature": lambda theta, phi: theta.sum() + phi.sum(),
}


@pytest.mark.parametrize("name", FREE_OF_SOMETHING)
def test_derivatives_are_zero_and_no_error_where_the_function_is_constant(name):
    f = FREE_OF_SOMETHING[name]
    d_theta, d_phi = grad(f, THETA, PHI)
    assert d_theta.any() == (name in {"phi", "curvature"})
    assert d_phi.any() == (name in {"theta", "curvature"})
    assert hvp(f, THETA, PHI, V).any() == (name == "phi")
    assert not cross_vjp(f, THETA, PHI, V).any()
    assert d_theta.shape == hvp(f, THETA, PHI, V).shape == THETA.shape
    assert d_phi.shape == cross_vjp(f, THETA, PHI, V).shape == PHI.shape


@pytest.mark.parametrize("name", FREE_OF_SOMETHING)
def test_results_have_no_graph_and_arguments_none_afterwards(name):
    f, theta, phi = FREE_OF_SOMETHING[name], THETA.clone(), PHI.clone()
    results = [*grad(f, theta, phi), hvp(f, theta, phi, V), cross_vjp(f, theta, phi, V)]
    assert not any(result.requires_grad for result in [*results, theta, phi])


def test_arguments_that_carry_a_graph_are_cut_from_it():
    source = THETA.clone().requires_grad_()
    (result,) = grad(lambda theta: theta.square().sum(), 2 * source)
    assert not result.requires_grad
    assert source.grad is None
    torch.testing.assert_close(result, 4 * THETA)


def test_derivatives_do_not_depend_on_the_ambient_gradient_mode():
    with torch.no_grad():
        results = [
            *grad(cubic, THETA, PHI),
            hvp(cubic, THETA, PHI, V),
            cross_vjp(cubic, THETA, PHI, V),
            gauss_newton_vp(torch.tanh, lambda z: z.square().sum(), THETA, V),
        ]
    expected = [
        *grad(cubic, THETA, PHI),
        hvp(cubic, THETA, PHI, V),
        cross_vjp(cubic, THETA, PHI, V),
        gauss_newton_vp(torch.tanh, lambda z: z.square().sum(), THETA, V),
    ]
    assert all(map(torch.equal, results, expected))
    assert all(result.any() for result in results)


def test_single_precision_stays_single():
    theta, phi, v = (tensor.float() for tensor in (THETA, PHI, V))
    graph = GradientGraph(cubic, theta, phi)
    results = [*grad(cubic, theta, phi), graph.gradient, graph.hvp(v), graph.cross_vjp(v)]
    results.append(gauss_newton_vp(torch.tanh, lambda z: z.square().sum(), theta, v))
    assert {result.dtype for result in results} == {torch.float32}


def test_one_evaluation_of_the_function_serves_every_product():
    f = Mock(wraps=cubic)
    graph = GradientGraph(f, THETA, PHI)
    torch.testing.assert_close(graph.gradient.detach(), 3 * THETA**2 * PHI.square().sum())
    first = graph.hvp(V)
    graph.cross_vjp(V)
    assert torch.equal(graph.hvp(V), first)
    assert f.call_count == 1


def test_both_products_of_one_vector_in_one_pass():
    graph = GradientGraph(cubic, THETA, PHI)
    both = vjp(graph.gradient, (graph.theta, graph.phi), V)
    assert torch.equal(both[0], graph.hvp(V))
    assert torch.equal(both[1], graph.cross_vjp(V))


def test_gauss_newton_is_the_hessian_for_a_linear_model_with_squared_loss():
    problem = SoftmaxReweightedRidge.random()
    inner, a = problem.bilevel().inner, normal(12, 5)
    operator = gauss_newton(
        lambda theta: inner.model(theta, a), lambda z: inner.loss(z, a), normal(4, 4)
    )
    expected = problem.hessian(a.numpy()) - problem.ridge * np.eye(4)
    np.testing.assert_allclose(matrix_of(operator, 4), expected, rtol=1e-12)
    assert np.linalg.norm(expected) > 0.1


def test_gauss_newton_is_positive_where_the_hessian_is_indefinite():
    problem = TanhRegression.random()
    inner, phi, theta = problem.composite(), torch.zeros(1), torch.from_numpy(problem.theta)
    operator = gauss_newton(
        lambda theta: inner.model(theta, phi), lambda z: inner.loss(z, phi), theta
    )
    hessian = matrix_of(GradientGraph(inner, theta, phi).hvp, 4)
    np.testing.assert_allclose(hessian, problem.hessian(), rtol=1e-11)
    assert np.linalg.eigvalsh(problem.hessian())[0] < -0.1
    np.testing.assert_allclose(matrix_of(operator, 4), problem.gauss_newton(), rtol=1e-12)
    assert np.linalg.eigvalsh(matrix_of(operator, 4))[0] > 0


def tanh_classifier():
    """Model, loss and theta with outputs z = tanh(theta X') of shape (rows, classes), and the
    Gauss-Newton matrix: B = diag(p) - p p' for each row."""
    X, labels = normal(6, 1).reshape(3, 2), torch.tensor([0, 2, 1])
    theta = normal(8, 2)

    def model(theta):
        return torch.tanh(X @ theta.reshape(2, 4))

    def loss(z):
        return torch.nn.functional.cross_entropy(z, labels, reduction="sum")

    linear = X.numpy() @ theta.numpy().reshape(2, 4)
    p = torch.from_numpy(np.tanh(linear)).softmax(1).numpy()
    expected = np.zeros((8, 8))
    for i in range(3):
        # d z_ik / d theta_jl = (1 - z_ik^2) x_ij [k = l]
        jacobian = np.kron(X[i].numpy(), np.diag(1 - np.tanh(linear[i]) ** 2))
        expected += jacobian.T @ (np.diag(p[i]) - np.outer(p[i], p[i])) @ jacobian
    assert np.linalg.norm(expected) > 0.1
    return model, loss, theta, expected


def test_gauss_newton_of_cross_entropy_has_the_covariance_of_the_classes_in_the_middle():
    model, loss, theta, expected = tanh_classifier()
    result = matrix_of(gauss_newton(model, loss, theta), 8)
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-15)


def test_gauss_newton_matrix_of_cross_entropy_is_its_closed_form():
    model, loss, theta, expected = tanh_classifier()
    result = gauss_newton_matrix(model, loss, theta)
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-15)
    assert torch.equal(result, result.T)
    assert not result.requires_grad


def test_gauss_newton_matrix_leaves_out_the_curvature_of_the_model():
    problem = TanhRegression.random()
    inner, phi = problem.composite(), torch.zeros(1)
    result = gauss_newton_matrix(
        lambda theta: inner.model(theta, phi),
        lambda z: inner.loss(z, phi),
        torch.from_numpy(problem.theta),
    )
    np.testing.assert_allclose(result, problem.gauss_newton(), rtol=1e-12)
    assert np.linalg.norm(problem.hessian() - problem.gauss_newton()) > 1


def test_gauss_newton_runs_the_model_once():
    model = Mock(wraps=torch.tanh)
    operator = gauss_newton(model, lambda z: z.square().sum() / 2, THETA)
    jacobian = 1 - torch.tanh(THETA) ** 2
    torch.testing.assert_close(operator(V), jacobian**2 * V)
    torch.testing.assert_close(operator(2 * V), jacobian**2 * 2 * V)
    assert model.call_count == 1


def test_gauss_newton_is_zero_for_a_linear_loss_or_a_constant_model():
    linear = gauss_newton_vp(torch.tanh, torch.sum, THETA, V)
    constant = gauss_newton_vp(lambda _: PHI, lambda z: z.square().sum(), THETA, V)
    for result in (linear, constant):
        assert result.shape == THETA.shape
        assert not result.any()
        assert not result.requires_grad


def test_gauss_newton_matrix_is_zero_for_a_linear_loss_or_a_constant_model():
    linear = gauss_newton_matrix(torch.tanh, torch.sum, THETA)
    constant = gauss_newton_matrix(lambda _: PHI, lambda z: z.square().sum(), THETA)
    for result in (linear, constant):
        assert torch.equal(result, torch.zeros(4, 4, dtype=torch.float64))


def test_gauss_newton_matrix_keeps_the_precision_of_theta():
    result = gauss_newton_matrix(torch.tanh, lambda z: z.square().sum() / 2, THETA.float())
    assert result.dtype == torch.float32
    expected = torch.diag((1 - torch.tanh(THETA) ** 2) ** 2)
    torch.testing.assert_close(result, expected.float())


def test_row_jacobian_has_a_row_for_each_output():
    rng = np.random.default_rng(3)
    rows = torch.from_numpy(rng.normal(size=(7, 3)))
    theta = torch.tensor([0.3, -0.5, 1.2], dtype=torch.float64, requires_grad=True)
    found = row_jacobian(torch.exp(rows @ theta) + theta[0], theta)
    expected = torch.exp(rows @ theta)[:, None] * rows
    expected = expected + torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


def test_row_jacobian_of_linear_and_of_constant_outputs():
    rows = torch.from_numpy(np.random.default_rng(4).normal(size=(5, 2)))
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(row_jacobian(rows @ theta, theta), rows)
    assert not row_jacobian(rows[:, 0].clone(), theta).any()
