"""Weights by which observed cells stand for missing ones."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.special import expit

from skbilevel.estimators.missing_odds import missing_odds


def table(slope, n=4000, seed=0):
    """Three columns of which the first decides whether the second is missing, and what is seen."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=n)
    rows = np.column_stack([first, 0.8 * first + 0.6 * rng.normal(size=n), rng.normal(size=n)])
    observed = np.ones(rows.shape, dtype=bool)
    observed[:, 1] = rng.random(n) > expit(slope * first)
    return rows, observed


def test_weighted_observed_cells_have_the_mean_of_missing_ones():
    """The identity of importance weighting, where a mean of the observed is far off."""
    rows, observed = table(slope=0.5)
    known, weights = observed[:, 1], missing_odds(observed, rows)[:, 1]
    missing = rows[~known, 1].mean()
    assert abs(rows[known, 1].mean() - missing) > 0.3
    assert np.average(rows[known, 1], weights=weights[known]) == pytest.approx(missing, abs=0.06)


def test_weights_are_the_odds_that_hid_the_cells():
    rows, observed = table(slope=0.7)
    weights = missing_odds(observed, rows)[:, 1]
    inside = (weights > 0.4) & (weights < 2.5)
    slope = np.polyfit(rows[inside, 0], np.log(weights[inside]), 1)[0]
    assert slope == pytest.approx(0.7, abs=0.1)


def test_weights_have_mean_1_and_are_bounded():
    rows, observed = table(slope=4.0)
    weights = missing_odds(observed, rows)[:, 1]
    assert weights[observed[:, 1]].mean() == pytest.approx(1, rel=1e-12)
    assert weights.max() / weights.min() <= 9 * (1 + 1e-12)


def test_what_goes_missing_at_random_weighs_about_the_same():
    rows, observed = table(slope=0.0)
    weights = missing_odds(observed, rows)[:, 1]
    assert 0.7 < weights.min() < weights.max() < 1.4


def test_columns_that_can_tell_nothing_weigh_1():
    rows, observed = table(slope=1.0)
    few = observed.copy()
    few[:, 1] = True
    few[:9, 1] = False
    assert_array_equal(missing_odds(few, rows), np.ones(rows.shape))
    assert_array_equal(missing_odds(observed[:, 1:2], rows[:, 1:2]), np.ones((4000, 1)))


def test_odds_that_are_certain_do_not_overflow():
    """One row that is observed against all odds."""
    rng = np.random.default_rng(0)
    first = np.r_[1e6, rng.normal(size=1999)]
    observed = np.ones((2000, 2), dtype=bool)
    observed[1:, 1] = first[1:] <= 0
    weights = missing_odds(observed, np.column_stack([first, rng.normal(size=2000)]))
    assert np.isfinite(weights).all()
