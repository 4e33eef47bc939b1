"""Values as codes and back."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators.column_units import (
    column_units,
    constants,
    one_hot,
    units_of,
    widths,
)

KINDS = ("gaussian", "bernoulli", "categorical", "student_t")
CENTER, SCALE = np.array([3.0, 7.0, 7.0, -50.0]), np.array([0.5, 9.0, 9.0, 100.0])


def table(n_rows=40, seed=0):
    """A number, one of -1 and 4, one of 1, 2.5 and 10, and a number of another size."""
    rng = np.random.default_rng(seed)
    return np.column_stack(
        [
            3 + 0.5 * rng.normal(size=n_rows),
            rng.choice([-1.0, 4.0], n_rows),
            rng.choice([1.0, 2.5, 10.0], n_rows),
            -50 + 100 * rng.normal(size=n_rows),
        ]
    )


def units(X=None):
    return column_units(table() if X is None else X, KINDS, CENTER, SCALE)


def test_decoded_is_the_inverse_of_coded():
    X = table(seed=1)
    coded = units().coded(X)
    assert_allclose(units().decoded(coded), X, rtol=1e-13)
    assert_allclose(coded[:, [0, 3]], ((X - CENTER) / SCALE)[:, [0, 3]], rtol=1e-14)
    assert_array_equal(coded[:, 1], X[:, 1] == 4.0)
    assert_array_equal(coded[:, 2], np.searchsorted([1.0, 2.5, 10.0], X[:, 2]))
    assert set(coded[:, 2]) == {0.0, 1.0, 2.0}


def test_missing_cells_stay_missing_and_say_nothing_about_the_units():
    X = table()
    X[::3, 0] = X[1::3, 1] = X[2::3, 2] = np.nan
    coded = units(X).coded(X)
    assert_array_equal(np.isnan(coded), np.isnan(X))
    assert_allclose(units(X).decoded(coded), X, rtol=1e-13)


def test_value_that_is_no_category_gets_the_code_of_the_nearest():
    rows = np.array([[3.0, 9.0, 5.9, 0.0], [3.0, -8.0, 6.5, 0.0], [3.0, 1.0, 2.6, 0.0]])
    assert_array_equal(units().coded(rows)[:, 1:3], [[1, 1], [0, 2], [0, 1]])
    assert_array_equal(units().unknown(rows), [False, True, True, False])
    assert not units().unknown(table(seed=2)).any()
    assert not units().unknown(np.full((2, 4), np.nan)).any()


def test_between_two_codes_values_are_interpolated():
    codes = np.array([[0.0, 0.25, 1.5, 0.0], [0.0, 1.0, 0.5, 0.0]])
    assert_allclose(units().decoded(codes)[:, 1], [-1 + 0.25 * 5, 4.0])
    assert_allclose(units().decoded(codes)[:, 2], [6.25, 1.75])


def test_leading_dimensions_are_kept():
    codes = units().coded(table(seed=3))
    stacked = np.stack([codes, codes[::-1]])
    assert_array_equal(units().decoded(stacked)[1], units().decoded(codes[::-1]))


def test_constant_column_is_decoded_to_the_bit():
    X = table()
    X[:, 0] = 0.1 + 0.2
    X[::2, 0] = np.nan
    decoded = units(X).decoded(np.random.default_rng(0).normal(size=(3, 5, 4)))
    assert (decoded[..., 0] == 0.1 + 0.2).all()
    assert_array_equal(np.isnan(constants(X)), [False, True, True, True])


def test_log_scale_is_the_jacobian_of_the_continuous_columns():
    assert_allclose(units().log_scale(), [np.log(0.5), 0.0, 0.0, np.log(100.0)])


def test_state_is_plain_and_gives_the_units_back():
    X = table()
    X[:, 0] = 5.0
    state = units(X).state()
    assert all(isinstance(name, str) for name in state["kinds"])
    ours = units_of(state)
    assert ours.kinds == KINDS
    rows = table(seed=4)
    assert_array_equal(ours.coded(rows), units(X).coded(rows))
    assert_array_equal(ours.decoded(rows), units(X).decoded(rows))


def test_counts_are_those_of_the_categories():
    assert_array_equal(units().n_categories, [0, 2, 3, 0])
    assert_array_equal(units().is_continuous, [True, False, False, True])
    assert_array_equal(widths(units().n_categories), [1, 1, 3, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot_marks_the_category_and_leaves_other_columns(dtype):
    codes = torch.tensor([[0.7, 1.0, 2.0, -3.0], [5.0, 0.0, 0.0, 1.0]], dtype=dtype)
    ours = one_hot(codes, torch.tensor([0, 2, 3, 0]))
    expected = [[0.7, 1.0, 0, 0, 1, -3.0], [5.0, 0.0, 1, 0, 0, 1.0]]
    assert ours.dtype == dtype
    assert_array_equal(ours, torch.tensor(expected, dtype=dtype))
    assert ours.shape[1] == widths(np.array([0, 2, 3, 0])).sum()


def test_code_between_two_categories_is_shared_by_them():
    codes = torch.tensor([[0.25], [1.6], [2.0]], dtype=torch.float64)
    ours = one_hot(codes, torch.tensor([4]))
    assert_allclose(ours, [[0.75, 0.25, 0, 0], [0, 0.4, 0.6, 0], [0, 0, 1, 0]], atol=1e-15)


def test_one_hot_of_no_column_of_several_categories_is_the_same_tensor():
    codes = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    assert one_hot(codes, torch.tensor([0, 2, 0])) is codes
