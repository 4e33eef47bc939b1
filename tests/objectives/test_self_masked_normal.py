"""Draws of missing cells one after the other: exact cases, limits, and rejection sampling."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import chi2, norm, qmc, truncnorm

from skbilevel.numerics.masked_inverse import masked_cholesky
from skbilevel.numerics.row_groups import RowGroup, row_block
from skbilevel.numerics.sites import Sites
from skbilevel.objectives.masking_links import probit_of
from skbilevel.objectives.normal import NormalParameters, condition, precision
from skbilevel.objectives.self_masked_normal import drawn_in_turn, marginals, projected
from skbilevel.objectives.self_masking import SelfMasking, tilted
from skbilevel.solvers.ep import sweep

LOCATION = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[1.0, 0.6, -0.4], [0.6, 1.5, 0.3], [-0.4, 0.3, 0.8]])
SILENT = ([0.0] * 3, [0.0] * 3, [1.0] * 3)
# What sites that stand in for later factors cost, in means and covariances.
SLACK = (0.003, 0.025)


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def uniforms(n_draws, k, seed=0):
    """Evenly spread points (3, n_draws, k, 1)."""
    points = qmc.Sobol(3 * k, rng=np.random.default_rng(seed)).random(n_draws)
    return tensor(points.clip(1e-9, 1 - 1e-9)).unflatten(1, (3, k)).movedim(1, 0).unsqueeze(3)


def drawn(mechanism, u, location=LOCATION, covariance=COVARIANCE):
    """Draws (S, k) of a row of which nothing is observed, its sites settled."""
    mechanism, k = SelfMasking(*map(tensor, mechanism)), len(location)
    model = precision(NormalParameters(tensor(location), tensor(covariance)))
    group = RowGroup(torch.zeros(1, k).double(), torch.arange(k).unsqueeze(1))
    own = mechanism.columns(group.missing)
    sites = Sites(torch.zeros(k, 1).double(), torch.zeros(k, 1).double())
    for _ in range(100):
        marginal = marginals(group, condition(group, model, sites), model.location)
        sites = sweep(marginal, sites, lambda mean, variance: tilted(mean, variance, own))
    marginal = marginals(group, condition(group, model, sites), model.location)
    root = masked_cholesky(model.matrix, group.missing, sites.precision)
    return drawn_in_turn(marginal.mean, root, sites, probit_of(own), u)[:, :, 0].numpy()


def accepted(mechanism, n_proposals, seed=1):
    """Draws of the same by rejection."""
    side, threshold, width = map(np.asarray, mechanism)
    rng = np.random.default_rng(seed)
    rows = rng.multivariate_normal(LOCATION, COVARIANCE, n_proposals)
    noisy = rows + width * rng.standard_normal(rows.shape)
    return rows[((side * (noisy - threshold) >= 0) | (side == 0)).all(axis=1)]


def assert_same_moments(ours, theirs, n_errors=4.0, slack=(0.0, 0.0)):
    """Means and covariances within standard errors of ``theirs``, the others being more exact."""
    error = theirs.std(axis=0) / len(theirs) ** 0.5
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= n_errors * error + slack[0]).all()
    centered = theirs - theirs.mean(0)
    products = centered[:, :, None] * centered[:, None, :]
    error = products.std(axis=0) / len(theirs) ** 0.5
    gap = np.abs(np.cov(ours.T, bias=True) - products.mean(0))
    assert (gap <= n_errors * error + slack[1]).all()


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("threshold", [-2.0, 0.4, 3.0])
@pytest.mark.parametrize("site", [(0.0, 0.0), (0.7, -0.3)])
def test_one_missing_cell_is_the_quantile_of_the_truncated_normal(side, threshold, site):
    """Whatever its own site, which is divided out."""
    mean, variance, (tau, nu) = 0.5, 1.7, site
    with_site = 1 / (1 / variance + tau)
    u = uniforms(64, 1)
    ours = drawn_in_turn(
        tensor([[with_site * (mean / variance + nu)]]),
        tensor([[[with_site**-0.5]]]),
        Sites(tensor([[tau]]), tensor([[nu]])),
        probit_of(SelfMasking(tensor([[side]]), tensor([[threshold]]), tensor([[0.0]]))),
        u,
    )
    limit = (threshold - mean) / variance**0.5
    ends = (limit, np.inf) if side > 0 else (-np.inf, limit)
    truncated = truncnorm(*ends, loc=mean, scale=variance**0.5)
    quantile = truncated.isf if side > 0 else truncated.ppf
    assert_allclose(ours[:, 0, 0], quantile(u[1, :, 0, 0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_one_missing_cell_of_a_soft_mechanism_has_the_tilted_distribution(side):
    """Its distribution function is that of N(x) Phi(s (x - b) / w) at every draw."""
    mean, sd, threshold, width = 0.5, 1.3, 0.9, 0.6

    def integral(end):
        return quad(
            lambda x: norm.pdf(x, mean, sd) * norm.cdf(side * (x - threshold) / width),
            mean - 12 * sd,
            end,
            epsabs=1e-12,
        )[0]

    u, n_draws = uniforms(4096, 1), 4096
    ours = drawn_in_turn(
        tensor([[mean]]),
        tensor([[[1 / sd]]]),
        Sites(tensor([[0.0]]), tensor([[0.0]])),
        probit_of(SelfMasking(tensor([[side]]), tensor([[threshold]]), tensor([[width]]))),
        u,
    )[:, 0, 0].numpy()
    total = integral(mean + 12 * sd)
    for end in (-0.5, 0.5, 1.0, 1.5, 2.5):
        assert np.mean(ours <= end) == pytest.approx(integral(end) / total, abs=12 / n_draws)


def test_without_a_mechanism_draws_are_those_of_the_normal_exactly():
    """They are mean + A z with A A' the covariance; columns of A are draws at unit vectors z."""
    z = np.vstack([np.zeros(3), np.eye(3)])
    u = tensor(np.stack([np.full_like(z, 0.3), np.full_like(z, 0.8), norm.cdf(z)])).unsqueeze(3)
    ours = drawn(SILENT, u)
    assert_allclose(ours[0], LOCATION, atol=1e-12)
    A = (ours[1:] - LOCATION).T
    assert_allclose(A @ A.T, COVARIANCE, atol=1e-12)
    # One after the other, from the last.
    assert_allclose(A, np.triu(A), atol=1e-12)


