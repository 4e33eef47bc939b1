"""The checks that `skbilevel.testing.check_imputer` runs, one promise of an imputer each.

A check takes an unfitted imputer that it may fit and change, and raises if the promise is broken.
"""

import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

__all__ = ["IMPUTER_CHECKS", "fresh"]

Array = NDArray[Any]
Check = Callable[[Any], None]

# Agreement of results that differ only in the order of floating-point operations, in units of
# a column's standard deviation.
_ROUNDING = 1e-6


def fresh(imputer: Any, seed: int = 0) -> Any:
    """An unfitted copy with a fixed ``random_state`` and the plainest settings."""
    settings = {
        "random_state": seed,
        "missing_values": np.nan,
        "add_indicator": False,
        "keep_empty_features": False,
    }
    copied = clone(imputer)
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
    scale = _data()[0].std(axis=0)[: np.shape(left)[1]]
    difference = np.max(np.abs(np.asarray(left, float) - np.asarray(right, float)) / scale)
    assert difference <= _ROUNDING, f"{message}: they differ by {difference:.2g} deviations"


def _refuses(call: Callable[[], Any], what: str) -> Exception:
    try:
        call()
    except (ValueError, TypeError) as error:
        return error
    raise AssertionError(f"{what} raised neither ValueError nor TypeError")


def observed_cells_are_untouched(imputer: Any) -> None:
    """Observed cells come back to the bit, from seen and from new rows."""
    _, X = _data()
    imputer.fit(X)
    for rows in (X, _data(seed=1)[1]):
        observed = ~np.isnan(rows)
        returned = np.asarray(imputer.transform(rows.copy()))[:, : rows.shape[1]]
        assert np.array_equal(returned[observed], rows[observed]), "observed cells changed"


def missing_cells_are_filled(imputer: Any) -> None:
    """No output is NaN or infinite, also for new rows and new patterns."""
    imputer.fit(_data()[1])
    for rows in (_data()[1], _data(seed=1)[1]):
        assert np.isfinite(np.asarray(imputer.transform(rows), dtype=float)).all()


def input_is_not_modified(imputer: Any) -> None:
    """Neither fit nor transform writes to its input."""
    _, X = _data()
    given = X.copy()
    imputer.fit(given)
    imputer.transform(given)
    assert np.array_equal(given, X, equal_nan=True), "the input was modified"


def transform_does_not_depend_on_the_batch(imputer: Any) -> None:
    """A row is imputed alike alone, in a small batch and in a large one."""
    _, X = _data()
    whole = imputer.fit(X).transform(X)
    parts = [imputer.transform(X[:1]), imputer.transform(X[1:40]), imputer.transform(X[40:])]
    _assert_close(whole, np.vstack(parts), "batches and the whole")


def transform_does_not_depend_on_row_order(imputer: Any) -> None:
    """Permuting rows permutes their imputations."""
    _, X = _data()
    order = np.random.default_rng(0).permutation(len(X))
    imputer.fit(X)
    _assert_close(imputer.transform(X)[order], imputer.transform(X[order]), "row orders")


def transform_is_repeatable(imputer: Any) -> None:
    """Two calls of transform give the same rows."""
    _, X = _data()
    imputer.fit(X)
    first, second = imputer.transform(X), imputer.transform(X)
    assert np.array_equal(first, second), "two calls of transform differ"


def fit_is_repeatable(imputer: Any) -> None:
    """Two fits with one random_state give the same imputations."""
    _, X = _data()
    first, second = fresh(imputer).fit(X).transform(X), fresh(imputer).fit(X).transform(X)
    _assert_close(first, second, "two fits")


def fit_transform_is_fit_then_transform(imputer: Any) -> None:
    """The shortcut gives what the two steps give."""
    _, X = _data()
    _assert_close(
        fresh(imputer).fit_transform(X),
        fresh(imputer).fit(X).transform(X),
        "fit_transform and fit().transform",
    )


def columns_are_exchangeable(imputer: Any) -> None:
    """Permuting columns permutes imputations; up to 5 % of the error for a random method."""
    truth, X = _data()
    order = np.array([3, 0, 4, 2, 1])
    plain = fresh(imputer).fit(X).transform(X)
    permuted = fresh(imputer).fit(X[:, order]).transform(X[:, order])[:, np.argsort(order)]
    if _is_deterministic(imputer, X):
        _assert_close(plain, permuted, "column orders")
        return
    errors = [_error(truth, X, filled) for filled in (plain, permuted)]
    assert max(errors) <= 1.05 * min(errors), f"errors by column order: {errors}"


def _is_deterministic(imputer: Any, X: Array) -> bool:
    first, second = (fresh(imputer, seed).fit(X).transform(X) for seed in (0, 1))
    return np.array_equal(first, second)


