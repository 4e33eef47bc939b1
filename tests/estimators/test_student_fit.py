"""What students learn from, and where they end."""

from itertools import islice

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax

from skbilevel.estimators.label_base import LabelFit
from skbilevel.estimators.student_fit import Lectures, new_student, trained_students
from skbilevel.numerics.parameters import flatten
from skbilevel.objectives.bilevel_imputation import CLASSES, NUMBERS, Rows
from tests.reference import bilevel_imputation as reference
from tests.teacher_student_problem import minimiser

D, Q = 3, 3


def stream(seed=0):
    return np.random.RandomState(seed)


# What students learn from


def lectures(kind="numbers", n=60, d=D, ridge=0.3, dropout=0.0, labelled=None, pseudo=0.5, seed=0):
    rng = np.random.default_rng(seed)
    q = Q if kind == "classes" else 2
    mask = rng.random((n, d)) < 0.7
    features = rng.normal(size=(n, d))
    targets = 0.3 * features @ rng.normal(size=(d, q)) + 0.5 * rng.normal(size=(n, q))
    if kind == "classes":
        targets = np.eye(q)[targets.argmax(axis=1)]
    labelled = 1.0 * (rng.random(n) < 0.6) if labelled is None else labelled
    arrays = (features * mask, 1.0 * mask, targets, labelled)
    return Lectures(
        Rows(*map(torch.from_numpy, arrays)),
        torch.from_numpy(features),
        torch.from_numpy(rng.normal(size=(n, q))),
        {"numbers": NUMBERS, "classes": CLASSES}[kind],
        pseudo,
        mask,
        dropout,
        ridge,
    )


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_loss_of_a_batch_is_equation_2_row_by_row(kind):
    each = lectures(kind)
    q = each.outputs.shape[1]
    student = new_student(D, q, (4,), 0)
    torch.nn.init.normal_(student.linear.weight, generator=torch.Generator().manual_seed(1))
    batch, rng = np.array([2, 5, 7, 30, 59]), np.random.default_rng(1)
    kept = 1.0 * (rng.random((5, D)) < 0.6)

    def in_numpy(values, mask):
        arguments = (torch.from_numpy(np.array(part))[None] for part in (values, mask))
        return student(*arguments).detach().numpy()[0]

    expected = reference.inner_loss(
        in_numpy,
        kind,
        tuple(part.numpy()[batch] for part in each.rows),
        each.features.numpy()[batch],
        each.outputs.numpy()[batch],
        kept,
        np.where(each.rows.labelled.numpy()[batch] > 0, 1.0, 0.5),
        flatten(student).numpy(),
        0.3,
    )
    examples = each.examples(torch.from_numpy(batch), torch.from_numpy(kept))
    loss = examples.loss(each.kind, student(examples.values, examples.kept))
    found = loss + 0.3 / 2 * flatten(student).square().sum()
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert 0 < each.rows.labelled[batch].sum() < 5


def test_batches_are_the_rows_that_count_with_masks_to_copy():
    labelled = 1.0 * np.random.default_rng(0).integers(0, 2, 600)
    each = lectures(n=600, dropout="empirical", labelled=labelled, pseudo=0.0)
    useful = np.flatnonzero(labelled)
    batches = list(islice(each.batches(100, stream()), 9))
    order = torch.cat([batch for batch, _ in batches]).numpy()
    assert sorted(order[: len(useful)]) == useful.tolist()
    assert set(order[len(useful) :]) <= set(useful)
    assert {len(batch) for batch, _ in batches} == {100}
    masks = {tuple(row) for row in each.observed}
    for batch, kept in batches:
        assert kept.shape == (len(batch), D)
        assert {tuple(row > 0) for row in kept.numpy()} <= masks


def test_some_of_the_lectures_are_about_those_rows_and_copy_all_masks():
    each = lectures()
    some = each.at(torch.tensor([4, 9]))
    assert torch.equal(some.features, each.features[[4, 9]])
    assert torch.equal(some.outputs, each.outputs[[4, 9]])
    assert torch.equal(some.rows.labelled, each.rows.labelled[[4, 9]])
    assert torch.equal(some.rows.targets, each.rows.targets[[4, 9]])
    assert some.observed is each.observed
    assert (some.ridge, some.feature_dropout, some.kind) == (0.3, 0.0, NUMBERS)


