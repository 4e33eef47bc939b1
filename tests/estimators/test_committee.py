"""Who predicts, and how much each is listened to."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import softmax

from skbilevel.estimators import committee
from skbilevel.estimators.committee import Committee, best_shares, blended, trained_committee
from skbilevel.estimators.label_base import LabelFit
from skbilevel.estimators.student_fit import Lectures, new_student
from skbilevel.numerics.parameters import flatten
from skbilevel.objectives.bilevel_imputation import CLASSES, NUMBERS, Rows

N, D = 80, 3
PRIOR = np.array([0.4, 0.2, 0.4])


def lectures(q=1, kind=NUMBERS, seed=0):
    """Rows of which three quarters have labels that follow from them."""
    rng = np.random.default_rng(seed)
    mask = rng.random((N, D)) < 0.8
    features = rng.normal(size=(N, D))
    targets = features @ rng.normal(size=(D, q)) + 0.3 * rng.normal(size=(N, q))
    if kind is CLASSES:
        targets = np.eye(q)[targets.argmax(axis=1)]
    labelled = 1.0 * (np.arange(N) < 60)
    rows = Rows(*map(torch.from_numpy, (features * mask, 1.0 * mask, targets, labelled)))
    outputs = torch.from_numpy(rng.normal(size=(N, q)))
    return Lectures(rows, torch.from_numpy(features), outputs, kind, 0.5, mask, 0.0, 0.01)


def told_of(each, n_folds=4, seed=1):
    rng = np.random.default_rng(seed)
    labelled = each.rows.labelled.numpy() > 0
    folds = np.where(labelled, np.arange(N) % n_folds, -1)
    without = rng.normal(size=(n_folds, *each.outputs.shape))
    outputs = np.where(labelled[:, None], without[folds, np.arange(N)], each.outputs.numpy())
    return LabelFit(None, outputs, without, folds)


def train(each, told, n_students=4, seed=0):
    return trained_committee(each, told, n_students, (4,), 60, np.random.RandomState(seed))


# Shares


@pytest.mark.parametrize("q", [1, 3])
def test_shares_are_two_thirds_the_prior_and_for_the_rest_the_best(q):
    """The minimum is found again by a solver that knows neither its gradient nor its form."""
    rng = np.random.default_rng(q)
    labels = rng.normal(size=(50, q))
    outputs = labels + rng.normal(size=(3, 50, q)) * np.array([0.5, 1.0, 2.0])[:, None, None]
    spread = np.mean([np.var(outputs[:, i, k]) * q for i in range(50) for k in range(q)])

    def loss(free):
        shares = np.array([*free, 1 - sum(free)])
        mean = np.tensordot(shares, outputs, 1)
        return np.square(labels - mean).sum() + 80 * spread * np.square(shares - PRIOR).sum()

    found = best_shares(outputs, labels)
    best = 3 * found - 2 * PRIOR
    limits = [{"type": "ineq", "fun": lambda free: 1 - sum(free)}]
    expected = minimize(loss, [0.3, 0.3], bounds=[(0, 1)] * 2, constraints=limits, tol=1e-12).x
    assert_allclose(best[:2], expected, atol=1e-5)
    assert best.sum() == pytest.approx(1)
    assert best[0] > PRIOR[0]


def test_what_is_far_off_keeps_two_thirds_of_its_prior():
    labels = np.random.default_rng(0).normal(size=(500, 1))
    outputs = np.stack([labels, labels + 0.1, 30 - labels])
    assert best_shares(outputs, labels)[2] == pytest.approx(2 / 3 * 0.4, abs=0.01)


@pytest.mark.parametrize("n_rows", [0, 7])
def test_shares_are_the_prior_where_nothing_tells_them_apart(n_rows):
    same = np.ones((3, n_rows, 1))
    assert_allclose(best_shares(same, np.zeros((n_rows, 1))), PRIOR, atol=1e-6)


# What is said


@pytest.mark.parametrize("kind", [NUMBERS, CLASSES])
def test_committee_says_the_mean_by_shares(kind):
    q = 3 if kind is CLASSES else 2
    each, base = lectures(q, kind), np.random.default_rng(2).random((N, q))
    students, raw = ([new_student(D, q, (4,), seed + k) for k in range(2)] for seed in (0, 10))
    shares = np.array([0.5, 0.2, 0.3])
    values, mask = each.rows.values, each.rows.mask
    found = blended(Committee(students, raw, shares), kind, values, mask, lambda: base)

    def mean(several):
        with torch.no_grad():
            told = [student(values, mask).numpy() for student in several]
        return np.mean([softmax(part, axis=1) if kind is CLASSES else part for part in told], 0)

    expected = 0.5 * mean(students) + 0.2 * mean(raw) + 0.3 * base
    assert_allclose(found, expected, rtol=1e-12)


def test_who_has_no_share_is_not_asked():
    each, student = lectures(), new_student(D, 1, (4,), 0)

    def of_base():
        raise AssertionError("asked")

    found = blended(committee.sole([student]), NUMBERS, each.rows.values, each.rows.mask, of_base)
    with torch.no_grad():
        assert_array_equal(found, student(each.rows.values, each.rows.mask).numpy())


# Training


def test_every_student_does_without_a_fold_in_turn():
    """What changes in a fold leaves one student of each kind as it was, and no other."""
    each = lectures()
    told = told_of(each)
    before = train(each, told)
    targets = each.rows.targets.clone()
    targets[torch.from_numpy(told.folds == 2)] += 50.0
    other = Lectures(**{**vars(each), "rows": each.rows._replace(targets=targets)})
    after = train(other, told)
    for one, two in ((before.students, after.students), (before.raw_students, after.raw_students)):
        same = [torch.equal(flatten(a), flatten(b)) for a, b in zip(one, two, strict=True)]
        assert same == [False, False, True, False]


@pytest.mark.parametrize("n_students", [1, 3, 4, 6])
@pytest.mark.parametrize("kind", [NUMBERS, CLASSES])
def test_shares_are_learnt_from_rows_that_nobody_has_seen(monkeypatch, n_students, kind):
    """Each row is predicted by the students that do without its fold, and by the base so; of
    classes their probabilities count."""
    q = 3 if kind is CLASSES else 1
    each, seen = lectures(q, kind), []

    def caught(outputs, labels):
        seen.append((outputs, labels))
        return PRIOR

    monkeypatch.setattr(committee, "best_shares", caught)
    told = told_of(each)
    students, raw, shares = train(each, told, n_students)
    assert len(students) == len(raw) == n_students
    assert_array_equal(shares, PRIOR)
    rows = [i for i in range(60) if told.folds[i] < n_students]
    expected = np.zeros((3, len(rows), q))

    def of(outputs):
        return softmax(outputs) if kind is CLASSES else outputs

    for at, i in enumerate(rows):
        judges = [k for k in range(n_students) if k % 4 == told.folds[i]]
        values, mask = (part[i : i + 1] for part in (each.rows.values, each.rows.mask))
        for which, several in enumerate((students, raw)):
            outputs = [of(several[k](values, mask).detach().numpy()[0]) for k in judges]
            expected[which, at] = np.mean(outputs, axis=0)
        expected[2, at] = of(told.without[told.folds[i], i])
    ((outputs, labels),) = seen
    assert_allclose(outputs, expected, rtol=1e-9)
    assert_array_equal(labels, each.rows.targets.numpy()[rows])


def test_single_label_teaches_all_students():
    each = lectures()
    labelled = torch.from_numpy(1.0 * (np.arange(N) == 0))
    each = Lectures(**{**vars(each), "rows": each.rows._replace(labelled=labelled)})
    nothing = LabelFit(None, each.outputs.numpy(), np.zeros((0, N, 1)), np.full(N, -1))
    students, raw, shares = train(each, nothing, 2)
    assert len(students) == len(raw) == 2
    assert_allclose(shares, PRIOR, atol=1e-6)
