"""What reweighting makes of a row: is it a target row, how often does it count, where is it."""

import warnings
from functools import cache

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbilevel import ReweightingClassifier, ReweightingRegressor
from skbilevel.estimators.linear_head import RidgeHead, SoftmaxHead
from skbilevel.metrics import effective_sample_size, entropy

# Few rows are fast, and weights on few of them are not what most tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:The weights count as")

FAMILIES = ["uniform", "target", "group", "loglinear", "gate", "sample"]
SOLVERS = ["exact", "warm_started", "soba"]
PARAMETRIZATIONS = ["mirror", "softmax", "sigmoid"]
BOTH = pytest.mark.parametrize("cls", [ReweightingRegressor, ReweightingClassifier])


def mixture(n_train=90, n_target=20):
    """Target rows, in random places, and half of the others follow one relation."""
    rng = np.random.default_rng(0)
    n_rows = n_train + n_target
    X = rng.normal(size=(n_rows, 3))
    is_target = rng.permutation(n_rows) < n_target
    follows = is_target | (rng.random(n_rows) < 0.5)
    y = np.where(follows, X @ [1, 2, 3], X @ [-3, 0, 1]) + 0.2 * rng.normal(size=n_rows)
    return X, y, is_target


def noisy_labels(n_train=90, n_target=24):
    """Three classes; target rows, in random places, and half of the others have their label."""
    n_rows = n_train + n_target
    X, y = make_blobs(n_rows, n_features=3, centers=3, cluster_std=2.5, random_state=0)
    rng = np.random.default_rng(0)
    is_target = rng.permutation(n_rows) < n_target
    is_wrong = ~is_target & (rng.random(n_rows) < 0.5)
    return X, np.where(is_wrong, (y + rng.integers(1, 3, n_rows)) % 3, y), is_target


X, Y, IS_TARGET = mixture()
SOURCE, N_ROWS = ~IS_TARGET, len(Y)
MARKED = np.column_stack([X, IS_TARGET])
FRAME = pd.DataFrame(MARKED, columns=["a", "b", "c", "kind"])
DATA = {ReweightingRegressor: (X, Y, IS_TARGET), ReweightingClassifier: noisy_labels()}
# Fewer fits: folds of the target for each family, and a strength that is not chosen.
FAST = {"auto": {"n_folds": 2}, "loglinear": {"kl": 0.1}}
HEADS = {ReweightingRegressor: RidgeHead, ReweightingClassifier: SoftmaxHead}


def model(cls=ReweightingRegressor, weighting="gate", **settings):
    return cls(weighting=weighting, random_state=0, **{**FAST.get(weighting, {}), **settings})


@cache
def fitted(cls=ReweightingRegressor, weighting="gate"):
    """To be looked at only."""
    rows, labels, is_target = DATA[cls]
    return model(cls, weighting).fit(rows, labels, is_target=is_target)


def without_target(cls, *arguments, **settings):
    with pytest.warns(UserWarning, match="got no target rows"):
        return cls(**settings).fit(*arguments)


def assert_same_fit(found, expected, atol=1e-8):
    assert_allclose(found.weights_, expected.weights_, rtol=0, atol=atol)
    assert_allclose(found.coef_, expected.coef_, rtol=0, atol=atol)
    assert_allclose(found.intercept_, expected.intercept_, rtol=0, atol=atol)


# Ways to tell the target


def by_x_val(each):
    each.fit(X[SOURCE], Y[SOURCE], X_val=X[IS_TARGET], y_val=Y[IS_TARGET])
    return each.weights_, each.predict(X)


def by_index(each):
    each.set_params(target_column=3).fit(MARKED, Y)
    return each.weights_[SOURCE], each.predict(MARKED)


def by_index_from_the_end(each):
    each.set_params(target_column=-4).fit(MARKED[:, [3, 0, 1, 2]], Y)
    return each.weights_[SOURCE], each.predict(MARKED[:, [3, 0, 1, 2]])


def by_name(each):
    each.set_params(target_column="kind").fit(FRAME, Y)
    return each.weights_[SOURCE], each.predict(FRAME)


