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
from skbilevel.objectives.shadow_tilt import ShadowTarget, held_out_loss, mask_fit

# A column serves as target where more than this share of its cells is observed.
_LEAST_OBSERVED = 0.4
MOST_TARGETS, N_FOLDS = 8, 5
# Least adjusted R2 on the other columns, and least number of such targets.
_LEAST_TOLD, _FEWEST_TARGETS = 0.1, 3
# Of the students, for rows that are about standardised.
RIDGE = 2.0
# Covariances of all rows of a target are held, up to this many numbers. With fewer rows than so
# many a column, of those there are, neither students nor masks tell anything.
_MOST_NUMBERS, _ROWS_OF_COLUMN = 2**24, 4
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


def target_columns(Z: np.ndarray, parameters: NormalParameters) -> list[int]:
    """Columns that serve as targets, those with the most observed cells first.

    They have to have something to do with the others, of whose values they are to tell; none
    serves where there are fewer than three of them.
    """
    observed = (~np.isnan(Z)).mean(axis=0)
    told = predictable(parameters, len(Z) * observed)
    order = np.argsort(-observed, kind="stable")
    serving = [int(j) for j in order if observed[j] > _LEAST_OBSERVED and told[j] > _LEAST_TOLD]
    return serving[:MOST_TARGETS] if len(serving) >= _FEWEST_TARGETS else []


def predictable(parameters: NormalParameters, n_observed: np.ndarray) -> np.ndarray:
    """R2 of each column on all others, (d,), 1 - 1 / (S_jj P_jj), adjusted for their number.

    ``n_observed`` (d,) are the observed cells of each column.
    """
    inverse = precision(parameters).matrix.diagonal()
    unexplained = (1 / (parameters.covariance.diagonal() * inverse)).numpy()
    spare = n_observed - len(unexplained)
    return np.where(spare > 0, 1 - unexplained * (n_observed - 1) / np.maximum(spare, 1), 0.0)


def most_rows(n_columns: int, n_targets: int) -> int:
    """Rows of a target whose covariances are held."""
    return max(1, _MOST_NUMBERS // (n_columns**2 * max(n_targets, 1)))


def affordable(columns: list[int], n_rows: int, n_columns: int) -> list[int]:
    """The first of these targets, so many that each keeps enough rows; none if three do not."""
    enough = min(n_rows, _ROWS_OF_COLUMN * n_columns)
    for n_targets in range(len(columns), _FEWEST_TARGETS - 1, -1):
        if most_rows(n_columns, n_targets) >= enough:
            return columns[:n_targets]
    return []


def is_too_wide(n_rows: int, n_columns: int) -> bool:
    """Whether a table has too many columns for any three targets to keep enough rows."""
    return not affordable(list(range(_FEWEST_TARGETS)), n_rows, n_columns)


def column_target(
    Z: np.ndarray, column: int, parameters: NormalParameters, rng: np.random.RandomState
) -> ShadowTarget:
    """A column on the rows where it is observed, which are conditioned without it."""
    rows = Z[~np.isnan(Z[:, column])]
    values = rows[:, [column]]
    blind = rows.copy()
    blind[:, column] = np.nan
    law = conditional_law(blind, precision(parameters))
    law.mean[:, column] = 0.0
    # The column itself is observed: no mechanism has hidden it.
    law.covariance[:, column] = 0.0
    law.covariance[:, :, column] = 0.0
    return _by_fold(law, values, rng)


def outcome_target(
    Z: np.ndarray, y: np.ndarray, parameters: NormalParameters, rng: np.random.RandomState
) -> ShadowTarget:
    """y (n, q), about standardised and NaN where there is no label, on the labelled rows."""
    labelled = ~np.isnan(y).any(axis=1)
    return _by_fold(conditional_law(Z[labelled], precision(parameters)), y[labelled], rng)


def folds(n_rows: int, rng: np.random.RandomState) -> np.ndarray:
    """Rows of each fold in random order, (f, b); short ones are filled up with n."""
    n_filled = -(-n_rows // N_FOLDS) * N_FOLDS
    order = np.append(rng.permutation(n_rows), np.full(n_filled - n_rows, n_rows))
    return order.reshape(-1, N_FOLDS).T


def _by_fold(law: Law, values: np.ndarray, rng: np.random.RandomState) -> ShadowTarget:
    rows = torch.from_numpy(folds(len(values), rng).copy())
    parts = (*law, torch.from_numpy(values), torch.ones(len(values), 1, dtype=torch.float64))
    return ShadowTarget(*(torch.cat([part, 0 * part[:1]])[rows] for part in parts))


def free_loss(target: ShadowTarget) -> Tensor:
    """Loss of untilted rows beside free indicators of what is missing: what any mechanism, also
    one that goes by other columns, could tell."""
    missing = (target.covariance.diagonal(dim1=-2, dim2=-1) != 0).double()
    n_missing = missing.sum((0, 1))
    varying = missing[..., (n_missing > 0) & (n_missing < target.present.sum())]
    return held_out_loss(torch.cat([target.mean, varying], dim=-1), target, RIDGE)


def mask_fits(Z: np.ndarray, columns: list[int], parameters: NormalParameters) -> Tensor:
    """Eq. (8) for every column: what tells of its mask, (k, 3)."""
    model = precision(parameters)
    fits = []
    for column in columns:
        missing = torch.from_numpy(np.isnan(Z[:, column]).astype(np.float64))
        blind = Z.copy()
        blind[:, column] = np.nan
        fits.append(mask_fit(missing, conditional_law(blind, model).mean, column))
    return torch.stack(fits)
