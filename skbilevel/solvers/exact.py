"""Algorithm 1: descent on weights, with the inner problem solved at every step.

Reference: Ivanova and Ablin (2023), arXiv 2310.17386.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from skbilevel.numerics.weighted_problem import WeightedProblem
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.weight_descent import Descent, OnStep, Parametrisation, Record
from skbilevel.solvers.weighted_newton import Minimum, adjoint, minimum

# Weighted standard deviation of a step of log w that is safe, and how far it may grow.
_SAFE, _GROWTH, _MOST = 0.5, 1.5, 3.0


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
        effective sample size of every iterate, from the start on.
    """
    iterate = partial(_iterate, problem, form, settings.tol)
    start = Minimum(torch.zeros(problem.n_parameters, dtype=torch.float64))
    at = iterate(torch.zeros(problem.n_rows, dtype=torch.float64) if a is None else a, start)
    record, reach, solved = Record(problem, on_step), 1.0, at.inner.converged
    for _ in range(settings.n_iter):
        if record(at.inner.theta, at.weights):
            break
        rate = settings.outer_rate
        if rate is None:
            rate = _SAFE * reach / max(_deviation(at), torch.finfo(at.g.dtype).tiny)
        moved = iterate(at.a - rate * form.direction(at.a, at.g), at.inner)
        if settings.outer_rate is None and not moved.loss <= at.loss:
            reach /= 2
            continue
        reach = min(_MOST, reach * _GROWTH)
        at, solved = moved, solved and moved.inner.converged
    return record.result(at.inner.theta, at.weights, solved)


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


def _deviation(at: _Iterate) -> float:
    """Standard deviation of g among the rows, as they are weighted."""
    shares = at.weights / at.weights.sum()
    return float((shares @ (at.g - shares @ at.g).square()).sqrt())
