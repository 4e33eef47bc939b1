"""The bilevel imputer where a predictor is wanted."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin, RegressorMixin

from skbilevel._sklearn import StrOptions
from skbilevel.estimators.bilevel import BilevelImputer
from skbilevel.estimators.bilevel_target import Target, encoded


class BilevelRegressor(RegressorMixin, BilevelImputer):
    """Predict a number from rows with missing features, and from few labels.

    `BilevelImputer` with a ``y`` that is required: its committee predicts, and `transform`
    imputes.
    Parameters and attributes are those of `BilevelImputer`; ``target_type`` is "auto" or
    "continuous", which mean the same here.

    See Also
    --------
    BilevelImputer : Parameters, attributes and the method.
    sklearn.ensemble.HistGradientBoostingRegressor : Splits on missing values; for many labels.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from skbilevel import BilevelRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> X[::3, 2] = np.nan
    >>> y[100:] = np.nan  # labels for 100 rows, and all rows help to impute
    >>> model = BilevelRegressor(base="gaussian", max_iter=5, random_state=0).fit(X, y)
    >>> model.predict(X[:2]).shape
    (2,)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **BilevelImputer._parameter_constraints,
        "target_type": [StrOptions({"auto", "continuous"})],
    }

    _needs_labels = "numbers"
    score = BilevelImputer.score

    def _encoded(self, y: ArrayLike | None, n_rows: int) -> Target:
        return _with_labels(self, y, "continuous", n_rows)

    def __sklearn_tags__(self) -> Any:
        return _that_need_labels(super().__sklearn_tags__())


class BilevelClassifier(ClassifierMixin, BilevelImputer):
    """Predict a class from rows with missing features, and from few labels.

    `BilevelImputer` with a ``y`` that is required: its committee predicts, and `transform`
    imputes.
    Parameters and attributes are those of `BilevelImputer`; ``target_type`` "auto" and
    "multiclass" take every distinct value of ``y`` for a class, "binary" at most two of them.

    See Also
    --------
    BilevelImputer : Parameters, attributes and the method.
    sklearn.ensemble.HistGradientBoostingClassifier : Splits on missing values; for many labels.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skbilevel import BilevelClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> X[::3, 2] = np.nan
    >>> labels = np.where(np.arange(150) % 5 == 0, y, -1)  # a fifth of the labels
    >>> model = BilevelClassifier(base="gaussian", max_iter=5, missing_label=-1, random_state=0)
    >>> bool(model.fit(X, labels).score(X, y) > 0.9)
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **BilevelImputer._parameter_constraints,
        "target_type": [StrOptions({"auto", "binary", "multiclass"})],
    }

    _needs_labels = "classes"
    score = BilevelImputer.score

    def _encoded(self, y: ArrayLike | None, n_rows: int) -> Target:
        kind = "multiclass" if self.target_type == "auto" else self.target_type
        return _with_labels(self, y, kind, n_rows)

    def __sklearn_tags__(self) -> Any:
        return _that_need_labels(super().__sklearn_tags__())


def _with_labels(predictor: BilevelImputer, y: ArrayLike | None, kind: str, n_rows: int) -> Target:
    name = type(predictor).__name__
    if y is None:
        raise ValueError(f"{name} requires y to be passed, but the target y is None.")
    target = encoded(y, kind, predictor.missing_label, n_rows)
    if target is None:
        raise ValueError(f"{name} needs labels: Input y contains NaN or missing labels only.")
    return target


def _that_need_labels(tags: Any) -> Any:
    tags.target_tags.required = True
    return tags
