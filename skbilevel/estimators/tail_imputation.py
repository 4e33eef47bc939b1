"""Imputation beyond hard limits: models, drawn towards the reflection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from skbilevel.estimators.linear_model import ROWS_AT_A_TIME, LinearModel
from skbilevel.numerics.row_groups import slices
from skbilevel.objectives.tail_prior import TailPrior, reflected, shared, trusting

Complete = Callable[[np.ndarray], np.ndarray]


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

    def completed(self, rows: np.ndarray) -> np.ndarray:
        """Rows (b, d) with missing cells imputed, a part after the other to save memory."""
        filled = np.empty(rows.shape)
        for part in slices(len(rows), ROWS_AT_A_TIME):
            filled[part] = self._completed(rows[part])
        return filled

    def _completed(self, rows: np.ndarray) -> np.ndarray:
        imputed = self.of_linear(rows)
        linear = model = self._standardized(imputed)
        if self.of_network is not None:
            imputed = self.of_network(rows)
            model = shared(linear, self._standardized(imputed), self.prior)
        drawn_in = reflected(model, self.linear.mechanism, self.prior)
        moved = trusting(drawn_in, linear, self.prior).numpy()
        moved = moved * self.linear.scale + self.linear.center
        is_limited = self.prior.reliability.numpy() < 1
        return np.where(np.isnan(rows) & is_limited, moved, imputed)

    def _standardized(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((rows - self.linear.center) / self.linear.scale)
