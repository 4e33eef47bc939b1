"""The normal with self-masking: exact cases, limits, and known parameters found again."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal, norm

from skbilevel import GaussianImputer
from skbilevel.amputation import ampute
from skbilevel.datasets import make_correlated_gaussian
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.estimators.mechanism_em import LIMIT, fit_self_masked
from skbilevel.metrics import imputation_rmse
from skbilevel.numerics.observed import mean_and_deviation
from skbilevel.numerics.row_groups import StandardizedRows
from skbilevel.objectives.normal import NormalParameters
from skbilevel.objectives.self_masking import SelfMasking
from tests.reference.gaussian import condition


def mechanism(side, threshold, width):
    return SelfMasking(
        *(torch.tensor(value, dtype=torch.float64) for value in (side, threshold, width))
    )


def fitted(X, own, limit=LIMIT, **settings):
    units = mean_and_deviation(X)
    fit = fit_self_masked(StandardizedRows(X, *units), own, limit=limit, **settings)
    return fit, LinearModel(fit.parameters, fit.mechanism, *units, limit).completed(X)


def limits(X, side):
    """Hard limits at the largest, or smallest, observed value, in standardised units."""
    center, scale = mean_and_deviation(X)
    Z = (X - center) / scale
    ends = np.where(np.asarray(side) > 0, np.nanmax(Z, axis=0), np.nanmin(Z, axis=0))
    return mechanism(side, ends.tolist(), [0.0] * len(side))


def truncated_mean(mean, sd, limit, side):
    ratio = side * (mean - limit) / sd
    return mean + side * sd * np.exp(norm.logpdf(ratio) - norm.logcdf(ratio))


def rows_with_one_hole(seed=0, n_rows=400):
    """Each row lacks column 0 where it is above .4, or column 1 where that is below -.8."""
    rng = np.random.default_rng(seed)
    X = rng.multivariate_normal([0, 0, 0], [[1, 0.6, 0.3], [0.6, 1, 0.5], [0.3, 0.5, 1]], n_rows)
    high, low = X[:, 0] > 0.4, X[:, 1] < -0.8
    low &= ~high
    incomplete = X.copy()
    incomplete[high, 0], incomplete[low, 1] = np.nan, np.nan
    return X, incomplete


def test_with_one_missing_cell_a_row_evidence_and_means_are_exact():
    _, X = rows_with_one_hole()
    center, scale = mean_and_deviation(X)
    own = mechanism([1.0, -1.0, 0.0], [0.3, -0.9, 0.0], [0.2, 0.5, 1.0])
    fit, completed = fitted(X, own, limit=np.inf, max_iter=300, tol=1e-12)
    location, covariance = (
        p.numpy() for p in (fit.parameters.location, fit.parameters.covariance)
    )
    Z, total = (X - center) / scale, 0.0
    sides, thresholds, widths = (p.numpy() for p in own)
    for row, filled in zip(Z, (completed - center) / scale, strict=True):
        o = ~np.isnan(row)
        total += multivariate_normal(location[o], covariance[np.ix_(o, o)]).logpdf(row[o])
        for j in np.flatnonzero(o[:2]):
            total += norm.logcdf(-sides[j] * (row[j] - thresholds[j]) / widths[j])
        if not o.all():
            (j,) = np.flatnonzero(~o)
            mean, conditional, _ = condition(row, location, covariance)
            spread = np.hypot(widths[j], conditional[j, j] ** 0.5)
            ratio = sides[j] * (mean[j] - thresholds[j]) / spread
            total += norm.logcdf(ratio)
            hazard = np.exp(norm.logpdf(ratio) - norm.logcdf(ratio))
            expected = mean[j] + sides[j] * conditional[j, j] / spread * hazard
            assert filled[j] == pytest.approx(expected, abs=1e-7)
    assert fit.evidence == pytest.approx(total / len(X), abs=1e-7)


def test_without_a_mechanism_rows_are_completed_by_the_conditional_mean():
    _, X = rows_with_one_hole()
    nothing = mechanism([0.0] * 3, [0.0] * 3, [1.0] * 3)
    fit, completed = fitted(X, nothing, limit=np.inf, tol=1e-10, max_iter=500)
    # Its prior is a ridge of .001 on the covariance.
    imputer = GaussianImputer(shrinkage=1e-3 * len(X), tol=1e-12, max_iter=2000).fit(X)
    assert fit.converged
    assert_allclose(completed, imputer.transform(X), atol=5e-3)


@pytest.mark.parametrize("seed", range(3))
def test_values_above_a_limit_are_imputed_nearly_as_by_the_true_distribution(seed):
    """The report's design: correlation .8, the first column missing above its mean."""
    X = make_correlated_gaussian(500, random_state=seed)
    incomplete, mask = ampute(X, mechanism="mnar_threshold", columns=[0])
    _, completed = fitted(incomplete, limits(incomplete, [1.0, 0.0]))
    best = X.copy()
    missing = ~mask[:, 0]
    best[missing, 0] = truncated_mean(0.8 * X[missing, 1], 0.6, X[:, 0].mean(), 1.0)

    def rmse(filled):
        return np.sqrt(np.mean((filled - X)[~mask] ** 2))

    assert rmse(completed) <= 1.05 * rmse(best)
    assert rmse(GaussianImputer().fit_transform(incomplete)) > 2 * rmse(completed)


