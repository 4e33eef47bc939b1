"""Newton's method for a weighted convex objective, and linear systems with its Hessian.

Steps and systems are solved by conjugate gradients, preconditioned with a Cholesky factor of one
block that all outputs of a linear model share. Where the objective is quadratic the block is
the whole Hessian, so that neither iterates. Elsewhere both are warm-started: weights that have
moved little need little.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skbilevel.numerics.linear_solve import LinearSolve, conjugate_gradient
from skbilevel.numerics.weighted_problem import InnerProblem, WeightedPoint, WeightedProblem

_MOST_STEPS, _TOLERANCE = 100, 1e-10
# Least decrease of a step, in that of a line, and its most halvings.
_ARMIJO, _MOST_HALVINGS = 1e-4, 30
# Systems of steps need no more accuracy than the steps; a factor is made anew where it takes more
# products than this.
_FORCING, _MOST_PRODUCTS, _LIMIT = 0.1, 12, 1000
_JITTER = 1e-12


@dataclass(frozen=True)
class Minimum:
    """Where an inner problem has been solved.

    Attributes
    ----------
    theta : Tensor of shape (p,)
    factor : Tensor of shape (q, q) or None
        Cholesky factor of the shared block of a quadratic problem with these weights. Of others
        its inverse, a preconditioner, which may be of weights before.
    adjoint : Tensor of shape (p,) or None
        The last solution of `adjoint`, a start for the next.
    converged : bool
    """

    theta: Tensor
    factor: Tensor | None = None
    adjoint: Tensor | None = None
    converged: bool = True


def minimum(
    problem: InnerProblem, weights: Tensor, start: Minimum, *, tol: float = _TOLERANCE
) -> Minimum:
    """argmin over theta of G(theta, w).

    Parameters
    ----------
    problem : InnerProblem
    weights : Tensor of shape (n,)
    start : Minimum
        Of other weights, or any theta.
    tol : float
        Of the norm of the gradient, relative to that at theta = 0.

    Returns
    -------
    Minimum
        ``converged`` says whether the tolerance was met.
    """
    origin = problem.at(torch.zeros_like(start.theta))
    if problem.is_quadratic:
        factor = _factor(origin, weights)
        theta = -_back_substituted(factor, origin.gradient(weights))
        return replace(start, theta=theta, factor=factor, converged=True)
    point, scale = problem.at(start.theta), float(origin.gradient(weights).norm())
    factor = _inverse(point, weights) if start.factor is None else start.factor
    gradient, length = _gradient(point, weights)
    for _ in range(_MOST_STEPS):
        if length <= tol * scale:
            return replace(start, theta=point.theta, factor=factor, converged=True)
        rtol = min(_FORCING, (length / scale) ** 0.5) if scale else _FORCING
        # The line search tells whether a step is good.
        found = _solve(point, weights, gradient, factor, rtol=max(rtol, tol / 10), certify=False)
        if found.n_iter > _MOST_PRODUCTS:
            factor = _inverse(point, weights)
        moved = _line_search(problem, point, weights, gradient, found.value)
        if moved is None:
            break
        point = moved
        gradient, length = _gradient(point, weights)
    is_solved = length <= tol * scale
    return replace(start, theta=point.theta, factor=factor, converged=is_solved)


def adjoint(
    problem: WeightedProblem, weights: Tensor, at: Minimum, *, rtol: float = _TOLERANCE
) -> Minimum:
    """The same minimum with v = H^-1 grad F as its ``adjoint``."""
    point = problem.at(at.theta)
    right = problem.target_gradient(at.theta)
    if problem.is_quadratic:
        factor = _factor(point, weights) if at.factor is None else at.factor
        return replace(at, adjoint=_back_substituted(factor, right), factor=factor)
    factor = _inverse(point, weights) if at.factor is None else at.factor
    found = _solve(point, weights, right, factor, rtol=rtol, x0=at.adjoint)
    if found.n_iter > _MOST_PRODUCTS:
        factor = _inverse(point, weights)
    solved = at.converged and found.converged
    return replace(at, adjoint=found.value, factor=factor, converged=solved)


def inverse_product(
    problem: InnerProblem, weights: Tensor, at: Minimum, right: Tensor, *, rtol: float = _TOLERANCE
) -> LinearSolve:
    """H^-1 right, (p,), at a minimum whose factor is of these weights, as `minimum` returns it."""
    point = problem.at(at.theta)
    if problem.is_quadratic:
        factor = _factor(point, weights) if at.factor is None else at.factor
        return LinearSolve(_back_substituted(factor, right), 0.0, 1, True, False)
    inverse = _inverse(point, weights) if at.factor is None else at.factor
    return _solve(point, weights, right, inverse, rtol=rtol)


def _gradient(point: WeightedPoint, weights: Tensor) -> tuple[Tensor, float]:
    gradient = point.gradient(weights)
    return gradient, float(gradient.norm())


def _factor(point: WeightedPoint, weights: Tensor) -> Tensor:
    """Cholesky factor of the shared block, which gets a ridge only if rounding demands one."""
    matrix = point.shared_matrix(weights)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        matrix.diagonal().add_(_JITTER * float(matrix.diagonal().max()))
        factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise FloatingPointError("the Hessian of the weighted loss is not positive definite")
    return factor


def _inverse(point: WeightedPoint, weights: Tensor) -> Tensor:
    """Of the shared block: a product with few columns is faster than a substitution."""
    return torch.cholesky_inverse(_factor(point, weights))


def _back_substituted(factor: Tensor, right: Tensor) -> Tensor:
    """The solution for all outputs, (p k,), with a factor of the block that they share."""
    return torch.cholesky_solve(right.view(len(factor), -1), factor).reshape(-1)


def _solve(
    point: WeightedPoint,
    weights: Tensor,
    right: Tensor,
    inverse: Tensor,
    *,
    rtol: float,
    x0: Tensor | None = None,
    certify: bool = True,
) -> LinearSolve:
    return conjugate_gradient(
        lambda v: point.product(weights, v),
        right,
        x0=x0,
        preconditioner=lambda r: (inverse @ r.view(len(inverse), -1)).reshape(-1),
        rtol=rtol,
        max_iter=_LIMIT,
        certify=certify,
    )


def _line_search(
    problem: InnerProblem,
    point: WeightedPoint,
    weights: Tensor,
    gradient: Tensor,
    direction: Tensor,
) -> WeightedPoint | None:
    """The first point along the step, halved until it pays; None where rounding hides a gain."""
    value, slope = float(point.value(weights)), float(gradient.dot(direction))
    step = 1.0
    for _ in range(_MOST_HALVINGS):
        moved = problem.at(point.theta - step * direction)
        if float(moved.value(weights)) <= value - _ARMIJO * step * slope:
            return moved
        # Close to the minimum values are equal up to rounding, and gradients still tell.
        if float(moved.gradient(weights).norm()) < 0.5 * float(gradient.norm()):
            return moved
        step /= 2
    return None
