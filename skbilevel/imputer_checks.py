"""The checks that `skbilevel.testing.check_imputer` runs, one promise of an imputer each.

A check takes an unfitted imputer that it may fit and change, and raises if the promise is broken.
It raises `SkipTest` where the imputer does not have the feature that the check is about, or where
an optional package is absent.
"""

import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skbilevel.metrics import imputation_rmse

__all__ = ["IMPUTER_CHECKS", "fresh"]

Array = NDArray[Any]
Check = Callable[[Any], None]

_PLAINEST = {"missing_values": np.nan, "add_indicator": False, "keep_empty_features": False}


def fresh(imputer: Any, seed: int = 0) -> Any:
    """An unfitted copy with a fixed ``random_state`` and the plainest settings."""
    copied, settings = clone(imputer), {"random_state": seed, **_PLAINEST}
    known = copied.get_params()
    return copied.set_params(**{name: settings[name] for name in settings if name in known})


def _data(n_rows: int = 120, seed: int = 0) -> tuple[Array, Array]:
    """Complete and incomplete rows of 5 correlated columns on different scales."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((n_rows, 2))
    X = factors @ rng.standard_normal((2, 5)) + 0.4 * rng.standard_normal((n_rows, 5))
    X = X * [1.0, 10.0, 0.1, 100.0, 3.0] + [0.0, 5.0, -2.0, 1000.0, 1.0]
    missing = rng.random(X.shape) < 0.25
    missing[np.arange(n_rows), rng.integers(0, 5, n_rows)] = False
    return X, np.where(missing, np.nan, X)


def _assert_close(left: Array, right: Array, message: str) -> None:
    """Rounding is all by which they differ: a millionth of a column's standard deviation."""
    scale = _data()[0].std(axis=0)[: np.shape(left)[1]]
    difference = np.max(np.abs(np.asarray(left, float) - np.asarray(right, float)) / scale)
    assert difference <= 1e-6, f"{message}: they differ by {difference:.2g} deviations"


def _imputed(imputer: Any, X: Any, seed: int = 0) -> Any:
    """X as a copy of the imputer imputes it."""
    return fresh(imputer, seed).fit(X).transform(X)


def _with(imputer: Any, **parameters: Any) -> Any:
    """The imputer with those parameters; the check is skipped if it does not have them."""
    missing = [name for name in parameters if name not in imputer.get_params()]
    if missing:
        raise SkipTest(f"{type(imputer).__name__} has no parameter {missing[0]}")
    return imputer.set_params(**parameters)


def _with_output(imputer: Any, package: str) -> tuple[Any, Any]:
    """The imputer with output in DataFrames of the package, and the package."""
    if not hasattr(imputer, "set_output"):
        raise SkipTest(f"{type(imputer).__name__} has no set_output")
    if find_spec(package) is None:
        raise SkipTest(f"{package} is not installed")
    return imputer.set_output(transform=package), import_module(package)


def _refuses(call: Callable[[], Any], what: str, *errors: type[Exception]) -> str:
    """The message of the error, one of `errors` or by default of ValueError and TypeError."""
    errors = errors or (ValueError, TypeError)
    try:
        call()
    except errors as error:
        return str(error)
    raise AssertionError(f"{what} raised no {' or '.join(error.__name__ for error in errors)}")


def _imputes_or_names(imputer: Any, given: Any, reason: str) -> None:
    """What is given is imputed with finite values, or refused with an error that says why."""
    try:
        returned = _imputed(imputer, given)
    except (TypeError, ValueError) as error:
        assert reason in str(error).lower(), f"unclear error, without {reason!r}: {error}"
    else:
        assert np.isfinite(returned.toarray() if sparse.issparse(returned) else returned).all()


IMPUTER_CHECKS: dict[str, Check] = {}


def _promise(check: Callable[[Any, Array], None]) -> Check:
    """Add a check to IMPUTER_CHECKS that is given incomplete rows of its own in each call."""

    def on_new_rows(imputer: Any) -> None:
        check(imputer, _data()[1])

    on_new_rows.__name__, on_new_rows.__doc__ = check.__name__, check.__doc__
    IMPUTER_CHECKS[check.__name__] = on_new_rows
    return on_new_rows


@_promise
def observed_cells_are_untouched(imputer: Any, X: Array) -> None:
    """Observed cells come back to the bit, from seen and from new rows."""
    imputer.fit(X)
    for rows in (X, _data(seed=1)[1]):
        observed = ~np.isnan(rows)
        returned = np.asarray(imputer.transform(rows.copy()))[:, : rows.shape[1]]
        assert np.array_equal(returned[observed], rows[observed]), "observed cells changed"


@_promise
def missing_cells_are_filled(imputer: Any, X: Array) -> None:
    """No output is NaN or infinite, also for new rows and new patterns."""
    imputer.fit(X)
    for rows in (X, _data(seed=1)[1]):
        assert np.isfinite(np.asarray(imputer.transform(rows), dtype=float)).all()


