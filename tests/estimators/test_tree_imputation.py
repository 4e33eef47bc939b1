"""Forests as arrays are those of scikit-learn, and columns are imputed in turn by them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import ExtraTreesRegressor

from skbilevel.estimators import tree_imputation
from skbilevel.estimators.tree_imputation import Forest, fit_trees, grown, tree_imputation_of
from tests.incomplete_data import incomplete


def regressor(seed, n_trees=7):
    """The forest of the package in the words of scikit-learn."""
    return ExtraTreesRegressor(n_trees, min_samples_leaf=2, max_features=0.7, random_state=seed)


def first_seed(seed):
    return np.random.RandomState(seed).randint(2**31 - 1)


@pytest.fixture(scope="module")
def pair():
    """One forest as arrays and as scikit-learn has it, on the same rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 4))
    y = np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2] + 0.1 * rng.normal(size=80)
    forest = grown(X, y, 7, np.random.RandomState(0))
    return forest, regressor(first_seed(0)).fit(X, y)


# A forest


def test_predictions_are_those_of_scikit_learn(pair):
    forest, model = pair
    rows = 2 * np.random.default_rng(1).normal(size=(500, 4))
    assert_allclose(forest.predict(rows), model.predict(rows), rtol=1e-14, atol=1e-15)
    assert np.ptp(model.predict(rows)) > 1


@pytest.mark.parametrize("move", [0.0, 1e-9, -1e-9, 1e-16])
def test_values_at_a_threshold_go_the_same_way_after_rounding(pair, move):
    """Rows are rounded to float32 and thresholds are not, as they are when trees grow."""
    forest, model = pair
    inner = np.flatnonzero(forest.feature >= 0)
    rows = np.random.default_rng(2).normal(size=(len(inner), 4))
    rows[np.arange(len(inner)), forest.feature[inner]] = forest.threshold[inner] + move
    assert len(rows) > 100
    assert_allclose(forest.predict(rows), model.predict(rows), rtol=1e-14, atol=1e-15)


def test_value_equal_to_a_threshold_goes_left():
    forest = Forest(
        *map(np.array, ([0], [0, -2, -2], [2, -1, -1])),
        *map(np.array, ([0.5, -2.0, -2.0], [0.0, 10.0, 20.0])),
    )
    rows = np.array([[0.5], [np.nextafter(0.5, 1)], [0.5 + 1e-7]])
    assert_array_equal(forest.predict(rows), [10.0, 10.0, 20.0])


def test_infinite_values_and_those_beyond_single_precision_go_to_the_ends(pair):
    forest, model = pair
    far = np.array([[np.inf, -np.inf, 1e300, -1e300]])
    rows = np.where(np.random.default_rng(3).random((60, 4)) < 0.5, far, 0.1)
    single = np.clip(rows, -3e38, 3e38).astype(np.float32)
    expected = np.mean([tree.tree_.predict(single).ravel() for tree in model.estimators_], axis=0)
    assert_allclose(forest.predict(rows), expected, rtol=1e-14, atol=1e-15)


def test_no_rows_give_no_predictions(pair):
    assert pair[0].predict(np.empty((0, 4))).shape == (0,)


def test_forest_of_one_leaf_predicts_the_mean():
    forest = grown(np.zeros((3, 2)), np.array([1.0, 2.0, 6.0]), 4, np.random.RandomState(0))
    assert_array_equal(forest.predict(np.ones((2, 2))), [3.0, 3.0])


def test_every_tree_draws_its_own_rows_without_repetition(monkeypatch):
    monkeypatch.setattr(tree_imputation, "_MOST_ROWS", 25)
    X = np.random.default_rng(0).normal(size=(40, 3))
    # The sum of the rows of a tree has a bit for each of them.
    forest = grown(X, 2.0 ** np.arange(40), 7, np.random.RandomState(0))
    drawn = [round(25 * mean) for mean in forest.value[forest.roots]]
    assert [bin(rows).count("1") for rows in drawn] == 7 * [25]
    assert len(set(drawn)) == 7


# Columns in turn


