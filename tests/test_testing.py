"""Each check of check_imputer fails the imputer that breaks its promise, and no other promise.

Some promises imply others: an imputer that draws anew cannot repeat itself in any way. `PLANTED`
says which checks fail for each planted imputer, to the last one.
"""

import itertools
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.impute import SimpleImputer
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from skbilevel import GaussianImputer
from skbilevel.testing import IMPUTER_CHECKS, check_imputer


class MeanImputer(SimpleImputer):
    """Imputes means as SimpleImputer does; a subclass spoils a part of it."""

    def fit(self, X, y=None):
        super().fit(X)
        if not sparse.issparse(X):
            values = self.read(X)
            values[self.is_missing(values)] = np.nan
            self.kept_ = ~np.isnan(values).all(axis=0) | self.keep_empty_features
            self.deviation_ = np.nan_to_num(np.nanstd(values[:, self.kept_], axis=0), nan=1.0)
            self.learn(values)
        return self

    def transform(self, X):
        filled = super().transform(X)
        if sparse.issparse(X):
            return filled
        missing = self.is_missing(self.read(X))[:, self.kept_]
        filled = np.array(filled)
        filled[:, : missing.shape[1]] = self.spoil(filled[:, : missing.shape[1]], missing)
        return filled

    def read(self, X):
        return check_array(X, ensure_all_finite="allow-nan", copy=True)

    def is_missing(self, values):
        by_nan = np.isnan(self.missing_values)
        return np.isnan(values) if by_nan else values == self.missing_values

    def learn(self, values):
        """After fit; missing cells of `values` are NaN."""

    def spoil(self, filled, missing):
        return filled


class RoundsObserved(MeanImputer):
    def spoil(self, filled, missing):
        return np.where(missing, filled, filled.astype(np.float32))


class GivesUpOutsideTheRange(MeanImputer):
    def learn(self, values):
        self.low_, self.high_ = np.nanmin(values, axis=0), np.nanmax(values, axis=0)

    def spoil(self, filled, missing):
        low, high = self.low_[self.kept_], self.high_[self.kept_]
        foreign = ((filled < low) | (filled > high)).any(axis=1, keepdims=True)
        return np.where(missing & foreign, np.nan, filled)


class WritesToInput(MeanImputer):
    def transform(self, X):
        filled = super().transform(X)
        if isinstance(X, np.ndarray) and X.flags.writeable and X.shape == filled.shape:
            X[:] = filled
        return filled


class UsesTheSizeOfTheBatch(MeanImputer):
    def spoil(self, filled, missing):
        return filled + missing * self.deviation_ * len(filled) / 1000


class CarriesTheLastObservationForward(MeanImputer):
    def spoil(self, filled, missing):
        for row in range(1, len(filled)):
            filled[row] = np.where(missing[row], filled[row - 1], filled[row])
        return filled


class DrawsAtTransform(MeanImputer):
    calls = itertools.count()

    def spoil(self, filled, missing):
        return filled + missing * self.deviation_ * 1e-3 * (1 + next(self.calls) % 7)


class DrawsAtFit(MeanImputer):
    calls = itertools.count()

    def learn(self, values):
        self.shift_ = 1e-3 * (1 + next(self.calls) % 7)

    def spoil(self, filled, missing):
        return filled + missing * self.deviation_ * self.shift_


class HasAnotherShortcut(MeanImputer):
    def fit_transform(self, X, y=None):
        return self.fit(X).transform(X) * 1.01


class FavoursTheFirstColumn(MeanImputer):
    def spoil(self, filled, missing):
        filled[:, 0] += missing[:, 0] * self.deviation_[0]
        return filled


class FollowsDrift(MeanImputer):
    def learn(self, values):
        self.largest_ = np.nanmax(np.abs(values))

    def spoil(self, filled, missing):
        if np.abs(filled).max() > 10 * self.largest_:
            self.statistics_ = self.statistics_ + 1.0
        return filled


