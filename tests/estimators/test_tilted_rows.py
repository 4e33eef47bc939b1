"""What a tilt adds to imputed rows, against dense conditional covariances."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators import tilted_rows
from skbilevel.estimators.imputation_base import fit_normal
from skbilevel.estimators.linear_fit import Table
from skbilevel.estimators.tilted_rows import tilt_shift
from skbilevel.numerics.observed import mean_and_deviation
from tests.incomplete_data import incomplete
from tests.reference.gaussian import condition

GAMMA = np.array([0.5, -1.0, 0.0, 0.3, 2.0])


@pytest.fixture(scope="module")
def case():
    """Rows, one complete and one that is missing as a whole, and their normal."""
    X, gaps = incomplete(80, 5, rate=0.4)
    gaps[0], gaps[1] = X[0], np.nan
    table = Table(gaps, *mean_and_deviation(gaps))
    return table.standardized(), fit_normal(table, np.random.RandomState(0))


def test_shift_is_the_conditional_covariance_times_the_tilt(case):
    Z, normal = case
    parameters = [
        part.numpy() for part in (normal.parameters.location, normal.parameters.covariance)
    ]
    shift = tilt_shift(Z, normal, GAMMA)
    expected = np.array([condition(row, *parameters)[1] @ GAMMA for row in Z])
    assert_allclose(shift, expected, rtol=1e-9, atol=1e-12)
    assert_allclose(shift[1], parameters[1] @ GAMMA, rtol=1e-9)
    assert_array_equal(shift[~np.isnan(Z)], 0.0)
    assert np.linalg.norm(expected) > 1


def test_shift_is_linear_in_the_tilt_and_zero_for_none(case):
    Z, normal = case
    assert_array_equal(tilt_shift(Z, normal, np.zeros(5)), np.zeros(Z.shape))
    whole = tilt_shift(Z, normal, GAMMA)
    parts = sum(tilt_shift(Z, normal, part) for part in np.diag(GAMMA))
    assert_allclose(parts, whole, rtol=1e-9, atol=1e-13)


def test_rows_are_shifted_in_parts_and_one_by_one_alike(case, monkeypatch):
    Z, normal = case
    whole = tilt_shift(Z, normal, GAMMA)
    monkeypatch.setattr(tilted_rows, "ROWS_AT_A_TIME", 7)
    assert_allclose(tilt_shift(Z, normal, GAMMA), whole, rtol=1e-12, atol=1e-15)
    assert_allclose(tilt_shift(Z[5:6], normal, GAMMA), whole[5:6], rtol=1e-12, atol=1e-15)
