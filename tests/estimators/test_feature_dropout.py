"""Random masks: their rates, what they copy, and what they always leave."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators.feature_dropout import (
    at_own_rates,
    at_rate,
    copied,
    dropout,
    held_out_cells,
    judging_cells,
    masking,
)


def stream(seed=0):
    return np.random.RandomState(seed)


def patterns(n_rows=4000, n_columns=6, seed=1):
    """Rows observed in one of three ways; every row with a cell."""
    ways = np.array([[1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=bool)
    return ways[np.random.default_rng(seed).choice(3, n_rows, p=[0.5, 0.2, 0.3]), :n_columns]


def within(share, expected, n):
    """Four standard errors of a share of n draws."""
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_copies_are_rows_of_the_table_as_often_as_they_are_there():
    observed = patterns()
    masks = copied(observed, 5000, stream())
    assert masks.shape == (5000, 6)
    for way in np.unique(observed, axis=0):
        share = (masks == way).all(axis=1).mean()
        assert within(share, (observed == way).all(axis=1).mean(), 2500)
    assert {tuple(row) for row in masks} == {tuple(row) for row in observed}


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8])
def test_one_rate_drops_every_cell_with_it(rate):
    kept = at_rate((5000, 4), rate, stream())
    if rate == 0:
        assert kept.all()
    else:
        assert all(within(share, 1 - rate, 5000) for share in kept.mean(axis=0))
        both = (kept[:, 0] & kept[:, 1]).mean()
        assert within(both, (1 - rate) ** 2, 5000)


def test_rates_of_rows_are_uniform_between_a_tenth_and_nine_tenths():
    """Shares of 1000 cells are nearly the rates: mean 1/2, variance 0.8^2 / 12."""
    kept = at_own_rates((4000, 1000), stream()).mean(axis=1)
    assert 0.04 < kept.min() < 0.12
    assert 0.88 < kept.max() < 0.96
    variance = 0.64 / 12
    assert kept.mean() == pytest.approx(0.5, abs=4 * np.sqrt(variance / 4000))
    assert kept.var() == pytest.approx(variance, rel=0.05)
    quarters = np.histogram(kept, [0.1, 0.3, 0.5, 0.7, 0.9])[0] / 4000
    assert_allclose(quarters, 0.25, atol=0.04)


def test_dropout_copies_masks_or_takes_a_rate():
    observed = patterns()
    assert_array_equal(
        dropout("empirical", observed, 50, stream()), copied(observed, 50, stream())
    )
    assert_array_equal(dropout(0.3, observed, 50, stream()), at_rate((50, 6), 0.3, stream()))
    assert dropout(0, observed, 50, stream()).all()


@pytest.mark.parametrize("mask_ratio", ["mix", 0.3, 0.99])
def test_masking_shows_observed_cells_alone_and_one_of_every_row(mask_ratio):
    observed = patterns()
    observed[0] = False
    seen = masking(mask_ratio, observed, stream())
    assert not (seen & ~observed).any()
    assert not seen[0].any()
    assert seen[1:].any(axis=1).all()


def test_mix_is_half_copies_and_half_rates_of_their_own():
    """Where the table has two halves as its masks, a copy of complete rows shows one of them."""
    halves = np.zeros((2, 40), dtype=bool)
    halves[0, :20] = halves[1, 20:] = True
    observed = np.vstack([np.ones((4000, 40), dtype=bool), np.repeat(halves, 2000, axis=0)])
    seen = masking("mix", observed, stream())[:4000]
    is_half = np.array([(seen == half).all(axis=1) for half in halves]).any(axis=0)
    is_whole = seen.all(axis=1)
    assert within(is_half.mean(), 0.25, 4000)
    assert within(is_whole.mean(), 0.25, 4000)


def test_a_rate_hides_that_share_of_the_observed_cells():
    observed = np.ones((4000, 6), dtype=bool)
    hidden = ~masking(0.3, observed, stream())
    assert within(hidden.mean(), 0.3, 24000)


# Held-out cells


def test_a_fifth_of_the_observed_cells_is_held_out():
    observed = np.random.default_rng(0).random((4000, 10)) < 0.7
    hidden = held_out_cells(observed, stream())
    assert not (hidden & ~observed).any()
    assert within(hidden.sum() / observed.sum(), 0.2, observed.sum())


@pytest.mark.parametrize("seed", range(20))
def test_a_row_and_a_column_keep_a_cell_that_is_seen(seed):
    rng = np.random.default_rng(seed)
    observed = rng.random((12, 5)) < 0.3
    left = observed & ~held_out_cells(observed, stream(seed))
    assert_array_equal(left.any(axis=1), observed.any(axis=1))
    assert_array_equal(left.any(axis=0), observed.any(axis=0))


def test_judging_cells_are_held_out_cells_where_there_are_many():
    observed = np.random.default_rng(0).random((400, 10)) < 0.7
    assert_array_equal(judging_cells(observed, stream()), held_out_cells(observed, stream()))


@pytest.mark.parametrize("seed", range(20))
def test_small_tables_are_judged_by_a_cell_at_least(seed):
    for shape in ((1, 2), (1, 3), (3, 3)):
        observed = np.ones(shape, dtype=bool)
        hidden = judging_cells(observed, stream(seed))
        assert hidden.any()
        assert not hidden.all(axis=1).any()
    assert not judging_cells(np.eye(3, dtype=bool), stream(seed)).any()


def test_only_cell_of_its_row_or_column_is_never_held_out():
    observed = np.eye(50, dtype=bool)
    assert not held_out_cells(observed, stream()).any()
    column = np.hstack([np.ones((50, 1), dtype=bool), np.zeros((50, 1), dtype=bool)])
    assert not held_out_cells(column, stream()).any()
