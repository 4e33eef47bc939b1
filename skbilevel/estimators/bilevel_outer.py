"""What the outer loop makes of a teacher, and whether rows that took no part confirm it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.bilevel_training import Classroom, Roles, Way, taught
from skbilevel.estimators.student_fit import trained_students
from skbilevel.models.student import Student
from skbilevel.numerics.parameters import from_numpy, to_numpy
from skbilevel.solvers.teacher_student import Alternation

# The gain of the confirming rows has to be this many standard errors, and held-out cells may be
# imputed so much worse.
_STANDARD_ERRORS, _WORSE_CELLS = 2.0, 1.01
_STEPS_TO_CONFIRM = 100


class Moved(NamedTuple):
    """What the outer loop has left.

    Attributes
    ----------
    is_kept : bool
        Whether the teacher is another than before.
    history : dict of str to list of float
    students : list of Student
        Of the loop, if they are to predict; or else none.
    """

    is_kept: bool
    history: dict[str, list[float]]
    students: list[Student]


def moved_teacher(
    room: Classroom,
    way: Way,
    roles: Roles,
    n_warm_up: int,
    settings: Alternation,
    rng: np.random.RandomState,
    report: Callable[[dict[str, list[float]], Callable[[], list[Student]]], bool],
) -> Moved:
    """Run the outer loop; what it made of the teacher stays if it is wanted as it is, or if the
    confirming rows gain by it.

    ``report(history, students) -> stop`` is told of every iteration; ``students()`` are those of
    that moment.
    """
    state, seed = to_numpy(room.teacher), rng.randint(2**31 - 1)
    before = _judged(room, roles, seed) if way.is_robust else None
    # The teacher's label must not learn from what is to judge it.
    learnt = room.lessons.learnt.clone()
    learnt[torch.from_numpy(roles.confirming)] = 0.0
    result = taught(
        replace(room, lessons=replace(room.lessons, learnt=learnt)),
        way,
        roles.splits,
        n_warm_up,
        settings,
        rng,
        lambda history, students: report(dict(history), lambda: _modules(room, students)),
    )
    if before is None:
        return Moved(True, result.history, _modules(room, result.inner))
    is_kept = _is_confirmed(before, _judged(room, roles, seed))
    if not is_kept:
        from_numpy(room.teacher, state)
    return Moved(is_kept, result.history, [])


def _modules(room: Classroom, students: list[Tensor]) -> list[Student]:
    return [room.student_of(theta) for theta in students]


class _Judgement(NamedTuple):
    """Of a teacher: loss of the confirming rows, and mean squared error of held-out cells."""

    losses: np.ndarray
    cells: float


def _judged(room: Classroom, roles: Roles, seed: int) -> _Judgement:
    """By a student that was trained without the confirming rows."""
    lessons, rng = room.lessons, np.random.RandomState(seed)
    index = np.setdiff1d(np.arange(len(room.observed)), roles.confirming)
    lectures = room.lectures().at(torch.from_numpy(index))
    (student,) = trained_students([lectures], room.hidden, _STEPS_TO_CONFIRM, rng)
    rows = lessons.rows.at(torch.from_numpy(roles.confirming))
    with torch.no_grad():
        losses = lessons.kind.row_loss(student(rows.values, rows.mask), rows.targets)
        cells, _ = lessons.held_out_errors(room.teacher)
    return _Judgement(losses.numpy(), float(cells.sum()))


def _is_confirmed(before: _Judgement, after: _Judgement) -> bool:
    gained = before.losses - after.losses
    error = gained.std() / np.sqrt(len(gained))
    is_better = bool(gained.mean() > _STANDARD_ERRORS * error)
    return is_better and after.cells <= _WORSE_CELLS * before.cells
