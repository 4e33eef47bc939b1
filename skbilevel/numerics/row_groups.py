"""The layout of incomplete rows that makes batched linear algebra cheap.

A block of rows is standardised and its rows are sorted by the *number* of their missing cells, so
that every group is one dense batch of k x k problems. Almost no two rows share a pattern when
cells are missing at random, but all of them fall into at most d + 1 groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

# A block has this many rows, or fewer where they are wide.
BLOCK_ROWS = 32_768
_BLOCK_BYTES = 8 * 20 * BLOCK_ROWS
# A batch of k x k problems is walked k times and has to stay in the cache; with smaller batches
# the calls cost more than the arithmetic.
_BATCH_BYTES = 2**21
_SMALLEST_BATCH = 16
_KEPT_BYTES = 2**24


@dataclass(frozen=True)
class RowGroup:
    """Rows that each miss the same number k of cells.

    Attributes
    ----------
    values : Tensor of shape (b, d), float64
        Standardised rows; 0 at missing cells.
    missing : Tensor of shape (k, b), int64
        Columns of the missing cells of each row, ascending.
    """

    values: Tensor
    missing: Tensor

    @property
    def n_missing(self) -> int:
        """Number k of missing cells in each row."""
        return self.missing.shape[0]

    @property
    def n_observed(self) -> int:
        """Number of observed cells in each row."""
        return self.values.shape[1] - self.n_missing

    @cached_property
    def count(self) -> Tensor:
        """Number b of rows, as a sum that others are added to; shape ()."""
        return torch.tensor(float(len(self.values)), dtype=self.values.dtype)

    @cached_property
    def cells(self) -> Tensor:
        """Flat positions of the missing cells in ``values``; shape (k * b,)."""
        n_rows, n_columns = self.values.shape
        return (self.missing + torch.arange(0, n_rows * n_columns, n_columns)).view(-1)

    def observed(self) -> Tensor:
        """1. at observed and 0. at missing cells; shape (b, d)."""
        mask = torch.ones_like(self.values)
        mask.view(-1).index_fill_(0, self.cells, 0.0)
        return mask


@dataclass(frozen=True)
class RowBlock:
    """A block of rows as groups, and the order of its rows in them.

    Attributes
    ----------
    groups : list of RowGroup
        Groups in ascending number of missing cells.
    order : ndarray of shape (n,)
        ``order[i]`` is the position in the block of the i-th row of the groups.
    """

    groups: list[RowGroup]
    order: np.ndarray

    def placed(self) -> Iterator[tuple[RowGroup, np.ndarray]]:
        """Each group with the positions of its rows in the block, (b,)."""
        start = 0
        for group in self.groups:
            stop = start + len(group.values)
            yield group, self.order[start:stop]
            start = stop


def row_blocks(X: np.ndarray) -> list[slice]:
    """Cut the rows of ``X`` into blocks of about 5 MB, whose bounds never depend on jobs."""
    n_rows, n_columns = X.shape
    return slices(n_rows, max(1, min(BLOCK_ROWS, _BLOCK_BYTES // (8 * max(n_columns, 1)))))


def slices(n_rows: int, size: int) -> list[slice]:
    """Cut ``range(n_rows)`` into slices of ``size``, the last one shorter."""
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


class StandardizedRows:
    """Blocks of ``(X - center) / scale``, prepared when they are asked for.

    Blocks of a small ``X`` are kept, those of a large one are prepared anew in each pass, so that
    the memory beside ``X`` does not grow with it. ``X`` may be a memory map.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Rows with NaN at missing cells.
    center, scale : ndarray of shape (d,)
        Location and scale that are taken out.
    """

    def __init__(self, X: np.ndarray, center: np.ndarray, scale: np.ndarray):
        self._X, self.center, self.scale = X, center, scale
        self._slices = row_blocks(X)
        kept = 8 * X.size <= _KEPT_BYTES
        self._kept = [self._prepare(index) for index in range(len(self))] if kept else None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self._X.shape

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> RowBlock:
        return self._kept[index] if self._kept else self._prepare(index)

    def _prepare(self, index: int) -> RowBlock:
        return row_block(self._X[self._slices[index]], self.center, self.scale)


def row_block(X: np.ndarray, location: np.ndarray, scale: np.ndarray) -> RowBlock:
    """Standardise the rows of ``X`` and group them by their number of missing cells.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Rows with NaN at missing cells.
    location, scale : ndarray of shape (d,)
        ``(X - location) / scale`` is what the groups hold.

    Returns
    -------
    RowBlock
        float64 groups in the order of their number of missing cells.
    """
    missing = np.isnan(X)
    # A product with ones is the fastest count. BLAS may look beyond the end of short rows, and
    # warn of what it finds there; sums of 0 and 1 are never invalid.
    with np.errstate(invalid="ignore"):
        counts = missing @ np.ones(X.shape[1], dtype=np.float32)
    # 16 bits are sorted by radix.
    counts = counts.astype(np.uint16 if X.shape[1] < 2**16 else np.int64)
    order = np.argsort(counts, kind="stable")
    cells = np.flatnonzero(missing[order])
    values = X[order].astype(np.float64, copy=False)
    values -= location
    values /= scale
    values.reshape(-1)[cells] = 0.0
    return RowBlock(list(_groups(values, cells % X.shape[1], counts[order])), order)


def _groups(values: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> Iterator[RowGroup]:
    ends = np.searchsorted(counts, np.unique(counts), side="right")
    start = offset = 0
    for end in ends:
        k = int(counts[start])
        stop = offset + (end - start) * k
        missing = columns[offset:stop].reshape(end - start, k)
        for batch in slices(end - start, _batch_rows(k, values.shape[1])):
            yield RowGroup(
                torch.from_numpy(values[start:end][batch]),
                torch.from_numpy(np.ascontiguousarray(missing[batch].T)),
            )
        start, offset = end, stop


def _batch_rows(n_missing: int, n_columns: int) -> int:
    return max(_SMALLEST_BATCH, _BATCH_BYTES // (8 * max(n_missing**2, n_columns, 1)))
