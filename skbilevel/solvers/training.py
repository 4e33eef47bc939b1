"""Stochastic gradient descent over epochs of minibatches.

AdamW with decoupled weight decay (Loshchilov and Hutter, 2019, ICLR), a linear warm-up and a
cosine to zero, and gradients whose norm is cut. The solver sees a loss of a batch, tensors and
numbers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skbilevel.solvers.result import SolverResult


class ParameterGroup(NamedTuple):
    """Tensors that are trained in place, and the weight decay of their coordinates."""

    tensors: Sequence[Tensor]
    weight_decay: float


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes
    ----------
    n_epochs : int
    n_batches : int
        Of an epoch.
    learning_rate : float
        The largest one.
    n_warm_up : int
        Steps in which the rate rises to it.
    largest_norm : float
        Longer gradients are cut to it.
    """

    n_epochs: int
    n_batches: int
    learning_rate: float
    n_warm_up: int = 50
    largest_norm: float = 5.0

    def share(self, step: int) -> float:
        """Of the largest learning rate, at a step counted from 0."""
        n_steps = self.n_epochs * self.n_batches
        warm_up = min(self.n_warm_up, max(1, n_steps // 10))
        rising = min(1.0, (step + 1) / warm_up)
        return rising * 0.5 * (1 + math.cos(math.pi * step / max(n_steps, 1)))


def train(
    loss: Callable[[Any], Tensor],
    batches: Callable[[], Iterable[Any]],
    groups: Sequence[ParameterGroup],
    schedule: Schedule,
    on_epoch: Callable[[dict[str, list[float]]], bool] | None = None,
) -> SolverResult:
    """Minimise the mean loss of the batches in place.

    Parameters
    ----------
    loss : callable
        ``loss(batch)``, a scalar with a gradient.
    batches : callable
        ``batches()`` gives the batches of one epoch.
    groups : sequence of ParameterGroup
    schedule : Schedule
    on_epoch : callable, optional
        ``on_epoch(history) -> stop`` after every epoch.

    Returns
    -------
    SolverResult
        ``inner`` holds the tensors of the groups, ``history["loss"]`` the mean loss of each epoch.
        ``converged`` is False only if ``on_epoch`` stopped the loop.

    Raises
    ------
    FloatingPointError
        If the loss of a batch or its gradient is not finite.
    """
    tensors = [tensor for group in groups for tensor in group.tensors]
    settings: Any = [
        {"params": list(group.tensors), "weight_decay": group.weight_decay} for group in groups
    ]
    # One fused kernel: the networks are small, and calls are most of what a step costs.
    optimizer = torch.optim.AdamW(settings, lr=schedule.learning_rate, fused=True)
    history: dict[str, list[float]] = {"loss": []}
    stopped, step = False, 0
    for _ in range(schedule.n_epochs):
        losses = []
        for batch in batches():
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * schedule.share(step)
            value = loss(batch)
            optimizer.zero_grad()
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(tensors, schedule.largest_norm)
            losses.append(_finite(value, norm))
            optimizer.step()
            step += 1
        history["loss"].append(sum(losses) / len(losses))
        stopped = on_epoch is not None and on_epoch(history)
        if stopped:
            break
    return SolverResult(tensors, None, history, len(history["loss"]), not stopped)


def _finite(value: Tensor, norm: Tensor) -> float:
    if not (math.isfinite(number := float(value.detach())) and math.isfinite(float(norm))):
        raise FloatingPointError(f"the loss of a batch is {number}, its gradient {float(norm)}")
    return number