WAYS = pytest.mark.parametrize("way", [by_x_val, by_index, by_index_from_the_end, by_name])


@WAYS
@pytest.mark.parametrize("weighting", ["gate", "loglinear", "group", "sample"])
def test_target_told_in_any_way_gives_the_same_fit(weighting, way):
    expected, told = fitted(weighting=weighting), model(weighting=weighting)
    weights, predicted = way(told)
    assert_allclose(weights, expected.weights_[SOURCE], rtol=0, atol=1e-8)
    assert_allclose(predicted, expected.predict(X), rtol=0, atol=1e-8)
    assert_allclose(told.coef_, expected.coef_, rtol=0, atol=1e-8)


def test_target_told_in_another_way_gives_the_same_mixture():
    expected, told = fitted(weighting="auto"), model(weighting="auto")
    weights, predicted = by_x_val(told)
    assert_allclose(weights, expected.weights_[SOURCE], rtol=0, atol=1e-8)
    assert_allclose(predicted, expected.predict(X), rtol=0, atol=1e-8)
    assert told.mixture_ == pytest.approx(expected.mixture_, abs=1e-8)


def test_target_of_classes_told_in_any_way_gives_the_same_fit():
    points, labels, is_clean = DATA[ReweightingClassifier]
    expected, marked = fitted(ReweightingClassifier), np.column_stack([points, is_clean])
    cut = model(ReweightingClassifier).fit(
        points[~is_clean], labels[~is_clean], X_val=points[is_clean], y_val=labels[is_clean]
    )
    by_column = model(ReweightingClassifier, target_column=-1).fit(marked, labels)
    assert_allclose(cut.weights_, expected.weights_[~is_clean], rtol=0, atol=1e-8)
    assert_allclose(by_column.weights_, expected.weights_, rtol=0, atol=1e-8)
    for each, rows in ((cut, points), (by_column, marked)):
        shares = each.predict_proba(rows)
        assert_allclose(shares, expected.predict_proba(points), rtol=0, atol=1e-8)


def test_other_target_rows_give_another_fit():
    others = np.roll(IS_TARGET, 1)
    told = model().fit(X, Y, is_target=others)
    assert_array_equal(told.weights_ == 0, others)
    assert np.abs(told.coef_ - fitted().coef_).max() > 0.01


def test_target_column_survives_a_scaler():
    by_column = make_pipeline(StandardScaler(), model(target_column=3)).fit(MARKED, Y)
    by_mask = make_pipeline(StandardScaler(), model())
    by_mask.fit(X, Y, reweightingregressor__is_target=IS_TARGET)
    assert_same_fit(by_column[-1], by_mask[-1])
    assert_allclose(by_column.predict(MARKED), by_mask.predict(X), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("source", "target"), [(0, 1), (-7.5, 2.5), (3, 4)])
def test_target_rows_have_the_larger_value_of_the_target_column(source, target):
    column = np.where(IS_TARGET, target, source)
    told = model(target_column=3).fit(np.column_stack([X, column]), Y)
    assert_same_fit(told, fitted())


def test_target_column_is_seen_by_no_model():
    seen, marked = model(target_column=0), np.column_stack([IS_TARGET, X])
    seen.fit(marked, Y)
    assert seen.coef_.shape == (3,)
    assert seen.estimator_.n_features_in_ == 3
    assert seen.n_features_in_ == 4
    other = np.column_stack([np.arange(N_ROWS), X])
    assert_array_equal(seen.predict(other), seen.predict(marked))
    assert_array_equal(seen.weights_for(other, Y), seen.weights_for(marked, Y))


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_validation_fraction_draws_a_target_and_fits_as_if_it_was_marked(fraction):
    drawn = model(validation_fraction=fraction).fit(X, Y)
    is_target = drawn.weights_ == 0
    assert is_target.sum() == round(fraction * N_ROWS)
    assert_same_fit(drawn, model().fit(X, Y, is_target=is_target))


def test_validation_fraction_is_drawn_by_the_seed_and_not_by_the_order_of_rows():
    order = np.random.default_rng(0).permutation(N_ROWS)
    drawn, again, other = (
        model(validation_fraction=0.2).set_params(random_state=seed).fit(X[rows], Y[rows]).weights_
        for seed, rows in ((0, slice(None)), (0, order), (1, slice(None)))
    )
    assert_array_equal(again == 0, drawn[order] == 0)
    assert np.any((other == 0) != (drawn == 0))


