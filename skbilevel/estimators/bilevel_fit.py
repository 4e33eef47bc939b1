"""The fit of `BilevelImputer`: base, tilt, teacher, and students, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.bilevel_training import OUTER, Classroom, taught
from skbilevel.estimators.feature_dropout import held_out_cells
from skbilevel.estimators.imputation_base import Base, FittedBase, GaussianBase, MeanBase, fit_base
from skbilevel.estimators.label_base import LabelBase, constant_label_base, fit_label_base
from skbilevel.estimators.linear_fit import Table
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.estimators.shadow_fit import TiltFit, fit_tilt
from skbilevel.estimators.student_fit import Lectures, trained_students
from skbilevel.estimators.teacher_fit import (
    Lessons,
    copies_of,
    new_teacher,
    pretrained,
    teacher_inputs,
)
from skbilevel.estimators.tilted_rows import tilt_shift
from skbilevel.models.masked_autoencoder import MaskedAutoencoder
from skbilevel.models.student import Student
from skbilevel.numerics.parameters import from_numpy, to_numpy
from skbilevel.objectives.bilevel_imputation import CLASSES, NUMBERS, Kind, Rows, imputed
from skbilevel.solvers.teacher_student import Alternation

# Rows in no fold, which confirm what the outer loop has done, and the fewest that can. Their
# gain has to be this many standard errors, and held-out cells may be imputed so much worse.
_SHARE_TO_CONFIRM, _FEWEST_TO_CONFIRM = 0.2, 8
_STANDARD_ERRORS, _WORSE_CELLS = 2.0, 1.01
# Labels to stop the teacher's label by; with fewer labels it stays at its base.
_SHARE_OF_LABELS, _FEWEST_LABELS = 0.1, 20
_TO_CONFIRM_STEPS = 100


@dataclass(frozen=True)
class Settings:
    """What `BilevelImputer` was told, checked."""

    base: Any
    tilt: str | None
    outer: str
    n_folds: int
    hidden: tuple[int, ...]
    student_hidden: tuple[int, ...]
    mask_ratio: str | float
    feature_dropout: str | float
    pseudo_label_weight: float
    ridge: float
    n_students: int
    pretraining_steps: int
    warm_up_steps: int
    student_steps: int | str
    alternation: Alternation


class BilevelFit(NamedTuple):
    """All that was fitted.

    Attributes
    ----------
    table : Table
    base : Base
    normal : LinearModel
    tilt : TiltFit or None
    teacher : MaskedAutoencoder
    label_base : LabelBase or None
    students : list of Student
    selected : {"base", "mae", "bilevel"}
    history : dict of str to list of float
    predicts_imputed : bool
        Whether the students expect rows that the teacher has completed.
    hidden, student_hidden : tuple of int
        Widths of the hidden layers of teacher and students.
    """

    table: Table
    base: Base
    normal: LinearModel
    tilt: TiltFit | None
    teacher: MaskedAutoencoder
    label_base: LabelBase | None
    students: list[Student]
    selected: str
    history: dict[str, list[float]]
    predicts_imputed: bool
    hidden: tuple[int, ...]
    student_hidden: tuple[int, ...]


OnStep = Callable[[Callable[[], BilevelFit]], bool]


@torch.inference_mode(False)
@torch.enable_grad()
def fit_bilevel(
    table: Table,
    target: Target | None,
    settings: Settings,
    rng: np.random.RandomState,
    on_step: OnStep,
) -> BilevelFit:
    """Fit everything to a table, with a target or without."""
    Z = table.standardized()
    observed = ~np.isnan(Z)
    hidden = held_out_cells(observed, rng)
    fitted = fit_base(settings.base, table, hidden, rng)
    base, normal = fitted.base, fitted.normal
    tilt = _tilt(Z, target, normal, settings, rng)
    filled = base.completed(Z)
    shift = np.zeros(Z.shape) if tilt is None else tilt_shift(Z, normal, tilt.tilt)
    label_base, label_outputs = _label_base(base, filled + shift, ~observed, target, rng)
    room = _classroom(Z, filled, shift, target, label_outputs, fitted, hidden, settings, rng)
    parts = _Parts(table, base, normal, tilt, label_base, room, settings, rng)
    history = pretrained(room.teacher, room.lessons, settings.pretraining_steps, rng)
    selected = "base" if _corrects_nothing(room.teacher) else "mae"
    if target is None:
        return parts.fitted(selected, history, [])
    outer = _with_outer_loop(parts, selected, on_step)
    students = outer.students or parts.students()
    return parts.fitted(outer.selected, history | outer.history, students)


@dataclass(frozen=True)
class _Parts:
    """What stays the same while the teacher moves."""

    table: Table
    base: Base
    normal: LinearModel
    tilt: TiltFit | None
    label_base: LabelBase | None
    room: Classroom
    settings: Settings
    rng: np.random.RandomState

    def fitted(
        self, selected: str, history: dict[str, list[float]], students: list[Student]
    ) -> BilevelFit:
        """Everything, with the teacher as it is."""
        return BilevelFit(
            self.table,
            self.base,
            self.normal,
            self.tilt,
            self.room.teacher,
            self.label_base,
            students,
            selected,
            history,
            OUTER[self.settings.outer].judges_imputed,
            self.settings.hidden,
            self.settings.student_hidden,
        )

    def students(self) -> list[Student]:
        """Trained on the rows as the teacher imputes them; every second one on raw rows."""
        lectures, settings = _lectures(self.room), self.settings
        each = list(islice(cycle([lectures, lectures.raw()]), settings.n_students))
        return trained_students(each, settings.student_hidden, settings.student_steps, self.rng)

    def student_of_rows(self, index: np.ndarray, seed: int) -> Student:
        """Trained on some rows as the teacher imputes them."""
        lectures, rng = (
            _lectures(self.room).at(torch.from_numpy(index)),
            np.random.RandomState(seed),
        )
        hidden = self.settings.student_hidden
        return trained_students([lectures], hidden, _TO_CONFIRM_STEPS, rng)[0]


def _tilt(
    Z: np.ndarray,
    target: Target | None,
    normal: LinearModel,
    settings: Settings,
    rng: np.random.RandomState,
) -> TiltFit | None:
    if settings.tilt is None or (settings.tilt == "y" and target is None):
        return None
    y = None
    if target is not None:
        y = np.where(target.labelled[:, np.newaxis], target.values, np.nan)
    return fit_tilt(Z, normal.parameters, rng, y=y, targets=settings.tilt)


def _label_base(
    base: Base,
    filled: np.ndarray,
    missing: np.ndarray,
    target: Target | None,
    rng: np.random.RandomState,
) -> tuple[LabelBase | None, np.ndarray]:
    if target is None:
        return None, np.zeros((len(filled), 0))
    if isinstance(base, MeanBase):
        constant = constant_label_base(target, filled.shape[1])
        return constant, constant.outputs(filled, missing)
    return fit_label_base(filled, missing, target, not isinstance(base, GaussianBase), rng)


def _classroom(
    Z: np.ndarray,
    filled: np.ndarray,
    shift: np.ndarray,
    target: Target | None,
    label_outputs: np.ndarray,
    fitted: FittedBase,
    hidden: np.ndarray,
    settings: Settings,
    rng: np.random.RandomState,
) -> Classroom:
    inputs = teacher_inputs(Z, filled)
    n_rows, n_targets = label_outputs.shape
    values = np.zeros((n_rows, n_targets)) if target is None else target.values
    labelled = np.zeros(n_rows) if target is None else target.labelled.astype(np.float64)
    rows = Rows(inputs.values, inputs.mask, torch.from_numpy(values), torch.from_numpy(labelled))
    learnt, held_out = _labels_to_stop_by(labelled, rng)
    lessons = Lessons(
        copies_of(Z, fitted.blind, hidden, fitted.odds, settings.mask_ratio, rng),
        kind_of(target),
        rows,
        torch.from_numpy(label_outputs),
        learnt,
        held_out,
    )
    teacher = new_teacher(Z.shape[1], n_targets, settings.hidden, rng.randint(2**31 - 1))
    return Classroom(
        teacher,
        lessons,
        inputs,
        torch.from_numpy(shift),
        ~np.isnan(Z),
        settings.feature_dropout,
        settings.student_hidden,
        settings.pseudo_label_weight,
        settings.ridge,
    )


def kind_of(target: Target | None) -> Kind:
    """Loss and labels of a target."""
    return NUMBERS if target is None or target.classes is None else CLASSES


def _labels_to_stop_by(labelled: np.ndarray, rng: np.random.RandomState) -> tuple[Tensor, Tensor]:
    index = np.flatnonzero(labelled)
    held_out = np.zeros(len(labelled))
    if len(index) < _FEWEST_LABELS:
        return torch.zeros(len(labelled), dtype=torch.float64), torch.from_numpy(held_out)
    held_out[rng.permutation(index)[: int(_SHARE_OF_LABELS * len(index))]] = 1.0
    return torch.from_numpy(labelled - held_out), torch.from_numpy(held_out)


def _corrects_nothing(teacher: MaskedAutoencoder) -> bool:
    last = list(teacher.parameters())[-2:]
    return not any(bool(part.any()) for part in last)


def _lectures(room: Classroom) -> Lectures:
    rows = room.lessons.rows
    index = torch.arange(len(rows.values))
    with torch.no_grad():
        features, outputs = room.imputations(index)
        return Lectures(
            rows,
            imputed(rows, features),
            outputs,
            room.lessons.kind,
            room.weights(index),
            room.observed,
            room.feature_dropout,
            room.ridge,
        )


class _Outer(NamedTuple):
    """What the outer loop has left: the teacher to keep, and its students where these count."""

    selected: str
    history: dict[str, list[float]]
    students: list[Student]


def _with_outer_loop(parts: _Parts, selected: str, on_step: OnStep) -> _Outer:
    """Run the outer loop; what it made of the teacher stays if it is wanted as it is, or if rows
    in no fold confirm it."""
    settings, room, rng = parts.settings, parts.room, parts.rng
    labelled = np.flatnonzero(room.lessons.rows.labelled.numpy())
    is_robust = settings.outer == "crossfit"
    n_confirming = int(_SHARE_TO_CONFIRM * len(labelled)) if is_robust else 0
    is_off = settings.alternation.weight == 0 or settings.alternation.n_iter == 0
    if is_off or (is_robust and n_confirming < _FEWEST_TO_CONFIRM):
        return _Outer(selected, {}, [])
    confirming = np.sort(rng.permutation(labelled)[:n_confirming])
    index = np.setdiff1d(np.arange(len(room.observed)), confirming)
    state, seed = to_numpy(room.teacher), rng.randint(2**31 - 1)
    before = _judged(parts, index, confirming, seed) if is_robust else None
    # The teacher's label must not learn from what is to judge it.
    room.lessons.learnt[torch.from_numpy(confirming)] = 0.0

    def report(history: dict[str, list[float]], students: list[Tensor]) -> bool:
        return on_step(lambda: parts.fitted("bilevel", dict(history), _modules(room, students)))

    result = taught(
        room,
        settings.outer,
        index,
        settings.n_folds,
        settings.warm_up_steps,
        settings.alternation,
        rng,
        report,
    )
    if before is None:
        return _Outer("bilevel", result.history, _modules(room, result.inner))
    if _is_confirmed(before, _judged(parts, index, confirming, seed)):
        return _Outer("bilevel", result.history, [])
    from_numpy(room.teacher, state)
    return _Outer(selected, result.history, [])


def _modules(room: Classroom, students: list[Tensor]) -> list[Student]:
    return [room.student_of(theta) for theta in students]


class _Judgement(NamedTuple):
    """Of a teacher: loss of the confirming rows, and mean squared error of held-out cells."""

    losses: np.ndarray
    cells: float


def _judged(parts: _Parts, index: np.ndarray, confirming: np.ndarray, seed: int) -> _Judgement:
    """By a student that was trained without the confirming rows."""
    student = parts.student_of_rows(index, seed)
    lessons = parts.room.lessons
    rows = lessons.rows.at(torch.from_numpy(confirming))
    with torch.no_grad():
        losses = lessons.kind.row_loss(student(rows.values, rows.mask), rows.targets)
        cells, _ = lessons.held_out_errors(parts.room.teacher)
    return _Judgement(losses.numpy(), float(cells.sum()))


def _is_confirmed(before: _Judgement, after: _Judgement) -> bool:
    gained = before.losses - after.losses
    error = gained.std() / np.sqrt(len(gained))
    is_better = bool(gained.mean() > _STANDARD_ERRORS * error)
    return is_better and after.cells <= _WORSE_CELLS * before.cells
