"""The bound and its imputations: closed forms, the slow oracle, simulation, finite differences."""

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import expit, ndtr

from skbilevel.estimators.mask_terms import Collapsed
from skbilevel.objectives.importance_weighted import (
    bound,
    completed,
    effective_size,
    expectation,
    log_mask_given_rows,
    log_observed_density,
    miwae_log_weights,
    plain_bound,
    proposed,
    resampled,
    shares,
    weighted_quantile,
)
from skbilevel.objectives.masking_links import LogitLink, ProbitLink
from skbilevel.objectives.observation import Bernoulli, Categorical, Gaussian, StudentT
from tests.reference import importance_weighted as oracle

D, L = 4, 2
RNG = np.random.default_rng(7)
LOADINGS = RNG.normal(size=(D, L))
MEAN = RNG.normal(size=D)
SCALE = np.array([0.5, 0.8, 1.2, 0.6])


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def collapsed_log_weights(codes, observation, values, mask, link):
    """log w_k of eq. (6) with (a) for p(s | x_o, x_k), as a network takes them."""
    given = Collapsed(lambda: link, torch.ones(values.shape[1])).given(
        observation, values, mask, None
    )
    weights = miwae_log_weights(codes, observation, values, mask)
    return weights + given.log_mask + given.log_fixed


def sampled_log_weights(codes, observation, values, mask, logits):
    """log w_k of eq. (6), with the log odds of completed rows."""
    weights = miwae_log_weights(codes, observation, values, mask)
    return weights + log_mask_given_rows(logits, mask)


def normal(*shape, seed=0):
    return tensor(np.random.default_rng(seed).standard_normal(shape))


def uniforms(*shape, seed=1):
    return tensor(np.random.default_rng(seed).random(shape))


def rows(n=6, seed=3):
    rng = np.random.default_rng(seed)
    x = MEAN + rng.normal(size=(n, L)) @ LOADINGS.T + SCALE * rng.normal(size=(n, D))
    mask = rng.random((n, D)) < 0.6
    mask[0], mask[1] = True, [False, True, False, True]
    return tensor(np.where(mask, x, 0.3)), torch.as_tensor(mask)


def linear_gaussian(codes):
    return Gaussian(codes @ tensor(LOADINGS).T + tensor(MEAN), tensor(SCALE))


def posterior(values, mask):
    """Mean and triangular root of z given the observed cells of a linear Gaussian model."""
    scaled = tensor(LOADINGS / SCALE[:, None])
    precision = torch.eye(L).double() + torch.einsum(
        "bj,jk,jl->bkl", mask.double(), scaled, scaled
    )
    residual = torch.where(mask, values - tensor(MEAN), 0.0) / tensor(SCALE)
    covariance = precision.inverse()
    mean = torch.einsum("bkl,jl,bj->bk", covariance, scaled, residual)
    return mean, torch.linalg.cholesky(covariance)


def log_evidence(values, mask):
    covariance = LOADINGS @ LOADINGS.T + np.diag(SCALE**2)
    return np.array(
        [
            stats.multivariate_normal(MEAN[m], covariance[np.ix_(m, m)]).logpdf(x[m])
            if m.any()
            else 0.0
            for x, m in zip(values.numpy(), mask.numpy(), strict=True)
        ]
    )


def wide(values, mask):
    """A proposal that is not the posterior."""
    mean, root = posterior(values, mask)
    return mean + 0.2, 1.3 * root


# The bound


@pytest.mark.parametrize("n_draws", [1, 2, 50])
def test_bound_is_exact_when_the_encoder_is_the_posterior(n_draws):
    values, mask = rows(40)
    mean, root = posterior(values, mask)
    codes = proposed(mean, root, normal(n_draws, 40, L))
    ours = bound(miwae_log_weights(codes, linear_gaussian(codes.values), values, mask))
    assert_allclose(ours, log_evidence(values, mask), rtol=0, atol=1e-12)


