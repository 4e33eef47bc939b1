"""The gradient of a bilevel problem by the implicit function theorem.

References
----------
A. Rajeswaran, C. Finn, S. Kakade, S. Levine (2019). Meta-learning with implicit gradients.
NeurIPS. arXiv 1909.04630.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from skbilevel.numerics.derivatives import (
    GradientGraph,
    gauss_newton_at,
    gauss_newton_matrix_at,
    value_and_grad,
)
from skbilevel.numerics.linear_solve import (
    LinearSolve,
    Matrix,
    Operator,
    conjugate_gradient,
    damped,
)
from skbilevel.numerics.problem import BilevelProblem, CompositeLoss

__all__ = ["CURVATURES", "Hypergradient", "implicit_gradient"]

Curvature = Callable[[GradientGraph], Operator]
"""Makes the operator ``v -> A v`` from the graph of ``d_theta inner``."""
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Hypergradient:
    """The two parts of ``dh/dphi``, for ``h(phi) = outer(theta*(phi), phi)``.

    Attributes
    ----------
    direct : Tensor of shape (q,)
        ``d_phi outer``, theta held fixed.
    implicit : Tensor of shape (q,)
        What phi does through ``theta*(phi)``.
    adjoint : LinearSolve
        The solution u of ``(d2_theta inner) u = d_theta outer``, with its residual.
    inner_value, outer_value : Tensor, scalar
        Both objectives.
    inner_gradient, outer_gradient : Tensor of shape (p,)
        ``d_theta inner``, which is 0 at a solution, and ``d_theta outer``.
    """

    direct: Tensor
    implicit: Tensor
    adjoint: LinearSolve
    inner_value: Tensor
    outer_value: Tensor
    inner_gradient: Tensor
    outer_gradient: Tensor

    @property
    def total(self) -> Tensor:
        """``direct + implicit``; (q,)."""
        return self.direct + self.implicit


def _hessian(graph: GradientGraph) -> Operator:
    """The exact curvature, which can be indefinite away from a minimum."""
    return graph.hvp


def _gauss_newton(graph: GradientGraph) -> Operator:
    """``J' B J + ridge I``, never negative for a convex loss."""
    inner, outputs, loss = _apart(graph, "gauss_newton")
    return damped(gauss_newton_at(outputs, loss, graph.theta), inner.ridge)


def _gauss_newton_matrix(graph: GradientGraph) -> Operator:
    """The same as a matrix, which can be factorised."""
    inner, outputs, loss = _apart(graph, "exact")
    matrix = gauss_newton_matrix_at(outputs, loss, graph.theta)
    matrix.diagonal().add_(inner.ridge)
    return Matrix(matrix)


def _apart(graph: GradientGraph, name: str) -> tuple[CompositeLoss, Tensor, Function]:
    """The inner objective, the outputs of its model, and its loss with phi held fixed."""
    inner, phi = graph.f, graph.phi.detach()
    if not isinstance(inner, CompositeLoss) or graph.outputs is None:
        raise TypeError(
            f"curvature={name!r} needs the model and the loss apart: the inner objective "
            f"must be a CompositeLoss, got {type(inner).__name__}."
        )
    return inner, graph.outputs, lambda z: inner.loss(z, phi)


CURVATURES: dict[str, Curvature] = {
    "hessian": _hessian,
    "gauss_newton": _gauss_newton,
    "exact": _gauss_newton_matrix,
}
"""Name -> factory of the operator that stands for ``d2_theta inner``."""


def implicit_gradient(
    problem: BilevelProblem,
    theta: Tensor,
    phi: Tensor,
    *,
    curvature: str | Curvature = "hessian",
    solve: Callable[[Operator, Tensor], LinearSolve] = conjugate_gradient,
) -> Hypergradient:
    """Gradient of ``h(phi) = outer(theta*(phi), phi)`` at a solution theta of the inner problem.

    With A the curvature of the inner objective, as in Rajeswaran et al. (2019, arXiv
    1909.04630) but for any dependence on phi ::

        A u      = d_theta outer
        direct   = d_phi outer
        implicit = - d_phi <d_theta inner, u>

    It is exact if ``theta = theta*(phi)`` and A is the Hessian. The products with the Hessian and
    the cross derivative share one graph.

    Parameters
    ----------
    problem : BilevelProblem
    theta : Tensor of shape (p,)
        The inner solution, or an iterate near it.
    phi : Tensor of shape (q,)
    curvature : {"hessian", "gauss_newton", "exact"} or callable, default="hessian"
        A key of `CURVATURES`, or a function of the `GradientGraph` of the inner objective that
        returns the operator ``v -> A v``. "gauss_newton" needs a `CompositeLoss` as inner
        objective, and so does "exact", the same as a matrix, for `direct_solve`.
    solve : callable, default=conjugate_gradient
        ``(operator, b) -> LinearSolve``; bind its options by ``functools.partial``.

    Returns
    -------
    Hypergradient
    """
    outer_value, (outer_theta, direct) = value_and_grad(problem.outer, theta, phi)
    graph = GradientGraph(problem.inner, theta, phi)
    operator = _named_curvature(curvature)(graph)
    adjoint = solve(operator, outer_theta)
    implicit = -graph.cross_vjp(adjoint.value)
    return Hypergradient(
        direct,
        implicit,
        adjoint,
        graph.value,
        outer_value,
        graph.gradient.detach(),
        outer_theta,
    )


def _named_curvature(curvature: str | Curvature) -> Curvature:
    if not isinstance(curvature, str):
        return curvature
    if curvature not in CURVATURES:
        raise ValueError(f"curvature must be one of {sorted(CURVATURES)}, got {curvature!r}.")
    return CURVATURES[curvature]
