"""Linear systems with an operator that is only known through its products.

References
----------
M. R. Hestenes, E. Stiefel (1952). Methods of conjugate gradients for solving linear systems.
J. Nocedal, S. J. Wright (2006). Numerical Optimization, algorithms 5.2, 5.3 and 7.1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearSolve", "Matrix", "Operator", "conjugate_gradient", "damped", "direct_solve"]

Operator = Callable[[Tensor], Tensor]
"""The product ``v -> A v`` with a symmetric matrix; (n,) to (n,)."""


@dataclass(frozen=True)
class LinearSolve:
    """An approximate solution ``x`` of ``A x = b`` and how far it can be trusted.

    Attributes
    ----------
    value : Tensor of shape (n,)
        The last iterate, without a graph.
    residual_norm : float
        ``|b - A x|``, computed from the value and not by the recursion of the solver, unless that
        was asked for.
    n_iter : int
        Steps taken.
    converged : bool
        Whether ``residual_norm`` is within the tolerance.
    negative_curvature : bool
        Whether the solver stopped at a direction with ``p'Ap <= 0``: A is not positive definite.
    """

    value: Tensor
    residual_norm: float
    n_iter: int
    converged: bool
    negative_curvature: bool


@dataclass(frozen=True)
class Matrix:
    """An operator whose matrix (n, n) is at hand."""

    entries: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        return self.entries @ v


def direct_solve(operator: Operator, b: Tensor) -> LinearSolve:
    """Solve ``A x = b`` by a Cholesky factorisation, for a `Matrix`.

    Raises
    ------
    TypeError
        If the operator is not a `Matrix`.
    torch.linalg.LinAlgError
        If it is not positive definite.
    """
    if not isinstance(operator, Matrix):
        raise TypeError(f"direct_solve needs a Matrix, got {type(operator).__name__}.")
    b, factor = b.detach(), torch.linalg.cholesky(operator.entries)
    x = torch.cholesky_solve(b.unsqueeze(1), factor).squeeze(1)
    residual_norm = _norm(b - operator(x))
    return LinearSolve(x, residual_norm, 1, residual_norm <= _default_rtol(b) * _norm(b), False)


def damped(operator: Operator, damping: float) -> Operator:
    """``v -> A v + damping v``."""
    return lambda v: operator(v) + damping * v


def conjugate_gradient(
    operator: Operator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: Operator | None = None,
    max_iter: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    damping: float = 0.0,
    certify: bool = True,
) -> LinearSolve:
    """Solve ``(A + damping I) x = b`` by preconditioned conjugate gradients.

    Parameters
    ----------
    operator : callable
        ``v -> A v`` for a symmetric A, on flat tensors of the dtype and device of `b`.
    b : Tensor of shape (n,)
        Right-hand side.
    x0 : Tensor of shape (n,), default=None
        Start; zeros if None, or if `b` is zero: the solution is then 0 whatever the start.
    preconditioner : callable, default=None
        ``r -> M r`` with a symmetric positive definite M, near the inverse of A.
    max_iter : int, default=None
        Most steps taken; 10 n if None: rounding makes n too few for condition numbers from 1e3.
    rtol, atol : float
        Converged when ``|b - A x| <= max(rtol |b|, atol)``. An `rtol` of None is the square root
        of the machine epsilon: 1.5e-8 in float64, 3.5e-4 in float32.
    damping : float, default=0.0
        Added to the diagonal. A ridge that is already part of A is not to be repeated here.
    certify : bool, default=True
        Compute the residual from the value, by one more product. False is for a step that is put
        to a test of its own: the residual is then that of the recursion.

    Returns
    -------
    LinearSolve
        Its residual is that of the damped system. At a direction of curvature ``p'Ap <= 0``, or
        at a step that is not finite, the iterate reached so far is returned: the start, if that
        happens at the first step.
    """
    system, b = damped(operator, damping), b.detach()
    tolerance = max((_default_rtol(b) if rtol is None else rtol) * _norm(b), atol)
    start = torch.zeros_like(b) if x0 is None or not b.any() else x0.detach()
    residual = b - system(start).detach() if start.any() else b
    steps = 10 * b.numel() if max_iter is None else max_iter
    x, residual, n_iter, negative_curvature = _iterate(
        system, start, residual, preconditioner or _identity, steps, tolerance
    )
    # The recursive residual drifts from the true one, and hides a bad operator: it cannot certify.
    residual_norm = _norm(b - system(x).detach() if certify else residual)
    return LinearSolve(x, residual_norm, n_iter, residual_norm <= tolerance, negative_curvature)


def _iterate(
    system: Operator, x: Tensor, r: Tensor, precondition: Operator, steps: int, tolerance: float
) -> tuple[Tensor, Tensor, int, bool]:
    """Iterate, its residual, steps taken, and whether a direction of nonpositive curvature ended
    them."""
    largest = torch.finfo(x.dtype).max
    x, r, p, rz_before = x.clone(), r.clone(), torch.zeros_like(x), 1.0
    for n_iter in range(steps):
        if _norm(r) <= tolerance:
            return x, r, n_iter, False
        z = precondition(r).detach()
        rz = float(r.dot(z))
        p = torch.add(z, p, alpha=_quotient(rz, rz_before, largest))
        product = system(p).detach()
        curvature = float(p.dot(product))
        step = _quotient(rz, curvature, largest)
        # Negated, so that a NaN stops the loop too.
        if not (curvature > 0 and math.isfinite(step)):
            return x, r, n_iter, curvature <= 0
        x.add_(p, alpha=step)
        r.sub_(product, alpha=step)
        rz_before = rz
    return x, r, steps, False


def _quotient(a: float, b: float, largest: float) -> float:
    """a / b, or NaN where the type of a tensor cannot hold it."""
    value = a / b if b else math.nan
    return value if abs(value) <= largest else math.nan


def _identity(v: Tensor) -> Tensor:
    return v


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v))


def _default_rtol(b: Tensor) -> float:
    return torch.finfo(b.dtype).eps ** 0.5