@_promise
def input_is_not_modified(imputer: Any, X: Array) -> None:
    """Neither fit nor transform writes to its input."""
    given = X.copy()
    imputer.fit(given)
    imputer.transform(given)
    assert np.array_equal(given, X, equal_nan=True), "the input was modified"


@_promise
def transform_does_not_depend_on_the_batch(imputer: Any, X: Array) -> None:
    """A row is imputed alike alone, in a small batch and in a large one."""
    whole = imputer.fit(X).transform(X)
    parts = [imputer.transform(X[:1]), imputer.transform(X[1:40]), imputer.transform(X[40:])]
    _assert_close(whole, np.vstack(parts), "batches and the whole")


@_promise
def transform_does_not_depend_on_row_order(imputer: Any, X: Array) -> None:
    """Permuting rows permutes their imputations."""
    order = np.random.default_rng(0).permutation(len(X))
    imputer.fit(X)
    _assert_close(imputer.transform(X)[order], imputer.transform(X[order]), "row orders")


@_promise
def transform_is_repeatable(imputer: Any, X: Array) -> None:
    """Two calls of transform give the same rows."""
    imputer.fit(X)
    first = imputer.transform(X)
    assert np.array_equal(first, imputer.transform(X)), "two calls of transform differ"


@_promise
def fit_is_repeatable(imputer: Any, X: Array) -> None:
    """Two fits with one random_state give the same imputations."""
    _assert_close(_imputed(imputer, X), _imputed(imputer, X), "two fits")


@_promise
def fit_transform_is_fit_then_transform(imputer: Any, X: Array) -> None:
    """The shortcut gives what the two steps give."""
    shortcut = fresh(imputer).fit_transform(X)
    _assert_close(shortcut, _imputed(imputer, X), "fit_transform and fit().transform")


@_promise
def columns_are_exchangeable(imputer: Any, X: Array) -> None:
    """Permuting columns permutes imputations; up to 5 % of the error for a random method."""
    order = np.array([3, 0, 4, 2, 1])
    plain = _imputed(imputer, X)
    permuted = _imputed(imputer, X[:, order])[:, np.argsort(order)]
    if np.array_equal(plain, _imputed(imputer, X, seed=1)):
        _assert_close(plain, permuted, "column orders")
    else:
        errors = [imputation_rmse(_data()[0], Z, ~np.isnan(X)) for Z in (plain, permuted)]
        assert max(errors) <= 1.05 * min(errors), f"errors by column order: {errors}"


@_promise
def new_rows_are_imputed_without_refitting(imputer: Any, X: Array) -> None:
    """transform of extreme new rows leaves later results as they were."""
    before = imputer.fit(X).transform(X)
    imputer.transform(_data(n_rows=30, seed=1)[1] * 50)
    assert np.array_equal(before, imputer.transform(X)), "transform changed the fitted state"


@_promise
def empty_rows_are_imputed(imputer: Any, X: Array) -> None:
    """A row with nothing observed is filled with finite values, at fit and at transform."""
    X[3] = np.nan
    returned = imputer.fit(X).transform(np.full((2, X.shape[1]), np.nan))
    assert np.isfinite(returned).all()


@_promise
def feature_first_missing_at_transform(imputer: Any, X: Array) -> None:
    """A feature that is complete at fit is imputed where it misses at transform."""
    X[:, 1] = _data()[0][:, 1]
    rows = X[:10].copy()
    rows[:, 1] = np.nan
    assert np.isfinite(imputer.fit(X).transform(rows)).all()


@_promise
def empty_features_are_dropped_or_kept(imputer: Any, X: Array) -> None:
    """Features empty at fit are dropped by default and kept with keep_empty_features."""
    X[:, 2] = np.nan
    X = X[~np.isnan(X).all(axis=1)]
    dropped = _with(fresh(imputer), keep_empty_features=False).fit_transform(X)
    assert dropped.shape[1] == 4, "an empty feature was not dropped"
    returned = _with(imputer, keep_empty_features=True).fit(X).transform(X)
    assert returned.shape == X.shape, "an empty feature was not kept"
    assert np.isfinite(returned).all()


@_promise
def constant_and_collinear_columns(imputer: Any, X: Array) -> None:
    """Constant and duplicated columns are imputed with finite values."""
    truth = _data()[0]
    X = np.column_stack([truth[:, 0], truth[:, 0], np.full(len(truth), 7.0), truth[:, 1]])
    X[::3, 1] = X[1::3, 2] = X[2::5, 3] = np.nan
    returned = imputer.fit(X).transform(X)
    assert np.isfinite(returned).all()
    assert np.allclose(returned[:, 2], 7.0), "a constant column was not imputed by its constant"


@_promise
def one_row_or_one_column(imputer: Any, X: Array) -> None:
    """A single row and a single column are fitted, or refused with a clear error."""
    _imputes_or_names(imputer, X[:1], "1 sample")
    _imputes_or_names(imputer, X[:, :1], "1 feature")


@_promise
def any_memory_layout(imputer: Any, X: Array) -> None:
    """Read-only and Fortran-ordered input give what a plain array gives."""
    read_only = X.copy()
    read_only.flags.writeable = False
    for given in (read_only, np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2]):
        _assert_close(_imputed(imputer, X), _imputed(imputer, given), "memory layouts")


