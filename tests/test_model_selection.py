import pickle
from typing import ClassVar

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate

from skbilevel.model_selection import TargetKFold

MASK = [False, True, True, False, True, True, True, False]
X = np.zeros((len(MASK), 1))
# Between the labels of target rows and those of source rows.
FAR = 1e5

masks = hnp.arrays(bool, st.integers(4, 30)).filter(lambda mask: mask.sum() >= 3)
shuffled = st.fixed_dictionaries({"shuffle": st.just(True), "random_state": st.integers(0, 99)})
orders = st.one_of(st.just({}), shuffled)


def folds(cv, mask):
    return list(cv.split(np.zeros((len(mask), 1)), groups=mask))


def assert_same_folds(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for rows, truth in zip(found, expected, strict=True):
        assert_array_equal(rows[0], truth[0])
        assert_array_equal(rows[1], truth[1])


# --------------------------------------------------------------------------------------- folds


def test_folds_of_six_rows_are_those_by_hand():
    cv = TargetKFold(2, is_target=[0, 1, 1, 0, 1, 1])
    found = [(train.tolist(), test.tolist()) for train, test in cv.split(np.zeros((6, 1)))]
    assert found == [([0, 3, 4, 5], [1, 2]), ([0, 1, 2, 3], [4, 5])]


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(2, 3), orders)
def test_test_sets_partition_the_target_rows(mask, n_splits, order):
    tests = [test for _, test in folds(TargetKFold(n_splits, **order), mask)]
    assert len(tests) == n_splits
    assert sorted(np.concatenate(tests)) == np.flatnonzero(mask).tolist()


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(2, 3), orders)
def test_training_sets_are_all_source_rows_and_the_other_target_rows(mask, n_splits, order):
    for train, test in folds(TargetKFold(n_splits, **order), mask):
        assert set(np.flatnonzero(~mask)) <= set(train)
        assert sorted([*train, *test]) == list(range(len(mask)))


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(2, 3), orders)
def test_indices_are_sorted_integers(mask, n_splits, order):
    for rows in [rows for pair in folds(TargetKFold(n_splits, **order), mask) for rows in pair]:
        assert rows.dtype.kind == "i"
        assert np.all(np.diff(rows) > 0)


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(2, 3), orders)
def test_test_sets_are_those_of_kfold_on_the_target_rows(mask, n_splits, order):
    rows = [i for i in range(len(mask)) if mask[i]]
    of_target_rows = KFold(n_splits, **order).split(rows)
    expected = [[rows[j] for j in test] for _, test in of_target_rows]
    found = [test.tolist() for _, test in folds(TargetKFold(n_splits, **order), mask)]
    assert found == expected


@pytest.mark.parametrize("order", [{}, {"shuffle": True, "random_state": 3}])
def test_without_source_rows_it_is_kfold(order):
    expected = KFold(3, **order).split(X)
    assert_same_folds(TargetKFold(3, **order).split(X, groups=np.ones(len(X))), expected)


def test_five_folds_by_default():
    assert len(folds(TargetKFold(), MASK)) == TargetKFold().get_n_splits() == 5
    assert TargetKFold(2).get_n_splits(X, None, MASK) == 2


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(2, 3), orders)
def test_place_of_source_rows_does_not_change_the_folds_of_target_rows(mask, n_splits, order):
    moved = np.sort(mask)
    rank = [np.cumsum(m) - 1 for m in (mask, moved)]
    found, expected = (folds(TargetKFold(n_splits, **order), m) for m in (mask, moved))
    for (_, test), (_, truth) in zip(found, expected, strict=True):
        assert_array_equal(rank[0][test], rank[1][truth])


def test_same_seed_gives_the_same_folds_and_another_seed_others():
    mask = np.arange(40) % 3 > 0
    cv = TargetKFold(3, shuffle=True, random_state=0)
    first = folds(cv, mask)
    assert_same_folds(folds(cv, mask), first)
    assert_same_folds(folds(TargetKFold(3, shuffle=True, random_state=0), mask), first)
    other = folds(TargetKFold(3, shuffle=True, random_state=1), mask)
    assert [test.tolist() for _, test in other] != [test.tolist() for _, test in first]


def test_instance_of_a_generator_is_drawn_from_by_split_only():
    mask = np.arange(40) % 3 > 0
    rng = np.random.RandomState(0)
    first = folds(TargetKFold(3, shuffle=True, random_state=rng), mask)
    assert_same_folds(first, folds(TargetKFold(3, shuffle=True, random_state=0), mask))


# ---------------------------------------------------------------------------------------- mask


@pytest.mark.parametrize("order", [{}, {"shuffle": True, "random_state": 3}])
def test_mask_of_the_constructor_is_that_of_groups(order):
    expected = folds(TargetKFold(3, **order), MASK)
    cv = TargetKFold(3, is_target=MASK, **order)
    assert_same_folds(cv.split(X), expected)
    assert_same_folds(cv.split(X, groups=np.array(MASK, dtype=int)), expected)


