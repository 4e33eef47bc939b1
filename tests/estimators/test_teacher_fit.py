"""What a teacher is shown, what it learns from, and what it is judged by."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from skbilevel.estimators.feature_dropout import held_out_cells
from skbilevel.estimators.imputation_base import MeanBase, TreeBase, fit_base
from skbilevel.estimators.linear_fit import Table
from skbilevel.estimators.teacher_fit import (
    Lessons,
    copies_of,
    new_teacher,
    pretrained,
    teacher_inputs,
)
from skbilevel.estimators.tree_imputation import fit_trees
from skbilevel.objectives.bilevel_imputation import CLASSES, NUMBERS, Rows
from tests.incomplete_data import incomplete
from tests.reference import bilevel_imputation as reference
from tests.reference.gaussian import conditional_mean, em_to_convergence


def stream(seed=0):
    return np.random.RandomState(seed)


@pytest.fixture(scope="module")
def Z():
    _, X = incomplete(70, 4, rate=0.25)
    return (X - np.nanmean(X, axis=0)) / np.nanstd(X, axis=0)


@pytest.fixture(scope="module")
def hidden(Z):
    return held_out_cells(~np.isnan(Z), stream(1))


class Seen:
    """A base that keeps the rows it was given."""

    def __init__(self, memorises):
        self.memorises, self.rows = memorises, []

    def completed(self, rows):
        self.rows.append(rows)
        return np.nan_to_num(rows)


# What is shown


def test_inputs_are_zero_where_missing_and_cut_far_out():
    Z = np.array([[0.5, np.nan, -30.0], [np.nan, 9.0, -8.0]])
    inputs = teacher_inputs(Z, np.array([[0.5, 70.0, -30.0], [-1.0, 9.0, -8.0]]))
    assert inputs.values.tolist() == [[0.5, 0.0, -8.0], [0.0, 8.0, -8.0]]
    assert inputs.mask.tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    assert inputs.base.tolist() == [[0.5, 8.0, -8.0], [-1.0, 8.0, -8.0]]


@pytest.mark.parametrize("memorises", [False, True])
@pytest.mark.parametrize("mask_ratio", ["mix", 0.5])
def test_copies_and_their_base_never_show_hidden_cells(Z, hidden, memorises, mask_ratio):
    base = Seen(memorises)
    copies = copies_of(Z, base, hidden, np.ones(Z.shape), mask_ratio, stream())
    shown = copies.inputs.mask.numpy().astype(bool)
    assert not (shown & np.tile(hidden, (8, 1))).any()
    assert not (shown & np.tile(np.isnan(Z), (8, 1))).any()
    assert_array_equal(~np.isnan(np.vstack(base.rows)), shown)
    assert not copies.held_out[copies.inputs.mask[:70] > 0].any()
    assert_array_equal(shown[:70], ~np.isnan(Z) & ~hidden)


@pytest.mark.parametrize("memorises", [False, True])
def test_hidden_cells_have_no_influence_on_what_is_shown(Z, hidden, memorises):
    moved = np.where(hidden, 5 - 3 * Z, Z)
    before, after = (
        copies_of(each, Seen(memorises), hidden, np.ones(Z.shape), "mix", stream())
        for each in (Z, moved)
    )
    assert all(map(torch.equal, before.inputs, after.inputs))
    assert not torch.equal(before.truth, after.truth)


@pytest.mark.parametrize("memorises", [False, True])
def test_held_out_cells_are_half_of_the_hidden_ones_and_never_learnt(Z, hidden, memorises):
    copies = copies_of(Z, Seen(memorises), hidden, np.ones(Z.shape), "mix", stream())
    held_out = copies.held_out.numpy().astype(bool)
    assert not (held_out & ~hidden).any()
    assert 0.25 < held_out.sum() / hidden.sum() < 0.75
    assert not (copies.hidden.numpy() * np.tile(held_out, (8, 1))).any()


def test_cells_weigh_what_they_are_told_to(Z, hidden):
    odds = np.random.default_rng(0).uniform(0.5, 2, Z.shape)
    plain, weighted = (
        copies_of(Z, MeanBase(), hidden, weights, "mix", stream())
        for weights in (np.ones(Z.shape), odds)
    )
    assert_array_equal(weighted.hidden, plain.hidden.numpy() * np.tile(odds, (8, 1)))
    assert_array_equal(weighted.held_out, plain.held_out.numpy() * odds)


def test_memorising_base_is_corrected_on_hidden_cells_alone(Z, hidden):
    """At other cells its errors are those of the cells that it has fitted: too small."""
    trees = TreeBase(fit_trees(np.where(hidden, np.nan, Z), 5, stream()))
    copies = copies_of(Z, trees, hidden, np.ones(Z.shape), "mix", stream())
    learnt, held_out = copies.hidden.numpy() > 0, copies.held_out.numpy() > 0
    assert_array_equal(learnt, np.tile(hidden & ~held_out, (8, 1)))


def test_base_that_does_not_memorise_is_corrected_on_all_cells_that_are_not_shown(Z, hidden):
    copies = copies_of(Z, MeanBase(), hidden, np.ones(Z.shape), "mix", stream())
    learnt, held_out = copies.hidden.numpy() > 0, copies.held_out.numpy() > 0
    not_shown = np.tile(~np.isnan(Z), (8, 1)) & (copies.inputs.mask.numpy() == 0)
    assert_array_equal(learnt, not_shown & ~np.tile(held_out, (8, 1)))


@pytest.mark.parametrize(("n_rows", "n_copies"), [(100, 8), (1000, 4), (1999, 2), (5000, 2)])
def test_copies_are_as_many_as_4000_rows_ask_for(n_rows, n_copies):
    Z = np.random.default_rng(0).normal(size=(n_rows, 2)) * 5
    copies = copies_of(
        Z, MeanBase(), np.zeros(Z.shape, dtype=bool), np.ones(Z.shape), 0.5, stream()
    )
    assert_array_equal(copies.rows, np.tile(np.arange(n_rows), n_copies))
    assert_array_equal(copies.truth, np.tile(np.clip(Z, -8, 8), (n_copies, 1)))
    assert {len(part) for part in copies.inputs} == {n_copies * n_rows}


# The loss


def lessons(Z, hidden, kind="numbers", n_targets=2, base=None, seed=0):
    """With labels for most rows; a third of these are held out."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(len(Z), n_targets))
    if kind == "classes":
        targets = np.eye(n_targets)[targets.argmax(axis=1)]
    drawn = rng.random(len(Z))
    labelled, held_out = 1.0 * (drawn < 0.7), 1.0 * (drawn < 0.2)
    inputs = teacher_inputs(Z, np.nan_to_num(Z))
    values = (targets, labelled, rng.normal(size=targets.shape), labelled - held_out, held_out)
    targets, labelled, label_base, learnt, held_out = map(torch.from_numpy, values)
    return Lessons(
        copies_of(Z, base or MeanBase(), hidden, np.ones(Z.shape), "mix", stream(seed)),
        {"numbers": NUMBERS, "classes": CLASSES}[kind],
        Rows(inputs.values, inputs.mask, targets, labelled),
        label_base,
        learnt,
        held_out,
    )


