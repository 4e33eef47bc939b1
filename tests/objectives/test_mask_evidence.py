"""What is told of a mask, against loops over the cells."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import bernoulli, norm

from skbilevel.objectives.mask_evidence import log_mask_at_rates, log_mask_given_others
from skbilevel.objectives.normal import NormalParameters, left_out, precision
from skbilevel.objectives.self_masking import SelfMasking
from tests.reference.gaussian import condition

LOCATION = np.array([0.3, -0.2, 1.0])
COVARIANCE = np.array([[1.0, 0.6, -0.3], [0.6, 2.0, 0.4], [-0.3, 0.4, 1.5]])


def model():
    return precision(NormalParameters(torch.from_numpy(LOCATION), torch.from_numpy(COVARIANCE)))


def table(n_rows=20):
    """Complete rows, and which of their cells count as missing: none of the last column."""
    rng = np.random.default_rng(0)
    missing = rng.random((n_rows, 3)) < np.array([0.3, 0.6, 0.0])
    return rng.multivariate_normal(LOCATION, COVARIANCE, n_rows), missing


def test_mask_at_its_rate_has_the_probability_of_bernoulli_draws():
    _, missing = table()
    expected = bernoulli.logpmf(missing, missing.mean(axis=0)).sum(axis=0)
    assert expected[0] < 0
    assert_allclose(log_mask_at_rates(torch.from_numpy(missing)), expected, atol=1e-10)


@pytest.mark.parametrize("is_missing", [True, False])
def test_mask_that_is_the_same_in_all_rows_is_certain(is_missing):
    assert_allclose(log_mask_at_rates(torch.full((50, 2), is_missing)), 0.0, atol=1e-9)


def test_cell_is_told_by_its_distribution_given_the_others():
    rows, _ = table()
    mean, variance = left_out(torch.from_numpy(rows), model())
    for i, j in np.ndindex(rows.shape):
        row = rows[i].copy()
        row[j] = np.nan
        expected, conditional, _ = condition(row, LOCATION, COVARIANCE)
        assert mean[i, j] == pytest.approx(expected[j], abs=1e-12)
        assert variance[i, j] == pytest.approx(conditional[j, j], abs=1e-12)


def test_mask_is_told_by_the_other_columns_and_over_its_rate_that_is_the_insight():
    rows, missing = table()
    side, threshold, width = [1.0, -1.0, 0.0], [0.5, -0.4, 0.0], [0.3, 0.0, 1.0]
    own = SelfMasking(*(torch.from_numpy(np.array(part)) for part in (side, threshold, width)))
    told = log_mask_given_others(torch.from_numpy(rows), torch.from_numpy(missing), model(), own)
    at_rates = log_mask_at_rates(torch.from_numpy(missing))
    for j in range(2):
        expected = -bernoulli.logpmf(missing[:, j], missing[:, j].mean()).sum()
        for row, is_missing in zip(rows, missing[:, j], strict=True):
            hidden = np.where(np.arange(3) == j, np.nan, row)
            mean, conditional, _ = condition(hidden, LOCATION, COVARIANCE)
            spread = np.hypot(width[j], conditional[j, j] ** 0.5)
            ratio = side[j] * (mean[j] - threshold[j]) / spread
            expected += norm.logcdf(ratio if is_missing else -ratio)
        assert abs(expected) > 0.1
        assert told[j] - at_rates[j] == pytest.approx(expected, abs=1e-10)
    assert_array_equal(told[2], 0.0)