def _error(truth: Array, X: Array, filled: Array) -> float:
    squares = ((filled - truth) / truth.std(axis=0))[np.isnan(X)] ** 2
    return float(np.sqrt(squares.mean()))


def new_rows_are_imputed_without_refitting(imputer: Any) -> None:
    """transform of extreme new rows leaves later results as they were."""
    _, X = _data()
    imputer.fit(X)
    before = imputer.transform(X)
    imputer.transform(_data(n_rows=30, seed=1)[1] * 50)
    assert np.array_equal(before, imputer.transform(X)), "transform changed the fitted state"


def empty_rows_are_imputed(imputer: Any) -> None:
    """A row with nothing observed is filled with finite values, at fit and at transform."""
    _, X = _data()
    X[3] = np.nan
    returned = imputer.fit(X).transform(np.full((2, X.shape[1]), np.nan))
    assert np.isfinite(returned).all()


def feature_first_missing_at_transform(imputer: Any) -> None:
    """A feature that is complete at fit is imputed where it misses at transform."""
    truth, X = _data()
    X[:, 1] = truth[:, 1]
    rows = X[:10].copy()
    rows[:, 1] = np.nan
    assert np.isfinite(imputer.fit(X).transform(rows)).all()


def empty_features_are_dropped_or_kept(imputer: Any) -> None:
    """Features empty at fit are dropped by default and kept with keep_empty_features."""
    _, X = _data()
    X[:, 2] = np.nan
    assert imputer.fit_transform(X).shape[1] == 4, "an empty feature was not dropped"
    kept = fresh(imputer).set_params(keep_empty_features=True)
    returned = kept.fit(X).transform(X)
    assert returned.shape == X.shape, "an empty feature was not kept"
    assert np.isfinite(returned).all()


def constant_and_collinear_columns(imputer: Any) -> None:
    """Constant and duplicated columns are imputed with finite values."""
    truth, _ = _data()
    X = np.column_stack([truth[:, 0], truth[:, 0], np.full(len(truth), 7.0), truth[:, 1]])
    X[::3, 1] = X[1::3, 2] = X[2::5, 3] = np.nan
    returned = imputer.fit(X).transform(X)
    assert np.isfinite(returned).all()
    assert np.allclose(returned[:, 2], 7.0), "a constant column was not imputed by its constant"


def one_row_or_one_column(imputer: Any) -> None:
    """A single row and a single column are fitted, or refused with a clear error."""
    _, X = _data()
    for part, what in ((X[:1], "1 sample"), (X[:, :1], "1 feature")):
        try:
            returned = fresh(imputer).fit(part).transform(part)
        except ValueError as error:
            assert what in str(error), f"unclear error for {what}: {error}"
        else:
            assert np.isfinite(returned).all()


def any_memory_layout(imputer: Any) -> None:
    """Read-only and Fortran-ordered input give what a plain array gives."""
    _, X = _data()
    expected = fresh(imputer).fit(X).transform(X)
    read_only = X.copy()
    read_only.flags.writeable = False
    for given in (read_only, np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2]):
        _assert_close(expected, fresh(imputer).fit(given).transform(given), "memory layouts")


def float32_is_kept(imputer: Any) -> None:
    """float32 in, float32 out, on the whole close to the float64 result."""
    _, X = _data()
    expected = fresh(imputer).fit(X).transform(X)
    returned = imputer.fit(X.astype(np.float32)).transform(X.astype(np.float32))
    assert returned.dtype == np.float32, f"float32 became {returned.dtype}"
    difference = (returned - expected) / expected.std(axis=0)
    assert np.sqrt(np.mean(difference**2)) < 0.05, "float32 and float64 results differ"


def missing_values_can_be_a_number(imputer: Any) -> None:
    """missing_values=-999 gives what NaN gives."""
    _, X = _data()
    marked = np.where(np.isnan(X), -999.0, X)
    expected = fresh(imputer).fit(X).transform(X)
    imputer.set_params(missing_values=-999.0)
    _assert_close(expected, imputer.fit(marked).transform(marked), "NaN and -999")


def indicator_is_appended(imputer: Any) -> None:
    """add_indicator appends the mask of the features that had missing cells at fit."""
    truth, X = _data()
    X[:, 1] = truth[:, 1]
    returned = imputer.set_params(add_indicator=True).fit(X).transform(X)
    expected = np.isnan(np.delete(X, 1, axis=1))
    assert np.array_equal(returned[:, 5:], expected), "wrong indicator columns"
    assert len(imputer.get_feature_names_out()) == returned.shape[1]


