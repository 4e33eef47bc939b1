"""The networks of a latent-variable model: their parts, and what they start from.

Where all columns are continuous the pair starts as a factor analysis, the one that a fitted normal
gives, with its posterior as encoder; what it learns from there are corrections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.column_units import ColumnUnits, constants, widths
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.models.latent_variable import (
    Autoencoder,
    Decoder,
    Encoder,
    FactorAnalysis,
    autoencoder_of,
)

# Covariance of the encoder is whole up to this many codes, whose factorisation is a row's cost.
_MOST_WHOLE = 24
_LEAST_NOISE = 0.1


@dataclass(frozen=True)
class Architecture:
    """What the networks are built from; plain Python.

    Attributes
    ----------
    decoder : str
        A key of `skbilevel.models.latent_variable.DECODERS`.
    n_latent : int
    hidden : tuple of int
    activation : str
    min_scale : float
    image_shape : tuple of int or None
    """

    decoder: str
    n_latent: int
    hidden: tuple[int, ...]
    activation: str
    min_scale: float
    image_shape: tuple[int, int, int] | None = None


def network_units(linear: LinearModel, kinds: tuple[str, ...], X: np.ndarray) -> ColumnUnits:
    """Units in which the fitted normal has means of 0 and variances of 1.

    What is missing beyond a limit may lie many standard deviations of the observed cells away.
    """
    center = linear.center + linear.scale * linear.parameters.location.numpy()
    scale = linear.scale * linear.parameters.covariance.diagonal().sqrt().numpy()
    return ColumnUnits(kinds, center, scale, tuple(np.zeros(0) for _ in kinds), constants(X))


def factor_analysis(covariance: Tensor, n_latent: int) -> FactorAnalysis:
    """Factors of a correlation matrix: its leading eigenvectors above the mean of the rest.

    More factors than columns have loadings of zero.
    """
    values, vectors = torch.linalg.eigh(covariance)
    n_used = min(n_latent, len(values))
    rest = values[:-n_used]
    level = rest.mean() if len(rest) else values.new_zeros(())
    loadings = vectors[:, -n_used:] * (values[-n_used:] - level).clamp(min=1e-3).sqrt()
    loadings = torch.nn.functional.pad(loadings, (n_latent - n_used, 0))
    noise = (covariance.diagonal() - loadings.square().sum(1)).clamp(min=_LEAST_NOISE**2)
    return FactorAnalysis(torch.zeros(len(noise), dtype=noise.dtype), loadings, noise)


def warm_autoencoder(
    linear: LinearModel, architecture: Architecture, generator: torch.Generator
) -> Autoencoder:
    """A pair that starts as the factor analysis of the fitted normal."""
    covariance = linear.parameters.covariance
    scale = covariance.diagonal().sqrt()
    start = factor_analysis(covariance / torch.outer(scale, scale), architecture.n_latent)
    return autoencoder_of(
        FactorAnalysis(*(part.float() for part in start)),
        generator=generator,
        kind=architecture.decoder,
        hidden=architecture.hidden,
        activation=architecture.activation,
        covariance=_covariance(architecture.n_latent),
        min_scale=architecture.min_scale,
    )


def random_autoencoder(
    units: ColumnUnits, architecture: Architecture, generator: torch.Generator
) -> Autoencoder:
    """A pair with random weights, or to load stored ones into."""
    is_image = architecture.image_shape is not None
    encoder = Encoder(
        int(widths(units.n_categories).sum()),
        architecture.n_latent,
        generator=generator,
        hidden=architecture.hidden,
        activation=architecture.activation,
        covariance=_covariance(architecture.n_latent) if not is_image else "diagonal",
        image_shape=architecture.image_shape,
    )
    decoder = Decoder(
        architecture.n_latent,
        len(units.kinds),
        generator=generator,
        kind=architecture.decoder,
        hidden=architecture.hidden,
        activation=architecture.activation,
        n_per_cell=max(1, int(units.n_categories.max())) if _has_many(units) else 1,
        image_shape=architecture.image_shape,
        min_scale=architecture.min_scale,
    )
    return Autoencoder(encoder, decoder)


def _has_many(units: ColumnUnits) -> bool:
    return "categorical" in units.kinds


def _covariance(n_latent: int) -> str:
    return "full" if n_latent <= _MOST_WHOLE else "diagonal"
