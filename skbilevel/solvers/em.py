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
from typing import Any, NamedTuple

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
    ascent : float
        A lower bound on how far the objective rises from theta to g(theta): the rise of the
        expected complete log-likelihood, which costs no pass over the data.
    """

    objective: float
    image: Tensor
    monitored: dict[str, float]
    sums: Any = None
    ascent: float = 0.0


@dataclass(frozen=True)
class EMResult(SolverResult):
    """A `SolverResult` with the sums at the last theta.

    ``inner`` is their M-step g(theta), or theta itself where g(theta) is not feasible.
    """

    sums: Any


EMStep = Callable[[Tensor], Evaluation]
_ROUNDING = 1e-9
Past = deque[tuple[Tensor, Tensor]]


def accelerated_em(
    step: EMStep,
    start: Tensor,
    *,
    max_iter: int,
    tol: float,
    window: int = 5,
    on_step: Callable[[Tensor], bool] | None = None,
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
        Stop when the objective rises by less than this, and so does the bound on its next rise.
        It bounds a step, not the distance to the optimum, which can be many times as large.
    window : int, default=5
        Number of differences that the extrapolation uses; 0 is plain EM.
    on_step : callable, optional
        ``on_step(g(theta)) -> stop`` after every iteration.

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
    converged = False
    while len(path) <= max_iter and not converged:
        theta, evaluated = _advance(step, past, path[-1])
        if evaluated.objective < path[-1].objective:
            # Plain EM lowers the objective, or leaves the feasible set, only by rounding.
            fall = path[-1].objective - evaluated.objective
            converged = fall <= _ROUNDING * (1 + abs(path[-1].objective))
            break
        past.append((theta, evaluated.image))
        # An extrapolated step can rise little where the next EM step would rise far.
        converged = max(evaluated.objective - path[-1].objective, evaluated.ascent) < tol
        path.append(evaluated)
        if on_step is not None and on_step(evaluated.image):
            break
    theta, image = past[-1]
    solution = theta if evaluated.objective == -math.inf else image
    history, n_iter = _history(path), len(path) - 1
    return EMResult(solution, None, history, n_iter, converged, path[-1].sums)


def _history(path: list[Evaluation]) -> dict[str, list[float]]:
    history = {"objective": [evaluated.objective for evaluated in path]}
    for name in path[0].monitored:
        history[name] = [evaluated.monitored[name] for evaluated in path]
    return history


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
