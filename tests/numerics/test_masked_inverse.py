"""Each row of a batch against numpy.linalg on its own submatrix, in both layouts."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skbilevel.numerics import masked_inverse as module
from skbilevel.numerics.masked_inverse import (
    embedded_sum,
    masked_cholesky,
    masked_inverse,
    masked_solve,
)
from tests.problems import symmetric_matrix

LAYOUTS = {"swept": 10**6, "factorised": 0}


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch):
    """Sends every size to one of the two layouts."""
    monkeypatch.setattr(module, "_SWEEP_LIMIT", LAYOUTS[request.param])
    return request.param


def problem(d, k, b, seed=0):
    """P with condition number 20, ascending index sets (k, b) and right-hand sides (k, b)."""
    rng = np.random.default_rng(seed)
    matrix = symmetric_matrix(np.linspace(0.5, 10, d), seed)
    missing = np.sort(np.argsort(rng.random((d, b)), axis=0)[:k], axis=0)
    return matrix, missing, rng.normal(size=(k, b))


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def submatrices(matrix, missing):
    return [matrix[np.ix_(m, m)] for m in missing.T]


def embedded(inverse, n_columns):
    """The matrix that the entries and cells of a batch of one row describe."""
    matrix = np.zeros(n_columns**2)
    matrix[inverse.cells] = inverse.entries
    return matrix.reshape(n_columns, n_columns)


def test_one_missing_cell_is_a_division(layout):
    matrix = np.array([[4.0, 1.0], [1.0, 0.5]])
    missing, rhs = np.array([[1, 0, 1]]), np.array([[3.0, 2.0, -1.0]])
    inverse = masked_inverse(*tensors(matrix, missing, rhs))
    np.testing.assert_allclose(inverse.entries, [2.0, 0.25, 2.0], rtol=1e-15)
    np.testing.assert_array_equal(inverse.cells, [3, 0, 3])
    np.testing.assert_allclose(inverse.solution, [[6.0, 0.5, -2.0]], rtol=1e-15)
    np.testing.assert_allclose(inverse.log_det, np.log([0.5, 4.0, 0.5]), rtol=1e-15)
    np.testing.assert_allclose(embedded_sum(inverse, 2), [[0.25, 0], [0, 4.0]], rtol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 15])
def test_entries_are_the_inverse_at_the_missing_rows_and_columns(layout, k):
    matrix, missing, rhs = problem(15, k, b=6)
    for m, r in zip(missing.T, rhs.T, strict=True):
        inverse = masked_inverse(*tensors(matrix, m[:, None], r[:, None]))
        expected = np.zeros_like(matrix)
        expected[np.ix_(m, m)] = np.linalg.inv(matrix[np.ix_(m, m)])
        np.testing.assert_allclose(embedded(inverse, 15), expected, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 15])
def test_solutions_and_log_determinants_are_those_of_the_submatrix_of_each_row(layout, k):
    matrix, missing, rhs = problem(15, k, b=9)
    inverse = masked_inverse(*tensors(matrix, missing, rhs))
    solved = masked_solve(*tensors(matrix, missing, rhs))
    assert inverse.solution.shape == solved.shape == (k, 9)
    for i, submatrix in enumerate(submatrices(matrix, missing)):
        expected = np.linalg.solve(submatrix, rhs[:, i])
        np.testing.assert_allclose(inverse.solution[:, i], expected, atol=2e-14)
        np.testing.assert_allclose(solved[:, i], expected, atol=2e-14)
        assert inverse.log_det[i].item() == pytest.approx(
            np.linalg.slogdet(submatrix)[1], abs=1e-13
        )


@given(d=st.integers(1, 8), b=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), data=st.data())
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_embedded_sum_adds_the_inverses_where_they_belong(layout, d, b, seed, data):
    """Index sets overlap and repeat, so that entries of many rows fall on one cell."""
    k = data.draw(st.integers(1, d))
    matrix, missing, rhs = problem(d, k, b, seed)
    expected = np.zeros((d, d))
    for m, submatrix in zip(missing.T, submatrices(matrix, missing), strict=True):
        expected[np.ix_(m, m)] += np.linalg.inv(submatrix)
    total = embedded_sum(masked_inverse(*tensors(matrix, missing, rhs)), d)
    np.testing.assert_allclose(total, expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_embedded_inverse_of_each_row_stands_at_its_missing_cells(layout, k):
    matrix, missing, rhs = problem(5, k, 7)
    dense = module.embedded(masked_inverse(*tensors(matrix, missing, rhs)), 5).numpy()
    for i, m in enumerate(missing.T):
        expected = np.zeros((5, 5))
        expected[np.ix_(m, m)] = np.linalg.inv(matrix[np.ix_(m, m)])
        np.testing.assert_allclose(dense[i], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_nothing_changes_where_the_layout_does(beyond):
    k = module._SWEEP_LIMIT + beyond
    matrix, missing, rhs = problem(20, k, b=5)
    inverse = masked_inverse(*tensors(matrix, missing, rhs))
    solved = masked_solve(*tensors(matrix, missing, rhs))
    expected = np.zeros_like(matrix)
    for i, (m, submatrix) in enumerate(zip(missing.T, submatrices(matrix, missing), strict=True)):
        solution = np.linalg.solve(submatrix, rhs[:, i])
        np.testing.assert_allclose(inverse.solution[:, i], solution, atol=1e-13)
        np.testing.assert_allclose(solved[:, i], solution, atol=1e-13)
        np.testing.assert_allclose(inverse.log_det[i], np.linalg.slogdet(submatrix)[1], rtol=1e-13)
        expected[np.ix_(m, m)] += np.linalg.inv(submatrix)
    np.testing.assert_allclose(embedded_sum(inverse, 20), expected, atol=1e-13)


@pytest.mark.parametrize("k", [1, 4, 15])
def test_cholesky_factors_are_those_of_the_submatrices(k):
    matrix, missing, _ = problem(15, k, b=6)
    factors = masked_cholesky(*tensors(matrix, missing))
    expected = np.linalg.cholesky(submatrices(matrix, missing))
    np.testing.assert_allclose(factors, expected, atol=1e-14)


def test_order_of_an_index_set_is_the_order_of_the_solution(layout):
    matrix, missing, rhs = problem(6, 4, b=3)
    flipped = [np.ascontiguousarray(array[::-1]) for array in (missing, rhs)]
    straight = masked_inverse(*tensors(matrix, missing, rhs))
    reverse = masked_inverse(*tensors(matrix, *flipped))
    np.testing.assert_allclose(reverse.solution.flip(0), straight.solution, atol=1e-14)
    np.testing.assert_allclose(embedded_sum(reverse, 6), embedded_sum(straight, 6), atol=1e-14)


@pytest.mark.parametrize("k", [5, 15])
def test_units_of_the_columns_cost_no_digits(layout, k):
    """P = D R D with D over 16 orders of magnitude: C = D^-1 (R_mm)^-1 D^-1 entry by entry."""
    correlation, missing, rhs = problem(15, k, b=8)
    units = 10.0 ** np.random.default_rng(1).permutation(np.linspace(-8, 8, 15))
    matrix = correlation * np.outer(units, units)
    for m, r in zip(missing.T, rhs.T, strict=True):
        own, expected = units[m], np.linalg.inv(correlation[np.ix_(m, m)])
        arguments = tensors(matrix, m[:, None], (own * r)[:, None])
        inverse = masked_inverse(*arguments)
        scaled = embedded(inverse, 15)[np.ix_(m, m)] * np.outer(own, own)
        np.testing.assert_allclose(scaled, expected, atol=2e-14)
        for solution in (inverse.solution, masked_solve(*arguments)):
            np.testing.assert_allclose(own * solution[:, 0].numpy(), expected @ r, atol=2e-14)
        log_det = np.linalg.slogdet(correlation[np.ix_(m, m)])[1] + 2 * np.log(own).sum()
        assert inverse.log_det.item() == pytest.approx(log_det, abs=1e-12)


def test_an_indefinite_submatrix_has_no_finite_log_determinant(layout):
    """Either an error that EM understands or NaN: never a number that looks like a density."""
    matrix = np.diag([1.0, -1.0, -2.0])
    missing, rhs = np.array([[0], [1], [2]]), np.ones((3, 1))
    if layout == "factorised":
        with pytest.raises(torch.linalg.LinAlgError):
            masked_inverse(*tensors(matrix, missing, rhs))
    else:
        assert masked_inverse(*tensors(matrix, missing, rhs)).log_det.isnan().all()


def test_arguments_are_left_as_they_were(layout):
    arguments = tensors(*problem(6, 3, b=4))
    before = [argument.clone() for argument in arguments]
    masked_inverse(*arguments)
    masked_solve(*arguments)
    for argument, copy in zip(arguments, before, strict=True):
        assert torch.equal(argument, copy)


def test_added_diagonal_is_each_row_s_own(layout):
    matrix, missing, rhs = problem(7, 4, 9)
    added = np.random.default_rng(1).random((4, 9))
    inverse = masked_inverse(*tensors(matrix, missing, rhs, added))
    for row, submatrix in enumerate(submatrices(matrix, missing)):
        expected = submatrix + np.diag(added[:, row])
        np.testing.assert_allclose(
            inverse.solution[:, row], np.linalg.solve(expected, rhs[:, row]), rtol=1e-12
        )
        np.testing.assert_allclose(inverse.log_det[row], np.linalg.slogdet(expected)[1])
        np.testing.assert_allclose(
            inverse.diagonal[:, row], np.linalg.inv(expected).diagonal(), rtol=1e-12
        )
    plain = sum(np.linalg.slogdet(submatrix)[1] for submatrix in submatrices(matrix, missing))
    assert abs(float(inverse.log_det.sum()) - plain) > 0.1


def test_zero_pivot_is_no_warning(layout):
    """Rounding can make a candidate of the solver singular; what follows is not finite."""
    if layout == "factorised":
        return
    singular = torch.ones(3, 3, dtype=torch.float64)
    inverse = masked_inverse(singular, torch.tensor([[0], [1]]), torch.ones(2, 1).double())
    assert not torch.isfinite(inverse.solution).all()
