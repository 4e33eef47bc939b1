"""Losses of linear models as functions of their outputs z = X theta, row by row.

Second-order methods and hypergradients of linear models need no more than this: the slope of a
row's loss in its outputs, and the product of its Hessian in the outputs with a direction.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class LinearLoss(NamedTuple):
    """A convex loss l(z, y) of outputs and labels, both (n, k).

    Attributes
    ----------
    value : callable
        ``(outputs, labels) -> l``, (n,).
    slope : callable
        ``(outputs, labels) -> dl/dz``, (n, k).
    curved : callable
        ``outputs -> (u -> (d2l/dz2) u)``, for directions u (n, k); it does not depend on labels.
    curvature : callable
        ``outputs -> c``, (n,): the mean of the diagonal of d2l/dz2.
    is_quadratic : bool
        Whether d2l/dz2 is the identity.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    curved: Callable[[Tensor], Callable[[Tensor], Tensor]]
    curvature: Callable[[Tensor], Tensor]
    is_quadratic: bool


def _squared(outputs: Tensor, labels: Tensor) -> Tensor:
    """|z - y|^2 / 2."""
    return (outputs - labels).square().sum(dim=1) / 2


SQUARED = LinearLoss(
    _squared,
    lambda outputs, labels: outputs - labels,
    lambda outputs: lambda directions: directions,
    lambda outputs: torch.ones_like(outputs[:, 0]),
    True,
)


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """log sum_c exp z_c - y'z in nats, for labels that are shares of the classes."""
    return outputs.logsumexp(dim=1) - (labels * outputs).sum(dim=1)


def _cross_entropy_curved(outputs: Tensor) -> Callable[[Tensor], Tensor]:
    """u -> (diag P - P P') u with P = softmax(z)."""
    shares = outputs.softmax(dim=1)

    def curved(directions: Tensor) -> Tensor:
        moved = shares * directions
        return moved - shares * moved.sum(dim=1, keepdim=True)

    return curved


def _cross_entropy_curvature(outputs: Tensor) -> Tensor:
    shares = outputs.softmax(dim=1)
    return (shares * (1 - shares)).mean(dim=1)


CROSS_ENTROPY = LinearLoss(
    _cross_entropy,
    lambda outputs, labels: outputs.softmax(dim=1) - labels,
    _cross_entropy_curved,
    _cross_entropy_curvature,
    False,
)
