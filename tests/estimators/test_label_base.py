"""Where the labels of a teacher start."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.label_base import LabelBase, constant_label_base, fit_label_base

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
    base, outputs = fit_label_base(filled, missing, target, False, stream(3))
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
        fit_label_base(filled, missing, each, False, stream()) for each in (target, other)
    )
    assert_array_equal(before[row], after[row])
    assert not np.array_equal(before, after)
    assert not np.array_equal(base.coefficients, base_after.coefficients)


@pytest.mark.parametrize(("n_labelled", "is_constant"), [(9, True), (10, False)])
def test_fewer_than_ten_labels_are_told_by_their_mean(n_labelled, is_constant):
    filled, missing, target = rows(n_labelled=n_labelled)
    base, outputs = fit_label_base(filled, missing, target, False, stream())
    assert (not base.coefficients.any()) == is_constant
    assert (np.ptp(outputs) == 0) == is_constant


def test_trees_get_the_share_that_lowers_the_error_out_of_fold():
    """Of rows and indicators, by brute force over shares; and what comes out is that mix."""
    rng = np.random.default_rng(0)
    filled, missing = rng.normal(size=(200, D)), rng.random((200, D)) < 0.3
    values = np.sign(filled[:, :1]) + filled[:, 1:2] + 0.5 * rng.normal(size=(200, 1))
    target = Target("continuous", values, np.arange(200) < 150, 0.0, 1.0, None)
    base, outputs = fit_label_base(filled, missing, target, True, stream(3))
    table, columns = np.hstack([filled, missing])[:150], values[:150, 0]
    draws = stream(3)
    folds = KFold(5, shuffle=True, random_state=draws.randint(2**31 - 1))
    seed = draws.randint(2**31 - 1)
    forest = ExtraTreesRegressor(30, min_samples_leaf=2, max_features=0.7, random_state=seed)
    ridge = RidgeCV(10.0 ** (np.arange(13) / 2 - 2))
    unseen = np.zeros((2, 150))
    for others, fold in folds.split(table):
        for told, model in zip(unseen, (ridge, forest), strict=True):
            told[fold] = model.fit(table[others], columns[others]).predict(table[fold])
    shares = np.linspace(0, 1, 2001)[:, np.newaxis]
    mixed = unseen[0] + shares * (unseen[1] - unseen[0])
    best = int(np.square(mixed - columns).mean(axis=1).argmin())
    assert 0.2 < base.weight < 1
    assert base.weight == pytest.approx(shares[best, 0], abs=1e-3)
    assert_allclose(outputs[:150, 0], mixed[best], atol=2e-3)
    assert_allclose(outputs[150:], base.outputs(filled[150:], missing[150:]), rtol=1e-12)
    error = np.square(outputs[150:] - values[150:]).mean()
    linear = fit_label_base(filled, missing, target, False, stream(3))[0]
    assert error < np.square(linear.outputs(filled, missing) - values)[150:].mean()
