"""The base that a teacher corrects: its parts, its range, and what it must not see."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import KNNImputer

from skbilevel.estimators.feature_dropout import held_out_cells
from skbilevel.estimators.imputation_base import (
    BASES,
    N_TREES,
    base_of,
    base_state,
    column_weights,
    fit_base,
)
from skbilevel.estimators.linear_fit import Table
from skbilevel.estimators.tree_imputation import fit_trees
from skbilevel.numerics.observed import mean_and_deviation
from tests.incomplete_data import incomplete
from tests.reference.gaussian import conditional_mean

KINDS = [*BASES, KNNImputer(n_neighbors=3)]


@pytest.fixture(scope="module")
def table():
    _, X = incomplete(90, 4, rate=0.25)
    return Table(X, *mean_and_deviation(X))


@pytest.fixture(scope="module")
def hidden(table):
    return held_out_cells(~np.isnan(table.X), np.random.RandomState(1))


def fitted(base, table, hidden, seed=0):
    return fit_base(base, table, hidden, np.random.RandomState(seed))


@pytest.fixture(scope="module")
def stack(table, hidden):
    return fitted("stack", table, hidden)


# Parts


@pytest.mark.parametrize("base", KINDS, ids=str)
def test_missing_cells_are_filled_near_the_range_and_observed_ones_stay(base, table, hidden):
    Z = table.standardized()
    for each in fitted(base, table, hidden)[:2]:
        filled = each.completed(Z)
        assert_array_equal(filled[~np.isnan(Z)], Z[~np.isnan(Z)])
        assert np.isfinite(filled).all()
        assert (filled >= np.nanmin(Z, axis=0) - 3).all()
        assert (filled <= np.nanmax(Z, axis=0) + 3).all()


def test_means_are_zero(table, hidden):
    Z = table.standardized()
    base, blind, *_ = fitted("mean", table, hidden)
    assert_array_equal(base.completed(Z), np.nan_to_num(Z))
    assert base.memorises is False
    assert blind == base


def test_gaussian_imputes_conditional_means(table, hidden):
    Z = table.standardized()
    base, _, normal, _ = fitted("gaussian", table, hidden)
    parameters = normal.parameters
    means = conditional_mean(Z, parameters.location.numpy(), parameters.covariance.numpy())
    expected = np.clip(means, np.nanmin(Z, axis=0) - 3, np.nanmax(Z, axis=0) + 3)
    assert_allclose(base.completed(Z), expected, rtol=0, atol=1e-9)
    assert np.abs(expected[np.isnan(Z)]).max() > 1


def test_gaussian_that_extrapolates_is_cut_three_deviations_beyond_the_observed_range(
    table, hidden
):
    """The row's only observed cell is a thousand deviations out, and so is its imputation."""
    Z = table.standardized()
    base, _, normal, _ = fitted("gaussian", table, hidden)
    column = int(np.abs(normal.parameters.covariance.numpy()[0, 1:]).argmax()) + 1
    far = np.array([[1e3, np.nan, np.nan, np.nan], [-1e3, np.nan, np.nan, np.nan]])
    ends = np.nanmin(Z[:, column]) - 3, np.nanmax(Z[:, column]) + 3
    assert sorted(base.completed(far)[:, column]) == pytest.approx(ends, rel=1e-15)
    assert_array_equal(base.completed(far)[:, 0], [1e3, -1e3])


def test_gaussian_completes_a_row_that_no_number_can_describe(table, hidden):
    base, *_ = fitted("gaussian", table, hidden)
    assert np.isfinite(base.completed(np.array([[1e308, -1e308, np.nan, np.nan]]))).all()


def test_trees_are_those_of_the_table(table, hidden):
    Z = table.standardized()
    base, blind, *_ = fitted("trees", table, hidden)
    expected = fit_trees(Z, N_TREES, np.random.RandomState(0)).completed(Z)
    assert_array_equal(base.completed(Z), expected)
    assert not np.array_equal(blind.completed(Z), expected)
    assert base.memorises


def test_stack_lies_between_its_parts_by_the_weight_of_the_column(table, stack):
    Z, (base, *_) = table.standardized(), stack
    linear, trees = base.gaussian.completed(Z), base.trees.completed(Z)
    assert_allclose(
        base.completed(Z), (1 - base.weights) * linear + base.weights * trees, atol=1e-14
    )
    assert ((base.weights >= 0) & (base.weights <= 1)).all()
    assert np.abs(linear - trees).max() > 0.1


def test_weights_of_the_stack_are_those_of_the_blind_parts_on_hidden_cells(table, hidden, stack):
    Z, (base, blind, _, odds) = table.standardized(), stack
    seen = np.where(hidden, np.nan, Z)
    parts = blind.gaussian.completed(seen), blind.trees.completed(seen)
    assert_array_equal(base.weights, column_weights(Z, *parts, hidden * odds))
    assert_array_equal(base.weights, blind.weights)


# The weights of the columns


