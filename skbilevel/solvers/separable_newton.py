"""Newton's method for many small concave problems side by side."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Curvature is raised by this share of its mean diagonal, so that flat directions stay put.
_RIDGE = 1e-3
_HALVINGS = 6
_SHRINKING = 0.4


class Quadratic(NamedTuple):
    """Value (d,), gradient (d, p) and curvature (d, p, p), minus the Hessian or an approximation
    that is not negative, of d problems."""

    value: Tensor
    gradient: Tensor
    curvature: Tensor


def newton_step(
    evaluate: Callable[[Tensor], Quadratic], start: Tensor, largest: float = 0.7
) -> Tensor:
    """One step of each problem that does not lower its value.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(theta) -> Quadratic`` for all problems at once.
    start : Tensor of shape (d, p)
        Current parameters.
    largest : float, default=0.7
        Most that a parameter moves.

    Returns
    -------
    Tensor of shape (d, p)
        A problem none of whose shortened steps keeps the value stays where it was.
    """
    here = evaluate(start)
    # A problem without any curvature, or data, stays where it is.
    scale = here.curvature.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    ridge = _RIDGE * scale[:, None, None] * torch.eye(start.shape[1], dtype=start.dtype)
    step = torch.linalg.solve(here.curvature + ridge, here.gradient).clamp(-largest, largest)
    length = torch.ones(len(start), 1, dtype=start.dtype)
    for _ in range(_HALVINGS):
        worse = evaluate(start + length * step).value < here.value
        if not worse.any():
            return start + length * step
        length = torch.where(worse[:, None], _SHRINKING * length, length)
    worse = evaluate(start + length * step).value < here.value
    return torch.where(worse[:, None], start, start + length * step)
