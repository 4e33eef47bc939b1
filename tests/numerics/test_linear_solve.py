import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skbilevel.numerics.linear_solve import (
    LinearSolve,
    Matrix,
    conjugate_gradient,
    damped,
    direct_solve,
)
from tests.problems import symmetric_matrix


def product(matrix):
    """The operator of a NumPy matrix."""
    tensor = torch.from_numpy(np.asarray(matrix, dtype=np.float64))
    return lambda v: tensor @ v


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(n, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=n))


def exact(matrix, b):
    """The solution by a direct solver."""
    return np.linalg.solve(matrix, b.numpy())


def true_residual(matrix, solve, b):
    return np.linalg.norm(b.numpy() - matrix @ solve.value.numpy())


@pytest.fixture
def matrix():
    """Symmetric positive definite, condition number 50."""
    return symmetric_matrix(np.linspace(1, 50, 12))


def test_one_equation_is_solved_in_one_step():
    solve = conjugate_gradient(product([[4.0]]), vector(2.0))
    assert solve.value.item() == 0.5
    assert solve.residual_norm == 0.0
    assert (solve.n_iter, solve.converged, solve.negative_curvature) == (1, True, False)


def test_diagonal_system_of_integers_is_solved_exactly():
    solve = conjugate_gradient(product(np.diag([1.0, 2.0])), vector(3.0, 8.0), rtol=1e-14)
    torch.testing.assert_close(solve.value, vector(3.0, 4.0), rtol=0, atol=1e-13)
    assert solve.converged


def test_solution_is_that_of_a_direct_solver(matrix):
    b = normal(12)
    solve = conjugate_gradient(product(matrix), b, rtol=1e-12, max_iter=30)
    np.testing.assert_allclose(solve.value, exact(matrix, b), rtol=1e-11)
    assert np.linalg.norm(solve.value) > 1e-2


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_n_steps_solve_a_system_of_n_equations(n):
    matrix, b = symmetric_matrix(np.linspace(1, 2, n)), normal(n)
    solve = conjugate_gradient(product(matrix), b, max_iter=n, rtol=1e-12)
    assert solve.converged
    np.testing.assert_allclose(solve.value, exact(matrix, b), rtol=1e-11)


@pytest.mark.parametrize("n_distinct", [1, 2, 3])
def test_as_many_steps_as_distinct_eigenvalues_suffice(n_distinct):
    matrix = symmetric_matrix(np.arange(10) % n_distinct + 1.0)
    solve = conjugate_gradient(product(matrix), normal(10), rtol=1e-10)
    assert solve.converged
    assert solve.n_iter == n_distinct


@pytest.mark.parametrize("n_steps", [1, 2, 3, 6])
def test_the_iterate_after_k_steps_is_the_kth_of_scipy(matrix, n_steps):
    b = normal(12)
    expected, _ = scipy.sparse.linalg.cg(matrix, b.numpy(), rtol=0, atol=0, maxiter=n_steps)
    solve = conjugate_gradient(product(matrix), b, max_iter=n_steps)
    assert solve.n_iter == n_steps
    np.testing.assert_allclose(solve.value, expected, rtol=1e-12, atol=1e-14)


def test_the_first_step_is_the_exact_line_search(matrix):
    b = normal(12).numpy()
    solve = conjugate_gradient(product(matrix), torch.from_numpy(b), max_iter=1)
    np.testing.assert_allclose(solve.value, b * (b @ b) / (b @ matrix @ b), rtol=1e-14)


def test_steps_cut_short_are_not_convergence_and_the_residual_is_true(matrix):
    b = normal(12)
    solve = conjugate_gradient(product(matrix), b, max_iter=4)
    assert not solve.converged
    assert not solve.negative_curvature
    assert solve.residual_norm > 1e-3
    assert solve.residual_norm == pytest.approx(true_residual(matrix, solve, b), rel=1e-13)


@pytest.mark.parametrize("n_steps", [0, 1, 4])
def test_residual_of_the_recursion_takes_one_product_less(matrix, n_steps):
    def counted(v):
        calls.append(v)
        return product(matrix)(v)

    b, solves, counts = normal(12), [], []
    for certify in (True, False):
        calls = []
        solves.append(conjugate_gradient(counted, b, max_iter=n_steps, certify=certify))
        counts.append(len(calls))
    assert counts == [n_steps + 1, n_steps]
    assert torch.equal(solves[0].value, solves[1].value)
    assert solves[1].residual_norm == pytest.approx(solves[0].residual_norm, rel=1e-10)


