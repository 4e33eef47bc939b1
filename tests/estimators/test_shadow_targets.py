"""Shadow targets of a table: conditioned without the target, and learnt tilts of planted ones."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LinearRegression

from skbilevel.estimators.shadow_targets import (
    N_FOLDS,
    RIDGE,
    affordable,
    column_target,
    conditional_law,
    folds,
    free_loss,
    is_too_wide,
    mask_fits,
    outcome_target,
    predictable,
    target_columns,
)
from skbilevel.objectives.normal import NormalParameters, precision
from skbilevel.objectives.shadow_tilt import losses, stacked
from tests.reference.gaussian import condition

LOCATION = np.array([0.2, -0.1, 0.0, 0.3])
COVARIANCE = np.array(
    [[1.0, 0.6, 0.3, 0.5], [0.6, 1.2, 0.4, 0.6], [0.3, 0.4, 0.9, 0.2], [0.5, 0.6, 0.2, 1.1]]
)
PARAMETERS = NormalParameters(*(torch.from_numpy(part) for part in (LOCATION, COVARIANCE)))


def table(n_rows=50, seed=0, rate=0.4):
    rng = np.random.default_rng(seed)
    Z = rng.multivariate_normal(LOCATION, COVARIANCE, n_rows)
    return Z, np.where(rng.random(Z.shape) < rate, np.nan, Z)


def rows_of(part, target):
    """A part of a target by rows, without fillers, in the order of the folds."""
    return part[target.present[..., 0] > 0]


def in_order(part):
    """The rows of a table in the order of `rows_of`, for the generator of `rng`."""
    order = folds(len(part), rng())
    return part[order[order < len(part)]]


def rng():
    return np.random.RandomState(0)


def test_law_of_every_row_is_the_textbook_conditional():
    _, Z = table()
    Z[0], Z[1] = np.nan, 0.5
    law = conditional_law(Z, precision(PARAMETERS))
    for row, mean, covariance in zip(Z, *law, strict=True):
        expected = condition(row, LOCATION, COVARIANCE)
        assert_allclose(mean, expected[0], rtol=1e-10, atol=1e-12)
        assert_allclose(covariance, expected[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("column", [0, 3])
def test_target_does_not_predict_itself(column):
    """Rows are as they are without the column, whatever stands there."""
    _, Z = table()
    seen = ~np.isnan(Z[:, column])
    other = Z.copy()
    other[seen, column] = np.random.default_rng(1).normal(size=seen.sum()) * 100
    ours, theirs = (column_target(X, column, PARAMETERS, rng()) for X in (Z, other))
    assert_array_equal(ours.mean, theirs.mean)
    assert_array_equal(ours.covariance, theirs.covariance)
    for target, table_ in ((ours, Z), (theirs, other)):
        assert_array_equal(rows_of(target.values, target)[:, 0], in_order(table_[seen, column]))


def test_target_rows_are_conditioned_on_the_other_columns_only():
    _, Z = table()
    target = column_target(Z, 1, PARAMETERS, rng())
    rows, others = in_order(Z[~np.isnan(Z[:, 1])]), [0, 2, 3]
    rows[:, 1] = np.nan
    laws = (rows_of(part, target) for part in (target.mean, target.covariance))
    for row, mean, covariance in zip(rows, *laws, strict=True):
        expected = condition(row, LOCATION, COVARIANCE)
        assert_allclose(mean[others], expected[0][others], rtol=1e-10, atol=1e-12)
        inner = np.ix_(others, others)
        assert_allclose(covariance[inner], expected[1][inner], atol=1e-12)
        assert mean[1] == 0 and not covariance[:, 1].any() and not covariance[1].any()


def test_outcome_is_predicted_where_it_is_known():
    _, Z = table()
    y = np.random.default_rng(2).normal(size=(50, 2))
    y[::3] = np.nan
    target = outcome_target(Z, y, PARAMETERS, rng())
    labelled = ~np.isnan(y[:, 0])
    law = conditional_law(in_order(Z[labelled]), precision(PARAMETERS))
    assert_array_equal(rows_of(target.values, target), in_order(y[labelled]))
    assert_allclose(rows_of(target.mean, target), law.mean, rtol=1e-12)
    assert_allclose(rows_of(target.covariance, target), law.covariance, atol=1e-12)
    short = target.present[..., 0] == 0
    assert short.sum() == 2
    assert not any(part[short].any() for part in target)


def test_mask_is_told_without_the_column():
    """Rows of the textbook conditional, and regressions of scikit-learn."""
    _, Z = table(80)
    fits = mask_fits(Z, [0, 2], PARAMETERS)
    for column, fit in zip([0, 2], fits, strict=True):
        blind = Z.copy()
        blind[:, column] = np.nan
        predicted = np.array([condition(row, LOCATION, COVARIANCE)[0] for row in blind])
        missing = np.isnan(Z[:, column])
        by_line = np.corrcoef(missing, predicted[:, column])[0, 1]
        by_all = LinearRegression().fit(predicted, missing).score(predicted, missing)
        assert_allclose(fit, [by_line, by_all, predicted[:, column].std()], rtol=1e-8)


def related(n_columns, n_alone=0):
    """Parameters of columns that share a factor, the last of which do not."""
    share = np.r_[np.full(n_columns - n_alone, 0.7), np.zeros(n_alone)]
    covariance = np.outer(share, share) + np.diag(1 - share**2)
    return NormalParameters(*map(torch.from_numpy, (np.zeros(n_columns), covariance)))


def with_missing(numbers):
    Z = np.zeros((100, len(numbers)))
    for j, n_missing in enumerate(numbers):
        Z[: 10 * n_missing, j] = np.nan
    return Z


def test_columns_with_the_most_observed_cells_serve():
    Z = with_missing([7, 0, 5, 2, 6, 0, 1, 1, 1, 1, 1, 1])
    assert target_columns(Z, related(12)) == [1, 5, 6, 7, 8, 9, 10, 11]
    assert target_columns(Z[:, :5], related(5)) == [1, 3, 2]


@pytest.mark.parametrize(
    ("n_rows", "n_columns", "n_targets"),
    [(5000, 30, 8), (5000, 90, 5), (5000, 110, 3), (5000, 130, 0), (50, 130, 8)],
)
def test_wide_tables_have_as_many_targets_as_leave_four_rows_a_column(
    n_rows, n_columns, n_targets
):
    """2**24 numbers hold n_targets covariances of so many rows."""
    found = affordable(list(range(8)), n_rows, n_columns)
    assert found == list(range(n_targets))
    assert is_too_wide(n_rows, n_columns) == (n_targets == 0)
    if n_targets:
        rows = 2**24 // (n_targets * n_columns**2)
        assert rows >= min(n_rows, 4 * n_columns)
        assert n_targets == 8 or 2**24 // ((n_targets + 1) * n_columns**2) < 4 * n_columns


def test_columns_that_others_tell_nothing_of_do_not_serve():
    """They are complete, and would take the place of those that have something to tell."""
    Z = with_missing([3, 3, 3, 3, 0, 0])
    assert target_columns(Z, related(6, n_alone=2)) == [0, 1, 2, 3]
    assert target_columns(Z[:, :2], related(2)) == []


def test_predictable_is_the_adjusted_r2_of_a_regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
    parameters = NormalParameters(
        torch.from_numpy(X.mean(axis=0)), torch.from_numpy(np.cov(X.T, ddof=0))
    )
    for j, told in enumerate(predictable(parameters, np.full(4, 500))):
        others = np.delete(X, j, axis=1)
        r2 = LinearRegression().fit(others, X[:, j]).score(others, X[:, j])
        assert told == pytest.approx(1 - (1 - r2) * 499 / 496, rel=1e-9)
    assert_array_equal(predictable(parameters, np.full(4, 4)), np.zeros(4))


def test_folds_are_even_and_every_row_is_in_one():
    parts = folds(23, rng())
    assert parts.shape == (N_FOLDS, 5)
    assert_array_equal(np.sort(parts.ravel()), [*range(23), 23, 23])
    assert sorted((parts < 23).sum(axis=1)) == [4, 4, 5, 5, 5]


def test_right_tilt_makes_every_column_easier_to_predict():
    """Cells are rare that are missing with odds exp(1.2 x), and the normal is that of all: at the
    true tilt each target gains, against it each loses; and an indicator explains y = missing where
    no tilt can."""
    complete, _ = table(8000, seed=3)
    odds = np.exp(1.2 * complete[:, :3] - 3.0)
    gone = np.random.default_rng(4).random((8000, 3)) < odds / (1 + odds)
    Z = complete.copy()
    Z[:, :3][gone] = np.nan
    targets = stacked([column_target(Z, column, PARAMETERS, rng()) for column in range(4)])
    tilt = torch.tensor([1.2, 1.2, 1.2, 0.0], dtype=torch.float64)
    at_random = losses(targets, 0 * tilt, RIDGE)
    assert (at_random - losses(targets, tilt, RIDGE) > 5).all()
    assert (at_random - losses(targets, -tilt, RIDGE) < -5).all()
    y = gone[:, :1].astype(float)
    told = outcome_target(Z, y, PARAMETERS, rng())
    free = losses(told, 0 * tilt, RIDGE) - free_loss(told)
    assert free > 1000
