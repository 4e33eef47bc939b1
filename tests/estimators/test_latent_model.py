"""Encoder, decoder and mask term together: factor analysis as the exact case."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, ndtr, softmax
from scipy.stats import norm, truncnorm
from torch import nn

from skbilevel.estimators.column_units import ColumnUnits, column_units
from skbilevel.estimators.latent_build import Architecture, factor_analysis, random_autoencoder
from skbilevel.estimators.latent_fit import train_model
from skbilevel.estimators.latent_missing import MissingModel, MissingStart, missing_model
from skbilevel.estimators.latent_model import LatentModel
from skbilevel.estimators.latent_parts import NetworkParts, filled_by
from skbilevel.estimators.latent_plan import TrainingSettings
from skbilevel.estimators.latent_state import network_of, network_state
from skbilevel.estimators.mask_terms import Collapsed, Ignored, Sampled
from skbilevel.models.latent_variable import FactorAnalysis, autoencoder_of
from skbilevel.numerics.random import row_keys
from skbilevel.objectives.masking_links import ProbitLink
from skbilevel.objectives.self_masking import SelfMasking
from tests.reference.gaussian import condition

D, L = 5, 2
RNG = np.random.default_rng(11)
LOADINGS, NOISE = RNG.normal(size=(D, L)), np.array([0.3, 0.5, 0.8, 0.4, 0.6])
COVARIANCE = LOADINGS @ LOADINGS.T + np.diag(NOISE)
CENTER, SCALE = np.array([1.0, -2.0, 0.0, 30.0, 5.0]), np.array([2.0, 0.1, 1.0, 10.0, 0.5])
NUMBERS = ColumnUnits(
    ("gaussian",) * D, CENTER, SCALE, tuple(np.zeros(0) for _ in range(D)), np.full(D, np.nan)
)


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def conditional_means(rows):
    """The filling of which the encoder's mean is that of the exact posterior."""
    Z = (rows - CENTER) / SCALE
    return np.array([condition(row, np.zeros(D), COVARIANCE)[0] for row in Z])


def model(term=None, n_importance=256, kind="residual", covariance="full", seed=3):
    """A network that is still the factor analysis, in float64."""
    factors = FactorAnalysis(torch.zeros(D).double(), tensor(LOADINGS), tensor(NOISE))
    pair = autoencoder_of(
        factors, generator=generator(), kind=kind, covariance=covariance, dtype=torch.float64
    )
    term = Ignored() if term is None else term
    return LatentModel(*pair, term, NUMBERS, conditional_means, seed, n_importance)


def rows(n_rows=25, seed=0, rate=0.4):
    rng = np.random.default_rng(seed)
    X = rng.multivariate_normal(np.zeros(D), COVARIANCE, n_rows) * SCALE + CENTER
    X[rng.random(X.shape) < rate] = np.nan
    X[0], X[1] = np.nan, np.where(np.arange(D) == 1, np.nan, 0.3 * SCALE + CENTER)
    return X


def in_data_units(row):
    return condition(row, CENTER, COVARIANCE * np.outer(SCALE, SCALE))


# The network that starts as factor analysis


@pytest.mark.parametrize("kind", ["linear", "residual"])
@pytest.mark.parametrize("n_importance", [1, 2, 64])
def test_bound_of_factor_analysis_is_the_log_likelihood_for_every_pattern(kind, n_importance):
    X = rows()
    expected = [in_data_units(row)[2] for row in X]
    ours = model(kind=kind, n_importance=n_importance).log_densities(X)
    assert_allclose(ours, expected, rtol=1e-11, atol=1e-11)


def test_weights_of_the_exact_posterior_are_equal():
    assert_allclose(model().effective_sizes(rows()), 256.0, rtol=1e-10)
    assert model(covariance="diagonal").effective_sizes(rows()).min() < 250


def test_imputation_of_factor_analysis_is_the_conditional_mean():
    """Up to the integral over 4,096 points of the latent space."""
    X = rows()
    ours = model(n_importance=4096).completed(X)
    expected = [in_data_units(row)[0] for row in X]
    assert_allclose(ours / SCALE, np.array(expected) / SCALE, atol=1e-3)
    observed = ~np.isnan(X)
    assert_array_equal(ours[observed], X[observed])


