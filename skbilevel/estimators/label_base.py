"""Where the labels of a teacher start: a ridge or logistic regression, and trees for a share of
it, or the mean of the labels if there are fewer than ten."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, RidgeCV

from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.tree_imputation import Forest, grown

_ALPHAS = np.logspace(-2, 4, 13)
_N_FOLDS, _FEWEST_FOR_RIDGE = 4, 10
# Of a forest that predicts, and of those that only tell what one is worth.
_N_TREES, _FEW_TREES = 100, 30
_MOST_STRATA, _ROWS_OF_STRATUM = 5, 8
# Shares of classes are kept off 0 and 1; of a class that is not there, the share is next to none.
_LEAST_SHARE, _TINY = 0.02, 1e-12


class LabelBase(NamedTuple):
    """A prediction of the target from imputed rows and indicators of what was missing: a ridge or
    logistic regression, and for a share of it trees.

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
        told = self.linear(rows)
        if self.forest is not None:
            told += self.weight * (self.forest.predict(rows).reshape(told.shape) - told)
        return _logits(told) if self.is_class else told

    def linear(self, rows: np.ndarray) -> np.ndarray:
        """Of rows and indicators (n, 2 d) by regression: numbers, or shares of classes, (n, q)."""
        told = rows @ self.coefficients + self.intercept
        return softmax(told, axis=1) if self.is_class else told


class LabelFit(NamedTuple):
    """The base of T_y, and what it says of the rows it was fitted to.

    Attributes
    ----------
    base : LabelBase
    outputs : ndarray of shape (n, q)
        Of the rows; of labelled ones without their fold.
    without : ndarray of shape (f, n, q)
        Of all rows, as if the labels of a fold were missing.
    folds : ndarray of shape (n,), int
        Of the rows; -1 without a label.
    """

    base: LabelBase
    outputs: np.ndarray
    without: np.ndarray
    folds: np.ndarray


def folds_of_labels(target: Target) -> np.ndarray:
    """Which of four folds each row (n,) is in, from 0; -1 without a label.

    A fold is a block of consecutive rows of each class, or of each fifth of the numbers: rows that
    follow each other are often alike, and a neighbour in another fold would give them away. There
    are fewer folds than four with fewer labels, and none for a single one.
    """
    folds, index = np.full(len(target.labelled), -1), np.flatnonzero(target.labelled)
    n_folds = min(_N_FOLDS, len(index))
    if n_folds > 1:
        stratum = _stratum(target.values[index])
        for each in np.unique(stratum):
            rows = index[stratum == each]
            folds[rows] = np.arange(len(rows)) * n_folds // len(rows)
    return folds


