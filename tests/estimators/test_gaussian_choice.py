"""The choice of shrinkage and of the number of factors on held-out cells."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import skbilevel.estimators.gaussian_choice as gaussian_choice
from skbilevel.estimators.block_em import pairwise_estimate
from skbilevel.estimators.gaussian_choice import (
    KINDS,
    Settings,
    candidate_families,
    choose,
    held_out_cells,
)
from skbilevel.numerics.observed import mean_and_deviation
from skbilevel.numerics.row_groups import StandardizedRows
from skbilevel.objectives.factor_analysis import FactorFamily
from skbilevel.objectives.normal import NormalFamily
from tests.incomplete_data import incomplete
from tests.reference.gaussian import conditional_mean

LOOP = {"max_iter": 20, "tol": 1e-3, "n_jobs": None}
AUTO = Settings("full", False, "auto", "auto")


def chosen(X, families, on_candidate=lambda fit: False, seed=0):
    rows = StandardizedRows(X, *mean_and_deviation(X))
    return choose(families, X, rows, np.random.RandomState(seed), LOOP, on_candidate)


def counts(X):
    return len(X), (~np.isnan(X)).sum(axis=0)


# Which candidates


@pytest.mark.parametrize("n_columns", [2, 5])
def test_shrinkage_is_chosen_below_ten_observed_cells_an_entry_of_a_row_of_the_covariance(
    n_columns,
):
    n_rows, enough = 20 * n_columns, np.full(n_columns, 10 * n_columns)
    scarce = enough - np.eye(n_columns, dtype=int)[0]
    assert candidate_families(AUTO, n_rows, enough) == [NormalFamily(1e-3)]
    families = candidate_families(AUTO, n_rows, scarce)
    assert [family.shrinkage for family in families][:2] == [300.0, 100.0]
    assert families[-1] == NormalFamily(1e-3)
    assert candidate_families(AUTO._replace(shrinkage=2.0), n_rows, scarce) == [NormalFamily(2.0)]


def test_factors_are_fewer_than_rows_and_than_columns():
    settings = AUTO._replace(covariance="factor")
    for n_rows, n_columns in ((4, 100), (100, 4)):
        families = candidate_families(settings, n_rows, np.full(n_columns, n_rows))
        assert [family.n_factors for family in families] == [1, 2, 3]
    assert [f.n_factors for f in candidate_families(settings, 50, np.array([50]))] == [1]
    given = settings._replace(n_factors=4, shrinkage=0.5)
    assert candidate_families(given, 5, np.full(4, 5)) == [FactorFamily(0.5, 4)]


def test_every_kind_is_a_family_with_its_parameters():
    _, X = incomplete()
    rows = StandardizedRows(X, *mean_and_deviation(X))
    for (covariance, robust), kind in KINDS.items():
        [family] = candidate_families(Settings(covariance, robust, 1.0, 2), *counts(X))
        assert isinstance(family, kind.family)
        assert isinstance(family.start(pairwise_estimate(rows)), kind.parameters)


# Which cells are hidden


@pytest.mark.parametrize("seed", range(20))
def test_a_tenth_is_hidden_but_never_all_of_a_row_or_of_a_column(seed):
    rng = np.random.RandomState(seed)
    X = np.where(rng.random_sample((200, 8)) < 0.5, np.nan, 1.0)
    # Rows and columns with one observed cell lose it in a tenth of the draws.
    X[:50] = np.nan
    X[np.arange(50), rng.randint(8, size=50)] = 1.0
    X[:, 7] = np.nan
    X[100, 7] = 1.0
    observed = ~np.isnan(X)
    hidden = held_out_cells(X, rng)
    assert not (hidden & ~observed).any()
    left = observed & ~hidden
    assert_array_equal(left.any(axis=1), observed.any(axis=1))
    assert_array_equal(left.any(axis=0), observed.any(axis=0))
    assert 0.04 < hidden[observed].mean() < 0.14


def test_a_tenth_of_many_cells_is_hidden():
    hidden = held_out_cells(np.zeros((20_000, 10)), np.random.RandomState(0))
    assert abs(hidden.mean() - 0.1) < 4 * (0.1 * 0.9 / hidden.size) ** 0.5


# The choice


def test_the_candidate_with_the_lowest_error_on_hidden_cells_wins():
    _, X = incomplete(n_rows=40)
    families = [NormalFamily(shrinkage) for shrinkage in (100.0, 3.0, 0.1)]
    fits = []
    family, start = chosen(X, families, lambda fit: bool(fits.append(fit)))
    hidden = held_out_cells(X, np.random.RandomState(0))
    center, scale = mean_and_deviation(X)
    visible = (np.where(hidden, np.nan, X) - center) / scale
    errors = []
    for fit in fits:
        parameters = fit.result.inner
        filled = conditional_mean(visible, parameters.location, parameters.covariance)
        errors.append(np.sqrt(np.mean((filled - (X - center) / scale)[hidden] ** 2)))
        assert_array_equal(fit.n_observed, (~np.isnan(visible)).sum(axis=0))
    assert len(fits) == 3
    assert family == fits[int(np.argmin(errors))].family
    assert start is fits[int(np.argmin(errors))].result.inner


def test_a_stop_ends_the_path_with_the_best_candidate_so_far():
    _, X = incomplete(n_rows=40)
    seen = []

    def stop_after_two(fit):
        seen.append(fit.family)
        return len(seen) == 2

    family, _ = chosen(X, candidate_families(AUTO, *counts(X)), stop_after_two)
    assert len(seen) == 2
    assert family in seen


def test_without_a_choice_nothing_is_drawn():
    _, X = incomplete()
    rng = np.random.RandomState(0)
    rows = StandardizedRows(X, *mean_and_deviation(X))
    family, start = choose([NormalFamily(2.0)], X, rows, rng, LOOP, lambda fit: True)
    assert family == NormalFamily(2.0)
    assert_array_equal(start.covariance, pairwise_estimate(rows).covariance)
    assert rng.random_sample() == np.random.RandomState(0).random_sample()


@pytest.mark.parametrize(
    ("covariance", "expected"), [("full", NormalFamily(1.0)), ("factor", FactorFamily(1e-3, 1))]
)
def test_too_few_cells_to_hide_give_one_row_of_prior_or_one_factor(covariance, expected):
    X = np.random.default_rng(0).standard_normal((5, 6))
    X[0, :3] = np.nan
    families = candidate_families(AUTO._replace(covariance=covariance), *counts(X))
    assert len(families) > 1
    assert chosen(X, families)[0] == expected


def test_candidates_start_where_the_last_one_ended_and_keep_to_max_iter(monkeypatch):
    _, X = incomplete(n_rows=40)
    starts, fits = [], []
    original = gaussian_choice.maximum_likelihood

    def recorded(family, rows, start, **loop):
        starts.append((start, loop["max_iter"]))
        return original(family, rows, start, **loop)

    monkeypatch.setattr(gaussian_choice, "maximum_likelihood", recorded)
    families = [NormalFamily(30.0), NormalFamily(10.0), NormalFamily(3.0)]
    chosen(X, families, lambda fit: bool(fits.append(fit)))
    assert [n for _, n in starts] == [LOOP["max_iter"]] * len(fits)
    for (start, _), last in zip(starts[1:], fits, strict=False):
        assert start is last.result.inner
    assert max(fit.result.n_iter for fit in fits) <= LOOP["max_iter"]
