"""A latent-variable model of incomplete rows: its bound, and what it imputes.

This joins the parts: encoder and decoder give distributions, `importance_weighted` the weights,
a `MaskTerm` what the mask says. Points of the latent space are the same for all rows, a scrambled
Sobol sequence, so that what is imputed in a row does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from skbilevel.estimators.column_units import ColumnUnits, one_hot, widths
from skbilevel.estimators.latent_observation import decoded
from skbilevel.estimators.linear_model import ROWS_AT_A_TIME
from skbilevel.estimators.mask_terms import Cells, DrawnCells, MaskTerm
from skbilevel.models.latent_variable import Decoder, Encoder, Proposal
from skbilevel.numerics.random import row_uniform
from skbilevel.numerics.row_groups import slices
from skbilevel.objectives.given_missing import N_UNIFORMS, JoinedGivenMissing
from skbilevel.objectives.importance_weighted import (
    Codes,
    bound,
    effective_size,
    expectation,
    log_observed_density,
    miwae_log_weights,
    plain_bound,
    proposed,
    resampled,
    weighted_quantile,
)
from skbilevel.objectives.observation import Joined, Observation

# Tensors of this many numbers are made at a time.
_NUMBERS_AT_A_TIME = 2**19
# Normals that make a Student-t, roughly.
_COMPONENTS = 24
# Uniform numbers are this far from 0 and 1, which float32 can tell from them.
_EDGE = 1e-6
# Of draws of discrete cells while training, which have no gradient otherwise.
_TEMPERATURE = 0.5
# What the encoder sees of far values: observed cells, and fillings.
_FAR, _FAR_FILLING = 5.0, 8.0


class Batch(NamedTuple):
    """Rows (b, d) in the model's units, finite at missing cells; their mask, True = observed."""

    values: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class LatentModel:
    """Encoder, decoder and mask term.

    Attributes
    ----------
    encoder : Encoder
    decoder : Decoder
    term : MaskTerm
    units : ColumnUnits
    fill : callable
        From rows (b, d) with NaN, in the data's units, to complete ones in the model's.
    seed : int
        Of the points of the latent space.
    n_importance : int
        Number of points when rows are imputed or scored.
    """

    encoder: Encoder
    decoder: Decoder
    term: MaskTerm
    units: ColumnUnits
    fill: Callable[[np.ndarray], np.ndarray]
    seed: int
    n_importance: int

    def batch(self, rows: np.ndarray) -> Batch:
        """Rows (b, d) with NaN at missing cells as tensors, filled."""
        dtype = self.decoder.log_scale.dtype
        mask = ~np.isnan(rows)
        values = np.where(mask, self.units.coded(rows), self.fill(rows))
        return Batch(torch.from_numpy(values).to(dtype), torch.from_numpy(mask))

    def near(self, batch: Batch) -> Batch:
        """The batch with far values of continuous columns pulled in, as a model is trained and
        imputes; only the likelihood is of the values as they are."""
        far = torch.where(batch.mask, _FAR, _FAR_FILLING).to(batch.values.dtype)
        is_continuous = torch.from_numpy(self.units.is_continuous)
        near = torch.where(is_continuous, batch.values.clamp(-far, far), batch.values)
        return Batch(near, batch.mask)

    def proposal(self, batch: Batch) -> Proposal:
        """q(z | x_o) of every row."""
        counts = self.units.n_categories
        coded = one_hot(self.near(batch).values, torch.from_numpy(counts))
        width = torch.from_numpy(widths(counts))
        return self.encoder(coded, batch.mask.repeat_interleave(width, dim=1))

    def observation(self, codes: Tensor, temperature: float | None = None) -> Observation:
        """p(x | z) of codes (K, b, L)."""
        return decoded(self.decoder, self.units, codes, temperature)

    def loss(self, batch: Batch, noise: Tensor, uniforms: Tensor | None, objective: str) -> Tensor:
        """Minus the bound per row, the mean over the batch; ``noise`` is (K, b, L)."""
        q = self.proposal(batch)
        codes = proposed(q.mean, q.root, noise)
        observation = self.observation(codes.values, temperature=_TEMPERATURE)
        given = self.term.given(observation, batch.values, batch.mask, uniforms)
        log_likelihood = log_observed_density(observation, batch.values, batch.mask)
        log_likelihood = log_likelihood + given.log_mask + given.log_fixed
        return -OBJECTIVES[objective](log_likelihood, codes, q).mean()

    def completed(self, rows: np.ndarray) -> np.ndarray:
        """Rows (b, d) with missing cells at their mean, categorical ones at their mode."""
        return self._filled(rows, self._centers)

    def quantile(self, rows: np.ndarray, level: float) -> np.ndarray:
        """Rows (b, d) with missing cells at a quantile, that of codes for discrete columns."""

        def of_weighted(weighted: _Weighted) -> Tensor:
            draws = weighted.cells.drawn(weighted.uniforms)
            return weighted_quantile(draws, weighted.log_weights, level)

        return self._filled(rows, of_weighted)

    @torch.inference_mode()
    def drawn(self, rows: np.ndarray, keys: np.ndarray, n_draws: int) -> np.ndarray:
        """Rows with missing cells drawn, (n_draws, b, d), by sampling importance resampling."""
        drawn = np.repeat(np.asarray(rows, dtype=np.float64)[np.newaxis], n_draws, axis=0)
        n_columns = rows.shape[1]
        for part, batch in self._batches(rows, max(self.n_importance, n_draws)):
            uniforms = _row_uniforms(keys[part], n_draws, 1 + self.n_per_cell * n_columns)
            for_cells = uniforms[1:].unflatten(0, (self.n_per_cell, n_columns)).movedim(1, -1)
            cells = self._resampled(batch, uniforms[0], for_cells)
            values = self.units.decoded(cells.double().numpy())
            drawn[:, part] = np.where(np.isnan(rows[part]), values, rows[part])
        return drawn

    def _resampled(self, batch: Batch, uniforms: Tensor, for_cells: Tensor) -> Tensor:
        """Draws (S, b, d) from uniforms (S, b), which pick codes, and (n, S, b, d) of cells."""
        weighted = self._weighted(self.near(batch))
        if self.term.needs_draws:
            # The weights are those of the draws themselves.
            return resampled(weighted.cells.mean, weighted.log_weights, uniforms)
        codes = resampled(weighted.codes, weighted.log_weights, uniforms)
        given = self.term.given(self.observation(codes), batch.values, batch.mask, None)
        return given.cells.drawn(for_cells.to(codes.dtype).clamp(_EDGE, 1 - _EDGE))

    @torch.inference_mode()
    def log_densities(self, rows: np.ndarray) -> np.ndarray:
        """The bound of log p(x_o, s) per row in nats and in the units of the data, (b,)."""
        values = self._by_parts(
            rows,
            lambda weighted: bound(weighted.log_weights) + weighted.log_fixed,
            lambda batch: batch,
            np.empty(len(rows)),
        )
        # Squares that overflow may also cancel to NaN.
        values[~np.isfinite(values)] = -np.inf
        return values - ~np.isnan(rows) @ self.units.log_scale()

    @torch.inference_mode()
    def effective_sizes(self, rows: np.ndarray) -> np.ndarray:
        """Effective number of importance samples of every row, (b,)."""
        return self._by_parts(
            rows,
            lambda weighted: effective_size(weighted.log_weights),
            self.near,
            np.empty(len(rows)),
        )

    @torch.inference_mode()
    def missing_probability(self, rows: np.ndarray) -> np.ndarray:
        """p(s = 0 | x) of every cell of complete rows (b, d); NaN where there is no factor."""
        values = torch.from_numpy(self.units.coded(rows)).to(self.decoder.log_scale.dtype)
        return self.term.log_missing(values).exp().double().numpy()

    def _by_parts(
        self,
        rows: np.ndarray,
        of_weighted: OfWeighted,
        prepare: Callable[[Batch], Batch],
        out: np.ndarray,
    ) -> np.ndarray:
        """Written to ``out`` at once: results kept between the large tensors of two parts would
        split the heap, and memory would grow with the rows."""
        for part, batch in self._batches(rows, self.n_importance):
            out[part] = of_weighted(self._weighted(prepare(batch))).numpy()
        return out

    @torch.inference_mode()
    def _filled(self, rows: np.ndarray, of_weighted: OfWeighted) -> np.ndarray:
        values = self._by_parts(rows, of_weighted, self.near, np.empty(rows.shape))
        return np.where(np.isnan(rows), self.units.decoded(values), rows)

    def _batches(self, rows: np.ndarray, n_points: int) -> Iterator[tuple[slice, Batch]]:
        """Rows that go through the networks at a time, and where they stand. Many at a time are
        filled, which costs less a row."""
        width = len(self.units.kinds) * max(1, int(self.units.n_categories.max()))
        width *= _COMPONENTS if "student_t" in self.units.kinds else 1
        size = max(1, _NUMBERS_AT_A_TIME // (n_points * width))
        for filled in slices(len(rows), size * max(1, ROWS_AT_A_TIME // size)):
            batch = self.batch(rows[filled])
            for part in slices(len(batch.values), size):
                where = slice(filled.start + part.start, filled.start + part.stop)
                yield where, Batch(batch.values[part], batch.mask[part])

    def _weighted(self, batch: Batch) -> _Weighted:
        """Codes of all points, their weights, and the missing cells given them."""
        q = self.proposal(batch)
        n_latent, shape = self.encoder.n_latent, (-1, len(q.mean), -1)
        points = self._points.to(batch.values.dtype)
        noise = torch.special.ndtri(points[:, :n_latent]).unsqueeze(1).expand(shape)
        for_cells = points[:, n_latent:].unflatten(1, (self.n_per_cell, -1)).movedim(1, 0)
        uniforms = for_cells.unsqueeze(2).expand(-1, *noise.shape[:2], -1)
        codes = proposed(q.mean, q.root, noise)
        observation = self.observation(codes.values)
        given = self.term.given(observation, batch.values, batch.mask, uniforms)
        log_weights = miwae_log_weights(codes, observation, batch.values, batch.mask)
        log_weights = log_weights + given.log_mask
        return _Weighted(codes.values, log_weights, given.cells, uniforms, given.log_fixed)

    @cached_property
    def _points(self) -> Tensor:
        """Points (K, L + those of the cells) in the open cube."""
        rng = np.random.default_rng(self.seed)
        n_numbers = self.encoder.n_latent + self.n_per_cell * len(self.units.kinds)
        # The sequence is balanced for powers of two, and its number of coordinates is limited:
        # those beyond, of cells, are spread evenly one by one.
        n_balanced = 1 << (self.n_importance - 1).bit_length()
        n_joint = min(n_numbers, qmc.Sobol.MAXDIM)
        points = qmc.Sobol(n_joint, rng=rng).random(n_balanced)[: self.n_importance]
        if n_joint < n_numbers:
            others = qmc.LatinHypercube(n_numbers - n_joint, rng=rng).random(self.n_importance)
            points = np.hstack([points, others])
        return torch.from_numpy(points).clamp(_EDGE, 1 - _EDGE)

    @property
    def n_per_cell(self) -> int:
        """Uniform numbers that a draw of a cell takes at most."""
        return max(N_UNIFORMS, int(self.units.n_categories.max()))

    def _centers(self, weighted: _Weighted) -> Tensor:
        """Means (b, d); of categorical columns the most probable code."""
        centers = expectation(weighted.cells.mean, weighted.log_weights)
        kinds = list(dict.fromkeys(self.units.kinds))
        if "categorical" not in kinds:
            return centers
        index = np.flatnonzero(np.array(self.units.kinds) == "categorical")
        own = _of_kind(weighted.cells, kinds.index("categorical"), torch.from_numpy(index))
        centers[..., index] = _mode(own, weighted.log_weights, self.units.n_categories[index])
        return centers


class _Discrete(Protocol):
    """Cells of codes."""

    def probability(self, codes: Tensor) -> Tensor:
        """Of each code."""


def _of_kind(cells: Cells, position: int, index: Tensor) -> Any:
    """The columns at ``index``, which are those of the kind at a position."""
    if isinstance(cells, DrawnCells):
        return DrawnCells(cells.values[..., index])
    return cells.parts[position] if isinstance(cells, Joined | JoinedGivenMissing) else cells


def _mode(cells: _Discrete, log_weights: Tensor, n_categories: np.ndarray) -> Tensor:
    """The most probable code of every cell; (b, d)."""
    codes = torch.arange(int(n_categories.max()), dtype=log_weights.dtype)
    width = len(n_categories)
    shares = [expectation(cells.probability(code.expand(1, width)), log_weights) for code in codes]
    return torch.stack(shares).argmax(0).to(codes.dtype)


class _Weighted(NamedTuple):
    """Codes (K, b, L), log weights (K, b), the missing cells given them, and uniforms for draws
    of those (n, K, b, d)."""

    codes: Tensor
    log_weights: Tensor
    cells: Cells
    uniforms: Tensor
    log_fixed: Tensor


OfWeighted = Callable[[_Weighted], Tensor]


def _row_uniforms(keys: np.ndarray, n_draws: int, n_numbers: int) -> Tensor:
    """(n_numbers, n_draws, b)."""
    draws = [row_uniform(keys, draw, n_numbers) for draw in range(n_draws)]
    return torch.from_numpy(np.stack(draws)).permute(2, 0, 1)


def _importance_weighted(log_likelihood: Tensor, codes: Codes, q: Proposal) -> Tensor:
    return bound(log_likelihood + codes.log_ratio)


def _plain(log_likelihood: Tensor, codes: Codes, q: Proposal) -> Tensor:
    return plain_bound(log_likelihood, q.mean, q.root)


OBJECTIVES = {"iwae": _importance_weighted, "elbo": _plain}