@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
def test_quantile_of_factor_analysis_is_the_normals(level):
    X = rows(8)
    ours = model(n_importance=4096).quantile(X, level)
    for i, row in enumerate(X):
        mean, covariance, _ = in_data_units(row)
        for j in np.flatnonzero(np.isnan(row)):
            reached = norm(mean[j], covariance[j, j] ** 0.5).cdf(ours[i, j])
            assert reached == pytest.approx(level, abs=0.01)


def test_draws_of_factor_analysis_have_the_conditional_mean_and_covariance():
    """5,000 draws of three rows, within 4 standard errors."""
    X, n_draws = rows(4)[1:], 5000
    own = model(n_importance=1024)
    drawn = own.drawn(X, row_keys(X, seed=2), n_draws)
    for i, row in enumerate(X):
        mean, covariance, _ = in_data_units(row)
        m = np.isnan(row)
        S = covariance[np.ix_(m, m)]
        error = np.sqrt(S.diagonal() / n_draws)
        assert (np.abs(drawn[:, i, m].mean(0) - mean[m]) < 4 * error).all()
        bound = 4 * np.sqrt((np.outer(S.diagonal(), S.diagonal()) + S**2) / n_draws)
        empirical = np.atleast_2d(np.cov(drawn[:, i, m].T))
        assert (np.abs(empirical - S) < bound).all()
        assert_array_equal(drawn[:, i, ~m], np.broadcast_to(row[~m], (n_draws, (~m).sum())))


def test_loss_is_minus_the_mean_bound_of_the_batch():
    X = rows()
    own = model()
    batch = own.batch(X)
    noise = torch.randn(7, len(X), L, generator=generator(), dtype=torch.float64)
    expected = np.mean([in_data_units(row)[2] + ~np.isnan(row) @ np.log(SCALE) for row in X])
    for objective in ("iwae", "elbo"):
        # The plain bound is exact in expectation over codes only.
        tolerance = 1e-10 if objective == "iwae" else 0.5
        loss = own.loss(batch, noise, None, objective)
        assert loss.item() == pytest.approx(-expected, abs=tolerance)
    many = torch.randn(5_000, len(X), L, generator=generator(1), dtype=torch.float64)
    assert own.loss(batch, many, None, "elbo").item() == pytest.approx(-expected, abs=0.02)


def test_rows_are_imputed_drawn_and_scored_by_themselves(monkeypatch):
    X, own = rows(), model()
    keys = row_keys(X, seed=1)
    whole = own.completed(X), own.log_densities(X), own.drawn(X, keys, 2)
    order = np.random.default_rng(0).permutation(len(X))
    assert_allclose(own.completed(X[order]), whole[0][order], rtol=1e-10)
    assert_allclose(own.log_densities(X[order]), whole[1][order], rtol=1e-10)
    assert_allclose(own.drawn(X[order], keys[order], 2), whole[2][:, order], rtol=1e-10)
    # One row at a time through the networks, and two are filled at a time.
    monkeypatch.setattr("skbilevel.estimators.latent_model._NUMBERS_AT_A_TIME", 1)
    monkeypatch.setattr("skbilevel.estimators.latent_model.ROWS_AT_A_TIME", 2)
    assert_allclose(own.completed(X), whole[0], rtol=1e-10)
    assert_allclose(own.log_densities(X), whole[1], rtol=1e-10)
    assert_allclose(own.drawn(X, keys, 2), whole[2], rtol=1e-10)


def test_factors_of_a_correlation_matrix_keep_its_diagonal_and_leading_part():
    correlation = COVARIANCE / np.sqrt(np.outer(COVARIANCE.diagonal(), COVARIANCE.diagonal()))
    for n_latent in (1, 2, 4):
        factors = factor_analysis(tensor(correlation), n_latent)
        implied = factors.loadings @ factors.loadings.T + factors.noise_variance.diag()
        assert_allclose(implied.diagonal(), 1.0, rtol=1e-12)
    # Of a matrix that is one factor and equal noise, the factor itself.
    loading = np.full((4, 1), 0.8**0.5)
    factors = factor_analysis(tensor(loading @ loading.T + 0.2 * np.eye(4)), 1)
    assert_allclose(factors.loadings.abs(), loading, rtol=1e-12)
    assert_allclose(factors.noise_variance, 0.2, rtol=1e-12)
    # As many factors as columns: noise does not fall to nothing.
    assert factor_analysis(tensor(correlation), D).noise_variance.min() >= 0.01


