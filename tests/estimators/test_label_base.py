"""Where the labels of a teacher start."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV

from skbilevel.estimators.bilevel_target import Target
from skbilevel.estimators.label_base import LabelBase, fit_label_base, folds_of_labels

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
    shares = np.array([[0.2, 0.5, 0.3], [1 - 2e-9, 1e-9, 1e-9], [1e-9, 0.5, 0.5 - 1e-9]])
    base = LabelBase(np.vstack([np.log(shares), np.zeros((3, 3))]), np.zeros(3), True)
    found = softmax(base.outputs(np.eye(3), np.zeros((3, 3))), axis=1)
    assert_allclose(found[0], shares[0], rtol=1e-14)
    assert_allclose(found[1], np.array([0.98, 0.02, 0.02]) / 1.02, rtol=1e-14)
    assert_allclose(found[2], np.array([0.02, 0.5, 0.5]) / 1.02, rtol=2e-9)


@pytest.mark.parametrize("is_class", [False, True])
@pytest.mark.parametrize("has_trees", [False, True])
def test_fewer_than_ten_labels_are_told_by_their_mean(is_class, has_trees):
    """Without a fold by that of the others."""
    filled, missing, target = rows(is_class=is_class, n_labelled=9)
    folds = folds_of_labels(target)
    fit = fit_label_base(filled, missing, target, folds, has_trees, stream())
    for known, told in [
        (target.labelled, fit.base.outputs(filled, missing)),
        *((target.labelled & (folds != fold), fit.without[fold]) for fold in range(4)),
    ]:
        mean = target.values[known].mean(axis=0)
        assert_allclose(softmax(told, axis=1) if is_class else told, [shares(mean, is_class)] * 60)


def test_ten_labels_are_told_by_a_regression():
    filled, missing, target = rows(n_labelled=10)
    fit = fit_label_base(filled, missing, target, folds_of_labels(target), False, stream())
    assert fit.base.coefficients.any()
    assert np.ptp(fit.without, axis=1).min() > 0


def shares(told, is_class):
    """Oracle: what is left of shares that are kept off 0 and 1."""
    if not is_class:
        return told
    clipped = np.clip(told, 0.02, 0.98)
    return clipped / clipped.sum(axis=-1, keepdims=True)


def numbers(values):
    """A target of these numbers, some of them NaN."""
    labelled = ~np.isnan(values)
    return Target("continuous", np.nan_to_num(values)[:, None], labelled, 0.0, 1.0, None)


def classes(codes):
    """A target of these classes, -1 where there is none."""
    values = np.eye(codes.max() + 1)[codes] * (codes >= 0)[:, np.newaxis]
    return Target("multiclass", values, codes >= 0, 0.0, 1.0, np.arange(codes.max() + 1))


def test_folds_are_of_labelled_rows_and_of_about_one_size():
    rng = np.random.default_rng(0)
    values = np.where(rng.random(90) < 0.5, rng.normal(size=90), np.nan)
    folds = folds_of_labels(numbers(values))
    assert_array_equal(folds >= 0, ~np.isnan(values))
    counts = np.bincount(folds[folds >= 0])
    assert len(counts) == 4
    assert np.ptp(counts) <= 5


def test_folds_are_blocks_of_rows_in_every_range_of_numbers():
    """So that rows that follow each other are in one fold, and all folds have all numbers."""
    values = np.random.default_rng(0).normal(size=400)
    folds = folds_of_labels(numbers(values))
    fifth = np.searchsorted(np.quantile(values, [0.2, 0.4, 0.6, 0.8]), values)
    for each in range(5):
        assert_array_equal(folds[fifth == each], np.repeat(np.arange(4), 20))
    ranked = folds_of_labels(numbers(np.sort(values)))
    assert (np.bincount(folds) == 100).all()
    assert {tuple(np.unique(part)) for part in np.split(ranked, 5)} == {(0, 1, 2, 3)}


def test_folds_are_blocks_of_rows_of_every_class():
    codes = np.repeat([2, 0, 1], [40, 20, 60])
    folds = folds_of_labels(classes(codes))
    for each, size in enumerate([5, 15, 10]):
        assert_array_equal(folds[codes == each], np.repeat(np.arange(4), size))


def test_rare_classes_are_spread_over_the_folds_together():
    codes = np.array([0] * 8 + [1, 2, 3, 4, 1, 2, 3, 4])
    folds = folds_of_labels(classes(codes))
    assert_array_equal(folds, np.tile(np.repeat(np.arange(4), 2), 2))
    assert_array_equal(folds_of_labels(classes(np.arange(4))), np.arange(4))


@pytest.mark.parametrize(("n_labelled", "n_folds"), [(0, 0), (1, 0), (2, 2), (3, 3), (5, 4)])
def test_few_labels_are_in_few_folds(n_labelled, n_folds):
    folds = folds_of_labels(numbers(np.where(np.arange(6) < n_labelled, np.arange(6), np.nan)))
    assert set(folds[:n_labelled]) <= set(range(n_folds) if n_folds else [-1])
    assert folds.max() + 1 == n_folds
    assert (folds[n_labelled:] == -1).all()


def regression(table, values, where):
    """Oracle: outputs of the better ridge regression of two, with indicators and without; shares
    of three classes by logistic regression."""
    if values.shape[1] > 1:
        model = LogisticRegression(max_iter=1000).fit(table[where], values[where].argmax(axis=1))
        return model.predict_proba(table)
    alphas, index = 10.0 ** (np.arange(13) / 2 - 2), np.flatnonzero(where)
    found = []
    for part in (table[:, :D], table):
        model = RidgeCV(alphas).fit(part[index], values[index])
        # The error of a row without it, of a weight that is the best by the same.
        hidden = [
            Ridge(model.alpha_).fit(part[np.delete(index, k)], values[np.delete(index, k)])
            for k in range(len(index))
        ]
        told = np.stack(
            [each.predict(part[[row]])[0] for each, row in zip(hidden, index, strict=True)]
        )
        error = np.square(told.reshape(len(index), -1) - values[index]).mean()
        found.append((error, model.predict(part).reshape(len(table), -1)))
    return min(found, key=lambda pair: pair[0])[1]


@pytest.mark.parametrize("is_class", [False, True])
def test_label_base_is_told_out_of_fold_where_there_is_a_label(is_class):
    filled, missing, target = rows(is_class=is_class)
    folds = folds_of_labels(target)
    fit = fit_label_base(filled, missing, target, folds, False, stream())
    table, others = np.hstack([filled, missing]), ~target.labelled
    for fold in range(4):
        known = target.labelled & (folds != fold)
        expected = shares(regression(table, target.values, known), is_class)
        told = fit.without[fold]
        assert_allclose(softmax(told, axis=1) if is_class else told, expected, rtol=1e-9)
        assert_array_equal(fit.outputs[folds == fold], told[folds == fold])
    assert_array_equal(fit.outputs[others], fit.base.outputs(filled, missing)[others])
    whole = shares(regression(table, target.values, target.labelled), is_class)
    found = fit.base.outputs(filled, missing)
    assert_allclose(softmax(found, axis=1) if is_class else found, whole, rtol=1e-9)
    assert fit.base.is_class is is_class


@pytest.mark.parametrize("tell", [False, True])
def test_indicators_count_where_they_tell_something(tell):
    rng = np.random.default_rng(1)
    filled, missing = rng.normal(size=(80, D)), rng.random((80, D)) < 0.4
    values = filled[:, :1] + 2.0 * tell * missing[:, :1] + 0.5 * rng.normal(size=(80, 1))
    target = Target("continuous", values, np.ones(80, dtype=bool), 0.0, 1.0, None)
    folds = folds_of_labels(target)
    base = fit_label_base(filled, missing, target, folds, False, stream()).base
    assert base.coefficients[D:].any() == tell


@pytest.mark.parametrize("is_class", [False, True])
def test_what_is_said_without_a_fold_does_not_use_its_labels(is_class):
    filled, missing, target = rows(is_class=is_class)
    folds = folds_of_labels(target)
    fold = np.flatnonzero(folds == 2)
    moved = target.values.copy()
    moved[fold] = np.roll(moved[fold], 1, axis=1) if is_class else 50.0
    other = Target(**{**vars(target), "values": moved})
    before, after = (
        fit_label_base(filled, missing, each, folds, False, stream()) for each in (target, other)
    )
    assert_array_equal(before.without[2], after.without[2])
    assert not np.array_equal(before.without[1], after.without[1])
    assert not np.array_equal(before.base.coefficients, after.base.coefficients)


def test_trees_get_the_share_that_lowers_the_error_out_of_fold():
    """Of rows and indicators, by brute force over shares; and what comes out is that mix."""
    rng = np.random.default_rng(0)
    filled, missing = rng.normal(size=(200, D)), rng.random((200, D)) < 0.3
    values = np.sign(filled[:, :1]) + filled[:, 1:2] + 0.5 * rng.normal(size=(200, 1))
    target = Target("continuous", values, np.arange(200) < 150, 0.0, 1.0, None)
    folds = folds_of_labels(target)
    fit = fit_label_base(filled, missing, target, folds, True, stream(3))
    table, draws = np.hstack([filled, missing]), stream(3)
    linear, trees = np.zeros(150), np.zeros(150)
    for fold in range(4):
        known = target.labelled & (folds != fold)
        seed = draws.randint(2**31 - 1)
        forest = ExtraTreesRegressor(30, min_samples_leaf=2, max_features=0.7, random_state=seed)
        here = np.flatnonzero(folds == fold)
        linear[here] = regression(table, values, known)[here, 0]
        trees[here] = forest.fit(table[known], values[known, 0]).predict(table[here])
    candidates = np.linspace(0, 1, 2001)[:, np.newaxis]
    mixed = linear + candidates * (trees - linear)
    best = int(np.square(mixed - values[:150, 0]).mean(axis=1).argmin())
    assert 0.2 < fit.base.weight < 1
    assert fit.base.weight == pytest.approx(candidates[best, 0], abs=1e-3)
    assert_allclose(fit.outputs[:150, 0], mixed[best], atol=2e-3)
    assert_allclose(fit.outputs[150:], fit.base.outputs(filled[150:], missing[150:]), rtol=1e-12)
    error = np.square(fit.outputs[150:] - values[150:]).mean()
    ridge = fit_label_base(filled, missing, target, folds, False, stream(3)).base
    assert error < np.square(ridge.outputs(filled, missing) - values)[150:].mean()


@pytest.mark.parametrize("present", [(0, 1), (0, 2), (1,), (0, 1, 2)])
def test_classes_that_a_fold_lacks_have_no_share(present):
    """Beside those of a logistic regression of the others, whatever their number."""
    rng = np.random.default_rng(0)
    codes = np.array(present)[rng.integers(0, len(present), 60)]
    filled, missing = rng.normal(size=(60, D)), rng.random((60, D)) < 0.3
    target = Target("multiclass", np.eye(3)[codes], np.ones(60, bool), 0.0, 1.0, np.arange(3))
    base = fit_label_base(filled, missing, target, np.full(60, -1), False, stream()).base
    table, expected = np.hstack([filled, missing]), np.zeros((60, 3))
    expected[:, list(present)] = 1.0
    if len(present) > 1:
        model = LogisticRegression(max_iter=1000).fit(table, codes)
        expected[:, list(present)] = model.predict_proba(table)
    assert_allclose(base.linear(table), expected, atol=1e-9)
