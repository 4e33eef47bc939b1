"""Rows summed by their pattern of missing cells.

Where few patterns occur, the sums of a pattern stand for all of its rows: what depends on the
parameters is then computed once for a pattern instead of once for a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skbilevel.numerics.row_groups import RowGroup, StandardizedRows

# A pattern costs about as much as this many rows a column.
_ROWS_PER_COLUMN = 8
# Second moments of all patterns are kept.
_MOST_BYTES = 2**23
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class PatternSums:
    """Sums over the rows of each of p patterns.

    Attributes
    ----------
    n_rows : Tensor of shape (p,)
        Number of rows.
    observed : Tensor of shape (p, d)
        1. at observed and 0. at missing columns.
    first : Tensor of shape (p, d)
        Sum of the standardised rows, 0 at missing columns.
    second : Tensor of shape (p, d, d)
        Sum of their outer products.
    """

    n_rows: Tensor
    observed: Tensor
    first: Tensor
    second: Tensor

    def chunks(self) -> Iterator["PatternSums"]:
        """Consecutive patterns, few enough that some (p, d, d) arrays more do not matter."""
        size = max(1, _CHUNK_BYTES // (8 * self.observed.shape[1] ** 2))
        parts = (self.n_rows, self.observed, self.first, self.second)
        for chunk in zip(*(part.split(size) for part in parts), strict=True):
            yield PatternSums(*chunk)


def pattern_sums(rows: StandardizedRows) -> PatternSums | None:
    """Sum rows by pattern; None where there are too many patterns for that to pay.

    Rows without an observed cell are left out: they say nothing about the parameters.
    """
    n_rows, n_columns = rows.shape
    most = min(n_rows // (_ROWS_PER_COLUMN * n_columns), _MOST_BYTES // (8 * n_columns**2))
    table: dict[bytes, list[np.ndarray]] = {}
    for index in range(len(rows)):
        groups = [group for group in rows[index].groups if group.n_missing < n_columns]
        patterns = [_patterns(group) for group in groups]
        if sum(len(examples) for examples, _ in patterns) > most:
            return None
        for group, (examples, which) in zip(groups, patterns, strict=True):
            _add_group(table, group, examples, which)
        if len(table) > most:
            return None
    if not table:
        return None
    masks = np.stack([np.frombuffer(key, dtype=bool) for key in table]).astype(np.float64)
    parts = (np.stack(entries) for entries in zip(*table.values(), strict=True))
    n, first, second = (torch.from_numpy(part) for part in parts)
    return PatternSums(n, torch.from_numpy(masks), first, second)


def _patterns(group: RowGroup) -> tuple[np.ndarray, np.ndarray]:
    """A row of each pattern in the group, and the index of its pattern for every row.

    Rows are sorted by a random code of their pattern, far cheaper than to sort patterns; should
    two patterns share a code, patterns are sorted after all.
    """
    masks = group.observed().numpy()
    codes = masks @ np.random.default_rng(0).random(masks.shape[1])
    _, examples, which = np.unique(codes, return_index=True, return_inverse=True)
    if not np.array_equal(masks[examples][which], masks):
        _, examples, which = np.unique(masks, axis=0, return_index=True, return_inverse=True)
    return examples, which.ravel()


def _add_group(
    table: dict[bytes, list[np.ndarray]],
    group: RowGroup,
    examples: np.ndarray,
    which: np.ndarray,
) -> None:
    masks = group.observed().bool().numpy()
    values = group.values.numpy()[np.argsort(which, kind="stable")]
    ends = np.cumsum(np.bincount(which, minlength=len(examples)))
    for example, start, end in zip(examples, [0, *ends[:-1]], ends, strict=True):
        own = values[start:end]
        sums = [np.float64(end - start), own.sum(axis=0), own.T @ own]
        known = table.get(key := masks[example].tobytes())
        table[key] = [a + b for a, b in zip(known, sums, strict=True)] if known else sums
