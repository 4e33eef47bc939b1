"""Distributions of cells, and cells given that they are missing, against SciPy and quadrature."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit, ndtr

from skbilevel.objectives.given_missing import normal_quantile
from skbilevel.objectives.masking_links import LogitLink, ProbitLink, logistic, probit_of
from skbilevel.objectives.observation import (
    Bernoulli,
    Categorical,
    Gaussian,
    Joined,
    StudentT,
    student_mixture,
)
from skbilevel.objectives.self_masking import SelfMasking, log_observed, tilted


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def uniforms(*shape, seed=0):
    return tensor(np.random.default_rng(seed).random(shape))


LOCATION = np.array([[0.3, -1.2, 2.0], [1.5, 0.1, -0.4]])
SCALE = np.array([0.7, 1.3, 0.2])
DEGREES = np.array([2.5, 5.0, 40.0])
LOGITS = np.array([[[0.5, -1.0, 0.2], [1.0, 2.0, -np.inf]], [[0.0, 0.1, 3.0], [-1, 1, -np.inf]]])
GAUSSIAN = Gaussian(tensor(LOCATION), tensor(SCALE))
STUDENT = StudentT(tensor(LOCATION), tensor(SCALE), tensor(DEGREES), n_nodes=40)
BERNOULLI = Bernoulli(tensor(LOCATION))
CATEGORICAL = Categorical(tensor(LOGITS))
PROBIT = ProbitLink(*map(tensor, ([1.5, -0.8, 3.0], [0.4, 0.2, -2.0], [1.0, 0.5, 2.0])))
STEEP = ProbitLink(*map(tensor, ([1.0, -1.0, 1.0], [-0.5, -0.2, -2.1], [0.01, 0.01, 0.001])))
HARD = ProbitLink(*map(tensor, ([1.0, -1.0, 1.0], [-0.5, -0.2, -2.1], [0.0, 0.0, 0.0])))
LOGIT = LogitLink(*map(tensor, ([2.0, -1.5, 30.0], [-0.5, 0.2, -60.0])), n_nodes=24)
LINKS = {"probit": PROBIT, "steep": STEEP, "hard": HARD, "logit": LOGIT}
CONTINUOUS = {
    "gaussian": (GAUSSIAN, stats.norm(LOCATION, SCALE)),
    "student": (STUDENT, stats.t(DEGREES, LOCATION, SCALE)),
}


def link_probability(link, values):
    return link.log_missing(tensor(values)).exp().numpy()


def moments_of_missing(cell, link, j):
    """E[1; missing], E[x; missing] by quadrature between breaks at the threshold."""
    column = link.columns(torch.tensor([j]))
    threshold = -float(column.intercept / column.gain)
    near = threshold + np.array([-1, -0.1, -0.01, 0, 0.01, 0.1, 1])
    center, spread = cell.mean(), cell.std()
    far = center + spread * np.array([-3e4, -300, -30, -5, -2, 0, 2, 5, 30, 300, 3e4])
    edges = np.unique(np.concatenate([near, far]))

    def integral(function):
        return sum(quad(function, a, b)[0] for a, b in pairwise(edges))

    return (
        integral(lambda v: cell.pdf(v) * link_probability(column, [v])[0]),
        integral(lambda v: v * cell.pdf(v) * link_probability(column, [v])[0]),
    )


# Distributions


@pytest.mark.parametrize("name", CONTINUOUS)
def test_densities_are_those_of_scipy(name):
    ours, theirs = CONTINUOUS[name]
    for values in (LOCATION + 0.3, np.full(3, -1.0), np.full((4, 1, 3), 2.5)):
        assert_allclose(ours.log_density(tensor(values)), theirs.logpdf(values), rtol=1e-12)
    assert_allclose(ours.mean, LOCATION)


def test_discrete_densities_are_those_of_scipy():
    p = expit(LOCATION)
    for value in (0.0, 1.0):
        theirs = stats.bernoulli(p)
        assert_allclose(
            BERNOULLI.log_density(tensor([value] * 3)), theirs.logpmf(value), rtol=1e-12
        )
    assert_allclose(BERNOULLI.mean, p)
    weights = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    for code in range(2):
        ours = CATEGORICAL.log_density(tensor([code] * 2))
        assert_allclose(ours, np.log(weights[..., code]), rtol=1e-12)
        assert_allclose(CATEGORICAL.probability(tensor([code] * 2)), weights[..., code])
    assert_allclose(CATEGORICAL.mean, weights @ np.arange(3))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_draws_have_the_distribution(name):
    ours, theirs = CONTINUOUS[name]
    draws = ours.drawn(uniforms(ours.n_uniforms, 20_000, 2, 3)).numpy()
    for i, j in np.ndindex(2, 3):
        scores = theirs.cdf(draws)[:, i, j]
        assert stats.kstest(scores, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("ours", [BERNOULLI, CATEGORICAL], ids=["bernoulli", "categorical"])
def test_discrete_draws_have_the_frequencies_also_in_the_limit_of_no_temperature(ours):
    noise = uniforms(ours.n_uniforms, 20_000, *ours.mean.shape)
    hard = ours.drawn(noise)
    smooth = type(ours)(ours.logits, temperature=1e-4).drawn(noise)
    assert ((smooth - hard).abs() > 0.01).double().mean() < 1e-3
    for code in range(int(hard.max()) + 1):
        values = torch.full_like(ours.mean, float(code))
        p = ours.log_density(values).exp()
        error = ((hard == code).double().mean(0) - p).abs()
        assert (error <= 4 * (p * (1 - p) / 20_000).sqrt()).all()
    assert (smooth != hard).any()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_draws_have_the_gradient_of_finite_differences(name):
    ours, _ = CONTINUOUS[name]
    noise = uniforms(ours.n_uniforms, 2, 3)
    kind, fields = type(ours), [ours.location, ours.scale]
    if name == "student":
        fields.append(ours.degrees)
    fields = [field.clone().requires_grad_() for field in fields]
    assert torch.autograd.gradcheck(lambda *parts: kind(*parts).drawn(noise), fields)
    assert torch.autograd.gradcheck(
        lambda *parts: kind(*parts).log_density(tensor(LOCATION) + 0.5), fields
    )


@pytest.mark.parametrize("degrees", [2.2, 3.0, 8.0, 100.0])
def test_student_is_a_mixture_of_normals(degrees):
    log_precision, log_weight = student_mixture(tensor([degrees]), 24)
    values = np.linspace(-4, 4, 17)
    ours = log_weight.exp().numpy() * ndtr(values * np.exp(0.5 * log_precision.numpy()))
    assert_allclose(ours.sum(0), stats.t(degrees).cdf(values), rtol=5e-4)
    assert_allclose(ours.sum(0), stats.t(degrees).cdf(values), atol=2e-6)


def test_joined_columns_are_their_parts():
    columns = (torch.tensor([3, 0, 2]), torch.tensor([1, 4]))
    mixed = Joined((GAUSSIAN, CATEGORICAL), columns)
    values = tensor([0.1, 1.0, -0.2, 0.5, 0.0])
    noise = uniforms(mixed.n_uniforms, 2, 5)
    given = mixed.given_missing(
        ProbitLink(*(part.repeat(2)[:5] for part in (PROBIT.gain, PROBIT.intercept, PROBIT.noise)))
    )
    for results in (
        mixed.log_density(values),
        mixed.drawn(noise),
        mixed.mean,
        given.log_probability,
        given.mean,
        given.drawn(uniforms(3, 2, 5)),
    ):
        assert results.shape == (2, 5)
    assert_allclose(
        mixed.log_density(values)[:, columns[0]], GAUSSIAN.log_density(values[[3, 0, 2]])
    )
    assert_allclose(
        mixed.log_density(values)[:, columns[1]], CATEGORICAL.log_density(values[[1, 4]])
    )
    assert_allclose(mixed.drawn(noise)[:, [3, 0, 2]], GAUSSIAN.drawn(noise[:1, :, [3, 0, 2]]))
    swapped = PROBIT.columns(torch.tensor([0, 2, 1]))
    first = GAUSSIAN.given_missing(
        ProbitLink(*(part[[0, 0, 2]] for part in vars(PROBIT).values()))
    )
    assert_allclose(given.mean[:, columns[0]], first.mean)
    assert_allclose(swapped.gain, PROBIT.gain[[0, 2, 1]])


# Links


def test_logistic_function_is_the_mixture_of_probits():
    values = np.linspace(-10, 10, 41)
    for n_nodes, tolerance in ((16, 1e-5), (24, 1e-9)):
        noise, log_weight = logistic(n_nodes)
        ours = np.exp(log_weight) @ ndtr(values / noise[:, np.newaxis])
        assert_allclose(ours, expit(values), rtol=tolerance)


@pytest.mark.parametrize("name", LINKS)
def test_missing_and_observed_are_exhaustive(name):
    values = tensor(np.linspace(-3, 3, 31))[:, None].expand(-1, 3)
    values = torch.cat([values, -LINKS[name].intercept[None] / LINKS[name].gain])
    total = LINKS[name].log_missing(values).exp() + LINKS[name].log_observed(values).exp()
    assert_allclose(total, 1.0, rtol=1e-14)


@pytest.mark.parametrize("width", [0.0, 0.6])
def test_probit_is_that_of_self_masking_with_a_silent_side(width):
    mechanism = SelfMasking(*map(tensor, ([1.0, -1.0, 0.0], [0.3, -0.4, 0.2], [width] * 3)))
    link = probit_of(mechanism)
    theirs = tilted(tensor(LOCATION), tensor(SCALE).square(), mechanism)
    ours = GAUSSIAN.given_missing(link)
    assert_allclose(ours.log_probability, theirs.log_probability, rtol=1e-12, atol=1e-300)
    assert_allclose(ours.mean, theirs.mean, rtol=1e-12)
    assert_allclose(link.log_observed(tensor(LOCATION)), log_observed(tensor(LOCATION), mechanism))
    assert_allclose(link.log_missing(tensor(LOCATION))[:, 2], 0)


# Cells given that they are missing


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("link", LINKS)
def test_probability_and_mean_given_missing_are_those_of_quadrature(name, link):
    ours, theirs = CONTINUOUS[name]
    given = ours.given_missing(LINKS[link])
    args = (DEGREES,) if name == "student" else ()
    for i, j in np.ndindex(2, 3):
        cell = theirs.dist(*(a[j] for a in args), LOCATION[i, j], SCALE[j])
        total, first = moments_of_missing(cell, LINKS[link], j)
        tolerance = 1e-6 if name == "gaussian" else 2e-5
        assert_allclose(given.log_probability[i, j], np.log(total), rtol=1e-6, atol=tolerance)
        assert_allclose(
            given.mean[i, j], first / total, rtol=1e-4 if link == "logit" else 5 * tolerance
        )


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("link", LINKS)
def test_draws_given_missing_have_the_density(name, link):
    """Shares of draws between points against the integral of p(x) p(missing | x) / p(missing)."""
    ours, mechanism = CONTINUOUS[name][0], LINKS[link]
    given, n_draws = ours.given_missing(mechanism), 20_000
    draws = given.drawn(uniforms(3, n_draws, 2, 3))
    assert draws.shape == (n_draws, 2, 3)
    grid = np.linspace(-6, 9, 150_001)[:, np.newaxis, np.newaxis] * np.ones((2, 3))
    middle = tensor(grid - 0.5e-4)
    density = ours.log_density(middle) + mechanism.log_missing(middle)
    density = (density - given.log_probability).exp().numpy()
    at = slice(500, None, 5000)
    # Of a t some mass is left of the grid.
    expected = np.cumsum(density, 0)[at] * 1e-4
    within = draws.numpy() > grid[0]
    shares = np.array([(within & (draws.numpy() <= edge)).mean(0) for edge in grid[at]])
    assert expected.max() > 0.9
    assert (np.abs(shares - expected) < 1.95 / np.sqrt(n_draws) + 1e-3).all()


@pytest.mark.parametrize("ours", [BERNOULLI, CATEGORICAL], ids=["bernoulli", "categorical"])
@pytest.mark.parametrize("link", ["probit", "logit"])
def test_discrete_cells_given_missing_are_sums(ours, link):
    mechanism = LINKS[link].columns(torch.arange(ours.mean.shape[-1]))
    given = ours.given_missing(mechanism)
    joint = [
        ours.log_density(torch.full_like(ours.mean, code)).exp()
        * mechanism.log_missing(torch.full_like(ours.mean, code)).exp()
        for code in range(len(given.codes))
    ]
    total = sum(joint)
    assert_allclose(given.log_probability, total.log(), rtol=1e-12)
    assert_allclose(given.mean, sum(i * part for i, part in enumerate(joint)) / total, rtol=1e-12)
    for code, part in enumerate(joint):
        codes = torch.full_like(ours.mean, code)
        assert_allclose(given.probability(codes), part / total, rtol=1e-12)
    draws = given.drawn(uniforms(3, 20_000, *ours.mean.shape))
    for code, part in enumerate(joint):
        p = part / total
        error = ((draws == code).double().mean(0) - p).abs()
        assert (error <= 4 * (p * (1 - p) / 20_000).sqrt()).all()


def test_hard_limit_at_a_value_counts_it_as_observed():
    link = ProbitLink(*map(tensor, ([1.0] * 3, [0.0] * 3, [0.0] * 3)))
    assert_allclose(BERNOULLI.given_missing(link).log_probability.exp(), BERNOULLI.mean)
    assert_allclose(BERNOULLI.given_missing(link).mean, 1.0)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("link", ["probit", "hard", "logit"])
def test_log_probability_and_mean_have_the_gradient_of_finite_differences(name, link):
    kind, mechanism = type(CONTINUOUS[name][0]), LINKS[link]
    fields = [tensor(LOCATION), tensor(SCALE)] + ([tensor(DEGREES)] if name == "student" else [])
    fields = [field.clone().requires_grad_() for field in fields]

    def both(*parts):
        # The grid of a t moves with the degrees, which autograd leaves out: enough nodes hide it.
        nodes = {"n_nodes": 80} if name == "student" else {}
        given = kind(*parts, **nodes).given_missing(mechanism)
        return given.log_probability, given.mean

    assert torch.autograd.gradcheck(both, fields, atol=1e-5, rtol=1e-3)
    loss = both(*fields)[0].sum()
    assert all(grad.abs().max() > 1e-3 for grad in torch.autograd.grad(loss, fields))


@pytest.mark.parametrize("link", [PROBIT, LOGIT], ids=["probit", "logit"])
def test_log_probability_has_a_gradient_in_the_mechanism(link):
    def of(gain, intercept):
        moved = type(link)(gain, intercept, *list(vars(link).values())[2:])
        return GAUSSIAN.given_missing(moved).log_probability

    fields = [link.gain.clone().requires_grad_(), link.intercept.clone().requires_grad_()]
    assert torch.autograd.gradcheck(of, fields)


def test_slope_of_zero_says_as_much_as_its_intercept():
    gain = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    link = LogitLink(gain, tensor([0.0, 1.0, -2.0]), n_nodes=24)
    given = GAUSSIAN.given_missing(link)
    assert_allclose(given.log_probability.exp().detach()[0], expit([0.0, 1.0, -2.0]), rtol=1e-10)
    assert_allclose(given.mean.detach(), LOCATION)
    (slope,) = torch.autograd.grad(given.log_probability[0].sum(), gain)
    assert_allclose(slope, LOCATION[0] * (1 - expit([0.0, 1.0, -2.0])), rtol=1e-7)


def test_far_cells_stay_finite_in_both_dtypes():
    location = torch.linspace(-60, 60, 121, dtype=torch.float64)[:, None].expand(-1, 3)
    for dtype in (torch.float32, torch.float64):
        cells = Gaussian(location.to(dtype).requires_grad_(), tensor(SCALE).to(dtype))
        for link in LINKS.values():
            fields = [getattr(link, f) for f in ("gain", "intercept", "noise") if hasattr(link, f)]
            given = cells.given_missing(type(link)(*(field.to(dtype) for field in fields)))
            assert given.log_probability.dtype == given.mean.dtype == dtype
            (slope,) = torch.autograd.grad(
                (given.log_probability + given.mean).sum(), cells.location
            )
            for result in (given.log_probability, given.mean, slope):
                assert result.isfinite().all()
            assert given.drawn(uniforms(3, 121, 3).to(dtype)).isfinite().all()


def test_quantile_of_a_log_probability_inverts_it():
    values = torch.linspace(-38, 5, 200, dtype=torch.float64)
    found = normal_quantile(torch.special.log_ndtr(values))
    assert_allclose(found, values, rtol=1e-8, atol=1e-8)
    single = normal_quantile(torch.tensor([-1e3, -80.0, -4.0, -1e-3]))
    assert_allclose(torch.special.log_ndtr(single), [-1e3, -80.0, -4.0, -1e-3], rtol=1e-4)
