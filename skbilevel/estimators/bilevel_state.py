"""A fitted bilevel imputer as arrays and plain Python, and as it imputes and predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skbilevel.estimators.bilevel_fit import BilevelFit
from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.imputation_base import Base, StackBase, base_of, base_state
from skbilevel.estimators.label_base import LabelBase
from skbilevel.estimators.latent_state import linear_of, linear_state
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.estimators.shadow_fit import TiltFit
from skbilevel.estimators.student_fit import new_student
from skbilevel.estimators.teacher_fit import FARTHEST, new_teacher, teacher_inputs
from skbilevel.estimators.tilted_rows import tilt_shift
from skbilevel.estimators.tree_imputation import Forest
from skbilevel.models.masked_autoencoder import MaskedAutoencoder
from skbilevel.models.student import Student
from skbilevel.numerics.parameters import from_numpy, to_numpy

# Only shapes matter of what stored weights are loaded into.
_ANY_SEED = 0
OUTCOME = "y"


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
    students : list of Student
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
    students: list[Student]
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
        filled = base + tilt_shift(Z, self.normal, self.tilt)
        if self.teacher is None:
            return filled, (0.0, 0.0)
        features, outputs = self.teacher(*teacher_inputs(Z, base))
        return filled, (features.numpy(), outputs.numpy())

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """T_y of rows (b, d): numbers, or logits, (b, q)."""
        assert self.label_base is not None
        Z = self.standardized(rows)
        filled, corrections = self._parts(Z)
        features = np.clip(filled, -FARTHEST, FARTHEST)
        return self.label_base.outputs(features, np.isnan(Z)) + corrections[1]

    @torch.no_grad()
    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """Mean output of the students for rows (b, d), as they are: numbers, or log shares."""
        Z = self.standardized(rows)
        if self.predicts_imputed:
            Z = self._imputed(Z)
        inputs = teacher_inputs(Z, np.zeros_like(Z))
        each = torch.stack([student(inputs.values, inputs.mask) for student in self.students])
        assert self.label_base is not None
        if self.label_base.is_class:
            return each.softmax(dim=2).mean(dim=0).log().numpy()
        return each.mean(dim=0).numpy()


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
    if target is not None:
        attributes |= {
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
    label_base = None if fit.label_base is None else label_base_state(fit.label_base)
    return {
        "center": fit.table.center,
        "scale": fit.table.scale,
        "base": base_state(fit.base),
        "normal": linear_state(fit.normal),
        "tilt": None if fit.tilt is None else fit.tilt.tilt,
        "teacher": None if fit.selected == "base" else to_numpy(fit.teacher),
        "label_base": label_base,
        "students": [to_numpy(student) for student in fit.students],
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
    students = [
        new_student(n_columns, n_targets, student_hidden, _ANY_SEED) for _ in state["students"]
    ]
    for student, arrays in zip(students, state["students"], strict=True):
        from_numpy(student, arrays)
    return BilevelModel(
        state["center"],
        state["scale"],
        base_of(state["base"]),
        linear_of(state["normal"]),
        np.zeros(n_columns) if state["tilt"] is None else state["tilt"],
        teacher,
        label_base,
        students,
        state["predicts_imputed"],
    )
