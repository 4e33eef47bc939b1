"""A latent-variable model fitted to a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skbilevel.estimators.column_units import ColumnUnits, column_units
from skbilevel.estimators.latent_build import (
    network_units,
    random_autoencoder,
    warm_autoencoder,
)
from skbilevel.estimators.latent_missing import MissingModel, missing_model, missing_start
from skbilevel.estimators.latent_model import Batch, LatentModel
from skbilevel.estimators.latent_parts import NetworkParts, filled_by
from skbilevel.estimators.latent_plan import Plan, TrainingSettings
from skbilevel.estimators.linear_fit import LINEAR_FITS, Knowledge, LinearFit, Loop, OnStep, Table
from skbilevel.estimators.mask_terms import Ignored, MaskTerm
from skbilevel.models.latent_variable import DECODERS
from skbilevel.numerics.row_groups import row_blocks, slices
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.training import ParameterGroup, Schedule, train

# Blocks of a table of up to this many bytes are prepared once.
_KEPT_BYTES = 2**24


@dataclass(frozen=True)
class NetworkFit:
    """A network, what it is made of, and the bound of every epoch in nats per row."""

    model: LatentModel
    missing: MissingModel
    parts: NetworkParts
    history: list[float]


def fit_linear(
    plan: Plan, table: Table, tol: float, rng: np.random.RandomState, on_step: OnStep
) -> LinearFit:
    """The normal with the mechanism of the plan; missing at random where that is sampled."""
    name = plan.mechanism if plan.mechanism in LINEAR_FITS else "mar"
    limits = (plan.limits - table.center) / table.scale
    loop = Loop(plan.em_iterations, tol, on_step, rng)
    return LINEAR_FITS[name](table, Knowledge(plan.side, limits), loop)


@torch.inference_mode(False)
@torch.enable_grad()
def fit_network(
    plan: Plan,
    linear: LinearFit | None,
    table: Table,
    seed: int,
    n_importance: int,
    on_epoch: Callable[[NetworkFit], bool],
) -> NetworkFit:
    """Build and train the network of the plan."""
    assert plan.architecture is not None and plan.training is not None
    generator = torch.Generator().manual_seed(seed)
    units = _units(plan, linear, table)
    start = missing_start(plan, linear, table, units)
    missing = missing_model(start, plan.own, units, generator)
    means = np.zeros(len(plan.kinds))
    if linear is None:
        means = np.nanmean(units.coded(table.X), axis=0)
    parts = NetworkParts(plan.architecture, units, means, start, seed, n_importance)
    model_of_rows = None if linear is None else linear.model
    if linear is not None and DECODERS[plan.architecture.decoder][0]:
        pair = warm_autoencoder(linear.model, plan.architecture, generator)
    else:
        pair = random_autoencoder(units, plan.architecture, generator)
    fill = filled_by(model_of_rows, parts)
    model = LatentModel(*pair, missing.term, units, fill, seed, n_importance)
    X = trained_rows(table.X, missing.term)
    n_observed = sum((~np.isnan(X[block])).sum(axis=0) for block in row_blocks(X))
    log_units = float(n_observed @ units.log_scale()) / len(X)

    def fit_of(history: dict[str, list[float]]) -> NetworkFit:
        return NetworkFit(model, missing, parts, [-loss - log_units for loss in history["loss"]])

    result = train_model(
        model,
        missing.module,
        X,
        plan.training,
        generator,
        lambda history: on_epoch(fit_of(history)),
    )
    return fit_of(result.history)


def trained_rows(X: np.ndarray, term: MaskTerm) -> np.ndarray:
    """Rows (n, d) that have something to tell: where nothing is observed only the mask does."""
    is_empty = np.concatenate([np.isnan(X[block]).all(axis=1) for block in row_blocks(X)])
    return X[~is_empty] if isinstance(term, Ignored) and is_empty.any() else X


def _units(plan: Plan, linear: LinearFit | None, table: Table) -> ColumnUnits:
    if linear is not None:
        return network_units(linear.model, plan.kinds, table.X)
    return column_units(table.X, plan.kinds, table.center, table.scale)


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
        own: Any = {"generator": generator, "dtype": batch.values.dtype}
        noise = torch.randn(*shape, model.encoder.n_latent, **own)
        uniforms = None
        if model.term.needs_draws:
            size = (model.n_per_cell, *shape, batch.values.shape[1])
            uniforms = torch.rand(size, **own).clamp(1e-6, 1 - 1e-6)
        return model.loss(batch, noise, uniforms, settings.objective)

    schedule = Schedule(settings.n_epochs, rows.n_batches, settings.learning_rate)
    groups = parameter_groups(model, missing, settings.weight_decay)
    try:
        return train(loss, rows.epoch, groups, schedule, on_epoch)
    except FloatingPointError as error:
        raise FloatingPointError(
            f"Training has diverged: {error}; lower learning_rate or weight_decay, or look at "
            "what a missing model of your own returns."
        ) from error


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
        return self._model.near(self._model.batch(self._X[block]))
