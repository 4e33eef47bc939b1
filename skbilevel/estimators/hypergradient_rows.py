"""What a test of a hypergradient looks at: rows of a fit with their groups, and fresh ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from skbilevel._sklearn import check_is_fitted, column_or_1d, validate_data
from skbilevel.estimators.linear_head import RidgeHead, SoftmaxHead, Units
from skbilevel.estimators.reweighting_base import Reweighting
from skbilevel.estimators.reweighting_fit import Grouping

# The group of rows that came as the target of a fit.
TARGET = "target rows"
_QUARTERS = (0.25, 0.5, 0.75)


class FittedRows(NamedTuple):
    """Rows that count in the fit of the final estimator.

    Attributes
    ----------
    X, y : ndarray of shape (n, d) and (n,)
    shares : ndarray of shape (n,)
        Weights with sum 1.
    codes : ndarray of shape (n,), int
        Of groups.
    names : tuple
        Of groups.
    """

    X: np.ndarray
    y: np.ndarray
    shares: np.ndarray
    codes: np.ndarray
    names: tuple


class FreshRows(NamedTuple):
    """Rows of the target.

    Attributes
    ----------
    X, y : ndarray of shape (m, d) and (m,)
    """

    X: np.ndarray
    y: np.ndarray


class _Given(NamedTuple):
    """All rows of a fit, and its ``source_groups`` where these are known."""

    X: np.ndarray
    y: np.ndarray
    sources: np.ndarray | None


def check_testable(estimator: Any) -> None:
    """Raise unless an estimator is the minimum of a weighted loss of linear models."""
    if not isinstance(estimator, Reweighting):
        raise TypeError(
            "estimator must be a ReweightingRegressor or a ReweightingClassifier, got "
            f"{type(estimator).__name__}; of a Pipeline, pass its last step and transformed rows."
        )
    check_is_fitted(estimator)
    if not isinstance(estimator.estimator_, RidgeHead | SoftmaxHead):
        raise TypeError(
            "The hypergradient is that of the linear default, estimator=None; the final estimator "
            f"of this model is {estimator.estimator_!r}."
        )
    if estimator.refit is None:
        raise ValueError(
            "refit=None keeps parameters that are not the minimum of a weighted loss, so that "
            "they have no hypergradient: fit with refit='all' or refit='train'."
        )
    if getattr(estimator, "relabel", False):
        raise ValueError(
            "relabel=True fits rows with suggested labels besides, whose weights are not those of "
            "groups: fit with relabel=False."
        )


def fitted_rows(
    estimator: Any, X: ArrayLike | None, y: ArrayLike | None, groups: ArrayLike | None
) -> FittedRows:
    """The rows of a fit, which it has kept unless they are given, and their groups.

    Raises
    ------
    ValueError
        If they are not known, or do not fit the weights, or there are fewer than two groups.
    """
    given = _given(estimator, X, y)
    weights = estimator.sample_weight_[: len(given.X)]
    labels, is_target = _labels(estimator, given, weights, groups)
    counts = weights > 0
    known, codes = np.unique(labels[counts & ~is_target], return_inverse=True)
    names = tuple(known.tolist()) + (TARGET,) * bool(is_target[counts].any())
    every = np.full(len(weights), len(known))
    every[counts & ~is_target] = codes
    if len(names) < 2:
        raise ValueError(
            f"There is one group of rows that count, {names[0]!r}, and a factor of all weights "
            "changes nothing: pass groups, a label of each row, of at least two kinds."
        )
    shares = weights[counts] / weights[counts].sum()
    return FittedRows(given.X[counts], given.y[counts], shares, every[counts], names)


def fresh_rows(estimator: Any, X_val: ArrayLike, y_val: ArrayLike) -> FreshRows:
    """Rows of the target, checked.

    Raises
    ------
    ValueError
        If they have other columns than the fit, or a class that it had not.
    """
    try:
        X, y = _checked(estimator, X_val, y_val)
    except ValueError as error:
        raise ValueError(f"X_val, y_val: {error}") from error
    if len(X) < 2:
        raise ValueError(f"X_val has {len(X)} row: two are the least, and some dozens better.")
    classes = getattr(estimator.estimator_, "classes_", None)
    if classes is not None and (unknown := set(y.tolist()) - set(classes.tolist())):
        raise ValueError(
            f"y_val has classes that were not there in fit, {sorted(unknown, key=str)}; those "
            f"that were are {classes.tolist()}."
        )
    return FreshRows(X, y)


def _checked(estimator: Any, X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = validate_data(
        estimator, X, y, dtype=np.float64, reset=False, y_numeric=estimator._has_numbers
    )
    return estimator._without_column(rows), column_or_1d(labels)


def _given(estimator: Any, X: ArrayLike | None, y: ArrayLike | None) -> _Given:
    if (X is None) != (y is None):
        raise ValueError("X and y must be passed together.")
    if X is not None and y is not None:
        rows, labels = _checked(estimator, X, y)
        _check_length(estimator, len(rows))
        kept = estimator._training or {"groups": None}
        return _Given(rows, labels, _first(kept["groups"], len(rows)))
    if estimator._training is None:
        raise ValueError(
            "X and y are needed, the rows of the fit: an estimator that was pickled, copied or "
            "loaded does not carry them along."
        )
    return _Given(*(estimator._training[name] for name in ("X", "y", "groups")))


def _first(groups: np.ndarray | None, n_rows: int) -> np.ndarray | None:
    return None if groups is None else groups[:n_rows]


def _check_length(estimator: Any, n_rows: int) -> None:
    weights, n_given = estimator.sample_weight_, len(estimator.weights_)
    # Target rows that came beside X may be left out where they do not count.
    if n_rows == len(weights) or (n_rows == n_given and not weights[n_given:].any()):
        return
    below = "" if n_given == len(weights) else ", those of X and below them those of X_val"
    raise ValueError(
        f"X has {n_rows} rows, and the estimator was fitted with {len(weights)}{below}."
    )


def _labels(
    estimator: Any, given: _Given, weights: np.ndarray, groups: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all rows, (N,), and which of them are target rows without a label."""
    n_rows, n_given = len(weights), len(estimator.weights_)
    is_beside = np.arange(n_rows) >= n_given
    if groups is not None:
        labels = _of_user(groups, {n_given, n_rows}, n_rows)
        return labels, is_beside & (len(np.asarray(groups)) < n_rows)
    is_target = is_beside.copy()
    # A training row that counts in the final fit has a weight of its own.
    is_target[:n_given] = (weights[:n_given] > 0) & (estimator.weights_ == 0)
    return _of_fit(estimator, given, weights, is_target), is_target


