"""Students: what predicts from incomplete rows, trained on rows that a teacher has imputed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from torch import Tensor

from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.feature_dropout import dropout
from skbilevel.estimators.teacher_fit import BATCH_ROWS
from skbilevel.estimators.tree_imputation import Forest, grown, new_forest
from skbilevel.models.student import Student
from skbilevel.objectives.bilevel_imputation import Kind, Rows, completed_labels
from skbilevel.solvers.training import ParameterGroup, Schedule, train

_ALPHAS = np.logspace(-2, 4, 13)
_N_FOLDS, _FEWEST_FOR_RIDGE, _N_TREES = 5, 10, 60
# Shares of classes that a ridge regression tells are kept off 0 and 1.
_LEAST_SHARE = 0.02
_RATE = 5e-3


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


@dataclass(frozen=True)
class Lectures:
    """What a student learns from.

    Attributes
    ----------
    rows : Rows
    features : Tensor of shape (n, d)
        The rows as the teacher completes them, observed cells unchanged.
    outputs : Tensor of shape (n, q)
        Of the teacher for the labels.
    kind : Kind
    weights : Tensor of shape (n,)
        1 for labelled rows, and what pseudo-labels count.
    observed : ndarray of shape (n, d), bool
        Masks to copy.
    feature_dropout : "empirical" or float
    ridge : float
        lambda.
    are_raw : bool
        Whether a student learns from labelled rows alone and as they are, without the teacher:
        what it knows then does not depend on what was imputed.
    """

    rows: Rows
    features: Tensor
    outputs: Tensor
    kind: Kind
    weights: Tensor
    observed: np.ndarray
    feature_dropout: str | float
    ridge: float
    are_raw: bool = False

    def at(self, index: Tensor) -> Lectures:
        """Some of the rows, with all masks to copy."""
        return replace(
            self,
            rows=self.rows.at(index),
            features=self.features[index],
            outputs=self.outputs[index],
            weights=self.weights[index],
        )

    def raw(self) -> Lectures:
        """The same rows without a teacher."""
        return replace(self, weights=self.rows.labelled, are_raw=True)

    def batches(self, rng: np.random.RandomState) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and the cells that dropout leaves of them."""
        useful = np.flatnonzero(self.weights.numpy() > 0)
        order = torch.from_numpy(rng.permutation(useful))
        for batch in order.split(BATCH_ROWS):
            yield batch, torch.from_numpy(self._kept(batch, rng).astype(np.float64))

    def _kept(self, batch: Tensor, rng: np.random.RandomState) -> np.ndarray:
        kept = dropout(self.feature_dropout, self.observed, len(batch), rng)
        if not self.are_raw:
            return kept
        # Half of the rows as they are, and the others with as much again dropped.
        own, is_whole = self.rows.mask[batch].numpy() > 0, rng.random_sample((len(batch), 1)) < 0.5
        return own & (kept | is_whole)

    def loss(self, student: Student, batch: Tensor, kept: Tensor) -> Tensor:
        """Eq. (2) for some rows, by the student's own parameters."""
        outputs = student(self.features[batch] * kept, kept)
        labels = completed_labels(self.rows, self.kind.labels(self.outputs))[batch]
        losses, weights = self.kind.row_loss(outputs, labels), self.weights[batch]
        squares = sum(part.square().sum() for part in student.parameters())
        return losses @ weights / weights.sum() + self.ridge / 2 * squares


def new_student(n_columns: int, n_targets: int, hidden: Sequence[int], seed: int) -> Student:
    """A student that has learnt nothing."""
    generator = torch.Generator().manual_seed(seed)
    return Student(n_columns, n_targets, hidden, generator=generator)


def trained_student(
    lectures: Lectures, hidden: Sequence[int], n_steps: int, rng: np.random.RandomState
) -> Student:
    """A student from the start."""
    n_columns, n_targets = lectures.features.shape[1], lectures.outputs.shape[1]
    student = new_student(n_columns, n_targets, hidden, rng.randint(2**31 - 1))
    n_batches = max(1, -(-int((lectures.weights > 0).sum()) // BATCH_ROWS))
    schedule: Any = Schedule(max(1, n_steps // n_batches), n_batches, _RATE)
    train(
        lambda batch: lectures.loss(student, *batch),
        lambda: lectures.batches(rng),
        [ParameterGroup(list(student.parameters()), 0.0)],
        schedule,
    )
    return student