class RefusesEmptyRows(MeanImputer):
    def transform(self, X):
        if not sparse.issparse(X) and np.shape(X)[1] > 1:
            self.refuse(self.is_missing(self.read(X)).all(axis=1))
        return super().transform(X)

    def refuse(self, empty):
        if empty.any():
            raise ValueError("a row has no observed cell")


class KnowsOnlyFeaturesThatWereIncomplete(MeanImputer):
    def learn(self, values):
        self.complete_ = ~np.isnan(values).any(axis=0)

    def spoil(self, filled, missing):
        return np.where(missing & self.complete_[self.kept_], np.nan, filled)


class KeepsEmptyFeaturesEmpty(MeanImputer):
    def learn(self, values):
        self.empty_ = np.isnan(values).all(axis=0)

    def spoil(self, filled, missing):
        return np.where(self.empty_[self.kept_], np.nan, filled)


class DividesByTheDeviation(MeanImputer):
    def fit(self, X, y=None):
        if not sparse.issparse(X) and len(X) == 1:
            raise ValueError("cannot be fitted to 1 sample")
        return super().fit(X)

    def spoil(self, filled, missing):
        return np.where(missing, filled / self.deviation_ * self.deviation_, filled)


class IsObscureAboutOneRow(MeanImputer):
    def fit(self, X, y=None):
        if not sparse.issparse(X) and len(X) == 1:
            raise ValueError("singular matrix")
        return super().fit(X)


class WantsWriteableBuffers(MeanImputer):
    def fit(self, X, y=None):
        if isinstance(X, np.ndarray) and not X.flags.writeable:
            raise ValueError("buffer source array is read-only")
        return super().fit(X)


class UpcastsFloat32(MeanImputer):
    def transform(self, X):
        filled = super().transform(X)
        return filled if sparse.issparse(filled) else np.asarray(filled, dtype=np.float64)


class AveragesItsMarkers(MeanImputer):
    def spoil(self, filled, missing):
        if np.isnan(self.missing_values):
            return filled
        return filled + missing * self.missing_values


class IndicatesTheObserved(MeanImputer):
    def transform(self, X):
        filled = super().transform(X)
        if self.add_indicator:
            filled[:, self.kept_.sum() :] = 1 - filled[:, self.kept_.sum() :]
        return filled


class DoesNotKnowNA(MeanImputer):
    def fit(self, X, y=None):
        if isinstance(X, pd.DataFrame):
            np.asarray(X).astype(float)
        return super().fit(X)


class LosesTheNamesOfPolars(MeanImputer):
    def fit(self, X, y=None):
        return super().fit(X.to_numpy() if hasattr(X, "get_columns") else X)


class IsObscureAboutSparse(MeanImputer):
    def fit(self, X, y=None):
        if sparse.issparse(X):
            raise TypeError("unhashable type")
        return super().fit(X)


class ClipsInfinityAtTransform(MeanImputer):
    def transform(self, X):
        clipped = np.clip(X, -1e6, 1e6) if type(X) is np.ndarray else X
        return super().transform(clipped)


class TakesTheRealPart(MeanImputer):
    def fit(self, X, y=None):
        return super().fit(X.real if np.iscomplexobj(X) else X)


class IsFittedByAFailure(MeanImputer):
    def fit(self, X, y=None):
        if not sparse.issparse(X) and isinstance(X, np.ndarray) and np.isinf(X).any():
            super().fit(np.nan_to_num(X, nan=np.nan))
        return super().fit(X)


class ForgetsOnPickle(MeanImputer):
    def __getstate__(self):
        state = dict(super().__getstate__())
        if "statistics_" in state:
            state["statistics_"] = np.zeros(5)
        return state


