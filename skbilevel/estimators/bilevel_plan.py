"""What a bilevel imputer was told, checked."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from skbilevel._sklearn import (
    ConvergenceWarning,
    HasMethods,
    Interval,
    StrOptions,
    warn_user,
)
from skbilevel.estimators.bilevel_fit import Settings
from skbilevel.estimators.bilevel_target import TYPES
from skbilevel.estimators.bilevel_training import OUTER
from skbilevel.estimators.imputation_base import BASES
from skbilevel.solvers.teacher_student import ADJOINTS, Alternation

_AT_LEAST_0 = Interval(Integral, 0, None, closed="left")
_AT_LEAST_1 = Interval(Integral, 1, None, closed="left")
_FROM_0 = Interval(Real, 0, None, closed="left")
_ABOVE_0 = Interval(Real, 0, None, closed="neither")
_A_RATE = Interval(Real, 0, 1, closed="left")

_WARM_UP = 60
# Loss of students that have learnt nothing for certain.
_DIVERGED = 10.0

CONSTRAINTS: dict[str, list[Any]] = {
    "base": [StrOptions(set(BASES)), HasMethods(["fit", "transform"])],
    "tilt": [StrOptions({"shadow", "y", "both"}), None],
    "outer": [StrOptions(set(OUTER))],
    "n_folds": [Interval(Integral, 2, None, closed="left")],
    "bilevel_weight": [_FROM_0],
    "curvature": [StrOptions(set(ADJOINTS))],
    "cg_iter": [_AT_LEAST_1],
    "max_iter": [_AT_LEAST_0],
    "inner_iter": [_AT_LEAST_1],
    "pretrain_iter": [_AT_LEAST_0],
    "student_iter": [StrOptions({"auto"}), _AT_LEAST_1],
    "n_students": [_AT_LEAST_1],
    "hidden_layer_sizes": ["array-like", _AT_LEAST_1],
    "student_hidden_layer_sizes": ["array-like", _AT_LEAST_1],
    "mask_ratio": [StrOptions({"mix"}), Interval(Real, 0, 1, closed="neither")],
    "feature_dropout": [StrOptions({"empirical"}), _A_RATE],
    "pseudo_label_weight": [_FROM_0],
    "l2": [_FROM_0],
    "learning_rate": [_ABOVE_0],
    "student_learning_rate": [_ABOVE_0],
    "target_type": [StrOptions({"auto", *TYPES})],
    "missing_label": [None, Real, str],
    "cross_fit": [None, Interval(Integral, 2, None, closed="left")],
    "random_state": ["random_state"],
}


def sizes(layers: int | Sequence[int]) -> tuple[int, ...]:
    """Widths of hidden layers."""
    return tuple(int(size) for size in np.atleast_1d(np.asarray(layers, dtype=np.int64)))


def _checked_sizes(estimator: Any, name: str) -> tuple[int, ...]:
    widths = sizes(getattr(estimator, name))
    if any(width < 1 for width in widths):
        raise ValueError(f"{name} must be positive widths, got {getattr(estimator, name)!r}.")
    return widths


def settings_of(estimator: Any, n_rows: int) -> Settings:
    """The settings of a fit to so many rows, from the parameters of an estimator."""
    if isinstance(estimator.base, type):
        raise ValueError(f"base must be an imputer, not a class: {estimator.base.__name__}().")
    if estimator.curvature == "exact" and estimator.l2 == 0:
        raise ValueError("curvature='exact' needs l2 > 0, or its matrix can be singular.")
    if estimator.cross_fit is not None and estimator.cross_fit > n_rows:
        raise ValueError(f"cross_fit={estimator.cross_fit} is more than the {n_rows} rows of X.")
    if estimator.outer.startswith("imputed"):
        warn_user(
            f"outer={estimator.outer!r} judges the teacher on rows that it has imputed, into "
            "which it can write their labels. It is there to show that leak; use 'crossfit'."
        )
    return Settings(
        base=estimator.base,
        tilt=estimator.tilt,
        outer=estimator.outer,
        n_folds=estimator.n_folds,
        hidden=_checked_sizes(estimator, "hidden_layer_sizes"),
        student_hidden=_checked_sizes(estimator, "student_hidden_layer_sizes"),
        mask_ratio=estimator.mask_ratio,
        feature_dropout=estimator.feature_dropout,
        pseudo_label_weight=float(estimator.pseudo_label_weight),
        ridge=float(estimator.l2),
        n_students=estimator.n_students,
        pretraining_steps=estimator.pretrain_iter,
        warm_up_steps=_warm_up_steps(estimator),
        student_steps=estimator.student_iter,
        alternation=Alternation(
            estimator.max_iter,
            estimator.inner_iter,
            estimator.learning_rate,
            estimator.student_learning_rate,
            float(estimator.bilevel_weight),
            curvature=estimator.curvature,
            n_products=estimator.cg_iter,
        ),
    )


def _warm_up_steps(estimator: Any) -> int:
    """Of a student before the teacher moves: a third of what its training takes by itself."""
    return _WARM_UP if estimator.student_iter == "auto" else int(estimator.student_iter) // 3


def warn_of_the_loop(history: dict[str, list[float]], *, is_kept: bool) -> None:
    """Warn of students that have diverged, if what they taught is kept, and of linear systems that
    were not solved."""
    if not history.get("inner"):
        return
    # Of a standardised number a constant has the loss 1, of classes the log of their number.
    if is_kept and history["inner"][-1] > _DIVERGED:
        warn_user(
            f"The students have diverged: a loss of {history['inner'][-1]:.3g}, where a constant "
            "has about 1; lower student_learning_rate or learning_rate.",
            ConvergenceWarning,
        )
    residual = float(np.median(history["cg_residual"]))
    if residual > 1:
        warn_user(
            f"Conjugate gradients left a residual of {residual:.2g} in most iterations, more than "
            "they began with; raise cg_iter or l2.",
            ConvergenceWarning,
        )
