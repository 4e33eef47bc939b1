"""Algorithm 2: parameters and weights move at the same time, a step each.

With an inner rate of 0 theta is frozen, and small steps follow the mirror flow of Section 3.2.

Reference: Ivanova and Ablin (2023), arXiv 2310.17386.
"""

import torch
from torch import Tensor

from skbilevel.numerics.weighted_problem import WeightedProblem
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.weight_descent import Descent, OnStep, Parametrisation, Record
from skbilevel.solvers.weighted_newton import Minimum, adjoint


def warm_started(
    problem: WeightedProblem,
    form: Parametrisation,
    settings: Descent,
    on_step: OnStep | None = None,
    a: Tensor | None = None,
    theta: Tensor | None = None,
) -> SolverResult:
    """A gradient step of theta, then one of the weights, again and again.

    Parameters
    ----------
    problem : WeightedProblem
    form : Parametrisation
    settings : Descent
        With an ``outer_rate``.
    on_step : callable, optional
        ``on_step(state) -> stop`` after every iteration.
    a : Tensor of shape (n,), optional
        Where the weights start; 0 by default, where they are equal.
    theta : Tensor of shape (p,), optional
        Where the parameters start; 0 by default.

    Returns
    -------
    SolverResult
        ``inner`` is theta, ``outer`` the weights; ``history`` has target loss, entropy and
        effective sample size after every iteration.
    """
    a = torch.zeros(problem.n_rows, dtype=torch.float64) if a is None else a
    zero = torch.zeros(problem.n_parameters, dtype=torch.float64)
    inner = Minimum(zero if theta is None else theta)
    record, weights = Record(problem, form, on_step), form.weights(a)
    for _ in range(settings.n_iter):
        moved = problem.at(inner.theta).gradient(weights)
        inner = Minimum(inner.theta - settings.inner_rate * moved, None, inner.adjoint)
        inner = adjoint(problem, weights, inner)
        assert inner.adjoint is not None and settings.outer_rate is not None
        g = problem.at(inner.theta).alignment(inner.adjoint)
        a = a - settings.outer_rate * form.direction(a, g)
        weights = form.weights(a)
        if record(inner.theta, weights):
            break
    return record.result(inner.theta, weights)
