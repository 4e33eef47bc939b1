"""The outer problem of a tilt: learnt, guarded, and accepted only if most targets agree.

The solver sees the objective of an outer vector and the gains of targets as callables. Targets
that a free alternative explains much better than the tilt are dropped, and it is learnt again
without them. What remains has to be worth it, on average and for most targets; else the answer is
no tilt. All this is decided under a narrow prior. A wide one fits whatever drives the mask; only
once a tilt is believed may it take the place of the narrow one, if the objective says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from skbilevel.solvers.result import SolverResult

# (theta (p,), width of the prior, which targets count (t,)) -> scalar with a gradient
Objective = Callable[[Tensor, float, Tensor], Tensor]
# (theta, width) -> gains (t,) in nats
Gains = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Rule:
    """When a tilt is learnt from targets, and when it is believed.

    Attributes
    ----------
    widths : sequence of float
        Of the prior: the first decides, and the others can take its place after that.
    least_gain : float
        Nats per target, each capped, that a tilt needs.
    least_share : float
        Share of the targets that have to gain.
    free_gain : float
        A target is dropped if the free alternative gains more nats than this on it, and the tilt
        less than half as much.
    max_rounds : int
        Of dropping.
    max_iter : int
        Of L-BFGS.
    """

    widths: Sequence[float] = (0.5, 1.5)
    least_gain: float = 1.5
    least_share: float = 0.6
    free_gain: float = 4.0
    max_rounds: int = 3
    max_iter: int = 40


class Tilt(NamedTuple):
    """The outer solution.

    Attributes
    ----------
    theta : ndarray of shape (p,)
        0 if nothing was accepted.
    width : float
        The one that was chosen.
    kept : ndarray of shape (t,), bool
        Targets that were not dropped.
    is_accepted : bool
    """

    theta: np.ndarray
    width: float
    kept: np.ndarray
    is_accepted: bool


def learn_tilt(
    objective: Objective,
    gains: Gains,
    capped: Callable[[Tensor], Tensor],
    free_gains: Tensor,
    n_outer: int,
    rule: Rule,
) -> SolverResult:
    """Minimise the objective, drop targets, and decide.

    Parameters
    ----------
    objective, gains : callable
    capped : callable
        What a gain counts for, (t,) to (t,).
    free_gains : Tensor of shape (t,)
        Of the free alternative.
    n_outer : int
        Length p of theta.
    rule : Rule

    Returns
    -------
    SolverResult
        ``outer`` is a `Tilt`; ``inner`` the gains of all targets, (t,), before the decision.
        ``history["objective"]`` has one value for every round.
    """
    kept = torch.ones(len(free_gains), dtype=torch.bool)
    history: list[float] = []
    for n_dropping in range(rule.max_rounds + 1):
        best = _minimum(objective, rule.widths[0], kept, n_outer, rule.max_iter)
        history.append(best.value)
        gained = gains(best.theta, best.width).detach()
        dropped = kept & (free_gains > rule.free_gain) & (gained < free_gains / 2)
        if n_dropping == rule.max_rounds or not dropped.any():
            break
        kept = kept & ~dropped
    accepted = _is_worth_it(gained[kept], capped, rule)
    if accepted:
        wider = (
            _minimum(objective, width, kept, n_outer, rule.max_iter) for width in rule.widths[1:]
        )
        best = min((best, *wider), key=lambda found: found.value)
        gained = gains(best.theta, best.width).detach()
    theta = best.theta.numpy() if accepted else np.zeros(n_outer)
    tilt = Tilt(theta, best.width, kept.numpy(), accepted)
    return SolverResult(gained, tilt, {"objective": history}, best.n_iter, best.converged)


class _Minimum(NamedTuple):
    value: float
    theta: Tensor
    width: float
    n_iter: int
    converged: bool


def _minimum(
    objective: Objective, width: float, kept: Tensor, n_outer: int, max_iter: int
) -> _Minimum:
    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(x, requires_grad=True)
        value = objective(theta, width, kept)
        (gradient,) = torch.autograd.grad(value, theta)
        return float(value.detach()), gradient.numpy()

    found = minimize(
        value_and_gradient,
        np.zeros(n_outer),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter},
    )
    theta = torch.from_numpy(found.x)
    return _Minimum(float(found.fun), theta, width, int(found.nit), bool(found.success))


def _is_worth_it(gained: Tensor, capped: Callable[[Tensor], Tensor], rule: Rule) -> bool:
    if len(gained) == 0:
        return False
    enough = float(capped(gained).sum()) >= rule.least_gain * len(gained)
    return enough and float((gained > 0).double().mean()) >= rule.least_share
