"""MIWAEImputer and NotMIWAEImputer as users see them."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal, assert_equal
from scipy.special import expit, ndtr
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch import nn

from skbilevel import GaussianImputer, MIWAEImputer, NotMIWAEImputer, io
from skbilevel.estimators.latent_plan import MECHANISMS
from skbilevel.models.latent_variable import DECODERS
from tests.reference import tail_prior as oracle
from tests.reference.gaussian import condition

BOTH = [MIWAEImputer, NotMIWAEImputer]


def table(n_rows=80, seed=0):
    """(complete, incomplete): the first column is missing above .4, the second below 3, the third
    by chance, the fourth never."""
    rng = np.random.default_rng(seed)
    Z = rng.multivariate_normal(np.zeros(4), 0.4 * np.eye(4) + 0.6, n_rows)
    X = Z * [1.0, 4.0, 0.1, 20.0] + [0.0, 5.0, 0.0, -300.0]
    incomplete = X.copy()
    incomplete[X[:, 0] > 0.4, 0] = incomplete[X[:, 1] < 3, 1] = np.nan
    incomplete[rng.random(n_rows) < 0.2, 2] = np.nan
    return X, incomplete


SIGNS, LIMITS = [1, -1, 0, 0], [0.4, 3.0, np.nan, np.nan]
_, X = table()
MISSING = np.isnan(X)


def quick(**settings):
    """Epochs enough for a network to move, and few."""
    defaults = {"max_iter": 2, "n_importance_impute": 64, "random_state": 0}
    return NotMIWAEImputer(**{**defaults, **settings})


def steps(decoder):
    """Iterations in which EM converges, or epochs of a network."""
    return 400 if decoder == "linear" else 20


def linear(mechanism="censored", **settings):
    return NotMIWAEImputer(mechanism=mechanism, decoder="linear", random_state=0, **settings)


def constant_odds(rows):
    return torch.full_like(rows, 0.7)


def total_odds(rows):
    return (0.3 * rows[..., :1] - 0.1).expand(rows.shape)


def settings_of(mechanism, decoder="residual"):
    """What a mechanism needs to be told."""
    settings = {"mechanism": mechanism, "decoder": decoder}
    if mechanism in ("self_masking_known", "censored"):
        settings["signs"] = SIGNS
    if decoder == "conv":
        settings["image_shape"] = (1, 2, 2)
    return settings


# Every combination


@pytest.mark.parametrize("decoder", list(DECODERS))
@pytest.mark.parametrize("mechanism", [*MECHANISMS, total_odds])
def test_every_mechanism_fits_with_every_decoder(mechanism, decoder):
    imputer = quick(**settings_of(mechanism, decoder), max_iter=1, n_importance_impute=32)
    if (mechanism, decoder) == ("auto", "conv"):
        with pytest.raises(ValueError, match=r"compare linear models.*give another mechanism"):
            imputer.fit(X)
        return
    with warnings.catch_warnings():
        # EM is the whole fit of a linear decoder with a mechanism of single cells.
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer.fit(X[:60])
    new = X[60:]
    filled, drawn = imputer.transform(new), imputer.sample(new, n_draws=2)
    for values in (filled, *drawn):
        assert np.isfinite(values).all()
        assert_array_equal(values[~MISSING[60:]], new[~MISSING[60:]])
    assert np.isfinite(imputer.score_samples(new)).all()
    sizes = imputer.effective_sample_size(new)
    assert (sizes >= 1 - 1e-5).all()
    probability = imputer.missing_probability(new)
    known = ~np.isnan(probability)
    assert ((probability >= 0) & (probability <= 1))[known].all()


@pytest.mark.parametrize("distribution", ["student_t", "bernoulli", "categorical", "mixed"])
@pytest.mark.parametrize("mechanism", ["mar", "self_masking_known", "agnostic"])
def test_every_distribution_fits_with_every_mechanism(distribution, mechanism):
    kinds = ["student_t", "categorical", "gaussian", "bernoulli"]
    kinds = kinds if distribution == "mixed" else [distribution] * 4
    values = X[:60].copy()
    for j, kind in enumerate(kinds):
        if kind == "bernoulli":
            values[:, j] = np.where(MISSING[:60, j], np.nan, X[:60, j] > np.nanmedian(X[:, j]))
        if kind == "categorical":
            values[:, j] = np.round(2 * X[:60, j] / np.nanstd(X[:, j]))
    imputer = quick(**settings_of(mechanism), distribution=kinds, max_iter=1).fit(values)
    filled = imputer.transform(values)
    drawn = imputer.sample(values, row_ids=np.arange(60))[0]
    assert_array_equal(filled[~MISSING[:60]], values[~MISSING[:60]])
    for j, kind in enumerate(kinds):
        seen = np.unique(values[~MISSING[:60, j], j])
        if kind == "categorical":
            assert np.isin(filled[:, j], seen).all()
        if kind in ("bernoulli", "categorical"):
            assert np.isin(drawn[:, j], seen).all()
            assert ((filled[:, j] >= seen[0]) & (filled[:, j] <= seen[-1])).all()
    assert np.isfinite(imputer.score(values))


# Errors


WRONG = [
    ({"distribution": ["gaussian"] * 2}, r"distribution .* each of 4 features, got 2"),
    ({"distribution": ["gaussian", "poisson", "gaussian", "gaussian"]}, r"distribution .*poisson"),
    ({"mechanism": "self_masking_known"}, r"self_masking_known' needs signs"),
    ({"mechanism": "self_masking", "signs": 1}, r"signs is for .* got mechanism='self_masking'"),
    ({"mechanism": "mar", "signs": 1}, r"signs is for .* got mechanism='mar'"),
    ({"mechanism": "censored", "signs": [1, 0.5, 0, 0]}, r"signs must be 1, -1 or 0, got"),
    ({"mechanism": "censored", "signs": [1, -1]}, r"signs must be .* of 4.*shape \(2,\)"),
    ({"mechanism": "censored", "signs": {"high": 1, "lo": 1}}, r"signs names \['lo'\]"),
    ({"mechanism": "censored", "signs": {"high": 2}}, r"signs must be 1, -1 or 0, got"),
    ({"mechanism": "censored", "signs": {"high": "up"}}, r"signs must be a number"),
    ({"mechanism": "censored", "limits": {0: 1.0}}, r"limits names \[0\]"),
    ({"mechanism": "self_masking", "limits": 0.4}, r"limits is for mechanism='censored'"),
    ({"mechanism": "auto", "limits": 0.4}, r"limits is for mechanism='censored'"),
    ({"mechanism": "censored", "limits": [np.inf] * 4}, r"limits must be finite"),
    ({"mechanism": "censored", "limits": [1.0]}, r"limits must be .* of 4.*shape \(1,\)"),
    (
        {"mechanism": "censored", "limits": [0.4, np.nan, np.nan, np.nan]},
        r"limits without signs leave open those of columns",
    ),
    (
        {"mechanism": "censored", "limits": [0.0, 3.0, np.nan, np.nan], "signs": SIGNS},
        r"Columns \['low'\] have observed values beyond limits",
    ),
    (
        {"mechanism": "censored", "limits": LIMITS, "signs": [-1, -1, 0, 0]},
        r"Columns \['low'\] have observed values beyond limits",
    ),
    (
        {"mechanism": "censored", "limits": [0.4, 3.5, np.nan, np.nan], "signs": SIGNS},
        r"Columns \['high'\] have observed values beyond limits",
    ),
    (
        {"mechanism": "auto", "distribution": {"high": "bernoulli"}},
        r"mechanism='auto' .* continuous columns, other than \['high'\]; give another mechanism",
    ),
    ({"mechanism": "censored", "decoder": "conv", "image_shape": (1, 2, 2)}, r"give signs"),
    ({"decoder": "conv", "mechanism": "mar"}, r"image_shape .* decoder='conv'"),
    ({"image_shape": (1, 2, 2), "mechanism": "mar"}, r"image_shape .* decoder='residual'"),
    (
        {"decoder": "conv", "image_shape": (1, 2, 3), "mechanism": "mar"},
        r"image_shape must be .* 4 pixels.*\(1, 2, 3\)",
    ),
    ({"decoder": "conv", "image_shape": (2, 2), "mechanism": "mar"}, r"image_shape must be"),
    (
        {**settings_of("mar", "conv"), "distribution": ["categorical"] + ["gaussian"] * 3},
        r"decoder='conv' is for .*got 'categorical'",
    ),
    ({"mechanism": lambda rows: rows[..., :1]}, r"mechanism must give log odds .*, 1\)\."),
    ({"mechanism": lambda rows: 0.0}, r"mechanism must give log odds .* got float"),
    ({"mechanism": "never"}, r"mechanism"),
    ({"max_iter": 0}, r"max_iter"),
    ({"quantile": 1.0}, r"quantile"),
    ({"min_scale": 0.0}, r"min_scale"),
    ({"n_importance": 0}, r"n_importance"),
]
NAMES = ["low", "high", "chance", "full"]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_parameter_is_named_and_the_estimator_left_as_it_was(settings, message):
    frame = pd.DataFrame(X, columns=NAMES)
    imputer = quick(mechanism="mar", max_iter=1).fit(frame)
    imputer.set_params(**settings)
    before = dict(vars(imputer))
    with pytest.raises(ValueError, match=message):
        imputer.fit(frame)
    assert vars(imputer).keys() == before.keys()
    assert all(vars(imputer)[name] is value for name, value in before.items())


def test_failure_of_a_first_fit_leaves_no_attributes():
    imputer = quick(mechanism="censored", limits=[0.0, np.nan, np.nan, np.nan], signs=SIGNS)
    before = dict(vars(imputer))
    with pytest.raises(ValueError, match=r"Columns \['x0'\]"):
        imputer.fit(X)
    assert vars(imputer) == before


def test_quantile_is_asked_for_by_name():
    with pytest.raises(ValueError, match="needs quantile"):
        quick(mechanism="mar", max_iter=1, loss="quantile").fit_transform(X)


def test_columns_of_a_message_are_counted_with_those_that_are_empty():
    empty = np.insert(X, 0, np.nan, axis=1)
    imputer = quick(mechanism="censored", limits=[9, 0, 3, np.nan, np.nan], signs=[0, *SIGNS])
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r"Columns \['x1'\] have observed"),
    ):
        warnings.filterwarnings("ignore", "Dropping features")
        imputer.fit(empty)


# Limits and signs


@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_sides_follow_from_known_limits(decoder):
    incomplete = X.copy()
    incomplete[:, 2] = table()[0][:, 2]
    imputer = quick(mechanism="censored", decoder=decoder, limits=LIMITS, max_iter=steps(decoder))
    imputer.fit(incomplete)
    assert_array_equal(imputer.signs_, SIGNS)
    assert_allclose(imputer.thresholds_, LIMITS, rtol=1e-12)
    filled = imputer.transform(incomplete)
    assert (filled[MISSING[:, 0], 0] >= 0.4).all()
    assert (filled[MISSING[:, 1], 1] <= 3.0).all()


def test_one_number_is_for_all_columns():
    incomplete = X[:, :1]
    one = linear(limits=0.4, signs=1).fit(np.hstack([incomplete, incomplete - 0.2, X[:, 3:]]))
    # Of the third, which is complete, too: a row to come may lack it.
    assert_array_equal(one.signs_, [1, 1, 1])
    assert_allclose(one.thresholds_, [0.4, 0.4, 0.4])


def test_features_may_be_named():
    frame = pd.DataFrame(X, columns=NAMES)
    named = linear(signs={"low": 1, "high": -1}, limits={"high": 3.0}).fit(frame)
    listed = linear(signs=SIGNS, limits=[np.nan, 3.0, np.nan, np.nan]).fit(frame)
    assert_array_equal(named.signs_, SIGNS)
    assert named.thresholds_[1] == 3.0
    assert_array_equal(named.transform(frame), listed.transform(frame))
    # Also one that is empty, and those of an array by their numbers.
    with pytest.warns(UserWarning, match="Dropping features"):
        empty = linear(signs={"low": 1, "none": 1}).fit(frame.assign(none=np.nan))
    assert_array_equal(empty.signs_, [1, 0, 0, 0])
    assert_array_equal(linear(signs={"x1": -1}).fit(X).signs_, [0, -1, 0, 0])


def test_series_is_read_by_its_names_and_not_by_position():
    frame = pd.DataFrame(X, columns=NAMES)
    series = pd.Series({"full": 0, "high": -1, "low": 1})
    assert_array_equal(linear(signs=series).fit(frame).signs_, SIGNS)
    assert_array_equal(linear(signs=pd.Series(SIGNS)).fit(frame).signs_, SIGNS)
    with pytest.raises(ValueError, match=r"signs names \['other'\].*these are \['low', 'high'"):
        linear(signs=pd.Series({"other": 1})).fit(frame)
    with pytest.raises(ValueError, match="signs has several values for one name"):
        linear(signs=pd.Series([1, 0], index=["low", "low"])).fit(frame)
    # Numbers in another order than that of the columns would be a guess.
    with pytest.raises(ValueError, match=r"signs names \[3, 2, 1, 0\]"):
        linear(signs=pd.Series(SIGNS, index=[3, 2, 1, 0])).fit(frame)


@pytest.mark.parametrize("as_series", [False, True])
def test_distributions_may_be_named(as_series):
    frame = pd.DataFrame(X, columns=NAMES).assign(full=(X[:, 3] > 0).astype(float))
    frame.loc[:4, "full"] = np.nan
    own = {"full": "bernoulli", "low": "student_t"}
    imputer = MIWAEImputer(
        distribution=pd.Series(own) if as_series else own, max_iter=2, random_state=0
    )
    kinds = ["student_t", "gaussian", "gaussian", "bernoulli"]
    listed = MIWAEImputer(distribution=kinds, max_iter=2, random_state=0)
    assert_array_equal(imputer.fit_transform(frame), listed.fit_transform(frame))
    assert np.isin(imputer.sample(frame[:5])[:, :, 3], [0, 1]).all()
    with pytest.raises(ValueError, match=r"distribution names \['lo'\], .*these are \['low'"):
        MIWAEImputer(distribution={"lo": "bernoulli"}).fit(frame)


def test_side_of_a_known_limit_need_not_be_named():
    frame = pd.DataFrame(X, columns=NAMES)
    limits = {"low": 0.4, "high": 3.0}
    every = linear(limits=limits, signs={"low": 1, "high": -1}).fit(frame)
    assert_array_equal(every.signs_, SIGNS)
    for signs in ({"low": 1}, {"full": 0}, {"full": 0, "high": -1}):
        assert_array_equal(linear(limits=limits, signs=signs).fit(frame).signs_, SIGNS)
    with pytest.raises(ValueError, match=r"Columns \['low'\] have limits but signs of 0"):
        linear(limits=limits, signs={"low": 0}).fit(frame)


@pytest.mark.parametrize("mechanism", ["censored", "self_masking_known"])
def test_constant_column_has_no_limit_unless_it_is_known(mechanism):
    incomplete = np.column_stack([np.full(len(X), 1e-6), X[:, 3]])
    incomplete[:10, 0] = np.nan
    imputer = linear(mechanism, signs=1).fit(incomplete)
    assert_array_equal(imputer.signs_, [0, 1])
    assert_allclose(imputer.transform(incomplete)[:10, 0], 1e-6, rtol=1e-12)
    if mechanism == "censored":
        known = linear(limits=[0.5, np.nan], signs=[1, 0]).fit(incomplete)
        assert (known.transform(incomplete)[:10, 0] > 0.5).all()


@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_row_too_extreme_for_float64_is_refused_by_every_method(decoder):
    incomplete = X[:, :2]
    limits = [0.4, np.nan]
    imputer = NotMIWAEImputer(
        mechanism="censored", limits=limits, signs=[1, 0], decoder=decoder, max_iter=steps(decoder)
    ).fit(incomplete)
    row = np.array([[np.nan, 1e200]])
    for method in (imputer.transform, imputer.sample, imputer.missing_probability):
        with pytest.raises(ValueError, match=r"so extreme .* columns \['x0'\] exceed float64"):
            method(row)
    assert imputer.effective_sample_size(row)[0] >= 1
    assert imputer.score_samples(row)[0] == -np.inf


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_networks_train_where_gradients_are_off(mode):
    with mode():
        imputer = MIWAEImputer(max_iter=2, random_state=0).fit(X)
    again = MIWAEImputer(max_iter=2, random_state=0).fit(X)
    assert imputer.history_ == again.history_


def test_limit_that_the_dtype_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"limits must be values that float32 can hold.*\['x0'\]"):
        linear(limits=[1e39, np.nan, np.nan, np.nan], signs=SIGNS).fit(X.astype(np.float32))


@pytest.mark.parametrize("mechanism", ["censored", "self_masking_known"])
def test_sign_that_is_given_holds_for_rare_missing_cells_of_a_long_table(monkeypatch, mechanism):
    """Few of the rows that are fitted to lack the column."""
    monkeypatch.setattr("skbilevel.estimators.linear_fit.MOST_ROWS", 100)
    complete = table(3000)[0][:, :2]
    top = np.sort(complete[:, 0])[-3]
    incomplete = np.where(complete >= [top, np.inf], np.nan, complete)
    imputer = linear(mechanism, signs=[1, 0]).fit(incomplete)
    assert_array_equal(imputer.signs_, [1, 0])
    filled = imputer.transform(incomplete)[np.isnan(incomplete)]
    assert len(filled) == 3
    if mechanism == "censored":
        assert (filled > np.nanmax(incomplete[:, 0]) - 0.1).all()
    at_random = linear("mar").fit_transform(incomplete)[np.isnan(incomplete)]
    assert (filled > at_random).all()


@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_sign_that_is_given_holds_for_a_column_that_is_complete_at_fit(decoder):
    complete = table()[0]
    imputer = quick(
        mechanism="censored", signs=[1, 0, 0, 0], decoder=decoder, max_iter=steps(decoder)
    ).fit(complete)
    row = complete[:1].copy()
    row[0, 0] = np.nan
    assert imputer.transform(row)[0, 0] > complete[:, 0].max() - 1e-6


@pytest.mark.parametrize("mechanism", ["censored", "self_masking"])
def test_side_is_found_however_few_cells_are_missing(mechanism):
    """The mechanism is known to be there."""
    complete = table(60)[0]
    incomplete = np.where(
        complete >= [np.sort(complete[:, 0])[-6], *[np.inf] * 3], np.nan, complete
    )
    imputer = linear(mechanism).fit(incomplete)
    assert np.isnan(incomplete).sum() == 6
    assert_array_equal(imputer.signs_, [1, 0, 0, 0])
    assert imputer.evidence_ and {type(gain) for gain in imputer.evidence_.values()} == {float}


def test_outlier_of_a_table_whose_cells_are_all_observed_is_pulled_in():
    """EM has nothing to settle there, and must not stop before it looks for outliers."""
    rng = np.random.default_rng(0)
    complete = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 200)
    clean = linear(limits=[9.0, np.nan], signs=[1, 0]).fit(complete)
    complete[0] = [0.0, 60.0]
    spoilt = linear(limits=[9.0, np.nan], signs=[1, 0]).fit(complete)
    assert spoilt.covariance_[1, 1] < 2 * clean.covariance_[1, 1] < 0.2 * complete[:, 1].var()


def test_one_limit_for_all_is_of_no_account_for_a_column_of_sign_zero():
    """It is missing by chance, on both sides of the limit."""
    imputer = linear(limits=0.4, signs=[1, 0]).fit(np.column_stack([X[:, 0], 10 * X[:, 2]]))
    assert_array_equal(imputer.signs_, [1, 0])


def test_values_of_float32_may_lie_at_the_limit():
    incomplete = np.column_stack([X[:, 0], X[:, 3]]).astype(np.float32)
    incomplete[0, 0] = 0.4
    assert float(incomplete[0, 0]) > 0.4
    imputer = linear(limits=[0.4, np.nan]).fit(incomplete)
    assert np.isfinite(imputer.score(incomplete))


def test_without_signs_the_sides_of_limits_are_found_by_evidence():
    """One for all columns: both of these are missing above a limit."""
    complete = table(200)[0][:, [0, 1, 3]]
    incomplete = np.where(complete > [0.4, 6.0, np.inf], np.nan, complete)
    for factor in (1.0, -1.0):
        imputer = linear().fit(factor * incomplete)
        assert_array_equal(imputer.signs_, [factor, factor, 0])


def test_estimated_limits_are_the_ends_of_the_observed_values():
    imputer = linear(signs=SIGNS).fit(X)
    ends = [np.nanmax(X[:, 0]), np.nanmin(X[:, 1]), np.nan, np.nan]
    assert_allclose(imputer.thresholds_, ends, rtol=1e-12)
    assert_array_equal(np.sign(np.nan_to_num(imputer.slopes_)), SIGNS)


@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_new_row_beyond_an_estimated_limit_has_a_finite_score_and_beyond_a_known_one_none(decoder):
    new = np.array([[0.40, 5.0, 0.0, -300.0], [0.405, 5.0, np.nan, -300.0]])
    estimated = quick(
        mechanism="censored", decoder=decoder, signs=SIGNS, max_iter=steps(decoder)
    ).fit(X)
    beyond = new.copy()
    beyond[:, 0] = estimated.thresholds_[0] + 0.01
    assert np.isfinite(estimated.score_samples(beyond)).all()
    settings = {"limits": LIMITS, "signs": SIGNS, "max_iter": steps(decoder)}
    known = quick(mechanism="censored", decoder=decoder, **settings).fit(X)
    scores = known.score_samples(new)
    assert np.isfinite(scores[0])
    assert scores[1] == -np.inf
    assert known.score(new) == -np.inf


@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_new_row_beyond_a_known_limit_is_imputed_as_the_others(decoder):
    """The factor of an observed cell says nothing about the missing ones."""
    settings = {"limits": LIMITS, "signs": SIGNS, "max_iter": steps(decoder)}
    imputer = quick(mechanism="censored", decoder=decoder, **settings).fit(X)
    new = np.array([[0.4, 5.0, np.nan, -300.0], [0.4 + 1e-4, 5.0, np.nan, -300.0]])
    filled = imputer.transform(new)
    assert filled[1, 2] == pytest.approx(filled[0, 2], abs=1e-4)
    assert (imputer.effective_sample_size(new) >= 1 - 1e-5).all()
    assert imputer.sample(new, 200)[:, 1, 2].std() > 0


# Units


@pytest.mark.parametrize("mechanism", ["mar", "censored", "self_masking_known", "auto"])
def test_shifting_and_scaling_columns_changes_nothing_for_a_linear_decoder(mechanism):
    factor, offset = np.array([1e-3, 7.0, 1e4, 0.3]), np.array([5.0, -2.0, 100.0, 0.0])
    settings = settings_of(mechanism, "linear")
    plain = quick(**settings, max_iter=100, tol=1e-2).fit(X)
    moved = clone(plain).fit(X * factor + offset)
    deviation = np.nanstd(X, axis=0)
    ours = (moved.transform(X * factor + offset) - offset) / factor
    assert_allclose(ours / deviation, plain.transform(X) / deviation, atol=1e-6)
    expected = plain.score_samples(X) - ~MISSING @ np.log(factor)
    assert_allclose(moved.score_samples(X * factor + offset), expected, atol=1e-6)
    assert moved.mechanism_ == plain.mechanism_


@pytest.mark.parametrize("mechanism", ["mar", "censored", "self_masking_known", "agnostic"])
def test_doubling_columns_doubles_their_imputations_to_the_bit(mechanism):
    """Powers of two leave all roundings as they are."""
    factor = np.array([2.0, 0.25, 64.0, 1.0])
    plain = quick(**settings_of(mechanism)).fit(X)
    moved = clone(plain).fit(X * factor)
    assert_array_equal(moved.transform(X * factor), plain.transform(X) * factor)
    expected = plain.score_samples(X) - ~MISSING @ np.log(factor)
    assert_allclose(moved.score_samples(X * factor), expected, atol=1e-9)
    expected = np.array(plain.history_["bound"]) - np.mean(~MISSING @ np.log(factor))
    assert_allclose(moved.history_["bound"], expected, atol=1e-9)


def test_shifting_and_scaling_columns_changes_a_network_by_its_rounding():
    factor, offset = np.array([1e-3, 7.0, 1e4, 0.3]), np.array([5.0, -2.0, 100.0, 0.0])
    plain = quick(mechanism="self_masking_known", signs=SIGNS).fit(X)
    moved = clone(plain).fit(X * factor + offset)
    deviation = np.nanstd(X, axis=0)
    ours = (moved.transform(X * factor + offset) - offset) / factor
    assert_allclose(ours / deviation, plain.transform(X) / deviation, atol=2e-4)
    assert_allclose(moved.noise_scale_, plain.noise_scale_ * factor, rtol=1e-4)


def test_rows_without_an_observed_cell_do_not_count_in_the_units_of_the_history():
    """They are not trained on, so that doubling all columns costs log 2 an observed cell."""
    incomplete = np.vstack([X, np.full((40, 4), np.nan)])
    plain = quick(mechanism="mar", max_iter=1).fit(incomplete)
    doubled = clone(plain).fit(2 * incomplete)
    cost = plain.history_["bound"][0] - doubled.history_["bound"][0]
    assert cost == pytest.approx((~MISSING).sum(axis=1).mean() * np.log(2), abs=1e-6)


# What is imputed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_observed_cells_come_back_to_the_bit(decoder, dtype):
    incomplete = X.astype(dtype)
    imputer = quick(mechanism="censored", signs=SIGNS, decoder=decoder, max_iter=steps(decoder))
    filled = imputer.fit_transform(incomplete)
    assert filled.dtype == dtype
    assert_array_equal(filled[~MISSING], incomplete[~MISSING])
    assert np.isfinite(filled).all()


def test_linear_decoder_at_random_is_the_gaussian_imputer():
    ours = linear("mar").fit(X)
    theirs = GaussianImputer(random_state=0).fit(X)
    deviation = np.nanstd(X, axis=0)
    assert_allclose(ours.transform(X) / deviation, theirs.transform(X) / deviation, atol=0.02)
    assert ours.score(X) == pytest.approx(theirs.score(X), abs=0.02)
    expected = [condition(row, ours.location_, ours.covariance_) for row in X]
    assert_allclose(ours.transform(X), [row for row, _, _ in expected], rtol=1e-7)
    assert_allclose(ours.score_samples(X), [value for _, _, value in expected], rtol=1e-7)


@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_network_that_has_not_learnt_yet_is_a_factor_analysis(decoder):
    """Its covariance is that of the stored loadings and noise."""
    imputer = MIWAEImputer(
        decoder=decoder,
        n_latent=2,
        max_iter=1,
        learning_rate=1e-12,
        n_importance_impute=2048,
        random_state=0,
    ).fit(X)
    units = np.sqrt(imputer.covariance_.diagonal())
    loadings = units[:, None] * imputer._network["decoder"]["skip.weight"]
    covariance = loadings @ loadings.T + np.diag(imputer.noise_scale_**2)
    expected = [condition(row, imputer.location_, covariance) for row in X]
    filled = np.array([row for row, _, _ in expected])
    assert_allclose(imputer.transform(X) / units, filled / units, atol=4e-3)
    assert_allclose(imputer.score_samples(X), [value for _, _, value in expected], atol=4e-3)
    error = ((imputer.sample(X, 300).mean(axis=0) - filled) / units)[MISSING]
    assert np.sqrt(np.mean(error**2)) < 2 / 300**0.5


@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_quantiles_are_ordered_and_the_median_lies_between_limit_and_mean(decoder):
    settings = {"mechanism": "censored", "signs": SIGNS, "decoder": decoder, "tail_prior": None}
    imputer = quick(**settings, max_iter=steps(decoder), n_importance_impute=256).fit(X)

    def imputed(loss, quantile=None):
        return imputer.set_params(loss=loss, quantile=quantile).transform(X)[MISSING]

    levels = [imputed("quantile", level) for level in (0.1, 0.5, 0.9)]
    assert (np.diff(levels, axis=0) > 0).all()
    assert_array_equal(imputed("absolute_error"), levels[1])
    mean_, median_ = (
        imputer.set_params(loss=loss).transform(X) for loss in ("squared_error", "absolute_error")
    )
    gap = (mean_ - median_) * SIGNS
    # Given that they are missing, cells beyond a limit are skewed away from it.
    beyond = MISSING & (np.array(SIGNS) != 0)
    assert (gap[beyond] > 0).mean() > 0.9


@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_quantiles_cover_draws_in_their_share(decoder):
    imputer = quick(mechanism="self_masking_known", signs=SIGNS, decoder=decoder, max_iter=60)
    imputer.set_params(n_importance_impute=256, loss="quantile", quantile=0.8).fit(X)
    share = (imputer.sample(X, 100) <= imputer.transform(X)).mean(axis=0)[MISSING]
    assert share.mean() == pytest.approx(0.8, abs=0.02)
    assert np.abs(share - 0.8).max() < 0.2


@pytest.mark.parametrize("mechanism", ["mar", "censored", "self_masking_known", "nonlinear"])
@pytest.mark.parametrize("decoder", ["linear", "residual"])
def test_results_repeat_and_do_not_depend_on_the_batch(decoder, mechanism):
    imputer = quick(**settings_of(mechanism, decoder), max_iter=steps(decoder)).fit(X)
    deviation = np.nanstd(X, axis=0)
    whole, drawn, scores = imputer.transform(X), imputer.sample(X, 2), imputer.score_samples(X)
    assert_array_equal(imputer.transform(X), whole)
    assert_array_equal(imputer.sample(X, 2), drawn)
    order = np.random.default_rng(0).permutation(len(X))
    assert_allclose(imputer.transform(X[order]) / deviation, whole[order] / deviation, atol=1e-4)
    # A weight that rounding moves across a uniform number picks another code.
    moved = np.abs(imputer.sample(X[order], 2) - drawn[:, order]) / deviation > 1e-3
    assert moved.mean() < 0.005
    assert_allclose(imputer.score_samples(X[order]), scores[order], atol=1e-4)
    parts = [imputer.transform(part) for part in (X[:1], X[1:30], X[30:])]
    assert_allclose(np.concatenate(parts) / deviation, whole / deviation, atol=1e-4)


def test_draws_of_equal_rows_are_told_apart_by_row_ids():
    imputer = quick(mechanism="mar").fit(X)
    rows = np.repeat(X[MISSING[:, 0]][:1], 5, axis=0)
    drawn = imputer.sample(rows, row_ids=np.arange(5))[0, :, 0]
    assert len(np.unique(drawn)) == 5


# The tail prior


def test_reflection_is_the_oracles_of_what_the_model_imputes():
    """From the imputations without it, its reliability and the data: steps 4 and 5."""
    plain = linear(signs=SIGNS, tail_prior=None).fit(X)
    moved = linear(signs=SIGNS).fit(X)
    assert_array_equal(plain.reliability_, 1.0)
    assert_array_equal(moved.reliability_ < 1, [True, True, False, False])
    before, after = plain.transform(X), moved.transform(X)
    for j in (0, 1):
        side, threshold, r = SIGNS[j], moved.thresholds_[j], moved.reliability_[j]
        w = moved.trust_[j]
        A = oracle.reach(before, ~MISSING, j, side, threshold)
        g = oracle.mean_excess(before, ~MISSING, j, side, threshold)
        rows = MISSING[:, j]
        expected = [
            oracle.imputed(x, x, 0.0, w, side, threshold, r, A, g) for x in before[rows, j]
        ]
        assert_allclose(after[rows, j], expected, rtol=1e-9)
        assert not np.allclose(after[rows, j], before[rows, j], rtol=0.02)
    assert_array_equal(after[:, 2:], before[:, 2:])
    # It is about imputations only.
    assert_array_equal(moved.sample(X), plain.sample(X))
    assert_array_equal(moved.score_samples(X), plain.score_samples(X))


def test_network_shares_a_limit_with_the_normal_and_is_drawn_to_the_reflection():
    network = quick(mechanism="censored", signs=SIGNS).fit(X)
    alone = clone(network).set_params(tail_prior=None).fit(X).transform(X)
    normal = linear(signs=SIGNS, tail_prior=None).fit(X).transform(X)
    ours, shares = network.transform(X), network._tail["share"]
    for j in (0, 1):
        side, threshold, r = SIGNS[j], network.thresholds_[j], network.reliability_[j]
        w, rows = network.trust_[j], MISSING[:, j]
        A = oracle.reach(X, ~MISSING, j, side, threshold)
        g = oracle.mean_excess(normal, ~MISSING, j, side, threshold)
        pairs = zip(normal[rows, j], alone[rows, j], strict=True)
        expected = [
            oracle.imputed(*pair, shares[j], w, side, threshold, r, A, g) for pair in pairs
        ]
        assert_allclose(ours[rows, j], expected, rtol=1e-6)
    assert 0.05 < shares[:2].min() < shares[:2].max() < 0.999
    assert_array_equal(ours[:, 2], alone[:, 2])


def test_column_that_says_nothing_about_the_others_is_imputed_by_the_reflection():
    rng = np.random.default_rng(5)
    # Uniform: of a normal shape the tail would be trusted.
    noise = rng.uniform(-1.5, 1.5, size=(1000, 3))
    noise[noise[:, 0] > 0.3, 0] = np.nan
    imputer = linear(signs=[1, 0, 0]).fit(noise)
    assert imputer.reliability_[0] < 0.2
    filled = imputer.transform(noise)[np.isnan(noise[:, 0]), 0]
    reflection = 2 * np.nanmax(noise[:, 0]) - np.nanmean(noise[:, 0])
    gap = abs(filled.mean() - reflection)
    plain = linear(signs=[1, 0, 0], tail_prior=None).fit(noise).transform(noise)
    assert gap < 0.25 * abs(plain[np.isnan(noise[:, 0]), 0].mean() - reflection) + 0.02
    assert filled.std() < 0.1


@pytest.mark.parametrize("mechanism", ["mar", "agnostic", "self_masking"])
def test_without_a_hard_limit_the_tail_prior_does_nothing(mechanism):
    rng = np.random.default_rng(1)
    soft, _ = table(seed=1)
    hidden = rng.random(len(soft)) < ndtr(soft[:, 0])
    soft[hidden, 0] = np.nan
    with_, without = (
        quick(mechanism=mechanism, tail_prior=prior).fit(soft) for prior in ("reflection", None)
    )
    assert_array_equal(with_.reliability_, 1.0)
    assert_array_equal(with_.transform(soft), without.transform(soft))


# Missing models


def test_constant_missing_model_gives_the_bound_of_miwae_and_a_constant():
    still = {"max_iter": 1, "learning_rate": 1e-12, "n_importance_impute": 64, "random_state": 0}
    own = NotMIWAEImputer(mechanism=constant_odds, **still).fit(X)
    plain = MIWAEImputer(**still).fit(X)
    log_s = np.where(MISSING, np.log(expit(0.7)), np.log(expit(-0.7))).sum(axis=1)
    assert_allclose(own.score_samples(X), plain.score_samples(X) + log_s, atol=1e-4)
    assert_allclose(own.effective_sample_size(X), plain.effective_sample_size(X), rtol=1e-3)
    assert_allclose(own.missing_probability(X), expit(0.7), rtol=1e-6)


def test_missing_at_random_is_miwae():
    shared = {"max_iter": 2, "n_importance_impute": 64, "random_state": 0}
    ours, theirs = NotMIWAEImputer(mechanism="mar", **shared).fit(X), MIWAEImputer(**shared).fit(X)
    assert_array_equal(ours.transform(X), theirs.transform(X))
    assert_array_equal(ours.score_samples(X), theirs.score_samples(X))
    assert np.isnan(ours.missing_probability(X)).all()


def test_own_callable_gets_rows_in_the_units_of_the_data_at_every_call():
    seen = []

    def own(rows):
        seen.append(rows.detach().clone())
        return rows.new_zeros(rows.shape)

    imputer = quick(mechanism=own, max_iter=1).fit(X)
    rows = X[MISSING.any(axis=1)][:7]
    filled, observed = imputer.transform(rows), ~np.isnan(rows)
    values = seen[-1].numpy()[:, observed]
    assert values.shape == (64, observed.sum())
    expected = np.broadcast_to(rows[observed], values.shape)
    assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    imputer.missing_probability(rows)
    assert_allclose(seen[-1], filled, rtol=1e-4, atol=1e-5)


def test_module_of_the_user_is_left_alone_and_learnt_in_a_copy():
    module = nn.Linear(4, 4)
    before = module.weight.detach().clone()
    imputer = quick(mechanism=module, max_iter=5).fit(X)
    assert imputer.mechanism is module
    assert torch.equal(module.weight, before)
    assert not np.array_equal(imputer._network["missing"]["weight"], before.numpy())
    again = quick(mechanism=module, max_iter=5).fit(X)
    assert_array_equal(again.transform(X), imputer.transform(X))


@pytest.mark.parametrize(
    ("decoder", "link"),
    [
        ("linear", "probit"),
        ("residual", "probit"),
        ("residual", "logit"),
        ("conv", "probit"),
        ("conv", "logit"),
    ],
)
def test_missing_probability_is_that_of_slopes_and_thresholds(decoder, link):
    settings = settings_of("self_masking_known", decoder)
    imputer = quick(**settings, link=link, max_iter=60 if decoder == "linear" else 3).fit(X)
    complete = table(seed=3)[0]
    ours = imputer.missing_probability(complete)
    ratio = imputer.slopes_ * (complete - imputer.thresholds_)
    function = expit if link == "logit" and decoder == "conv" else ndtr
    assert_allclose(ours[:, :2], function(ratio)[:, :2], atol=1e-4)
    assert np.isnan(ours[:, 2:]).all()
    if decoder != "conv":
        # What EM has learnt is steep; "conv" starts from nothing.
        assert ours[:, :2].min() < 0.1 < 0.9 < ours[:, :2].max()


def test_missing_probability_of_a_known_limit_is_a_step():
    for decoder in ("linear", "residual"):
        settings = {"limits": LIMITS, "signs": SIGNS, "max_iter": 30}
        imputer = quick(mechanism="censored", decoder=decoder, **settings).fit(X)
        complete = table(seed=3)[0]
        ours = imputer.missing_probability(complete)[:, :2]
        assert_array_equal(ours[:, 0], complete[:, 0] > 0.4)
        assert_array_equal(ours[:, 1], complete[:, 1] < 3)


def test_missing_cells_are_imputed_before_their_probability_is_told():
    imputer = linear("self_masking_known", signs=SIGNS).fit(X)
    filled = imputer.transform(X)
    assert_array_equal(imputer.missing_probability(X), imputer.missing_probability(filled))
    empty = np.insert(X, 1, np.nan, axis=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dropping features")
        imputer = linear("self_masking_known", signs=np.insert(SIGNS, 1, 0)).fit(empty)
    assert imputer.missing_probability(empty).shape == X.shape


@pytest.mark.parametrize("signs", [SIGNS, None])
def test_logistic_function_starts_at_the_probit_of_em_and_keeps_signs_that_are_known(signs):
    """A probit of slope a is within .01 of the logistic function of 1.702 a."""
    rng = np.random.default_rng(2)
    soft, _ = table(400, seed=2)
    soft[rng.random(400) < ndtr(1.5 * soft[:, 0] - 0.5), 0] = np.nan
    soft[rng.random(400) < ndtr(-0.4 * (soft[:, 1] - 4)), 1] = np.nan
    mechanism = "self_masking" if signs is None else "self_masking_known"
    settings = {"mechanism": mechanism, "signs": signs, "max_iter": 1, "learning_rate": 1e-12}
    probit, logit = (quick(**settings, link=link).fit(soft) for link in ("probit", "logit"))
    assert_array_equal(logit.signs_[:2], [1, -1])
    assert_array_equal(logit.signs_, probit.signs_)
    assert_allclose(logit.slopes_[:2], 1.702 * probit.slopes_[:2], rtol=1e-4)
    assert_allclose(logit.thresholds_[:2], probit.thresholds_[:2], rtol=1e-5)
    complete = table(seed=3)[0]
    gap = logit.missing_probability(complete) - probit.missing_probability(complete)
    assert np.abs(gap[:, :2]).max() < 0.011
    if signs is not None:
        # A known sign stays, whatever the slope is drawn to.
        wrong = clone(logit).set_params(learning_rate=0.3, max_iter=40, signs=[-1, 1, 0, 0])
        assert_array_equal(wrong.fit(soft).signs_, [-1, 1, 0, 0])


@pytest.mark.parametrize("mechanism", ["censored", "agnostic", "self_masking_known", "mar"])
def test_attributes_of_the_mechanism_are_there_without_a_linear_model(mechanism):
    imputer = quick(**settings_of(mechanism, "conv"), max_iter=1).fit(X)
    assert imputer.evidence_ == {}
    for name in ("reliability_", "trust_"):
        assert_array_equal(getattr(imputer, name), 1.0)
    self_masks = mechanism in ("censored", "self_masking_known")
    assert_array_equal(imputer.signs_, SIGNS if self_masks else [0] * 4)
    assert_array_equal(np.isnan(imputer.thresholds_), [not self_masks] * 2 + [True] * 2)
    assert imputer.slopes_.shape == (4,)
    assert not hasattr(imputer, "location_")


def test_module_of_double_precision_is_taken():
    imputer = quick(mechanism=nn.Linear(4, 4).double(), max_iter=1).fit(X)
    assert np.isfinite(imputer.score(X))


def test_cold_start_tells_its_signs_and_thresholds_too():
    """A limit beside a column that is no number, where no linear model is fitted."""
    mixed = np.column_stack([X[:, 0], X[:, 3], X[:, 3] > -300])
    kinds = ["gaussian", "gaussian", "bernoulli"]
    imputer = quick(mechanism="censored", signs=[1, 0, 0], distribution=kinds, max_iter=1)
    imputer.fit(mixed)
    assert_array_equal(imputer.signs_, [1, 0, 0])
    assert_allclose(imputer.thresholds_, [np.nanmax(X[:, 0]), np.nan, np.nan], rtol=1e-6)


# Reproducibility and storage


def global_states():
    return torch.get_rng_state().numpy(), np.random.get_state()[1].copy()  # noqa: NPY002


@pytest.mark.parametrize("mechanism", ["mar", "censored", "nonlinear"])
def test_random_state_fixes_the_fit_and_touches_no_global_state(mechanism):
    states = global_states()
    first, second = (quick(**settings_of(mechanism)).fit(X) for _ in range(2))
    assert_equal(global_states(), states)
    assert_array_equal(first.transform(X), second.transform(X))
    assert_array_equal(first.sample(X, 2), second.sample(X, 2))
    other = quick(**settings_of(mechanism), random_state=1).fit(X)
    assert not np.array_equal(other.transform(X), first.transform(X))
    assert not np.array_equal(other.sample(X), first.sample(X))


def tensors_in(value):
    if isinstance(value, torch.Tensor | nn.Module | torch.Generator):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [found for part in value for found in tensors_in(part)]
    return []


@pytest.mark.parametrize(
    ("mechanism", "decoder"),
    [
        ("mar", "linear"),
        ("censored", "linear"),
        ("auto", "residual"),
        ("self_masking_known", "mlp"),
        ("nonlinear", "residual"),
        ("self_masking", "conv"),
        (total_odds, "residual"),
    ],
)
def test_fitted_state_is_free_of_torch_and_pickles_to_the_bit(mechanism, decoder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer = quick(**settings_of(mechanism, decoder), max_iter=1).fit(X)
    assert tensors_in(vars(imputer)) == []
    before = pickle.dumps(imputer)
    loaded = pickle.loads(before)
    assert_array_equal(loaded.transform(X), imputer.transform(X))
    assert_array_equal(loaded.sample(X), imputer.sample(X))
    assert_array_equal(loaded.score_samples(X), imputer.score_samples(X))
    # Using it leaves nothing behind.
    assert pickle.dumps(imputer) == before


@pytest.mark.parametrize(
    "imputer",
    [
        MIWAEImputer(max_iter=1, random_state=0),
        MIWAEImputer(decoder="linear", random_state=0),
        quick(mechanism="censored", signs=SIGNS),
        quick(mechanism="nonlinear", hidden_layer_sizes=[8, 8], max_iter=1),
        quick(mechanism="self_masking_known", signs=SIGNS, link="logit", max_iter=1),
        quick(**settings_of("mar", "conv"), max_iter=1),
    ],
    ids=str,
)
def test_file_without_pickle_gives_the_same_imputations(imputer, tmp_path):
    imputer = clone(imputer).fit(X)
    io.save(imputer, tmp_path / "imputer.skops")
    loaded = io.load(tmp_path / "imputer.skops")
    assert_array_equal(loaded.transform(X), imputer.transform(X))
    assert_array_equal(loaded.sample(X), imputer.sample(X))
    assert_array_equal(loaded.score_samples(X), imputer.score_samples(X))
    assert_equal(loaded.history_, imputer.history_)


@pytest.mark.parametrize(
    "parameters",
    [{"mechanism": nn.Linear(4, 4)}, {"mechanism": "censored", "signs": pd.Series({"x0": 1})}],
    ids=["module", "series"],
)
def test_file_without_pickle_refuses_what_only_pickle_stores_and_is_not_written(
    parameters, tmp_path
):
    imputer = quick(**parameters, max_iter=1).fit(X)
    with pytest.raises(TypeError, match="torch module or a pandas Series"):
        io.save(imputer, tmp_path / "imputer.skops")
    assert list(tmp_path.iterdir()) == []


# Among scikit-learn


@pytest.mark.parametrize("method", ["transform", "sample", "score_samples"])
def test_value_of_a_discrete_column_unseen_at_fit_is_warned_of_and_counts_as_the_nearest(method):
    kinds = ["categorical", "gaussian"]
    values = np.column_stack([np.arange(60) % 3 * 10.0, X[:60, 3]])
    values[::7, 1] = np.nan
    imputer = MIWAEImputer(distribution=kinds, max_iter=1, random_state=0).fit(values)
    new = np.array([[14.0, np.nan], [10.0, np.nan]])
    with pytest.warns(UserWarning, match=r"Columns \['x0'\] hold values unseen at fit"):
        found = getattr(imputer, method)(new)
    if method == "transform":
        assert found[0, 0] == 14.0
        assert found[0, 1] == found[1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(imputer, method)(new[1:])


@pytest.mark.parametrize("cls", BOTH)
def test_grid_search_needs_no_y_and_picks_the_larger_bound(cls):
    settings = {"mechanism": "mar"} if cls is NotMIWAEImputer else {}
    imputer = cls(max_iter=8, n_importance_impute=64, random_state=0, **settings)
    search = GridSearchCV(imputer, {"learning_rate": [1e-12, 0.01]}, cv=2).fit(X)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    # One of them learns nothing.
    assert scores[1] > scores[0] + 0.03
    assert search.best_params_["learning_rate"] == 0.01
    best = clone(imputer).set_params(**search.best_params_).fit(X)
    assert_array_equal(search.transform(X), best.transform(X))
    halves = [slice(0, 40), slice(40, 80)]
    expected = np.mean(
        [
            clone(imputer).set_params(learning_rate=1e-12).fit(X[a]).score_samples(X[b]).mean()
            for a, b in (halves, halves[::-1])
        ]
    )
    assert scores[0] == pytest.approx(expected, rel=1e-12)


class Recorder:
    """Keeps a fitted estimator of every iteration, and stops after some."""

    def __init__(self, n_tasks=None):
        self.n_tasks, self.seen = n_tasks, []

    def setup(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def teardown(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        self.seen.append((context.task_name, fitted_estimator))
        return self.n_tasks is not None and len(self.seen) == self.n_tasks


def test_callback_sees_every_epoch_as_a_fitted_imputer():
    recorder = Recorder()
    imputer = quick(mechanism="nonlinear", decoder="mlp", max_iter=4).set_callbacks(recorder)
    imputer.fit(X)
    fitted = [seen for name, seen in recorder.seen if name == "iteration"]
    assert [name for name, _ in recorder.seen] == ["iteration"] * len(fitted) + ["fit"]
    epochs = [seen for seen in fitted if seen._network is not None]
    assert [seen.n_iter_ for seen in epochs] == [1, 2, 3, 4]
    assert [seen.history_["bound"] for seen in epochs][-1] == imputer.history_["bound"]
    # Each keeps the weights of its epoch.
    bounds = [seen.score(X) for seen in epochs]
    assert len(set(bounds)) == 4
    assert bounds[-1] == imputer.score(X)
    for seen in fitted:
        assert np.isfinite(seen.transform(X[:9])).all()


def test_callback_sees_the_iterations_of_a_linear_fit():
    recorder = Recorder()
    imputer = linear(signs=SIGNS).set_callbacks(recorder).fit(X)
    fitted = [seen for name, seen in recorder.seen if name == "iteration"]
    assert len(fitted) == imputer.n_iter_ > 3
    assert_array_equal(fitted[-1].transform(X), imputer.transform(X))
    assert not np.array_equal(fitted[0].transform(X), imputer.transform(X))


@pytest.mark.parametrize("cls", BOTH)
def test_callback_stops_the_training(cls):
    settings = {"mechanism": "agnostic"} if cls is NotMIWAEImputer else {}
    whole = Recorder()
    shared = {"max_iter": 6, "random_state": 0, "n_importance_impute": 64, **settings}
    cls(**shared).set_callbacks(whole).fit(X)
    n_linear = sum(seen._network is None for name, seen in whole.seen if name == "iteration")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imputer = cls(**shared).set_callbacks(Recorder(n_linear + 2)).fit(X)
    assert imputer.n_iter_ == len(imputer.history_["bound"]) == 2
    stopped = [seen for _, seen in whole.seen if seen._network is not None][1]
    assert_array_equal(imputer.transform(X), stopped.transform(X))


def test_bound_rises_and_history_is_in_nats_of_the_data():
    imputer = quick(mechanism="mar", decoder="mlp", max_iter=40, min_scale=0.1).fit(X)
    history = imputer.history_["bound"]
    assert len(history) == imputer.n_iter_ == 40
    assert history[-1] > history[0] + 0.3
    assert history[-1] == pytest.approx(imputer.score(X), abs=0.5)


def test_warns_where_importance_sampling_rests_on_few_samples_and_only_there():
    with pytest.warns(UserWarning, match=r"effective importance.*n_importance_impute"):
        quick(mechanism="mar", n_importance_impute=2, max_iter=1).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imputer = quick(mechanism="mar", n_importance_impute=64).fit(X)
    assert np.median(imputer.effective_sample_size(X)) > 10


def test_warns_where_em_did_not_converge():
    with pytest.warns(ConvergenceWarning, match="did not converge in 2 iterations.*max_iter"):
        linear(signs=SIGNS, max_iter=2, tol=1e-9).fit(X)


@pytest.mark.parametrize("cls", BOTH)
def test_empty_columns_are_dropped_or_kept_and_integers_may_mark_missing_cells(cls):
    settings = {"mechanism": "mar"} if cls is NotMIWAEImputer else {}
    coded = np.where(MISSING, -999.0, X)
    coded = np.insert(coded, 2, -999.0, axis=1)
    shared = {"missing_values": -999, "max_iter": 1, "random_state": 0, **settings}
    kept = cls(keep_empty_features=True, add_indicator=True, **shared).fit_transform(coded)
    plain = cls(**{**shared, "missing_values": np.nan}).fit_transform(X)
    assert_allclose(kept[:, [0, 1, 3, 4]], plain, rtol=1e-5, atol=1e-6)
    assert_array_equal(kept[:, 2], 0.0)
    assert_array_equal(kept[:, 5:], np.insert(MISSING, 2, True, axis=1)[:, :4])
    with pytest.warns(UserWarning, match="Dropping features"):
        dropped = cls(**shared).fit(coded)
    assert_allclose(dropped.transform(coded), plain, rtol=1e-5, atol=1e-6)