def test_mirrored_columns_are_imputed_by_mirrored_values():
    _, X = rows_with_one_hole()
    _, plain = fitted(X, limits(X, [1.0, -1.0, 0.0]))
    _, mirrored = fitted(-X, limits(-X, [-1.0, 1.0, 0.0]))
    assert_allclose(mirrored, -plain, atol=1e-8)


def test_shifted_and_rescaled_columns_are_imputed_alike():
    _, X = rows_with_one_hole()
    factor, offset = np.array([1e-3, 7.0, 1e4]), np.array([5.0, -2.0, 100.0])
    _, plain = fitted(X, limits(X, [1.0, -1.0, 0.0]))
    _, moved = fitted(X * factor + offset, limits(X * factor + offset, [1.0, -1.0, 0.0]))
    assert_allclose((moved - offset) / factor, plain, atol=1e-6)


def test_rows_are_completed_by_themselves():
    X, incomplete = rows_with_one_hole()
    incomplete[::7, :2] = np.nan
    own = limits(incomplete, [1.0, -1.0, 0.0])
    fit, whole = fitted(incomplete, own)
    model = LinearModel(fit.parameters, own, *mean_and_deviation(incomplete), LIMIT)
    blocks = (incomplete[:1], incomplete[1:90], incomplete[90:])
    parts = [model.completed(block) for block in blocks]
    assert_allclose(np.concatenate(parts), whole, atol=1e-8)
    observed = ~np.isnan(incomplete)
    assert_array_equal(whole[observed], X[observed])


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_threshold_and_width_of_a_probit_are_found_again(side):
    rng = np.random.default_rng(0)
    X = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], 20_000)
    hidden = rng.random(len(X)) < norm.cdf(side * (X[:, 0] - 0.4) / 0.5)
    incomplete = X.copy()
    incomplete[hidden, 0] = np.nan
    center, scale = mean_and_deviation(incomplete)
    start = mechanism([side, 0.0], [0.0, 0.0], [1.0, 1.0])
    fit, completed = fitted(incomplete, start, learn=True, max_iter=150, tol=1e-5, limit=np.inf)
    assert fit.mechanism.threshold[0] * scale[0] + center[0] == pytest.approx(0.4, abs=0.06)
    assert fit.mechanism.width[0] * scale[0] == pytest.approx(0.5, abs=0.06)
    truth = imputation_rmse(X, completed, ~np.isnan(incomplete))
    assert truth < 0.75 * imputation_rmse(
        X, GaussianImputer().fit_transform(incomplete), ~np.isnan(incomplete)
    )
    assert fit.evidence > fitted(incomplete, start, limit=np.inf)[0].evidence


