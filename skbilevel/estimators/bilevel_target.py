"""The target of a bilevel model: numbers or classes, some of them missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skbilevel._sklearn import DataConversionWarning, column_or_1d, warn_user
from skbilevel.numerics.observed import mean_and_deviation

TYPES = ("continuous", "binary", "multiclass")
# Distinct integers are classes up to this many, each with at least this many rows.
_MOST_CLASSES, _FEWEST_ROWS = 20, 5


@dataclass(frozen=True)
class Target:
    """What a model learns to predict.

    Attributes
    ----------
    kind : {"continuous", "binary", "multiclass"}
    values : ndarray of shape (n, q), float64
        A standardised number, or one column a class; 0 where there is no label.
    labelled : ndarray of shape (n,), bool
    center, scale : float
        Of numbers.
    classes : ndarray or None
    """

    kind: str
    values: np.ndarray
    labelled: np.ndarray
    center: float
    scale: float
    classes: np.ndarray | None

    def decoded(self, outputs: np.ndarray) -> np.ndarray:
        """Numbers in the units of y, or the most probable class, from outputs (b, q)."""
        return decoded(outputs, self.center, self.scale, self.classes)


def no_target(n_rows: int) -> Target:
    """A target of no columns, and of no labels."""
    return Target("continuous", np.zeros((n_rows, 0)), np.zeros(n_rows, bool), 0.0, 1.0, None)


def decoded(
    outputs: np.ndarray, center: float, scale: float, classes: np.ndarray | None
) -> np.ndarray:
    """As `Target.decoded`."""
    if classes is None:
        return center + scale * outputs[:, 0]
    return classes[outputs.argmax(axis=1)]


def labels_of(y: ArrayLike, missing_label: Any, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """y as an array (n,), and which rows have a label.

    NaN, None and pandas' NA are never labels; nor is ``missing_label``.
    """
    values = one_column(y)
    if np.asarray(y).ndim > 1:
        warn_user(
            "A column-vector y was passed when a 1d array was expected; use y.ravel().",
            DataConversionWarning,
        )
    if values.dtype.kind in "mMc":
        raise ValueError(f"y must hold numbers or classes, got {values.dtype}.")
    if len(values) != n_rows:
        raise ValueError(f"X has {n_rows} rows and y has {len(values)}.")
    if values.dtype.kind in "OSU":
        missing = np.array([_is_missing(value) for value in values.tolist()], dtype=bool)
    else:
        missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(n_rows, dtype=bool)
    if missing_label is not None and not _is_missing(missing_label):
        # Where there is no value already, nothing is compared: pandas' NA equals no answer.
        missing[~missing] = [_is_same(each, missing_label) for each in values[~missing].tolist()]
    return values, ~missing


def one_column(y: ArrayLike) -> np.ndarray:
    """y as an array (n,) that still tells what is missing."""
    is_untyped = isinstance(y, list | tuple) and any(isinstance(each, str | bool) for each in y)
    # NumPy makes the word "nan" of NaN among words, and pandas NaN of NA among booleans.
    if is_untyped or str(getattr(y, "dtype", "")) == "boolean":
        y = np.asarray(y, dtype=object)
    return column_or_1d(y, dtype=None)


def _is_same(value: Any, label: Any) -> bool:
    """Whether a value is that label: False is not 0."""
    return isinstance(value, bool) == isinstance(label, bool) and bool(value == label)


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ == "NAType":
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def type_of(labels: np.ndarray) -> str:
    """The type of a target by its labels (m,): strings, booleans and few integers are classes."""
    if _are_words(labels):
        classes = np.unique(labels.astype(str))
        return "binary" if len(classes) <= 2 else "multiclass"
    numbers = labels.astype(np.float64)
    if (numbers != np.round(numbers)).any():
        return "continuous"
    counts = np.unique(numbers, return_counts=True)[1]
    if not 1 < len(counts) <= _MOST_CLASSES or counts.min() < _FEWEST_ROWS:
        return "continuous"
    return "binary" if len(counts) == 2 else "multiclass"


def _are_words(labels: np.ndarray) -> bool:
    if labels.dtype.kind in "bSU":
        return True
    return labels.dtype.kind == "O" and any(isinstance(x, str | bool) for x in labels.tolist())


def encoded(y: ArrayLike, target_type: str, missing_label: Any, n_rows: int) -> Target | None:
    """The target for a model, or None if no row has a label.

    Raises
    ------
    ValueError
        If the lengths differ, numbers are infinite or not numbers, or the classes contradict
        ``target_type``.
    """
    values, labelled = labels_of(y, missing_label, n_rows)
    if not labelled.any():
        return None
    labels = values[labelled]
    kind = type_of(labels) if target_type == "auto" else target_type
    if kind == "continuous" and target_type == "auto" and _are_marked(labels, missing_label):
        kind = "multiclass"
    return _ENCODERS[kind](labels, labelled, kind)


def _are_marked(labels: np.ndarray, missing_label: Any) -> bool:
    """Whether few distinct integers come with a marker of missing labels, which numbers do not
    need."""
    if missing_label is None or _is_missing(missing_label):
        return False
    distinct = np.unique(labels.astype(np.float64))
    return len(distinct) <= _MOST_CLASSES and bool((distinct % 1 == 0).all())


def _numbers(labels: np.ndarray, labelled: np.ndarray, kind: str) -> Target:
    try:
        numbers = labels.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must hold numbers for target_type='continuous': {error}") from error
    if np.isinf(numbers).any():
        raise ValueError("Input y contains infinity or a value too large for dtype('float64').")
    center, scale = (float(part[0]) for part in mean_and_deviation(numbers[:, np.newaxis], ["y"]))
    values = np.zeros((len(labelled), 1))
    values[labelled, 0] = (numbers - center) / scale
    if np.ptp(numbers) == 0:
        # Whatever a model says of a constant, it is that constant.
        center, scale = float(numbers[0]), 0.0
    return Target(kind, values, labelled, center, scale, None)


def _classes(labels: np.ndarray, labelled: np.ndarray, kind: str) -> Target:
    if labels.dtype.kind == "O" and all(isinstance(label, Real) for label in labels.tolist()):
        labels = np.array(labels.tolist())
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"y mixes classes that cannot be sorted: {error}") from error
    # Labels beside None are Python objects; their classes need not be.
    classes = np.array(classes.tolist())
    if classes.dtype.kind == "f" and np.isinf(classes).any():
        raise ValueError("Input y contains infinity or a value too large for dtype('float64').")
    if classes.dtype.kind == "f" and (classes != np.round(classes)).any():
        raise ValueError(f"Unknown label type: y is continuous, and target_type is {kind!r}.")
    if kind == "binary" and len(classes) > 2:
        raise ValueError(f"target_type='binary', but y has {len(classes)} classes.")
    values = np.zeros((len(labelled), len(classes)))
    values[np.flatnonzero(labelled), codes] = 1.0
    kind = "binary" if len(classes) <= 2 else "multiclass"
    return Target(kind, values, labelled, 0.0, 1.0, classes)


_ENCODERS: dict[str, Callable[[np.ndarray, np.ndarray, str], Target]] = {
    "continuous": _numbers,
    "binary": _classes,
    "multiclass": _classes,
}


def merged(labels: np.ndarray, labelled: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Labels (n,) with those that are missing replaced by ``filled``, one for each of them."""
    known = labels[labelled]
    if labels.dtype.kind == "O" and all(isinstance(each, Real) for each in known.tolist()):
        # Objects only because of those that are missing.
        known = np.array(known.tolist(), dtype=None if len(known) else filled.dtype)
    dtype = np.result_type(known.dtype, filled.dtype) if known.dtype.kind != "O" else object
    whole = np.empty(len(labels), dtype=dtype)
    whole[labelled], whole[~labelled] = known, filled
    return whole
