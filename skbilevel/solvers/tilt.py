"""The outer problem of a tilt: learnt, guarded, and accepted only if most targets agree.

The solver sees the objective of an outer vector and the gains of targets as callables. Targets
that a free alternative explains much better than the tilt are dropped, and it is learnt again
without them. What remains has to be worth it, on average and for most targets; it has to be
evident, whatever the number of outer variables; and it has to agree with what it was not learnt
from. Else the answer is no tilt. All this is decided under a narrow prior. A wide one fits
whatever drives the mask; only once a tilt is believed may it take the place of the narrow one, if
the evidence says so.

The evidence is that of Laplace, log of the ratio of marginal likelihoods with and without a tilt,
where J is the objective, which holds a standard normal prior of theta and is 0 without a tilt ::

    -J(theta) - 1/2 log det J''(theta)

If gains were log-likelihood ratios, evidence above log(1/p) would turn up without a tilt with a
probability below p, for any number of targets and outer variables (Markov's inequality).
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
# (theta, width) -> how well that agrees with what it is not learnt from: at most 1, and in
# standard errors
Agreement = Callable[[Tensor, float], tuple[float, float]]


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
    least_evidence : float
        Nats that a tilt needs.
    least_agreement, least_score : float
        That a tilt needs: its agreement, and the standard errors of that. A tilt is looked for, so
        that chance gets to three or four.
    free_gain, free_share : float
        A target is dropped if the free alternative gains more nats than this on it, and the tilt
        less than ``free_share`` as much.
    max_rounds : int
        Of dropping.
    max_iter : int
        Of L-BFGS.
    """

    widths: Sequence[float] = (0.5, 1.5)
    least_gain: float = 2.5
    least_share: float = 0.6
    least_evidence: float = 4.0
    least_agreement: float = 1 / 3
    least_score: float = 5.0
    free_gain: float = 4.0
    free_share: float = 1 / 3
    max_rounds: int = 3
    max_iter: int = 40


class Support(NamedTuple):
    """What speaks for a tilt; all 0 where every target was dropped.

    Attributes
    ----------
    gain_per_target : float
        Nats, each capped, of the kept targets.
    share : float
        Of the kept targets that gain.
    evidence : float
    agreement, score : float
    """

    gain_per_target: float = 0.0
    share: float = 0.0
    evidence: float = 0.0
    agreement: float = 0.0
    score: float = 0.0


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
    support : Support
        On what that was decided, under the first width.
    """

    theta: np.ndarray
    width: float
    kept: np.ndarray
    is_accepted: bool
    support: Support


def learn_tilt(
    objective: Objective,
    gains: Gains,
    capped: Callable[[Tensor], Tensor],
    agreement: Agreement,
    free_gains: Tensor,
    n_outer: int,
    rule: Rule,
) -> SolverResult:
    """Minimise the objective, drop targets, and decide.

    Parameters
    ----------
    objective, gains, agreement : callable
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
        dropped = kept & (free_gains > rule.free_gain) & (gained < rule.free_share * free_gains)
        if n_dropping == rule.max_rounds or not dropped.any():
            break
        kept = kept & ~dropped
    evidence = _evidence(objective, best, kept)
    support = _support(best, evidence, gained[kept], capped, agreement)
    accepted = _is_believed(support, rule)
    if accepted:
        for width in rule.widths[1:]:
            wider = _minimum(objective, width, kept, n_outer, rule.max_iter)
            told = _evidence(objective, wider, kept)
            if told > evidence:
                best, evidence = wider, told
        gained = gains(best.theta, best.width).detach()
    theta = best.theta.numpy() if accepted else np.zeros(n_outer)
    tilt = Tilt(theta, best.width, kept.numpy(), accepted, support)
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


def _evidence(objective: Objective, found: _Minimum, kept: Tensor) -> float:
    hessian = torch.autograd.functional.hessian(
        lambda x: objective(x, found.width, kept), found.theta
    )
    return -found.value - _half_log_det(hessian)


def _half_log_det(hessian: Tensor) -> float:
    # The prior alone has a curvature of 1. Less is that of capped gains, and no knowledge.
    return float(torch.linalg.eigvalsh(hessian).clamp(min=1).log().sum()) / 2


def _support(
    found: _Minimum,
    evidence: float,
    gained: Tensor,
    capped: Callable[[Tensor], Tensor],
    agreement: Agreement,
) -> Support:
    if len(gained) == 0:
        return Support()
    return Support(
        float(capped(gained).mean()),
        float((gained > 0).double().mean()),
        evidence,
        *agreement(found.theta, found.width),
    )


def _is_believed(support: Support, rule: Rule) -> bool:
    least = (
        rule.least_gain,
        rule.least_share,
        rule.least_evidence,
        rule.least_agreement,
        rule.least_score,
    )
    return all(value >= bound for value, bound in zip(support, least, strict=True))
