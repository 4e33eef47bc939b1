"""What is told of rows by models that have not seen them, against loops over splits."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GroupShuffleSplit, KFold

from skbilevel.estimators import nuisances
from skbilevel.estimators.nuisances import Folds, Learner, Split, splits_of, varying
from skbilevel.estimators.nystroem import NystroemRidge
from skbilevel.estimators.smoother import (
    RIDGES,
    Axes,
    Gram,
    Products,
    fitted_smoother,
    with_ridges,
)

N = 80
SMOOTH = NystroemRidge(n_centers=15, bandwidth=1.0, random_state=0)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 2))
    noise = rng.normal(size=(N, 1))
    Y = np.column_stack([np.sin(X[:, 0]), X[:, 1], np.full(N, 3.0)]) + 5
    Y[:, :2] += 0.5 * noise + 0.2 * rng.normal(size=(N, 2))
    # Folds of 27, 27 and 26 rows.
    side = rng.permutation(N) % 2 == 0
    return X, Y, Folds(splits_of(3, X, None, 0), side, None, 0)


def smoother_without(learner, X, Y, split, ridges=RIDGES):
    """The features, and the smoother of the training rows of a split."""
    z = learner.prepared(X, Y)(X)
    axes = Axes.of(Gram.of(z[split.train]))
    products = Products.of(z[split.train], Y[split.train] - Y.mean(axis=0))
    return z, fitted_smoother(axes, products, ridges)


def test_smoother_tells_each_fold_what_the_others_say(data):
    X, Y, folds = data
    learner = Learner(SMOOTH, "second_order", 0)
    told = learner.tell(X, Y, folds)
    shared = np.zeros((2, 2))
    for number, split in enumerate(folds.splits):
        z, found = smoother_without(learner, X, Y[:, :2], split)
        expected = found.predict(z[split.test]) + Y[:, :2].mean(axis=0)
        assert_allclose(told.means[split.test][:, :2], expected, rtol=1e-8)
        assert_allclose(told.ridges[number][:2], found.ridges)
        centred = Y[split.train][:, :2] - Y[:, :2].mean(axis=0)
        weights, noise = [], []
        for output in range(2):
            hat = found.weights(z[split.train], z[split.train], output)
            residuals = centred[:, output] - hat @ centred[:, output]
            noise.append(residuals / np.sqrt(1 - np.diag(hat)))
            weights.append(found.weights(z[split.test], z[split.train], output))
        for a in range(2):
            for b in range(2):
                shared[a, b] += (weights[a] * weights[b] @ (noise[a] * noise[b])).sum() / N
    assert_allclose(told.shared[0, :2, :2], shared, rtol=1e-6)
    assert np.abs(shared).min() > 1e-4
    assert_array_equal(told.shared[0, 2], 0)


def test_constant_outputs_are_what_they_are(data):
    X, Y, folds = data
    for nuisance in (SMOOTH, Ridge()):
        told = Learner(nuisance, "none", 0).tell(X, Y, folds)
        assert_array_equal(told.means[:, 2], 8.0)


def test_what_is_told_does_not_depend_on_the_rows_that_are_told(data):
    X, Y, folds = data
    test = folds.splits[1].test
    for learner in (Learner(SMOOTH, "second_order", 0), Learner(Ridge(), "disjoint", 0)):
        before = learner.tell(X, Y, folds)
        rows = learner.rows(X, learner.prepared(X, Y), folds)
        other = Y.copy()
        other[test, :2] += np.arange(len(test))[:, None]
        # Outputs are told less their mean, of which predictions know nothing but rounding.
        after = learner.tell(X, other, folds, rows)
        assert_allclose(after.means[test], before.means[test], rtol=1e-9)
        assert np.abs(after.means - before.means).max() > 1


def test_regressor_tells_each_output_by_a_clone_of_its_own(data):
    X, Y, folds = data
    told = Learner(Ridge(alpha=2.0), "none", 0).tell(X, Y, folds)
    assert_array_equal(told.shared, 0)
    for split in folds.splits:
        model = Ridge(alpha=2.0).fit(X[split.train], Y[split.train, 0])
        assert_allclose(told.means[split.test, 0], model.predict(X[split.test]), rtol=1e-12)


@pytest.mark.parametrize("nuisance", [LinearRegression(), SMOOTH], ids=["linear", "smoother"])
def test_product_of_means_from_disjoint_halves_shares_no_row(data, nuisance):
    """mean^2 - shared is the product of what one half says and what the other half says."""
    X, Y, folds = data
    learner = Learner(nuisance, "disjoint", 0)
    told, halves = learner.tell(X, Y, folds), []
    for kept in (folds.side, ~folds.side):
        part = [Split(split.train[kept[split.train]], split.test) for split in folds.splits]
        plain, half = Learner(nuisance, "none", 0), Folds(part, folds.side, None, 0)
        halves.append(plain.tell(X, Y, half).means)
    assert_allclose(told.means, (halves[0] + halves[1]) / 2, rtol=1e-10)
    product = told.means[:, :, None] * told.means[:, None] - told.shared
    one, other = (a[:, :, None] * b[:, None] for a, b in (halves, halves[::-1]))
    assert_allclose(product, (one + other) / 2, rtol=1e-9)
    assert np.abs(halves[0] - halves[1]).max() > 0.01


def test_blocks_do_not_change_what_is_told(data, monkeypatch):
    X, Y, folds = data
    learner = Learner(SMOOTH, "second_order", 0)
    whole = learner.tell(X, Y, folds)
    monkeypatch.setattr(nuisances, "_BLOCK", 7)
    monkeypatch.setattr(nuisances, "_KEPT", 0)
    parts = learner.tell(X, Y, folds)
    assert_allclose(parts.means, whole.means, rtol=1e-9)
    assert_allclose(parts.shared, whole.shared, rtol=1e-7)


def test_ridges_that_are_given_are_kept(data):
    X, Y, folds = data
    for correction in ("second_order", "disjoint"):
        learner = Learner(SMOOTH, correction, 0)
        told = learner.tell(X, Y, folds)
        rows = learner.rows(X, learner.prepared(X, Y), folds)
        again = learner.tell(X, Y, folds, rows, told.ridges)
        assert_allclose(again.means, told.means, rtol=1e-10)
        stronger = [10 * each for each in told.ridges]
        other = learner.tell(X, Y, folds, rows, stronger)
        assert np.abs(other.means - told.means).max() > 1e-3


@pytest.fixture(scope="module")
def grouped():
    """Twenty groups of three to five rows, whose outputs are noisy together."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), rng.integers(3, 6, 20))
    rng.shuffle(groups)
    X = rng.normal(size=(len(groups), 2)) + rng.normal(size=(20, 2))[groups]
    shock, noise = rng.normal(size=(20, 1))[groups], rng.normal(size=(len(groups), 2))
    Y = np.column_stack([np.sin(X[:, 0]), X[:, 1]]) + shock + 0.3 * noise
    side = rng.permutation(20) % 2 == 0
    return X, Y, Folds(splits_of(4, X, groups, 0), side[groups], groups, 0)