def test_no_step_returns_the_start(matrix):
    b = normal(12)
    solve = conjugate_gradient(product(matrix), b, max_iter=0)
    assert not solve.value.any()
    assert solve.n_iter == 0
    assert not solve.converged
    assert solve.residual_norm == pytest.approx(np.linalg.norm(b))


def test_an_operator_that_changes_its_mind_cannot_pass_for_convergence():
    """The recursive residual falls to zero with the first operator; the true one does not."""
    matrix = symmetric_matrix(np.linspace(1, 3, 4))
    calls = iter(range(100))

    def operator(v):
        return product(matrix if next(calls) < 4 else 2 * matrix)(v)

    solve = conjugate_gradient(operator, normal(4))
    assert not solve.converged
    assert solve.residual_norm == pytest.approx(float(torch.linalg.vector_norm(normal(4))))


@pytest.mark.parametrize("x0", [None, vector(1.0, -2.0, 3.0)])
def test_zero_right_hand_side_has_the_solution_zero(x0):
    solve = conjugate_gradient(product(np.eye(3)), torch.zeros(3, dtype=torch.float64), x0=x0)
    assert not solve.value.any()
    assert (solve.residual_norm, solve.n_iter, solve.converged) == (0.0, 0, True)


def test_singular_consistent_system_gives_the_solution_of_least_norm():
    matrix = symmetric_matrix(np.array([0.0, 0.0, 1.0, 2.0, 3.0]))
    b = torch.from_numpy(matrix @ np.arange(5.0))
    solve = conjugate_gradient(product(matrix), b, rtol=1e-10)
    assert solve.converged
    assert solve.n_iter == 3
    np.testing.assert_allclose(solve.value, np.linalg.pinv(matrix) @ b.numpy(), rtol=1e-9)


def test_singular_inconsistent_system_does_not_claim_convergence():
    solve = conjugate_gradient(product(np.diag([1.0, 0.0])), vector(1.0, 1.0))
    assert not solve.converged
    assert solve.negative_curvature
    assert solve.residual_norm >= 1.0
    assert solve.value.isfinite().all()


def test_indefinite_operator_is_reported_with_the_last_good_iterate():
    """diag(1, -1/2): the first step is good, x = 2b/(1/2) = (4, 4); the second sees p'Ap < 0."""
    solve = conjugate_gradient(product(np.diag([1.0, -0.5])), vector(1.0, 1.0))
    assert solve.negative_curvature
    assert not solve.converged
    assert solve.n_iter == 1
    torch.testing.assert_close(solve.value, vector(4.0, 4.0))
    assert solve.residual_norm == pytest.approx(np.hypot(1 - 4, 1 + 2))


@pytest.mark.parametrize("x0", [None, vector(0.5, -0.25)])
@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_no_positive_curvature_at_the_first_step_returns_the_start(curvature, x0):
    solve = conjugate_gradient(product(curvature * np.eye(2)), vector(1.0, 1.0), x0=x0)
    torch.testing.assert_close(solve.value, vector(0.0, 0.0) if x0 is None else x0)
    assert solve.negative_curvature
    assert not solve.converged
    assert solve.n_iter == 0