def test_far_row_is_pulled_onto_the_ellipsoid():
    """One observed cell may be as far as the normal's quantile of .999."""
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    parameters = NormalParameters(torch.zeros(2).double(), torch.from_numpy(covariance))
    nothing = mechanism([0.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    model = LinearModel(parameters, nothing, np.zeros(2), np.ones(2), LIMIT)
    far = model.completed(np.array([[np.nan, 40.0]]))
    assert far[0, 0] == pytest.approx(0.8 * norm.isf(0.001))
    assert far[0, 1] == 40.0
    near = model.completed(np.array([[np.nan, 1.0]]))
    assert near[0, 0] == pytest.approx(0.8)


def test_row_with_nothing_observed_gets_the_truncated_mean_of_the_column():
    parameters = NormalParameters(torch.zeros(2).double(), torch.eye(2).double())
    hard = mechanism([1.0, 0.0], [0.5, 0.0], [0.0, 1.0])
    model = LinearModel(parameters, hard, np.zeros(2), np.ones(2), LIMIT)
    row = model.completed(np.full((1, 2), np.nan))
    assert_allclose(row, [[truncated_mean(0.0, 1.0, 0.5, 1.0), 0.0]], atol=1e-9)


@pytest.mark.parametrize("n_rows", [24, 60])
def test_prior_of_the_covariance_weighs_as_many_rows_of_uncorrelated_columns(n_rows):
    """On complete rows: the closed form, with the ridge of .001. Three columns have a prior of
    9 / n rows up to 30 observed cells each."""
    X, _ = rows_with_one_hole(n_rows=n_rows)
    none = mechanism([0.0] * 3, [0.0] * 3, [1.0] * 3)
    fit, _ = fitted(X, none, limit=np.inf)
    weight = 9 / 24 if n_rows == 24 else 0.0
    expected = (n_rows * np.corrcoef(X.T) + weight * np.eye(3)) / (n_rows + weight)
    assert_allclose(fit.parameters.covariance, expected + 1e-3 * np.eye(3), rtol=1e-10)


def test_prior_of_the_covariance_counts_observed_cells_and_not_rows():
    """A third of the cells is missing: the fixed point of EM with the prior's weight by hand."""
    X, _ = rows_with_one_hole(n_rows=36)
    X[np.random.default_rng(0).random(X.shape) < 1 / 3] = np.nan
    n_observed = (~np.isnan(X)).sum(axis=0)
    assert n_observed.mean() < 30 < len(X)
    none = mechanism([0.0] * 3, [0.0] * 3, [1.0] * 3)
    fit, _ = fitted(X, none, limit=np.inf, max_iter=2000, tol=1e-13)
    center, scale = mean_and_deviation(X)
    Z = (X - center) / scale
    ridge = 9 / n_observed.mean()
    location, covariance = np.zeros(3), np.eye(3)
    for _ in range(2000):
        rows, spread = [], 0.0
        for z in Z:
            mean, own, _ = condition(z, location, covariance)
            rows.append(mean)
            spread = spread + own
        rows = np.array(rows)
        location = rows.mean(axis=0)
        scatter = (rows - location).T @ (rows - location) + spread + ridge * np.eye(3)
        covariance = scatter / (len(Z) + ridge) + 1e-3 * np.eye(3)
    assert_allclose(fit.parameters.covariance, covariance, rtol=1e-6)


def test_evidence_of_a_learnt_probit_does_not_fall_with_iterations():
    """Also where the mechanism is not there, and its width goes to the end of its range."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(200, 1)) + 0.7 * rng.normal(size=(200, 6))
    X[rng.random(X.shape) < [0.4, 0.4, 0, 0, 0, 0]] = np.nan
    data = StandardizedRows(X, np.zeros(6), np.ones(6))
    start = mechanism([1.0, 1, 0, 0, 0, 0], [0.3, 0.3, 0, 0, 0, 0], [0.5, 0.5, 1, 1, 1, 1])
    fits = [
        fit_self_masked(data, start, learn=True, max_iter=n, tol=0.0, limit=np.inf)
        for n in (5, 15, 40, 100)
    ]
    assert (np.diff([fit.evidence for fit in fits]) > -1e-3).all()
    # Without a slope half of the cells are missing at the threshold, which stands for the rate.
    ratio = fits[-1].mechanism.threshold[:2] / fits[-1].mechanism.width[:2]
    assert_allclose(norm.cdf(-ratio), 0.4, atol=0.1)


def test_em_waits_for_rows_that_are_pulled_in():
    """No cell is missing: only the normal moves, from outliers to the bulk."""
    rng = np.random.default_rng(1)
    X = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 200)
    X[:5] = [0, 60]
    none = mechanism([0.0] * 2, [0.0] * 2, [1.0] * 2)
    fit, _ = fitted(X, none)
    settled, _ = fitted(X, none, tol=0.0, max_iter=300)
    assert fit.converged
    assert_allclose(fit.parameters.covariance, settled.parameters.covariance, atol=5e-3)