# Mask terms


def constant(log_odds):
    return Sampled(lambda values: torch.zeros_like(values) + log_odds)


def test_constant_missing_model_gives_miwae_and_a_constant():
    X, log_odds = rows(), np.array([0.3, -1.0, 2.0, 0.0, 0.5])
    plain = model(covariance="diagonal")
    own = model(constant(tensor(log_odds)), covariance="diagonal")
    log_s = np.log(np.where(np.isnan(X), expit(log_odds), expit(-log_odds))).sum(1)
    assert_allclose(own.log_densities(X), plain.log_densities(X) + log_s, rtol=1e-10)
    assert_allclose(own.effective_sizes(X), plain.effective_sizes(X), rtol=1e-10)
    # It imputes draws of cells, where the other knows their mean.
    gap = (own.completed(X) - plain.completed(X)) / SCALE
    deviation = np.sqrt(COVARIANCE.diagonal() / plain.effective_sizes(X)[:, None])
    assert (np.abs(gap) < 4 * deviation)[np.isnan(X)].all()


def probit(side, threshold, width):
    side, threshold, width = map(tensor, (side, threshold, width))
    return Collapsed(lambda: ProbitLink(side, -side * threshold, width), side.abs())


def test_mechanism_of_one_missing_cell_gives_the_exact_mean_and_density():
    """The normal times a probit, in closed form."""
    side, threshold, width = (
        [0.0, 1.0, 0.0, -1.0, 0.0],
        [0, 0.4, 0, -0.3, 0.0],
        [0, 0.3, 0, 0.5, 0],
    )
    own = model(probit(side, threshold, width), n_importance=4096)
    X = rows(12, rate=0.0)
    X[::2, 1], X[1::2, 3] = np.nan, np.nan
    filled, density = own.completed(X), own.log_densities(X)
    for i, row in enumerate(X):
        if not (~np.isnan(row)).any():
            continue
        mean, covariance, log_observed = condition((row - CENTER) / SCALE, np.zeros(D), COVARIANCE)
        expected = log_observed - np.log(SCALE[~np.isnan(row)]).sum()
        for j in (1, 3):
            if np.isnan(row[j]):
                spread = np.hypot(width[j], covariance[j, j] ** 0.5)
                t = side[j] * (mean[j] - threshold[j]) / spread
                expected += norm.logcdf(t)
                hazard = np.exp(norm.logpdf(t) - norm.logcdf(t))
                target = mean[j] + side[j] * covariance[j, j] / spread * hazard
                ours = (filled[i, j] - CENTER[j]) / SCALE[j]
                if np.isnan(row).sum() == 1:
                    assert ours == pytest.approx(target, abs=5e-3)
            else:
                expected += norm.logcdf(-side[j] * (mean[j] - threshold[j]) / width[j])
        if np.isnan(row).sum() == 1:
            assert density[i] == pytest.approx(expected, abs=5e-3)


def test_draws_of_one_missing_cell_have_its_exact_mean_and_variance():
    """Beyond a limit far from what the other cells say: codes of equal weight would not do."""
    limit, n_draws = 2.0, 4000
    own = model(probit([0.0, 1.0, 0.0, 0.0, 0.0], [0.0, limit, 0.0, 0.0, 0.0], [0.0] * D), 4096)
    X = rows(3, rate=0.0)[1:]
    X[:, 1] = np.nan
    drawn = (own.drawn(X, row_keys(X, seed=4), n_draws)[:, :, 1] - CENTER[1]) / SCALE[1]
    for cells, row in zip(drawn.T, X, strict=True):
        mean, covariance, _ = condition((row - CENTER) / SCALE, np.zeros(D), COVARIANCE)
        sd = covariance[1, 1] ** 0.5
        exact = truncnorm((limit - mean[1]) / sd, np.inf, loc=mean[1], scale=sd)
        assert cells.mean() == pytest.approx(exact.mean(), abs=4 * exact.std() / n_draws**0.5)
        assert cells.var() == pytest.approx(exact.var(), rel=0.2)
        assert cells.min() > limit - 1e-9