@given(n_negative=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_any_negative_eigenvalue_is_found(n_negative, seed):
    """A generic right-hand side reaches every eigenvector within n steps."""
    matrix = symmetric_matrix(np.r_[np.linspace(-3, -1, n_negative), 1.0, 2.0], seed)
    solve = conjugate_gradient(product(matrix), normal(n_negative + 2, seed), rtol=1e-10)
    assert solve.negative_curvature
    assert not solve.converged
    assert solve.value.isfinite().all()


@pytest.mark.parametrize("first_bad_call", [0, 1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_operator_that_turns_bad_neither_loops_nor_converges(matrix, first_bad_call, bad):
    calls = iter(range(10_000))

    def operator(v):
        return product(matrix)(v) * (bad if next(calls) >= first_bad_call else 1)

    solve = conjugate_gradient(operator, normal(12), max_iter=5_000)
    assert not solve.converged
    assert not solve.negative_curvature
    assert solve.n_iter <= first_bad_call + 1
    assert solve.value.isfinite().all()
    assert not solve.residual_norm < np.inf


def test_nan_in_the_right_hand_side_does_not_converge(matrix):
    b = normal(12)
    b[3] = torch.nan
    solve = conjugate_gradient(product(matrix), b)
    assert not solve.converged
    assert solve.n_iter == 0
    assert not solve.value.any()


def test_the_inverse_as_preconditioner_solves_in_one_step(matrix):
    b = normal(12)
    inverse = product(np.linalg.inv(matrix))
    solve = conjugate_gradient(product(matrix), b, preconditioner=inverse, rtol=1e-10)
    assert solve.converged
    assert solve.n_iter == 1
    np.testing.assert_allclose(solve.value, exact(matrix, b), rtol=1e-10)


def test_preconditioned_iterate_after_k_steps_is_the_kth_of_scipy(matrix):
    b, inverse = normal(12), np.diag(1 / np.diag(matrix))
    expected, _ = scipy.sparse.linalg.cg(matrix, b.numpy(), rtol=0, atol=0, maxiter=3, M=inverse)
    solve = conjugate_gradient(product(matrix), b, max_iter=3, preconditioner=product(inverse))
    np.testing.assert_allclose(solve.value, expected, rtol=1e-12)


def test_a_preconditioner_removes_bad_scaling():
    scales = 10.0 ** np.linspace(-3, 3, 30)
    matrix = scales[:, None] * symmetric_matrix(np.linspace(1, 2, 30)) * scales
    jacobi = product(np.diag(1 / np.diag(matrix)))
    b = torch.from_numpy(matrix @ (1 / scales))
    plain = conjugate_gradient(product(matrix), b)
    preconditioned = conjugate_gradient(product(matrix), b, preconditioner=jacobi)
    assert not plain.converged
    assert preconditioned.converged
    assert preconditioned.n_iter < 20


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_a_preconditioner_that_is_not_positive_does_not_claim_convergence(matrix, sign):
    solve = conjugate_gradient(product(matrix), normal(12), preconditioner=lambda r: sign * r)
    assert solve.value.isfinite().all()
    assert solve.converged == (true_residual(matrix, solve, normal(12)) < 1e-8)


def test_a_preconditioner_without_a_sign_ends_the_iteration_and_not_the_program():
    """The first two products r'M r are 0."""
    solve = conjugate_gradient(
        product(np.eye(2)), vector(1.0, 1.0), preconditioner=product(np.diag([1.0, -1.0]))
    )
    assert not solve.converged
    assert torch.isfinite(solve.value).all()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("seed", range(10))
def test_more_steps_than_rounding_allows_end_in_single_precision(seed, scale):
    root = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
    matrix, b = scale * (root @ root.T + torch.eye(8)), torch.ones(8)
    solve = conjugate_gradient(lambda v: matrix @ v, b, rtol=0.0, max_iter=200)
    assert solve.value.dtype == torch.float32
    assert solve.residual_norm <= 1e-3 * float(b.norm())


def test_a_step_beyond_the_range_of_numbers_is_not_taken():
    b = torch.full((3,), 1e18)
    solve = conjugate_gradient(lambda v: 1e-42 * v, b)
    assert not solve.converged
    assert torch.isfinite(solve.value).all()


def test_start_at_the_solution_takes_no_step(matrix):
    b = normal(12)
    x0 = torch.from_numpy(exact(matrix, b))
    solve = conjugate_gradient(product(matrix), b, x0=x0)
    assert (solve.n_iter, solve.converged) == (0, True)
    assert torch.equal(solve.value, x0)


def test_start_matches_scipy_and_is_left_as_it_was(matrix):
    b, x0 = normal(12), normal(12, seed=2)
    before = x0.clone()
    expected, _ = scipy.sparse.linalg.cg(
        matrix, b.numpy(), x0=before.numpy(), rtol=0, atol=0, maxiter=4
    )
    solve = conjugate_gradient(product(matrix), b, x0=x0, max_iter=4)
    # A coordinate may be a thousandth of the others, which is where the rounding is.
    np.testing.assert_allclose(solve.value, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(x0, before)


def test_damping_adds_to_the_diagonal(matrix):
    b = normal(12)
    solve = conjugate_gradient(product(matrix), b, damping=0.7, rtol=1e-12, max_iter=30)
    np.testing.assert_allclose(solve.value, exact(matrix + 0.7 * np.eye(12), b), rtol=1e-11)
    assert solve.converged
    torch.testing.assert_close(damped(product(matrix), 0.7)(b), product(matrix)(b) + 0.7 * b)


def test_damping_above_the_most_negative_eigenvalue_makes_the_system_definite():
    solve = conjugate_gradient(product(np.diag([1.0, -0.5])), vector(1.0, 1.0), damping=1.0)
    assert solve.converged
    assert not solve.negative_curvature
    torch.testing.assert_close(solve.value, vector(0.5, 2.0))


@pytest.mark.parametrize(("rtol", "atol"), [(1e-2, 0.0), (0.0, 0.05), (1e-3, 0.05)])
def test_steps_end_at_the_larger_of_the_two_tolerances(matrix, rtol, atol):
    b = normal(12)
    tolerance = max(rtol * np.linalg.norm(b), atol)
    solve = conjugate_gradient(product(matrix), b, rtol=rtol, atol=atol)
    one_less = conjugate_gradient(product(matrix), b, max_iter=solve.n_iter - 1)
    assert solve.converged
    assert solve.residual_norm <= tolerance < one_less.residual_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_tolerance_is_reached_in_either_precision(matrix, dtype):
    tensor = torch.from_numpy(matrix).to(dtype)
    solve = conjugate_gradient(lambda v: tensor @ v, normal(12).to(dtype))
    assert solve.converged
    assert solve.value.dtype == dtype


def test_result_has_no_graph(matrix):
    b = normal(12).requires_grad_()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    solve = conjugate_gradient(lambda v: scale * product(matrix)(v), b)
    assert solve.converged
    assert not solve.value.requires_grad


def test_result_is_frozen():
    solve = LinearSolve(vector(1.0), 0.0, 1, True, False)
    with pytest.raises(AttributeError):
        solve.converged = False


@given(
    n=st.integers(1, 9),
    condition=st.floats(1, 1e4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=100)
def test_positive_definite_systems_are_solved(n, condition, scale, seed):
    eigenvalues = scale * np.geomspace(1, condition, n)
    matrix, b = symmetric_matrix(eigenvalues, seed), normal(n, seed)
    solve = conjugate_gradient(product(matrix), b, max_iter=20 * n)
    assert solve.converged
    error = np.linalg.norm(solve.value.numpy() - exact(matrix, b))
    # |x - x*| <= |A^-1| |b - A x|, and the direct solver errs too.
    assert error <= 1.01 * solve.residual_norm / eigenvalues[0] + 1e-9 * float(solve.value.norm())


@pytest.mark.parametrize(("n", "condition"), [(50, 1e3), (20, 1e6)])
def test_moderately_conditioned_systems_converge_at_the_defaults(n, condition):
    A = torch.from_numpy(symmetric_matrix(np.geomspace(1, condition, n), 0))
    expected = torch.from_numpy(np.random.default_rng(0).normal(size=n))
    result = conjugate_gradient(lambda v: A @ v, A @ expected)
    assert result.converged
    assert result.residual_norm <= 1.5e-8 * torch.linalg.vector_norm(A @ expected)


def test_direct_solve_is_the_solution_with_its_own_residual(matrix):
    b = normal(12).requires_grad_()
    solve = direct_solve(Matrix(torch.from_numpy(matrix)), b)
    np.testing.assert_allclose(solve.value, exact(matrix, b.detach()), rtol=1e-12)
    assert solve.residual_norm <= 1e-14 * np.linalg.norm(matrix)
    assert (solve.n_iter, solve.converged, solve.negative_curvature) == (1, True, False)


def test_direct_solve_refuses_products_alone_and_matrices_that_are_not_positive():
    with pytest.raises(TypeError, match="needs a Matrix, got function"):
        direct_solve(product(np.eye(2)), vector(1.0, 1.0))
    with pytest.raises(torch.linalg.LinAlgError):
        direct_solve(Matrix(torch.diag(vector(1.0, -1.0))), vector(1.0, 1.0))