def test_rows_of_a_batch_are_drawn_side_by_side():
    covariances = [COVARIANCE, np.diag([2.0, 0.5, 1.0])]
    factors = [np.linalg.cholesky(np.linalg.inv(S)) for S in covariances]
    mean = tensor(np.array([LOCATION, [1.0, 2.0, 3.0]]).T)
    zero = torch.zeros(3, 2).double()
    link = probit_of(SelfMasking(*(tensor(part).unsqueeze(1).expand(3, 2) for part in SILENT)))
    u = torch.cat([uniforms(8, 3), uniforms(8, 3, seed=5)], dim=3)
    ours = drawn_in_turn(mean, tensor(np.stack(factors)), Sites(zero, zero), link, u)
    assert ours.shape == (8, 3, 2)
    for row, factor in enumerate(factors):
        z = np.linalg.solve(factor.T, norm.ppf(u[2, :, :, row].numpy()).T).T
        assert_allclose(ours[:, :, row], mean[:, row].numpy() + z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("side", "width"), [(1.0, 0.0), (-1.0, 0.0), (1.0, 0.8)])
def test_draws_are_exact_where_one_cell_alone_has_a_mechanism_and_comes_first(side, width):
    """The last cell is drawn first: no site has to stand in for a factor."""
    mechanism = ([0.0, 0.0, side], [0.0, 0.0, 0.5], [1.0, 1.0, width])
    assert_same_moments(drawn(mechanism, uniforms(2**15, 3)), accepted(mechanism, 200_000))


@pytest.mark.parametrize(
    "mechanism",
    [
        ([1.0, 1.0, 1.0], [0.2, -0.5, 0.0], [0.0] * 3),
        ([1.0, -1.0, 1.0], [0.5, 0.3, -0.2], [0.0] * 3),
        ([-1.0, 0.0, 1.0], [0.5, 0.0, 0.3], [0.0, 1.0, 0.0]),
        ([1.0, -1.0, 1.0], [0.5, 0.3, -0.2], [0.3, 0.0, 0.9]),
    ],
)
def test_draws_within_several_limits_have_the_moments_of_rejection_sampling(mechanism):
    ours, theirs = drawn(mechanism, uniforms(2**14, 3)), accepted(mechanism, 400_000)
    assert len(theirs) > 20_000
    assert_same_moments(ours, theirs, n_errors=3, slack=SLACK)
    # Without the mechanism they are far off.
    assert np.abs(drawn(SILENT, uniforms(2**10, 3)).mean(0) - theirs.mean(0)).max() > 0.3


@pytest.mark.parametrize("far", [0.0, 6.0, 25.0])
def test_no_draw_lies_beyond_a_hard_limit(far):
    """Not for uniform numbers at the ends, nor for a normal far from the limit."""
    side = np.array([1.0, -1.0, 1.0])
    threshold = LOCATION + side * far
    corners = np.array(np.meshgrid(*[[1e-12, 0.5, 1 - 1e-12]] * 3)).reshape(3, -1, 1)
    u = torch.cat([tensor(np.repeat(corners, 3, axis=2)).unsqueeze(3), uniforms(512, 3)], dim=1)
    ours = drawn((side, threshold, [0.0] * 3), u)
    assert np.isfinite(ours).all()
    assert (side * (ours - threshold)).min() >= -1e-9 * (1 + far)


@pytest.mark.parametrize("guess", ["none", "conditional", "wild"])
def test_rows_are_pulled_onto_the_ellipsoid_of_what_is_observed(guess):
    """Eq. (2) row by row with (S_oo)^-1, whatever the missing cells are taken to be at first."""
    rng = np.random.default_rng(0)
    location = np.array([3.0, -2.0, 1.0])
    X = location + 3 * rng.standard_normal((60, 3)) * rng.choice([0.2, 1.0, 8.0], (60, 1))
    X[rng.random(X.shape) < 0.4] = np.nan
    X[:2] = np.nan
    model = precision(NormalParameters(tensor(location), tensor(COVARIANCE)))
    limit, n_pulled = 1.7, 0
    for group, where in row_block(X, np.zeros(3), np.ones(3)).placed():
        mean = torch.zeros(group.missing.shape).double()
        if guess == "conditional" and group.n_missing:
            mean = marginals(group, condition(group, model), model.location).mean
        if guess == "wild":
            mean = mean + 1e3
        ours = projected(group, model, limit, mean)
        assert ours.missing is group.missing
        for row, pulled in zip(X[where], ours.values.numpy(), strict=True):
            o = ~np.isnan(row)
            expected, e = np.zeros(3), (row - location)[o]
            distance = e @ np.linalg.solve(COVARIANCE[np.ix_(o, o)], e)
            farthest = max(limit * o.sum(), chi2.isf(0.002, o.sum())) if o.any() else 0.0
            share = min(1.0, np.sqrt(farthest / distance)) if o.any() else 1.0
            expected[o] = location[o] + share * e
            assert_allclose(pulled, expected, rtol=1e-9, atol=1e-12)
            n_pulled += share < 1
    assert 10 < n_pulled < 50
