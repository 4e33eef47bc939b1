"""What an iteration of teacher and student costs, beside the passes that it consists of."""

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from skbilevel import BilevelImputer
from skbilevel.estimators import bilevel_training
from skbilevel.numerics.derivatives import GradientGraph, grad, vjp
from skbilevel.numerics.implicit_gradient import CURVATURES
from skbilevel.solvers.teacher_student import Alternation, Step, alternate, descend

_N_ITER, _ROUNDS = 30, 5
_PASSES = ("student step", "curvature product", "mixed product", "reconstruction step")


class _Measured(Exception):
    """Carries the figures out of a fit."""


def iteration_cost(
    X: NDArray[Any], y: NDArray[Any], *, outer: str, curvature: str, seed: int
) -> dict[str, float]:
    """CPU seconds of an iteration, of its passes, and their ratio.

    The passes are the steps of the student, the products with the curvature on a graph that is
    there already, the mixed product with that graph and on to the teacher, and a step of the
    teacher on its own loss. Drawing rows and masks, the outer gradient, the forward pass of the
    Gauss-Newton operator, the product that checks the solution and the records are on top.
    """

    def measure(
        teacher: Any, students: Any, draw: Any, settings: Alternation, on_step: Any
    ) -> Any:
        raise _Measured(_figures(teacher, students, draw, settings))

    imputer = BilevelImputer(
        base="gaussian", tilt=None, outer=outer, curvature=curvature, random_state=seed
    )
    with patch.object(bilevel_training, "alternate", measure):
        try:
            imputer.fit(X, y)
        except _Measured as found:
            figures: dict[str, float] = found.args[0]
            return figures
    raise RuntimeError("The fit had no outer loop: too few labels.")


def _figures(
    teacher: list[torch.Tensor],
    students: list[torch.Tensor],
    draw: Callable[[int], Step],
    settings: Alternation,
) -> dict[str, float]:
    rule = Alternation(**{**vars(settings), "n_iter": _N_ITER})
    whole, each = np.inf, dict.fromkeys(_PASSES, np.inf)
    for _ in range(_ROUNDS):
        whole = min(whole, _seconds(lambda: alternate(teacher, students, draw, rule)) / _N_ITER)
        round_ = _passes(teacher, students, draw, settings)
        each = {name: min(each[name], round_[name]) for name in _PASSES}
    total = (
        settings.inner_steps * each["student step"]
        + settings.n_products * each["curvature product"]
        + each["mixed product"]
        + each["reconstruction step"]
    )
    return {"iteration": whole, "passes": total, "ratio": whole / total, **each}


def _passes(
    teacher: list[torch.Tensor],
    students: list[torch.Tensor],
    draw: Callable[[int], Step],
    settings: Alternation,
) -> dict[str, float]:
    """Mean CPU seconds of each pass, on rows that are drawn anew each time.

    In a loop over the same rows everything would lie in the cache, as it does in no iteration.
    """
    seconds = dict.fromkeys(_PASSES, 0.0)
    for iteration in range(_N_ITER):
        for name, run in _passes_of(teacher, students, draw(iteration), settings).items():
            seconds[name] += _seconds(run) / _N_ITER
    return seconds


def _passes_of(
    teacher: list[torch.Tensor], students: list[torch.Tensor], step: Step, settings: Alternation
) -> dict[str, Callable[[], Any]]:
    theta = students[step.student]
    phi, (inner, outer) = step.imputations().detach(), (step.problem.inner, step.problem.outer)
    student, own = torch.optim.Adam([theta], lr=0.0), torch.optim.Adam(teacher, lr=0.0)
    vector = grad(outer, theta, phi)[0]
    # A graph does not outlive a step of the parameters that it was built on.
    still = theta.detach().clone()
    operator = CURVATURES[settings.curvature](GradientGraph(inner, still, phi))

    def mixed() -> None:
        imputed = step.imputations()
        left = GradientGraph(inner, still, imputed.detach()).cross_vjp(vector)
        vjp(imputed, tuple(teacher), left)

    def reconstruct() -> None:
        gradients = torch.autograd.grad(step.reconstruction(), teacher, allow_unused=True)
        for tensor, gradient in zip(teacher, gradients, strict=True):
            tensor.grad = gradient
        own.step()

    passes = (
        lambda: descend(inner, theta, phi, student, 1),
        lambda: operator(vector),
        mixed,
        reconstruct,
    )
    return dict(zip(_PASSES, passes, strict=True))


def _seconds(run: Callable[[], Any]) -> float:
    """CPU seconds."""
    start = time.process_time()
    run()
    return time.process_time() - start
