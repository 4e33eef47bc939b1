"""The linear models that weights are learnt for, as estimators: ridge and softmax regression.

The ridge is per unit of weight: ``sum_i w_i l_i + l2/2 |theta|^2`` with weights that sum to 1, so
that weights tell rows apart and their sum says nothing. Columns are brought to one scale first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets

from skbilevel._sklearn import check_is_fitted, check_sample_weight, column_or_1d, validate_data
from skbilevel.estimators.linear_proxy import Sample, fitted
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED

DEFAULT_L2 = 1e-4
# The constant of rows of mean squared length 1, whose coefficient has a ridge as well.
_CONSTANT_OF_CLASSES = 0.3
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Units:
    """Scales in which a linear model sees its rows and its numbers.

    Attributes
    ----------
    center, scale : ndarray of shape (d,)
        Of the columns.
    constant : float
        Of the last column; 0 without one.
    y_center, y_scale : float
        Of numbers.
    """

    center: np.ndarray
    scale: np.ndarray
    constant: float
    y_center: float
    y_scale: float

    def rows(self, X: np.ndarray) -> np.ndarray:
        """(n, p) for rows (n, d)."""
        scaled = (X - self.center) / self.scale
        return (
            np.column_stack([scaled, np.full(len(X), self.constant)]) if self.constant else scaled
        )

    def numbers(self, y: np.ndarray) -> np.ndarray:
        """(n, 1) for numbers (n,)."""
        return (y[:, np.newaxis] - self.y_center) / self.y_scale

    def coefficients(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of X as it is, (k, d), and intercepts (k,), for theta (p, k)."""
        d = len(self.scale)
        coef = self.y_scale * (theta[:d] / self.scale[:, np.newaxis]).T
        constant = self.constant * theta[d] if self.constant else np.zeros(theta.shape[1])
        return coef, self.y_scale * constant + self.y_center - coef @ self.center


def varied(spread: np.ndarray, size: np.ndarray, n_rows: int) -> np.ndarray:
    """Mean squares around a center, (d,), or 0 where they are the rounding of mean squares
    ``size``: a column that is .1 everywhere has a mean next to .1."""
    return np.where(spread > (n_rows * np.finfo(float).eps) ** 2 * size, spread, 0.0)


def units_of(
    X: np.ndarray, y: np.ndarray | None, shares: np.ndarray, standardize: bool, fit_intercept: bool
) -> Units:
    """Units of rows (n, d) that weigh ``shares``, and of numbers (n,), or of classes if None."""
    d = X.shape[1]
    center = shares @ X if standardize and fit_intercept else np.zeros(d)
    spread = varied(shares @ np.square(X - center), shares @ np.square(X), len(X))
    if not standardize:
        spread = np.full(d, spread.mean())
    scale = np.sqrt(np.where(spread > 0, spread, 1.0))
    if y is None:
        # Rows of mean squared length 1 do for any number of columns.
        constant = _CONSTANT_OF_CLASSES if fit_intercept else 0.0
        return Units(center, scale * np.sqrt(d), constant, 0.0, 1.0)
    y_center = shares @ y if fit_intercept else 0.0
    y_spread = varied(shares @ np.square(y - y_center), shares @ np.square(y), len(y))
    return Units(center, scale, float(fit_intercept), y_center, float(np.sqrt(y_spread)) or 1.0)


class _LinearHead(BaseEstimator):
    """What both have in common.

    Parameters
    ----------
    l2 : float
    standardize : bool
        Bring every column to mean 0 and variance 1; False: divide all by one number.
    fit_intercept : bool
    """

    def __init__(
        self, l2: float = DEFAULT_L2, *, standardize: bool = True, fit_intercept: bool = True
    ) -> None:
        self.l2 = l2
        self.standardize = standardize
        self.fit_intercept = fit_intercept

    coef_: np.ndarray
    intercept_: Any

    def _store(self, units: Units, theta: np.ndarray) -> None:
        self.coef_, self.intercept_ = units.coefficients(theta)

    def _outputs(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        return (
            validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_.T + self.intercept_
        )


def _counts(sample_weight: ArrayLike | None, rows: np.ndarray) -> np.ndarray:
    return (
        np.ones(len(rows)) if sample_weight is None else check_sample_weight(sample_weight, rows)
    )


class RidgeHead(RegressorMixin, _LinearHead):
    """Weighted ridge regression."""

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> RidgeHead:
        """Fit to rows (n, d), numbers (n,) and weights (n,)."""
        rows, numbers = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        counts, numbers = _counts(sample_weight, rows), column_or_1d(numbers)
        shares = counts / counts.sum()
        units = units_of(rows, numbers, shares, self.standardize, self.fit_intercept)
        sample = Sample(units.rows(rows), units.numbers(numbers), counts)
        self._store(units, fitted(sample, SQUARED, self.l2))
        return self

    def _store(self, units: Units, theta: np.ndarray) -> None:
        coef, intercept = units.coefficients(theta)
        self.coef_, self.intercept_ = coef[0], float(intercept[0])

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Numbers (n,)."""
        return self._outputs(X)


class SoftmaxHead(ClassifierMixin, _LinearHead):
    """Weighted softmax regression."""

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> SoftmaxHead:
        """Fit to rows (n, d), classes (n,) and weights (n,)."""
        rows, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        counts = _counts(sample_weight, rows)
        self.classes_, codes = np.unique(column_or_1d(labels), return_inverse=True)
        units = units_of(rows, None, counts / counts.sum(), self.standardize, self.fit_intercept)
        sample = Sample(units.rows(rows), np.eye(len(self.classes_))[codes], counts)
        self._store(units, fitted(sample, CROSS_ENTROPY, self.l2, tol=_TOLERANCE))
        return self

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Logits (n, k); of two classes their difference, (n,)."""
        outputs = self._outputs(X)
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Shares of the classes, (n, k)."""
        return softmax(self._outputs(X), axis=1)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Classes (n,)."""
        outputs = self._outputs(X)
        return self.classes_[outputs.argmax(axis=1)]


def head_with(head: Any, units: Units, theta: np.ndarray, X: np.ndarray, classes: Any) -> Any:
    """A head that has been fitted elsewhere, to rows like X."""
    head.n_features_in_ = X.shape[1]
    if classes is not None:
        head.classes_ = classes
    head._store(units, theta)
    return head