@pytest.mark.parametrize(
    "as_given",
    [
        np.ndarray.tolist,
        lambda mask: mask.astype(int),
        lambda mask: mask.astype(float),
        lambda mask: mask.astype(object),
        lambda mask: pd.Series(mask, index=range(7, 7 + len(mask))),
        lambda mask: pd.Series(mask, dtype="boolean"),
        pl.Series,
    ],
)
def test_mask_may_come_in_any_form(as_given):
    assert_same_fit(model().fit(X, Y, is_target=as_given(IS_TARGET)), fitted())


def test_weights_of_target_rows_are_the_same_given_either_way():
    counts = np.random.default_rng(0).uniform(0.5, 3, N_ROWS)
    marked = model().fit(X, Y, counts, is_target=IS_TARGET)
    cut = model().fit(
        X[SOURCE],
        Y[SOURCE],
        counts[SOURCE],
        X_val=X[IS_TARGET],
        y_val=Y[IS_TARGET],
        sample_weight_val=counts[IS_TARGET],
    )
    assert_allclose(cut.weights_, marked.weights_[SOURCE], rtol=0, atol=1e-8)
    assert_allclose(cut.coef_, marked.coef_, rtol=0, atol=1e-8)
    assert np.abs(marked.coef_ - fitted().coef_).max() > 1e-3


# Wrong ways

