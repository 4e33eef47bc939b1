"""A pair that starts as a factor analysis is that factor analysis."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

from skbilevel.models.latent_variable import (
    DECODERS,
    Decoder,
    Encoder,
    FactorAnalysis,
    autoencoder_of,
    canonical,
)
from skbilevel.objectives.importance_weighted import bound, miwae_log_weights, proposed
from skbilevel.objectives.observation import Gaussian

D, L, N = 6, 2, 9


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


FACTORS = FactorAnalysis(normal(D, seed=1), normal(D, L, seed=2), normal(D, seed=3).square() + 0.2)
COVARIANCE = FACTORS.loadings @ FACTORS.loadings.T + FACTORS.noise_variance.diag()


def rows(complete):
    mask = torch.ones(N, D, dtype=torch.bool)
    if not complete:
        mask = torch.as_tensor(np.random.default_rng(5).random((N, D)) < 0.6)
        mask[0] = False
    return normal(N, D, seed=4) + FACTORS.location, mask


def conditional_mean(values, mask):
    """Rows with missing cells at E[x | x_o]."""
    filled = values.clone()
    for row, s in zip(filled, mask, strict=True):
        gap = torch.linalg.solve(COVARIANCE[s][:, s], row[s] - FACTORS.location[s])
        row[~s] = FACTORS.location[~s] + COVARIANCE[~s][:, s] @ gap
    return filled


def log_evidence(values, mask):
    return [
        multivariate_normal(FACTORS.location[s].numpy(), COVARIANCE[s][:, s].numpy()).logpdf(x[s])
        if s.any()
        else 0.0
        for x, s in zip(values.numpy(), mask, strict=True)
    ]


def pair(**options):
    options = {"dtype": torch.float64, "min_scale": 0.05, **options}
    return autoencoder_of(FACTORS, generator=generator(), **options)


def bound_of(encoder, decoder, values, mask, filled, n_draws):
    proposal = encoder(filled, mask)
    codes = proposed(*proposal, normal(n_draws, N, L, seed=6))
    cells = Gaussian(decoder(codes.values), decoder.scale())
    return bound(miwae_log_weights(codes, cells, values, mask)).detach()


@pytest.mark.parametrize("kind", ["linear", "residual"])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("n_draws", [1, 2, 50])
def test_bound_of_complete_rows_is_their_log_density(kind, covariance, n_draws):
    encoder, decoder = pair(kind=kind, covariance=covariance)
    values, mask = rows(complete=True)
    ours = bound_of(encoder, decoder, values, mask, values, n_draws)
    assert_allclose(ours, log_evidence(values, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_draws", [1, 2, 50])
def test_bound_of_incomplete_rows_is_their_log_density_with_the_full_covariance(n_draws):
    encoder, decoder = pair(covariance="full")
    values, mask = rows(complete=False)
    filled = conditional_mean(values, mask)
    ours = bound_of(encoder, decoder, values, mask, filled, n_draws)
    assert_allclose(ours, log_evidence(values, mask), rtol=0, atol=1e-12)


def test_diagonal_is_the_best_of_all_diagonals_for_an_incomplete_row():
    """The divergence from the posterior is least where precisions are those of its diagonal."""
    values, mask = rows(complete=False)
    encoder, _ = pair(covariance="diagonal")
    proposal = encoder(conditional_mean(values, mask), mask)
    turned = canonical(FACTORS)
    scaled = turned.loadings / turned.noise_variance.sqrt().unsqueeze(1)
    for s, mean, root in zip(mask, *proposal, strict=True):
        precision = torch.eye(L).double() + scaled[s].T @ scaled[s]
        assert_allclose(root.detach(), precision.diagonal() ** -0.5, rtol=1e-12)
        assert mean.shape == (L,)


def test_turned_factors_have_the_same_covariance_and_an_uncorrelated_posterior():
    turned = canonical(FACTORS)
    assert_allclose(turned.loadings @ turned.loadings.T, FACTORS.loadings @ FACTORS.loadings.T)
    precision = turned.loadings.T @ (turned.loadings / turned.noise_variance.unsqueeze(1))
    assert_allclose(precision, precision.diagonal().diag(), atol=1e-12)


def test_noise_below_the_floor_is_lifted_to_it():
    small = FACTORS._replace(noise_variance=torch.full((D,), 1e-9).double())
    encoder, decoder = autoencoder_of(
        small, generator=generator(), min_scale=0.3, dtype=torch.float64
    )
    assert_allclose(decoder.scale().detach(), 0.3, rtol=0.02)
    # The encoder is the posterior of what the decoder says, not of what it was given.
    values, mask = rows(complete=True)
    ours = [bound_of(encoder, decoder, values, mask, values, k) for k in (1, 50)]
    assert_allclose(*ours, rtol=1e-10)


@pytest.mark.parametrize("min_scale", [0.0, 0.2])
def test_scale_is_above_its_floor_and_can_be_set(min_scale):
    decoder = Decoder(L, D, generator=generator(), min_scale=min_scale, dtype=torch.float64)
    wanted = torch.linspace(0.25, 2, D).double()
    decoder.set_scale(wanted)
    assert_allclose(decoder.scale().detach(), wanted, rtol=1e-12)
    with torch.no_grad():
        decoder.log_scale.fill_(-50.0)
    assert_allclose(decoder.scale().detach(), max(min_scale, np.exp(-50)), rtol=1e-12)
    assert (decoder.degrees() > 2).all()


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_per_cell", [1, 3])
def test_decoder_maps_codes_to_cells(kind, dtype, n_per_cell):
    shape = (1, 2, 3) if kind == "conv" else None
    decoder = Decoder(
        L,
        D,
        generator=generator(),
        kind=kind,
        image_shape=shape,
        n_per_cell=n_per_cell,
        dtype=dtype,
    )
    codes = normal(4, N, L).to(dtype)
    cells = decoder(codes)
    assert cells.shape == (4, N, D * n_per_cell) and cells.dtype == dtype
    assert decoder.scale().dtype == dtype
    assert not torch.allclose(cells[0], cells[1])
    torch.testing.assert_close(decoder(codes[1:2, 3:4])[0, 0], cells[1, 3])


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [None, (1, 2, 3)])
def test_every_parameter_of_the_encoder_can_learn(covariance, dtype, shape):
    encoder = Encoder(
        D, L, generator=generator(), covariance=covariance, image_shape=shape, dtype=dtype
    )
    assert encoder.correction is not None
    with torch.no_grad():
        for parameter in encoder.correction.parameters():
            parameter.add_(0.1)
    values, mask = rows(complete=False)
    mean, root = encoder(values.to(dtype), mask)
    assert mean.shape == (N, L) and mean.dtype == root.dtype == dtype
    assert root.shape == ((N, L) if covariance == "diagonal" else (N, L, L))
    (mean.square().sum() + root.square().sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())


def test_encoder_without_hidden_layers_is_linear_in_the_row():
    encoder = Encoder(D, L, generator=generator(), hidden=(), dtype=torch.float64)
    values, mask = rows(complete=True)
    ends = encoder(values, mask).mean, encoder(-values, mask).mean
    assert_allclose((ends[0] + ends[1]).detach(), 2 * encoder.skip.bias.expand(N, L).detach())
    assert encoder.correction is None


def test_missing_cells_widen_the_proposal():
    encoder, _ = pair(covariance="full")
    values, mask = rows(complete=True)
    complete = encoder(values, mask).root
    nothing = encoder(values, ~mask).root
    assert_allclose(nothing.detach(), torch.eye(L).expand(N, L, L))
    assert (complete.diagonal(dim1=1, dim2=2).abs() < 0.95).all()


def test_images_and_decoders_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_shape is for the decoder 'conv'"):
        Decoder(L, D, generator=generator(), kind="conv")
    with pytest.raises(ValueError, match="got kind='mlp'"):
        Decoder(L, D, generator=generator(), kind="mlp", image_shape=(1, 2, 3))
    with pytest.raises(ValueError, match="start as factor analysis"):
        pair(kind="mlp")
