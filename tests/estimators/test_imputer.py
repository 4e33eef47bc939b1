"""What the base of the imputers owns, on the simplest imputer there is."""

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_array_equal

import skbilevel.numerics.row_groups as row_groups
from skbilevel._sklearn import fit_method
from skbilevel.estimators.imputer import Imputer


class MeanImputer(Imputer):
    """Fills with column means, and remembers which rows it was asked to complete."""

    @fit_method
    def fit(self, X, y=None):
        """Means of the observed cells."""
        self.means_ = np.nanmean(self._start_fit(X), axis=0)
        return self

    def _completer(self):
        self.asked_ = []

        def complete(rows):
            self.asked_.append(rows.copy())
            return np.where(np.isnan(rows), self.means_, -777.0)

        return complete


X = np.array([[1.0, np.nan, np.nan, 4.0], [3.0, 5.0, np.nan, np.nan], [2.0, 7.0, np.nan, 6.0]])
EXPECTED = np.array([[1.0, 6.0, 4.0], [3.0, 5.0, 5.0], [2.0, 7.0, 6.0]])


def fitted(**settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dropping features")
        return MeanImputer(**settings).fit(X)


def test_observed_cells_are_those_of_the_input_whatever_the_completer_says():
    assert_array_equal(fitted().transform(X), EXPECTED)


def test_completer_gets_incomplete_rows_and_fitted_columns_only():
    imputer = fitted()
    imputer.transform(X)
    [asked] = imputer.asked_
    assert_array_equal(asked, X[:2, [0, 1, 3]])
    imputer.transform(X[2:])
    assert imputer.asked_ == []


def test_completer_is_made_once_for_all_blocks(monkeypatch):
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 1)
    imputer = fitted()
    assert_array_equal(imputer.transform(X), EXPECTED)
    assert len(imputer.asked_) == 2


def test_kept_empty_feature_is_zero_where_missing_and_itself_where_not():
    imputer = fitted(keep_empty_features=True)
    later = X.copy()
    later[1, 2] = 9.0
    assert_array_equal(imputer.transform(later)[:, 2], [0.0, 9.0, 0.0])
    assert imputer.get_feature_names_out().tolist() == ["x0", "x1", "x2", "x3"]


def test_indicator_flags_features_that_were_missing_at_fit():
    imputer = fitted(add_indicator=True)
    with_indicator = imputer.transform(X)
    assert_array_equal(with_indicator[:, :3], EXPECTED)
    assert_array_equal(with_indicator[:, 3:], np.isnan(X)[:, [1, 2, 3]])
    flags = ["missingindicator_x1", "missingindicator_x2", "missingindicator_x3"]
    assert imputer.get_feature_names_out().tolist() == ["x0", "x1", "x3", *flags]


def test_number_may_mark_missing_cells():
    coded = np.nan_to_num(X, nan=-1.0)
    with pytest.warns(UserWarning, match=r"Dropping features .*\['x2'\]"):
        imputer = MeanImputer(missing_values=-1).fit(coded)
    assert_array_equal(imputer.transform(coded), EXPECTED)
    assert_array_equal(imputer.n_observed_, [3, 2, 0, 2])
    with pytest.raises(ValueError, match="X contains NaN, but missing_values=-1"):
        imputer.transform(X)


def test_result_is_written_where_it_is_wanted():
    imputer = fitted()
    out = np.full((3, 3), np.nan)
    assert imputer.transform(X, out=out) is out
    assert_array_equal(out, EXPECTED)
    half = np.empty((3, 6))[:, ::2]
    assert_array_equal(imputer.transform(X, out=half), EXPECTED)
    single = imputer.transform(X.astype(np.float32), out=np.empty((3, 3)))
    assert single.dtype == np.float64


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((3, 4)), r"shape \(3, 3\), got \(3, 4\)"),
        ([[0.0] * 3] * 3, "NumPy array, got list"),
        (np.broadcast_to(0.0, (3, 3)), "writable, got a read-only"),
        (np.empty((3, 3), dtype=int), "holds float64: int64"),
        (np.empty((3, 3), dtype=np.float32), "holds float64: float32"),
    ],
    ids=["shape", "list", "read-only", "int", "float32"],
)
def test_unfit_place_for_the_result_is_named(out, message):
    with pytest.raises(ValueError, match=message):
        fitted().transform(X, out=out)


def test_refit_forgets_what_an_earlier_fit_has_left():
    imputer = fitted(add_indicator=True)
    imputer.left_over_ = 1
    imputer.set_params(add_indicator=False).fit(X[:, :2])
    assert not hasattr(imputer, "left_over_")
    assert imputer.indicator_ is None
    assert imputer.n_features_in_ == 2


def test_failed_refit_keeps_the_earlier_fit():
    imputer = fitted()
    before = dict(vars(imputer))
    with pytest.raises(ValueError, match="every cell is missing"):
        imputer.fit(np.full((3, 2), np.nan))
    assert vars(imputer) == before


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (pd.DataFrame({"age": [1.0, 2.0], "town": ["Oslo", "Bern"]}), "['town']"),
        (pd.DataFrame({"age": [1.0, 2.0], "town": pd.Categorical(["Oslo", None])}), "['town']"),
        (pl.DataFrame({"town": ["Oslo", "Bern"], "age": [1.0, 2.0]}), "['town']"),
        (np.array([[1.0, "Oslo", "b"], [2.0, "3", "c"]], dtype=object), "['x1', 'x2']"),
        ([["a", 1.0], ["b", 2.0]], "['x0']"),
    ],
)
def test_columns_of_text_are_named(table, columns):
    message = re.escape("could not convert string to float: ") + ".*" + re.escape(columns)
    with pytest.raises(ValueError, match=message):
        MeanImputer().fit(table)


def test_columns_of_dates_are_named():
    table = pd.DataFrame({"a": [1.0, 2.0], "day": pd.to_datetime(["2020-01-01", None])})
    with pytest.raises(ValueError, match=r"columns \['day'\] do not hold numbers"):
        MeanImputer().fit(table)


def test_one_dimension_of_words_has_no_columns():
    with pytest.raises(ValueError, match="could not convert") as caught:
        MeanImputer().fit(["a", "b"])
    assert "columns" not in str(caught.value)


def test_infinity_in_a_later_block_is_named_too(monkeypatch):
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 2)
    rows = np.zeros((5, 3))
    rows[0, 2] = rows[4, 0] = np.inf
    with pytest.raises(ValueError, match=r"in columns \['x0', 'x2'\]"):
        MeanImputer().fit(rows)


def test_columns_with_infinity_are_named_at_fit_and_at_transform():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [np.inf, 3.0], "c": [0.0, -np.inf]})
    imputer = MeanImputer().fit(pd.DataFrame(0.0, index=[0, 1], columns=list("abc")))
    for method in (MeanImputer().fit, imputer.transform):
        with pytest.raises(ValueError, match=r"infinity .* in columns \['b', 'c'\]"):
            method(table)
