"""The choice of a mechanism: planted ones are found, and nothing is found where nothing is."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import KFold

from skbilevel.estimators import mechanism_choice
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.estimators.mechanism_candidates import (
    Candidate,
    Fewest,
    Form,
    Sample,
    candidate,
    folds,
    judged_by,
    sampled,
    uniform,
)
from skbilevel.estimators.mechanism_choice import choose, known_class
from skbilevel.estimators.mechanism_em import LIMIT, NARROWEST, fit_self_masked
from skbilevel.estimators.mechanism_slope import known_sign
from skbilevel.estimators.mechanism_start import hard_limits
from skbilevel.metrics import imputation_rmse
from skbilevel.numerics.observed import mean_and_deviation
from skbilevel.numerics.row_groups import StandardizedRows
from skbilevel.objectives.mask_evidence import log_mask_given_others

MASKS = {
    "mcar": lambda A, U, P: U < 0.4,
    "mar": lambda A, U, P: expit(2 * P) > U,
    "above": lambda A, U, P: A > 0,
    "below": lambda A, U, P: A < -0.2,
    "soft above": lambda A, U, P: expit(2 * A) > U,
    "soft below": lambda A, U, P: expit(-2 * A) > U,
}


def correlated(seed=0, n_rows=300, n_columns=5):
    """Standardised rows of one common factor."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, 1)) + 0.7 * rng.normal(size=(n_rows, n_columns))
    return (X - X.mean(axis=0)) / X.std(axis=0)


def holes(X, masks, seed=0):
    """``X`` without the cells that the masks of the first columns, by name, take out."""
    rng = np.random.default_rng(seed)
    predictor = X[:, len(masks) :] @ rng.normal(size=(X.shape[1] - len(masks), len(masks)))
    predictor /= predictor.std(axis=0)
    uniforms, incomplete = rng.random(X.shape), X.copy()
    for j, name in enumerate(masks):
        hidden = MASKS[name](X[:, j], uniforms[:, j], predictor[:, j])
        incomplete[hidden, j] = np.nan
    return incomplete


def standardized(X):
    center, scale = mean_and_deviation(X)
    return (X - center) / scale


def chosen(X, seed=0):
    return choose(standardized(X), np.random.RandomState(seed))


def completed(X, mechanism):
    data = StandardizedRows(X, *mean_and_deviation(X))
    fit = fit_self_masked(data, mechanism)
    return LinearModel(fit.parameters, mechanism, data.center, data.scale, LIMIT).completed(X)


def parts(mechanism):
    return [part.numpy() for part in mechanism]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("mask", "name", "side"),
    [
        ("mcar", "mar", 0),
        ("mar", "mar", 0),
        ("above", "censored", 1),
        ("below", "censored", -1),
        ("soft above", "self_masking", 1),
        ("soft below", "self_masking", -1),
    ],
)
def test_planted_mechanism_is_found(mask, name, side, seed):
    choice = chosen(holes(correlated(seed), [mask] * 2, seed))
    assert choice.name == name
    assert_array_equal(choice.mechanism.side, [side] * 2 + [0] * 3)


@pytest.mark.parametrize(("load", "mask"), [(load_breast_cancer, "mar"), (load_wine, "mcar")])
def test_nothing_is_found_in_skewed_data_that_is_missing_at_random(load, mask):
    X = load().data[:200, :5]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    choice = chosen(holes(X, [mask] * 2))
    assert choice.name == "mar"
    assert not choice.mechanism.side.any()


@pytest.mark.parametrize("seed", [40, 41])
def test_few_rows_are_not_taken_in_by_their_own_imputations(monkeypatch, seed):
    """Of a table of half as many columns as rows a normal explains any mask that it has seen."""
    X = holes(correlated(seed, 40, 20), ["mar"] * 5, seed)
    assert chosen(X).name == "mar"
    by_own_rows = "skbilevel.estimators.mechanism_choice.judged_by"
    monkeypatch.setattr(by_own_rows, lambda folds, judged, Z: judged)
    assert chosen(X).name != "mar"


