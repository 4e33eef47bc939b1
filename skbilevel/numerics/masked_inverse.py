"""Inverses of one matrix restricted to many index sets, batched over rows.

Row i of an incomplete matrix needs (P_mm)^-1 for its own set m of missing columns. Two layouts
serve it: for few missing cells a symmetric sweep that is vectorised over the rows, (k, k, b); for
many a batched Cholesky factorisation, (b, k, k).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# From here on a LAPACK call per row costs less than k passes over the batch.
_SWEEP_LIMIT = 12


@dataclass(frozen=True)
class MaskedInverse:
    """The inverses C_i = (P_mm)^-1 of a batch of b rows with k missing columns each.

    Attributes
    ----------
    entries : Tensor of shape (b * k * k,)
        The entries of all inverses, in the order of ``cells``.
    cells : Tensor of shape (b * k * k,), int64
        The flat position in a (d, d) matrix of every entry.
    solution : Tensor of shape (k, b)
        C_i rhs_i.
    log_det : Tensor of shape (b,)
        log det P_mm of each row.
    diagonal : Tensor of shape (k, b)
        The diagonal of every inverse.
    rows_first : bool
        Whether the entries of a row follow each other, or those of a cell of all rows.
    """

    entries: Tensor
    cells: Tensor
    solution: Tensor
    log_det: Tensor
    diagonal: Tensor
    rows_first: bool


def masked_inverse(
    precision: Tensor, missing: Tensor, rhs: Tensor, added: Tensor | None = None
) -> MaskedInverse:
    """Invert P_mm for each row and apply the inverse to one right-hand side a row.

    Parameters
    ----------
    precision : Tensor of shape (d, d)
        Symmetric positive definite matrix P.
    missing : Tensor of shape (k, b), int64
        The index set m of each of the b rows, k >= 1.
    rhs : Tensor of shape (k, b)
        Right-hand sides.
    added : Tensor of shape (k, b), optional
        What each row adds to the diagonal of its P_mm.

    Returns
    -------
    MaskedInverse
        Entries that ``embedded_sum`` adds up, the solutions and log determinants.
    """
    if missing.shape[0] <= _SWEEP_LIMIT:
        return _swept_inverse(precision, missing, rhs, added)
    return _factorised_inverse(precision, missing, rhs, added)


def masked_solve(precision: Tensor, missing: Tensor, rhs: Tensor) -> Tensor:
    """Solve P_mm x = rhs for each row; shapes as in `masked_inverse`, returns (k, b)."""
    if missing.shape[0] <= _SWEEP_LIMIT:
        return _swept_inverse(precision, missing, rhs, None).solution
    factor = masked_cholesky(precision, missing)
    return torch.cholesky_solve(rhs.T.unsqueeze(2), factor).squeeze(2).T


def masked_cholesky(precision: Tensor, missing: Tensor, added: Tensor | None = None) -> Tensor:
    """Lower Cholesky factors of P_mm; arguments as in `masked_inverse`, the result (b, k, k)."""
    size = missing.shape[0]
    cells = _cells(missing, precision.shape[0]).permute(2, 0, 1).reshape(-1)
    batch = torch.index_select(precision.reshape(-1), 0, cells).view(-1, size, size)
    if added is not None:
        batch.diagonal(dim1=1, dim2=2).add_(added.T)
    return torch.linalg.cholesky(batch)


def embedded_sum(inverse: MaskedInverse, n_columns: int) -> Tensor:
    """Sum over rows of C_i placed at rows and columns m of a (d, d) matrix of zeros."""
    total = torch.zeros(n_columns * n_columns, dtype=inverse.entries.dtype)
    return total.scatter_add_(0, inverse.cells, inverse.entries).view(n_columns, n_columns)


def embedded(inverse: MaskedInverse, n_columns: int) -> Tensor:
    """Each C_i at rows and columns m of a (d, d) matrix of zeros; (b, d, d)."""
    n_rows = len(inverse.log_det)
    cells, entries = (
        part.view(n_rows, -1) if inverse.rows_first else part.view(-1, n_rows).T
        for part in (inverse.cells, inverse.entries)
    )
    dense = torch.zeros(n_rows, n_columns * n_columns, dtype=entries.dtype)
    return dense.scatter_(1, cells, entries).view(n_rows, n_columns, n_columns)


def _cells(missing: Tensor, n_columns: int) -> Tensor:
    """Flat positions in a (d, d) matrix of the entries of P_mm of each row; (k, k, b)."""
    return missing.unsqueeze(1) * n_columns + missing.unsqueeze(0)


def _swept_inverse(
    precision: Tensor, missing: Tensor, rhs: Tensor, added: Tensor | None
) -> MaskedInverse:
    size, n_rows = missing.shape
    cells = _cells(missing, precision.shape[0]).view(-1)
    table = torch.index_select(precision.reshape(-1), 0, cells).view(size, size, n_rows)
    if added is not None:
        table.diagonal(dim1=0, dim2=1).add_(added.T)
    pivots = _sweep(table)
    solution = table[0] * rhs[0]
    for column in range(1, size):
        solution.addcmul_(table[column], rhs[column])
    log_det = -pivots.log().sum(0)
    diagonal = table.neg_().diagonal(dim1=0, dim2=1).T
    return MaskedInverse(table.view(-1), cells, solution.neg_(), log_det, diagonal, False)


def _sweep(table: Tensor) -> Tensor:
    """Sweep all pivots of (k, k, b) in place, which leaves minus the inverse; returns 1/pivots.

    The rank-one update is torch's, which fuses it into one pass over the batch; the vectors are
    NumPy's views of the same memory, whose calls cost a fraction of torch's.
    """
    entries = table.numpy()
    inverse_pivots, row, scaled = (np.empty_like(entries[0]) for _ in range(3))
    left, right = torch.from_numpy(row).unsqueeze(1), torch.from_numpy(scaled).unsqueeze(0)
    # Where rounding has made a pivot zero, what is not finite is found by the caller.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for pivot in range(len(entries)):
            inverse_pivot = np.divide(1.0, entries[pivot, pivot], out=inverse_pivots[pivot])
            row[...] = entries[pivot]
            np.multiply(row, inverse_pivot, out=scaled)
            table.addcmul_(left, right, value=-1)
            entries[pivot] = scaled
            entries[:, pivot] = scaled
            np.negative(inverse_pivot, out=entries[pivot, pivot])
    return torch.from_numpy(inverse_pivots)


def _factorised_inverse(
    precision: Tensor, missing: Tensor, rhs: Tensor, added: Tensor | None
) -> MaskedInverse:
    factor = masked_cholesky(precision, missing, added)
    inverse = torch.cholesky_inverse(factor)
    solution = torch.bmm(inverse, rhs.T.unsqueeze(2)).squeeze(2).T
    log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    cells = _cells(missing, precision.shape[0]).permute(2, 0, 1).reshape(-1)
    diagonal = inverse.diagonal(dim1=1, dim2=2).T
    return MaskedInverse(inverse.reshape(-1), cells, solution, log_det, diagonal, True)
