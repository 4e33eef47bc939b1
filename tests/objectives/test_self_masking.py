"""The probit mechanism of one column, against quadrature, truncated normals and simulation."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import norm, truncnorm

from skbilevel.objectives.self_masking import (
    SelfMasking,
    hazard,
    log_normal_cdf,
    log_observed,
    log_probability_terms,
    tilted,
)


def mechanism(side, threshold, width):
    return SelfMasking(
        *(torch.tensor(value, dtype=torch.float64) for value in (side, threshold, width))
    )


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("width", [0.3, 2.0])
@pytest.mark.parametrize(("mean", "variance"), [(0.4, 1.3), (-2.0, 0.2), (3.0, 0.05)])
def test_moments_are_those_of_quadrature(side, width, mean, variance):
    threshold = 0.7
    sd = variance**0.5

    def moment(power):
        return quad(
            lambda x: x**power * norm.pdf(x, mean, sd) * norm.cdf(side * (x - threshold) / width),
            mean - 12 * sd,
            mean + 12 * sd,
            epsabs=1e-13,
            epsrel=1e-12,
            points=[mean, threshold] if abs(mean - threshold) < 12 * sd else [mean],
        )[0]

    total, first, second = (moment(power) for power in range(3))
    ours = tilted(tensor(mean), tensor(variance), mechanism(side, threshold, width))
    assert_allclose(ours.log_probability.exp(), total, rtol=1e-8)
    assert_allclose(ours.mean, first / total, rtol=1e-8)
    assert_allclose(ours.variance, second / total - (first / total) ** 2, rtol=1e-7)


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 2.5])
def test_hard_limit_truncates_the_normal(side, mean):
    sd, limit = 1.5, 0.5
    bounds = ((limit - mean) / sd, np.inf) if side > 0 else (-np.inf, (limit - mean) / sd)
    truncated = truncnorm(*bounds, loc=mean, scale=sd)
    ours = tilted(tensor(mean), tensor(sd**2), mechanism(side, limit, 0.0))
    expected = norm.logsf(limit, mean, sd) if side > 0 else norm.logcdf(limit, mean, sd)
    assert_allclose(ours.log_probability, expected, rtol=1e-12)
    assert_allclose(ours.mean, truncated.mean(), rtol=1e-9)
    assert_allclose(ours.variance, truncated.var(), rtol=1e-7)


def test_column_of_side_zero_says_nothing():
    ours = tilted(tensor([1.0, -2.0]), tensor([0.5, 3.0]), mechanism(0.0, 0.3, 0.2))
    assert_allclose(ours.log_probability, 0.0)
    assert_allclose(log_observed(tensor([1.0, -2.0]), mechanism(0.0, 0.3, 0.2)), 0.0)
    assert_allclose(ours.mean, [1.0, -2.0])
    assert_allclose(ours.variance, [0.5, 3.0])


@pytest.mark.parametrize("width", [0.0, 0.5])
def test_far_from_the_limit_moments_stay_finite_and_ordered(width):
    mean = torch.linspace(-40, 40, 161, dtype=torch.float64)
    ours = tilted(mean, torch.ones_like(mean), mechanism(1.0, 0.0, width))
    assert torch.isfinite(torch.stack(ours)).all()
    assert (ours.mean >= mean - 1e-12).all()
    if width == 0:
        assert (ours.mean > 0).all()
    assert (ours.variance > 0).all() and (ours.variance <= 1 + 1e-12).all()


def test_slope_of_the_log_probability_is_the_shift_of_the_mean():
    """d/dm log E[f] = (E[x f] / E[f] - m) / v, for any factor f of a normal x."""
    mean = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    variance = tensor(0.8)
    for width in (0.0, 0.7):
        ours = tilted(mean, variance, mechanism(-1.0, 0.4, width))
        (slope,) = torch.autograd.grad(ours.log_probability.sum(), mean, retain_graph=True)
        assert slope.abs().max() > 0.5
        assert_allclose(slope, ((ours.mean - mean) / variance).detach(), rtol=1e-9)


def test_hazard_is_the_derivative_of_the_log_of_the_distribution_function():
    ratio = torch.linspace(-30, 8, 77, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_normal_cdf(ratio).sum(), ratio)
    assert_allclose(hazard(ratio, log_normal_cdf(ratio)).detach(), slope, rtol=1e-7, atol=1e-300)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_probabilities_of_missing_and_observed_add_up_to_one(side):
    values = torch.linspace(-3, 3, 25, dtype=torch.float64)
    soft = mechanism(side, 0.2, 0.6)
    missing = tilted(values, torch.full_like(values, 1e-12), soft).log_probability.exp()
    assert_allclose(missing + log_observed(values, soft).exp(), 1.0, rtol=1e-6)


def test_hard_limit_forbids_values_beyond_it():
    values = tensor([-1.0, 0.5, 0.6])
    assert log_observed(values, mechanism(1.0, 0.5, 0.0)).tolist() == [0.0, 0.0, -np.inf]
    assert log_observed(values, mechanism(-1.0, 0.5, 0.0)).tolist() == [-np.inf, 0.0, 0.0]


def test_slopes_in_threshold_and_log_width_are_those_of_autograd():
    rng = np.random.default_rng(0)
    mean, variance = torch.from_numpy(rng.normal(size=8)), torch.from_numpy(rng.random(8))
    side = torch.tensor([1.0, -1.0] * 4).double()
    threshold = torch.from_numpy(rng.normal(size=8)).requires_grad_()
    log_width = torch.from_numpy(rng.normal(size=8)).requires_grad_()
    own = SelfMasking(side, threshold, log_width.exp())
    value, slope, curvature = log_probability_terms(mean, variance, own)
    expected = torch.autograd.grad(value.sum(), [threshold, log_width])
    assert slope.abs().min() > 1e-4
    assert_allclose(slope.detach(), torch.stack(expected, 1), rtol=1e-10)
    assert_allclose(value.detach(), tilted(mean, variance, own).log_probability.detach())
    assert (torch.linalg.eigvalsh(curvature.detach()) >= -1e-12).all()


def test_curvature_is_minus_the_hessian_where_the_ratio_is_linear():
    """In the threshold alone, t is linear and nothing is left out."""
    mean, variance = tensor([0.4, -1.0]), tensor([0.3, 0.8])
    own = SelfMasking(tensor([1.0, -1.0]), tensor([0.1, 0.2]), tensor([0.5, 0.7]))
    step = 1e-5
    moved = [own._replace(threshold=own.threshold + sign * step) for sign in (1, -1)]
    up, down = (log_probability_terms(mean, variance, m)[1][:, 0] for m in moved)
    curvature = log_probability_terms(mean, variance, own)[2][:, 0, 0]
    assert_allclose(curvature, -(up - down) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("ratio", [-19.9, -20.1, -200.0, -1e4, -1e7])
def test_moments_far_beyond_a_limit_are_those_of_its_tail(ratio):
    """x - b of a normal of mean 0 truncated at b = u: the moments of e^(-u x - x^2 / 2), by
    Gauss-Laguerre over x = y / u."""
    u = -ratio
    nodes, weights = np.polynomial.laguerre.laggauss(40)
    weights = weights * np.exp(-((nodes / u) ** 2) / 2)
    first, second = ((weights * (nodes / u) ** k).sum() / weights.sum() for k in (1, 2))
    # The mean itself carries the rounding of u.
    ours = tilted(tensor(0.0), tensor(1.0), mechanism(1.0, u, 0.0))
    assert float(ours.mean - u) == pytest.approx(first, rel=2e-8 + 4e-16 * u**2)
    assert float(ours.variance) == pytest.approx(second - first**2, rel=2e-8)