@_promise
def float32_is_kept(imputer: Any, X: Array) -> None:
    """float32 in, float32 out, on the whole close to the float64 result."""
    expected, returned = _imputed(imputer, X), _imputed(imputer, X.astype(np.float32))
    assert returned.dtype == np.float32, f"float32 became {returned.dtype}"
    difference = imputation_rmse(expected, returned, np.zeros(X.shape, dtype=bool))
    assert difference < 0.05, "float32 and float64 results differ"


@_promise
def missing_values_can_be_a_number(imputer: Any, X: Array) -> None:
    """missing_values=-999 gives what NaN gives."""
    marked = np.where(np.isnan(X), -999.0, X)
    expected = _imputed(imputer, X)
    returned = _with(imputer, missing_values=-999.0).fit(marked).transform(marked)
    _assert_close(expected, returned, "NaN and -999")


@_promise
def indicator_is_appended(imputer: Any, X: Array) -> None:
    """add_indicator appends the mask of the features that had missing cells at fit."""
    X[:, 1] = _data()[0][:, 1]
    returned = _with(imputer, add_indicator=True).fit(X).transform(X)
    expected = np.isnan(np.delete(X, 1, axis=1))
    assert np.array_equal(returned[:, 5:], expected), "wrong indicator columns"
    if hasattr(imputer, "get_feature_names_out"):
        assert len(imputer.get_feature_names_out()) == returned.shape[1]


@_promise
def pandas_in_and_out(imputer: Any, X: Array) -> None:
    """A DataFrame keeps its index and column names through set_output, also with pd.NA."""
    expected = _imputed(imputer, X)
    imputer, pandas = _with_output(imputer, "pandas")
    frame = pandas.DataFrame(X, columns=list("abcde"), index=np.arange(len(X)) + 7)
    for given in (frame, frame.convert_dtypes()):
        returned = imputer.fit(given).transform(given)
        assert list(returned.columns) == list("abcde"), "column names were lost"
        assert returned.index.equals(frame.index), "the index was lost"
        _assert_close(expected, returned.to_numpy(dtype=float), "array and DataFrame")


@_promise
def polars_in_and_out(imputer: Any, X: Array) -> None:
    """A polars DataFrame keeps its column names through set_output."""
    expected = _imputed(imputer, X)
    imputer, polars = _with_output(imputer, "polars")
    frame = polars.DataFrame(X, schema=list("abcde"))
    returned = imputer.fit(frame).transform(frame)
    assert returned.columns == list("abcde"), "column names were lost"
    _assert_close(expected, returned.to_numpy(), "array and polars")


@_promise
def sparse_is_refused_or_imputed(imputer: Any, X: Array) -> None:
    """Sparse input is imputed, or refused with an error that names it."""
    _imputes_or_names(imputer, sparse.csr_matrix(X), "sparse")


@_promise
def infinity_is_refused(imputer: Any, X: Array) -> None:
    """Infinite values raise an error that names them, at fit and at transform."""
    infinite = X.copy()
    infinite[0, 0] = np.inf
    assert "inf" in _refuses(lambda: fresh(imputer).fit(infinite), "infinity at fit")
    imputer.fit(X)
    assert "inf" in _refuses(lambda: imputer.transform(infinite), "infinity at transform")


@_promise
def wrong_input_is_refused(imputer: Any, X: Array) -> None:
    """Strings, complex numbers, empty arrays and a wrong number of features raise."""
    _refuses(lambda: fresh(imputer).fit(np.array([["a", "b"], ["c", "d"]])), "strings")
    _refuses(lambda: fresh(imputer).fit(X.astype(complex)), "complex numbers")
    _refuses(lambda: fresh(imputer).fit(np.empty((0, 3))), "an empty array")
    imputer.fit(X)
    _refuses(lambda: imputer.transform(X[:, :3]), "a wrong number of features")


@_promise
def failed_fit_leaves_no_trace(imputer: Any, X: Array) -> None:
    """After an error in fit the imputer is as it was before: unfitted, or fitted as before."""
    infinite = np.where(np.isnan(X), np.inf, X)
    _refuses(lambda: imputer.fit(infinite), "infinity at fit")
    _refuses(lambda: imputer.transform(X), "transform after a failed first fit", NotFittedError)
    before = imputer.fit(X).transform(X)
    _refuses(lambda: imputer.fit(infinite[:, :3]), "infinity at fit")
    assert np.array_equal(before, imputer.transform(X)), "a failed fit changed the imputer"


@_promise
def copies_agree(imputer: Any, X: Array) -> None:
    """A pickled and a deep-copied imputer give the same rows; a clone is not fitted."""
    expected = imputer.fit(X).transform(X)
    for duplicate in (pickle.loads(pickle.dumps(imputer)), copy.deepcopy(imputer)):
        assert np.array_equal(expected, duplicate.transform(X)), "a copy imputes differently"
    _refuses(lambda: clone(imputer).transform(X), "transform of a clone", NotFittedError)