def pandas_in_and_out(imputer: Any) -> None:
    """A DataFrame keeps its index and column names through set_output, also with pd.NA."""
    pandas = import_module("pandas")
    _, X = _data()
    frame = pandas.DataFrame(X, columns=list("abcde"), index=np.arange(len(X)) + 7)
    expected = fresh(imputer).fit(X).transform(X)
    imputer.set_output(transform="pandas")
    for given in (frame, frame.convert_dtypes()):
        returned = imputer.fit(given).transform(given)
        assert list(returned.columns) == list("abcde"), "column names were lost"
        assert returned.index.equals(frame.index), "the index was lost"
        _assert_close(expected, returned.to_numpy(dtype=float), "array and DataFrame")


def polars_in_and_out(imputer: Any) -> None:
    """A polars DataFrame keeps its column names through set_output."""
    polars = import_module("polars")
    _, X = _data()
    frame = polars.DataFrame(X, schema=list("abcde"))
    imputer.set_output(transform="polars")
    returned = imputer.fit(frame).transform(frame)
    assert returned.columns == list("abcde"), "column names were lost"
    _assert_close(fresh(imputer).fit(X).transform(X), returned.to_numpy(), "array and polars")


def sparse_is_refused_or_imputed(imputer: Any) -> None:
    """Sparse input is imputed, or refused with an error that names it."""
    matrix = sparse.csr_matrix(_data()[1])
    try:
        returned = imputer.fit(matrix).transform(matrix)
    except (TypeError, ValueError) as error:
        assert "sparse" in str(error).lower(), f"unclear error for sparse input: {error}"
    else:
        assert np.isfinite(returned.toarray() if sparse.issparse(returned) else returned).all()


def infinity_is_refused(imputer: Any) -> None:
    """Infinite values raise an error that names them, at fit and at transform."""
    _, X = _data()
    infinite = X.copy()
    infinite[0, 0] = np.inf
    assert "inf" in str(_refuses(lambda: fresh(imputer).fit(infinite), "infinity at fit"))
    imputer.fit(X)
    assert "inf" in str(_refuses(lambda: imputer.transform(infinite), "infinity at transform"))


def wrong_input_is_refused(imputer: Any) -> None:
    """Strings, complex numbers, empty arrays and a wrong number of features raise."""
    _, X = _data()
    _refuses(lambda: fresh(imputer).fit(np.array([["a", "b"], ["c", "d"]])), "strings")
    _refuses(lambda: fresh(imputer).fit(X.astype(complex)), "complex numbers")
    _refuses(lambda: fresh(imputer).fit(np.empty((0, 3))), "an empty array")
    imputer.fit(X)
    _refuses(lambda: imputer.transform(X[:, :3]), "a wrong number of features")


def failed_fit_leaves_no_trace(imputer: Any) -> None:
    """After an error in fit the imputer is as it was before: unfitted, or fitted as before."""
    _, X = _data()
    infinite = np.where(np.isnan(X), np.inf, X)
    _refuses(lambda: imputer.fit(infinite), "infinity at fit")
    try:
        imputer.transform(X)
    except NotFittedError:
        pass
    else:
        raise AssertionError("transform works after a failed first fit")
    before = imputer.fit(X).transform(X)
    _refuses(lambda: imputer.fit(infinite[:, :3]), "infinity at fit")
    assert np.array_equal(before, imputer.transform(X)), "a failed fit changed the imputer"


def copies_agree(imputer: Any) -> None:
    """A pickled and a deep-copied imputer give the same rows; a clone is not fitted."""
    _, X = _data()
    expected = imputer.fit(X).transform(X)
    for duplicate in (pickle.loads(pickle.dumps(imputer)), copy.deepcopy(imputer)):
        assert np.array_equal(expected, duplicate.transform(X)), "a copy imputes differently"
    try:
        clone(imputer).transform(X)
    except NotFittedError:
        return
    raise AssertionError("a clone of a fitted imputer is fitted")


IMPUTER_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        observed_cells_are_untouched,
        missing_cells_are_filled,
        input_is_not_modified,
        transform_does_not_depend_on_the_batch,
        transform_does_not_depend_on_row_order,
        transform_is_repeatable,
        fit_is_repeatable,
        fit_transform_is_fit_then_transform,
        columns_are_exchangeable,
        new_rows_are_imputed_without_refitting,
        empty_rows_are_imputed,
        feature_first_missing_at_transform,
        empty_features_are_dropped_or_kept,
        constant_and_collinear_columns,
        one_row_or_one_column,
        any_memory_layout,
        float32_is_kept,
        missing_values_can_be_a_number,
        indicator_is_appended,
        pandas_in_and_out,
        polars_in_and_out,
        sparse_is_refused_or_imputed,
        infinity_is_refused,
        wrong_input_is_refused,
        failed_fit_leaves_no_trace,
        copies_agree,
    )
}