# Checks that compare two fits of the imputer, or two of its transforms to the bit.
TWO_FITS = {
    "fit_is_repeatable",
    "fit_transform_is_fit_then_transform",
    "any_memory_layout",
    "missing_values_can_be_a_number",
    "pandas_in_and_out",
    "polars_in_and_out",
}
TWO_TRANSFORMS = {
    "transform_is_repeatable",
    "new_rows_are_imputed_without_refitting",
    "failed_fit_leaves_no_trace",
    "copies_agree",
}
BATCH_AND_ORDER = {
    "transform_does_not_depend_on_the_batch",
    "transform_does_not_depend_on_row_order",
}

# The promise that an imputer breaks, the imputer, and the promises which that one implies.
PLANTED = {
    "observed_cells_are_untouched": (RoundsObserved, set()),
    "missing_cells_are_filled": (GivesUpOutsideTheRange, set()),
    "input_is_not_modified": (WritesToInput, set()),
    "transform_does_not_depend_on_the_batch": (UsesTheSizeOfTheBatch, set()),
    "transform_does_not_depend_on_row_order": (CarriesTheLastObservationForward, BATCH_AND_ORDER),
    "transform_is_repeatable": (DrawsAtTransform, TWO_TRANSFORMS | TWO_FITS | BATCH_AND_ORDER),
    "fit_is_repeatable": (DrawsAtFit, TWO_FITS),
    "fit_transform_is_fit_then_transform": (HasAnotherShortcut, set()),
    "columns_are_exchangeable": (FavoursTheFirstColumn, set()),
    "new_rows_are_imputed_without_refitting": (FollowsDrift, set()),
    "empty_rows_are_imputed": (RefusesEmptyRows, set()),
    "feature_first_missing_at_transform": (KnowsOnlyFeaturesThatWereIncomplete, set()),
    "empty_features_are_dropped_or_kept": (KeepsEmptyFeaturesEmpty, set()),
    "constant_and_collinear_columns": (DividesByTheDeviation, set()),
    "one_row_or_one_column": (IsObscureAboutOneRow, set()),
    "any_memory_layout": (WantsWriteableBuffers, set()),
    "float32_is_kept": (UpcastsFloat32, set()),
    "missing_values_can_be_a_number": (AveragesItsMarkers, set()),
    "indicator_is_appended": (IndicatesTheObserved, set()),
    "pandas_in_and_out": (DoesNotKnowNA, set()),
    "polars_in_and_out": (LosesTheNamesOfPolars, set()),
    "sparse_is_refused_or_imputed": (IsObscureAboutSparse, set()),
    "infinity_is_refused": (ClipsInfinityAtTransform, set()),
    "wrong_input_is_refused": (TakesTheRealPart, set()),
    "failed_fit_leaves_no_trace": (IsFittedByAFailure, set()),
    "copies_agree": (ForgetsOnPickle, set()),
}


def checks_with(status, imputer):
    results = check_imputer(imputer, on_fail=None)
    return {result["check_name"] for result in results if result["status"] == status}


def test_every_check_has_an_imputer_that_breaks_its_promise():
    assert set(PLANTED) == set(IMPUTER_CHECKS)


@pytest.mark.parametrize("name", PLANTED)
def test_a_broken_promise_fails_its_check_and_those_that_it_implies(name):
    imputer, implied = PLANTED[name]
    assert checks_with("failed", imputer()) == {name} | implied


@pytest.mark.parametrize("imputer", [SimpleImputer(), MeanImputer()], ids=repr)
def test_simple_imputers_pass_every_check(imputer):
    assert checks_with("passed", imputer) == set(IMPUTER_CHECKS)


# ------------------------------------------------------------- skipped, failed, raised, warned


class BareMeanImputer(BaseEstimator):
    """An imputer without any option, and without set_output."""

    def fit(self, X, y=None):
        self.model_ = SimpleImputer().fit(X)
        return self

    def transform(self, X):
        check_is_fitted(self)
        return self.model_.transform(X)

    def fit_transform(self, X, y=None):
        return self.fit(X).transform(X)


