"""Expectation propagation against exact integrals and its own fixed-point conditions."""

import numpy as np
import torch
from numpy.testing import assert_allclose
from scipy.integrate import dblquad
from scipy.stats import multivariate_normal, norm

from skbilevel.numerics.sites import Normal, Sites
from skbilevel.objectives.self_masking import SelfMasking, tilted
from skbilevel.solvers.ep import cavity, log_scales, sweep

MEAN = np.array([0.3, -0.5])
COVARIANCE = np.array([[1.0, 0.7], [0.7, 1.5]])
MECHANISM = SelfMasking(*map(torch.tensor, ([1.0, -1.0], [0.8, 0.1], [0.4, 0.0])))


def tilt(mean, variance):
    return tilted(mean, variance, SelfMasking(*(p.double() for p in MECHANISM)))


def no_sites(size=2):
    return Sites(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64))


def with_sites(sites):
    """Mean and covariance of the normal times its sites, and log of the integral, by NumPy."""
    precision = np.linalg.inv(COVARIANCE) + np.diag(sites.precision.numpy())
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.linalg.solve(COVARIANCE, MEAN) + sites.shift.numpy())
    exponent = mean @ precision @ mean - MEAN @ np.linalg.solve(COVARIANCE, MEAN)
    log_integral = 0.5 * (np.linalg.slogdet(covariance @ np.linalg.inv(COVARIANCE))[1] + exponent)
    return mean, covariance, log_integral


def marginal_of(sites):
    mean, covariance, _ = with_sites(sites)
    return Normal(torch.from_numpy(mean), torch.from_numpy(covariance.diagonal().copy()))


def converged():
    sites = no_sites()
    for _ in range(100):
        sites = sweep(marginal_of(sites), sites, tilt)
    return sites


def test_cavity_times_site_is_the_marginal():
    sites = Sites(torch.tensor([0.4, 1.1]).double(), torch.tensor([-0.3, 0.9]).double())
    marginal = marginal_of(sites)
    without = cavity(marginal, sites)
    precision = 1 / without.variance + sites.precision
    assert_allclose(1 / precision, marginal.variance, rtol=1e-12)
    assert_allclose(
        (without.mean / without.variance + sites.shift) / precision, marginal.mean, rtol=1e-12
    )


def test_one_undamped_sweep_matches_the_moments_of_one_variable_exactly():
    mean, variance = torch.tensor([0.3]).double(), torch.tensor([1.7]).double()

    def one(m, v):
        return tilted(m, v, SelfMasking(*(p[:1].double() for p in MECHANISM)))

    sites = sweep(Normal(mean, variance), no_sites(1), one, damping=1.0)
    precision = 1 / variance + sites.precision
    assert_allclose(1 / precision, one(mean, variance).variance, rtol=1e-12)
    assert_allclose((mean / variance + sites.shift) / precision, one(mean, variance).mean)
    after = Normal((mean / variance + sites.shift) / precision, 1 / precision)
    spread = 1 + sites.precision * variance
    integral = (
        sites.shift * mean + sites.shift**2 * variance / 2 - sites.precision * mean**2 / 2
    ) / spread - spread.log() / 2
    assert_allclose(
        integral + log_scales(after, sites, one), one(mean, variance).log_probability, rtol=1e-10
    )


def test_at_convergence_marginals_have_the_moments_of_cavity_times_factor():
    sites = converged()
    marginal = marginal_of(sites)
    moments = tilt(*cavity(marginal, sites))
    assert_allclose(moments.mean, marginal.mean, rtol=1e-8)
    assert_allclose(moments.variance, marginal.variance, rtol=1e-8)
    again = sweep(marginal, sites, tilt)
    assert_allclose(again.precision, sites.precision, rtol=1e-8)


def test_evidence_and_means_are_close_to_the_exact_integrals():
    """EP is no exact method: on this strongly correlated pair it is right to a percent."""
    density = multivariate_normal(MEAN, COVARIANCE)

    def factors(x0, x1):
        return norm.cdf((x0 - 0.8) / 0.4) * density.pdf([x0, x1])

    exact = [
        dblquad(lambda x1, x0, f=f: f(x0, x1) * factors(x0, x1), -6, 7, -9, 0.1, epsabs=1e-9)[0]
        for f in (lambda x0, x1: 1.0, lambda x0, x1: x0, lambda x0, x1: x1)
    ]
    sites = converged()
    marginal = marginal_of(sites)
    log_evidence = with_sites(sites)[2] + float(log_scales(marginal, sites, tilt).sum())
    assert abs(log_evidence - np.log(exact[0])) < 0.02
    assert_allclose(marginal.mean, [exact[1] / exact[0], exact[2] / exact[0]], atol=0.03)


def test_damping_moves_part_of_the_way():
    start = no_sites()
    full = sweep(marginal_of(start), start, tilt, damping=1.0)
    part = sweep(marginal_of(start), start, tilt, damping=0.25)
    assert full.precision.abs().min() > 0.01
    assert_allclose(part.precision, 0.25 * full.precision, rtol=1e-12)
    assert_allclose(part.shift, 0.25 * full.shift, rtol=1e-12)


def test_factor_that_says_nothing_keeps_its_site_at_zero():
    idle = SelfMasking(*(torch.zeros(2).double() for _ in range(3)))._replace(
        width=torch.ones(2).double()
    )
    start = no_sites()
    sites = sweep(marginal_of(start), start, lambda m, v: tilted(m, v, idle), damping=1.0)
    assert_allclose(torch.stack(sites), 0.0, atol=1e-12)
