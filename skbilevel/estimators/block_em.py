"""Maximum likelihood of a family over blocks of incomplete rows.

This joins the parts: a family gives the E- and M-step of a group of rows, `StandardizedRows` the
groups, `accelerated_em` the loop. Sums are taken within a block and then over blocks in their
order, whatever ran them, so that serial and parallel fits agree to the bit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch

from skbilevel._sklearn import Parallel, delayed
from skbilevel.numerics.pattern_sums import pattern_sums
from skbilevel.numerics.random import row_normal
from skbilevel.numerics.row_groups import RowBlock, RowGroup, StandardizedRows, row_block
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.family import (
    Family,
    FirstEstimate,
    PatternFamily,
    add,
    first_estimate,
    pairwise_sums,
)
from skbilevel.solvers.em import EMResult, Evaluation, accelerated_em

GroupSums = Callable[[RowGroup], Any]
# Nothing here is differentiated; without autograd's book-keeping small kernels save a tenth.
_no_autograd = torch.inference_mode
# Rows at the end of the range overflow; what comes out is looked at, and said in better words.
_may_overflow = np.errstate(over="ignore", invalid="ignore")


def total(rows: StandardizedRows, sums: GroupSums, n_jobs: int | None = None) -> Any:
    """Add the NamedTuples ``sums(group)`` over all rows with an observed cell, if any."""
    with single_thread():
        blocks = Parallel(n_jobs=n_jobs, require="sharedmem")(
            delayed(_block_total)(rows, index, sums) for index in range(len(rows))
        )
    informative = [block for block in blocks if block is not None]
    return reduce(add, informative) if informative else None


@_no_autograd()
def _block_total(rows: StandardizedRows, index: int, sums: GroupSums) -> Any:
    with single_thread():
        informative = (
            group for group in rows[index].groups if group.n_missing < group.values.shape[1]
        )
        totals = (sums(group) for group in informative)
        first = next(totals, None)
        return None if first is None else reduce(add, totals, first)


def pairwise_estimate(rows: StandardizedRows, n_jobs: int | None = None) -> FirstEstimate:
    """Where EM starts: mean and covariance from pairwise observed rows."""
    return first_estimate(total(rows, pairwise_sums, n_jobs))


def maximum_likelihood(
    family: Family,
    rows: StandardizedRows,
    start: Any,
    *,
    max_iter: int,
    tol: float,
    n_jobs: int | None = None,
    on_step: Callable[[Callable[[], EMResult]], bool] | None = None,
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
        ``on_step(current) -> stop`` after every iteration; ``current()`` is the result if EM
        ended there.

    Returns
    -------
    EMResult
        ``inner`` holds parameters of the family.
    """

    expectation = _expectation_of_all(family, rows, n_jobs)

    @_no_autograd()
    def evaluate(theta: torch.Tensor) -> Evaluation:
        model = family.model(family.unpack(theta, start))
        sums = expectation(model)
        n_rows, log_likelihood = float(sums.n_rows), float(sums.log_likelihood)
        objective = (log_likelihood + family.log_prior(model)) / n_rows
        if not np.isfinite(objective):
            raise torch.linalg.LinAlgError("the likelihood is not finite")
        monitored = {"log_likelihood": log_likelihood / n_rows}
        return Evaluation(objective, family.pack(family.maximisation(sums)), monitored, sums)

    def step(theta: torch.Tensor) -> Evaluation:
        try:
            return evaluate(theta)
        except torch.linalg.LinAlgError:
            return Evaluation(-np.inf, theta, {"log_likelihood": -np.inf})

    def unpacked(result: EMResult) -> EMResult:
        return replace(result, inner=family.unpack(result.inner, start))

    def report(result: EMResult) -> bool:
        return on_step is not None and on_step(lambda: unpacked(result))

    first = family.pack(start)
    return unpacked(accelerated_em(step, first, max_iter=max_iter, tol=tol, on_step=report))


def _expectation_of_all(
    family: Family, rows: StandardizedRows, n_jobs: int | None
) -> Callable[[Any], Any]:
    """The E-step over all rows as a function of the model; by pattern where few occur."""
    if isinstance(family, PatternFamily):
        with single_thread():
            patterns = pattern_sums(rows)
        if patterns is not None:
            return single_thread()(lambda model: family.pattern_expectation(patterns, model))
    return lambda model: total(rows, lambda group: family.expectation(group, model), n_jobs)


@_no_autograd()
def in_row_order(block: RowBlock, of_group: Callable[[RowGroup], Any]) -> np.ndarray:
    """Concatenate ``of_group(group)`` over groups and restore the order of the rows."""
    with single_thread():
        stacked = torch.cat([of_group(group) for group in block.groups]).numpy()
    result = np.empty_like(stacked)
    result[block.order] = stacked
    return result


@_may_overflow
def log_densities(
    family: Family, model: Any, X: np.ndarray, center: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Log density (b,) of the observed cells of rows of ``X``, in original units; 0 if none is,
    -inf where squares overflow."""
    block, observed = row_block(X, center, scale), ~np.isnan(X)
    densities = in_row_order(block, lambda group: family.log_density(group, model))
    densities[~np.isfinite(densities)] = -np.inf
    return np.where(observed.any(axis=1), densities - observed @ np.log(scale), 0.0)


@_may_overflow
def completed_rows(
    family: Family, model: Any, X: np.ndarray, center: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Rows (b, d) of ``X`` with missing cells at their conditional mean, in original units."""
    block = row_block(X, center, scale)
    rows = in_row_order(block, lambda group: family.completed(group, model))
    rows *= scale
    rows += center
    return rows


@_may_overflow
@_no_autograd()
def drawn_rows(
    family: Family,
    model: Any,
    X: np.ndarray,
    center: np.ndarray,
    scale: np.ndarray,
    keys: np.ndarray,
    n_draws: int,
) -> np.ndarray:
    """Rows of ``X`` with missing cells drawn given the observed ones, (n_draws, b, d).

    ``keys`` (b,) are those of `row_keys`. What the draws of a row share is computed once.
    """
    block, width = row_block(X, center, scale), family.noise_width(X.shape[1])
    drawn = np.empty((n_draws, *X.shape))
    with single_thread():
        for group, rows in block.placed():
            given = family.given(group, model)
            for draw in range(n_draws):
                noise = torch.from_numpy(row_normal(keys[rows], draw, width))
                drawn[draw, rows] = family.drawn(group, given, noise).numpy()
    drawn *= scale
    drawn += center
    return drawn