@pytest.mark.parametrize(
    ("gain", "insight", "mask_gain", "picked", "expected"),
    [
        (30.0, 30.0, 0.0, False, True),
        # Insight below .03 a cell.
        (60.0, 2.9, 0.0, False, False),
        # The regression of the mask explains more by .02, or by .04, a cell in sum.
        (10.0, 28.0, 20.0, False, True),
        (10.0, 26.0, 20.0, False, False),
        # Much gain does not make up for insight that lacks .04, only for .02.
        (90.0, 18.0, 20.0, False, True),
        (90.0, 16.0, 20.0, False, False),
        # Of columns that were picked both are .05 ahead.
        (26.0, 26.0, 20.0, True, True),
        (24.0, 90.0, 20.0, True, False),
        (90.0, 24.0, 20.0, True, False),
    ],
)
def test_what_holds_on_rows_held_out(gain, insight, mask_gain, picked, expected):
    """100 missing cells of the one column that has a mechanism; nats in all."""
    form = Form(np.array([1.0, 0.0]), np.array([True, False]))
    told = Candidate(form, None, gain, np.array([insight, 0.0]))
    sample = Sample(np.zeros((0, 2)), np.array([100, 50]), np.array([True, True]), None)
    # The other column does not count.
    mask_gains = np.array([mask_gain, 1000.0])
    assert mechanism_choice._holds(told, mask_gains, sample, picked) == expected


def test_next_candidate_is_asked_where_the_first_does_not_hold(monkeypatch):
    """The limit has most merit, and a probit gives the same answer less sharply."""
    X = holes(correlated(3, 300, 5), ["above"] * 2, 3)
    assert chosen(X).name == "censored"
    judge = mechanism_choice.judged_by
    asked = []

    def no_limit(folds, judged, Z):
        asked.append(bool(judged.form.is_hard.any()))
        told = judge(folds, judged, Z)
        return told._replace(gain=-1e3) if judged.form.is_hard.any() else told

    monkeypatch.setattr(mechanism_choice, "judged_by", no_limit)
    # Shadow targets would bring the limit back.
    monkeypatch.setattr(mechanism_choice, "believed_signs", lambda *_: np.zeros(5))
    choice = chosen(X)
    assert asked[0] and not all(asked)
    assert choice.name == "self_masking"
    assert_array_equal(choice.mechanism.side, [1, 1, 0, 0, 0])


def test_limit_is_found_in_few_rows():
    choice = chosen(holes(correlated(40, 60, 30), ["above"] * 7, 40))
    assert choice.name == "censored"
    assert_array_equal(choice.mechanism.side[:7], 1)


def test_candidate_is_judged_by_rows_that_it_has_not_seen():
    """Evidence and insight of each fold by the fit to the others, summed by hand."""
    X = holes(correlated(2, 90, 6), ["above"] * 2, 2)
    sample = sampled(standardized(X), np.random.RandomState(0), Fewest(10, 20))
    form = uniform(sample.n_missing > 0, 1.0, True)
    seen = candidate(sample.Z, form, sample.mar)
    ours = judged_by(folds(sample, np.random.RandomState(1)), seen, sample.Z)
    gained, insights = 0.0, np.zeros(6)
    hard, none = hard_limits(sample.Z, form.side), hard_limits(sample.Z, 0.0)
    splits = KFold(5, shuffle=True, random_state=np.random.RandomState(1)).split(sample.Z)
    for rest, fold in splits:
        Z = sample.Z[fold]
        for sign, mechanism in ((1, hard), (-1, none)):
            data = StandardizedRows(sample.Z[rest], np.zeros(6), np.ones(6))
            fit = fit_self_masked(data, mechanism, max_iter=15, limit=np.inf)
            own = LinearModel(fit.parameters, mechanism, np.zeros(6), np.ones(6), np.inf)
            gained += sign * own.log_densities(Z).sum()
            if sign == 1:
                filled, missing = torch.from_numpy(own.completed(Z)), torch.from_numpy(np.isnan(Z))
                told = log_mask_given_others(filled, missing, own.precision, mechanism)
                insights += told.numpy()
    rate = np.isnan(sample.Z).mean(axis=0)[:2]
    cells = np.array([rate, 1 - rate]) * len(sample.Z)
    at_rates = (cells * np.log([rate, 1 - rate])).sum(axis=0)
    gained, insights[:2] = gained - at_rates.sum(), insights[:2] - at_rates
    assert ours.gain == pytest.approx(gained, rel=1e-6)
    assert_allclose(ours.insight, insights, rtol=1e-6, atol=1e-12)
    # It has less insight than into the rows that it was fitted to.
    assert ours.insight.sum() < 0.8 * seen.insight.sum()


