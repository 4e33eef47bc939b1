"""How the mask enters a latent-variable model: not at all, cell by cell, or by whole rows.

Each term gives, for codes z_k of rows, log p(s | ...) of the mask and the missing cells given the
codes and the mask. A self-masking mechanism is integrated over the missing cells; any other needs
draws of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from skbilevel.objectives.importance_weighted import (
    completed,
    log_mask_given_rows,
    log_missing_given_codes,
    log_observed_mask,
)
from skbilevel.objectives.masking_links import Link
from skbilevel.objectives.observation import Observation


class Cells(Protocol):
    """Missing cells given codes and the mask; tensors are (K, b, d)."""

    @property
    def mean(self) -> Tensor:
        """Their means."""

    def drawn(self, uniforms: Tensor) -> Tensor:
        """Draws of them from uniform numbers (n, ..., d)."""


class Given(NamedTuple):
    """log p(s | ...) of the mask, (K, b) or 0; the missing cells; and a part of the former that
    is the same for all codes, (b,) or 0, which may be -inf."""

    log_mask: Tensor
    cells: Cells
    log_fixed: Tensor


class MaskTerm(Protocol):
    """See the module; ``needs_draws`` says whether ``uniforms`` are used."""

    needs_draws: bool

    def given(
        self, observation: Observation, values: Tensor, mask: Tensor, uniforms: Tensor | None
    ) -> Given:
        """The mask of rows (b, d) and their missing cells, for an observation of codes."""

    def log_missing(self, rows: Tensor) -> Tensor:
        """log p(s_j = 0 | x) of complete rows (b, d); NaN for cells without a factor."""


@dataclass(frozen=True)
class Ignored:
    """MIWAE: the mask says nothing."""

    needs_draws = False

    def given(
        self, observation: Observation, values: Tensor, mask: Tensor, uniforms: Tensor | None
    ) -> Given:
        """No factor, and the cells as decoded."""
        return Given(values.new_zeros(()), observation, values.new_zeros(()))

    def log_missing(self, rows: Tensor) -> Tensor:
        """Not known."""
        return torch.full_like(rows, torch.nan)


@dataclass(frozen=True)
class Collapsed:
    """A self-masking mechanism, integrated over each missing cell.

    Attributes
    ----------
    link : callable
        Gives the `Link` of all columns; it may have learnt since the last call.
    active : Tensor of shape (d,)
        1 for columns that have a mechanism.
    """

    link: Callable[[], Link]
    active: Tensor
    needs_draws = False

    def given(
        self, observation: Observation, values: Tensor, mask: Tensor, uniforms: Tensor | None
    ) -> Given:
        """Eq. (a) of `importance_weighted`, and the cells given that they are missing."""
        link = self.link()
        cells = observation.given_missing(link)
        of_missing = log_missing_given_codes(cells, mask)
        return Given(of_missing, cells, log_observed_mask(link, values, mask))

    def log_missing(self, rows: Tensor) -> Tensor:
        """By each cell's own value."""
        return torch.where(self.active > 0, self.link().log_missing(rows), torch.nan)


@dataclass(frozen=True)
class DrawnCells:
    """Cells that have been drawn already: point masses; (K, b, d)."""

    values: Tensor

    @property
    def mean(self) -> Tensor:
        """The draws."""
        return self.values

    def probability(self, codes: Tensor) -> Tensor:
        """0 or 1."""
        return (self.values == codes).to(self.values.dtype)

    def drawn(self, uniforms: Tensor) -> Tensor:
        """The draws."""
        return self.values


@dataclass(frozen=True)
class Sampled:
    """Any missing model: log odds (..., d) of being missing from complete rows (..., d)."""

    log_odds: Callable[[Tensor], Tensor]
    needs_draws = True

    def given(
        self, observation: Observation, values: Tensor, mask: Tensor, uniforms: Tensor | None
    ) -> Given:
        """Eq. (9) at rows completed by draws."""
        assert uniforms is not None
        rows = completed(observation, values, mask, uniforms[: observation.n_uniforms])
        log_mask = log_mask_given_rows(self.log_odds(rows), mask)
        return Given(log_mask, DrawnCells(rows), rows.new_zeros(()))

    def log_missing(self, rows: Tensor) -> Tensor:
        """By all values of the row."""
        return logsigmoid(self.log_odds(rows))