def _stratum(values: np.ndarray) -> np.ndarray:
    """Of labels (m, q): their class, or one of up to five ranges of numbers, as many in each."""
    if values.shape[1] > 1:
        classes = values.argmax(axis=1)
        # Too few of a class for a row in each fold are taken together.
        return np.where(np.bincount(classes)[classes] < _N_FOLDS, -1, classes)
    n_strata = int(np.clip(len(values) // _ROWS_OF_STRATUM, 1, _MOST_STRATA))
    return values[:, 0].argsort(kind="stable").argsort() * n_strata // len(values)


def fit_label_base(
    filled: np.ndarray,
    missing: np.ndarray,
    target: Target,
    folds: np.ndarray,
    has_trees: bool,
    rng: np.random.RandomState,
) -> LabelFit:
    """Fit the base of T_y to all labels, and without those of each fold.

    Parameters
    ----------
    filled : ndarray of shape (n, d)
        Complete rows.
    missing : ndarray of shape (n, d), bool
    target : Target
    folds : ndarray of shape (n,), int
        As of `folds_of_labels`.
    has_trees : bool
        Whether there are trees beside the regression.
    rng : RandomState
    """
    labelled, is_class = target.labelled, target.classes is not None
    rows = np.hstack([filled, missing])
    learnt = [labelled & (folds != fold) for fold in range(folds.max() + 1)] + [labelled]
    few = labelled.sum() < _FEWEST_FOR_RIDGE
    fit = _mean if few else _logistic if is_class else _ridge
    bases = [fit(rows[part], target.values[part], is_class) for part in learnt]
    if has_trees and not few:
        sizes = [_FEW_TREES] * (len(learnt) - 1) + [_N_TREES]
        forests = [
            grown(rows[part], _columns(target.values[part]), size, rng)
            for part, size in zip(learnt, sizes, strict=True)
        ]
        bases = _with_trees(bases, forests, rows, target.values, folds)
    told = np.stack([base.outputs(filled, missing) for base in bases])
    # The last is of all labels, and for rows without any.
    return LabelFit(bases[-1], told[folds, np.arange(len(rows))], told[:-1], folds)


def _mean(rows: np.ndarray, values: np.ndarray, is_class: bool) -> LabelBase:
    mean = values.mean(axis=0)
    intercept = np.log(np.maximum(mean, _TINY)) if is_class else mean
    return LabelBase(np.zeros((rows.shape[1], values.shape[1])), intercept, is_class)


def _logistic(rows: np.ndarray, values: np.ndarray, is_class: bool) -> LabelBase:
    codes = values.argmax(axis=1)
    present = np.unique(codes)
    if len(present) == 1:
        return _mean(rows, values, is_class)
    model = LogisticRegression(max_iter=1000).fit(rows, codes)
    coefficients = np.zeros((rows.shape[1], values.shape[1]))
    intercept = np.full(values.shape[1], np.log(_TINY))
    # Of two classes there is one logit, of the second against the first.
    intercept[present] = 0.0
    several = present if len(present) > 2 else present[1:]
    coefficients[:, several], intercept[several] = model.coef_.T, model.intercept_
    return LabelBase(coefficients, intercept, is_class)


def _ridge(rows: np.ndarray, values: np.ndarray, is_class: bool) -> LabelBase:
    """With indicators or without: where they tell nothing, few labels are lost on them."""
    n_columns = rows.shape[1] // 2
    models = [RidgeCV(_ALPHAS).fit(each, _columns(values)) for each in (rows[:, :n_columns], rows)]
    model = max(models, key=lambda each: each.best_score_)
    coefficients = np.zeros((rows.shape[1], values.shape[1]))
    told = model.coef_.reshape(values.shape[1], -1).T
    coefficients[: len(told)] = told
    return LabelBase(coefficients, np.ravel(model.intercept_), is_class)


def _columns(values: np.ndarray) -> np.ndarray:
    """One target is a column to scikit-learn's linear models and trees, several are a table."""
    return values if values.shape[1] > 1 else values[:, 0]


def _with_trees(
    bases: list[LabelBase],
    forests: list[Forest],
    rows: np.ndarray,
    values: np.ndarray,
    folds: np.ndarray,
) -> list[LabelBase]:
    """The same with that share of the trees which is best for rows outside of what they saw."""
    told, step = np.zeros(values.shape), np.zeros(values.shape)
    for fold, (base, forest) in enumerate(zip(bases[:-1], forests[:-1], strict=True)):
        of_fold = folds == fold
        told[of_fold] = base.linear(rows[of_fold])
        step[of_fold] = forest.predict(rows[of_fold]).reshape(-1, values.shape[1]) - told[of_fold]
    squares = float((step**2).sum())
    if squares == 0:
        return bases
    weight = float(np.clip((step * (values - told)).sum() / squares, 0, 1))
    if weight == 0:
        return bases
    return [
        base._replace(weight=weight, forest=forest)
        for base, forest in zip(bases, forests, strict=True)
    ]


def _logits(shares: np.ndarray) -> np.ndarray:
    clipped = np.clip(shares, _LEAST_SHARE, 1 - _LEAST_SHARE)
    return np.log(clipped / clipped.sum(axis=1, keepdims=True))
