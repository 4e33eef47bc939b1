"""The table of estimates tells what it is given."""

import numpy as np
from scipy.stats import norm

from skbilevel.estimators.estimate_table import estimate_table


def test_rows_tell_estimate_error_and_interval():
    coef, stderr = np.array([1.5, -200.0]), np.array([0.5, 10.0])
    header, first, second = estimate_table(["a", "longer name"], coef, stderr, 0.9)
    assert header.split() == ["coef", "std", "err", "z", "P>|z|", "[0.05", "0.95]"]
    name, *numbers = first.split()
    low, high = norm.interval(0.9, 1.5, 0.5)
    told = [1.5, 0.5, 3.0, 2 * norm.sf(3.0), low, high]
    assert name == "a"
    np.testing.assert_allclose(np.array(numbers, dtype=float), told, rtol=1e-3, atol=5e-4)
    assert second.startswith("longer name")
    assert len(first) == len(second) == len(header)


def test_estimate_without_an_error_has_no_z():
    _, row = estimate_table(["known"], np.array([2.0]), np.zeros(1), 0.95)
    assert row.split() == ["known", "2", "0", "nan", "nan", "2", "2"]
