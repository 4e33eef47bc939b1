"""Maximum likelihood of the normal with self-masking, by EM with expectation propagation.

This joins the parts: the normal with sites gives the marginals of a group of rows, `sweep` the
sites, `newton_step` the mechanism, and the M-step the next normal. The sites of a row are kept
from one iteration to the next, so that one sweep an iteration is enough.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.gaussian_choice import has_many_cells
from skbilevel.numerics.row_groups import RowGroup, StandardizedRows
from skbilevel.numerics.sites import Normal, Sites
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.normal import (
    NormalParameters,
    Precision,
    condition,
    precision,
    scatter_sums,
    shrunk_scatter,
)
from skbilevel.objectives.self_masked_normal import log_evidence, marginals, projected
from skbilevel.objectives.self_masking import (
    SelfMasking,
    Tilted,
    log_probability_terms,
    tilted,
)
from skbilevel.solvers.ep import cavity, log_scales, sweep
from skbilevel.solvers.separable_newton import Quadratic, newton_step

# The first normals are too rough to tell which rows are far away.
_FREE_ITERATIONS = 2
_DAMPING = 0.8
_RIDGE = 1e-3
# Rows with a squared distance beyond this many times their observed cells are pulled in.
LIMIT = 3.0
# Standard deviations of a learnt probit, in those of the column: from a slope of 50 to none.
NARROWEST, WIDEST = 0.02, 20.0
# Given the normal, the sites of new rows settled in 15 to 47 sweeps on six tables of UCI.
_MOST_SWEEPS, SETTLED = 100, 1e-10


class MechanismFit(NamedTuple):
    """What `fit_self_masked` returns.

    Attributes
    ----------
    parameters : NormalParameters
        In standardised units.
    mechanism : SelfMasking
        As given, or as learnt.
    evidence : float
        log p(x_o, s) per row in nats, for the columns that have a mechanism.
    n_iter : int
        Number of iterations.
    converged : bool
        Whether the imputations settled.
    """

    parameters: NormalParameters
    mechanism: SelfMasking
    evidence: float
    n_iter: int
    converged: bool


@dataclass
class _Rows:
    """Groups of rows, with the columns, sites and means of the missing cells of all groups on end,
    (c,): the sites are swept by one call, as calls for each small group would cost more."""

    groups: list[RowGroup]
    column: Tensor
    sites: Sites
    mean: Tensor

    def parts(self) -> Iterator[tuple[RowGroup, Sites, Tensor]]:
        """Each group with sites and means (k, b)."""
        sizes = [group.missing.numel() for group in self.groups]
        split = (part.split(sizes) for part in (*self.sites, self.mean))
        for group, *own in zip(self.groups, *split, strict=True):
            tau, nu, mean = (part.view(group.missing.shape) for part in own)
            yield group, Sites(tau, nu), mean


@torch.inference_mode()
@single_thread()
def fit_self_masked(
    data: StandardizedRows,
    mechanism: SelfMasking,
    *,
    learn: bool = False,
    max_iter: int = 80,
    tol: float = 1e-3,
    limit: float = LIMIT,
    on_step: Callable[[Callable[[], MechanismFit]], bool] | None = None,
) -> MechanismFit:
    """Fit the normal, and on request the mechanism.

    Parameters
    ----------
    data : StandardizedRows
        Rows standardised by their observed cells.
    mechanism : SelfMasking
        Side, threshold and width of every column, in standardised units.
    learn : bool, default=False
        Whether threshold and width are learnt from there; the width has to be positive.
    max_iter : int, default=80
        Most iterations.
    tol : float, default=1e-3
        Stop when no imputed cell, mean or covariance moves by more than this, in standardised
        units.
    limit : float, default=3.0
        Rows with a squared distance of more than this many times their number of observed cells
        are pulled in; inf leaves all as they are.
    on_step : callable, optional
        ``on_step(current) -> stop`` after every iteration; ``current()`` is the result if EM
        ended there.
    """

    def result() -> MechanismFit:
        return MechanismFit(
            parameters, mechanism, _evidence(rows, parameters, mechanism), n_iter, converged
        )

    rows = _start([group for index in range(len(data)) for group in data[index].groups])
    parameters = _standard_normal(data.shape[1])
    weight = prior_rows(_n_observed(rows.groups, data.shape[1]))
    observed = _observed_cells(rows.groups, mechanism) if learn else None
    converged, n_iter = False, 0
    while n_iter < max_iter and not converged:
        n_iter += 1
        model = precision(parameters)
        reach = limit if n_iter > _FREE_ITERATIONS else float("inf")
        before = parameters
        parameters, moved = _iterate(rows, model, mechanism, reach, weight)
        change = max(moved, _largest_move(before, parameters))
        if observed is not None:
            mechanism = _improved(mechanism, rows, model, observed)
        # With rows that are pulled in, the normal is not yet the one that is sought.
        first = 1 if limit == float("inf") else _FREE_ITERATIONS + 1
        converged = n_iter > first and change < tol
        if on_step is not None and on_step(result):
            break
    return result()


def prior_rows(n_observed: np.ndarray) -> float:
    """Weight of the prior of the covariance beside a mechanism, in rows; 0 where cells abound.

    It is d^2 / n for d columns with n observed cells each, on average, of the ``n_observed`` (d,).
    The choice on held-out cells of `GaussianImputer` is of no use here: what extrapolates beyond a
    limit is not what imputes within it.
    """
    return 0.0 if has_many_cells(n_observed) else float(len(n_observed) ** 2 / n_observed.mean())


def _n_observed(groups: list[RowGroup], n_columns: int) -> np.ndarray:
    """Observed cells of each column, (d,)."""
    total = torch.zeros(n_columns, dtype=torch.float64)
    for group in groups:
        total += group.observed().sum(0)
    return total.numpy()


def _evidence(rows: _Rows, parameters: NormalParameters, mechanism: SelfMasking) -> float:
    """log p(x_o, s) per row."""
    model = precision(parameters)
    n_rows = sum(len(group.values) for group in rows.groups)
    evidences = (
        group_log_evidence(group, sites, model, mechanism).sum()
        for group, sites, _ in rows.parts()
    )
    return sum(float(evidence) for evidence in evidences) / n_rows


def _start(groups: list[RowGroup]) -> _Rows:
    column = torch.cat([group.missing.reshape(-1) for group in groups])
    zero = torch.zeros(len(column), dtype=torch.float64)
    return _Rows(groups, column, Sites(zero, zero), zero)


def _standard_normal(n_columns: int) -> NormalParameters:
    return NormalParameters(
        torch.zeros(n_columns, dtype=torch.float64), torch.eye(n_columns, dtype=torch.float64)
    )


def tilt_of(columns: Tensor, mechanism: SelfMasking) -> Callable[[Tensor, Tensor], Tilted]:
    """The factors of missing cells of these columns."""
    own = mechanism.columns(columns)
    return lambda mean, variance: tilted(mean, variance, own)


def _pulled_in(group: RowGroup, model: Precision, limit: float, mean: Tensor) -> RowGroup:
    return projected(group, model, limit, mean) if limit < float("inf") else group


def _iterate(
    rows: _Rows, model: Precision, mechanism: SelfMasking, limit: float, shrinkage: float
) -> tuple[NormalParameters, float]:
    """The M-step, and one sweep of ``rows`` in place; also the largest move of an imputed cell."""
    first, second = torch.zeros_like(model.location), torch.zeros_like(model.matrix)
    parts, n_rows = [], torch.zeros((), dtype=torch.float64)
    for group, sites, mean in rows.parts():
        group = _pulled_in(group, model, limit, mean)
        given = condition(group, model, sites)
        parts.append(marginals(group, given, model.location))
        sums = scatter_sums(given, model.location)
        first, second = first + sums[0], second + sums[1]
        n_rows += len(group.values)
    marginal = _on_end(parts)
    moves = (marginal.mean - rows.mean).abs()
    # For the next iteration, so that this one conditions each row once.
    rows.sites = sweep(marginal, rows.sites, tilt_of(rows.column, mechanism), _DAMPING)
    rows.mean = marginal.mean
    location, covariance = shrunk_scatter(n_rows, first, second, n_rows, shrinkage)
    covariance.diagonal().add_(_RIDGE)
    return NormalParameters(location, covariance), float(moves.max()) if len(moves) else 0.0


def _largest_move(before: NormalParameters, after: NormalParameters) -> float:
    """Of rows whose cells are all observed, and are pulled in, only these tell."""
    pairs = ((before.location, after.location), (before.covariance, after.covariance))
    return max(float((new - old).abs().max()) for old, new in pairs)


def _on_end(parts: list[Normal]) -> Normal:
    """Normal variables (k, b) of several groups as (c,)."""
    return Normal(
        *(torch.cat([part.reshape(-1) for part in of_one]) for of_one in zip(*parts, strict=True))
    )


class Settled(NamedTuple):
    """Rows of a group, pulled in, with sites and marginals that agree."""

    group: RowGroup
    sites: Sites
    marginal: Normal


def settled(
    group: RowGroup,
    model: Precision,
    mechanism: SelfMasking,
    limit: float,
    tol: float,
) -> Settled:
    """Sweep the sites of the rows of a group, from none, until their means move by less than
    ``tol``."""
    mean = torch.zeros(group.missing.shape, dtype=torch.float64)
    sites, marginal = Sites(mean, mean), Normal(mean, mean)
    group = _pulled_in(group, model, limit, mean)
    tilt = tilt_of(group.missing, mechanism)
    for n_sweeps in range(_MOST_SWEEPS if group.n_missing else 0):
        marginal = marginals(group, condition(group, model, sites), model.location)
        if n_sweeps > 0 and (marginal.mean - mean).abs().max() < tol:
            break
        sites, mean = sweep(marginal, sites, tilt, _DAMPING), marginal.mean
    return Settled(group, sites, marginal)


def group_log_evidence(
    group: RowGroup, sites: Sites, model: Precision, mechanism: SelfMasking
) -> Tensor:
    """log p(x_o, s) of the rows of a group in nats, (b,), as the sites approximate it."""
    if group.n_missing == 0:
        scales, given = torch.zeros_like(sites.shift), condition(group, model)
    else:
        given = condition(group, model, sites)
        marginal = marginals(group, given, model.location)
        scales = log_scales(marginal, sites, tilt_of(group.missing, mechanism))
    return log_evidence(group, given, sites, scales, mechanism, model.location)


class _Cells(NamedTuple):
    """Cells (c,): normal variables, their columns and whether they are missing (1) or observed
    (-1)."""

    normal: Normal
    column: Tensor
    sign: float


def _observed_cells(groups: list[RowGroup], mechanism: SelfMasking) -> _Cells:
    values, columns = [], []
    for group in groups:
        chosen = (group.observed() * mechanism.side.abs()).nonzero(as_tuple=True)
        values.append(group.values[chosen])
        columns.append(chosen[1])
    mean = torch.cat(values)
    return _Cells(Normal(mean, torch.zeros_like(mean)), torch.cat(columns), -1.0)


def _missing_cells(rows: _Rows, model: Precision) -> _Cells:
    """The cavities: what the rest of each row says about its missing cells."""
    parts = [
        marginals(group, condition(group, model, sites), model.location)
        for group, sites, _ in rows.parts()
    ]
    return _Cells(cavity(_on_end(parts), rows.sites), rows.column, 1.0)


def _improved(
    mechanism: SelfMasking, rows: _Rows, model: Precision, observed: _Cells
) -> SelfMasking:
    """A Newton step on threshold and log width of every column.

    The cavities, not the marginals, are what the mechanism is learnt from: a marginal has already
    been moved by it, which draws the slope towards zero.
    """
    missing = _missing_cells(rows, model)
    narrowest, widest = math.log(NARROWEST), math.log(WIDEST)

    def evaluate(theta: Tensor) -> Quadratic:
        width = theta[:, 1].clamp(narrowest, widest).exp()
        candidate = mechanism._replace(threshold=theta[:, 0], width=width)
        total = Quadratic(
            *(torch.zeros(len(theta), *shape, dtype=theta.dtype) for shape in ((), (2,), (2, 2)))
        )
        for cells in (missing, observed):
            own = candidate.columns(cells.column)
            own = own._replace(side=cells.sign * own.side)
            terms = log_probability_terms(*cells.normal, own)
            for sum_, term in zip(total, terms, strict=True):
                sum_.index_add_(0, cells.column, term)
        uphill, curvature = total.gradient[:, 1], total.curvature
        ends = (theta[:, 1] >= widest) & (uphill > 0) | (theta[:, 1] <= narrowest) & (uphill < 0)
        # A width at its end stays there, and the threshold moves without it.
        uphill[ends] = 0.0
        curvature[ends, 0, 1] = curvature[ends, 1, 0] = 0.0
        return total

    theta = torch.stack([mechanism.threshold, mechanism.width.log()], dim=1)
    theta = newton_step(evaluate, theta)
    width = theta[:, 1].clamp(narrowest, widest).exp()
    return mechanism._replace(threshold=theta[:, 0], width=width)
