"""Students: what predicts from incomplete rows, trained on rows that a teacher has imputed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.feature_dropout import dropout
from skbilevel.estimators.label_base import LabelFit
from skbilevel.estimators.teacher_fit import BATCH_ROWS
from skbilevel.models.student import Student
from skbilevel.numerics.parameters import assign, flatten, functional
from skbilevel.objectives.bilevel_imputation import Kind, Rows, completed_labels, inner_weights
from skbilevel.solvers.training import ParameterGroup, Schedule, train

_RATE, _LARGEST_NORM = 5e-3, 5.0
# Steps that are made without being told their number.
_FEWEST_STEPS, _MOST_STEPS, _N_EPOCHS = 250, 3000, 60


class Examples(NamedTuple):
    """What a student sees in one step.

    Attributes
    ----------
    values, kept : Tensor of shape (b, d)
        Rows with zeros at dropped cells; 1 for the others.
    labels : Tensor of shape (b, q)
    weights : Tensor of shape (b,)
    """

    values: Tensor
    kept: Tensor
    labels: Tensor
    weights: Tensor

    def loss(self, kind: Kind, outputs: Tensor) -> Tensor:
        """Eq. (2) without the ridge, for outputs (b, q)."""
        return kind.row_loss(outputs, self.labels) @ self.weights / self.weights.sum()


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
    pseudo_label_weight : float
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
    pseudo_label_weight: float
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
        )

    def raw(self) -> Lectures:
        """The same rows without a teacher."""
        return replace(self, pseudo_label_weight=0.0, are_raw=True)

    def without(self, told: LabelFit, fold: int) -> Lectures:
        """The same rows as if a fold had no labels, of which the base of T_y knows nothing."""
        if not len(told.without):
            return self
        in_fold = torch.from_numpy(told.folds == fold)
        without, outputs = torch.from_numpy(told.without[fold]), torch.from_numpy(told.outputs)
        # What the teacher adds to the base at rows of the fold, it has learnt from their labels.
        corrected = torch.where(in_fold.unsqueeze(1), without, self.outputs + without - outputs)
        labelled = torch.where(in_fold, 0.0, self.rows.labelled)
        return replace(self, rows=self.rows._replace(labelled=labelled), outputs=corrected)

    def useful(self) -> np.ndarray:
        """Rows that count."""
        return np.flatnonzero(inner_weights(self.rows, self.pseudo_label_weight).numpy() > 0)

    def batches(self, size: int, rng: np.random.RandomState) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows that count, and the cells that dropout leaves of them, without an end.

        All rows come once before any comes again.
        """
        useful, waiting = self.useful(), np.zeros(0, dtype=np.int64)
        while True:
            if len(waiting) < size:
                n_more = -(-(size - len(waiting)) // len(useful))
                more = [rng.permutation(useful) for _ in range(n_more)]
                waiting = np.concatenate([waiting, *more])
            batch, waiting = torch.from_numpy(waiting[:size]), waiting[size:]
            yield batch, torch.from_numpy(self._kept(batch, rng).astype(np.float64))

    def _kept(self, batch: Tensor, rng: np.random.RandomState) -> np.ndarray:
        kept = dropout(self.feature_dropout, self.observed, len(batch), rng)
        if not self.are_raw:
            return kept
        # Half of the rows as they are, and the others with as much again dropped.
        own, is_whole = self.rows.mask[batch].numpy() > 0, rng.random_sample((len(batch), 1)) < 0.5
        return own & (kept | is_whole)

    def examples(self, batch: Tensor, kept: Tensor) -> Examples:
        """Some of the rows after dropout."""
        rows = self.rows.at(batch)
        labels = completed_labels(rows, self.kind.labels(self.outputs[batch]))
        weights = inner_weights(rows, self.pseudo_label_weight)
        return Examples(self.features[batch] * kept, kept, labels, weights)


def new_student(n_columns: int, n_targets: int, hidden: Sequence[int], seed: int) -> Student:
    """A student that has learnt nothing."""
    generator = torch.Generator().manual_seed(seed)
    return Student(n_columns, n_targets, hidden, generator=generator)


def trained_students(
    lectures: Sequence[Lectures],
    hidden: Sequence[int],
    n_steps: int | str,
    rng: np.random.RandomState,
) -> list[Student]:
    """One student for each of the lectures, of one table, trained side by side.

    ``n_steps`` "auto" is 250, or as many as show all rows 60 times, but at most 3000.
    """
    first = lectures[0]
    n_columns, n_targets = first.features.shape[1], first.outputs.shape[1]
    students = [
        new_student(n_columns, n_targets, hidden, rng.randint(2**31 - 1)) for _ in lectures
    ]
    n_rows = max(len(each.useful()) for each in lectures)
    size = min(BATCH_ROWS, n_rows)
    streams = [each.batches(size, rng) for each in lectures]
    # The students share nothing: one pass over a stack of them takes half of the time.
    theta = torch.stack([flatten(student) for student in students]).requires_grad_()
    theta.register_hook(_bounded)
    call = torch.vmap(functional(students[0]))

    def loss(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        each = [part.examples(*batch) for part, batch in zip(lectures, batches, strict=True)]
        outputs = call(theta, *(torch.stack([part[k] for part in each]) for k in (0, 1)))
        losses = [part.loss(first.kind, told) for part, told in zip(each, outputs, strict=True)]
        return torch.stack(losses).sum() + first.ridge / 2 * theta.square().sum()

    steps = _steps(n_rows / size) if n_steps == "auto" else int(n_steps)
    train(
        loss,
        lambda: [[next(stream) for stream in streams]],
        [ParameterGroup([theta], 0.0)],
        Schedule(steps, 1, _RATE, largest_norm=np.inf),
    )
    for student, parameters in zip(students, theta, strict=True):
        assign(student, parameters)
    return students


def _bounded(gradients: Tensor) -> Tensor:
    """One gradient a student, (k, p), cut to the largest norm each by itself."""
    return gradients * (_LARGEST_NORM / gradients.norm(dim=1, keepdim=True)).clamp(max=1)


def _steps(per_epoch: float) -> int:
    return int(np.clip(_N_EPOCHS * per_epoch, _FEWEST_STEPS, _MOST_STEPS))