def _of_user(groups: ArrayLike, lengths: set[int], n_rows: int) -> np.ndarray:
    labels = np.asarray(groups)
    if labels.ndim != 1 or len(labels) not in lengths:
        expected = " or ".join(map(str, sorted(lengths)))
        raise ValueError(
            f"groups must have one label for each of the {expected} rows of the fit, got shape "
            f"{labels.shape}."
        )
    try:
        np.unique(labels)
    except TypeError as error:
        raise ValueError("groups must be all strings or all numbers.") from error
    return np.concatenate([labels, np.repeat(labels[:1], n_rows - len(labels))])


def _of_fit(
    estimator: Any, given: _Given, weights: np.ndarray, is_target: np.ndarray
) -> np.ndarray:
    """Sources, or clusters, or quarters of the weights."""
    if given.sources is not None:
        return given.sources
    grouping = Grouping(None, None)
    if estimator._rule is not None:
        grouping = Grouping(**estimator._rule["grouping"])
    if grouping.sources is not None:
        raise ValueError(
            "groups is needed, the source_groups of the fit: an estimator that was pickled, "
            "copied or loaded does not carry them along."
        )
    if grouping.centers is not None:
        units = Units(**estimator._rule["units"])
        codes = grouping.codes(units.rows(given.X)[:, : given.X.shape[1]], None)
        return np.array([f"cluster {number}" for number in range(len(grouping.centers))])[codes]
    return _quarters(weights, (weights > 0) & ~is_target)


def _quarters(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Names by the weights that rows have, (N,); rows of the same weight are together."""
    if not counts.any():
        return np.full(len(weights), "training rows")
    edges = np.unique(np.quantile(weights[counts], _QUARTERS, method="inverted_cdf"))
    codes = np.searchsorted(edges, weights)
    names = np.full(len(weights), "", dtype=object)
    for number in np.unique(codes[counts]):
        of_group = weights[counts & (codes == number)]
        names[codes == number] = f"weight {of_group.min():.3g} to {of_group.max():.3g}"
    return names.astype(str)