def test_diagonal_root_is_the_diagonal_matrix():
    mean, root, noise = normal(3, L), normal(3, L, seed=4).exp(), normal(5, 3, L, seed=5)
    diagonal, matrix = proposed(mean, root, noise), proposed(mean, root.diag_embed(), noise)
    assert_allclose(diagonal.values, matrix.values, rtol=1e-14)
    assert_allclose(diagonal.log_ratio, matrix.log_ratio, rtol=1e-14)
    terms = normal(5, 3, seed=6)
    assert_allclose(
        plain_bound(terms, mean, root), plain_bound(terms, mean, root.diag_embed()), rtol=1e-14
    )


def test_bound_does_not_decrease_with_the_number_of_draws_and_stays_below_the_evidence():
    values, mask = rows()
    mean, root = wide(values, mask)
    codes = proposed(mean, root, normal(4096 * 32, 6, L))
    log_weights = miwae_log_weights(codes, linear_gaussian(codes.values), values, mask)
    previous, gain = None, []
    for n_draws in (1, 2, 4, 8, 32):
        groups = log_weights.view(n_draws, -1, 6)
        bounds = groups.logsumexp(0) - np.log(n_draws)
        assert_allclose(bounds[0], bound(groups[:, 0]), rtol=1e-12)
        error = bounds.std(0) / len(bounds) ** 0.5
        assert (bounds.mean(0) <= tensor(log_evidence(values, mask)) + 3 * error).all()
        if previous is not None:
            assert (bounds.mean(0) >= previous - 3 * error).all()
            gain.append((bounds.mean(0) - previous).sum())
        previous = bounds.mean(0)
    assert gain[0] > 0.3


def test_plain_bound_is_that_of_one_draw_in_expectation_and_exact_at_the_posterior():
    values, mask = rows()
    mean, root = wide(values, mask)
    codes = proposed(mean, root, normal(100_000, 6, L))
    observation = linear_gaussian(codes.values)
    single = miwae_log_weights(codes, observation, values, mask)
    ours = plain_bound(log_observed_density(observation, values, mask), mean, root)
    error = single.std(0) / len(single) ** 0.5
    assert ((ours - single.mean(0)).abs() <= 4 * error).all()
    assert (ours < tensor(log_evidence(values, mask)) - 0.02).all()


def test_bound_of_equal_weights_is_their_log():
    log_weights = torch.full((7, 3), 1.5, dtype=torch.float64)
    assert_allclose(bound(log_weights), 1.5)
    assert_allclose(bound(log_weights + 400), 401.5)


# A missing model that does not depend on the row


def test_constant_missing_model_gives_miwae_and_a_constant():
    values, mask = rows()
    codes = proposed(*wide(values, mask), normal(8, 6, L))
    observation = linear_gaussian(codes.values)
    miwae = miwae_log_weights(codes, observation, values, mask)
    logits = tensor([0.3, -1.0, 2.0, 0.0])
    log_s = torch.where(mask, -logits, logits).sigmoid().log().sum(1)
    drawn = completed(observation, values, mask, uniforms(1, 8, 6, D))
    sampled = sampled_log_weights(codes, observation, values, mask, logits.expand_as(drawn))
    link = LogitLink(torch.zeros(D).double(), logits)
    collapsed = collapsed_log_weights(codes, observation, values, mask, link)
    for ours in (sampled, collapsed):
        assert_allclose(bound(ours), bound(miwae) + log_s, rtol=1e-8)
        assert_allclose(shares(ours), shares(miwae), rtol=1e-7)
        assert_allclose(expectation(drawn, ours), expectation(drawn, miwae), rtol=1e-7)
    assert_allclose(bound(sampled), bound(miwae) + log_s, rtol=1e-14)
    given = observation.given_missing(link)
    assert_allclose(expectation(given.mean, collapsed), expectation(observation.mean, miwae))


