"""The contract that every imputer of the package keeps.

`Imputer` owns what a user sees of missing cells: which cells count as missing, what happens to
empty columns, the indicator, names, dtypes, and that observed cells come back to the bit. A
subclass owns the statistics: it fits on rows with NaN at missing cells and completes such rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from skbilevel._sklearn import (
    UNUSED,
    MissingIndicator,
    check_is_fitted,
    input_feature_names,
    is_scalar_nan,
    validate_data,
    warn_user,
)
from skbilevel.numerics.row_groups import row_blocks
from skbilevel.numerics.threads import single_thread

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
# Rows (b, d) with NaN at missing cells -> complete rows (b, d).
RowCompleter = Callable[[Floats], Floats]


class Imputer(TransformerMixin, BaseEstimator):
    """Base of the imputers: validation, missing cells, empty columns, indicator and names.

    Parameters
    ----------
    missing_values : int or float, default=numpy.nan
        The value that marks a missing cell; nullable pandas columns come with NaN.
    add_indicator : bool, default=False
        Append a column of 0 and 1 for every feature that had missing cells at fit.
    keep_empty_features : bool, default=False
        Keep features without any observed value at fit, filled with 0, instead of dropping them.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen at fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen at fit, where all of them are strings.
    n_observed_ : ndarray of shape (`n_features_in_`,), int
        Number of observed values of each feature at fit.
    empty_features_ : ndarray of shape (`n_features_in_`,), bool
        Features without any observed value at fit.
    indicator_ : MissingIndicator or None
        Gives the indicator columns; None without ``add_indicator``.
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "missing_values": [Real],
        "add_indicator": ["boolean"],
        "keep_empty_features": ["boolean"],
    }
    # `out` is where a result goes: no metadata that a Pipeline could route.
    __metadata_request__transform = {"out": UNUSED}  # noqa: RUF012

    def __init__(
        self,
        *,
        missing_values: float = np.nan,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
    ):
        self.missing_values = missing_values
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features

    @abstractmethod
    def _completer(self) -> RowCompleter:
        """A function that completes rows with the columns that are not empty, each by itself.

        It is made once for a call of `transform`.
        """

    @single_thread()
    def transform(self, X: ArrayLike, *, out: Floats | None = None) -> Floats:
        """Impute the missing cells of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to impute. Observed cells are returned to the bit.
        out : ndarray of shape (n_samples, n_features_out), default=None
            Where to write the result, for example a memory map; it may be ``X`` itself. Rows are
            processed in blocks, so that little memory is needed beside it.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out), float32 or float64
            The complete rows, followed by the indicator columns if there are any.

        Raises
        ------
        ValueError
            If ``X`` has infinite or non-numeric values or another number of features than at
            fit, if an imputed value exceeds the dtype, or if ``out`` has another shape or cannot
            hold the dtype of ``X``.
        """
        check_is_fitted(self)
        X = self._validate_incomplete(X, reset=False)
        kept, flagged = self._kept_features(), self._flagged_features()
        out = self._output_array(X, out, len(kept) + len(flagged))
        complete = self._completer()
        for block in row_blocks(X):
            rows = self._with_nan(X[block])
            missing: Bools = np.isnan(rows)
            filled = self._filled(rows, missing, complete)
            # `rows` may be a view of `out`: it is not read below.
            out[block, : len(kept)] = filled[:, kept]
            out[block, len(kept) :] = missing[:, flagged]
        return out

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[Any]:
        """Names of the output columns.

        Parameters
        ----------
        input_features : array-like of str of shape (n_features,), default=None
            Names of the input features; default are those seen at fit, or x0, x1, ...

        Returns
        -------
        ndarray of str objects
            Names of the kept features, then "missingindicator_<feature>" for each indicator.
        """
        check_is_fitted(self)
        names = input_feature_names(self, input_features)[self._kept_features()]
        if self.indicator_ is None:
            return names
        return np.concatenate([names, self.indicator_.get_feature_names_out(input_features)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = is_scalar_nan(self.missing_values)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _validate_incomplete(self, X: ArrayLike, *, reset: bool) -> Floats:
        """A numeric (n, d) array, float32 or float64, with ``missing_values`` still in it."""
        # scikit-learn's look for infinities takes a byte a cell; ours goes by blocks.
        try:
            numbers: Floats = validate_data(
                self,
                X,
                reset=reset,
                dtype=[np.float64, np.float32],
                ensure_all_finite=False,
            )
        except (TypeError, ValueError) as error:
            names = _columns_without_numbers(X) if _is_about_types(error) else []
            if not names:
                raise
            raise ValueError(f"{error}: columns {names} do not hold numbers.") from error
        infinite = np.zeros(numbers.shape[1], dtype=bool)
        for block in row_blocks(numbers):
            infinite |= np.any(np.isinf(numbers[block]), axis=0)
            self._check_no_other_nan(numbers[block])
        if infinite.any():
            raise ValueError(
                f"X contains infinity or a value too large for {numbers.dtype} "
                f"in columns {self._names(infinite)}."
            )
        return numbers

    def _check_no_other_nan(self, rows: Floats) -> None:
        if not is_scalar_nan(self.missing_values) and np.isnan(rows).any():
            raise ValueError(
                f"X contains NaN, but missing_values={self.missing_values!r} marks missing cells."
            )

    def _start_fit(self, X: ArrayLike) -> Floats:
        """Validate the training data and find empty features; returns the kept columns.

        What an earlier fit has left is forgotten: callbacks copy the estimator as it is.
        """
        for name in [name for name in vars(self) if name.endswith("_") and name[0] != "_"]:
            delattr(self, name)
        X = self._validate_incomplete(X, reset=True)
        observed = np.zeros(X.shape[1], dtype=np.int64)
        for block in row_blocks(X):
            observed += np.count_nonzero(~np.isnan(self._with_nan(X[block])), axis=0)
        if not observed.any():
            raise ValueError("X has no observed value: every cell is missing.")
        self.n_observed_, self.empty_features_ = observed, observed == 0
        self.indicator_ = self._fitted_indicator(X)
        self._warn_dropped()
        return self._fitted_columns(self._with_nan(X))

    def _incomplete(self, X: ArrayLike) -> Floats:
        """Validated rows with the columns that are not empty and NaN at missing cells."""
        return self._fitted_columns(self._with_nan(self._validate_incomplete(X, reset=False)))

    def _fitted_columns(self, X: Floats) -> Floats:
        """The columns that are not empty; a copy only where some are."""
        return X[:, ~self.empty_features_] if self.empty_features_.any() else X

    def _fitted_indicator(self, X: Floats) -> MissingIndicator | None:
        if not self.add_indicator:
            return None
        indicator = MissingIndicator(missing_values=self.missing_values, error_on_new=False)
        indicator.fit(X)
        if hasattr(self, "feature_names_in_"):
            indicator.feature_names_in_ = self.feature_names_in_
        return indicator

    def _warn_dropped(self) -> None:
        if self.empty_features_.any() and not self.keep_empty_features:
            names = self._names(self.empty_features_)
            warn_user(
                f"Dropping features without any observed value: {names}; "
                "keep_empty_features=True keeps them."
            )

    def _names(self, features: Bools) -> list[str]:
        """What messages call these input features."""
        return input_feature_names(self, None)[features].tolist()

    def _with_nan(self, X: Floats) -> Floats:
        """``X`` with NaN at missing cells; a copy only where ``missing_values`` is a number."""
        if is_scalar_nan(self.missing_values):
            return X
        return np.where(float(self.missing_values) == X, np.asarray(np.nan, dtype=X.dtype), X)

    def _filled(self, rows: Floats, missing: Bools, complete: RowCompleter) -> Floats:
        """All features of a block, complete: empty features are 0, the others imputed."""
        filled = rows.copy()
        filled[missing] = 0.0
        # A slice where no feature is empty: views instead of copies.
        fitted = ~self.empty_features_ if self.empty_features_.any() else slice(None)
        incomplete: Bools = np.any(missing[:, fitted], axis=1)
        if incomplete.any():
            full = filled[:, fitted]
            full[incomplete] = self._finite(complete(rows[:, fitted][incomplete]), rows.dtype)
            filled[:, fitted] = np.where(missing[:, fitted], full, rows[:, fitted])
        return filled

    def _finite(self, rows: Floats, dtype: Any) -> Floats:
        """Completed rows, if the dtype of the result can hold them."""
        largest = np.abs(rows).max(axis=0)
        # NaN is not at most anything either.
        beyond = np.flatnonzero(~(largest <= np.finfo(dtype).max))
        if len(beyond):
            names = np.array(self._names(~self.empty_features_))[beyond].tolist()
            raise ValueError(
                f"A row is so extreme that its imputed values in columns {names} exceed "
                f"{np.dtype(dtype)}; rescale the columns, or remove the row."
            )
        return rows

    def _kept_features(self) -> NDArray[np.intp]:
        if self.keep_empty_features:
            return np.arange(self.n_features_in_)
        return np.flatnonzero(~self.empty_features_)

    def _flagged_features(self) -> NDArray[np.intp]:
        if self.indicator_ is None:
            return np.zeros(0, dtype=np.intp)
        return self.indicator_.features_

    def _output_array(self, X: Floats, out: Floats | None, n_columns: int) -> Floats:
        if out is None:
            return np.empty((len(X), n_columns), dtype=X.dtype)
        shape = (len(X), n_columns)
        if not isinstance(out, np.ndarray):
            raise ValueError(f"out must be a NumPy array, got {type(out).__name__}.")
        if not out.flags.writeable:
            raise ValueError("out must be writable, got a read-only array.")
        if out.shape != shape:
            raise ValueError(f"out must have shape {shape}, got {out.shape}.")
        if not (np.issubdtype(out.dtype, np.floating) and np.can_cast(X.dtype, out.dtype)):
            raise ValueError(f"out must be a floating array that holds {X.dtype}: {out.dtype}.")
        return out


def _is_about_types(error: Exception) -> bool:
    message = str(error)
    return any(part in message for part in ("could not convert", "could not be promoted"))


def _columns_without_numbers(X: Any) -> list[str]:
    """Columns of a table or an array that cannot be read as numbers, by name or as x0, x1, ..."""
    if hasattr(X, "columns"):
        names, columns = list(X.columns), [X[name] for name in X.columns]
    else:
        cells = np.asarray(X, dtype=object)
        columns = list(cells.T) if cells.ndim == 2 else []
        names = [f"x{number}" for number in range(len(columns))]
    return [
        str(name) for name, column in zip(names, columns, strict=True) if not _is_numeric(column)
    ]


def _is_numeric(column: Any) -> bool:
    cells = np.asarray(column)
    try:
        cells.astype(float)
    except (TypeError, ValueError):
        return False
    # Dates can be cast, but not beside numbers.
    return cells.dtype.kind not in "mM"
