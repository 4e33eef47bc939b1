"""Algorithm 1: descent on weights, with the inner problem solved at every step.

Reference: Ivanova and Ablin (2023), arXiv 2310.17386.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from skbilevel.numerics.weighted_problem import WeightedProblem
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.weight_descent import Descent, OnStep, Parametrisation, Record
from skbilevel.solvers.weighted_newton import Minimum, adjoint, minimum

# Weighted standard deviation of a step of log w that is safe, and how far it may grow.
_SAFE, _GROWTH, _MOST, _FARTHEST = 0.5, 1.5, 3.0, 20.0


def exact_descent(
    problem: WeightedProblem,
    form: Parametrisation,
    settings: Descent,
    on_step: OnStep | None = None,
    a: Tensor | None = None,
) -> SolverResult:
    """Move weights along the exact hypergradient.

    Parameters
    ----------
    problem : WeightedProblem
    form : Parametrisation
    settings : Descent
    on_step : callable, optional
        ``on_step(state) -> stop`` after every iteration.
    a : Tensor of shape (n,), optional
        Where to start; 0 by default, equal weights.

    Returns
    -------
    SolverResult
        ``inner`` is theta*(w), ``outer`` the weights; ``history`` has target loss, entropy and
        effective sample size of every iterate, from the start to the last; a step that is taken
        back leaves the iterate as it was.
    """
    iterate = partial(_iterate, problem, form, settings.tol)
    start = Minimum(torch.zeros(problem.n_parameters, dtype=torch.float64))
    at = iterate(torch.zeros(problem.n_rows, dtype=torch.float64) if a is None else a, start)
    record, reach, solved = Record(problem, form, on_step), 1.0, at.inner.converged
    stopped = record(at.inner.theta, at.weights)
    for _ in range(settings.n_iter):
        if stopped:
            break
        direction, rate = form.direction(at.a, at.g), settings.outer_rate
        if rate is None:
            rate = _safe_rate(direction, at.weights, reach)
        moved = iterate(at.a - rate * direction, at.inner)
        if settings.outer_rate is None and not moved.loss <= at.loss:
            reach /= 2
        else:
            reach = min(_MOST, reach * _GROWTH)
            at, solved = moved, solved and moved.inner.converged
        stopped = record(at.inner.theta, at.weights)
    found = record.result(at.inner.theta, at.weights, solved)
    return replace(found, n_iter=found.n_iter - 1)


class _Iterate(NamedTuple):
    a: Tensor
    weights: Tensor
    inner: Minimum
    loss: float
    g: Tensor


def _iterate(
    problem: WeightedProblem, form: Parametrisation, tol: float, a: Tensor, start: Minimum
) -> _Iterate:
    """Solve for theta and the hypergradient at a."""
    weights = form.weights(a)
    inner = minimum(problem, weights, start, tol=tol)
    inner = adjoint(problem, weights, inner, rtol=tol)
    assert inner.adjoint is not None
    g = problem.at(inner.theta).alignment(inner.adjoint)
    return _Iterate(a, weights, inner, float(problem.target_loss(inner.theta)), g)


def _safe_rate(direction: Tensor, weights: Tensor, reach: float) -> float:
    """A rate at which a changes by a standard deviation of ``.5 reach`` among the rows, as they
    are weighted, and by no more than 20 in any row, which may weigh next to nothing."""
    shares = weights / weights.sum()
    deviation = float((shares @ (direction - shares @ direction).square()).sqrt())
    farthest = float(direction.abs().max())
    if farthest == 0:
        return 0.0
    return min(_SAFE * reach / max(deviation, _SAFE * farthest / _FARTHEST), _FARTHEST / farthest)
