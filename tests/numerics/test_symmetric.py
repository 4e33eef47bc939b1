"""Logarithm and exponential against closed forms and the general ones of SciPy."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from skbilevel.numerics.symmetric import symmetric_exp, symmetric_log
from tests.problems import symmetric_matrix

EPS = torch.finfo(torch.float64).eps
POSITIVE = symmetric_matrix(np.array([0.01, 0.3, 0.3, 2.0, 40.0]))
INDEFINITE = symmetric_matrix(np.array([-5.0, -0.1, 0.0, 1.0, 3.0]), seed=1)


def diagonal(*values, dtype=torch.float64):
    return torch.diag(torch.tensor(values, dtype=dtype))


def log(array):
    return symmetric_log(torch.from_numpy(array)).numpy()


def exp(array):
    return symmetric_exp(torch.from_numpy(array)).numpy()


def norm_relative_error(value, expected):
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def test_logarithm_is_that_of_scipy():
    assert norm_relative_error(log(POSITIVE), scipy.linalg.logm(POSITIVE)) < 1e-13


def test_exponential_is_that_of_scipy():
    assert norm_relative_error(exp(INDEFINITE), scipy.linalg.expm(INDEFINITE)) < 1e-13


def test_exponential_of_the_logarithm_is_the_matrix():
    assert norm_relative_error(exp(log(POSITIVE)), POSITIVE) < 1e-13


def test_logarithm_of_the_exponential_is_the_matrix():
    """An error of eps |exp A| in the smallest eigenvalue is one of eps e^(5 + 3) in its log."""
    assert norm_relative_error(log(exp(INDEFINITE)), INDEFINITE) < EPS * math.exp(8)


def test_exponential_of_a_reflection_is_hyperbolic():
    t = 1.5
    expected = [[math.cosh(t), math.sinh(t)], [math.sinh(t), math.cosh(t)]]
    np.testing.assert_allclose(exp(np.array([[0, t], [t, 0]])), expected, rtol=1e-15)


def test_functions_of_a_diagonal_are_those_of_its_entries():
    values = [0.5, 1.0, 7.0]
    assert torch.equal(symmetric_log(diagonal(*values)), diagonal(*values).diag().log().diag())
    assert torch.equal(symmetric_exp(diagonal(*values)), diagonal(*values).diag().exp().diag())


def test_trace_of_the_logarithm_is_the_log_determinant():
    expected = np.log([0.01, 0.3, 0.3, 2.0, 40.0]).sum()
    assert np.trace(log(POSITIVE)) == pytest.approx(expected, rel=1e-13)


def test_logarithm_of_the_inverse_is_minus_the_logarithm():
    assert norm_relative_error(log(np.linalg.inv(POSITIVE)), -log(POSITIVE)) < 1e-12


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_scale_adds_its_logarithm_to_the_diagonal(scale):
    expected = log(POSITIVE) + math.log(scale) * np.eye(5)
    assert norm_relative_error(log(scale * POSITIVE), expected) < 1e-13


@pytest.mark.parametrize(
    ("function", "matrix", "tolerance"),
    [(log, POSITIVE, 1e-13), (exp, INDEFINITE, 1e-14)],
    ids=["log", "exp"],
)
def test_permuting_rows_and_columns_permutes_the_result(function, matrix, tolerance):
    order = np.array([3, 0, 4, 1, 2])
    permuted = function(matrix[np.ix_(order, order)])
    assert norm_relative_error(permuted, function(matrix)[np.ix_(order, order)]) < tolerance
    assert norm_relative_error(permuted, function(matrix)) > 0.1


def test_exponential_is_symmetric_to_the_bit():
    value = exp(INDEFINITE)
    np.testing.assert_array_equal(value, value.T)


def test_exponential_is_positive_definite_for_any_symmetric_matrix():
    assert np.linalg.eigvalsh(exp(INDEFINITE)).min() == pytest.approx(math.exp(-5), rel=1e-11)


# Near-singular matrices


@pytest.mark.parametrize("lost", [1e-30, 0.0, -1e-20])
def test_eigenvalue_lost_in_rounding_counts_as_the_rounding_error_of_the_largest(lost):
    expected = diagonal(math.log(4), math.log(4 * EPS))
    torch.testing.assert_close(symmetric_log(diagonal(4.0, lost)), expected, rtol=1e-15, atol=0)


def test_small_eigenvalue_above_rounding_is_kept():
    small = 2 * EPS
    assert symmetric_log(diagonal(1.0, small))[1, 1].item() == pytest.approx(math.log(small))


def test_logarithm_of_a_matrix_of_rank_one_is_finite_and_gives_it_back():
    """Rounding of a logarithm of norm log(eps) = -36 is one of 36 eps in the exponential."""
    u = np.array([1.0, 2.0, -2.0]) / 3
    projection = np.outer(u, u)
    assert np.linalg.eigvalsh(log(projection))[:2] == pytest.approx([math.log(EPS)] * 2, rel=1e-2)
    np.testing.assert_allclose(exp(log(projection)), projection, rtol=0, atol=36 * EPS)


def test_rounding_is_that_of_the_type_of_the_matrix():
    value = symmetric_log(diagonal(1.0, 1e-12, dtype=torch.float32))
    assert value.dtype == torch.float32
    expected = math.log(torch.finfo(torch.float32).eps)
    assert value[1, 1].item() == pytest.approx(expected, rel=1e-6)
    assert symmetric_exp(value).dtype == torch.float32


def test_matrix_of_one_number():
    assert symmetric_log(diagonal(math.e)).item() == pytest.approx(1, rel=1e-15)
    assert symmetric_exp(diagonal(1.0)).item() == pytest.approx(math.e, rel=1e-15)


def test_matrix_given_is_not_changed():
    matrix = torch.from_numpy(POSITIVE.copy())
    symmetric_exp(symmetric_log(matrix))
    np.testing.assert_array_equal(matrix.numpy(), POSITIVE)