def best_shares(truth, first, second, hidden):
    """Oracle: the share of all columns, and then that of each one, by a search."""

    def error(share, columns):
        mixed = (first + share * (second - first))[:, columns]
        return np.square(mixed - truth[:, columns])[hidden[:, columns]].sum()

    def searched(objective):
        ends = {share: objective(share) for share in (0.0, 1.0)}
        found = minimize_scalar(
            objective, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}
        )
        return min({**ends, found.x: found.fun}.items(), key=lambda pair: pair[1])[0]

    d = truth.shape[1]
    pooled = searched(lambda share: error(share, list(range(d))))
    pull = 2 * np.square(second - first)[hidden].sum() / d
    return [
        searched(lambda share, j=j: error(share, [j]) + pull * (share - pooled) ** 2)
        for j in range(d)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_the_minimiser_of_the_errors_and_the_pull_to_the_pool(seed):
    rng = np.random.default_rng(seed)
    truth, first = rng.normal(size=(2, 40, 5))
    shares = np.array([-1.0, 0.0, 0.4, 0.9, 2.0])
    second = first + (truth - first + 0.3 * rng.normal(size=truth.shape)) / np.where(
        shares == 0, 4, shares
    )
    hidden = rng.random(truth.shape) < 0.4
    weights = column_weights(truth, first, second, hidden)
    assert_allclose(weights, best_shares(truth, first, second, hidden), rtol=0, atol=1e-7)
    assert np.ptp(weights) > 0.2


def test_cells_that_are_not_hidden_have_no_say_in_the_weights():
    rng = np.random.default_rng(0)
    truth, first, second = rng.normal(size=(3, 30, 3))
    hidden = rng.random(truth.shape) < 0.5
    expected = column_weights(truth, first, second, hidden)
    changed = np.where(hidden, truth, np.nan)
    assert_array_equal(column_weights(changed, first, second, hidden), expected)


def test_better_imputation_takes_all_and_equal_ones_leave_it_to_the_first():
    truth, other = np.ones((20, 3)), np.zeros((20, 3))
    hidden = np.ones((20, 3), dtype=bool)
    assert_array_equal(column_weights(truth, other, truth, hidden), np.ones(3))
    assert_array_equal(column_weights(truth, truth, other, hidden), np.zeros(3))
    assert_array_equal(column_weights(truth, other, other, hidden), np.zeros(3))
    assert_array_equal(column_weights(truth, other, truth, ~hidden), np.zeros(3))


def test_column_without_hidden_cells_takes_the_share_of_the_pool():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50, 2))
    truth, hidden = 0.7 * first + 0.3 * second, np.ones((50, 2), dtype=bool)
    hidden[:, 1] = False
    assert_allclose(column_weights(truth, first, second, hidden), [0.3, 0.3], rtol=1e-12)


# What is hidden


@pytest.mark.parametrize("base", ["mean", "gaussian", "trees", KNNImputer(n_neighbors=3)], ids=str)
def test_hidden_cells_do_not_move_the_blind_base(base, table, hidden):
    seen = np.where(hidden, np.nan, table.standardized())
    seen = np.vstack([seen, 20 * seen])  # far rows, whose imputations are cut to the range
    moved = table._replace(X=np.where(hidden, 3 * table.X + 1e3, table.X))
    (whole, blind, *_), (other, same, *_) = (fitted(base, each, hidden) for each in (table, moved))
    assert_array_equal(same.completed(seen), blind.completed(seen))
    assert np.array_equal(other.completed(seen), whole.completed(seen)) == (base == "mean")


def test_hidden_cells_move_a_blind_stack_by_its_weights_alone(table, hidden, stack):
    moved = table._replace(X=np.where(hidden, 3 * table.X + 1e3, table.X))
    seen = np.where(hidden, np.nan, table.standardized())
    seen = np.vstack([seen, 20 * seen])
    blind, other = stack[1], fitted("stack", moved, hidden)[1]
    for part in ("gaussian", "trees"):
        expected = getattr(blind, part).completed(seen)
        assert_array_equal(getattr(other, part).completed(seen), expected)
    assert not np.array_equal(blind.weights, other.weights)


# An imputer of the user's


class Spoilt(TransformerMixin, BaseEstimator):
    """Returns what a function makes of the rows."""

    def __init__(self, make=None):
        self.make = make

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return self.make(X)


def test_own_imputer_sees_the_data_as_they_are_and_is_left_unfitted(table, hidden):
    own = KNNImputer(n_neighbors=3)
    base, blind, *_ = fitted(own, table, hidden)
    assert not hasattr(own, "n_features_in_")
    expected = KNNImputer(n_neighbors=3).fit_transform(table.X)
    found = base.completed(table.standardized()) * table.scale + table.center
    assert_allclose(found, expected, rtol=1e-9)
    seen = np.where(hidden, np.nan, table.X)
    expected = KNNImputer(n_neighbors=3).fit_transform(seen)
    found = blind.completed((seen - table.center) / table.scale) * table.scale + table.center
    assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda X: X, "must be an imputer, and left missing cells"),
        (lambda X: np.nan_to_num(X)[:, 1:], r"must return the 4 columns.*shape \(90, 3\)"),
        (lambda X: np.full(X.shape, np.inf), "must be an imputer, and left missing cells"),
    ],
)
def test_own_imputer_that_drops_columns_or_leaves_cells_is_refused(make, message, table, hidden):
    base, *_ = fitted(Spoilt(make), table, hidden)
    with pytest.raises(ValueError, match=f"base=Spoilt.*{message}"):
        base.completed(table.standardized())


def test_own_imputer_that_moves_observed_cells_is_overruled(table, hidden):
    base, *_ = fitted(Spoilt(lambda X: np.zeros(X.shape)), table, hidden)
    Z = table.standardized()
    expected = np.where(np.isnan(Z), -table.center / table.scale, Z)
    assert_array_equal(base.completed(Z), expected)


# State


@pytest.mark.parametrize("base", KINDS, ids=str)
def test_state_is_plain_and_its_inverse_imputes_alike(base, table, hidden):
    Z = table.standardized()
    for each in fitted(base, table, hidden)[:2]:
        state = base_state(each)
        again = base_of(state)
        assert type(again) is type(each)
        assert_array_equal(again.completed(Z), each.completed(Z))
        assert leaves(state) <= {np.ndarray, str, float, int, type(base)}


def leaves(state):
    """Types at the ends of nested dicts and lists."""
    if isinstance(state, dict | list):
        parts = state.values() if isinstance(state, dict) else state
        return set().union(*map(leaves, parts))
    return {type(state)}