def drawn_teacher(n_columns=4, n_targets=2):
    """With a last layer that is not zero."""
    teacher = new_teacher(n_columns, n_targets, (5,), 0)
    torch.nn.init.normal_(teacher.layers[-1].weight, generator=torch.Generator().manual_seed(1))
    return teacher


@torch.no_grad()
def taught(teacher, each):
    """Features and outputs for all rows of the copies, as arrays."""
    features, outputs = teacher(*each.copies.inputs)
    return (
        (each.copies.inputs.base + features).numpy(),
        (each.label_base[each.copies.rows] + outputs).numpy(),
    )


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_loss_of_a_batch_is_equation_5_cell_by_cell(Z, hidden, kind):
    each, teacher = lessons(Z, hidden, kind), drawn_teacher()
    features, outputs = taught(teacher, each)
    batch = np.array([3, 5, 8, 75, 300, 433])
    copies, rows, shown = each.copies, each.copies.rows[batch], each.copies.inputs.mask
    expected = reference.reconstruction_loss(
        *(np.asarray(part)[batch] for part in (features, copies.truth, copies.hidden, shown))
    ) + reference.label_loss(
        kind, outputs[batch], each.rows.targets[rows].numpy(), each.learnt[rows].numpy()
    )
    assert each.learnt[rows].sum() not in (0, 6)
    assert each.loss(teacher, torch.from_numpy(batch)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_held_out_errors_are_those_of_held_out_cells_and_labels(Z, hidden, kind):
    """Of the rows with their own gaps, each cell times what it weighs."""
    each, teacher = lessons(Z, hidden, kind), drawn_teacher()
    weights = each.copies.held_out * torch.linspace(0.5, 2, Z.size).view(Z.shape)
    each = replace(each, copies=replace(each.copies, held_out=weights))
    features, outputs = taught(teacher, each)
    errors, labels = each.held_out_errors(teacher)
    squares = np.square(features - each.copies.truth.numpy())[: len(Z)] * weights.numpy()
    np.testing.assert_allclose(errors, squares[weights.numpy() > 0], rtol=1e-12)
    arguments = each.rows.targets.numpy(), each.held_out.numpy()
    expected = reference.label_loss(kind, outputs[: len(Z)], *arguments)
    assert labels.item() == pytest.approx(expected, rel=1e-12)


def test_labels_that_are_held_out_or_missing_are_not_learnt(Z, hidden):
    each, teacher = lessons(Z, hidden), drawn_teacher()
    batch = torch.arange(len(each.copies.rows))
    moved = each.rows.targets + torch.where(each.learnt > 0, 0.0, 9.0).unsqueeze(1)
    other = Lessons(**{**vars(each), "rows": each.rows._replace(targets=moved)})
    assert torch.equal(each.loss(teacher, batch), other.loss(teacher, batch))
    assert other.held_out_errors(teacher)[1] > each.held_out_errors(teacher)[1] + 1


def test_batches_are_all_rows_once_and_then_again(Z, hidden):
    each = lessons(Z, hidden)
    batches = list(islice(each.batches(stream()), 6))
    assert [len(batch) for batch in batches] == [256, 256, 48] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(560))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))


