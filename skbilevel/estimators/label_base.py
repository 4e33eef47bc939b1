"""Where the labels of a teacher start: a ridge regression, and trees for a share of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.tree_imputation import Forest, grown, new_forest

_ALPHAS = np.logspace(-2, 4, 13)
_N_FOLDS, _FEWEST_FOR_RIDGE, _N_TREES = 5, 10, 30
# Shares of classes that a ridge regression tells are kept off 0 and 1.
_LEAST_SHARE = 0.02


class LabelBase(NamedTuple):
    """A prediction of the target from imputed rows and indicators of what was missing: a ridge
    regression, and for a share of it trees.

    Attributes
    ----------
    coefficients : ndarray of shape (2 d, q)
    intercept : ndarray of shape (q,)
    is_class : bool
        Whether outputs are logits.
    weight : float
        Share of the trees.
    forest : Forest or None
    """

    coefficients: np.ndarray
    intercept: np.ndarray
    is_class: bool
    weight: float = 0.0
    forest: Forest | None = None

    def outputs(self, filled: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Of complete rows (n, d), and where they were missing; (n, q)."""
        rows = np.hstack([filled, missing])
        told = rows @ self.coefficients + self.intercept
        if self.forest is not None:
            told += self.weight * (self.forest.predict(rows).reshape(told.shape) - told)
        return _logits(told) if self.is_class else told


def constant_label_base(target: Target, n_columns: int) -> LabelBase:
    """The mean of the labels."""
    mean = target.values[target.labelled].mean(axis=0)
    return LabelBase(np.zeros((2 * n_columns, len(mean))), mean, target.classes is not None)


def fit_label_base(
    filled: np.ndarray,
    missing: np.ndarray,
    target: Target,
    has_trees: bool,
    rng: np.random.RandomState,
) -> tuple[LabelBase, np.ndarray]:
    """The base of T_y, and its outputs (n, q) for the rows, from other folds where labelled."""
    labelled = target.labelled
    constant = constant_label_base(target, filled.shape[1])
    if labelled.sum() < _FEWEST_FOR_RIDGE:
        return constant, constant.outputs(filled, missing)
    rows, labels = np.hstack([filled, missing])[labelled], target.values[labelled]
    # One target is a column to scikit-learn's linear models and trees, several are a table.
    columns = labels if labels.shape[1] > 1 else labels[:, 0]
    folds = KFold(_N_FOLDS, shuffle=True, random_state=rng.randint(2**31 - 1))

    def unseen(model: Any) -> np.ndarray:
        return cross_val_predict(model, rows, columns, cv=folds).reshape(labels.shape)

    ridge, weight, forest = RidgeCV(_ALPHAS), 0.0, None
    told = unseen(ridge)
    ridge.fit(rows, columns)
    if has_trees:
        step = unseen(new_forest(_N_TREES, rng)) - told
        squares = float((step**2).sum())
        weight = float(np.clip((step * (labels - told)).sum() / squares, 0, 1)) if squares else 0.0
        told = told + weight * step
        forest = grown(rows, columns, _N_TREES, rng) if weight else None
    coefficients = ridge.coef_.reshape(labels.shape[1], -1).T
    intercept = np.ravel(ridge.intercept_)
    base = LabelBase(coefficients, intercept, constant.is_class, weight, forest)
    outputs = base.outputs(filled, missing)
    outputs[labelled] = _logits(told) if base.is_class else told
    return base, outputs


def _logits(shares: np.ndarray) -> np.ndarray:
    clipped = np.clip(shares, _LEAST_SHARE, 1 - _LEAST_SHARE)
    return np.log(clipped / clipped.sum(axis=1, keepdims=True))
