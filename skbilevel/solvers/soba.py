"""SOBA: parameters, adjoint and weights each take a step, all from the same iterate.

Reference: Dagréou, Ablin, Vaiter and Moreau (2022), A framework for bilevel optimization that
enables stochastic and global variance reduction algorithms, NeurIPS. Here with full batches.
"""

import torch
from torch import Tensor

from skbilevel.numerics.weighted_problem import WeightedProblem
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.weight_descent import Descent, OnStep, Parametrisation, Record


def soba(
    problem: WeightedProblem,
    form: Parametrisation,
    settings: Descent,
    on_step: OnStep | None = None,
    a: Tensor | None = None,
) -> SolverResult:
    """No linear system is solved: v follows H v = grad F by gradient steps.

    Parameters
    ----------
    problem : WeightedProblem
    form : Parametrisation
    settings : Descent
        With an ``outer_rate``; theta and v share the ``inner_rate``.
    on_step : callable, optional
        ``on_step(state) -> stop`` after every iteration.
    a : Tensor of shape (n,), optional
        Where the weights start; 0 by default, where they are equal.

    Returns
    -------
    SolverResult
        ``inner`` is theta, ``outer`` the weights; ``history`` has target loss, entropy and
        effective sample size after every iteration.
    """
    a = torch.zeros(problem.n_rows, dtype=torch.float64) if a is None else a
    theta = torch.zeros(problem.n_parameters, dtype=torch.float64)
    v = torch.zeros_like(theta)
    record, weights, rho = Record(problem, form, on_step), form.weights(a), settings.inner_rate
    assert settings.outer_rate is not None
    for _ in range(settings.n_iter):
        point = problem.at(theta)
        g = point.alignment(v)
        moved = point.gradient(weights)
        residual = point.product(weights, v) - problem.target_gradient(theta)
        theta, v = theta - rho * moved, v - rho * residual
        a = a - settings.outer_rate * form.direction(a, g)
        weights = form.weights(a)
        if record(theta, weights):
            break
    return record.result(theta, weights)