def test_collapsed_and_sampled_mechanisms_impute_alike():
    """One integrates over the missing cells, the other draws them, by the same probits."""
    side, threshold, width = tensor([1.0] * D), tensor([0.2] * D), tensor([0.7] * D)

    def log_odds(values):
        t = side * (values - threshold) / width
        return torch.special.log_ndtr(t) - torch.special.log_ndtr(-t)

    X = rows(10)
    collapsed = model(probit(side, threshold, width), n_importance=4096)
    sampled = model(Sampled(log_odds), n_importance=2**14)
    sizes = sampled.effective_sizes(X)
    assert sizes.min() > 150
    gap = (collapsed.completed(X) - sampled.completed(X)) / SCALE
    error = np.sqrt(COVARIANCE.diagonal() / sizes[:, None])
    assert (np.abs(gap) < 4 * error)[np.isnan(X)].all()
    assert_allclose(collapsed.log_densities(X), sampled.log_densities(X), atol=0.2)
    # It is not what ignoring the mask gives.
    assert (np.abs(model().completed(X) - collapsed.completed(X)) / SCALE).max() > 0.3


def test_missing_probability_is_that_of_the_term_in_the_units_of_the_data():
    side, threshold, width = (
        [1.0, -1.0, 0.0, 1.0, 0.0],
        [0.4, 0.1, 0, -0.3, 0],
        [0.3, 2.0, 0, 1, 0],
    )
    X = rows(6, rate=0.0)[1:]
    X[0, 1] = CENTER[1]
    ours = model(probit(side, threshold, width)).missing_probability(X)
    t = side * ((X - CENTER) / SCALE - threshold) / np.where(np.array(width) == 0, 1, width)
    assert_allclose(ours[:, [0, 1, 3]], ndtr(t)[:, [0, 1, 3]], rtol=1e-9)
    assert np.isnan(ours[:, [2, 4]]).all()
    assert np.isnan(model().missing_probability(X)).all()
    weights = np.random.default_rng(0).normal(size=(D, D))
    whole = Sampled(lambda values: values @ tensor(weights))
    expected = expit((X - CENTER) / SCALE @ weights)
    assert_allclose(model(whole).missing_probability(X), expected, rtol=1e-9)


# Discrete columns


KINDS = ("categorical", "gaussian", "bernoulli", "categorical")


def mixed_table(n_rows=40, seed=0):
    rng = np.random.default_rng(seed)
    X = np.column_stack(
        [
            rng.choice([1.0, 2.0, 7.0], n_rows, p=[0.2, 0.5, 0.3]),
            rng.normal(size=n_rows),
            rng.choice([-1.0, 1.0], n_rows),
            rng.choice([0.0, 5.0, 6.0, 9.0], n_rows),
        ]
    )
    X[rng.random(X.shape) < 0.3] = np.nan
    return X


def architecture(**changes):
    settings = {
        "decoder": "residual",
        "n_latent": 2,
        "hidden": (8,),
        "activation": "silu",
        "min_scale": 0.1,
        "image_shape": None,
    }
    return Architecture(**{**settings, **changes})


def parts(start=None, kinds=KINDS, X=None, **changes):
    X = mixed_table() if X is None else X
    units = column_units(X, kinds, np.zeros(X.shape[1]), np.ones(X.shape[1]))
    means = np.nanmean(units.coded(X), axis=0)
    start = start or MissingStart("mar", None, torch.ones(X.shape[1]))
    return NetworkParts(architecture(**changes), units, means, start, 5, 128)


def built(own_parts, own=None, seed=1):
    """A random network of these parts, and its missing model."""
    pair = random_autoencoder(own_parts.units, own_parts.architecture, generator(seed))
    missing = missing_model(own_parts.missing, own, own_parts.units, generator(seed))
    with torch.no_grad():
        # Corrections start at zero, which a round trip could not tell from other zeros.
        for module in [*pair, *([missing.module] if missing.module is not None else [])]:
            for tensor_ in module.parameters():
                tensor_.add_(0.3 * torch.randn(tensor_.shape, generator=generator(seed)))
    fill, number = filled_by(None, own_parts), own_parts.n_importance
    own_model = LatentModel(*pair, missing.term, own_parts.units, fill, own_parts.seed, number)
    return own_model, missing


def with_constant_logits(own, logits):
    """The decoder gives these numbers (d, c) whatever the code."""
    with torch.no_grad():
        own.decoder.skip.weight.zero_()
        own.decoder.skip.bias.copy_(tensor(logits).flatten())
        own.decoder.correction = None
    return own