# Training


def without_labels(Z, base, hidden):
    """Lessons that are about features alone."""
    inputs, none = teacher_inputs(Z, np.nan_to_num(Z)), torch.zeros(len(Z)).double()
    nothing = torch.zeros(len(Z), 0).double()
    rows = Rows(inputs.values, inputs.mask, nothing, none)
    return Lessons(
        copies_of(Z, base, hidden, np.ones(Z.shape), "mix", stream()),
        NUMBERS,
        rows,
        nothing,
        none,
        none,
    )


def with_gaps(complete, seed=0):
    rng = np.random.default_rng(seed)
    Z = (complete - complete.mean(axis=0)) / complete.std(axis=0)
    return np.where(rng.random(Z.shape) < 0.2, np.nan, Z)


def trained(Z, base, n_steps=300):
    """A teacher of these rows, its history and the lessons."""
    hidden = held_out_cells(~np.isnan(Z), stream())
    table = Table(Z, np.zeros(Z.shape[1]), np.ones(Z.shape[1]))
    blind = fit_base(base, table, hidden, stream()).blind
    each, teacher = without_labels(Z, blind, hidden), new_teacher(Z.shape[1], 0, (32,), 0)
    return teacher, pretrained(teacher, each, n_steps, stream()), each


@pytest.mark.parametrize(("base", "covariance"), [("mean", 0.0), ("gaussian", 0.7)])
def test_base_that_is_right_is_kept_as_it_is(base, covariance):
    """Of a normal the conditional mean is the best there is: all corrections stay exactly zero."""
    truth = np.full((3, 3), covariance) + (1 - covariance) * np.eye(3)
    rows = np.random.default_rng(0).multivariate_normal(np.zeros(3), truth, 300)
    teacher, history, each = trained(with_gaps(rows), base)
    assert not teacher(*each.copies.inputs)[0].any()
    assert history["held_out"][0] == 2.0
    assert history["pretraining"][-1] < history["pretraining"][0]


def curve():
    """Four functions of one number, whose correlations tell little of it."""
    x = np.random.default_rng(0).uniform(-1.5, 1.5, size=(400, 1))
    return np.hstack([x, x**2, np.sin(3 * x), np.cos(3 * x)])


@pytest.fixture(scope="module")
def learnt():
    Z = with_gaps(curve())
    return Z, *trained(Z, "mean", n_steps=800)


def test_nonlinear_relation_is_learnt_where_means_and_a_normal_miss_it(learnt):
    """At held-out cells, where the base is at 1, and at cells that were missing to begin with."""
    Z, teacher, history, _ = learnt
    assert min(history["held_out"]) - 1 < 0.7
    with torch.no_grad():
        imputed = teacher(*teacher_inputs(Z, np.nan_to_num(Z)))[0].numpy()
    fit = em_to_convergence(Z, tol=1e-6)
    linear = conditional_mean(Z, fit.location, fit.covariance)
    truth = (curve() - curve().mean(axis=0)) / curve().std(axis=0)
    error, of_normal, of_mean = (
        np.square(each - truth)[np.isnan(Z)].mean() for each in (imputed, linear, 0.0)
    )
    assert error < 0.6 * of_normal
    assert error < 0.5 * of_mean


def test_teacher_is_left_where_held_out_cells_were_predicted_best(learnt):
    _, teacher, history, each = learnt
    now, base = (
        each.held_out_errors(one)[0].mean() for one in (teacher, new_teacher(4, 0, (32,), 0))
    )
    assert float(now / base) + 1 == pytest.approx(min(history["held_out"]), rel=1e-12)


def test_training_ends_after_six_looks_without_a_new_least_error():
    rng = np.random.default_rng(0)
    _, history, _ = trained(with_gaps(rng.normal(size=(60, 3))), "mean", n_steps=2000)
    looks = history["held_out"]
    assert len(looks) - 1 - np.argmin(looks) == 6
    assert len(looks) - 1 == len(history["pretraining"]) < 80


def test_training_goes_on_to_its_last_step_while_errors_fall(learnt):
    looks = learnt[2]["held_out"]
    assert len(looks) - 1 == 800 / 25
    assert np.argmin(looks) > 20


def test_no_steps_leave_the_base():
    Z = with_gaps(np.random.default_rng(0).normal(size=(60, 3)))
    teacher, history, each = trained(Z, "mean", n_steps=0)
    assert history == {"pretraining": [], "held_out": [2.0]}
    assert not teacher(*each.copies.inputs)[0].any()
