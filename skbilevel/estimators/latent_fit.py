"""Building and training of a latent-variable model.

Where all columns are continuous the network starts as a factor analysis, the one that a fitted
normal gives, with its posterior as encoder; what it learns from there are corrections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skbilevel.estimators.column_units import ColumnUnits, widths
from skbilevel.estimators.latent_model import Batch, LatentModel
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.models.latent_variable import (
    Autoencoder,
    Decoder,
    Encoder,
    FactorAnalysis,
    autoencoder_of,
)
from skbilevel.numerics.row_groups import row_blocks, slices
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.training import ParameterGroup, Schedule, train

# Blocks of a table of up to this many bytes are prepared once.
_KEPT_BYTES = 2**24
# Observed cells are trained on within this many standard deviations.
FAR = 5.0
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


def network_units(linear: LinearModel, kinds: tuple[str, ...]) -> ColumnUnits:
    """Units in which the fitted normal has means of 0 and variances of 1.

    What is missing beyond a limit may lie many standard deviations of the observed cells away.
    """
    center = linear.center + linear.scale * linear.parameters.location.numpy()
    scale = linear.scale * linear.parameters.covariance.diagonal().sqrt().numpy()
    return ColumnUnits(kinds, center, scale, tuple(np.zeros(0) for _ in kinds))


def factor_analysis(covariance: Tensor, n_latent: int) -> FactorAnalysis:
    """Factors of a correlation matrix: its leading eigenvectors above the mean of the rest."""
    values, vectors = torch.linalg.eigh(covariance)
    rest = values[:-n_latent]
    level = rest.mean() if len(rest) else values.new_zeros(())
    loadings = vectors[:, -n_latent:] * (values[-n_latent:] - level).clamp(min=1e-3).sqrt()
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


def cold_autoencoder(
    units: ColumnUnits, architecture: Architecture, generator: torch.Generator
) -> Autoencoder:
    """A pair of random weights."""
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


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

    Attributes
    ----------
    objective : str
        A key of `skbilevel.estimators.latent_model.OBJECTIVES`.
    n_importance : int
        Codes a row and step.
    batch_size, n_epochs : int
    learning_rate, weight_decay : float
    """

    objective: str
    n_importance: int
    batch_size: int
    n_epochs: int
    learning_rate: float
    weight_decay: float


def train_model(
    model: LatentModel,
    missing: nn.Module | None,
    X: np.ndarray,
    settings: TrainingSettings,
    generator: torch.Generator,
    on_epoch: Callable[[dict[str, list[float]]], bool] | None = None,
) -> SolverResult:
    """Maximise the bound of the rows of ``X`` (n, d), with NaN at missing cells, in place.

    ``missing`` is the missing model, if it has parameters to be trained.
    """
    rows = _TrainingRows(model, X, settings.batch_size, generator)

    def loss(batch: Batch) -> Tensor:
        shape = (settings.n_importance, len(batch.values))
        noise = torch.randn(*shape, model.encoder.n_latent, generator=generator)
        uniforms = None
        if model.term.needs_draws:
            size = (model.n_per_cell, *shape, batch.values.shape[1])
            uniforms = torch.rand(size, generator=generator).clamp(1e-6, 1 - 1e-6)
        return model.loss(batch, noise, uniforms, settings.objective)

    schedule = Schedule(settings.n_epochs, rows.n_batches, settings.learning_rate)
    groups = parameter_groups(model, missing, settings.weight_decay)
    return train(loss, rows.epoch, groups, schedule, on_epoch)


def parameter_groups(
    model: LatentModel, missing: nn.Module | None, weight_decay: float
) -> list[ParameterGroup]:
    """Weight decay is for the corrections, which it draws towards the linear model."""
    parts = [model.encoder, model.decoder, *([missing] if missing is not None else [])]
    named = [pair for part in parts for pair in part.named_parameters() if pair[1].requires_grad]
    decayed = [tensor for name, tensor in named if name.startswith("correction")]
    others = [tensor for name, tensor in named if not name.startswith("correction")]
    groups = [ParameterGroup(decayed, weight_decay), ParameterGroup(others, 0.0)]
    return [group for group in groups if group.tensors]


class _TrainingRows:
    """Batches in random order: of blocks, and of the rows within each.

    Blocks of a large table are prepared anew in every epoch, so that memory does not grow.
    """

    def __init__(
        self, model: LatentModel, X: np.ndarray, batch_size: int, generator: torch.Generator
    ):
        self._model, self._X, self._size, self._generator = model, X, batch_size, generator
        self._blocks = row_blocks(X)
        kept = 8 * X.size <= _KEPT_BYTES
        self._kept = [self._prepared(block) for block in self._blocks] if kept else None

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        sizes = (block.stop - block.start for block in self._blocks)
        return sum(-(-size // self._size) for size in sizes)

    def epoch(self) -> Iterator[Batch]:
        """All rows once."""
        for index in torch.randperm(len(self._blocks), generator=self._generator).tolist():
            block = self._kept[index] if self._kept else self._prepared(self._blocks[index])
            order = torch.randperm(len(block.values), generator=self._generator)
            for part in slices(len(order), self._size):
                yield Batch(block.values[order[part]], block.mask[order[part]])

    def _prepared(self, block: slice) -> Batch:
        rows = self._X[block]
        batch = self._model.batch(rows[~np.isnan(rows).all(axis=1)])
        is_far = torch.from_numpy(self._model.units.is_continuous) & batch.mask
        near = torch.where(is_far, batch.values.clamp(-FAR, FAR), batch.values)
        return Batch(near, batch.mask)


def network_state(module: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers as arrays."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def load_state(module: nn.Module, state: dict[str, np.ndarray]) -> None:
    """The inverse of `network_state`."""
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    module.load_state_dict(tensors)


def plain(architecture: Architecture) -> dict[str, Any]:
    """Plain Python for storage."""
    return {**vars(architecture), "hidden": list(architecture.hidden)}