def test_soft_mechanism_is_learnt():
    X = correlated(n_rows=1500)
    rng = np.random.default_rng(1)
    incomplete = X.copy()
    incomplete[rng.random(len(X)) < norm.cdf((X[:, 0] - 0.4) / 0.5), 0] = np.nan
    center, scale = mean_and_deviation(incomplete)
    choice = chosen(incomplete)
    _, threshold, width = parts(choice.mechanism)
    assert choice.name == "self_masking"
    assert threshold[0] * scale[0] + center[0] == pytest.approx(0.4, abs=0.15)
    assert width[0] * scale[0] == pytest.approx(0.5, abs=0.15)


def test_mirrored_columns_get_the_mirrored_choice():
    X = holes(correlated(3), ["above", "soft above"], 3)
    plain, mirrored = chosen(X), chosen(-X)
    assert plain.name == mirrored.name != "mar"
    for sign, left, right in zip(
        (-1, -1, 1), parts(plain.mechanism), parts(mirrored.mechanism), strict=True
    ):
        assert_allclose(left, sign * right, atol=1e-6)
    swapped = {"above": "below", "below": "above", "own": "own", "mask": "mask"}
    for key, gap in plain.gaps.items():
        kind, _, where = key.rpartition(" ")
        assert mirrored.gaps[f"{kind} {swapped[where]}".strip()] == pytest.approx(gap, abs=1e-6)


def test_every_column_gets_its_own_mechanism():
    X = holes(correlated(0, n_columns=6), ["above", "below", "mcar"])
    choice = chosen(X)
    assert_array_equal(choice.mechanism.side[:3], [1, -1, 0])
    assert_array_equal(choice.mechanism.width[:2], [NARROWEST] * 2)
    uniform = [gap for key, gap in choice.gaps.items() if key.endswith(("above", "below"))]
    assert choice.gaps["own"] > max(uniform)


def test_choice_does_not_depend_on_the_units_of_the_columns():
    X = holes(correlated(4), ["soft above"])
    factor, offset = np.array([1e-3, 7.0, 1e4, 1.0, 2.0]), np.arange(5.0)
    plain, moved = chosen(X), chosen(X * factor + offset)
    for left, right in zip(parts(plain.mechanism), parts(moved.mechanism), strict=True):
        assert_allclose(left, right, atol=1e-6)


def test_binary_column_follows_the_others():
    X = correlated(10)
    X[:, 0] = X[:, 0] > 0
    assert chosen(holes(X, ["mar"] * 2)).name == "mar"
    assert_array_equal(chosen(holes(X, ["soft above"] * 2)).mechanism.side[:2], 1)


def test_outliers_do_not_decide():
    X = correlated(5)
    incomplete = holes(X, ["mcar"] * 2)
    incomplete[:4, 2:] *= 30
    assert chosen(incomplete).name == "mar"
    censored = holes(X, ["above"] * 2)
    censored[:4, 2:] *= 30
    assert_array_equal(chosen(censored).mechanism.side[:2], 1)


def test_long_table_is_judged_by_some_of_its_rows_and_limited_by_all():
    X = holes(correlated(6, 3000), ["above"] * 3)
    choice = chosen(X)
    assert choice.name == "censored"
    assert_allclose(choice.mechanism.threshold[:3], np.nanmax(standardized(X), axis=0)[:3])


def few_missing(X):
    X[:9, 0] = np.nan


def few_observed(X):
    X[19:, 0] = np.nan


def constant(X):
    X[:, 0] = 1.0
    X[::2, 0] = np.nan


def nothing_missing(X):
    pass


