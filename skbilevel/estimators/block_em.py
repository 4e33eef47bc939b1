"""Maximum likelihood of a family over blocks of incomplete rows.

This joins the parts: a family gives the E- and M-step of a group of rows, `StandardizedRows` the
groups, `accelerated_em` the loop. Sums are taken within a block and then over blocks in their
order, whatever ran them, so that serial and parallel fits agree to the bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch

from skbilevel._sklearn import Parallel, delayed
from skbilevel.numerics.row_groups import RowBlock, RowGroup, StandardizedRows, row_block
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.family import Family, Pairwise, add, pairwise_sums
from skbilevel.solvers.em import Evaluation, accelerated_em
from skbilevel.solvers.result import SolverResult

GroupSums = Callable[[RowGroup], Any]


def total(rows: StandardizedRows, sums: GroupSums, n_jobs: int | None = None) -> Any:
    """Add the NamedTuples ``sums(group)`` over all rows that have an observed cell."""
    with single_thread():
        blocks = Parallel(n_jobs=n_jobs, prefer="threads")(
            delayed(_block_total)(rows, index, sums) for index in range(len(rows))
        )
    return reduce(add, (block for block in blocks if block is not None))


def _block_total(rows: StandardizedRows, index: int, sums: GroupSums) -> Any:
    with single_thread():
        informative = (
            group for group in rows[index].groups if group.n_missing < group.values.shape[1]
        )
        totals = (sums(group) for group in informative)
        first = next(totals, None)
        return None if first is None else reduce(add, totals, first)


def pairwise_start(family: Family, rows: StandardizedRows, n_jobs: int | None = None) -> Any:
    """First parameters of the family, from pairwise observed rows."""
    pairwise: Pairwise = total(rows, pairwise_sums, n_jobs)
    return family.start(pairwise)


def maximum_likelihood(
    family: Family,
    rows: StandardizedRows,
    start: Any,
    *,
    max_iter: int,
    tol: float,
    n_jobs: int | None = None,
    on_step: Callable[[Any], bool] | None = None,
) -> tuple[SolverResult, Any]:
    """Fit a family by accelerated EM.

    Parameters
    ----------
    family : Family
        E-step, M-step and prior.
    rows : StandardizedRows
        The data.
    start : parameters of the family
        Where EM starts.
    max_iter, tol
        As in `accelerated_em`; the objective is the penalised log-likelihood per row.
    n_jobs : int, optional
        Blocks that are processed at a time.
    on_step : callable, optional
        ``on_step(parameters) -> stop``.

    Returns
    -------
    result : SolverResult
        ``inner`` holds parameters of the family.
    sums : NamedTuple
        The sums over all rows that these parameters maximise.
    """
    latest = None

    def step(theta: torch.Tensor) -> Evaluation:
        nonlocal latest
        try:
            model = family.model(family.unpack(theta, start))
            sums = total(rows, lambda group: family.expectation(group, model), n_jobs)
        except torch.linalg.LinAlgError:
            return Evaluation(-np.inf, theta, {"log_likelihood": -np.inf})
        latest = sums
        n_rows, log_likelihood = float(sums.n_rows), float(sums.log_likelihood)
        return Evaluation(
            (log_likelihood + family.log_prior(model)) / n_rows,
            family.pack(family.maximisation(sums)),
            {"log_likelihood": log_likelihood / n_rows},
        )

    def report(theta: torch.Tensor) -> bool:
        return on_step is not None and on_step(family.unpack(theta, start))

    result = accelerated_em(step, family.pack(start), max_iter=max_iter, tol=tol, on_step=report)
    # The last step taken is the one whose image the solver returns.
    return replace(result, inner=family.unpack(result.inner, start)), latest


def in_row_order(block: RowBlock, of_group: Callable[[RowGroup, slice], Any]) -> np.ndarray:
    """Concatenate ``of_group(group, positions)`` over groups and restore the order of the rows.

    ``positions`` is where the rows of the group stand in ``block.order``.
    """
    with single_thread():
        parts = [of_group(group, where) for group, where in _with_positions(block)]
    stacked = torch.cat(parts).numpy()
    result = np.empty_like(stacked)
    result[block.order] = stacked
    return result


def _with_positions(block: RowBlock) -> Iterator[tuple[RowGroup, slice]]:
    start = 0
    for group in block.groups:
        stop = start + len(group.values)
        yield group, slice(start, stop)
        start = stop


def completed_rows(
    family: Family, model: Any, X: np.ndarray, center: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Rows (b, d) of ``X`` with missing cells at their conditional mean, in original units."""
    block = row_block(X, center, scale)
    rows = in_row_order(block, lambda group, _: family.completed(group, model))
    return rows * scale + center
