"""What a user hands to a reweighting estimator, made into training rows and target rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skbilevel._sklearn import check_sample_weight, column_or_1d, validate_data, warn_user
from skbilevel.numerics.random import row_keys

# Columns of X_val this many deviations off those of X are taken for columns of another scale.
_FAR, _FEW_ROWS = 5.0, 10
# Weights of a mean below this are taken for shares, which they are not.
_FEW = 0.1


@dataclass(frozen=True)
class Rows:
    """All rows of a fit: those of X, and below them those of X_val.

    Attributes
    ----------
    X : ndarray of shape (N, d)
        Without the target column.
    y : ndarray of shape (N,)
    counts : ndarray of shape (N,)
        Sample weights.
    is_target : ndarray of shape (N,), bool
    groups : ndarray of shape (N,) or None
        Of training rows; what it says of target rows does not matter.
    n_given : int
        Rows of X.
    """

    X: np.ndarray
    y: np.ndarray
    counts: np.ndarray
    is_target: np.ndarray
    groups: np.ndarray | None
    n_given: int

    @property
    def train(self) -> np.ndarray:
        """Positions of the training rows that count."""
        return np.flatnonzero(~self.is_target & (self.counts > 0))

    @property
    def target(self) -> np.ndarray:
        """Positions of the target rows that count."""
        return np.flatnonzero(self.is_target & (self.counts > 0))


@dataclass(frozen=True)
class Given:
    """The arguments of ``fit``, as they are."""

    X: Any
    y: Any
    sample_weight: Any = None
    X_val: Any = None
    y_val: Any = None
    sample_weight_val: Any = None
    is_target: Any = None
    source_groups: Any = None


def rows_of(estimator: Any, given: Given, seed: int) -> Rows:
    """Check everything, and find the target rows.

    Raises
    ------
    ValueError
        If the target is told in more than one way, or not as its parameter is documented.
    """
    X, y = validate_data(
        estimator, given.X, given.y, dtype=np.float64, y_numeric=estimator._has_numbers
    )
    y, n_rows = _labels(estimator, y), len(X)
    counts = _counts(given.sample_weight, X, "sample_weight")
    groups = groups_of(given.source_groups, n_rows)
    told = _told(estimator, given)
    column = target_index(estimator)
    if told == "X_val":
        X_val, y_val, counts_val = _validation(estimator, given, X, y)
        is_target = np.repeat([False, True], [n_rows, len(X_val)])
        if groups is not None:
            groups = np.concatenate([groups, np.repeat(groups[:1], len(X_val))])
        parts = ((X, X_val), (y, y_val), (counts, counts_val))
        X, y, counts = map(np.concatenate, parts)
    elif told == "is_target":
        is_target = target_mask(given.is_target, n_rows)
    elif told == "target_column":
        is_target = _from_column(X[:, column], estimator.target_column)
    elif told == "validation_fraction":
        order = in_order(Rows(X, y, counts, np.zeros(n_rows, bool), groups, n_rows), seed)
        is_target = _drawn(n_rows, order, estimator.validation_fraction)
    else:
        is_target = np.zeros(n_rows, bool)
    if column is not None:
        X = np.delete(X, column, axis=1)
    rows = Rows(X, y, counts, is_target, groups, n_rows)
    _check_parts(rows, told)
    return rows


def target_index(estimator: Any) -> int | None:
    """Position of the target column, after validation."""
    column = estimator.target_column
    if column is None:
        return None
    if isinstance(column, str):
        names = list(getattr(estimator, "feature_names_in_", []))
        if column not in names:
            raise ValueError(f"target_column={column!r} is not a column of X.")
        return names.index(column)
    if not -estimator.n_features_in_ <= column < estimator.n_features_in_:
        raise ValueError(
            f"target_column={column!r} is out of range: X has {estimator.n_features_in_} columns."
        )
    return int(column) % estimator.n_features_in_


def target_mask(is_target: ArrayLike, n_rows: int) -> np.ndarray:
    """A boolean for each row, (n,)."""
    mask = np.asarray(is_target)
    if mask.shape != (n_rows,):
        raise ValueError(
            f"is_target must have one value for each of the {n_rows} rows of X, got shape "
            f"{mask.shape}."
        )
    return _as_bool(mask, "is_target")


def _as_bool(mask: np.ndarray, name: str) -> np.ndarray:
    if mask.dtype == bool:
        return mask
    try:
        numbers = mask.astype(float)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not np.isin(numbers, [0.0, 1.0]).all():
        raise ValueError(f"{name} must be boolean: True for rows of the target.")
    return numbers == 1


def _labels(estimator: Any, y: Any) -> np.ndarray:
    labels = column_or_1d(y, warn=True)
    if estimator._has_numbers and labels.dtype.kind not in "biuf":
        raise ValueError(
            f"y must be numbers; ReweightingClassifier is for classes such as {labels[0]!r}."
        )
    return labels


def _told(estimator: Any, given: Given) -> str | None:
    ways = {
        "X_val": given.X_val is not None or given.y_val is not None,
        "is_target": given.is_target is not None,
        "target_column": estimator.target_column is not None,
        "validation_fraction": estimator.validation_fraction is not None,
    }
    told = [name for name, is_used in ways.items() if is_used]
    if len(told) > 1:
        raise ValueError(
            f"{' and '.join(told)} cannot be used together: each says which rows are the target."
        )
    if given.sample_weight_val is not None and told != ["X_val"]:
        raise ValueError("sample_weight_val needs X_val and y_val.")
    if told == ["X_val"] and (given.X_val is None or given.y_val is None):
        raise ValueError("X_val and y_val must be passed together.")
    return told[0] if told else None


def _counts(sample_weight: Any, X: np.ndarray, name: str) -> np.ndarray:
    return (
        np.ones(len(X)) if sample_weight is None else check_sample_weight(sample_weight, X, name)
    )


def groups_of(source_groups: Any, n_rows: int) -> np.ndarray | None:
    """Names of the groups of rows, (n,), or None."""
    if source_groups is None:
        return None
    groups = np.asarray(source_groups)
    if groups.shape != (n_rows,):
        raise ValueError(
            f"source_groups must have one value for each of the {n_rows} rows of X, got shape "
            f"{groups.shape}."
        )
    try:
        np.unique(groups)
    except TypeError as error:
        raise ValueError("source_groups must be all strings or all numbers.") from error
    return groups


def _validation(
    estimator: Any, given: Given, X: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        X_val, y_val = validate_data(
            estimator,
            given.X_val,
            given.y_val,
            dtype=np.float64,
            y_numeric=estimator._has_numbers,
            reset=False,
        )
    except ValueError as error:
        raise ValueError(f"X_val, y_val: {error}") from error
    y_val = _labels(estimator, y_val)
    if (y.dtype.kind in "biuf") != (y_val.dtype.kind in "biuf"):
        raise ValueError(f"y_val must be of the type of y, {y.dtype}, got {y_val.dtype}.")
    if len(X_val) == len(X):
        warn_user(
            f"X_val has as many rows as X, {len(X)}: cross_validate and searches take such an "
            "array for one value per row of X and pass parts of it. Mark target rows with "
            "is_target there."
        )
    far = _far(X, X_val)
    is_standardised = np.mean(np.abs(X.mean(axis=0)) + np.abs(X.std(axis=0) - 1) < 1e-6) > 0.5
    if far.mean() > 0.5 or (is_standardised and far.any()):
        warn_user(
            f"X_val looks as if it were on another scale than X: {far.sum()} of {len(far)} "
            f"columns have a mean more than {_FAR:g} standard deviations away, or a spread "
            f"{_FAR:g} times as large or small. A Pipeline transforms X_val only if it is told "
            "to, by transform_input=['X_val'] with metadata routing enabled; or mark target rows "
            "with is_target."
        )
    return X_val, y_val, _counts(given.sample_weight_val, X_val, "sample_weight_val")


def _far(X: np.ndarray, X_val: np.ndarray) -> np.ndarray:
    """Which columns, (d,), have another scale in X_val; constant ones do not tell."""
    scale, other = X.std(axis=0), X_val.std(axis=0)
    tells = scale > 1e-6 * np.abs(X).max(axis=0)
    unit = np.where(tells, scale, 1.0)
    ratio, distance = other / unit, np.abs(X_val.mean(axis=0) - X.mean(axis=0)) / unit
    spread_tells = len(X_val) > _FEW_ROWS
    return tells & (
        (distance > _FAR) | (spread_tells & ((ratio > _FAR) | ((ratio < 1 / _FAR) & (ratio > 0))))
    )


def _from_column(column: np.ndarray, name: str | int) -> np.ndarray:
    values = np.unique(column)
    if len(values) != 2:
        raise ValueError(
            f"target_column={name!r} must hold two values, the larger for rows of the target; it "
            f"holds {len(values)}."
        )
    return column == values[1]


def in_order(rows: Rows, seed: int) -> np.ndarray:
    """Positions of the rows that count, in an order that looks random and is that of the same rows
    whatever order they come in."""
    index = np.flatnonzero(rows.counts > 0)
    keys = row_keys(np.column_stack([rows.X[index], _codes(rows.y[index])]), seed)
    # Rows that are equal there may differ in these.
    ties = [rows.counts[index], rows.is_target[index]]
    if rows.groups is not None:
        ties.append(np.where(rows.is_target[index], 0, _codes(rows.groups[index])))
    return index[np.lexsort([*ties, keys])]


def _codes(values: np.ndarray) -> np.ndarray:
    """Numbers as they are, and ranks of anything else."""
    if values.dtype.kind in "biuf":
        return values.astype(float)
    return np.unique(values, return_inverse=True)[1]


def _drawn(n_rows: int, order: np.ndarray, fraction: float) -> np.ndarray:
    is_target = np.zeros(n_rows, bool)
    is_target[order[: round(fraction * len(order))]] = True
    return is_target


def _check_parts(rows: Rows, told: str | None) -> None:
    if told is not None and rows.counts[rows.train].sum() < _FEW * len(rows.train):
        warn_user(
            f"sample_weight of the {len(rows.train)} training rows sums to "
            f"{rows.counts[rows.train].sum():.3g}: it says how often each row counts, and so few "
            "rows hardly count beside target rows. Scale it to a mean of 1."
        )
    if not len(rows.train):
        raise ValueError(f"{told} leaves no training row with a positive weight.")
    if told is not None and len(rows.target) < 2:
        raise ValueError(
            f"{told} leaves {len(rows.target)} target rows with a positive weight: two are the "
            "least, and ten times as many a fair number."
        )