def test_silent_mechanism_gives_miwae_to_the_bit():
    values, mask = rows()
    codes = proposed(*wide(values, mask), normal(8, 6, L))
    observation = linear_gaussian(codes.values)
    nothing = torch.zeros(D).double()
    link = ProbitLink(nothing, nothing, nothing)
    ours = collapsed_log_weights(codes, observation, values, mask, link)
    assert torch.equal(ours, miwae_log_weights(codes, observation, values, mask))


# The slow oracle


PROBIT = ProbitLink(*map(tensor, ([1.5, -0.8, 3.0, 0.7], [0.4, 0.2, -2.0, 0.1], [1, 0.5, 2, 1])))
LOGIT = LogitLink(*map(tensor, ([2.0, -1.5, 1.0, 3.0], [-0.5, 0.2, 0.7, 0.3])), n_nodes=40)
QUICK = LogitLink(LOGIT.gain, LOGIT.intercept, n_nodes=12)
HARD = ProbitLink(*map(tensor, ([1.0, -1.0, 1.0, 1.0], [-0.1, -0.5, 0.0, -0.2], [0.0] * 4)))


def probability(link):
    """p(s_j = 0 | x_j) in NumPy."""
    gain, intercept = link.gain.numpy(), link.intercept.numpy()
    if isinstance(link, LogitLink):
        return lambda j, value: expit(gain[j] * value + intercept[j])
    return lambda j, value: ndtr((gain[j] * value + intercept[j]) / float(link.noise[j]))


def frozen(kind, location):
    """SciPy's distributions of the cells of one row."""
    if kind == "gaussian":
        return [stats.norm(m, s) for m, s in zip(location, SCALE, strict=True)]
    if kind == "student":
        return [stats.t(6.0, m, s) for m, s in zip(location, SCALE, strict=True)]
    if kind == "bernoulli":
        return [stats.bernoulli(expit(m)) for m in location]
    logits = np.stack([0 * location, location, -location], axis=-1)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return [stats.rv_discrete(values=(np.arange(3), w))() for w in weights]


def observed_by(kind, location):
    if kind == "gaussian":
        return Gaussian(location, tensor(SCALE))
    if kind == "student":
        return StudentT(location, tensor(SCALE), tensor([6.0] * D), n_nodes=64)
    if kind == "bernoulli":
        return Bernoulli(location)
    return Categorical(torch.stack([0 * location, location, -location], dim=-1))


KINDS = ["gaussian", "student", "bernoulli", "categorical"]


def problem(kind, n_draws, n=4):
    values, mask = rows(n)
    if kind in ("bernoulli", "categorical"):
        values = (values > 0).double() + (values > 1) * float(kind == "categorical")
    mean, root = wide(*rows(n))
    noise = normal(n_draws, n, L)
    codes = proposed(mean, root, noise)
    location = codes.values @ tensor(LOADINGS).T + tensor(MEAN)
    return values, mask, mean, root, noise, codes, observed_by(kind, location)


