"""Where labels start, what students learn from, and where they end."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.student_fit import (
    LabelBase,
    Lectures,
    constant_label_base,
    fit_label_base,
    new_student,
    trained_student,
)
from skbilevel.numerics.parameters import flatten
from skbilevel.objectives.bilevel_imputation import CLASSES, NUMBERS, Rows
from tests.reference import bilevel_imputation as reference
from tests.teacher_student_problem import minimiser

D, Q = 3, 3


def stream(seed=0):
    return np.random.RandomState(seed)


def rows(n=60, n_labelled=40, is_class=False, seed=0):
    """Complete rows, where they were missing, and a target that depends on both."""
    rng = np.random.default_rng(seed)
    filled, missing = rng.normal(size=(n, D)), rng.random((n, D)) < 0.3
    scores = filled @ rng.normal(size=(D, Q)) + missing[:, :1] + rng.normal(size=(n, Q))
    values = np.eye(Q)[scores.argmax(axis=1)] if is_class else scores[:, :1]
    labelled = rng.permutation(np.arange(n) < n_labelled)
    classes = np.arange(Q) if is_class else None
    kind = "multiclass" if is_class else "continuous"
    values = values * labelled[:, np.newaxis]
    return filled, missing, Target(kind, values, labelled, 0.0, 1.0, classes)


# Where labels start


def test_label_base_is_affine_in_rows_and_indicators():
    filled, missing, _ = rows()
    coefficients, intercept = np.arange(12.0).reshape(6, 2), np.array([0.5, -1.0])
    found = LabelBase(coefficients, intercept, False).outputs(filled, missing)
    for row, gaps, outputs in zip(filled, missing, found, strict=True):
        expected = [
            intercept[k] + sum([*row, *gaps][j] * coefficients[j, k] for j in range(6))
            for k in range(2)
        ]
        assert_allclose(outputs, expected, rtol=1e-12)


def test_logits_of_a_class_have_its_shares_kept_off_zero():
    shares = np.array([[0.2, 0.5, 0.3], [1.4, -0.1, -0.3], [0.0, 0.5, 0.5]])
    base = LabelBase(np.vstack([shares, np.zeros((3, 3))]), np.zeros(3), True)
    found = softmax(base.outputs(np.eye(3), np.zeros((3, 3))), axis=1)
    assert_allclose(found[0], shares[0], rtol=1e-14)
    assert_allclose(found[1], np.array([0.98, 0.02, 0.02]) / 1.02, rtol=1e-14)
    assert_allclose(found[2], np.array([0.02, 0.5, 0.5]) / 1.02, rtol=1e-14)


@pytest.mark.parametrize("is_class", [False, True])
def test_constant_base_is_the_mean_of_the_labels_alone(is_class):
    filled, missing, target = rows(is_class=is_class)
    outputs = constant_label_base(target, D).outputs(filled, missing)
    mean = target.values[target.labelled].mean(axis=0)
    assert_allclose(outputs, np.tile(np.log(mean) if is_class else mean, (60, 1)), rtol=1e-13)


def out_of_fold(filled, missing, target, seed):
    """Oracle: predictions of labelled rows by a regression of the other folds, of others by one
    of all labelled rows."""
    table, index = np.hstack([filled, missing]), np.flatnonzero(target.labelled)
    alphas = 10.0 ** (np.arange(13) / 2 - 2)
    whole = RidgeCV(alphas).fit(table[index], target.values[index])
    told = whole.predict(table).reshape(len(table), -1)
    folds = KFold(5, shuffle=True, random_state=stream(seed).randint(2**31 - 1))
    for others, fold in folds.split(index):
        model = RidgeCV(alphas).fit(table[index[others]], target.values[index[others]])
        told[index[fold]] = model.predict(table[index[fold]]).reshape(len(fold), -1)
    return told


@pytest.mark.parametrize("is_class", [False, True])
def test_label_base_is_told_out_of_fold_where_there_is_a_label(is_class):
    filled, missing, target = rows(is_class=is_class)
    base, outputs = fit_label_base(filled, missing, target, stream(3))
    expected = out_of_fold(filled, missing, target, 3)
    if is_class:
        clipped = np.clip(expected, 0.02, 0.98)
        assert_allclose(softmax(outputs, axis=1), clipped / clipped.sum(axis=1, keepdims=True))
    else:
        assert_allclose(outputs, expected, rtol=1e-10)
    others = ~target.labelled
    assert_array_equal(outputs[others], base.outputs(filled, missing)[others])
    assert base.is_class is is_class


@pytest.mark.parametrize("is_class", [False, True])
def test_output_of_a_labelled_row_does_not_use_its_own_label(is_class):
    filled, missing, target = rows(is_class=is_class)
    row = np.flatnonzero(target.labelled)[0]
    moved = target.values.copy()
    moved[row] = np.roll(moved[row], 1) if is_class else 50.0
    other = Target(**{**vars(target), "values": moved})
    (base, before), (base_after, after) = (
        fit_label_base(filled, missing, each, stream()) for each in (target, other)
    )
    assert_array_equal(before[row], after[row])
    assert not np.array_equal(before, after)
    assert not np.array_equal(base.coefficients, base_after.coefficients)


@pytest.mark.parametrize(("n_labelled", "is_constant"), [(9, True), (10, False)])
def test_fewer_than_ten_labels_are_told_by_their_mean(n_labelled, is_constant):
    filled, missing, target = rows(n_labelled=n_labelled)
    base, outputs = fit_label_base(filled, missing, target, stream())
    assert (not base.coefficients.any()) == is_constant
    assert (np.ptp(outputs) == 0) == is_constant


# What students learn from


def lectures(kind="numbers", n=60, d=D, ridge=0.3, dropout=0.0, weights=None, seed=0):
    rng = np.random.default_rng(seed)
    q = Q if kind == "classes" else 2
    mask = rng.random((n, d)) < 0.7
    features = rng.normal(size=(n, d))
    targets = 0.3 * features @ rng.normal(size=(d, q)) + 0.5 * rng.normal(size=(n, q))
    if kind == "classes":
        targets = np.eye(q)[targets.argmax(axis=1)]
    labelled = 1.0 * (rng.random(n) < 0.6)
    weights = labelled + 0.5 * (1 - labelled) if weights is None else weights
    arrays = (features * mask, 1.0 * mask, targets, labelled)
    return Lectures(
        Rows(*map(torch.from_numpy, arrays)),
        torch.from_numpy(features),
        torch.from_numpy(rng.normal(size=(n, q))),
        {"numbers": NUMBERS, "classes": CLASSES}[kind],
        torch.from_numpy(weights),
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
        each.weights.numpy()[batch],
        flatten(student).numpy(),
        0.3,
    )
    found = each.loss(student, torch.from_numpy(batch), torch.from_numpy(kept))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert 0 < each.rows.labelled[batch].sum() < 5


def test_batches_are_the_rows_that_count_with_masks_to_copy():
    weights = np.random.default_rng(0).integers(0, 2, 600) * 0.5
    each = lectures(n=600, dropout="empirical", weights=weights)
    batches = list(each.batches(stream()))
    order = torch.cat([batch for batch, _ in batches])
    assert sorted(order.tolist()) == np.flatnonzero(weights).tolist()
    assert max(len(batch) for batch, _ in batches) == 256
    masks = {tuple(row) for row in each.observed}
    for batch, kept in batches:
        assert kept.shape == (len(batch), D)
        assert {tuple(row > 0) for row in kept.numpy()} <= masks


def test_some_of_the_lectures_are_about_those_rows_and_copy_all_masks():
    each = lectures()
    some = each.at(torch.tensor([4, 9]))
    assert torch.equal(some.features, each.features[[4, 9]])
    assert torch.equal(some.outputs, each.outputs[[4, 9]])
    assert torch.equal(some.weights, each.weights[[4, 9]])
    assert torch.equal(some.rows.targets, each.rows.targets[[4, 9]])
    assert some.observed is each.observed
    assert (some.ridge, some.feature_dropout, some.kind) == (0.3, 0.0, NUMBERS)


# Training


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_linear_student_ends_at_the_minimum_of_ridge_over_two(kind):
    """Without dropout and in one batch nothing is random: the minimum is known."""
    each = lectures(kind, ridge=0.3)
    student = trained_student(each, (), 900, stream())
    outputs = each.outputs.numpy()
    told = softmax(outputs, axis=1) if kind == "classes" else outputs
    labels = np.where(each.rows.labelled.numpy()[:, None] > 0, each.rows.targets.numpy(), told)
    model = np.hstack([each.features.numpy(), np.ones((60, D + 1))])
    expected = minimiser(model, labels, each.weights.numpy(), 0.3, kind == "classes")
    weight, bias = student.parameters()
    found = np.vstack([weight.detach().numpy().T, bias.detach().numpy()])
    assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_training_lowers_the_loss_of_new_rows(kind):
    each = lectures(kind, n=400, ridge=1e-3, dropout="empirical", weights=np.ones(400))
    each = Lectures(**{**vars(each), "rows": each.rows._replace(labelled=torch.ones(400))})
    learnt, new = each.at(torch.arange(300)), each.at(torch.arange(300, 400))
    student = trained_student(learnt, (8,), 200, stream())
    with torch.no_grad():
        everything = torch.arange(100), new.rows.mask
        before, after = (
            new.loss(each_student, *everything)
            for each_student in (new_student(D, len(each.outputs[0]), (), 0), student)
        )
    assert after < 0.9 * before


def test_rows_of_weight_zero_teach_nothing():
    weights = 1.0 * (np.arange(60) < 40)
    each = lectures(weights=weights)
    nothing = torch.where(each.weights > 0, 0.0, torch.nan)[:, None]
    other = Lectures(**{**vars(each), "features": each.features + nothing})
    students = [trained_student(some, (4,), 20, stream()) for some in (each, other)]
    assert torch.equal(*map(flatten, students))


def test_same_stream_gives_the_same_student():
    each = lectures(dropout="empirical")
    one, same, other = (
        flatten(trained_student(each, (4,), 20, stream(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
