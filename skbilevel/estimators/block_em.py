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
from skbilevel.numerics.pattern_sums import pattern_sums
from skbilevel.numerics.row_groups import RowBlock, RowGroup, StandardizedRows, row_block
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.family import Family, Pairwise, add, pairwise_sums
from skbilevel.solvers.em import EMResult, Evaluation, accelerated_em

GroupSums = Callable[[RowGroup], Any]


def total(rows: StandardizedRows, sums: GroupSums, n_jobs: int | None = None) -> Any:
    """Add the NamedTuples ``sums(group)`` over all rows with an observed cell, if any."""
    with single_thread():
        blocks = Parallel(n_jobs=n_jobs, require="sharedmem")(
            delayed(_block_total)(rows, index, sums) for index in range(len(rows))
        )
    informative = [block for block in blocks if block is not None]
    return reduce(add, informative) if informative else None


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
) -> EMResult:
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
    EMResult
        ``inner`` holds parameters of the family.
    """

    expectation = _expectation_of_all(family, rows, n_jobs)

    def evaluate(theta: torch.Tensor) -> Evaluation:
        model = family.model(family.unpack(theta, start))
        sums = expectation(model)
        n_rows, log_likelihood = float(sums.n_rows), float(sums.log_likelihood)
        objective = (log_likelihood + family.log_prior(model)) / n_rows
        if not np.isfinite(objective):
            raise torch.linalg.LinAlgError("the likelihood is not finite")
        improved = family.maximisation(sums)
        ascent = _expected(family, sums, family.model(improved)) - _expected(family, sums, model)
        monitored = {"log_likelihood": log_likelihood / n_rows}
        return Evaluation(objective, family.pack(improved), monitored, sums, ascent / n_rows)

    def step(theta: torch.Tensor) -> Evaluation:
        try:
            return evaluate(theta)
        except torch.linalg.LinAlgError:
            return Evaluation(-np.inf, theta, {"log_likelihood": -np.inf})

    def report(theta: torch.Tensor) -> bool:
        return on_step is not None and on_step(family.unpack(theta, start))

    result = accelerated_em(step, family.pack(start), max_iter=max_iter, tol=tol, on_step=report)
    return replace(result, inner=family.unpack(result.inner, start))


def _expected(family: Family, sums: Any, model: Any) -> float:
    """What the M-step maximises, at the parameters of ``model``."""
    return family.complete_log_likelihood(sums, model) + family.log_prior(model)


def _expectation_of_all(
    family: Family, rows: StandardizedRows, n_jobs: int | None
) -> Callable[[Any], Any]:
    """The E-step over all rows as a function of the model; by pattern where few occur."""
    by_pattern = getattr(family, "pattern_expectation", None)
    with single_thread():
        patterns = None if by_pattern is None else pattern_sums(rows)
    if by_pattern is not None and patterns is not None:
        return single_thread()(lambda model: by_pattern(patterns, model))
    return lambda model: total(rows, lambda group: family.expectation(group, model), n_jobs)


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
    rows *= scale
    rows += center
    return rows