def decoder(kind):
    return lambda z: frozen(kind, MEAN + LOADINGS @ z)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_form_is_the_oracle(kind):
    values, mask, mean, root, noise, codes, observation = problem(kind, 5)
    weights = np.random.default_rng(2).normal(size=(D, D))
    drawn = completed(observation, values, mask, uniforms(observation.n_uniforms, 5, 4, D))
    logits = drawn @ tensor(weights)
    ours = sampled_log_weights(codes, observation, values, mask, logits)
    ours_bound, ours_mean = bound(ours), expectation(drawn, ours)
    ours_biased = expectation(observation.mean, ours)
    for i in range(4):
        x, s = values[i].numpy(), mask[i].numpy()
        theirs = oracle.sampled_log_weights(
            x,
            s,
            noise[:, i].numpy(),
            drawn[:, i].numpy(),
            mean[i].numpy(),
            root[i].numpy(),
            decoder(kind),
            lambda row: expit(row @ weights),
        )
        assert_allclose(ours[:, i], theirs, rtol=1e-10, atol=1e-10)
        assert_allclose(ours_bound[i], oracle.bound(theirs), rtol=1e-10)
        assert_allclose(shares(ours)[:, i], oracle.shares(theirs), rtol=1e-9)
        assert_allclose(ours_mean[i], oracle.imputed(theirs, drawn[:, i].numpy()), rtol=1e-9)
        by_means = oracle.imputed_by_means_given_codes(
            theirs, codes.values[:, i].numpy(), decoder(kind)
        )
        assert_allclose(ours_biased[i], by_means, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("link", [PROBIT, LOGIT], ids=["probit", "logit"])
def test_collapsed_form_is_the_oracle(kind, link):
    values, mask, mean, root, noise, codes, observation = problem(kind, 2, n=3)
    ours = collapsed_log_weights(codes, observation, values, mask, link)
    means = expectation(observation.given_missing(link).mean, ours)
    tolerance = 1e-8 if kind == "student" else 1e-10
    for i in range(3):
        x, s = values[i].numpy(), mask[i].numpy()
        theirs = oracle.collapsed_log_weights(
            x,
            s,
            noise[:, i].numpy(),
            mean[i].numpy(),
            root[i].numpy(),
            decoder(kind),
            probability(link),
        )
        assert_allclose(ours[:, i], theirs, rtol=tolerance, atol=tolerance)
        expected = oracle.imputed_given_missing(
            theirs, codes.values[:, i].numpy(), decoder(kind), probability(link), s
        )
        assert_allclose(means[i], expected, rtol=10 * tolerance, atol=10 * tolerance)


# Collapsed and sampled agree


def mean_and_error(log_weights, values):
    """A self-normalised mean and its standard error, by the linearised ratio."""
    alpha = shares(log_weights).unsqueeze(-1)
    mean = (alpha * values).sum(0)
    return mean, (alpha * (values - mean)).square().sum(0).sqrt()


def evidence_and_error(log_weights):
    scaled = (log_weights - bound(log_weights)).exp()
    return bound(log_weights), scaled.std(0) / len(scaled) ** 0.5


def logits_of(link, drawn):
    log_missing, log_observed = link.log_missing(drawn), link.log_observed(drawn)
    return log_missing.clamp(min=-1e4) - log_observed.clamp(min=-1e4)


# Between 0 and 1, as no narrow probit is fair at a limit on a code.
BETWEEN_CODES = ProbitLink(HARD.gain, -0.5 * HARD.gain, HARD.noise)


def within_hard_limits(values, discrete):
    """Rows whose cells may all be observed, at a distance from the limits."""
    if discrete:
        return (HARD.gain < 0).double().expand_as(values)
    limit = -HARD.intercept / HARD.gain - 0.1 * HARD.gain
    return torch.where(HARD.gain > 0, values.minimum(limit), values.maximum(limit))


# A hard limit by the sampled form is a very narrow probit.
NARROW = ProbitLink(HARD.gain, HARD.intercept, torch.full((D,), 1e-9).double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("link", "drawn_link"),
    [(PROBIT, PROBIT), (QUICK, QUICK), (HARD, NARROW)],
    ids=["probit", "logit", "hard"],
)
def test_collapsed_and_sampled_forms_agree(kind, link, drawn_link):
    n_draws, seed = 100_000, 50 + KINDS.index(kind)
    values, mask, mean, root, *_ = problem(kind, 1)
    discrete = kind in ("bernoulli", "categorical")
    if discrete:
        # The codes' prior; the posterior of a normal row is too narrow for one of a few bits.
        mean, root = torch.zeros(4, L).double(), torch.ones(4, L).double()
    if link is HARD:
        values = within_hard_limits(values, discrete)
    if link is HARD and discrete:
        link = drawn_link = BETWEEN_CODES
    codes = proposed(mean, root, normal(n_draws, 4, L, seed=seed))
    observation = observed_by(kind, codes.values @ tensor(LOADINGS).T + tensor(MEAN))
    cells = uniforms(observation.n_uniforms, n_draws, 4, D, seed=seed)
    drawn = completed(observation, values, mask, cells)
    sampled = sampled_log_weights(codes, observation, values, mask, logits_of(drawn_link, drawn))
    # The collapsed one from other codes, so that the two are independent.
    few = 2_000
    other = proposed(mean, root, normal(few, 4, L, seed=seed + 100))
    observation = observed_by(kind, other.values @ tensor(LOADINGS).T + tensor(MEAN))
    collapsed = collapsed_log_weights(other, observation, values, mask, link)
    ours, ours_error = evidence_and_error(collapsed)
    theirs, theirs_error = evidence_and_error(sampled)
    assert (theirs_error < 0.1).all()
    assert ((ours - theirs).abs() <= 3 * (ours_error**2 + theirs_error**2).sqrt() + 1e-9).all()
    ours, ours_error = mean_and_error(collapsed, observation.given_missing(link).mean)
    theirs, theirs_error = mean_and_error(sampled, drawn)
    gap, error = (ours - theirs).abs(), (ours_error**2 + theirs_error**2).sqrt()
    assert (gap <= 3 * error + 1e-9)[~mask].all()


def test_mean_given_the_code_alone_is_biased_where_values_are_missing_by_themselves():
    values, mask = rows(4)
    codes = proposed(*wide(values, mask), normal(20_000, 4, L))
    observation = linear_gaussian(codes.values)
    log_weights = collapsed_log_weights(codes, observation, values, mask, PROBIT)
    right = expectation(observation.given_missing(PROBIT).mean, log_weights)
    biased = expectation(observation.mean, log_weights)
    assert ((right - biased) * PROBIT.gain.sign() > 0.05)[~mask].all()


# Gradients


@pytest.mark.parametrize("link", [PROBIT, HARD, LOGIT], ids=["probit", "hard", "logit"])
def test_gradient_of_the_collapsed_bound_is_that_of_finite_differences(link):
    values, mask = rows(3)
    values = torch.where(
        mask & (HARD.log_observed(values) < 0), -HARD.intercept * HARD.gain, values
    )
    mean, root = (part.clone().requires_grad_() for part in wide(values, mask))
    loadings, scale = (tensor(part).requires_grad_() for part in (LOADINGS, SCALE))
    gain, intercept = (part.clone().requires_grad_() for part in (link.gain, link.intercept))
    noise = normal(3, 3, L)

    def of(mean, root, loadings, scale, gain, intercept):
        moved = type(link)(gain, intercept, *list(vars(link).values())[2:])
        codes = proposed(mean, root.tril(), noise)
        observation = Gaussian(codes.values @ loadings.T + tensor(MEAN), scale)
        return bound(collapsed_log_weights(codes, observation, values, mask, moved))

    if link is HARD:
        # At the limit itself the bound has a jump, which no difference quotient may cross.
        intercept = (intercept.detach() - 0.01).requires_grad_()
    inputs = (mean, root, loadings, scale, gain, intercept)
    assert of(*inputs).isfinite().all()
    assert torch.autograd.gradcheck(of, inputs, atol=1e-6)
    gradients = torch.autograd.grad(of(*inputs).sum(), inputs)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)


