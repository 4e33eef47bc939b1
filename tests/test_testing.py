"""Each check of check_imputer fails the imputer that breaks its promise, and no other promise."""

import warnings

import numpy as np
import pytest
from sklearn.impute import SimpleImputer

from skbilevel import GaussianImputer
from skbilevel.testing import IMPUTER_CHECKS, check_imputer


class ShrinksObserved(SimpleImputer):
    def transform(self, X):
        return super().transform(X) * 0.999


class LeavesNaN(SimpleImputer):
    def transform(self, X):
        filled = super().transform(X)
        return np.where(np.isnan(np.asarray(X, float)), np.nan, filled)


class WritesToInput(SimpleImputer):
    def transform(self, X):
        if isinstance(X, np.ndarray) and X.flags.writeable:
            X[np.isnan(X)] = 0.0
        return super().transform(X)


class UsesTheBatch(SimpleImputer):
    def transform(self, X):
        missing = np.isnan(np.asarray(X, float))
        filled = super().transform(X)
        filled[missing] += len(filled)
        return filled


class UsesTheFirstRow(SimpleImputer):
    def transform(self, X):
        missing = np.isnan(np.asarray(X, float))
        filled = super().transform(X)
        filled[missing] += abs(filled[0, 0])
        return filled


class DrawsAtTransform(SimpleImputer):
    def transform(self, X):
        missing = np.isnan(np.asarray(X, float))
        filled = super().transform(X)
        filled[missing] += np.random.default_rng().random(missing.sum())
        return filled


class DrawsAtFit(SimpleImputer):
    def fit(self, X, y=None):
        super().fit(X)
        self.statistics_ = self.statistics_ + np.random.default_rng().random()
        return self


class FavoursFirstColumn(SimpleImputer):
    def fit(self, X, y=None):
        super().fit(X)
        self.statistics_ = self.statistics_ + np.eye(1, len(self.statistics_))[0]
        return self


class RefitsAtTransform(SimpleImputer):
    def transform(self, X):
        filled = super().transform(X)
        self.statistics_ = filled.mean(axis=0)
        return filled


class UpcastsFloat32(SimpleImputer):
    def transform(self, X):
        return super().transform(X).astype(np.float64)


class AcceptsInfinity(SimpleImputer):
    def fit(self, X, y=None):
        return super().fit(np.nan_to_num(X, nan=np.nan) if isinstance(X, np.ndarray) else X)


class FittedByFailure(SimpleImputer):
    def fit(self, X, y=None):
        self.statistics_, self.n_features_in_ = np.zeros(X.shape[1]), X.shape[1]
        self.indicator_, self._fit_dtype, self._fill_dtype = None, np.dtype(float), np.dtype(float)
        return super().fit(X)


class ForgetsOnPickle(SimpleImputer):
    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("statistics_", None)
        return state | {"statistics_": np.zeros(5)} if "n_features_in_" in state else state


PLANTED = {
    "observed_cells_are_untouched": ShrinksObserved,
    "missing_cells_are_filled": LeavesNaN,
    "input_is_not_modified": WritesToInput,
    "transform_does_not_depend_on_the_batch": UsesTheBatch,
    "transform_does_not_depend_on_row_order": UsesTheFirstRow,
    "transform_is_repeatable": DrawsAtTransform,
    "fit_is_repeatable": DrawsAtFit,
    "columns_are_exchangeable": FavoursFirstColumn,
    "new_rows_are_imputed_without_refitting": RefitsAtTransform,
    "float32_is_kept": UpcastsFloat32,
    "infinity_is_refused": AcceptsInfinity,
    "failed_fit_leaves_no_trace": FittedByFailure,
    "copies_agree": ForgetsOnPickle,
}


@pytest.mark.parametrize("name", PLANTED)
def test_check_fails_the_imputer_that_breaks_its_promise(name):
    failed = [
        result["check_name"]
        for result in check_imputer(PLANTED[name](), on_fail=None)
        if result["status"] == "failed"
    ]
    assert name in failed


def test_simple_imputer_passes_every_check():
    assert {result["status"] for result in check_imputer(SimpleImputer())} == {"passed"}


def test_failure_is_raised_warned_or_reported():
    with pytest.raises(AssertionError, match="observed cells changed"):
        check_imputer(ShrinksObserved())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = check_imputer(ShrinksObserved(), on_fail="warn")
    failed = [result["check_name"] for result in results if result["status"] == "failed"]
    assert [str(warning.message).split()[0] for warning in caught] == failed
    assert len(results) == len(IMPUTER_CHECKS)


def test_checked_imputer_is_not_fitted():
    imputer = GaussianImputer()
    check_imputer(imputer)
    assert not hasattr(imputer, "location_")