@pytest.mark.parametrize("spoil", [few_missing, few_observed, constant, nothing_missing])
def test_column_that_tells_nothing_is_missing_at_random(spoil):
    X = correlated(n_rows=200)
    spoil(X)
    choice = chosen(X)
    assert choice == ("mar", choice.mechanism, {})
    assert not choice.mechanism.side.any()
    X[:, 1:3] = holes(X[:, 1:], ["above", "above"])[:, :2]
    assert_array_equal(chosen(X).mechanism.side, [0, 1, 1, 0, 0])


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (12, 2), (40, 1), (60, 3)])
def test_small_tables_are_chosen_from(shape):
    X = np.random.default_rng(0).normal(size=shape)
    X[len(X) // 2 :, 0] = np.nan
    choice = chosen(X)
    assert all(np.isfinite(part).all() for part in parts(choice.mechanism))
    assert all(np.isfinite(gap) for gap in choice.gaps.values())


def test_no_column_is_needed_that_is_complete():
    X = correlated(7, n_columns=3)
    assert chosen(holes(np.hstack([X, X[:, :1]]), ["mcar"] * 3)[:, :3]).name == "mar"
    incomplete = holes(np.hstack([X, X[:, :1]]), ["above"] * 3)[:, :3]
    assert_array_equal(chosen(incomplete).mechanism.side, 1)


def test_limit_is_the_largest_or_smallest_observed_value_where_none_is_given():
    nan = np.nan
    Z = np.array([[1.0, nan, 0.5, nan], [nan, -2.0, 0.7, 3.0], [-3.0, 4.0, 0.9, 2.0]])
    side, threshold, width = parts(hard_limits(Z, np.array([1.0, -1.0, 1.0, 0.0])))
    # The third column is complete: its limit holds for rows to come.
    assert_array_equal(side, [1, -1, 1, 0])
    assert_array_equal(threshold, [1, -2, 0.9, 0])
    assert_array_equal(width, [NARROWEST, NARROWEST, NARROWEST, 1])
    given = hard_limits(Z, 1.0, np.array([nan, 9.0, 9.0, nan]))
    assert_array_equal(given.side, [1, 1, 1, 1])
    assert_array_equal(given.threshold, [1, 9, 9, 3])
    assert_array_equal(given.width, [NARROWEST, 0, 0, NARROWEST])


@pytest.mark.parametrize(
    ("mask", "side"),
    [("above", 1.0), ("below", -1.0), ("soft above", 1.0), ("soft below", -1.0)],
)
def test_slope_is_learnt_where_the_side_is_known(mask, side):
    X = correlated(8)
    incomplete = holes(X, [mask] * 2)
    Z = standardized(incomplete)
    own = known_sign(Z, side, np.random.RandomState(0)).mechanism
    is_soft = own.width[:2].numpy() > 0.1
    # A column without a missing cell has a limit, or no slope that could be learnt.
    assert_array_equal(own.side, [side] * 2 + [0.0 if is_soft.all() else side] * 3)
    assert is_soft.all() if mask.startswith("soft") else not is_soft.any()
    observed = ~np.isnan(incomplete)
    error, at_random = (
        imputation_rmse(X, completed(incomplete, mechanism), observed)
        for mechanism in (own, hard_limits(Z, 0.0))
    )
    assert error < 0.9 * at_random


@pytest.mark.parametrize("name", ["censored", "self_masking"])
def test_sides_are_found_where_the_class_is_known(name):
    soft = "soft " if name == "self_masking" else ""
    for where in (["above"] * 2, ["below"] * 2, ["above", "below"]):
        X = holes(correlated(9, 200), [soft + each for each in where])
        choice = known_class(standardized(X), name, np.random.RandomState(0))
        assert choice.name == name
        assert_array_equal(choice.mechanism.side[:2], [1 if w == "above" else -1 for w in where])
        is_hard = choice.mechanism.width[:2].numpy() == NARROWEST
        assert is_hard.all() == (name == "censored")


def test_known_class_without_a_missing_cell_is_no_mechanism():
    choice = known_class(standardized(correlated()), "censored", np.random.RandomState(0))
    assert choice.name == "mar" and not choice.mechanism.side.any()