def test_gradients_of_the_sampled_and_the_plain_bound_are_those_of_finite_differences():
    values, mask = rows(3)
    mean, root = (part.clone().requires_grad_() for part in wide(values, mask))
    weights = normal(D, D).requires_grad_()
    scale = tensor(SCALE).requires_grad_()
    noise, cells = normal(3, 3, L), uniforms(1, 3, 3, D)

    def of(mean, root, weights, scale):
        codes = proposed(mean, root.tril(), noise)
        observation = Gaussian(codes.values @ tensor(LOADINGS).T, scale)
        logits = completed(observation, values, mask, cells) @ weights
        log_weights = sampled_log_weights(codes, observation, values, mask, logits)
        likelihood = log_observed_density(observation, values, mask) + log_mask_given_rows(
            logits, mask
        )
        return bound(log_weights), plain_bound(likelihood, mean, root.tril())

    inputs = (mean, root, weights, scale)
    assert torch.autograd.gradcheck(of, inputs, atol=1e-6)
    for result in of(*inputs):
        gradients = torch.autograd.grad(result.sum(), inputs, retain_graph=True)
        assert all(gradient.abs().max() > 1e-3 for gradient in gradients)


# Weights, quantiles and resampling


def test_effective_size_is_between_one_and_the_number_of_draws():
    assert_allclose(effective_size(torch.zeros(9, 2).double() - 800), 9)
    alone = torch.tensor([[0.0], [-1e3], [-1e3]]).double()
    assert_allclose(effective_size(alone), 1)
    sizes = effective_size(normal(20, 50))
    assert (sizes > 1).all() and (sizes < 20).all()
    alpha = np.exp(normal(20, 50).numpy())
    assert_allclose(sizes, alpha.sum(0) ** 2 / (alpha**2).sum(0), rtol=1e-12)