X_VAL = {"X_val": X[IS_TARGET], "y_val": Y[IS_TARGET]}
REFUSED = {
    "X_val and is_target": ({**X_VAL, "is_target": IS_TARGET}, {}),
    "X_val and target_column": (X_VAL, {"target_column": 0}),
    "X_val and validation_fraction": (X_VAL, {"validation_fraction": 0.5}),
    "is_target and target_column": ({"is_target": IS_TARGET}, {"target_column": 0}),
    "is_target and validation_fraction": ({"is_target": IS_TARGET}, {"validation_fraction": 0.5}),
    "target_column and validation_fraction": (
        {},
        {"target_column": 0, "validation_fraction": 0.5},
    ),
    "X_val without y_val": ({"X_val": X}, {}),
    "y_val without X_val": ({"y_val": Y}, {}),
    "X_val of another width": ({"X_val": X[:9, :2], "y_val": Y[:9]}, {}),
    "X_val of another length than y_val": ({"X_val": X[:9], "y_val": Y[:8]}, {}),
    "X_val with NaN": ({"X_val": np.full((9, 3), np.nan), "y_val": Y[:9]}, {}),
    "X_val of one row": ({"X_val": X[:1], "y_val": Y[:1]}, {}),
    "sample_weight_val alone": ({"sample_weight_val": np.ones(9)}, {}),
    "sample_weight_val beside is_target": (
        {"sample_weight_val": np.ones(9), "is_target": IS_TARGET},
        {},
    ),
    "sample_weight_val of another length": ({**X_VAL, "sample_weight_val": np.ones(9)}, {}),
    "sample_weight_val of zeros": ({**X_VAL, "sample_weight_val": np.zeros(20)}, {}),
    "sample_weight of zeros": ({"sample_weight": np.zeros(N_ROWS), "is_target": IS_TARGET}, {}),
    "sample_weight of zeros alone": ({"sample_weight": np.zeros(N_ROWS)}, {}),
    "sample_weight below zero": ({"sample_weight": np.full(N_ROWS, -1), **X_VAL}, {}),
    "sample_weight of another length": ({"sample_weight": np.ones(9), **X_VAL}, {}),
    "is_target of another length": ({"is_target": IS_TARGET[1:]}, {}),
    "is_target as a column": ({"is_target": IS_TARGET[:, np.newaxis]}, {}),
    "is_target with NaN": ({"is_target": np.where(np.arange(N_ROWS) == 3, np.nan, IS_TARGET)}, {}),
    "is_target with None": ({"is_target": [None, *IS_TARGET[1:]]}, {}),
    "is_target of -1 and 1": ({"is_target": 2 * IS_TARGET - 1}, {}),
    "is_target of words": ({"is_target": IS_TARGET.astype(str)}, {}),
    "is_target of positions": ({"is_target": np.flatnonzero(IS_TARGET)}, {}),
    "is_target without a target row": ({"is_target": np.zeros(N_ROWS, bool)}, {}),
    "is_target with one target row": ({"is_target": np.arange(N_ROWS) == 3}, {}),
    "is_target without a training row": ({"is_target": np.ones(N_ROWS, bool)}, {}),
    "is_target whose rows weigh nothing": (
        {"is_target": IS_TARGET, "sample_weight": 1.0 * SOURCE},
        {},
    ),
    "target_column that X does not have": ({}, {"target_column": 3}),
    "target_column before the first": ({}, {"target_column": -4}),
    "target_column of a name without names": ({}, {"target_column": "kind"}),
    "target_column of many values": ({}, {"target_column": 0}),
    "validation_fraction of no row": ({}, {"validation_fraction": 0.001}),
    "validation_fraction of all rows": ({}, {"validation_fraction": 0.999}),
    "validation_fraction above 1": ({}, {"validation_fraction": 1.5}),
    "source_groups of another length": ({"source_groups": [0, 1], "is_target": IS_TARGET}, {}),
    "source_groups without a target": ({"source_groups": [0, 1]}, {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_target_is_refused_by_name_and_leaves_the_estimator_as_it_was(case):
    arguments, settings = REFUSED[case]
    each = model(weighting="uniform").fit(X, Y, is_target=IS_TARGET).set_params(**settings)
    before = dict(vars(each))
    with pytest.raises(ValueError, match=case.split()[0]):
        each.fit(X, Y, **arguments)
    assert vars(each).keys() == before.keys()
    assert all(vars(each)[name] is before[name] for name in before)


@pytest.mark.parametrize("n_values", [1, 3])
def test_target_column_must_hold_two_values(n_values):
    marked = np.column_stack([X, np.arange(N_ROWS) % n_values])
    with pytest.raises(ValueError, match=f"target_column=3 must hold two values.* {n_values}"):
        model(target_column=3).fit(marked, Y)


def test_name_of_the_target_column_must_be_one_of_the_frame():
    with pytest.raises(ValueError, match="target_column='domain' is not a column of X"):
        model(target_column="domain").fit(FRAME, Y)


def test_two_ways_are_named_both():
    with pytest.raises(ValueError, match="X_val and is_target cannot be used together"):
        model().fit(X, Y, is_target=IS_TARGET, **X_VAL)


# Warnings


def warned(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    assert all(each.filename == __file__ for each in caught)
    return [str(each.message) for each in caught]


@BOTH
def test_fit_without_a_target_warns_and_says_how_to_tell_it(cls):
    rows, labels, _ = DATA[cls]
    (message,) = warned(lambda: cls().fit(rows, labels))
    assert message.startswith(f"{cls.__name__} got no target rows")
    assert all(
        way in message for way in ("is_target", "X_val", "target_column", "validation_fraction")
    )


@pytest.mark.parametrize(("center", "scale"), [(0, 10.0), (50, 1.0), (-500, 0.01)])
def test_x_val_of_another_scale_warns(center, scale):
    X_val = center + scale * (X[IS_TARGET] + 1)
    each = model(weighting="uniform")
    messages = warned(lambda: each.fit(X[SOURCE], Y[SOURCE], X_val=X_val, y_val=Y[IS_TARGET]))
    assert [message.partition(":")[0] for message in messages] == [
        "X_val looks as if it were on another scale than X"
    ]


def test_x_val_that_is_as_long_as_x_warns_of_cross_validation():
    rows = np.flatnonzero(SOURCE)[: IS_TARGET.sum()]
    each = model(weighting="target")
    (message,) = warned(lambda: each.fit(X[rows], Y[rows], X_val=X[IS_TARGET], y_val=Y[IS_TARGET]))
    assert message.startswith("X_val has as many rows as X, 20: cross_validate")


def test_weights_on_fewer_rows_than_coefficients_warn():
    each = model(weighting="sample", solver="warm_started", outer_rate=30.0, max_iter=200)
    (message,) = warned(lambda: each.fit(X, Y, is_target=IS_TARGET))
    assert each.effective_sample_size_ < 4
    expected = f"count as {each.effective_sample_size_:.1f} training rows, fewer than the 4 coeff"
    assert expected in message
    assert "max_iter" in message


def test_weights_on_fewer_rows_than_the_target_warn():
    rows = np.concatenate([np.flatnonzero(SOURCE)[:25], np.flatnonzero(IS_TARGET)])
    each = model()
    (message,) = warned(lambda: each.fit(X[rows], Y[rows], is_target=IS_TARGET[rows]))
    assert 4 < each.effective_sample_size_ < 20
    assert "fewer than the 20 target rows" in message


@pytest.mark.parametrize("weighting", ["auto", *FAMILIES])
def test_healthy_fit_warns_of_nothing(weighting):
    rng = np.random.default_rng(1)
    rows = np.concatenate([np.flatnonzero(SOURCE), np.flatnonzero(IS_TARGET)[:12]])
    near = X[rows] + 0.01 * rng.normal(size=(len(rows), 3))
    each = model(weighting=weighting, kl=0.1)
    assert warned(lambda: each.fit(near, Y[rows], is_target=IS_TARGET[rows])) == []


def test_shift_of_some_deviations_is_no_other_scale():
    each = model(weighting="uniform")
    assert warned(lambda: each.fit(X, Y, X_val=X[:9] + 3, y_val=Y[:9])) == []


# Without a target


@BOTH
@pytest.mark.parametrize(
    "settings", [{}, {"l2": 0.1}, {"standardize": False}, {"fit_intercept": False, "l2": 0.01}]
)
def test_without_a_target_it_is_the_linear_model(cls, settings):
    rows, labels, _ = DATA[cls]
    counts = np.random.default_rng(0).uniform(0, 2, len(rows))
    found = without_target(cls, 3 * rows + 2, labels, counts, **settings)
    expected = HEADS[cls](**settings).fit(3 * rows + 2, labels, counts)
    assert_allclose(found.coef_, expected.coef_, rtol=1e-9)
    assert_allclose(found.intercept_, expected.intercept_, rtol=1e-9, atol=1e-12)
    assert_allclose(found.weights_, counts / counts.sum(), rtol=1e-14)
    assert_array_equal(found.sample_weight_, counts)
    assert found.selected_ == "uniform"
    assert found.shift_detected_ is None


def test_without_a_target_it_is_ridge_regression_on_standardised_columns():
    counts = np.random.default_rng(0).uniform(0, 2, N_ROWS)
    found = without_target(ReweightingRegressor, 3 * X + 2, Y, counts, l2=0.2)
    scaler = StandardScaler().fit(X, sample_weight=counts)
    ridge = Ridge(alpha=0.2 * counts.sum()).fit(scaler.transform(X), Y, counts)
    assert_allclose(
        found.predict(3 * X + 2), ridge.predict(scaler.transform(X)), rtol=0, atol=1e-10
    )


def test_without_a_target_it_is_softmax_regression_on_rows_of_mean_squared_length_1():
    points, labels, _ = DATA[ReweightingClassifier]
    found = without_target(ReweightingClassifier, points, labels, l2=0.01)
    rows = StandardScaler().fit_transform(points) / np.sqrt(3)
    rows = np.column_stack([rows, np.full(114, 0.3)])
    softmax = LogisticRegression(C=1 / (0.01 * 114), fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = softmax.fit(rows, labels).predict_proba(rows)
    assert_allclose(found.predict_proba(points), expected, rtol=0, atol=1e-6)


# How often rows count

COUNTS = np.random.default_rng(3).integers(0, 4, N_ROWS)


def repeated(*arrays, counts=COUNTS):
    return [np.repeat(array, counts[: len(array)], axis=0) for array in arrays]


def assert_counted_as_repeated(counted, repeats, counts, atol=1e-7):
    """A row of weight k has the weights of its k copies together, one of weight 0 has none."""
    rows = np.repeat(np.arange(len(counts)), counts)
    together = np.bincount(rows, repeats.weights_, minlength=len(counts))
    assert_allclose(counted.weights_, together, rtol=0, atol=atol)
    assert_allclose(counted.coef_, repeats.coef_, rtol=0, atol=atol)
    assert_allclose(counted.intercept_, repeats.intercept_, rtol=0, atol=atol)
    assert counted.entropy_ == pytest.approx(repeats.entropy_, abs=atol)
    size = repeats.effective_sample_size_
    assert counted.effective_sample_size_ == pytest.approx(size, rel=atol)


@BOTH
def test_without_a_target_integer_weights_are_repeated_rows(cls):
    rows, labels, _ = DATA[cls]
    counts = np.random.default_rng(4).integers(0, 4, len(rows))
    counted = without_target(cls, rows, labels, counts)
    repeats = without_target(cls, *repeated(rows, labels, counts=counts))
    assert_counted_as_repeated(counted, repeats, counts)
    assert np.abs(counted.coef_ - without_target(cls, rows, labels).coef_).max() > 1e-3


def reproduction(cls, solver, parametrization, refit):
    return cls(
        weighting="sample",
        solver=solver,
        parametrization=parametrization,
        refit=refit,
        early_stopping=False,
        max_iter=8,
        l2=0.01,
        random_state=0,
    )


@pytest.mark.parametrize("refit", ["all", "train", None])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("solver", SOLVERS)
@BOTH
def test_integer_weights_are_repeated_rows_in_every_mode_of_the_paper(
    cls, solver, parametrization, refit
):
    rows, labels, is_target = DATA[cls]
    counts = np.random.default_rng(5).integers(0, 4, len(rows))
    each = reproduction(cls, solver, parametrization, refit)
    repeats = reproduction(cls, solver, parametrization, refit)
    many, labels_of_many, mask_of_many = repeated(rows, labels, is_target, counts=counts)
    repeats.fit(many, labels_of_many, is_target=mask_of_many)
    assert_counted_as_repeated(
        each.fit(rows, labels, counts, is_target=is_target), repeats, counts
    )
    # Weights have moved, so that there was something to get wrong.
    assert np.ptp(repeats.weights_[~mask_of_many]) > 1e-6


def test_integer_weights_of_x_val_are_repeated_rows():
    counts = np.random.default_rng(6).integers(0, 4, 20)
    rows, labels = X[IS_TARGET], Y[IS_TARGET]
    many, labels_of_many = repeated(rows, labels, counts=counts)
    each, repeats = (reproduction(ReweightingRegressor, "exact", "mirror", "all") for _ in "ab")
    each.fit(X[SOURCE], Y[SOURCE], X_val=rows, y_val=labels, sample_weight_val=counts)
    repeats.fit(X[SOURCE], Y[SOURCE], X_val=many, y_val=labels_of_many)
    assert_same_fit(each, repeats, atol=1e-7)
    unweighted = reproduction(ReweightingRegressor, "exact", "mirror", "all")
    unweighted.fit(X[SOURCE], Y[SOURCE], X_val=rows, y_val=labels)
    assert np.abs(each.coef_ - unweighted.coef_).max() > 1e-3


# Where rows are


def assert_weights_follow(cls, weighting):
    rows, labels, is_target = DATA[cls]
    order = np.random.default_rng(8).permutation(len(rows))
    moved = model(cls, weighting).fit(rows[order], labels[order], is_target=is_target[order])
    assert_allclose(moved.weights_, fitted(cls, weighting).weights_[order], rtol=0, atol=1e-12)
    assert_allclose(moved.coef_, fitted(cls, weighting).coef_, rtol=0, atol=1e-8)


@pytest.mark.parametrize("weighting", FAMILIES)
@BOTH
def test_weights_follow_their_rows(cls, weighting):
    assert_weights_follow(cls, weighting)


def test_weights_of_a_mixture_follow_their_rows():
    assert_weights_follow(ReweightingRegressor, "auto")


def test_weights_of_the_paper_follow_their_rows():
    order = np.random.default_rng(9).permutation(N_ROWS)
    for solver in SOLVERS:
        each, moved = (
            reproduction(ReweightingRegressor, solver, "mirror", None).fit(
                X[rows], Y[rows], is_target=IS_TARGET[rows]
            )
            for rows in (slice(None), order)
        )
        assert_allclose(moved.weights_, each.weights_[order], rtol=0, atol=1e-12)
        assert_allclose(moved.coef_, each.coef_, rtol=0, atol=1e-9)


@BOTH
def test_same_seed_gives_the_same_fit_and_another_seed_other_folds(cls):
    rows, labels, is_target = DATA[cls]
    again, instance, other = (
        model(cls).set_params(random_state=seed).fit(rows, labels, is_target=is_target)
        for seed in (0, np.random.RandomState(0), 1)
    )
    assert_array_equal(again.weights_, fitted(cls).weights_)
    assert_array_equal(again.coef_, fitted(cls).coef_)
    assert_array_equal(instance.weights_, again.weights_)
    assert not np.array_equal(other.weights_, again.weights_)


@pytest.mark.parametrize("weighting", FAMILIES)
@BOTH
def test_weights_sum_to_1_over_training_rows(cls, weighting):
    each, is_target = fitted(cls, weighting), DATA[cls][2]
    assert each.weights_.shape == is_target.shape
    assert_array_equal(each.weights_[is_target], 0)
    assert each.weights_.min() >= 0
    assert each.weights_.sum() == pytest.approx(0 if weighting == "target" else 1, abs=1e-12)


@pytest.mark.parametrize("weighting", ["auto", *FAMILIES])
def test_entropy_and_effective_sample_size_are_those_of_the_weights(weighting):
    each = fitted(weighting=weighting)
    if weighting == "target":
        assert each.entropy_ == each.effective_sample_size_ == 0
        return
    assert each.entropy_ == pytest.approx(entropy(each.weights_), rel=1e-12)
    size = effective_sample_size(each.weights_)
    assert each.effective_sample_size_ == pytest.approx(size, rel=1e-12)
    assert 1 < each.effective_sample_size_ <= SOURCE.sum() * (1 + 1e-12)


@pytest.mark.parametrize("weighting", ["auto", "gate", "group", "sample"])
def test_training_rows_have_their_weights_in_the_final_fit(weighting):
    of_train = fitted(weighting=weighting).sample_weight_[SOURCE]
    expected = fitted(weighting=weighting).weights_[SOURCE]
    assert_allclose(of_train / of_train.sum(), expected, rtol=1e-10)


@pytest.mark.parametrize("weighting", ["gate", "group", "sample"])
def test_training_rows_count_as_their_effective_sample_size_and_target_rows_once(weighting):
    each = fitted(weighting=weighting)
    assert_array_equal(each.sample_weight_[IS_TARGET], 1)
    size = each.sample_weight_[SOURCE].sum()
    assert size == pytest.approx(each.effective_sample_size_, rel=1e-10)


def test_final_weights_of_a_mixture_sum_to_their_effective_sample_size():
    counts = fitted(weighting="auto").sample_weight_
    assert counts.sum() == pytest.approx(effective_sample_size(counts), rel=1e-10)
    assert_allclose(counts[IS_TARGET], counts[IS_TARGET][0], rtol=1e-12)


def test_target_rows_count_as_often_as_they_are_there():
    counts = np.random.default_rng(0).uniform(0.5, 3, N_ROWS)
    each = model().fit(X, Y, counts, is_target=IS_TARGET)
    assert_allclose(each.sample_weight_[IS_TARGET], counts[IS_TARGET], rtol=1e-12)


def test_refit_on_training_rows_gives_target_rows_no_weight():
    each = model(refit="train").fit(X, Y, is_target=IS_TARGET)
    expected = np.where(IS_TARGET, 0, fitted().sample_weight_)
    assert_allclose(each.sample_weight_, expected, rtol=1e-12)
    head = RidgeHead(each.l2_).fit(X[SOURCE], Y[SOURCE], each.weights_[SOURCE])
    assert_allclose(each.coef_, head.coef_, rtol=1e-9)


@pytest.mark.parametrize("weighting", ["auto", "gate", "uniform", "target"])
def test_refit_is_the_linear_model_with_the_final_weights(weighting):
    each = fitted(weighting=weighting)
    head = RidgeHead(each.l2_).fit(X, Y, each.sample_weight_)
    assert_allclose(each.coef_, head.coef_, rtol=0, atol=1e-9)
    assert each.intercept_ == pytest.approx(head.intercept_, abs=1e-9)


def test_rows_of_x_val_come_last_in_the_final_weights():
    told = model().fit(X[SOURCE], Y[SOURCE], **X_VAL)
    assert told.weights_.shape == (90,)
    assert told.sample_weight_.shape == (110,)
    assert_allclose(told.sample_weight_[:90], fitted().sample_weight_[SOURCE], rtol=1e-9)
    assert_array_equal(told.sample_weight_[90:], 1)


# Forms of the data


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


FORMS = {
    "float32": lambda array: array.astype(np.float32),
    "column by column": np.asfortranarray,
    "read-only": read_only,
    "every second of more": lambda array: np.repeat(array, 2, axis=0)[::2],
    "pandas": lambda array: (pd.DataFrame if array.ndim == 2 else pd.Series)(array).set_axis(
        np.arange(5, 5 + len(array)), axis=0
    ),
    "polars": lambda array: (
        pl.DataFrame(array, schema=["a", "b", "c"]) if array.ndim == 2 else pl.Series(array)
    ),
    "list": np.ndarray.tolist,
}


@pytest.mark.parametrize("form", FORMS)
@BOTH
@pytest.mark.filterwarnings("error")
def test_data_may_come_in_any_form(cls, form):
    as_form = FORMS[form]
    # float32 has these exactly.
    rows, labels, is_target = DATA[cls]
    rows = rows.astype(np.float32).astype(np.float64)
    labels = labels.astype(np.float32).astype(labels.dtype)
    counts = np.where(np.arange(len(rows)) % 2, 1.0, 1.5)
    weighting = "gate" if form == "read-only" else "group"
    expected = model(cls, weighting).fit(rows, labels, counts, is_target=is_target)
    mask = is_target if form == "float32" else as_form(is_target)
    found = model(cls, weighting).fit(
        as_form(rows), as_form(labels), as_form(counts), is_target=mask
    )
    assert_array_equal(found.weights_, expected.weights_)
    assert_allclose(found.predict(as_form(rows)), expected.predict(rows), rtol=1e-12)


def test_columns_may_have_names_in_both_sets_of_rows():
    frame = FRAME[["a", "b", "c"]]
    told = model().fit(frame[SOURCE], Y[SOURCE], X_val=frame[IS_TARGET], y_val=Y[IS_TARGET])
    assert told.feature_names_in_.tolist() == ["a", "b", "c"]
    assert_allclose(told.coef_, fitted().coef_, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="X_val, y_val: The feature names"):
        model().fit(frame[SOURCE], Y[SOURCE], X_val=frame[["b", "a", "c"]], y_val=Y)


@pytest.mark.parametrize("dtype", [str, object])
def test_labels_may_be_words(dtype):
    points, labels, is_clean = DATA[ReweightingClassifier]
    words = np.array(["apple", "fig", "pomegranate"], dtype=dtype)
    told = model(ReweightingClassifier).fit(points, words[labels], is_target=is_clean)
    expected = fitted(ReweightingClassifier)
    assert told.classes_.tolist() == ["apple", "fig", "pomegranate"]
    assert_array_equal(told.weights_, expected.weights_)
    assert_array_equal(told.predict(points), words[expected.predict(points)])
    assert told.score(points, words[labels]) == expected.score(points, labels)


def test_words_of_x_val_may_be_longer_than_those_of_x():
    points, labels, is_clean = DATA[ReweightingClassifier]
    is_common = labels < 2
    words = np.array(["fig", "kiwi", "pomegranate"])[labels]
    rows = is_common & ~is_clean
    told = model(ReweightingClassifier).fit(
        points[rows], words[rows], X_val=points[is_clean], y_val=words[is_clean]
    )
    assert told.classes_.tolist() == ["fig", "kiwi", "pomegranate"]
    assert "pomegranate" in told.predict(points)
