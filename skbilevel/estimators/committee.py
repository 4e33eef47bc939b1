"""Who predicts the target, and how much each is listened to.

Three kinds of predictors err in different ways: students of the teacher, who have seen all rows
and believe it; students of the labelled rows as they are, who believe nothing; and the base of
T_y on imputed rows, which knows most with few labels. Every student does without a fold of the
labels, and so does the base for that purpose: what they say of the fold tells what each is worth.
(What the teacher itself has learnt of all labels reaches a student by other rows than the fold's.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from skbilevel.estimators.label_base import LabelFit
from skbilevel.estimators.student_fit import Lectures, trained_students
from skbilevel.models.student import Student
from skbilevel.objectives.bilevel_imputation import Kind

# Shares of students of the teacher, of raw rows, and of the base, before anything is known. They
# count as much as so many labels, and in the end so much beside what was learnt: rows to come are
# not quite like those at hand, and a mean of predictors that err differently is hard to beat.
_PRIOR, _PRIOR_LABELS, _KEPT = np.array([0.4, 0.2, 0.4]), 80.0, 2 / 3
# So much more than a row weighs that the shares sum to 1.
_EXACT = 1e4


class Committee(NamedTuple):
    """Students, and what each kind counts beside the base of T_y.

    Attributes
    ----------
    students, raw_students : list of Student
        Of the teacher, and of the rows as they are.
    shares : ndarray of shape (3,)
        Of the students of the teacher, those of raw rows, and the base; they sum to 1.
    """

    students: list[Student]
    raw_students: list[Student]
    shares: np.ndarray


def sole(students: list[Student]) -> Committee:
    """Students of the teacher alone."""
    return Committee(students, [], np.array([1.0, 0.0, 0.0]))


def blended(
    committee: Committee,
    kind: Kind,
    values: Tensor,
    mask: Tensor,
    of_base: Callable[[], np.ndarray],
) -> np.ndarray:
    """What the committee says of rows (n, d): numbers, or shares of classes, (n, q).

    ``of_base()`` is what the base says of them; who has no share is not asked.
    """
    ask = (
        lambda: _mean(committee.students, kind, values, mask),
        lambda: _mean(committee.raw_students, kind, values, mask),
        of_base,
    )
    return np.sum([n * told() for n, told in zip(committee.shares, ask, strict=True) if n], axis=0)


@torch.no_grad()
def _mean(students: list[Student], kind: Kind, values: Tensor, mask: Tensor) -> np.ndarray:
    each = torch.stack([kind.labels(student(values, mask)) for student in students])
    return each.mean(dim=0).numpy()


def trained_committee(
    lectures: Lectures,
    told: LabelFit,
    n_students: int,
    hidden: tuple[int, ...],
    n_steps: int | str,
    rng: np.random.RandomState,
) -> Committee:
    """Train so many students of either kind, and weigh what they and the base have to say."""
    absent = np.arange(n_students) % max(len(told.without), 1)
    each = [lectures.without(told, fold) for fold in absent.tolist()]
    each += [part.raw() for part in each]
    students = trained_students(each, hidden, n_steps, rng)
    shares = best_shares(*_unseen(students, absent, lectures, told))
    return Committee(students[:n_students], students[n_students:], shares)


def _unseen(
    students: list[Student], absent: np.ndarray, lectures: Lectures, told: LabelFit
) -> tuple[np.ndarray, np.ndarray]:
    """What each kind says of the rows that it has not seen, (3, m, q), and their labels (m, q)."""
    labels_of = lectures.kind.labels
    has_not_seen = absent[:, np.newaxis] == told.folds
    index = np.flatnonzero(has_not_seen.any(axis=0))
    listened = has_not_seen[:, index] / has_not_seen[:, index].sum(axis=0)
    rows = lectures.rows.at(torch.from_numpy(index))
    with torch.no_grad():
        each = torch.stack([labels_of(student(rows.values, rows.mask)) for student in students])
        base = labels_of(torch.from_numpy(told.outputs[index])).numpy()
    kinds = each.numpy().reshape(2, len(absent), *base.shape)
    outputs = np.concatenate([np.einsum("skmq,km->smq", kinds, listened), base[np.newaxis]])
    return outputs, rows.targets.numpy()


def best_shares(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Shares of predictors: two thirds of a prior, .4, .2 and .4, and for the rest those whose
    weighted mean is closest to the labels.

    These minimise the sum of squares of ``labels - shares @ outputs`` over non-negative shares
    that sum to 1, plus that of ``shares - prior`` times eighty times the mean variance between
    predictors of a row: where they say the same, nothing is learnt of them.

    Parameters
    ----------
    outputs : ndarray of shape (3, m, q)
        Numbers, or shares of classes.
    labels : ndarray of shape (m, q)

    Returns
    -------
    ndarray of shape (3,)
    """
    spread = outputs.var(axis=0).sum(axis=1).mean() if labels.size else 0.0
    prior = np.sqrt(_PRIOR_LABELS * (spread or 1.0))
    matrix = np.vstack([outputs.reshape(3, -1).T, prior * np.eye(3), np.full((1, 3), _EXACT)])
    shares, _ = nnls(matrix, np.concatenate([labels.ravel(), prior * _PRIOR, [_EXACT]]))
    return _KEPT * _PRIOR + (1 - _KEPT) * shares / shares.sum()
