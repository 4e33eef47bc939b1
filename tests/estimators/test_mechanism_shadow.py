"""Shadow targets beside the evidence: they find sides that it misses, and are not credulous."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from sklearn.datasets import load_diabetes

from skbilevel import NotMIWAEImputer
from skbilevel.estimators import mechanism_choice, mechanism_shadow
from skbilevel.estimators.mechanism_candidates import (
    Candidate,
    Fewest,
    Form,
    Sample,
    candidate,
    sampled,
)
from skbilevel.estimators.mechanism_em import NARROWEST
from skbilevel.estimators.mechanism_shadow import (
    believed_signs,
    says_no_more,
    told_form,
    with_known_sides,
)
from skbilevel.estimators.mechanism_slope import known_sign
from skbilevel.estimators.shadow_fit import TiltFit
from skbilevel.metrics import imputation_rmse

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ALTERNATING = np.where(np.arange(10) % 2 == 0, 1.0, -1.0)


def diabetes(odds, seed=0):
    """Standardised rows, and the same with every cell missing by these log odds of the rows."""
    X = load_diabetes().data
    rng = np.random.default_rng(seed)
    X = X[rng.permutation(len(X))] / X.std(axis=0)
    return X, np.where(rng.random(X.shape) < expit(odds(X)), np.nan, X)


def by_column_2(X):
    odds = np.tile(4 * X[:, [2]], 10)
    odds[:, 2:4] = -99.0
    return odds


def imputed(X):
    imputer = NotMIWAEImputer(mechanism="auto", decoder="linear", random_state=0)
    return imputer, imputer.fit_transform(X)


@pytest.fixture
def deaf(monkeypatch):
    """A choice by evidence alone, once called."""

    def stop_listening():
        silent = lambda sample, rng: np.zeros(sample.Z.shape[1])  # noqa: E731
        monkeypatch.setattr(mechanism_choice, "believed_signs", silent)

    return stop_listening


def test_alternating_sides_that_evidence_misses_are_found(deaf):
    X, incomplete = diabetes(lambda X: 2 * ALTERNATING * X - 0.6, seed=1)
    observed = ~np.isnan(incomplete)
    ours, filled = imputed(incomplete)
    deaf()
    alone, by_evidence = imputed(incomplete)
    assert (ours.signs_ == ALTERNATING).sum() >= 8
    assert (alone.signs_ == ALTERNATING).sum() <= 6
    error, without = (imputation_rmse(X, each, observed) for each in (filled, by_evidence))
    assert error < 0.9 * without


@pytest.mark.parametrize("odds", [by_column_2, lambda X: np.full(X.shape, -0.4)])
def test_nothing_changes_where_cells_are_missing_at_random(deaf, odds):
    _, incomplete = diabetes(odds)
    ours, _ = imputed(incomplete)
    deaf()
    alone, _ = imputed(incomplete)
    assert ours.mechanism_ == alone.mechanism_ == "mar"
    assert ours.evidence_ == alone.evidence_


def test_limit_that_evidence_has_found_stays_as_it_is(deaf):
    X, _ = diabetes(lambda X: X)
    incomplete = np.where(np.arange(10) >= 5, X, np.where(X > 0, np.nan, X))
    ours, filled = imputed(incomplete)
    deaf()
    alone, by_evidence = imputed(incomplete)
    assert ours.mechanism_ == alone.mechanism_ == "censored"
    assert_array_equal(filled, by_evidence)


def test_limits_all_over_leave_nothing_to_ask(monkeypatch):
    """Nor is the time of a tilt spent."""
    monkeypatch.setattr(mechanism_choice, "believed_signs", None)
    sample = Sample(np.zeros((9, 3)), np.array([5, 0, 5]), np.ones(3, dtype=bool), Fit())
    best = Candidate(form([1, 0, -1], [1, 0, 1]), Fit(), 0.0, np.zeros(3))
    rng = np.random.RandomState(0)
    assert mechanism_choice._heard(best, [], np.zeros(3), sample, rng) == (best, {})


def form(side, hard):
    return Form(np.array(side, dtype=float), np.array(hard, dtype=bool))


@pytest.mark.parametrize(
    ("signs", "found", "expected"),
    [
        ([0, 0], None, True),
        ([0, 0], form([1, -1], [0, 0]), True),
        ([1, 0], None, False),
        # Limits with all of the signs, and with more.
        ([1, -1], form([1, -1], [1, 1]), True),
        ([1, 0], form([1, -1], [1, 1]), True),
        # With fewer, or with others.
        ([1, -1], form([1, 0], [1, 0]), False),
        ([1, -1], form([1, 1], [1, 1]), False),
        # The slope of a soft one is open to question, unless there is no sign.
        ([1, -1], form([1, -1], [1, 0]), False),
    ],
)
def test_signs_say_no_more_than_limits_that_have_them(signs, found, expected):
    assert says_no_more(np.array(signs, dtype=float), found) == expected


@pytest.mark.parametrize(
    ("signs", "found", "expected"),
    [
        ([1, 0, -1], None, ([1, 0, -1], [0, 0, 0])),
        ([1, 0, 1], form([1, 1, 1], [0, 0, 0]), ([1, 1, 1], [0, 0, 0])),
        ([1, 0, -1], form([0, -1, -1], [0, 1, 1]), ([1, -1, -1], [0, 1, 1])),
        # What contradicts one sign is not asked for the others.
        ([1, 0, -1], form([1, 1, 1], [1, 1, 1]), ([1, 0, -1], [0, 0, 0])),
    ],
)
def test_signs_add_to_a_form_that_contradicts_none(signs, found, expected):
    told = told_form(np.array(signs, dtype=float), found)
    assert_array_equal(told.side, expected[0])
    assert_array_equal(told.is_hard, expected[1])


@pytest.mark.parametrize(
    ("gain", "agreement", "expected"),
    [(9.0, 0.9, [1, 0, 0]), (2.9, 0.9, [0, 0, 0]), (9.0, 0.4, [0, 0, 0])],
)
def test_tilt_has_to_be_clear_and_to_agree_with_the_mask(monkeypatch, gain, agreement, expected):
    """Of the other columns one is complete, and one has too few values."""
    none = np.zeros(0)
    tilt = TiltFit(np.array([0.5, -1.0, 2.0]), True, [], none, none, none, gain, 9.0, agreement)
    monkeypatch.setattr(mechanism_shadow, "fit_tilt", lambda Z, parameters, rng: tilt)
    sample = Sample(np.zeros((9, 3)), np.array([5, 0, 5]), np.array([True, True, False]), Fit())
    assert_array_equal(believed_signs(sample, np.random.RandomState(0)), expected)


class Fit:
    parameters = None


def test_slope_is_shared_only_by_columns_whose_side_shows_in_the_mask():
    _, incomplete = diabetes(lambda X: np.where(np.arange(10) < 4, 2 * X, -99.0))
    rng = np.random.RandomState(0)
    sample = sampled(incomplete, rng, Fewest(10, 20))
    side = (np.arange(10) < 4) * 1.0
    soft: Candidate = candidate(sample.Z, form(side, 0 * side), sample.mar)
    found = with_known_sides(soft, np.arange(10) != 1, sample, rng)
    shared = known_sign(sample.Z, side, rng).mechanism
    assert not found.form.is_hard.any()
    assert (shared.width[:4] > NARROWEST).all()
    for ours, own, common in zip(found.fit.mechanism, soft.fit.mechanism, shared, strict=True):
        assert_allclose(ours[[0, 2, 3]], common[[0, 2, 3]])
        assert_allclose(ours[1], own[1])
    assert_array_equal(found.form.side, side)
