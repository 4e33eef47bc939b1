"""Tables of numbers, read from arrays and DataFrames and written back in their type.

Here and in what uses it, a DataFrame is one of pandas or polars. Neither is imported: a column
is judged by its dtype, so that text, categories and dates are never read as numbers.
"""

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array

Array = NDArray[Any]


def check_numbers(X: Any, name: str = "X") -> Array:
    """Floating-point copy of a dense real table, NaN where missing; the error says `name`."""
    try:
        # scikit-learn looks for infinity in the sum first, which may overflow without any.
        with np.errstate(over="ignore", invalid="ignore"):
            values = check_array(X, ensure_all_finite="allow-nan", input_name=name)
        if values.dtype.kind not in "biufO":
            raise TypeError(f"its values are of type {values.dtype}")
        return values.astype(np.float32 if values.dtype == np.float32 else np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be a dense table of real numbers: {error}") from error


def read_numbers(X: Any) -> tuple[Array, Array]:
    """Copy of X as `check_numbers` gives it, and which of its columns hold numbers, (d,) bool.

    Columns of a DataFrame that hold something else are NaN.
    """
    numeric = _numeric_columns(X) if _is_frame(X) else np.ones(1, dtype=bool)
    if numeric.all():
        values = check_numbers(X)
        return values, np.ones(values.shape[1], dtype=bool)
    values = np.full(X.shape, np.nan)
    if numeric.any():
        values[:, numeric] = check_numbers(select(X, np.flatnonzero(numeric).tolist()))
    return values, numeric


def select(X: Any, columns: list[int]) -> Any:
    """Those columns of an array or DataFrame, by position."""
    return X.iloc[:, columns] if _is_pandas(X) else X[:, columns]


def with_columns(X: Any, columns: Array, values: Array) -> Any:
    """`values`, or for a DataFrame X a copy of it in which they replace those columns only."""
    if not _is_frame(X):
        return values
    dtypes, names = list(X.dtypes), list(X.columns)
    new = {int(j): _as_precise(values[:, j], dtypes[j]) for j in columns}
    if not _is_pandas(X):
        return X.with_columns(type(X)({names[j]: new[j] for j in new}).get_columns())
    every = {j: new[j] if j in new else X.iloc[:, j] for j in range(len(names))}
    return type(X)(every, index=X.index).set_axis(X.columns, axis=1)


def observed_cells(X: Any, values: Array, numeric: Array) -> Array:
    """True where a cell is not missing, (n, d); `values` are those of the numeric columns."""
    observed = ~np.isnan(values)
    for j in np.flatnonzero(~numeric):
        column = _column(X, j)
        observed[:, j] = column.notna() if _is_pandas(X) else column.is_not_null()
    return observed


def check_numeric(name: str, X: Any, numeric: Array, columns: Any = slice(None)) -> None:
    """Refuse columns (all of them by default) that do not hold numbers; the error names them."""
    others = np.flatnonzero(~numeric)
    others = np.intersect1d(others, np.arange(len(numeric))[columns])
    if others.size:
        names = [X.columns[j] for j in others]
        raise ValueError(f"{name} must be a dense table of real numbers: {names} are not")


def positions(parameter: str, columns: Any, X: Any, n_features: int) -> Array:
    """Numbers of the columns chosen by position, name, slice or boolean mask, in that order."""
    names = list(X.columns) if _is_frame(X) else []

    def position(column: Any) -> int:
        if isinstance(column, str) and column in names:
            return names.index(column)
        is_number = isinstance(column, Integral) and not isinstance(column, bool)
        if is_number and -n_features <= column < n_features:
            return int(column) % n_features
        raise ValueError(f"{parameter}: {column!r} is not one of X's {n_features} columns")

    if isinstance(columns, slice):
        found = list(range(n_features)[_slice_of_positions(columns, position)])
    else:
        chosen = np.ravel(np.asarray(columns, dtype=object)).tolist()
        if chosen and all(isinstance(column, bool | np.bool_) for column in chosen):
            chosen = _masked(parameter, chosen, n_features)
        found = [position(column) for column in chosen]
    if not 0 < len(found) == len(set(found)):
        raise ValueError(f"{parameter} must be at least one column, each once, got {columns!r}")
    return np.array(found)


def _slice_of_positions(columns: slice, position: Any) -> slice:
    """The slice with names replaced by positions; as in scikit-learn a last name is included."""
    start, stop = columns.start, columns.stop
    start = position(start) if isinstance(start, str) else start
    stop = position(stop) + 1 if isinstance(stop, str) else stop
    return slice(start, stop, columns.step)


def _masked(parameter: str, mask: list[Any], n_features: int) -> list[int]:
    if len(mask) != n_features:
        raise ValueError(f"{parameter} masks {len(mask)} columns, X has {n_features}")
    return np.flatnonzero(mask).tolist()


def _is_pandas(X: Any) -> bool:
    return hasattr(X, "iloc") and hasattr(X, "columns")


def _is_frame(X: Any) -> bool:
    """Whether X is a DataFrame of pandas or, by its method `get_columns`, of polars."""
    return _is_pandas(X) or hasattr(X, "get_columns")


def _column(X: Any, j: Any) -> Any:
    return X.iloc[:, j] if _is_pandas(X) else X[:, int(j)]


def _numeric_columns(X: Any) -> Array:
    """Whether each column of a DataFrame holds numbers."""
    if _is_pandas(X):
        held = [_holds_numbers(X, j, dtype) for j, dtype in enumerate(X.dtypes)]
    else:
        held = [dtype.is_numeric() or str(dtype) == "Boolean" for dtype in X.dtypes]
    return np.array(held, dtype=bool)


def _holds_numbers(X: Any, j: int, dtype: Any) -> bool:
    """Whether column j of a pandas DataFrame does: Python objects are looked at one by one."""
    if str(dtype) == "object":
        return all(isinstance(cell, Real) for cell in _column(X, j).dropna())
    return dtype.kind in "biuf"


def _as_precise(values: Array, dtype: Any) -> Array:
    """`values` as float32 where a DataFrame's column is of that dtype, else as float64."""
    return values.astype(np.float32 if str(dtype).lower() == "float32" else np.float64)
