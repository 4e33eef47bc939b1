"""Which rows the students learn from, and which judge the teacher."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from skbilevel.estimators import bilevel_training
from skbilevel.estimators.bilevel_training import OUTER, Classroom, roles_of, taught
from skbilevel.estimators.imputation_base import MeanBase
from skbilevel.estimators.teacher_fit import Lessons, copies_of, new_teacher, teacher_inputs
from skbilevel.numerics.parameters import flatten
from skbilevel.objectives.bilevel_imputation import NUMBERS, Rows
from skbilevel.solvers.teacher_student import Alternation
from tests.reference import bilevel_imputation as reference

N, D = 60, 3


def stream(seed=0):
    return np.random.RandomState(seed)


def classroom(n_labelled=40, dropout="empirical", pseudo_label_weight=0.5, seed=0):
    """Rows with gaps, the first of them labelled, and a teacher that has learnt something."""
    rng = np.random.default_rng(seed)
    Z = np.where(rng.random((N, D)) < 0.3, np.nan, rng.normal(size=(N, D)))
    Z[np.isnan(Z).all(axis=1), 0] = 1.0
    labelled = 1.0 * (np.arange(N) < n_labelled)
    targets = np.nan_to_num(Z) @ rng.normal(size=(D, 1)) * labelled[:, None]
    inputs = teacher_inputs(Z, np.nan_to_num(Z))
    label_base, shift = rng.normal(size=(N, 1)), np.where(np.isnan(Z), 0.2, 0.0)
    targets, labelled, label_base, shift = map(
        torch.from_numpy, (targets, labelled, label_base, shift)
    )
    rows = Rows(inputs.values, inputs.mask, targets, labelled)
    copies = copies_of(
        Z, MeanBase(), np.zeros(Z.shape, dtype=bool), np.ones(Z.shape), "mix", stream(seed)
    )
    lessons = Lessons(copies, NUMBERS, rows, label_base, 0 * labelled, 0 * labelled)
    teacher = new_teacher(D, 1, (4,), 0)
    last = teacher.layers[-1].weight
    torch.nn.init.normal_(last, std=0.3, generator=torch.Generator().manual_seed(1))
    return Classroom(
        teacher, lessons, inputs, shift, ~np.isnan(Z), dropout, (4,), pseudo_label_weight, 0.01
    )


def sets(splits):
    return [(set(each.learnt.tolist()), set(each.judged.tolist())) for each in splits]


# Splits


@pytest.mark.parametrize("n_folds", [2, 3, 7])
def test_folds_judge_every_label_once_and_teach_all_else(n_folds):
    labelled, others = np.arange(0, 40, 2), np.arange(1, 21, 2)
    splits = sets(OUTER["crossfit"].splits(labelled, others, n_folds, stream()))
    assert len(splits) == n_folds
    assert sorted(row for _, judged in splits for row in judged) == labelled.tolist()
    for learnt, judged in splits:
        assert learnt == set(labelled) - judged | set(others)
        assert abs(len(judged) - 20 / n_folds) < 1


def test_no_fold_is_without_a_label():
    splits = sets(OUTER["crossfit"].splits(np.arange(2), np.arange(2, 9), 3, stream()))
    assert [len(judged) for _, judged in splits] == [1, 1]


@pytest.mark.parametrize("way", ["holdout", "imputed", "imputed_direct"])
@pytest.mark.parametrize(
    ("n_labelled", "n_aside"), [(100, 30), (40, 12), (27, 8), (20, 8), (9, 4), (8, 4), (2, 1)]
)
def test_rows_set_aside_are_three_tenths_or_eight_and_at_most_half(way, n_labelled, n_aside):
    labelled, others = np.arange(n_labelled), np.arange(100, 110)
    ((learnt, judged),) = sets(OUTER[way].splits(labelled, others, 3, stream()))
    assert len(judged) == n_aside
    assert judged <= set(labelled)
    assert learnt == set(labelled) - judged | set(others)


def test_single_row_teaches_and_judges():
    (split,) = sets(OUTER["holdout"].splits(np.array([4]), np.arange(0), 3, stream()))
    assert split == ({4}, {4})


def test_splits_are_drawn_from_the_stream():
    for way in OUTER.values():
        one, same, other = (
            sets(way.splits(np.arange(50), np.arange(0), 3, stream(seed))) for seed in (0, 0, 1)
        )
        assert one == same != other


def test_ways_differ_in_who_is_imputed_what_is_followed_and_how_far():
    told = {name: (way.judges_imputed, way.terms, way.is_robust) for name, way in OUTER.items()}
    assert told == {
        "crossfit": (False, "both", True),
        "holdout": (False, "both", False),
        "imputed": (True, "both", False),
        "imputed_direct": (True, "direct", False),
    }


# Roles


@pytest.mark.parametrize(("n_labelled", "n_confirming"), [(100, 20), (40, 8), (49, 9)])
def test_a_fifth_confirms_and_takes_no_other_part(n_labelled, n_confirming):
    labelled = np.random.default_rng(0).permutation(np.arange(150) < n_labelled)
    roles = roles_of(labelled, OUTER["crossfit"], 3, True, stream())
    confirming = set(roles.confirming.tolist())
    assert len(confirming) == n_confirming
    assert confirming <= set(np.flatnonzero(labelled))
    others = set(range(150)) - confirming
    for learnt, judged in sets(roles.splits):
        assert learnt | judged == others
    assert roles.aside.tolist() == []


def test_fewer_than_eight_do_not_confirm():
    assert roles_of(np.arange(60) < 39, OUTER["crossfit"], 3, True, stream()) is None


@pytest.mark.parametrize("way", ["holdout", "imputed", "imputed_direct"])
@pytest.mark.parametrize("takes_others", [False, True])
def test_rows_that_only_judge_are_aside(way, takes_others):
    labelled = np.arange(50) < 40
    roles = roles_of(labelled, OUTER[way], 3, takes_others, stream())
    ((learnt, judged),) = sets(roles.splits)
    assert set(roles.aside.tolist()) == judged
    assert learnt | judged == set(range(50 if takes_others else 40))
    assert len(roles.confirming) == 0


@pytest.mark.parametrize("takes_others", [False, True])
def test_single_label_teaches_and_is_not_aside(takes_others):
    roles = roles_of(np.arange(5) == 3, OUTER["holdout"], 3, takes_others, stream())
    assert sets(roles.splits) == [({0, 1, 2, 3, 4} if takes_others else {3}, {3})]
    assert len(roles.aside) == 0


# What a step is about


class Caught(Exception):
    """Carries what the solver was given."""


def caught(monkeypatch, room, way, index=None, seed=0):
    """The arguments of the solver, and the splits."""

    def solver(*arguments):
        raise Caught(*arguments)

    monkeypatch.setattr(bilevel_training, "alternate", solver)
    splits = splits_of(room, way, index, seed)
    with pytest.raises(Caught) as found:
        taught(room, OUTER[way], splits, 0, Alternation(5), stream(seed))
    return found.value.args, splits


def splits_of(room, way, index=None, seed=0):
    """Of the rows of the table, or of those of the index."""
    index = np.arange(N) if index is None else index
    labelled = index[room.lessons.rows.labelled.numpy()[index] > 0]
    others = np.setdiff1d(index, labelled) if room.pseudo_label_weight else index[:0]
    return OUTER[way].splits(labelled, others, 3, stream(seed))


def numpy_student(room, theta):
    student = room.student_of(theta)

    def call(values, mask):
        parts = (torch.from_numpy(np.array(part, dtype=float))[None] for part in (values, mask))
        return student(*parts).detach().numpy()[0]

    return call


@pytest.mark.parametrize("way", OUTER)
@pytest.mark.parametrize("pseudo_label_weight", [0.0, 0.5])
def test_losses_of_a_step_are_the_equations_on_its_rows(monkeypatch, way, pseudo_label_weight):
    """Without dropout all is known: eq. (2) on the rows learnt, (3) or (4) on those that judge."""
    room = classroom(dropout=0.0, pseudo_label_weight=pseudo_label_weight)
    (_, students, draw, rule, _), splits = caught(monkeypatch, room, way)
    assert (rule.terms, rule.is_bounded) == (OUTER[way].terms, OUTER[way].is_robust)
    assert len(students) == len(splits)
    for iteration in range(4):
        step = draw(iteration)
        number = iteration % len(splits)
        assert step.student == number
        check_losses(room, way, step, students[number], *splits[number])


def check_losses(room, way, step, theta, learnt, judged):
    phi, theta = step.imputations(), theta.detach()
    rows, judging = (
        tuple(part.numpy() for part in room.lessons.rows.at(each)) for each in (learnt, judged)
    )
    features, outputs = (part.detach().numpy() for part in room.imputations(learnt))
    weights = np.where(rows[3] > 0, 1.0, room.pseudo_label_weight)
    student, kept = numpy_student(room, theta), np.ones(features.shape)
    expected = reference.inner_loss(
        student, "numbers", rows, features, outputs, kept, weights, theta.numpy(), 0.01
    )
    assert step.problem.inner(theta, phi).item() == pytest.approx(expected, rel=1e-12)
    if OUTER[way].judges_imputed:
        features = room.imputations(judged)[0].detach().numpy()
        expected = reference.naive_outer_loss(student, "numbers", judging, features)
    else:
        expected = reference.outer_loss(student, "numbers", judging)
    assert step.problem.outer(theta, phi).item() == pytest.approx(expected, rel=1e-12)
    assert phi.requires_grad


def test_imputations_are_base_shift_and_what_the_teacher_adds():
    room, index = classroom(), torch.tensor([3, 17])
    features, outputs = room.teacher(*room.inputs.at(index))
    imputed, told = room.imputations(index)
    torch.testing.assert_close(imputed, room.inputs.base[index] + room.shift[index] + features)
    torch.testing.assert_close(told, room.lessons.label_base[index] + outputs)
    assert min(features.abs().max(), outputs.abs().max()) > 0.01


def test_many_rows_are_drawn_anew_in_each_step(monkeypatch):
    monkeypatch.setattr(bilevel_training, "_MOST_ROWS", 10)
    room = classroom()
    (_, _, draw, _, _), _ = caught(monkeypatch, room, "holdout")
    first, second = (draw(iteration).imputations().detach() for iteration in range(2))
    assert first.shape == second.shape == (10 * (D + 1),)
    assert not torch.equal(first, second)


# A run


def run(room, way="crossfit", index=None, seed=0, n_warm_up=5, **settings):
    rule = Alternation(**{"n_iter": 6, **settings})
    splits = splits_of(room, way, index, seed)
    return taught(room, OUTER[way], splits, n_warm_up, rule, stream(seed))


def changed(room, rows, **parts):
    """The classroom with other rows of the table where that is said."""
    lessons = room.lessons
    moved = {
        name: getattr(lessons.rows, name).index_put(
            (torch.from_numpy(rows),), torch.tensor(value).double()
        )
        for name, value in parts.items()
    }
    lessons = Lessons(**{**vars(lessons), "rows": lessons.rows._replace(**moved)})
    return Classroom(**{**vars(room), "lessons": lessons})


@pytest.mark.parametrize("way", OUTER)
def test_rows_that_do_not_take_part_are_never_used(way):
    """Whatever they are, all ends the same; the reconstruction is of the copies alone."""
    index = np.setdiff1d(np.arange(N), [1, 2, 30, 45, 59])
    outside = np.setdiff1d(np.arange(N), index)
    plain, other = classroom(), changed(classroom(), outside, values=9.0, targets=9.0)
    for part in (*other.inputs, other.shift, other.lessons.label_base):
        part[torch.from_numpy(outside)] = 9.0
    results = [run(room, way, index) for room in (plain, other)]
    assert all(map(torch.equal, *(result.inner for result in results)))
    assert torch.equal(flatten(plain.teacher), flatten(other.teacher))
    assert flatten(other.teacher).isfinite().all()


@pytest.mark.parametrize("moved", ["targets", "values"])
def test_students_never_see_the_fold_that_judges_them(moved):
    """While the teacher holds still, a fold that changes leaves its own student as it was."""
    folds = splits_of(classroom(), "crossfit")
    before = run(classroom(), teacher_rate=0.0).inner
    for number, fold in enumerate(folds):
        room = changed(classroom(), fold.judged.numpy(), **{moved: 3.0})
        after = run(room, teacher_rate=0.0).inner
        same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert same == [other == number for other in range(3)]


def test_warm_up_moves_the_students_and_not_the_teacher():
    room = classroom()
    before = flatten(room.teacher)
    none, some = (run(room, n_iter=0, n_warm_up=n_warm_up).inner for n_warm_up in (0, 5))
    assert torch.equal(flatten(room.teacher), before)
    assert not any(map(torch.equal, none, some))
    assert_array_equal([theta.numel() for theta in some], [7 + 4 * 7 + 5] * 3)


def test_teacher_moves_in_place_and_is_followed():
    room, seen = classroom(), []
    before = flatten(room.teacher)

    def on_step(history, students):
        seen.append((len(history["outer"]), len(students)))
        return len(seen) == 4

    way, splits = OUTER["crossfit"], splits_of(room, "crossfit")
    result = taught(room, way, splits, 0, Alternation(9), stream(), on_step)
    assert seen == [(1, 3), (2, 3), (3, 3), (4, 3)]
    assert (result.n_iter, result.converged) == (4, False)
    assert not torch.equal(flatten(room.teacher), before)


def test_student_is_rebuilt_from_its_parameters():
    room = classroom()
    theta = run(room).inner[1]
    assert torch.equal(flatten(room.student_of(theta)), theta.detach())
