"""Imputation beyond hard limits: models, drawn towards the reflection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from skbilevel.estimators.linear_model import LinearModel
from skbilevel.objectives.tail_prior import (
    TailPrior,
    excess_sums,
    reflected,
    trusting,
    with_excess,
)

Complete = Callable[[np.ndarray], np.ndarray]
# Mean excesses are taken over at most this many rows.
_MOST_ROWS = 2_000


@dataclass(frozen=True)
class TailImputation:
    """A point imputation with the tail prior, for the columns that have a hard limit.

    Attributes
    ----------
    linear : LinearModel
    prior : TailPrior
    of_linear : callable
        What the linear model imputes, rows (b, d) to rows (b, d).
    of_network : callable or None
        What a network imputes.
    """

    linear: LinearModel
    prior: TailPrior
    of_linear: Complete
    of_network: Complete | None

    def mixed(self, rows: np.ndarray, linear: np.ndarray) -> np.ndarray:
        """The network's imputations; at columns with a limit their mean with the linear ones."""
        if self.of_network is None:
            return linear
        nonlinear = self.of_network(rows)
        return np.where(self._is_limited, (nonlinear + linear) / 2, nonlinear)

    def completed(self, rows: np.ndarray) -> np.ndarray:
        """Rows (b, d) with missing cells imputed."""
        linear = self.of_linear(rows)
        mixed = self.mixed(rows, linear)
        drawn_in = reflected(self._standardized(mixed), self.linear.mechanism, self.prior)
        moved = trusting(drawn_in, self._standardized(linear), self.prior).numpy()
        moved = moved * self.linear.scale + self.linear.center
        return np.where(np.isnan(rows) & self._is_limited, moved, mixed)

    def fitted_prior(self, X: np.ndarray) -> TailPrior:
        """The prior with the mean excess of `mixed` imputations of rows (n, d)."""
        index = np.flatnonzero(np.isnan(X).any(axis=1))
        rows = X[index[:: max(1, -(-len(index) // _MOST_ROWS))]]
        observed = torch.from_numpy((~np.isnan(rows)).astype(np.float64))
        values = self._standardized(self.mixed(rows, self.of_linear(rows)))
        return with_excess(self.prior, *excess_sums(values, observed, self.linear.mechanism))

    def _standardized(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((rows - self.linear.center) / self.linear.scale)

    @property
    def _is_limited(self) -> np.ndarray:
        return self.prior.reliability.numpy() < 1