def test_weighted_quantile_is_where_the_shares_reach_the_level():
    values, log_weights = normal(30, 4, 3), normal(30, 4, seed=8)
    for level in (0.05, 0.5, 0.9):
        ours = weighted_quantile(values, log_weights, level).numpy()
        for i, j in itertools.product(range(4), range(3)):
            alpha = oracle.shares(log_weights[:, i].numpy())
            column = values[:, i, j].numpy()
            assert alpha[column <= ours[i, j]].sum() >= level
            assert alpha[column < ours[i, j]].sum() < level
    equal = torch.zeros(5, 1).double()
    assert weighted_quantile(tensor([3, 1, 2, 5, 4]).view(5, 1, 1), equal, 0.5).item() == 3


def test_resampled_values_have_the_frequencies_of_the_shares():
    log_weights = normal(6, 3, seed=9)
    values = torch.arange(18.0).view(6, 3)
    n_draws = 20_000
    index = resampled(values, log_weights, uniforms(n_draws, 3))
    assert index.shape == (n_draws, 3)
    for k, i in itertools.product(range(6), range(3)):
        share = shares(log_weights)[k, i]
        frequency = (index[:, i] == values[k, i]).double().mean()
        assert (frequency - share).abs() <= 4 * (share * (1 - share) / n_draws) ** 0.5
    vectors = resampled(normal(6, 3, L), log_weights, uniforms(10, 3))
    assert vectors.shape == (10, 3, L)
    ends = torch.tensor([[0.0], [1 - 1e-16]], dtype=torch.float64).expand(2, 3)
    assert_allclose(resampled(values, log_weights, ends), values[[0, -1]])


def test_resampled_codes_with_draws_given_missing_have_the_posterior_mean():
    values, mask = rows(3)
    codes = proposed(*wide(values, mask), normal(2_000, 3, L))
    observation = linear_gaussian(codes.values)
    log_weights = collapsed_log_weights(codes, observation, values, mask, PROBIT)
    mean = expectation(observation.given_missing(PROBIT).mean, log_weights)
    again = resampled(codes.values, log_weights, uniforms(20_000, 3))
    draws = linear_gaussian(again).given_missing(PROBIT).drawn(uniforms(3, 20_000, 3, D, seed=5))
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - mean).abs() <= 4 * error).all()


def test_rows_do_not_depend_on_their_batch():
    values, mask = rows()
    noise, (mean, root) = normal(8, 6, L), wide(values, mask)

    def of(index):
        codes = proposed(mean[index], root[index], noise[:, index])
        cells = linear_gaussian(codes.values)
        log_weights = collapsed_log_weights(codes, cells, values[index], mask[index], PROBIT)
        return expectation(cells.given_missing(PROBIT).mean, log_weights)

    assert_allclose(of([4, 1]), of(list(range(6)))[[4, 1]], rtol=1e-12)
