"""Expectation maximisation with Anderson acceleration, and its stepwise form for streams.

One EM iteration is a map theta -> g(theta) that never lowers the objective. Anderson acceleration
extrapolates from the last few pairs (theta, g(theta)) by a small least-squares problem; a
candidate that lowers the objective, or that is no feasible parameter, is replaced by the plain EM
step, so that the objective is monotone like that of EM itself.

References
----------
Walker and Ni (2011), Anderson acceleration for fixed-point iterations, SIAM Journal on Numerical
Analysis 49(4). Cappe and Moulines (2009), On-line expectation-maximization algorithm for latent
data models, Journal of the Royal Statistical Society B 71(3).
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from skbilevel.solvers.result import SolverResult


class Evaluation(NamedTuple):
    """One E- and M-step at theta.

    Attributes
    ----------
    objective : float
        Objective at theta; -inf where theta is not feasible.
    image : Tensor of shape (p,)
        g(theta).
    monitored : dict of str to float
        Other quantities at theta that the history keeps.
    sums : Any
        What the M-step made the image of.
    """

    objective: float
    image: Tensor
    monitored: dict[str, float]
    sums: Any = None


@dataclass(frozen=True)
class EMResult(SolverResult):
    """A `SolverResult` with the sums at the last theta.

    ``inner`` is their M-step g(theta), or theta itself where g(theta) is not feasible.
    """

    sums: Any


EMStep = Callable[[Tensor], Evaluation]
_ROUNDING = 1e-9
# An extrapolated step can rise little where the next one rises far; two in a row seldom do.
_SMALL_RISES = 2
Past = deque[tuple[Tensor, Tensor]]
Sums = TypeVar("Sums", bound=Any)


def accelerated_em(
    step: EMStep,
    start: Tensor,
    *,
    max_iter: int,
    tol: float,
    window: int = 5,
    on_step: Callable[[EMResult], bool] | None = None,
) -> EMResult:
    """Maximise an objective by Anderson-accelerated EM.

    Parameters
    ----------
    step : callable
        ``step(theta) -> Evaluation``.
    start : Tensor of shape (p,)
        Feasible first theta.
    max_iter : int
        Most EM iterations; rejected candidates are not counted.
    tol : float
        Stop when the objective rises by less than this in two iterations in a row. It bounds
        steps, not the distance to the optimum, which can be many times as large.
    window : int, default=5
        Number of differences that the extrapolation uses; 0 is plain EM.
    on_step : callable, optional
        ``on_step(result) -> stop`` after every iteration, with the result if EM ended there.

    Returns
    -------
    EMResult
        ``history`` starts at ``start``, and its "objective" never falls. Not converged if EM
        left the feasible set, which only rounding can bring about.

    Raises
    ------
    ArithmeticError
        If ``start`` is not feasible.
    """
    evaluated = step(start)
    if evaluated.objective == -math.inf:
        raise ArithmeticError("EM cannot start: the first parameters are not feasible.")
    path = [evaluated]
    past: Past = deque([(start, evaluated.image)], maxlen=window + 1)
    converged, n_small = False, 0
    while len(path) <= max_iter and not converged:
        theta, evaluated = _advance(step, past, path[-1])
        rise = evaluated.objective - path[-1].objective
        if rise < 0:
            # Plain EM lowers the objective, or leaves the feasible set, only by rounding.
            converged = -rise <= _ROUNDING * (1 + abs(path[-1].objective))
            break
        n_small = n_small + 1 if rise < tol else 0
        converged = n_small == _SMALL_RISES
        past.append((theta, evaluated.image))
        path.append(evaluated)
        if on_step is not None and on_step(_result(path, evaluated.image, converged)):
            break
    theta, image = past[-1]
    return _result(path, theta if evaluated.objective == -math.inf else image, converged)


def _result(path: list[Evaluation], solution: Tensor, converged: bool) -> EMResult:
    history = {"objective": [evaluated.objective for evaluated in path]}
    for name in path[0].monitored:
        history[name] = [evaluated.monitored[name] for evaluated in path]
    return EMResult(solution, None, history, len(path) - 1, converged, path[-1].sums)


def _advance(step: EMStep, past: Past, last: Evaluation) -> tuple[Tensor, Evaluation]:
    """The extrapolated theta if it does not lower the objective, else the plain EM image."""
    if len(past) > 1:
        candidate = extrapolate(past)
        evaluated = step(candidate)
        if evaluated.objective >= last.objective:
            return candidate, evaluated
        newest = past.pop()
        past.clear()
        past.append(newest)
    return last.image, step(last.image)


def extrapolate(past: Past) -> Tensor:
    """Anderson's combination of the images whose combined residual g(theta) - theta is smallest.

    ``past`` holds at least two pairs (theta, g(theta)), oldest first; returns a theta, shape (p,).
    """
    thetas = torch.stack([theta for theta, _ in past], 1)
    images = torch.stack([image for _, image in past], 1)
    residuals = images - thetas
    differences = residuals.diff(dim=1)
    mixing = torch.linalg.lstsq(differences, residuals[:, -1:], driver="gelsd").solution
    return images[:, -1] - (images.diff(dim=1) @ mixing).squeeze(1)


def stepwise_weight(n_seen: float, n_batch: float, exponent: float = 0.6) -> float:
    """Weight of a new batch, (1 + n_seen / n_batch)^-exponent.

    With batches of one size this is the (t + 2)^-exponent of Cappe and Moulines for update
    t = 0, 1, ... after a first batch that was fitted; counted in rows it also holds for batches
    of unequal size.
    """
    return float((1.0 + n_seen / n_batch) ** -exponent)


def stepwise_sums(past: Sums, batch: Sums) -> Sums:
    """Sums over rows seen so far, (1 - w) of them per row from the past and w from the batch.

    Both are NamedTuples of sums whose ``n_rows`` counts their rows; w is `stepwise_weight`.
    """
    n_seen, n_batch = float(past.n_rows), float(batch.n_rows)
    weight, n_rows = stepwise_weight(n_seen, n_batch), n_seen + n_batch
    from_past, from_batch = (1 - weight) * n_rows / n_seen, weight * n_rows / n_batch
    return type(past)(*(from_past * p + from_batch * b for p, b in zip(past, batch, strict=True)))
