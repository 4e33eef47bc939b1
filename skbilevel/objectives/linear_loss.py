"""Losses of linear models as functions of their outputs z = X theta, row by row.

Second-order methods and hypergradients of linear models need no more than this: the slope of a
row's loss in its outputs, and the product of its Hessian in the outputs with a direction; errors
of hypergradients need its third derivative along two. All of them are made of the same
exponentials, which a `Response` computes once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Response(Protocol):
    """A convex loss l(z, y) at outputs and labels, both (n, k)."""

    @property
    def value(self) -> Tensor:
        """l, (n,)."""

    @property
    def slope(self) -> Tensor:
        """dl/dz, (n, k)."""

    @property
    def curvature(self) -> Tensor:
        """Mean of the diagonal of d2l/dz2, (n,)."""

    def curved(self, directions: Tensor) -> Tensor:
        """(d2l/dz2) u, for directions u (n, k)."""

    def bent(self, directions: Tensor, others: Tensor) -> Tensor:
        """(d3l/dz3)[u, v], (n, k), for directions u and v (n, k)."""


class LinearLoss(NamedTuple):
    """A convex loss.

    Attributes
    ----------
    at : callable
        ``(outputs, labels) -> Response``.
    is_quadratic : bool
        Whether d2l/dz2 is the identity.
    """

    at: Callable[[Tensor, Tensor], Response]
    is_quadratic: bool


@dataclass(frozen=True)
class _Squared:
    """|z - y|^2 / 2."""

    outputs: Tensor
    labels: Tensor

    @cached_property
    def slope(self) -> Tensor:
        return self.outputs - self.labels

    @cached_property
    def value(self) -> Tensor:
        return self.slope.square().sum(dim=1) / 2

    @property
    def curvature(self) -> Tensor:
        return torch.ones_like(self.outputs[:, 0])

    def curved(self, directions: Tensor) -> Tensor:
        return directions

    def bent(self, directions: Tensor, others: Tensor) -> Tensor:
        return torch.zeros_like(directions)


@dataclass(frozen=True)
class _CrossEntropy:
    """log sum_c exp z_c - y'z in nats, for labels that are shares of the classes."""

    outputs: Tensor
    labels: Tensor

    @cached_property
    def _log_total(self) -> Tensor:
        # Of the transpose: sums over classes of all rows at once are several times as fast.
        return self.outputs.T.logsumexp(dim=0)

    @cached_property
    def _shares(self) -> Tensor:
        """P = softmax(z)."""
        return (self.outputs - self._log_total[:, None]).exp()

    @cached_property
    def value(self) -> Tensor:
        return self._log_total - (self.labels * self.outputs).sum(dim=1)

    @cached_property
    def slope(self) -> Tensor:
        return self._shares - self.labels

    @property
    def curvature(self) -> Tensor:
        return (self._shares * (1 - self._shares)).mean(dim=1)

    def curved(self, directions: Tensor) -> Tensor:
        """(diag P - P P') u."""
        mean = (self._shares * directions).sum(dim=1, keepdim=True)
        return self._shares * (directions - mean)

    def bent(self, directions: Tensor, others: Tensor) -> Tensor:
        """Q * (u - P'u) - P * (Q'u), with Q = (diag P - P P') v, how P moves along v."""
        moved = self.curved(others)
        mean = (self._shares * directions).sum(dim=1, keepdim=True)
        turned = (moved * directions).sum(dim=1, keepdim=True)
        return moved * (directions - mean) - self._shares * turned


SQUARED = LinearLoss(_Squared, True)
CROSS_ENTROPY = LinearLoss(_CrossEntropy, False)
