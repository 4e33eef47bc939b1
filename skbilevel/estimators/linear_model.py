"""The fitted normal with self-masking, as it imputes, draws and scores rows.

What an estimator keeps of it are arrays; it is made from them again in each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.mechanism_em import SETTLED, Settled, group_log_evidence, settled
from skbilevel.numerics.masked_inverse import masked_cholesky
from skbilevel.numerics.random import row_uniform
from skbilevel.numerics.row_groups import RowGroup, row_block, slices
from skbilevel.objectives.family import add
from skbilevel.objectives.given_missing import N_UNIFORMS, normal_given_missing
from skbilevel.objectives.masking_links import probit_of
from skbilevel.objectives.normal import NormalParameters, Precision, precision
from skbilevel.objectives.self_masked_normal import drawn_in_turn
from skbilevel.objectives.self_masking import SelfMasking
from skbilevel.objectives.tail_prior import TailPrior, TailSums, tail_prior, tail_sums
from skbilevel.solvers.ep import cavity

ROWS_AT_A_TIME = 4096
# Draws are made side by side up to this many cells.
_CELLS_AT_A_TIME = 2**18
# Draws of a cell that its quantiles are read from.
_N_POINTS = 512
_GOLDEN = 0.6180339887498949
NO_LIMIT = float("inf")


@dataclass(frozen=True)
class LinearModel:
    """Normal with self-masking.

    Attributes
    ----------
    parameters : NormalParameters
    mechanism : SelfMasking
    center, scale : ndarray of shape (d,)
        ``(x - center) / scale`` is what parameters and mechanism are about.
    limit : float
        Rows farther out are pulled in before their cells are imputed or drawn.
    tol : float, default=1e-10
        To which imputed cells settle.
    """

    parameters: NormalParameters
    mechanism: SelfMasking
    center: np.ndarray
    scale: np.ndarray
    limit: float
    tol: float = SETTLED

    @cached_property
    def precision(self) -> Precision:
        """mu, P and log det S, computed once."""
        return precision(self.parameters)

    def completed(self, rows: np.ndarray) -> np.ndarray:
        """Rows (b, d) with missing cells at E[x | x_o, s]."""
        return self._filled(rows, lambda given: given.marginal.mean)

    def quantile(self, rows: np.ndarray, level: float) -> np.ndarray:
        """Rows (b, d) with missing cells at a quantile of each."""
        return self._filled(rows, lambda given: self._cell_quantile(given, level))

    @torch.inference_mode()
    def _filled(self, rows: np.ndarray, of_cells: Callable[[Settled], Tensor]) -> np.ndarray:
        filled = np.array(rows, dtype=np.float64)
        for group, where in self._groups(rows):
            if group.n_missing:
                given = self._settled(group, self.limit)
                columns = group.missing.numpy()
                cells = of_cells(given).numpy()
                filled[where, columns] = cells * self.scale[columns] + self.center[columns]
        return filled

    def _groups(self, rows: np.ndarray) -> Iterator[tuple[RowGroup, np.ndarray]]:
        """Groups of rows, and where their rows stand; a part of the rows after the other, as what
        a group needs is many times its rows."""
        for part in slices(len(rows), ROWS_AT_A_TIME):
            block = row_block(rows[part], self.center, self.scale)
            for group, where in block.placed():
                yield group, where + part.start

    def _settled(self, group: RowGroup, limit: float) -> Settled:
        return settled(group, self.precision, self.mechanism, limit, self.tol)

    def _cell_quantile(self, given: Settled, level: float) -> Tensor:
        """Of evenly spread draws of every cell, from what the rest of its row tells of it."""
        rest = cavity(given.marginal, given.sites)
        links = probit_of(self.mechanism.columns(given.group.missing))
        points, quantiles = _lattice(_N_POINTS), torch.empty_like(rest.mean)
        for j, mean in enumerate(rest.mean):
            for rows in slices(len(mean), _CELLS_AT_A_TIME // _N_POINTS):
                scale = rest.variance[j, rows].sqrt().unsqueeze(0)
                link = links.columns(torch.tensor(j)).columns(torch.arange(len(mean))[rows])
                cell = normal_given_missing(mean[rows], scale, torch.zeros_like(scale), link)
                draws = cell.drawn(points.expand(-1, -1, scale.shape[1]))
                quantiles[j, rows] = draws.quantile(level, dim=0)
        return quantiles

    @torch.inference_mode()
    def drawn(self, rows: np.ndarray, keys: np.ndarray, n_draws: int) -> np.ndarray:
        """Rows with missing cells drawn, (n_draws, b, d); ``keys`` (b,) are of `row_keys`."""
        drawn = np.repeat(np.asarray(rows, dtype=np.float64)[np.newaxis], n_draws, axis=0)
        for group, where in self._groups(rows):
            if group.n_missing:
                columns = group.missing.numpy()
                cells = self._cell_draws(group, keys[where], n_draws).numpy()
                drawn[:, where, columns] = cells * self.scale[columns] + self.center[columns]
        return drawn

    def _cell_draws(self, group: RowGroup, keys: np.ndarray, n_draws: int) -> Tensor:
        """Draws (n_draws, k, b) of the missing cells of a group."""
        given = self._settled(group, self.limit)
        if not given.marginal.mean.isfinite().all():
            return torch.full((n_draws, *group.missing.shape), torch.nan, dtype=torch.float64)
        root = masked_cholesky(self.precision.matrix, group.missing, given.sites.precision)
        link = probit_of(self.mechanism.columns(group.missing))
        at_a_time = max(1, _CELLS_AT_A_TIME // group.missing.numel())
        parts = []
        for start in range(0, n_draws, at_a_time):
            draws = range(start, min(start + at_a_time, n_draws))
            uniforms = [_cell_uniforms(keys, draw, group) for draw in draws]
            stacked = torch.stack(uniforms, dim=1)
            parts.append(drawn_in_turn(given.marginal.mean, root, given.sites, link, stacked))
        return torch.cat(parts)

    @torch.inference_mode()
    def log_densities(self, rows: np.ndarray) -> np.ndarray:
        """log p(x_o, s) per row in nats and in the units of the data, (b,)."""
        values = np.empty(len(rows))
        for group, where in self._groups(rows):
            sites = self._settled(group, NO_LIMIT).sites
            values[where] = group_log_evidence(group, sites, self.precision, self.mechanism)
        # Squares that overflow may also cancel to NaN.
        values[~np.isfinite(values)] = -np.inf
        return values - ~np.isnan(rows) @ np.log(self.scale)

    def missing_probability(self, rows: np.ndarray) -> np.ndarray:
        """p(s = 0 | x) of every cell of complete rows (b, d); NaN for columns without factor."""
        standardized = torch.from_numpy((rows - self.center) / self.scale)
        probability = probit_of(self.mechanism).log_missing(standardized).exp().numpy()
        return np.where(self.mechanism.side.numpy() == 0, np.nan, probability)

    @torch.inference_mode()
    def tail_prior(self, X: np.ndarray, is_hard: np.ndarray) -> TailPrior:
        """The reflection's share and reach, from rows (n, d) and which columns have a limit."""
        parts = slices(len(X), ROWS_AT_A_TIME)
        sums = reduce(add, (self._tail_sums(X[part]) for part in parts))
        return tail_prior(sums, self.mechanism, torch.from_numpy(is_hard))

    def _tail_sums(self, rows: np.ndarray) -> TailSums:
        standardized = torch.from_numpy((self.completed(rows) - self.center) / self.scale)
        observed = torch.from_numpy((~np.isnan(rows)).astype(np.float64))
        return tail_sums(standardized, observed, self.precision, self.mechanism)


def _cell_uniforms(keys: np.ndarray, draw: int, group: RowGroup) -> Tensor:
    """Uniform numbers (3, k, b) of the missing cells, which belong to columns of the row."""
    n_columns = group.values.shape[1]
    uniform = torch.from_numpy(row_uniform(keys, draw, N_UNIFORMS * n_columns))
    by_column = uniform.view(len(keys), N_UNIFORMS, n_columns)
    index = group.missing.T.unsqueeze(1).expand(-1, N_UNIFORMS, -1)
    return by_column.gather(2, index).permute(1, 2, 0)


def _lattice(n_points: int) -> Tensor:
    """Points (3, n_points, 1) that fill the square of the last two coordinates evenly."""
    index = torch.arange(n_points, dtype=torch.float64)
    first, second = (index + 0.5) / n_points, ((index + 0.5) * _GOLDEN) % 1.0
    return torch.stack([torch.full_like(first, 0.5), first, second]).unsqueeze(2)