LOGITS = np.array([[0.4, -0.2, 0.6, 9.0], [0.7, 0, 0, 0], [1.2, 0, 0, 0], [1.0, 0.9, 0.8, 1.1]])


def test_categorical_cells_are_imputed_by_their_mode_and_others_by_their_mean():
    """With a decoder that does not look at the code."""
    own = with_constant_logits(built(parts())[0], LOGITS)
    filled = own.completed(np.array([[np.nan] * 4]))
    assert_allclose(filled[0, [0, 3]], [7.0, 9.0])
    assert filled[0, 1] == pytest.approx(0.7, abs=1e-6)
    assert filled[0, 2] == pytest.approx(-1 + 2 * expit(1.2), abs=1e-5)


def test_logits_beyond_a_columns_categories_are_not_used():
    """The fourth of the first column, which has three, is the largest."""
    own = with_constant_logits(built(parts())[0], LOGITS)
    row = np.array([[2.0, np.nan, np.nan, np.nan]])
    expected = np.log(softmax(LOGITS[0, :3])[1])
    assert own.log_densities(row)[0] == pytest.approx(expected, abs=0.02)


def test_mode_is_that_of_the_category_given_that_it_is_missing():
    """p(c) p(s = 0 | c) is largest at another category than p(c)."""
    own = with_constant_logits(built(parts())[0], LOGITS)
    side = torch.tensor([-1.0, 0.0, 0.0, -1.0])
    link = ProbitLink(side, 0.5 - (side == 0) * 0.5, side.abs())
    given = LatentModel(
        own.encoder, own.decoder, Collapsed(lambda: link, side.abs()), own.units, own.fill, 5, 128
    )
    codes = np.arange(4)
    for j, n, values in ((0, 3, [1.0, 2.0, 7.0]), (3, 4, [0.0, 5.0, 6.0, 9.0])):
        joint = softmax(LOGITS[j, :n]) * ndtr(0.5 - codes[:n])
        filled = given.completed(np.array([[np.nan] * 4]))[0, j]
        assert filled == values[joint.argmax()] != values[LOGITS[j, :n].argmax()]


def test_draws_of_discrete_cells_are_categories_in_their_shares():
    own = with_constant_logits(built(parts())[0], LOGITS)
    X = np.array([[np.nan] * 4])
    drawn = own.drawn(X, row_keys(X, seed=0), 4000)[:, 0]
    for j, n, values in ((0, 3, [1.0, 2.0, 7.0]), (3, 4, [0.0, 5.0, 6.0, 9.0])):
        share = softmax(LOGITS[j, :n])
        ours = [np.mean(drawn[:, j] == value) for value in values]
        assert sum(ours) == 1
        assert_allclose(ours, share, atol=4 * 0.5 / 4000**0.5)
    assert set(drawn[:, 2]) == {-1.0, 1.0}


# Storage


STARTS = {
    "mar": MissingStart("mar", None, torch.ones(4)),
    "fixed": MissingStart(
        "fixed",
        SelfMasking(*map(tensor, ([1.0, -1, 0, 1], [0.5, 0, 0, 1.5], [0.2, 0.4, 1, 0.3]))),
        torch.tensor([1.0, 1.0, 0.0, 1.0]),
    ),
    "learnt": MissingStart(
        "learnt",
        SelfMasking(*map(tensor, ([1.0, -1, 0, 1], [0.5, 0, 0, 1.5], [0.2, 0.4, 1, 0.3]))),
        torch.tensor([1.0, 1.0, 0.0, 1.0]),
        "logit",
        True,
    ),
    "agnostic": MissingStart("agnostic", None, torch.ones(4)),
    "nonlinear": MissingStart("nonlinear", None, torch.ones(4)),
    "own": MissingStart("own", None, torch.ones(4)),
}


@pytest.mark.parametrize("form", list(STARTS))
def test_stored_network_imputes_draws_and_scores_alike(form):
    own_parts, X = parts(STARTS[form]), mixed_table(seed=3)
    module = nn.Linear(4, 4) if form == "own" else None
    own, missing = built(own_parts, module)
    state = network_state(own, missing, own_parts)
    loaded = network_of(state, None, module)
    assert loaded.decoder is not own.decoder
    assert_array_equal(loaded.completed(X), own.completed(X))
    assert_array_equal(loaded.quantile(X, 0.3), own.quantile(X, 0.3))
    assert_array_equal(loaded.log_densities(X), own.log_densities(X))
    keys = row_keys(X, seed=1)
    assert_array_equal(loaded.drawn(X, keys, 2), own.drawn(X, keys, 2))
    full = np.where(np.isnan(X), own.completed(X), X)
    assert_array_equal(loaded.missing_probability(full), own.missing_probability(full))