def columns_in_turn(Z, seed, n_trees=12):
    """Oracle: Z complete, and (column, regressor) in the order in which they were fitted."""
    stream, missing, filled = np.random.RandomState(seed), np.isnan(Z), Z.copy()
    for i, j in np.argwhere(missing):
        filled[i, j] = np.mean([z for z in Z[:, j] if not np.isnan(z)])
    by_missing = sorted(range(Z.shape[1]), key=lambda j: missing[:, j].sum())
    fitted = []
    for is_last in (False, False, True):
        # Rounds before the last are grown with at most ten trees.
        n_grown = n_trees if is_last else min(n_trees, 10)
        for j in by_missing:
            if not missing[:, j].any() and not is_last:
                continue
            others = [k for k in range(Z.shape[1]) if k != j]
            model = regressor(stream.randint(2**31 - 1), n_grown)
            model.fit(filled[~missing[:, j]][:, others], Z[~missing[:, j], j])
            fitted.append((j, model))
            for i in np.flatnonzero(missing[:, j]):
                filled[i, j] = model.predict(filled[i : i + 1, others])[0]
    return filled, fitted


@pytest.fixture(scope="module")
def rows():
    """Standardised, the second column complete."""
    X, Z = incomplete(60, 4, rate=0.25)
    Z[:, 1] = X[:, 1]
    return (Z - np.nanmean(Z, axis=0)) / np.nanstd(Z, axis=0)


@pytest.fixture(scope="module")
def fitted(rows):
    return fit_trees(rows, 12, np.random.RandomState(3))


def test_rows_are_completed_as_by_a_loop_of_regressors(rows, fitted):
    expected, sequence = columns_in_turn(rows, 3)
    assert_allclose(fitted.completed(rows), expected, rtol=1e-12)
    assert [column for column, _ in fitted.sequence] == [column for column, _ in sequence]


def test_new_rows_are_completed_by_the_same_sequence_whatever_they_lack(rows, fitted):
    new = np.where(np.random.default_rng(5).random((20, 4)) < 0.5, np.nan, rows[:20] + 0.1)
    new[0] = np.nan
    expected = np.where(np.isnan(new), np.nanmean(rows, axis=0), new)
    for column, model in columns_in_turn(rows, 3)[1]:
        told = model.predict(np.delete(expected, column, axis=1))
        expected[:, column] = np.where(np.isnan(new[:, column]), told, expected[:, column])
    assert np.isnan(new[:, 1]).sum() > 5
    assert_allclose(fitted.completed(new), expected, rtol=1e-12)


def test_observed_cells_are_untouched_and_the_rows_given_too(rows, fitted):
    before = rows.copy()
    completed = fitted.completed(rows)
    assert_array_equal(completed[~np.isnan(rows)], rows[~np.isnan(rows)])
    assert np.isfinite(completed).all()
    assert_array_equal(rows, before)


def test_rows_are_sent_through_a_part_at_a_time(rows, fitted, monkeypatch):
    whole = fitted.completed(rows)
    monkeypatch.setattr(tree_imputation, "_ROWS_AT_A_TIME", 3)
    assert_array_equal(fitted.completed(rows), whole)


def test_single_column_is_imputed_by_its_mean():
    Z = np.array([[1.0], [np.nan], [4.0]])
    trees = fit_trees(Z, 5, np.random.RandomState(0))
    assert_array_equal(trees.completed(Z), [[1.0], [2.5], [4.0]])


def test_state_is_arrays_and_plain_python_and_its_inverse_imputes_alike(rows, fitted):
    state = fitted.state()
    assert type(state["columns"]) is list
    assert {type(column) for column in state["columns"]} == {int}
    parts = [part for forest in state["forests"] for part in forest.values()]
    assert {type(part) for part in [*parts, state["start"]]} == {np.ndarray}
    assert_array_equal(tree_imputation_of(state).completed(rows), fitted.completed(rows))


def test_the_same_stream_gives_the_same_forests(rows, fitted):
    again, other = (fit_trees(rows, 12, np.random.RandomState(seed)) for seed in (3, 4))
    assert_array_equal(again.completed(rows), fitted.completed(rows))
    assert not np.array_equal(other.completed(rows), fitted.completed(rows))
