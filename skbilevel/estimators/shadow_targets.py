"""The shadow targets of a table: what a normal tells of each, and which columns serve.

The targets are the columns with the most observed cells, each on the rows where it is observed,
and y of the labelled rows. Rows are conditioned without the target, once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbilevel.numerics.masked_inverse import embedded
from skbilevel.numerics.row_groups import row_block, slices
from skbilevel.objectives.normal import NormalParameters, Precision, condition, precision
from skbilevel.objectives.shadow_tilt import ShadowTarget, held_out_loss

# A column serves as target where more than this share of its cells is observed.
_LEAST_OBSERVED = 0.4
MOST_TARGETS, N_FOLDS = 8, 5
# Of the students, for rows that are about standardised.
RIDGE = 2.0
# Covariances of all rows of a target are held, up to this many numbers.
_MOST_NUMBERS = 2**24
_ROWS_AT_A_TIME = 4096


class Law(NamedTuple):
    """Every row given its observed cells: means (n, d) and covariances (n, d, d), which are 0 at
    observed cells."""

    mean: Tensor
    covariance: Tensor


def conditional_law(Z: np.ndarray, model: Precision) -> Law:
    """Of standardised rows (n, d) with NaN at missing cells."""
    n_rows, n_columns = Z.shape
    zero = np.zeros(n_columns)
    law = Law(
        torch.empty(n_rows, n_columns, dtype=torch.float64),
        torch.empty(n_rows, n_columns, n_columns, dtype=torch.float64),
    )
    for part in slices(n_rows, _ROWS_AT_A_TIME):
        for group, where in row_block(Z[part], zero, zero + 1).placed():
            rows, given = torch.from_numpy(where + part.start), condition(group, model)
            law.mean[rows] = model.location + given.residual
            law.covariance[rows] = (
                0.0 if given.inverse is None else embedded(given.inverse, n_columns)
            )
    return law


def target_columns(Z: np.ndarray) -> list[int]:
    """Columns that serve as targets, those with the most observed cells first."""
    observed = (~np.isnan(Z)).mean(axis=0)
    order = np.argsort(-observed, kind="stable")
    return [int(j) for j in order if observed[j] > _LEAST_OBSERVED][:MOST_TARGETS]


def most_rows(n_columns: int, n_targets: int) -> int:
    """Rows of a target whose covariances are held."""
    return max(1, _MOST_NUMBERS // (n_columns**2 * max(n_targets, 1)))


def column_target(
    Z: np.ndarray, column: int, parameters: NormalParameters, rng: np.random.RandomState
) -> ShadowTarget:
    """A column on the rows where it is observed, which are conditioned without it."""
    rows = Z[~np.isnan(Z[:, column])]
    values = rows[:, column].copy()
    blind = rows.copy()
    blind[:, column] = np.nan
    law = conditional_law(blind, precision(parameters))
    others = np.arange(Z.shape[1]) != column
    covariance = law.covariance[:, others]
    # The column itself is observed: no mechanism has hidden it.
    covariance[:, :, column] = 0.0
    return ShadowTarget(
        law.mean[:, others],
        covariance,
        torch.from_numpy(values).unsqueeze(1),
        folds(len(rows), rng),
    )


def outcome_target(
    Z: np.ndarray, y: np.ndarray, parameters: NormalParameters, rng: np.random.RandomState
) -> ShadowTarget:
    """y (n, q), about standardised and NaN where there is no label, on the labelled rows."""
    labelled = ~np.isnan(y).any(axis=1)
    law = conditional_law(Z[labelled], precision(parameters))
    values = torch.from_numpy(y[labelled])
    return ShadowTarget(*law, values, folds(int(labelled.sum()), rng))


def folds(n_rows: int, rng: np.random.RandomState) -> Tensor:
    """Folds of even sizes in random order, (f, n), 1 for the rows of each."""
    fold = rng.permutation(np.arange(n_rows) % N_FOLDS)
    return torch.from_numpy((fold == np.arange(N_FOLDS)[:, np.newaxis]).astype(np.float64))


def free_loss(target: ShadowTarget, missing: Tensor) -> Tensor:
    """Loss of untilted rows beside free indicators of what is ``missing``, (n, p): what any
    mechanism, also one that goes by other columns, could tell."""
    varying = missing[:, missing.std(0) > 0]
    return held_out_loss(torch.cat([target.mean, varying], dim=1), target, RIDGE)
