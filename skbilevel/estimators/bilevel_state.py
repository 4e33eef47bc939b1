"""A fitted bilevel imputer as arrays and plain Python, and as it imputes and predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skbilevel.estimators.bilevel_fit import BilevelFit
from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.committee import Committee, blended
from skbilevel.estimators.imputation_base import Base, StackBase, base_of, base_state
from skbilevel.estimators.label_base import LabelBase
from skbilevel.estimators.latent_state import linear_of, linear_state
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.estimators.shadow_fit import TiltFit
from skbilevel.estimators.student_fit import new_student
from skbilevel.estimators.teacher_fit import FARTHEST, TeacherInputs, new_teacher, teacher_inputs
from skbilevel.estimators.tilted_rows import tilt_shift
from skbilevel.estimators.tree_imputation import Forest
from skbilevel.models.masked_autoencoder import MaskedAutoencoder
from skbilevel.models.student import Student
from skbilevel.numerics.parameters import from_numpy, to_numpy
from skbilevel.objectives.bilevel_imputation import CLASSES, NUMBERS

# Only shapes matter of what stored weights are loaded into.
_ANY_SEED = 0
OUTCOME = "y"
_KINDS = ("students", "raw_students")


@dataclass(frozen=True)
class BilevelModel:
    """What imputes and predicts; rows are in the units of the data.

    Attributes
    ----------
    center, scale : ndarray of shape (d,)
    base : Base
    normal : LinearModel
    tilt : ndarray of shape (d,)
    teacher : MaskedAutoencoder or None
        None where it corrects nothing.
    label_base : LabelBase or None
    committee : Committee or None
    predicts_imputed : bool
        Whether the students expect rows that the teacher has completed.
    """

    center: np.ndarray
    scale: np.ndarray
    base: Base
    normal: LinearModel
    tilt: np.ndarray
    teacher: MaskedAutoencoder | None
    label_base: LabelBase | None
    committee: Committee | None
    predicts_imputed: bool

    def standardized(self, rows: np.ndarray) -> np.ndarray:
        """(rows - center) / scale."""
        return (np.asarray(rows, dtype=np.float64) - self.center) / self.scale

    def completed(self, rows: np.ndarray) -> np.ndarray:
        """Rows (b, d) with NaN at missing cells, complete."""
        return self._imputed(self.standardized(rows)) * self.scale + self.center

    def _imputed(self, Z: np.ndarray) -> np.ndarray:
        """Standardised rows, complete."""
        filled, corrections = self._parts(Z)
        return filled + corrections[0]

    @torch.no_grad()
    def _parts(self, Z: np.ndarray) -> tuple[np.ndarray, tuple[Any, Any]]:
        """Tilted base, (b, d), and the teacher's corrections of it and of the label."""
        base = self.base.completed(Z)
        filled = self._tilted(Z, base)
        if self.teacher is None:
            return filled, (0.0, 0.0)
        features, outputs = self.teacher(*teacher_inputs(Z, base))
        return filled, (features.numpy(), outputs.numpy())

    def _tilted(self, Z: np.ndarray, base: np.ndarray) -> np.ndarray:
        return base + tilt_shift(Z, self.normal, self.tilt)

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """T_y of rows (b, d): numbers, or logits, (b, q)."""
        assert self.label_base is not None
        Z = self.standardized(rows)
        filled, corrections = self._parts(Z)
        return self._base_outputs(Z, filled) + corrections[1]

    def _base_outputs(self, Z: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """Of T_y before any correction, from the tilted base."""
        assert self.label_base is not None
        return self.label_base.outputs(np.clip(filled, -FARTHEST, FARTHEST), np.isnan(Z))

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """Of the committee for rows (b, d), as they are: numbers, or log shares of classes."""
        assert self.label_base is not None and self.committee is not None
        Z = self.standardized(rows)
        inputs = self._student_inputs(Z)
        kind = CLASSES if self.label_base.is_class else NUMBERS

        def of_base() -> np.ndarray:
            outputs = self._base_outputs(Z, self._tilted(Z, self.base.completed(Z)))
            return kind.labels(torch.from_numpy(outputs)).numpy()

        blend = blended(self.committee, kind, inputs.values, inputs.mask, of_base)
        return np.log(blend) if self.label_base.is_class else blend

    def _student_inputs(self, Z: np.ndarray) -> TeacherInputs:
        shown = self._imputed(Z) if self.predicts_imputed else Z
        return teacher_inputs(shown, np.zeros_like(Z))


def fitted_attributes(
    fit: BilevelFit, target: Target | None, names: list[str], is_fitted: np.ndarray, seed: int
) -> dict[str, Any]:
    """All attributes of the estimator that follow from a fit.

    ``names`` (d,) are its columns, and ``is_fitted`` says which of the features they are.
    """
    tilt = np.zeros(len(is_fitted))
    if fit.tilt is not None:
        tilt[is_fitted] = fit.tilt.tilt
    attributes: dict[str, Any] = {
        "selected_": fit.selected,
        "history_": {name: list(values) for name, values in fit.history.items()},
        "n_iter_": max(1, len(fit.history.get("outer", []))),
        "tilt_": tilt,
        "tilt_accepted_": fit.tilt is not None and fit.tilt.is_accepted,
        "shadow_gain_": _gains(fit.tilt, names),
        "_seed": seed,
        "_model": model_state(fit),
    }
    if isinstance(fit.base, StackBase):
        attributes["stack_weights_"] = fit.base.weights
    if target is not None and fit.committee is not None:
        attributes |= {
            "prediction_shares_": dict(
                zip((*_KINDS, "label_base"), map(float, fit.committee.shares), strict=True)
            ),
            "target_type_": target.kind,
            "_target": {"center": target.center, "scale": target.scale},
        }
        if target.classes is not None:
            attributes["classes_"] = target.classes
    return attributes


def _gains(tilt: TiltFit | None, names: list[str]) -> dict[str, Any]:
    if tilt is None:
        return {}
    return {
        "target": [OUTCOME if column < 0 else names[column] for column in tilt.columns],
        "tilt": tilt.gains,
        "indicators": tilt.free_gains,
        "counted": tilt.kept,
    }


def model_state(fit: BilevelFit) -> dict[str, Any]:
    """Of everything that imputes and predicts."""
    return {
        "center": fit.table.center,
        "scale": fit.table.scale,
        "base": base_state(fit.base),
        "normal": linear_state(fit.normal),
        "tilt": None if fit.tilt is None else fit.tilt.tilt,
        "teacher": None if fit.selected == "base" else to_numpy(fit.teacher),
        "label_base": None if fit.told is None else label_base_state(fit.told.base),
        "committee": None if fit.committee is None else committee_state(fit.committee),
        "hidden": list(fit.hidden),
        "student_hidden": list(fit.student_hidden),
        "predicts_imputed": fit.predicts_imputed,
    }


def label_base_state(base: LabelBase) -> dict[str, Any]:
    """Arrays and plain Python."""
    forest = None if base.forest is None else dict(base.forest._asdict())
    return {**base._asdict(), "forest": forest}


def label_base_of(state: dict[str, Any]) -> LabelBase:
    """The inverse of `label_base_state`."""
    forest = None if state["forest"] is None else Forest(**state["forest"])
    return LabelBase(**{**state, "forest": forest})


def committee_state(committee: Committee) -> dict[str, Any]:
    """Arrays and plain Python."""
    return {
        "students": [to_numpy(student) for student in committee.students],
        "raw_students": [to_numpy(student) for student in committee.raw_students],
        "shares": committee.shares,
    }


def model_of(state: dict[str, Any]) -> BilevelModel:
    """The inverse of `model_state`."""
    hidden, student_hidden = state["hidden"], state["student_hidden"]
    n_columns = len(state["center"])
    label_base = None if state["label_base"] is None else label_base_of(state["label_base"])
    n_targets = 0 if label_base is None else len(label_base.intercept)
    teacher = None
    if state["teacher"] is not None:
        teacher = new_teacher(n_columns, n_targets, hidden, _ANY_SEED)
        from_numpy(teacher, state["teacher"])
    committee = state["committee"]
    if committee is not None:

        def student_of(arrays: dict[str, np.ndarray]) -> Student:
            student = new_student(n_columns, n_targets, student_hidden, _ANY_SEED)
            from_numpy(student, arrays)
            return student

        students, raw = ([student_of(each) for each in committee[kind]] for kind in _KINDS)
        committee = Committee(students, raw, committee["shares"])
    return BilevelModel(
        state["center"],
        state["scale"],
        base_of(state["base"]),
        linear_of(state["normal"]),
        np.zeros(n_columns) if state["tilt"] is None else state["tilt"],
        teacher,
        label_base,
        committee,
        state["predicts_imputed"],
    )
