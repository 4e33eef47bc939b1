"""The contract of reweighting: an objective of parameters and weights, seen by solvers."""

from typing import Protocol

from torch import Tensor


class WeightedPoint(Protocol):
    """A weighted objective at one theta, (p,), for any weights, (n,)."""

    @property
    def theta(self) -> Tensor:
        """(p,)."""

    def value(self, weights: Tensor) -> Tensor:
        """G(theta, w), a scalar."""

    def gradient(self, weights: Tensor) -> Tensor:
        """d_theta G, (p,)."""

    def product(self, weights: Tensor, v: Tensor) -> Tensor:
        """(d2_theta G) v, (p,)."""

    def alignment(self, v: Tensor) -> Tensor:
        """-<grad l_i, v> of every row, (n,)."""

    def shared_matrix(self, weights: Tensor) -> Tensor:
        """A matrix (q, q) whose Kronecker product with an identity is near d2_theta G."""


class InnerProblem(Protocol):
    """A weighted objective."""

    @property
    def is_quadratic(self) -> bool:
        """Whether it is one in theta, with `WeightedPoint.shared_matrix` as its whole Hessian."""

    def at(self, theta: Tensor) -> WeightedPoint:
        """It at theta."""


class WeightedProblem(InnerProblem, Protocol):
    """Weighted inner objective, and the outer one that judges theta."""

    @property
    def n_rows(self) -> int:
        """n."""

    @property
    def n_parameters(self) -> int:
        """p."""

    def target_loss(self, theta: Tensor) -> Tensor:
        """F, a scalar."""

    def target_gradient(self, theta: Tensor) -> Tensor:
        """grad F, (p,)."""
