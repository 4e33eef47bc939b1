"""The fit of `BilevelImputer`: base, tilt, teacher, and students, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbilevel._sklearn import warn_user
from skbilevel.estimators.bilevel_outer import moved_teacher
from skbilevel.estimators.bilevel_target import Target, no_target
from skbilevel.estimators.bilevel_training import OUTER, Classroom, Roles, roles_of
from skbilevel.estimators.committee import Committee, sole, trained_committee
from skbilevel.estimators.feature_dropout import held_out_cells
from skbilevel.estimators.imputation_base import Base, FittedBase, GaussianBase, MeanBase, fit_base
from skbilevel.estimators.label_base import LabelFit, fit_label_base, folds_of_labels
from skbilevel.estimators.linear_fit import Table
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.estimators.shadow_fit import TiltFit, fit_tilt
from skbilevel.estimators.shadow_targets import is_too_wide
from skbilevel.estimators.teacher_fit import (
    FARTHEST,
    Lessons,
    copies_of,
    new_teacher,
    pretrained,
    teacher_inputs,
)
from skbilevel.estimators.tilted_rows import tilt_shift
from skbilevel.models.masked_autoencoder import MaskedAutoencoder
from skbilevel.models.student import Student
from skbilevel.objectives.bilevel_imputation import CLASSES, NUMBERS, Kind, Rows
from skbilevel.solvers.teacher_student import Alternation

# Labels to stop the teacher's label by; with fewer labels it stays at its base.
_SHARE_OF_LABELS, _FEWEST_LABELS = 0.1, 20


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
    told : LabelFit or None
        None without labels, as is the committee.
    committee : Committee or None
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
    told: LabelFit | None
    committee: Committee | None
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
    roles = None if target is None else _roles(target, settings, rng)
    known = _known(target, roles)
    tilt = _tilt(Z, known, normal, settings, rng)
    filled = base.completed(Z)
    shift = np.zeros(Z.shape) if tilt is None else tilt_shift(Z, normal, tilt.tilt)
    told = _told(base, np.clip(filled + shift, -FARTHEST, FARTHEST), ~observed, known, rng)
    room = _classroom(Z, filled, shift, target, known, told, fitted, hidden, settings, rng)
    parts = _Parts(table, base, normal, tilt, told, room, settings)
    history = pretrained(room.teacher, room.lessons, settings.pretraining_steps, rng)
    selected = "base" if _corrects_nothing(room.teacher) else "mae"
    students: list[Student] = []
    if roles is not None:
        moved = moved_teacher(
            room,
            OUTER[settings.outer],
            roles,
            settings.warm_up_steps,
            settings.alternation,
            rng,
            lambda now, students: on_step(lambda: parts.fitted("bilevel", now, sole(students()))),
        )
        selected = "bilevel" if moved.is_kept else selected
        history, students = history | moved.history, moved.students
    return parts.fitted(selected, history, parts.committee(students, rng))


@dataclass(frozen=True)
class _Parts:
    """What stays the same while the teacher moves."""

    table: Table
    base: Base
    normal: LinearModel
    tilt: TiltFit | None
    told: LabelFit | None
    room: Classroom
    settings: Settings

    def fitted(
        self, selected: str, history: dict[str, list[float]], committee: Committee | None
    ) -> BilevelFit:
        """Everything, with the teacher as it is."""
        return BilevelFit(
            self.table,
            self.base,
            self.normal,
            self.tilt,
            self.room.teacher,
            self.told,
            committee,
            selected,
            history,
            # Students of the loop itself; others have learnt from incomplete rows.
            OUTER[self.settings.outer].judges_imputed
            and committee is not None
            and not committee.raw_students,
            self.settings.hidden,
            self.settings.student_hidden,
        )

    def committee(self, students: list[Student], rng: np.random.RandomState) -> Committee | None:
        """Of students that are there already, or of new ones; none without labels."""
        if self.told is None or students:
            return sole(students) if students else None
        settings = self.settings
        return trained_committee(
            self.room.lectures(),
            self.told,
            settings.n_students,
            settings.student_hidden,
            settings.student_steps,
            rng,
        )


def _roles(target: Target, settings: Settings, rng: np.random.RandomState) -> Roles | None:
    """Of the rows in the outer loop, or None if there is no loop."""
    if settings.alternation.weight == 0 or settings.alternation.n_iter == 0:
        return None
    takes_others = settings.pseudo_label_weight > 0
    return roles_of(target.labelled, OUTER[settings.outer], settings.n_folds, takes_others, rng)


def _known(target: Target | None, roles: Roles | None) -> Target | None:
    """The target without the labels of rows that only judge."""
    if target is None or roles is None:
        return target
    labelled = target.labelled.copy()
    labelled[roles.aside] = False
    return replace(target, labelled=labelled)


def _tilt(
    Z: np.ndarray,
    target: Target | None,
    normal: LinearModel,
    settings: Settings,
    rng: np.random.RandomState,
) -> TiltFit | None:
    if settings.tilt is None or (settings.tilt == "y" and target is None):
        return None
    if settings.tilt != "y" and is_too_wide(*Z.shape):
        warn_user(
            f"{Z.shape[1]} columns are too many to tell by each other which values are missing "
            "because of themselves: they are imputed as missing at random, as with tilt=None."
        )
    y = None
    if target is not None and settings.tilt != "shadow":
        y = np.where(target.labelled[:, np.newaxis], target.values, np.nan)
    return fit_tilt(Z, normal.parameters, rng, y=y, targets=settings.tilt)


def _told(
    base: Base,
    filled: np.ndarray,
    missing: np.ndarray,
    known: Target | None,
    rng: np.random.RandomState,
) -> LabelFit | None:
    if known is None:
        return None
    # What imputes by lines predicts by them.
    has_trees = not isinstance(base, GaussianBase | MeanBase)
    return fit_label_base(filled, missing, known, folds_of_labels(known), has_trees, rng)


def _classroom(
    Z: np.ndarray,
    filled: np.ndarray,
    shift: np.ndarray,
    target: Target | None,
    known: Target | None,
    told: LabelFit | None,
    fitted: FittedBase,
    hidden: np.ndarray,
    settings: Settings,
    rng: np.random.RandomState,
) -> Classroom:
    inputs = teacher_inputs(Z, filled)
    whole = no_target(len(Z)) if target is None else target
    learnt, held_out = _labels_to_stop_by((whole if known is None else known).labelled, rng)
    outputs = whole.values if told is None else told.outputs
    rows = Rows(
        inputs.values,
        inputs.mask,
        torch.from_numpy(whole.values),
        torch.from_numpy(whole.labelled.astype(np.float64)),
    )
    lessons = Lessons(
        copies_of(Z, fitted.blind, hidden, fitted.odds, settings.mask_ratio, rng),
        kind_of(target),
        rows,
        torch.from_numpy(outputs),
        learnt,
        held_out,
    )
    teacher = new_teacher(Z.shape[1], outputs.shape[1], settings.hidden, rng.randint(2**31 - 1))
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
    index, held_out = np.flatnonzero(labelled), np.zeros(len(labelled))
    if len(index) < _FEWEST_LABELS:
        return torch.from_numpy(np.zeros(len(labelled))), torch.from_numpy(held_out)
    held_out[rng.permutation(index)[: int(_SHARE_OF_LABELS * len(index))]] = 1.0
    return torch.from_numpy(labelled - held_out), torch.from_numpy(held_out)


def _corrects_nothing(teacher: MaskedAutoencoder) -> bool:
    last = list(teacher.parameters())[-2:]
    return not any(bool(part.any()) for part in last)