@pytest.mark.parametrize("form", list(STARTS))
def test_state_is_arrays_and_plain_python(form):
    own_parts = parts(STARTS[form])
    module = nn.Linear(4, 4) if form == "own" else None
    plain = (np.ndarray, str, int, float, bool, type(None))

    def assert_plain(value):
        if isinstance(value, dict):
            for key, part in value.items():
                assert isinstance(key, str)
                assert_plain(part)
        elif isinstance(value, list | tuple):
            for part in value:
                assert_plain(part)
        else:
            assert isinstance(value, plain), type(value)

    assert_plain(network_state(*built(own_parts, module), own_parts))


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"decoder": "linear"}, ("gaussian",) * 4),
        ({"decoder": "mlp", "hidden": (6, 5), "activation": "tanh"}, ("student_t",) * 4),
        ({"decoder": "conv", "image_shape": (1, 2, 2)}, ("gaussian",) * 4),
    ],
    ids=str,
)
def test_architectures_are_stored(changes, kinds):
    X = np.random.default_rng(0).normal(size=(12, 4))
    X[::3, 0] = X[1::4, 2] = np.nan
    own_parts = parts(None, kinds, X, **changes)
    own, missing = built(own_parts)
    loaded = network_of(network_state(own, missing, own_parts), None, None)
    assert_array_equal(loaded.completed(X), own.completed(X))
    assert_array_equal(loaded.log_densities(X), own.log_densities(X))


# Training, and a missing model of the user's own


def test_own_callable_sees_rows_in_the_units_of_the_data():
    seen = []

    def own(values):
        seen.append(values.clone())
        return values.new_zeros(values.shape)

    own_parts = NetworkParts(
        architecture(), NUMBERS, np.zeros(D), MissingStart("own", None, torch.ones(D)), 5, 16
    )
    missing = missing_model(own_parts.missing, own, NUMBERS, generator())
    assert missing.module is None
    X = rows(9)
    pair = random_autoencoder(NUMBERS, own_parts.architecture, generator())
    fill = filled_by(None, own_parts)
    LatentModel(*pair, missing.term, NUMBERS, fill, 5, 16).completed(X)
    values, observed = seen[-1].numpy(), ~np.isnan(X)
    assert values.shape == (16, *X.shape)
    assert_allclose(
        values[:, observed], np.broadcast_to(X[observed], (16, observed.sum())), rtol=1e-5
    )


def test_own_callable_sees_categories_and_not_their_codes():
    seen = []

    def own(values):
        seen.append(values.clone())
        return values.new_zeros(values.shape)

    own_parts, X = parts(STARTS["own"]), mixed_table()
    built(own_parts, own)[0].completed(X)
    for j, values in ((0, [1.0, 2.0, 7.0]), (2, [-1.0, 1.0]), (3, [0.0, 5.0, 6.0, 9.0])):
        assert set(np.unique(seen[-1][..., j])) <= set(values)


def test_module_of_the_user_is_trained_as_a_copy():
    module = nn.Linear(4, 4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    missing = missing_model(STARTS["own"], module, parts().units, generator())
    assert missing.module is not module
    own = built(parts(STARTS["own"]), module)
    settings = TrainingSettings("iwae", 3, 16, 2, 0.05, 0.0)
    train_model(own[0], own[1].module, mixed_table(), settings, generator())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(own[1].module.weight, module.weight)


@pytest.mark.parametrize("form", list(STARTS))
def test_training_raises_the_bound(form):
    X = mixed_table(60)
    module = nn.Linear(4, 4) if form == "own" else None
    own, missing = built(parts(STARTS[form], X=X), module)
    before = own.log_densities(X).mean()
    settings = TrainingSettings("iwae", 3, 30, 25, 0.02, 0.0)
    result = train_model(own, missing.module, X, settings, generator())
    assert own.log_densities(X).mean() > before + 0.3
    assert result.history["loss"][-1] < result.history["loss"][0]
    assert isinstance(missing, MissingModel)
