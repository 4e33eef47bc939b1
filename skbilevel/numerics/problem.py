"""The contract between objectives and solvers: two scalar functions of two flat vectors.

``theta`` holds the inner variables (a student, a linear model), ``phi`` the outer ones (a
teacher, the weights of rows), and the problem is ::

    minimise over phi    h(phi) = outer(theta*(phi), phi)
    where                theta*(phi) = argmin over theta of inner(theta, phi).

Both functions are deterministic: what is random is drawn before and closed over.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["BilevelProblem", "CompositeLoss", "ScalarFunction"]

ScalarFunction = Callable[[Tensor, Tensor], Tensor]
"""``f(theta, phi) -> scalar``; (p,) and (q,) to ()."""


@dataclass(frozen=True)
class BilevelProblem:
    """Inner and outer objective.

    Attributes
    ----------
    inner, outer : callable
        ``(theta, phi) -> scalar`` on flat tensors of shapes (p,) and (q,).
    """

    inner: ScalarFunction
    outer: ScalarFunction


@dataclass(frozen=True)
class CompositeLoss:
    """``f(theta, phi) = loss(model(theta, phi), phi) + ridge/2 |theta|^2``, its pieces kept apart.

    The pieces are what Gauss-Newton curvature is made of.

    Attributes
    ----------
    model : callable
        ``(theta, phi) -> outputs``, of any shape.
    loss : callable
        ``(outputs, phi) -> scalar``.
    ridge : float, default=0.0
        The one lambda, always as ``lambda/2 |theta|^2``. It belongs to this function, so that its
        minimiser, its Hessian (+ lambda I) and its cross derivative agree. A system with that
        Hessian then needs no damping for it: with a ridge here, the damping of conjugate
        gradients is 0; never both.
    """

    model: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    ridge: float = 0.0

    def __call__(self, theta: Tensor, phi: Tensor) -> Tensor:
        return self.of_outputs(self.model(theta, phi), theta, phi)

    def of_outputs(self, outputs: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        """f where the model has been run."""
        return self.loss(outputs, phi) + self.ridge / 2 * theta.dot(theta)