@pytest.mark.parametrize("block", [4096, 9])
def test_noise_of_groups_is_shared_by_sums(grouped, monkeypatch, block):
    monkeypatch.setattr(nuisances, "_BLOCK", block)
    X, Y, folds = grouped
    nuisance = NystroemRidge(n_centers=15, bandwidth=1.0, ridge=0.01, random_state=0)
    learner = Learner(nuisance, "second_order", 0)
    told, expected = learner.tell(X, Y, folds), np.zeros((2, 2))
    for split in folds.splits:
        assert not set(folds.groups[split.train]) & set(folds.groups[split.test])
        z, found = smoother_without(learner, X, Y, split, [0.01])
        weighted = []
        for output in range(2):
            hat = found.weights(z[split.train], z[split.train], output)
            e = Y[split.train, output] - Y[:, output].mean()
            noise = (e - hat @ e) / np.sqrt(1 - np.diag(hat))
            weights = found.weights(z[split.test], z[split.train], output) * noise
            names = folds.groups[split.train]
            weighted.append(np.stack([weights[:, names == g].sum(axis=1) for g in set(names)]))
        for a in range(2):
            for b in range(2):
                expected[a, b] += (weighted[a] * weighted[b]).sum() / len(X)
    assert_allclose(told.shared[0], expected, rtol=1e-6)
    alone = learner.tell(X, Y, Folds(folds.splits, folds.side, None, 0))
    assert told.shared[0, 0, 0] > 1.2 * alone.shared[0, 0, 0]


