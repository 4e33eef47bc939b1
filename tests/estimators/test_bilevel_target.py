"""Targets: what is a label, what is a class, and back from outputs to labels."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators.bilevel_target import decoded, encoded, labels_of, merged, type_of

NAN, NA = np.nan, pd.NA


def objects(*values):
    return np.array(values, dtype=object)


# What is a label


@pytest.mark.parametrize(
    ("y", "missing_label", "expected"),
    [
        ([1.0, NAN, 2.0], None, [1, 0, 1]),
        ([1.0, NAN, 2.0], NAN, [1, 0, 1]),
        ([1.0, NAN, -1.0], -1, [1, 0, 0]),
        ([1, None, -1], None, [1, 0, 1]),
        ([1, None, -1], -1, [1, 0, 0]),
        (objects(1, NA, -1), None, [1, 0, 1]),
        (objects(1, NA, -1), -1, [1, 0, 0]),
        (objects("a", NAN, "?"), None, [1, 0, 1]),
        (objects("a", NA, "?"), "?", [1, 0, 0]),
        (["a", None, "?"], "?", [1, 0, 0]),
        (["a", NAN, "?"], "?", [1, 0, 0]),
        (["a", NAN, -1], -1, [1, 0, 0]),
        ((True, NAN, False), None, [1, 0, 1]),
        (np.array([False, True]), 0, [1, 1]),
        (np.array([0, 1]), False, [1, 1]),
        (np.array(["a", "?", "b"]), "?", [1, 0, 1]),
        (np.array([1, -1, 0]), -1, [1, 0, 1]),
        (np.array([True, False]), None, [1, 1]),
        (np.array(["a", "b"]), -1, [1, 1]),
        (np.array([1.0, 2.0]), "a", [1, 1]),
        (pd.Series([1, NA, -1], dtype="Int64"), -1, [1, 0, 0]),
        (pd.Series([True, NA], dtype="boolean"), None, [1, 0]),
        (pd.Series(["a", NA, "?"], dtype="string"), "?", [1, 0, 0]),
        (pd.Series(["a", None, "?"], dtype="category"), "?", [1, 0, 0]),
    ],
)
def test_nothing_and_the_missing_label_are_no_labels(y, missing_label, expected):
    values, labelled = labels_of(y, missing_label, len(y))
    assert labelled.dtype == bool
    assert labelled.tolist() == [bool(each) for each in expected]
    assert values[0] == y[0]


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="X has 3 rows and y has 2"):
        labels_of([1.0, 2.0], None, 3)


# Types


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array(["a", "b"]), "binary"),
        (np.array(["a", "a"]), "binary"),
        (np.array(["a", "b", "c"]), "multiclass"),
        (objects("a", 1, "b"), "multiclass"),
        (np.array([True, False]), "binary"),
        (objects(True, False), "binary"),
        (np.repeat([0, 1], 5), "binary"),
        (np.repeat([0, 1], [5, 4]), "continuous"),
        (np.repeat([0.0, 1.0, 2.0], 5), "multiclass"),
        (np.repeat(objects(0, 1), 5), "binary"),
        (np.repeat(np.arange(20), 5), "multiclass"),
        (np.repeat(np.arange(21), 5), "continuous"),
        (np.repeat([0.0, 0.5], 50), "continuous"),
        (np.repeat(3, 50), "continuous"),
        (np.arange(50), "continuous"),
    ],
)
def test_words_and_few_integers_with_five_rows_each_are_classes(labels, expected):
    assert type_of(labels) == expected


# Encoding


def test_numbers_are_standardised_by_the_labels_and_come_back():
    y = np.array([3.0, NAN, 5.0, 10.0])
    target = encoded(y, "auto", None, 4)
    assert (target.kind, target.classes, target.values.shape) == ("continuous", None, (4, 1))
    assert target.center == 6.0
    assert target.scale == pytest.approx(np.sqrt(26 / 3))
    assert target.values[1] == 0.0
    assert_array_equal(target.labelled, [True, False, True, True])
    assert_allclose(target.decoded(target.values)[[0, 2, 3]], y[[0, 2, 3]], rtol=1e-15)


def test_constant_numbers_are_what_any_output_is_decoded_to():
    target = encoded(np.full(6, 7.5), "auto", None, 6)
    assert not target.values.any()
    assert_array_equal(target.decoded(target.values + 0.3), np.full(6, 7.5))


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e140])
def test_numbers_of_any_unit_are_standardised(unit):
    target = encoded(unit * np.array([1.0, 2.0, 4.5]), "continuous", None, 3)
    assert_allclose(target.values[:, 0], [-1.0190, -0.3397, 1.3587], atol=1e-4)


def test_few_integers_beside_a_marker_are_classes():
    """Numbers need no marker: NaN says that one is missing."""
    y = np.array([0, 1, 2, 0, -1, -1])
    assert encoded(y, "auto", -1, 6).classes.tolist() == [0, 1, 2]
    assert encoded(y, "auto", None, 6).kind == "continuous"
    assert encoded(y + 0.5, "auto", -0.5, 6).kind == "continuous"
    many = np.r_[np.arange(20), -1]
    assert encoded(many, "auto", -1, 21).kind == "multiclass"
    assert encoded(np.r_[many, 20], "auto", -1, 22).kind == "continuous"


@pytest.mark.parametrize(
    ("y", "kind", "classes"),
    [
        (np.array(["b", "a", "c"]), "multiclass", ["a", "b", "c"]),
        (["b", None, "a"], "binary", ["a", "b"]),
        (["b", NAN, "a"], "binary", ["a", "b"]),
        ([True, NAN, False], "binary", [False, True]),
        (pd.Series([True, NA, False], dtype="boolean"), "binary", [False, True]),
        (np.array([True, False, True]), "binary", [False, True]),
        (objects(True, None, False), "binary", [False, True]),
        (np.array([7, 3, 7]), "binary", [3, 7]),
        (objects(7, NA, 3), "binary", [3, 7]),
        (np.array([7.0, NAN, 3.0]), "binary", [3.0, 7.0]),
    ],
)
def test_classes_are_one_column_each_in_sorted_order_and_come_back(y, kind, classes):
    target = encoded(y, "multiclass", None, 3)
    assert target.kind == kind
    assert target.classes.tolist() == classes
    for label, row, is_label in zip(y, target.values, target.labelled, strict=True):
        expected = [1.0 * (label == each) for each in classes] if is_label else [0.0] * len(row)
        assert row.tolist() == expected
    back = target.decoded(target.values)[target.labelled]
    assert back.tolist() == [y[i] for i in np.flatnonzero(target.labelled)]


@pytest.mark.parametrize(
    ("y", "dtype"),
    [(objects(7, None, 3), np.int64), (objects(7.0, NA, 3), float), (objects(True, None), bool)],
)
def test_classes_that_are_numbers_in_a_list_with_gaps_are_numbers(y, dtype):
    assert encoded(y, "multiclass", None, len(y)).classes.dtype == dtype


def test_types_can_be_told():
    y = np.repeat([0, 1], 10)
    assert encoded(y, "auto", None, 20).kind == "binary"
    assert encoded(y, "continuous", None, 20).kind == "continuous"
    assert encoded(np.arange(20), "auto", None, 20).kind == "continuous"
    assert encoded(np.arange(20), "multiclass", None, 20).classes.tolist() == list(range(20))


@pytest.mark.parametrize("y", [[NAN, NAN], [None, None], [-1.0, NAN], ["-1", None]])
def test_no_label_is_no_target(y):
    missing_label = "-1" if isinstance(y[0], str) else -1
    assert encoded(y, "auto", missing_label, 2) is None


INFINITE = np.array([0.0, np.inf] * 5)


@pytest.mark.parametrize(
    ("y", "target_type", "message"),
    [
        (INFINITE, "auto", "contains infinity"),
        (INFINITE, "continuous", "contains infinity"),
        (INFINITE.astype(object), "auto", "contains infinity"),
        (np.array([1e200, -1e200]), "auto", "too large for float64; rescale"),
        (["a", "b"], "continuous", "must hold numbers for target_type='continuous'"),
        ([0.5, 1.5], "multiclass", "y is continuous, and target_type is 'multiclass'"),
        ([0.5, 1.5, None], "binary", "y is continuous, and target_type is 'binary'"),
        ([0, 1, 2], "binary", "target_type='binary', but y has 3 classes"),
        (objects("a", 1), "auto", "mixes classes that cannot be sorted"),
        (np.ones((3, 2)), "auto", "1d array"),
    ],
)
def test_targets_that_cannot_be_are_refused(y, target_type, message):
    with pytest.raises(ValueError, match=message):
        encoded(y, target_type, None, len(y))


# Decoding


def test_outputs_are_the_most_probable_class_or_a_number_in_the_units_of_y():
    outputs = np.array([[0.1, 3.0, -1.0], [2.0, 0.0, 1.0]])
    assert decoded(outputs, 0.0, 1.0, np.array(["a", "b", "c"])).tolist() == ["b", "a"]
    assert decoded(outputs[:, :1], 5.0, 10.0, None).tolist() == [6.0, 25.0]


@pytest.mark.parametrize(
    ("labels", "filled", "expected"),
    [
        (np.array([1, -1]), np.array([2.5]), [1.0, 2.5]),
        (np.array([1.5, NAN]), np.array([2.5]), [1.5, 2.5]),
        (np.array([1, -1]), np.array([2]), [1, 2]),
        (np.array(["a", "?"]), np.array(["longer"]), ["a", "longer"]),
        (objects("a", None), np.array(["longer"]), ["a", "longer"]),
        (objects(True, NA), np.array([False]), [True, False]),
    ],
)
def test_missing_labels_are_filled_and_others_stay(labels, filled, expected):
    whole = merged(labels, np.array([True, False]), filled)
    assert whole.tolist() == expected


def test_numbers_beside_nothing_are_numbers_when_filled():
    known = np.array([True, False])
    assert merged(objects(1, None), known, np.array([2.5])).dtype == np.float64
    assert merged(objects(1, NA), known, np.array([2])).dtype == np.int64
    assert merged(objects(None, None), ~np.ones(2, bool), np.ones(2)).dtype == np.float64