class WithoutMarker(SimpleImputer):
    def __init__(self, *, add_indicator=False, keep_empty_features=False):
        super().__init__(add_indicator=add_indicator, keep_empty_features=keep_empty_features)


class WithoutIndicator(SimpleImputer):
    def __init__(self, *, missing_values=np.nan, keep_empty_features=False):
        super().__init__(missing_values=missing_values, keep_empty_features=keep_empty_features)


class WithoutEmptyFeatures(SimpleImputer):
    def __init__(self, *, missing_values=np.nan, add_indicator=False):
        super().__init__(missing_values=missing_values, add_indicator=add_indicator)


class NeedsAnotherPackage(MeanImputer):
    def fit(self, X, y=None):
        if isinstance(X, pd.DataFrame):
            raise ImportError("this imputer needs pyarrow")
        return super().fit(X)


LACKS = {
    "missing_values_can_be_a_number": "missing_values",
    "indicator_is_appended": "add_indicator",
    "empty_features_are_dropped_or_kept": "keep_empty_features",
    "pandas_in_and_out": "set_output",
    "polars_in_and_out": "set_output",
}


def test_checks_of_features_that_an_imputer_lacks_are_skipped_with_a_reason():
    results = check_imputer(BareMeanImputer())
    skipped = {r["check_name"]: r["exception"] for r in results if r["status"] == "skipped"}
    assert skipped.keys() == LACKS.keys()
    for name, feature in LACKS.items():
        assert str(skipped[name]).startswith("BareMeanImputer has no")
        assert str(skipped[name]).endswith(feature)
    assert checks_with("passed", BareMeanImputer()) == IMPUTER_CHECKS.keys() - LACKS.keys()


@pytest.mark.parametrize(
    ("imputer", "name"),
    [
        (WithoutMarker(), "missing_values_can_be_a_number"),
        (WithoutIndicator(), "indicator_is_appended"),
        (WithoutEmptyFeatures(), "empty_features_are_dropped_or_kept"),
    ],
)
def test_a_parameter_that_is_lacking_skips_the_one_check_about_it(imputer, name):
    assert checks_with("skipped", imputer) == {name}
    assert checks_with("failed", imputer) == set()


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_package_that_is_not_installed_skips_its_check(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert checks_with("skipped", SimpleImputer()) == {f"{package}_in_and_out"}
    assert checks_with("failed", SimpleImputer()) == set()


def test_an_import_error_of_the_imputer_is_a_failure():
    assert checks_with("failed", NeedsAnotherPackage()) == {"pandas_in_and_out"}
    with pytest.raises(ImportError, match="needs pyarrow"):
        check_imputer(NeedsAnotherPackage())


def test_failure_is_raised_warned_or_reported():
    with pytest.raises(AssertionError, match="observed cells changed") as raised:
        check_imputer(RoundsObserved())
    assert raised.value.__notes__ == ["check_imputer: observed_cells_are_untouched failed"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = check_imputer(DrawsAtFit(), on_fail="warn")
    failed = [result["check_name"] for result in results if result["status"] == "failed"]
    assert set(failed) == TWO_FITS
    assert [str(warning.message).split()[0] for warning in caught] == failed
    assert [result["check_name"] for result in results] == list(IMPUTER_CHECKS)


def test_another_reaction_to_a_failure_is_refused():
    with pytest.raises(ValueError, match="on_fail must be 'raise', 'warn' or None, got 'ignore'"):
        check_imputer(SimpleImputer(), on_fail="ignore")


def test_checked_imputer_is_not_fitted():
    imputer = GaussianImputer()
    check_imputer(imputer)
    assert not hasattr(imputer, "location_")


def test_every_check_says_its_promise():
    for name, check in IMPUTER_CHECKS.items():
        assert check.__name__ == name and check.__doc__