@pytest.mark.parametrize(
    "mask",
    [
        np.array(MASK),
        np.array(MASK, dtype=object),
        np.array(MASK, dtype=float),
        [int(value) for value in MASK],
        [np.bool_(value) for value in MASK],
        pd.Series(MASK, index=range(100, 100 + len(MASK))),
        pd.Series(MASK, dtype="boolean"),
        pd.Series(MASK, dtype="Int64"),
        pl.Series(MASK),
    ],
    ids=lambda mask: f"{type(mask).__module__}-{getattr(mask, 'dtype', type(max(mask)))}",
)
def test_mask_is_read_from_any_container(mask):
    expected = folds(TargetKFold(3), MASK)
    assert_same_folds(TargetKFold(3, is_target=mask).split(X), expected)
    assert_same_folds(TargetKFold(3).split(X, groups=mask), expected)


@pytest.mark.parametrize(
    "rows", [X.tolist(), sparse.csr_array(X), pd.DataFrame(X), pl.DataFrame(X)], ids=type
)
def test_rows_are_counted_in_any_table(rows):
    assert_same_folds(TargetKFold(3).split(rows, groups=MASK), folds(TargetKFold(3), MASK))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (None, "None"),
        (pd.NA, "<NA>"),
        ("True", "'True'"),
        (2, "2"),
        (-1, "-1"),
        (0.5, "0.5"),
        ([True], r"\[True\]"),
    ],
    ids=repr,
)
def test_value_that_is_no_boolean_is_an_error_that_names_the_parameter(value, shown):
    mask = [*MASK[:-1], value]
    with pytest.raises(ValueError, match=f"is_target must hold booleans.*got {shown}"):
        next(TargetKFold(2, is_target=mask).split(X))
    with pytest.raises(ValueError, match=f"groups must hold booleans.*got {shown}"):
        next(TargetKFold(2).split(X, groups=mask))


@pytest.mark.parametrize("mask", [True, np.array(MASK)[:, None]], ids=["scalar", "column"])
def test_mask_of_another_dimension_is_an_error(mask):
    with pytest.raises(ValueError, match="is_target must be one-dimensional"):
        next(TargetKFold(2, is_target=mask).split(X))


def test_no_mask_is_an_error_that_names_both_ways():
    with pytest.raises(ValueError, match=r"give is_target to its constructor, or.* as groups"):
        next(TargetKFold(2).split(X))


@pytest.mark.parametrize("other", [[not value for value in MASK], MASK[:-1]])
def test_two_masks_that_differ_are_an_error(other):
    with pytest.raises(ValueError, match="is_target and groups differ"):
        next(TargetKFold(2, is_target=MASK).split(X, groups=other))


@pytest.mark.parametrize("n_rows", [len(MASK) - 1, len(MASK) + 1])
def test_mask_of_another_length_is_an_error_that_says_how_to_nest(n_rows):
    message = f"has {len(MASK)} values for {n_rows} rows of X; with nested.* passed as groups"
    with pytest.raises(ValueError, match=f"is_target {message}"):
        next(TargetKFold(2, is_target=MASK).split(np.zeros((n_rows, 1))))
    with pytest.raises(ValueError, match=f"groups {message}"):
        next(TargetKFold(2).split(np.zeros((n_rows, 1)), groups=MASK))


def test_y_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        next(TargetKFold(2, is_target=MASK).split(X, np.zeros(len(X) + 1)))


@pytest.mark.parametrize("n_target", [0, 1, 4])
def test_fewer_target_rows_than_folds_are_an_error_that_counts_both(n_target):
    mask = np.arange(len(X)) < n_target
    with pytest.raises(ValueError, match=f"n_splits=5 is more than .*target rows, {n_target}$"):
        next(TargetKFold(5).split(X, groups=mask))


# -------------------------------------------------------------------------------- constructor


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_splits": 1}, ValueError, "n_splits=2 or more, got n_splits=1"),
        ({"n_splits": 2.0}, ValueError, "number of folds must be of Integral type"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False"),
        ({"random_state": 0}, ValueError, "random_state has no effect since shuffle is False"),
    ],
    ids=str,
)
def test_parameters_that_kfold_refuses_are_refused_by_the_constructor(parameters, error, message):
    with pytest.raises(error, match=message):
        KFold(**parameters)
    with pytest.raises(error, match=message):
        TargetKFold(**parameters)


def test_repr_tells_the_parameters():
    assert repr(TargetKFold(3, shuffle=True, random_state=0)) == (
        "TargetKFold(is_target=None, n_splits=3, random_state=0, shuffle=True)"
    )
    assert "is_target=[True, False]" in repr(TargetKFold(2, is_target=[True, False]))


def test_clone_and_pickle_of_a_search_keep_the_folds():
    cv = TargetKFold(3, is_target=np.array(MASK), shuffle=True, random_state=2)
    search = GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=cv)
    for copy in (clone(search), pickle.loads(pickle.dumps(search))):
        assert copy.cv is not cv
        assert_same_folds(copy.cv.split(X), cv.split(X))


# -------------------------------------------------------------------- searches and validations


