"""The outer loop on a table: who learns, who judges, and who confirms.

What is set aside decides what the teacher can do with it: `OUTER` has the ways to take the outer
loss, and `roles_of` gives every row its part before anything is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.feature_dropout import dropout
from skbilevel.estimators.student_fit import Lectures, new_student
from skbilevel.estimators.teacher_fit import BATCH_ROWS, Lessons, TeacherInputs, corrections
from skbilevel.models.masked_autoencoder import MaskedAutoencoder
from skbilevel.models.student import Student
from skbilevel.numerics.parameters import assign, flatten, functional
from skbilevel.numerics.problem import BilevelProblem
from skbilevel.objectives.bilevel_imputation import (
    StudentCall,
    imputed,
    inner_loss,
    inner_weights,
    naive_outer_loss,
    outer_loss,
    packed,
)
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.teacher_student import (
    Alternation,
    Step,
    alternate,
    descend,
    student_optimizer,
)

# Rows of an iteration, at most.
_MOST_ROWS = 256
_SHARE_SET_ASIDE, _FEWEST_SET_ASIDE = 0.3, 8
# Rows in no fold, which confirm what the outer loop has done, and the fewest that can.
_SHARE_TO_CONFIRM, _FEWEST_TO_CONFIRM = 0.2, 8
# Only shapes matter of what parameters are assigned to.
_ANY_SEED = 0
# Of each student before the teacher moves.
_WARM_UP_RATE = 5e-3


class Split(NamedTuple):
    """Rows that one student learns from, and those that it is judged by; int64."""

    learnt: Tensor
    judged: Tensor


class Way(NamedTuple):
    """How the outer loss is taken.

    Attributes
    ----------
    splits : callable
        ``(labelled (k,), others (u,), n_folds, rng) -> list of Split``, one for each student.
    judges_imputed : bool
        Whether rows that judge are imputed too: the naive formulation.
    terms : {"both", "direct"}
        Of its gradient.
    is_robust : bool
        Whether the gradient is bounded by that of the reconstruction, and what comes of it has to
        be confirmed by rows that are in no split.
    """

    splits: Callable[..., list[Split]]
    judges_imputed: bool = False
    terms: str = "both"
    is_robust: bool = False


def _folds(
    labelled: np.ndarray, others: np.ndarray, n_folds: int, rng: np.random.RandomState
) -> list[Split]:
    parts = np.array_split(rng.permutation(labelled), min(n_folds, len(labelled)))
    return [
        Split(_index(np.setdiff1d(labelled, part), others), _index(part))
        for part in parts
        if len(part)
    ]


def _set_aside(
    labelled: np.ndarray, others: np.ndarray, n_folds: int, rng: np.random.RandomState
) -> list[Split]:
    n_aside = max(_FEWEST_SET_ASIDE, int(_SHARE_SET_ASIDE * len(labelled)))
    n_aside = min(n_aside, max(1, len(labelled) // 2))
    order = rng.permutation(labelled)
    # A single row with a label has to teach and to judge.
    teaching = order[n_aside:] if len(order) > 1 else order
    return [Split(_index(teaching, others), _index(order[:n_aside]))]


def _index(*parts: np.ndarray) -> Tensor:
    return torch.from_numpy(np.sort(np.concatenate(parts)).astype(np.int64))


OUTER = {
    "crossfit": Way(_folds, is_robust=True),
    "holdout": Way(_set_aside),
    "imputed": Way(_set_aside, judges_imputed=True),
    "imputed_direct": Way(_set_aside, judges_imputed=True, terms="direct"),
}


class Roles(NamedTuple):
    """Who does what in the outer loop.

    Attributes
    ----------
    splits : list of Split
    confirming : ndarray of int
        Labelled rows in no split. Their labels are in the base of T_y, before the loop and after.
    aside : ndarray of int
        Rows that always judge: nobody else may know their labels.
    """

    splits: list[Split]
    confirming: np.ndarray
    aside: np.ndarray


def roles_of(
    labelled: np.ndarray, way: Way, n_folds: int, takes_others: bool, rng: np.random.RandomState
) -> Roles | None:
    """Roles of the rows of a table.

    Parameters
    ----------
    labelled : ndarray of shape (n,), bool
    way : Way
    n_folds : int
    takes_others : bool
        Whether rows without a label teach too.
    rng : RandomState

    Returns
    -------
    Roles or None
        None if there are too few labels for what the way asks for.
    """
    index, confirming = np.flatnonzero(labelled), np.zeros(0, dtype=np.int64)
    others = np.flatnonzero(~labelled) if takes_others else confirming
    if way.is_robust:
        n_confirming = int(_SHARE_TO_CONFIRM * len(index))
        if n_confirming < _FEWEST_TO_CONFIRM:
            return None
        confirming = np.sort(rng.permutation(index)[:n_confirming])
        index = np.setdiff1d(index, confirming)
    splits = way.splits(index, others, n_folds, rng)
    taught = np.concatenate([split.learnt.numpy() for split in splits])
    return Roles(splits, confirming, np.setdiff1d(index, taught))


@dataclass(frozen=True)
class Classroom:
    """A teacher, its lessons, and what its students are made of.

    Attributes
    ----------
    teacher : MaskedAutoencoder
    lessons : Lessons
    inputs : TeacherInputs
        Of the rows of the table.
    shift : Tensor of shape (n, d)
        What is added to missing cells beside the teacher's correction.
    observed : ndarray of shape (n, d), bool
        Masks to copy.
    feature_dropout : "empirical" or float
    hidden : sequence of int
        Layers of a student.
    pseudo_label_weight, ridge : float
    """

    teacher: MaskedAutoencoder
    lessons: Lessons
    inputs: TeacherInputs
    shift: Tensor
    observed: np.ndarray
    feature_dropout: str | float
    hidden: Sequence[int]
    pseudo_label_weight: float
    ridge: float

    def imputations(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """T_x and T_y of some rows of the table, before eq. (1)."""
        inputs = self.inputs.at(index)
        features, outputs = self.teacher(*inputs)
        return (
            inputs.base + self.shift[index] + features,
            self.lessons.label_base[index] + outputs,
        )

    def lectures(self) -> Lectures:
        """What students learn from the teacher as it is."""
        rows = self.lessons.rows
        features, outputs = corrections(self.teacher, self.inputs)
        return Lectures(
            rows,
            imputed(rows, self.inputs.base + self.shift + features),
            self.lessons.label_base + outputs,
            self.lessons.kind,
            self.pseudo_label_weight,
            self.observed,
            self.feature_dropout,
            self.ridge,
        )

    def new_student(self, seed: int) -> Student:
        """A student that has learnt nothing."""
        rows = self.lessons.rows
        return new_student(rows.values.shape[1], rows.targets.shape[1], self.hidden, seed)

    def student_of(self, theta: Tensor) -> Student:
        """The student with these parameters."""
        student = self.new_student(_ANY_SEED)
        assign(student, theta)
        return student


def taught(
    room: Classroom,
    way: Way,
    splits: list[Split],
    n_warm_up: int,
    settings: Alternation,
    rng: np.random.RandomState,
    on_step: Callable[[dict[str, list[float]], list[Tensor]], bool] | None = None,
) -> SolverResult:
    """Train the teacher of a classroom in place by the losses of its students.

    Parameters
    ----------
    room : Classroom
    way : Way
    splits : list of Split
        One for each student.
    n_warm_up : int
        Steps of each student before the first of the teacher.
    settings : Alternation
    rng : RandomState
    on_step : callable, optional
        ``on_step(history, students) -> stop``.

    Returns
    -------
    SolverResult
        ``inner`` are the students as flat vectors.
    """
    modules = [room.new_student(rng.randint(2**31 - 1)) for _ in splits]
    students = [flatten(module) for module in modules]
    draw = _drawer(room, way, splits, functional(modules[0]), rng)
    for number, theta in enumerate(students):
        _warm_up(draw, number, theta, n_warm_up)
    rule = replace(settings, terms=way.terms, is_bounded=way.is_robust)
    report: Any = None if on_step is None else lambda history: on_step(history, students)
    return alternate(list(room.teacher.parameters()), students, draw, rule, report)


def _warm_up(draw: Callable[[int], Step], number: int, theta: Tensor, n_steps: int) -> None:
    optimizer = student_optimizer(theta, _WARM_UP_RATE)
    for _ in range(n_steps):
        step = draw(number)
        with torch.no_grad():
            phi = step.imputations()
        descend(step.problem.inner, theta, phi, optimizer, 1)


def _drawer(
    room: Classroom,
    way: Way,
    splits: list[Split],
    student: StudentCall,
    rng: np.random.RandomState,
) -> Callable[[int], Step]:
    lessons = room.lessons

    def draw(iteration: int) -> Step:
        number = iteration % len(splits)
        learnt, judged = (_some(part, rng) for part in splits[number])
        rows, judging = lessons.rows.at(learnt), lessons.rows.at(judged)
        weights = inner_weights(rows, room.pseudo_label_weight)
        kept = torch.ones_like(rows.mask)
        if not way.judges_imputed:
            drawn = dropout(room.feature_dropout, room.observed, len(learnt), rng)
            kept = torch.from_numpy(drawn.astype(np.float64))
        inner = inner_loss(student, lessons.kind, rows, kept, weights, room.ridge)
        outer = (naive_outer_loss if way.judges_imputed else outer_loss)(
            student, lessons.kind, judging
        )
        imputing = torch.cat([learnt, judged]) if way.judges_imputed else learnt
        batch = torch.from_numpy(rng.choice(len(lessons.copies.rows), BATCH_ROWS))
        return Step(
            number,
            lambda: packed(*room.imputations(imputing)),
            BilevelProblem(inner, outer),
            lambda: lessons.loss(room.teacher, batch),
        )

    return draw


def _some(index: Tensor, rng: np.random.RandomState) -> Tensor:
    if len(index) <= _MOST_ROWS:
        return index
    return index[torch.from_numpy(rng.choice(len(index), _MOST_ROWS, replace=False))]
