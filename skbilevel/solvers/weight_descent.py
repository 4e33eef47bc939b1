"""What descents on weights have in common: how they move, and what they write down."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from skbilevel.numerics.weighted_problem import WeightedProblem
from skbilevel.solvers.result import SolverResult

# A target loss so many times that of the first iterate is not where a descent has led.
_FAR = 10.0
MONITORED = ("target_loss", "entropy", "effective_sample_size")


class State(NamedTuple):
    """Where a descent is.

    Attributes
    ----------
    theta : Tensor of shape (p,)
    weights : Tensor of shape (n,)
    history : dict of str to list of float
        Up to here.
    """

    theta: Tensor
    weights: Tensor
    history: dict[str, list[float]]


OnStep = Callable[[State], bool]


class Parametrisation(Protocol):
    """Weights made of one number a for each row."""

    @property
    def counts(self) -> Tensor:
        """How often each row occurs, (n,)."""

    def weights(self, a: Tensor) -> Tensor:
        """w, (n,)."""

    def direction(self, a: Tensor, g: Tensor) -> Tensor:
        """Against which a moves, from g = dh/dw."""


@dataclass(frozen=True)
class Descent:
    """How parameters and weights move.

    Attributes
    ----------
    n_iter : int
    outer_rate : float or None
        eta, of the weights. None is for the exact method, which then never raises the target
        loss: log w changes with a weighted standard deviation of .5 at first, by half as much
        again after every step, up to 1.5, and by 20 at most in any row; a step that raises the
        loss is taken back and halved.
    inner_rate : float
        rho, of theta, where it is not solved for.
    tol : float
        Of the inner problem and of its adjoint, relative, where they are solved for.
    """

    n_iter: int
    outer_rate: float | None = None
    inner_rate: float = 0.0
    tol: float = 1e-10


class Record:
    """History of a descent, and whether it is to stop."""

    def __init__(
        self, problem: WeightedProblem, form: Parametrisation, on_step: OnStep | None
    ) -> None:
        self.history: dict[str, list[float]] = {name: [] for name in MONITORED}
        self._problem, self._counts, self._on_step = problem, form.counts, on_step

    def __call__(self, theta: Tensor, weights: Tensor) -> bool:
        shares = weights / weights.sum()
        told = (
            self._problem.target_loss(theta),
            -torch.special.xlogy(shares, shares / self._counts).sum(),
            1 / (shares.square() / self._counts).sum(),
        )
        for name, value in zip(MONITORED, told, strict=True):
            self.history[name].append(float(value))
        return self._on_step is not None and self._on_step(State(theta, weights, self.history))

    def result(self, theta: Tensor, weights: Tensor, converged: bool = True) -> SolverResult:
        """Theta and weights where the descent has ended; not converged if theta has run away."""
        n_iter, losses = len(self.history["entropy"]), self.history["target_loss"]
        is_near = bool(torch.isfinite(theta).all()) and (
            not losses or losses[-1] <= _FAR * losses[0]
        )
        return SolverResult(theta, weights, self.history, n_iter, converged and is_near)