# Training


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_linear_student_ends_at_the_minimum_of_ridge_over_two(kind):
    """Without dropout and in one batch nothing is random: the minimum is known."""
    each = lectures(kind, ridge=0.3)
    (student,) = trained_students([each], (), 900, stream())
    outputs = each.outputs.numpy()
    told = softmax(outputs, axis=1) if kind == "classes" else outputs
    labels = np.where(each.rows.labelled.numpy()[:, None] > 0, each.rows.targets.numpy(), told)
    model = np.hstack([each.features.numpy(), np.ones((60, D + 1))])
    weights = np.where(each.rows.labelled.numpy() > 0, 1.0, 0.5)
    expected = minimiser(model, labels, weights, 0.3, kind == "classes")
    weight, bias = student.parameters()
    found = np.vstack([weight.detach().numpy().T, bias.detach().numpy()])
    assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_training_lowers_the_loss_of_new_rows(kind):
    each = lectures(kind, n=400, ridge=1e-3, dropout="empirical", labelled=np.ones(400))
    learnt, new = each.at(torch.arange(300)), each.at(torch.arange(300, 400))
    (student,) = trained_students([learnt], (8,), 200, stream())
    with torch.no_grad():
        examples = new.examples(torch.arange(100), new.rows.mask)
        before, after = (
            examples.loss(each.kind, other(examples.values, examples.kept))
            for other in (new_student(D, len(each.outputs[0]), (), 0), student)
        )
    assert after < 0.9 * before


def test_rows_of_weight_zero_teach_nothing():
    each = lectures(labelled=1.0 * (np.arange(60) < 40), pseudo=0.0)
    nothing = torch.where(each.rows.labelled > 0, 0.0, torch.nan)[:, None]
    other = Lectures(**{**vars(each), "features": each.features + nothing})
    students = [trained_students([some], (4,), 20, stream())[0] for some in (each, other)]
    assert torch.equal(*map(flatten, students))


def test_same_stream_gives_the_same_student():
    each = lectures(dropout="empirical")
    one, same, other = (
        flatten(trained_students([each], (4,), 20, stream(seed))[0]) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_students_side_by_side_do_not_disturb_each_other():
    """A linear student ends at its own minimum, whatever the other learns."""
    each = lectures(ridge=0.3)
    alone = trained_students([each], (), 900, stream())[0]
    pair = trained_students([each, each.raw()], (), 900, stream())
    # The raw one sees other cells, so that it ends elsewhere.
    assert_allclose(flatten(pair[0]), flatten(alone), atol=1e-4)
    assert (flatten(pair[1]) - flatten(alone)).abs().max() > 0.05


def test_raw_lectures_are_labelled_rows_whose_missing_cells_stay_missing():
    each = lectures(dropout="empirical").raw()
    for batch, kept in islice(each.batches(30, stream()), 5):
        own = each.rows.mask[batch]
        assert bool((kept <= own).all())
        assert bool((each.rows.labelled[batch] == 1).all())
        whole = (kept == own).all(dim=1)
        assert 0.4 < whole.double().mean() <= 1
        examples = each.examples(batch, kept)
        assert torch.equal(examples.values, each.rows.values[batch] * kept)


def told(folds, outputs, seed=5):
    """Of a base of T_y with these folds and outputs: without a fold it says something else."""
    without = np.random.default_rng(seed).normal(size=(folds.max() + 1, *outputs.shape))
    return LabelFit(None, outputs, without, folds)


def test_lectures_without_a_fold_know_nothing_of_its_labels():
    """Their pseudo-labels are those of a base without it, plus, at other rows, what the teacher
    adds; at rows of the fold it has learnt that from their labels."""
    each = lectures(pseudo=0.5)
    labelled = each.rows.labelled.numpy()
    folds = np.where(labelled > 0, np.arange(60) % 3, -1)
    base = np.random.default_rng(4).normal(size=each.outputs.shape)
    fit = told(folds, base)
    part = each.without(fit, 1)
    assert_array_equal(part.rows.labelled.numpy(), labelled * (folds != 1))
    added = np.where((folds == 1)[:, np.newaxis], 0.0, each.outputs.numpy() - base)
    assert_allclose(part.outputs.numpy(), fit.without[1] + added, rtol=1e-12)
    assert np.abs(added).max() > 1
    batch = torch.from_numpy(np.flatnonzero(folds == 1))
    examples = part.examples(batch, each.rows.mask[batch])
    assert torch.equal(examples.labels, part.outputs[batch])
    assert examples.weights.tolist() == [0.5] * len(batch)


def test_lectures_without_folds_are_all_of_them():
    each = lectures()
    nothing = LabelFit(None, each.outputs.numpy(), np.zeros((0, 60, 2)), np.full(60, -1))
    assert each.without(nothing, 0) is each


def test_gradients_are_cut_for_each_student_by_itself():
    """What one of them meets, however wild, does not slow another."""
    each = lectures()
    targets = torch.where(torch.arange(60)[:, None] < 30, 1e6, each.rows.targets)
    wild = Lectures(**{**vars(each), "rows": each.rows._replace(targets=targets)})
    alone, beside = (
        trained_students([each, other], (4,), 30, stream())[0] for other in (each, wild)
    )
    assert torch.equal(flatten(alone), flatten(beside))
