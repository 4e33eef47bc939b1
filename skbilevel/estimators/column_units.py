"""Columns as a latent-variable model sees them: standardised numbers, or codes of categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CONTINUOUS = ("gaussian", "student_t")
DISTRIBUTIONS = (*CONTINUOUS, "bernoulli", "categorical")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ColumnUnits:
    """How the values of a table are written for a model, and back.

    Attributes
    ----------
    kinds : tuple of str
        Distribution of every column.
    center, scale : ndarray of shape (d,)
        Of the continuous columns; 0 and 1 for the others.
    categories : tuple of ndarray
        Ascending values of every discrete column, of which codes are the positions; empty for
        continuous ones.
    constants : ndarray of shape (d,)
        The only value of a continuous column, to the bit; NaN where there are more.
    """

    kinds: tuple[str, ...]
    center: Floats
    scale: Floats
    categories: tuple[Floats, ...]
    constants: Floats

    @property
    def is_continuous(self) -> NDArray[np.bool_]:
        """Which columns are continuous, (d,)."""
        return np.array([kind in CONTINUOUS for kind in self.kinds])

    @property
    def n_categories(self) -> NDArray[np.int64]:
        """Number of categories of every column, (d,); 0 for continuous ones."""
        return np.array([len(values) for values in self.categories])

    def coded(self, rows: Floats) -> Floats:
        """Rows (b, d) in the model's units; NaN stays. Unknown values get the nearest code."""
        coded = (rows - self.center) / self.scale
        for j in np.flatnonzero(~self.is_continuous):
            known = ~np.isnan(rows[:, j])
            distance = np.abs(rows[known, j, np.newaxis] - self.categories[j])
            coded[known, j] = distance.argmin(axis=1)
        return coded

    def decoded(self, values: Floats) -> Floats:
        """The inverse of `coded` for an array (..., d); between two codes it interpolates."""
        rows = values * self.scale + self.center
        for j in np.flatnonzero(~self.is_continuous):
            codes = np.arange(len(self.categories[j]))
            rows[..., j] = np.interp(values[..., j], codes, self.categories[j])
        return np.where(np.isnan(self.constants), rows, self.constants)

    def log_scale(self) -> Floats:
        """What the change of units adds to the log density of a cell, with its sign turned."""
        return np.where(self.is_continuous, np.log(self.scale), 0.0)

    def unknown(self, rows: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Which columns hold a value that is no category, (d,)."""
        return np.array(
            [
                len(values) > 0 and not np.isin(rows[~np.isnan(rows[:, j]), j], values).all()
                for j, values in enumerate(self.categories)
            ]
        )

    def state(self) -> dict[str, Any]:
        """Plain Python and arrays, the arguments of this class."""
        return {
            "kinds": list(self.kinds),
            "center": self.center,
            "scale": self.scale,
            "categories": list(self.categories),
            "constants": self.constants,
        }


def units_of(state: dict[str, Any]) -> ColumnUnits:
    """The inverse of `ColumnUnits.state`."""
    kinds, categories = tuple(state["kinds"]), tuple(state["categories"])
    return ColumnUnits(kinds, state["center"], state["scale"], categories, state["constants"])


def column_units(X: Floats, kinds: tuple[str, ...], center: Floats, scale: Floats) -> ColumnUnits:
    """Units of a table (n, d) with NaN at missing cells, from those of its numbers."""
    is_continuous = np.array([kind in CONTINUOUS for kind in kinds])
    categories = tuple(
        np.zeros(0) if continuous else np.unique(column[~np.isnan(column)])
        for continuous, column in zip(is_continuous, X.T, strict=True)
    )
    center, scale = np.where(is_continuous, center, 0.0), np.where(is_continuous, scale, 1.0)
    return ColumnUnits(kinds, center, scale, categories, constants(X))


def constants(X: Floats) -> Floats:
    """The only observed value of each column of a table (n, d), or NaN; (d,)."""
    low, high = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
    return np.where(low == high, low, np.nan).astype(np.float64)


def one_hot(values: Tensor, n_categories: Tensor) -> Tensor:
    """Columns of more than two categories as one column each category; others stay.

    ``values`` are codes (..., d) or probabilities of 1 between them; a code between two
    categories is shared by them. ``n_categories`` is (d,). Returns (..., width).
    """
    if int(n_categories.max()) <= 2:
        return values
    parts = []
    for j, count in enumerate(n_categories.tolist()):
        column = values[..., j : j + 1]
        codes = torch.arange(count, dtype=values.dtype, device=values.device)
        parts.append((1 - (column - codes).abs()).clamp(min=0) if count > 2 else column)
    return torch.cat(parts, dim=-1)


def values_of(codes: Tensor, units: ColumnUnits) -> Tensor:
    """`ColumnUnits.decoded` with a gradient; between two codes it interpolates."""
    center, scale = (torch.from_numpy(part).to(codes) for part in (units.center, units.scale))
    values = codes * scale + center
    if units.is_continuous.all():
        return values
    columns = []
    for j, categories in enumerate(units.categories):
        if len(categories) == 0:
            columns.append(values[..., j])
            continue
        near = 1 - (codes[..., j : j + 1] - torch.arange(len(categories)).to(codes)).abs()
        columns.append(near.clamp(min=0) @ torch.from_numpy(categories).to(codes))
    return torch.stack(columns, dim=-1)


def widths(n_categories: NDArray[np.int64]) -> NDArray[np.int64]:
    """Columns that `one_hot` makes of each."""
    return np.where(n_categories > 2, n_categories, 1)
