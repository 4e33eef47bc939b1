"""The fitted normal with self-masking: quantiles, draws and densities of rows."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm, truncnorm

import skbilevel.estimators.linear_model as linear_model
import skbilevel.numerics.row_groups as row_groups
from skbilevel.estimators.linear_fit import no_mechanism
from skbilevel.estimators.linear_model import NO_LIMIT, LinearModel
from skbilevel.numerics.random import row_keys
from skbilevel.objectives.normal import NormalParameters
from skbilevel.objectives.self_masking import SelfMasking
from tests.reference import tail_prior as oracle
from tests.reference.gaussian import condition

# In standardised units.
LOCATION = np.array([0.1, -0.2, 0.3])
COVARIANCE = np.array([[1.0, 0.6, 0.3], [0.6, 1.2, 0.5], [0.3, 0.5, 0.9]])
CENTER, SCALE = np.array([10.0, -5.0, 0.0]), np.array([2.0, 0.1, 30.0])
SIDE, THRESHOLD = np.array([1.0, -1.0, 0.0]), np.array([0.5, -0.4, 0.0])
SOFT, HARD = np.array([0.4, 0.8, 1.0]), np.array([0.0, 0.0, 1.0])
# Points that a quantile is read from; golden points fill the square to within a few of them.
N_POINTS = 512


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def model(width, limit=NO_LIMIT, center=CENTER, scale=SCALE):
    mechanism = SelfMasking(tensor(SIDE), tensor(THRESHOLD), tensor(width))
    parameters = NormalParameters(tensor(LOCATION), tensor(COVARIANCE))
    return LinearModel(parameters, mechanism, center, scale, limit)


def rows(n_rows=30, seed=0):
    """Rows that lack column 0, or 1, or 2, or nothing, within the limits where observed."""
    rng = np.random.default_rng(seed)
    Z = rng.multivariate_normal(LOCATION, COVARIANCE, n_rows)
    Z[:, 0], Z[:, 1] = np.minimum(Z[:, 0], 0.499), np.maximum(Z[:, 1], -0.399)
    X = Z * SCALE + CENTER
    lacking = np.arange(n_rows) % 4
    X[lacking == 0, 0] = X[lacking == 1, 1] = X[lacking == 2, 2] = np.nan
    return X


def several_holes(n_rows=25, seed=1):
    X = rows(n_rows, seed)
    X[::3, 0] = X[::4, 1] = X[::5, 2] = np.nan
    return X


def conditional(row):
    """Column of the missing cell, and its mean and deviation given the others, in data units."""
    completed, covariance, _ = condition((row - CENTER) / SCALE, LOCATION, COVARIANCE)
    (j,) = np.flatnonzero(np.isnan(row))
    return j, completed[j] * SCALE[j] + CENTER[j], covariance[j, j] ** 0.5 * SCALE[j]


def incomplete(X):
    return [(i, row) for i, row in enumerate(X) if np.isnan(row).sum() == 1]


def truncated(j, mean, sd):
    limit = (THRESHOLD[j] * SCALE[j] + CENTER[j] - mean) / sd
    ends = {1.0: (limit, np.inf), -1.0: (-np.inf, limit), 0.0: (-np.inf, np.inf)}
    return truncnorm(*ends[SIDE[j]], loc=mean, scale=sd)


def tilted_cdf(j, mean, sd, width):
    """Distribution function of N(x) Phi(s (x - b) / w), by quadrature."""
    threshold, spread = THRESHOLD[j] * SCALE[j] + CENTER[j], width[j] * SCALE[j]

    def integral(end):
        return quad(
            lambda x: (
                norm.pdf(x, mean, sd)
                * (norm.cdf(SIDE[j] * (x - threshold) / spread) if SIDE[j] else 1.0)
            ),
            mean - 10 * sd,
            end,
            epsabs=1e-12,
        )[0]

    total = integral(mean + 10 * sd)
    return lambda x: integral(x) / total


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_quantiles_within_a_hard_limit_are_those_of_the_truncated_normal(level):
    """Exact at the points of the grid, and between two of them elsewhere."""
    X = rows()
    ours = model(HARD).quantile(X, level)
    for i, row in incomplete(X):
        j, mean, sd = conditional(row)
        reached = truncated(j, mean, sd).cdf(ours[i, j])
        # Column 2 has no limit, and its points are the golden ones.
        assert reached == pytest.approx(level, abs=(0.51 if SIDE[j] else 2.0) / N_POINTS)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_quantiles_of_a_soft_mechanism_are_those_of_the_tilted_normal(level):
    X = rows(12)
    ours = model(SOFT).quantile(X, level)
    for i, row in incomplete(X):
        j, mean, sd = conditional(row)
        assert tilted_cdf(j, mean, sd, SOFT)(ours[i, j]) == pytest.approx(level, abs=6 / N_POINTS)


def test_median_differs_from_the_mean_by_the_skewness_of_the_truncated_normal():
    X = rows()
    mean_, median_ = model(HARD).completed(X), model(HARD).quantile(X, 0.5)
    for i, row in incomplete(X):
        j, mean, sd = conditional(row)
        assert mean_[i, j] == pytest.approx(truncated(j, mean, sd).mean(), rel=1e-8)
        gap = truncated(j, mean, sd).median() - truncated(j, mean, sd).mean()
        assert median_[i, j] - mean_[i, j] == pytest.approx(gap, abs=0.01 * sd)
        assert abs(gap) > 0.05 * sd or SIDE[j] == 0


def test_quantiles_do_not_depend_on_how_many_are_read_at_a_time(monkeypatch):
    X = several_holes()
    whole = model(SOFT).quantile(X, 0.3)
    monkeypatch.setattr(linear_model, "_CELLS_AT_A_TIME", N_POINTS)
    assert_allclose(model(SOFT).quantile(X, 0.3), whole, rtol=1e-12)


def test_probabilities_of_soft_quantiles_are_ordered():
    X = several_holes()
    levels = [model(SOFT).quantile(X, level) for level in (0.05, 0.3, 0.7, 0.95)]
    missing = np.isnan(X)
    assert (np.diff(levels, axis=0)[:, missing] > 0).all()
    assert_array_equal(levels[0][~missing], X[~missing])


# Draws


@pytest.mark.parametrize("width", [SOFT, HARD], ids=["soft", "hard"])
def test_draws_belong_to_their_rows(width):
    """Not to the batch, nor to its order, nor to how many are drawn."""
    X = several_holes()
    keys = row_keys(X, seed=7)
    ours = model(width).drawn(X, keys, 3)
    order = np.random.default_rng(0).permutation(len(X))
    assert_allclose(model(width).drawn(X[order], keys[order], 3), ours[:, order], rtol=1e-9)
    parts = [model(width).drawn(X[part], keys[part], 3) for part in (slice(0, 1), slice(1, 25))]
    assert_allclose(np.concatenate(parts, axis=1), ours, rtol=1e-9)
    assert_array_equal(model(width).drawn(X, keys, 2), ours[:2])
    missing = np.isnan(X)
    assert_array_equal(ours[:, ~missing], np.broadcast_to(X[~missing], (3, (~missing).sum())))
    assert not np.isclose(ours[0][missing], ours[1][missing], rtol=1e-6).any()
    assert not np.isclose(model(width).drawn(X, row_keys(X, seed=8), 1), ours[0])[0][missing].any()


def test_draws_do_not_depend_on_how_many_are_made_side_by_side(monkeypatch):
    X = several_holes()
    keys = row_keys(X, seed=7)
    whole = model(SOFT).drawn(X, keys, 5)
    monkeypatch.setattr(linear_model, "_CELLS_AT_A_TIME", 1)
    assert_allclose(model(SOFT).drawn(X, keys, 5), whole, rtol=1e-12)


@pytest.mark.parametrize("width", [SOFT, HARD], ids=["soft", "hard"])
def test_draws_of_one_missing_cell_have_its_distribution(width):
    """4,000 draws a row: the largest distance of the distribution functions is below 1.95 /
    sqrt(n) in all but one of a thousand cases."""
    X, n_draws = rows(3), 4000
    ours = model(width).drawn(X, row_keys(X, seed=1), n_draws)
    for i, row in incomplete(X):
        j, mean, sd = conditional(row)
        cdf = truncated(j, mean, sd).cdf if width is HARD else tilted_cdf(j, mean, sd, SOFT)
        points = np.quantile(ours[:, i, j], np.linspace(0.03, 0.97, 13))
        empirical = np.searchsorted(np.sort(ours[:, i, j]), points, side="right") / n_draws
        assert_allclose(empirical, [cdf(x) for x in points], atol=1.95 / n_draws**0.5)


def test_no_draw_is_within_the_limit_of_a_missing_cell():
    X = several_holes()
    drawn = model(HARD).drawn(X, row_keys(X, seed=3), 200)
    limit, missing = THRESHOLD * SCALE + CENTER, np.isnan(X)
    assert (drawn[:, missing[:, 0], 0] >= limit[0] - 1e-9).all()
    assert (drawn[:, missing[:, 1], 1] <= limit[1] + 1e-9).all()


# Densities


def log_density(row, width):
    """log p(x_o, s) of a row with at most one missing cell, in data units."""
    location, covariance = LOCATION * SCALE + CENTER, COVARIANCE * np.outer(SCALE, SCALE)
    threshold, spread = THRESHOLD * SCALE + CENTER, np.asarray(width) * SCALE
    o = ~np.isnan(row)
    total = multivariate_normal(location[o], covariance[np.ix_(o, o)]).logpdf(row[o])
    for j in np.flatnonzero(SIDE):
        if not o[j]:
            _, mean, sd = conditional(row)
            total += norm.logcdf(SIDE[j] * (mean - threshold[j]) / np.hypot(sd, spread[j]))
        elif spread[j]:
            total += norm.logcdf(-SIDE[j] * (row[j] - threshold[j]) / spread[j])
    return total


@pytest.mark.parametrize("width", [SOFT, HARD], ids=["soft", "hard"])
def test_density_of_a_row_with_one_missing_cell_is_exact(width):
    X = rows()
    expected = [log_density(row, width) for row in X]
    assert_allclose(model(width).log_densities(X), expected, rtol=1e-9, atol=1e-9)


def test_rescaling_columns_adds_the_jacobian_of_the_observed_cells():
    X, factor, offset = several_holes(), np.array([3.0, 100.0, 0.01]), np.array([1.0, 2.0, 3.0])
    moved = model(SOFT, center=CENTER * factor + offset, scale=SCALE * factor)
    expected = model(SOFT).log_densities(X) - ~np.isnan(X) @ np.log(factor)
    assert_allclose(moved.log_densities(X * factor + offset), expected, rtol=1e-9)


def test_row_beyond_a_hard_limit_has_density_zero_and_leaves_others_alone():
    X = rows()
    beyond = X.copy()
    beyond[3, 0] = CENTER[0] + SCALE[0] * 0.500001
    ours = model(HARD).log_densities(beyond)
    assert ours[3] == -np.inf
    assert_allclose(np.delete(ours, 3), np.delete(model(HARD).log_densities(X), 3), rtol=1e-12)


def test_far_rows_are_pulled_in_for_their_imputations_and_not_for_their_density():
    X = np.array([[np.nan, -5.0 + 0.1 * 40, 0.0]])
    near, far = model(SOFT, limit=3.0), model(SOFT)
    assert near.log_densities(X) == far.log_densities(X)
    assert far.completed(X)[0, 0] > near.completed(X)[0, 0] + 5


def test_density_of_rows_of_several_holes_is_nearly_that_of_a_multivariate_probability():
    """Two hard limits: the probability of a quadrant of the bivariate normal."""
    X = np.array([[np.nan, np.nan, 12.0], [np.nan, np.nan, -40.0]])
    ours = model(HARD).log_densities(X)
    for value, row in zip(ours, X, strict=True):
        Z = (row - CENTER) / SCALE
        completed, covariance, log_observed = condition(Z, LOCATION, COVARIANCE)
        flip = np.array([-1.0, 1.0])
        quadrant = multivariate_normal(
            flip * completed[:2], covariance[:2, :2] * np.outer(flip, flip)
        ).cdf(flip * THRESHOLD[:2])
        expected = log_observed + np.log(quadrant) - np.log(SCALE[2])
        assert value == pytest.approx(expected, abs=5e-3)


# The mechanism and the tail prior


def test_missing_probability_is_the_probit_in_the_units_of_the_data():
    X = rows(8)[3::4]
    ours = model(SOFT).missing_probability(X)
    threshold, spread = THRESHOLD * SCALE + CENTER, SOFT * SCALE
    assert_allclose(ours[:, :2], norm.cdf(SIDE * (X - threshold) / spread)[:, :2], rtol=1e-10)
    assert np.isnan(ours[:, 2]).all()
    hard = model(HARD).missing_probability(np.vstack([X, [[11.5, -5.1, 0.0]]]))
    assert_array_equal(hard[-1, :2], [1.0, 1.0])
    assert_array_equal(hard[:-1, :2], 0.0)


def test_without_a_mechanism_no_probability_is_known():
    silent = LinearModel(
        NormalParameters(tensor(LOCATION), tensor(COVARIANCE)),
        no_mechanism(3),
        CENTER,
        SCALE,
        NO_LIMIT,
    )
    X = several_holes()
    assert np.isnan(silent.missing_probability(X)).all()
    expected = [
        condition((row - CENTER) / SCALE, LOCATION, COVARIANCE)[0] * SCALE + CENTER for row in X
    ]
    assert_allclose(silent.completed(X), expected, rtol=1e-9)


def test_tail_prior_is_the_oracles_in_one_block_or_in_many(monkeypatch):
    X = rows(60)
    X[3::4, 0] -= 3.0
    own = model(HARD)
    prior = own.tail_prior(X, SIDE != 0)
    completed, observed = (own.completed(X) - CENTER) / SCALE, ~np.isnan(X)
    for j in range(2):
        limit = (SIDE[j], THRESHOLD[j])
        r = oracle.reliability(completed, observed, j, LOCATION, COVARIANCE, *limit)
        assert prior.reliability[j] == pytest.approx(r, rel=1e-9)
        assert prior.reach[j] == pytest.approx(oracle.reach(completed, observed, j, *limit))
        g = oracle.mean_excess(completed, observed, j, *limit)
        assert prior.mean_excess[j] == pytest.approx(g, rel=1e-9)
    assert prior.reliability[2] == 1
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 7)
    for ours, theirs in zip(own.tail_prior(X, SIDE != 0), prior, strict=True):
        assert_allclose(ours, theirs, rtol=1e-9)


def test_quantile_of_a_level_is_where_the_tilted_distribution_reaches_it():
    """Against a root of the quadrature, in units of the data."""
    row = np.array([[np.nan, -5.02, 20.0]])
    j, mean, sd = conditional(row[0])
    cdf = tilted_cdf(j, mean, sd, SOFT)
    for level in (0.25, 0.75):
        exact = brentq(lambda x, p=level: cdf(x) - p, mean - 8 * sd, mean + 8 * sd)
        assert model(SOFT).quantile(row, level)[0, 0] == pytest.approx(exact, abs=0.01 * sd)
