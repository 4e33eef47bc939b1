"""Weights of a handful of parameters, learnt by exact hypergradients and a quasi-Newton method.

The outer loss is a mean over folds of the target rows. What the weights of a fold are made of must
not have seen that fold; its inner problem is solved to the end for every value of the parameters,
from where it was solved last. There is no learning rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from skbilevel.numerics.weighted_problem import WeightedProblem
from skbilevel.solvers.result import SolverResult
from skbilevel.solvers.weighted_newton import Minimum, adjoint, minimum

# phi -> (weights (n,), pull: dh/dw -> dh/dphi)
Family = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
# weights -> penalty and its derivative in them, (n,)
Penalty = Callable[[Tensor], tuple[Tensor, Tensor]]
# phi (q,) -> whether to stop
OnStep = Callable[[np.ndarray], bool]

# Relative gradient of inner problems: hypergradients of L-BFGS need no more.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Fold:
    """One fold of the target.

    Attributes
    ----------
    problem : WeightedProblem
        Whose outer loss is that of the fold.
    family : callable
        Weights of the rows of the problem, from what has not seen the fold.
    penalty : callable
        Of these weights, with its derivative in them.
    """

    problem: WeightedProblem
    family: Family
    penalty: Penalty


def parametric_weights(
    folds: Sequence[Fold],
    start: np.ndarray,
    *,
    bounds: Sequence[tuple[float, float]] | None = None,
    precision: float = 0.0,
    max_iter: int = 5,
    ftol: float = 1e-3,
    on_step: OnStep | None = None,
) -> SolverResult:
    """Minimise the mean over folds of ``F(theta*(w(phi))) + penalty(w(phi))``, plus
    ``precision |phi|^2``.

    Parameters
    ----------
    folds : sequence of Fold
    start : ndarray of shape (q,)
    bounds : sequence of (float, float), optional
        Of each parameter.
    precision : float
    max_iter : int
        Of L-BFGS-B.
    ftol : float
        Relative decrease that ends it.
    on_step : callable, optional
        ``on_step(phi) -> stop`` at the start, and after every iteration of L-BFGS-B.

    Returns
    -------
    SolverResult
        ``outer`` is phi, (q,), as an array; ``history["objective"]`` has every evaluation.
    """
    inner = [Minimum(torch.zeros(f.problem.n_parameters, dtype=torch.float64)) for f in folds]
    history: dict[str, list[float]] = {"objective": []}

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        phi = torch.from_numpy(x)
        value, gradient = precision * phi.dot(phi), 2 * precision * phi
        for number, fold in enumerate(folds):
            weights, pull = fold.family(phi)
            if number and not history["objective"]:
                # Folds differ little, but for who has been seen: theta is of other rows.
                inner[number] = replace(inner[number], factor=inner[number - 1].factor)
            at = minimum(fold.problem, weights, inner[number], tol=_TOLERANCE)
            inner[number] = at = adjoint(fold.problem, weights, at, rtol=10 * _TOLERANCE)
            assert at.adjoint is not None
            extra, slope = fold.penalty(weights)
            g = fold.problem.at(at.theta).alignment(at.adjoint) + slope
            value = value + (fold.problem.target_loss(at.theta) + extra) / len(folds)
            gradient = gradient + pull(g) / len(folds)
        history["objective"].append(float(value))
        return float(value), gradient.numpy()

    if on_step is not None and on_step(start):
        value_and_gradient(start)
        return SolverResult(inner, start, history, 0, True)
    stopped = False

    def callback(phi: np.ndarray) -> None:
        nonlocal stopped
        stopped = on_step is not None and on_step(phi)
        if stopped:
            raise StopIteration

    found = minimize(
        value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        callback=callback,
        options={"maxiter": max_iter, "ftol": ftol},
    )
    return SolverResult(inner, found.x, history, int(found.nit), stopped or bool(found.success))