class RecordingRidge(Ridge):
    """Counts the target rows and the source rows of each fit, and the target rows it is told."""

    fits: ClassVar[list] = []

    def fit(self, X, y, is_target=None):
        told = None if is_target is None else int(np.sum(is_target))
        self.fits.append((int(np.sum(y < FAR)), int(np.sum(y > FAR)), told))
        return super().fit(X, y)


class Scorer:
    """Negative squared error; keeps the labels that it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, estimator, X, y):
        self.seen.append(np.array(y))
        return -float(np.mean((estimator.predict(X) - y) ** 2))

    def __deepcopy__(self, memo):
        return self  # a clone of a search writes into the same record


@pytest.fixture
def fits(monkeypatch):
    monkeypatch.setattr(RecordingRidge, "fits", [])
    return lambda: sorted(RecordingRidge.fits)


def mixture(n_target=18, n_source=12):
    """Target rows have labels of order 1, source rows of 1e6; they are in random order."""
    rng = np.random.default_rng(0)
    is_target = rng.permutation(np.arange(n_target + n_source) < n_target)
    X = rng.standard_normal((len(is_target), 2))
    return X, np.where(is_target, X[:, 0], 1e6 + X[:, 0]), is_target


def searches(scorer, cv):
    return GridSearchCV(RecordingRidge(), {"alpha": [0.1, 10.0]}, cv=cv, scoring=scorer)


def assert_nested_on_target_rows(result, scorer, fits):
    assert np.isfinite(result["test_score"]).all()
    # Three outer folds of 6 target rows; in each, 2 candidates on three inner folds of 4.
    assert sorted(map(len, scorer.seen)) == [4] * 18 + [6] * 3
    assert max(labels.max() for labels in scorer.seen) < FAR
    # An inner fit has 8 of the 12 target rows of its outer training set, which a refit has.
    assert [fit[:2] for fit in fits()] == [(8, 12)] * 18 + [(12, 12)] * 3


def test_nested_cross_validation_with_routing_scores_target_rows_only(fits):
    X, y, is_target = mixture()
    inner, outer = Scorer(), Scorer()
    outer.seen = inner.seen
    with config_context(enable_metadata_routing=True):
        result = cross_validate(
            searches(inner, TargetKFold(3)),
            X,
            y,
            cv=TargetKFold(3),
            scoring=outer,
            params={"groups": is_target},
        )
    assert_nested_on_target_rows(result, inner, fits)


def test_nested_cross_validation_without_routing_scores_target_rows_only(fits):
    X, y, is_target = mixture()
    scorer = Scorer()
    result = cross_validate(
        searches(scorer, TargetKFold(3)),
        X,
        y,
        cv=TargetKFold(3),
        scoring=scorer,
        groups=is_target,
        params={"groups": is_target},
    )
    assert_nested_on_target_rows(result, scorer, fits)


def test_mask_requested_as_is_target_reaches_the_folds_and_the_fits(fits):
    X, y, is_target = mixture()
    scorer = Scorer()
    with config_context(enable_metadata_routing=True):
        inner, outer = (TargetKFold(3).set_split_request(groups="is_target") for _ in range(2))
        search = searches(scorer, inner)
        search.estimator.set_fit_request(is_target=True)
        result = cross_validate(
            search, X, y, cv=outer, scoring=scorer, params={"is_target": is_target}
        )
    assert_nested_on_target_rows(result, scorer, fits)
    assert all(told == n_target for n_target, _, told in fits())


def test_nested_cross_validation_with_a_mask_in_the_constructor_is_an_error():
    X, y, is_target = mixture()
    search = searches(Scorer(), TargetKFold(3, is_target=is_target))
    with pytest.raises(ValueError, match=r"nested cross-validation.* passed as groups"):
        cross_validate(search, X, y, cv=TargetKFold(3, is_target=is_target), error_score="raise")


@pytest.mark.parametrize("routing", [False, True])
def test_mask_of_the_constructor_serves_one_loop(routing, fits):
    X, y, is_target = mixture()
    scorer, cv = Scorer(), TargetKFold(3, is_target=is_target)
    with config_context(enable_metadata_routing=routing):
        cross_val_score(RecordingRidge(), X, y, cv=cv, scoring=scorer)
        searches(scorer, cv).fit(X, y)
    assert [len(labels) for labels in scorer.seen] == [6] * 9
    assert max(labels.max() for labels in scorer.seen) < FAR
    assert [fit[:2] for fit in fits()] == [(12, 12)] * 9 + [(18, 12)]


@pytest.mark.parametrize("routing", [False, True])
def test_search_takes_the_mask_as_groups_of_fit(routing):
    X, y, is_target = mixture()
    scorer = Scorer()
    with config_context(enable_metadata_routing=routing):
        search = searches(scorer, TargetKFold(3)).fit(X, y, groups=is_target)
    by_constructor = searches(scorer, TargetKFold(3, is_target=is_target)).fit(X, y)
    assert search.n_splits_ == 3
    assert max(labels.max() for labels in scorer.seen) < FAR
    assert_array_equal(
        search.cv_results_["mean_test_score"], by_constructor.cv_results_["mean_test_score"]
    )
