"""What the outer loop leaves of a teacher, and who has a say in it."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skbilevel.estimators import bilevel_fit, bilevel_outer
from skbilevel.estimators.bilevel_outer import moved_teacher
from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.bilevel_training import OUTER, roles_of
from skbilevel.numerics.parameters import flatten
from skbilevel.solvers.teacher_student import Alternation
from tests.estimators.test_bilevel_training import classroom, stream


def moved(room, way="crossfit", report=lambda history, students: False, **settings):
    labelled = room.lessons.rows.labelled.numpy() > 0
    roles = roles_of(labelled, OUTER[way], 3, True, stream())
    rule = Alternation(**{"n_iter": 4, "teacher_rate": 0.05, **settings})
    return roles, moved_teacher(room, OUTER[way], roles, 3, rule, stream(1), report)


@pytest.mark.parametrize("verdict", [False, True])
def test_teacher_stays_only_if_it_is_confirmed(monkeypatch, verdict):
    monkeypatch.setattr(bilevel_outer, "_is_confirmed", lambda before, after: verdict)
    room = classroom()
    before = flatten(room.teacher)
    _, result = moved(room)
    assert result.is_kept is verdict
    assert torch.equal(flatten(room.teacher), before) is not verdict
    assert result.students == []
    assert len(result.history["outer"]) == 4


@pytest.mark.parametrize("way", ["holdout", "imputed", "imputed_direct"])
def test_other_ways_keep_the_teacher_and_its_student(way):
    room = classroom()
    before = flatten(room.teacher)
    _, result = moved(room, way)
    assert result.is_kept
    assert len(result.students) == 1
    assert not torch.equal(flatten(room.teacher), before)


def test_lessons_are_left_as_they_were():
    room = classroom()
    learnt = room.lessons.learnt.fill_(1.0).clone()
    moved(room)
    assert torch.equal(room.lessons.learnt, learnt)


def test_labels_that_confirm_teach_the_teacher_nothing_in_the_loop(monkeypatch):
    seen = []
    real = bilevel_outer.taught

    def spy(room, *arguments):
        seen.append(room.lessons.learnt.clone())
        return real(room, *arguments)

    monkeypatch.setattr(bilevel_outer, "taught", spy)
    room = classroom()
    room.lessons.learnt.fill_(1.0)
    roles, _ = moved(room)
    expected = np.ones(60)
    expected[roles.confirming] = 0.0
    assert_allclose(seen[0].numpy(), expected)
    assert expected.sum() == 52


def test_every_iteration_is_reported_with_its_students():
    seen = []

    def report(history, students):
        seen.append((len(history["inner"]), len(students())))
        return len(seen) == 2

    _, result = moved(classroom(), report=report)
    assert seen == [(1, 3), (2, 3)]
    assert len(result.history["inner"]) == 2


@pytest.mark.parametrize(
    ("gained", "cells", "verdict"),
    [(0.5, 1.0, True), (0.5, 1.02, False), (0.1, 1.0, False), (-0.5, 0.5, False)],
)
def test_gain_of_two_standard_errors_confirms_unless_cells_are_worse(gained, cells, verdict):
    """Nine rows whose gains have a standard deviation of 1/2: an error of 1/6 each."""
    scatter = np.array([1, -1, 1, -1, 1, -1, 1, -1, 0]) * 0.5 * np.sqrt(9 / 8)
    before = bilevel_outer._Judgement(np.full(9, 3.0), 1.0)
    after = bilevel_outer._Judgement(3.0 - gained - scatter, cells)
    assert bilevel_outer._is_confirmed(before, after) is verdict


def test_labels_aside_are_hidden_from_everything_but_the_loop():
    labelled = np.arange(50) < 40
    values = np.arange(50.0)[:, np.newaxis]
    target = Target("continuous", values, labelled, 0.0, 1.0, None)
    roles = roles_of(labelled, OUTER["holdout"], 3, True, stream())
    known = bilevel_fit._known(target, roles)
    assert not known.labelled[roles.aside].any()
    assert known.labelled.sum() == 40 - len(roles.aside) == 28
    assert target.labelled.sum() == 40
    assert bilevel_fit._known(target, None) is target