def test_ridges_of_groups_are_those_that_tell_other_groups_best(grouped):
    X, Y, folds = grouped
    nuisance = NystroemRidge(n_centers=15, bandwidth=1.0, random_state=0)
    learner = Learner(nuisance, "none", 0)
    features = learner.prepared(X, Y, folds.groups)
    told = learner.tell(X, Y, folds, learner.rows(X, features, folds))
    z, ridges = features(X), np.asarray(RIDGES)
    for split, found in zip(folds.splits, told.ridges, strict=True):
        errors = np.zeros((len(ridges), 2))
        for other in folds.splits:
            left_out = np.intersect1d(other.test, split.train)
            rest = np.setdiff1d(split.train, left_out)
            for number, ridge in enumerate(ridges):
                axes = Axes.of(Gram.of(z[rest]))
                model = with_ridges(axes, Products.of(z[rest], Y[rest]), np.full(2, ridge))
                errors[number] += ((Y[left_out] - model.predict(z[left_out])) ** 2).sum(axis=0)
        assert_allclose(found, ridges[errors.argmin(axis=0)])


def test_folds_shuffle_rows_and_keep_groups_together():
    X, groups = np.zeros((30, 1)), np.repeat(np.arange(10), 3)
    splits = splits_of(5, X, None, 0)
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(30))
    assert any((np.diff(split.test) > 1).any() for split in splits)
    assert any(
        (a.test != b.test).any() for a, b in zip(splits, splits_of(5, X, None, 1), strict=True)
    )
    for split in splits_of(5, X, groups, 0):
        assert not set(groups[split.train]) & set(groups[split.test])


def test_splits_may_be_given():
    X = np.zeros((12, 1))
    masks = [(np.arange(12) < 6, np.arange(12) >= 6)]
    (split,) = splits_of(masks, X, None, 0)
    assert_array_equal(split.train, np.arange(6))
    assert_array_equal(split.test, np.arange(6, 12))
    assert len(splits_of(KFold(3), X, None, 0)) == 3


@pytest.mark.parametrize(
    ("cv", "groups", "message"),
    [
        (7, None, r"cv=7 needs as many rows or groups; n_samples=6"),
        (4, [0, 0, 1, 1, 2, 2], r"cv=4 needs as many rows or groups; number of groups=3"),
        ([([0, 1, 2], [2, 3])], None, "rows in both the training and the test set"),
        (GroupShuffleSplit(4, random_state=0), [0, 0, 1, 1, 2, 2], "tells a row twice"),
    ],
)
def test_splits_that_cannot_be_are_named(cv, groups, message):
    groups = None if groups is None else np.array(groups)
    with pytest.raises(ValueError, match=message):
        splits_of(cv, np.zeros((6, 1)), groups, 0)


def test_nuisances_that_draw_are_seeded(data):
    X, Y, folds = data
    trees = ExtraTreesRegressor(n_estimators=3)
    first, again, other = (
        Learner(trees, "none", seed).tell(X, Y, folds).means for seed in (1, 1, 2)
    )
    assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    named = ExtraTreesRegressor(n_estimators=3, random_state=5)
    first, again = (Learner(named, "none", s).tell(X, Y, folds).means for s in (1, 2))
    assert_array_equal(first, again)


def test_outputs_vary_beyond_rounding():
    columns = [np.full(9, 0.1), np.full(9, 0.1) * (1 + 1e-16 * np.arange(9)), np.arange(9.0)]
    assert varying(np.column_stack(columns)).tolist() == [False, False, True]


def test_nothing_is_learnt_where_nothing_varies(data):
    X, _, folds = data
    told = Learner(SMOOTH, "second_order", 0).tell(X, np.full((N, 2), 1.5), folds)
    assert_array_equal(told.means, 1.5)
    assert_array_equal(told.shared, 0)
