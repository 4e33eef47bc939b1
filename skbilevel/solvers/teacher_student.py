"""Algorithm 1 of bilevel imputation: a teacher that follows the loss of the students it taught.

A step imputes rows, lets one student descend on them, and moves the teacher along the sum of two
gradients: of what it reconstructs, and of the student's loss on rows set aside, through the
student. The latter is the implicit gradient in the imputed values, taken to the teacher by the
chain rule. The solver sees scalar functions, tensors and numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from skbilevel.numerics.derivatives import value_and_grad, vjp
from skbilevel.numerics.implicit_gradient import Hypergradient, implicit_gradient
from skbilevel.numerics.linear_solve import LinearSolve, Operator, conjugate_gradient, direct_solve
from skbilevel.numerics.problem import BilevelProblem, ScalarFunction
from skbilevel.solvers.result import SolverResult


class Step(NamedTuple):
    """What one iteration is about, all of its random choices made.

    Attributes
    ----------
    student : int
        Which of the students descends and is judged.
    imputations : callable
        ``() -> phi``, (q,), with a graph that leads to the teacher.
    problem : BilevelProblem
        Of the student and phi.
    reconstruction : callable
        ``() -> L_mae``, with a graph that leads to the teacher.
    """

    student: int
    imputations: Callable[[], Tensor]
    problem: BilevelProblem
    reconstruction: Callable[[], Tensor]


@dataclass(frozen=True)
class Alternation:
    """How teacher and students move.

    Attributes
    ----------
    n_iter : int
    inner_steps : int
        Of a student in each iteration.
    teacher_rate, student_rate : float
        Of Adam.
    weight : float
        Most length of the student's gradient, in those of the reconstruction's; 0 leaves it out.
    is_bounded : bool
        Whether it is cut to that length, or multiplied by the weight.
    terms : {"both", "direct"}
        "direct" holds the student fixed: the derivative by which labels leak.
    curvature : str
        A key of `ADJOINTS`; where "hessian" meets a direction of negative curvature it is
        replaced by "gauss_newton".
    n_products : int
        Most steps of conjugate gradients.
    """

    n_iter: int
    inner_steps: int = 3
    teacher_rate: float = 5e-4
    student_rate: float = 3e-3
    weight: float = 1.0
    is_bounded: bool = True
    terms: str = "both"
    curvature: str = "gauss_newton"
    n_products: int = 5


MONITORED = (
    "inner",
    "outer",
    "mae",
    "stationarity",
    "implicit_norm",
    "mae_norm",
    "cosine",
    "cg_residual",
    "negative_curvature",
)


def alternate(
    teacher: Sequence[Tensor],
    students: Sequence[Tensor],
    draw: Callable[[int], Step],
    settings: Alternation,
    on_step: Callable[[dict[str, list[float]]], bool] | None = None,
) -> SolverResult:
    """Move the teacher and the students in place.

    Parameters
    ----------
    teacher : sequence of Tensor
        Leaves that the teacher is made of.
    students : sequence of Tensor of shape (p,)
        A flat vector each.
    draw : callable
        ``draw(iteration) -> Step``.
    settings : Alternation
    on_step : callable, optional
        ``on_step(history) -> stop`` after every iteration.

    Returns
    -------
    SolverResult
        ``inner`` are the students, ``outer`` the tensors of the teacher. ``history`` has for every
        iteration the three losses, after the student's steps and before the teacher's; the norm of
        the gradient of the inner loss (``"stationarity"``); the norms of both gradients of the
        teacher and their cosine; the residual of the linear system, relative to its right-hand
        side; and whether a direction of negative curvature was met.

    Raises
    ------
    FloatingPointError
        If one of these is not finite.
    """
    outer_optimizer = torch.optim.Adam(teacher, lr=settings.teacher_rate)
    inner_optimizers = [student_optimizer(theta, settings.student_rate) for theta in students]
    history: dict[str, list[float]] = {name: [] for name in MONITORED}
    stopped = False
    for iteration in range(settings.n_iter):
        step = draw(iteration)
        theta = students[step.student]
        phi = step.imputations()
        fixed = phi.detach()
        inner = step.problem.inner
        descend(inner, theta, fixed, inner_optimizers[step.student], settings.inner_steps)
        mae = step.reconstruction()
        reconstructing = torch.autograd.grad(mae, teacher, allow_unused=True)
        teaching, monitored = _teaching(step.problem, theta, phi, teacher, settings)
        norms = _move(outer_optimizer, teacher, reconstructing, teaching, settings)
        for name, value in {**monitored, **norms, "mae": float(mae.detach())}.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at iteration {iteration} of teacher "
                    "and students; lower their learning rates"
                )
            history[name].append(value)
        stopped = on_step is not None and on_step(history)
        if stopped:
            break
    n_iter = len(history["mae"])
    return SolverResult(list(students), list(teacher), history, n_iter, not stopped)


def student_optimizer(theta: Tensor, rate: float) -> torch.optim.Optimizer:
    """Of a flat vector."""
    return torch.optim.Adam([theta.requires_grad_()], lr=rate)


def descend(
    inner: ScalarFunction,
    theta: Tensor,
    phi: Tensor,
    optimizer: torch.optim.Optimizer,
    n_steps: int,
) -> None:
    """Steps of a student, in place, on ``inner(theta, phi)``."""
    for _ in range(n_steps):
        (theta.grad,) = torch.autograd.grad(inner(theta, phi), theta)
        optimizer.step()


Solve = Callable[[Operator, Tensor], LinearSolve]


def _by_products(n_products: int) -> Solve:
    return partial(conjugate_gradient, max_iter=n_products)


# Name -> how a linear system with that curvature is solved in at most so many products.
ADJOINTS: dict[str, Callable[[int], Solve]] = {
    "gauss_newton": _by_products,
    "hessian": _by_products,
    "exact": lambda n_products: direct_solve,
}


def guarded_gradient(
    problem: BilevelProblem, theta: Tensor, phi: Tensor, curvature: str, n_products: int
) -> tuple[Hypergradient, bool]:
    """The implicit gradient, and whether its system was not positive definite: then it is that
    of the Gauss-Newton matrix, which always is."""
    solve = ADJOINTS[curvature](n_products)
    found = implicit_gradient(problem, theta, phi, curvature=curvature, solve=solve)
    if not found.adjoint.negative_curvature:
        return found, False
    return implicit_gradient(problem, theta, phi, curvature="gauss_newton", solve=solve), True


def _teaching(
    problem: BilevelProblem,
    theta: Tensor,
    phi: Tensor,
    teacher: Sequence[Tensor],
    settings: Alternation,
) -> tuple[tuple[Tensor, ...], dict[str, float]]:
    """The gradient of the outer loss in the tensors of the teacher, and what was seen."""
    fixed = phi.detach()
    if settings.weight == 0 or settings.terms == "direct":
        inner, (slope, _) = value_and_grad(problem.inner, theta, fixed)
        outer, (_, direct) = value_and_grad(problem.outer, theta, fixed)
        left = direct if settings.weight > 0 else torch.zeros_like(direct)
        return vjp(phi, tuple(teacher), left), _monitored(inner, outer, slope, 0.0, False)
    found, was_negative = guarded_gradient(
        problem, theta, fixed, settings.curvature, settings.n_products
    )
    right = float(found.outer_gradient.norm())
    monitored = _monitored(
        found.inner_value,
        found.outer_value,
        found.inner_gradient,
        found.adjoint.residual_norm / right if right else 0.0,
        was_negative,
    )
    return vjp(phi, tuple(teacher), found.total), monitored


def _monitored(
    inner: Tensor, outer: Tensor, slope: Tensor, residual: float, was_negative: bool
) -> dict[str, float]:
    return {
        "inner": float(inner),
        "outer": float(outer),
        "stationarity": float(slope.norm()),
        "cg_residual": residual,
        "negative_curvature": float(was_negative),
    }


def _move(
    optimizer: torch.optim.Optimizer,
    teacher: Sequence[Tensor],
    reconstructing: Sequence[Tensor | None],
    teaching: Sequence[Tensor],
    settings: Alternation,
) -> dict[str, float]:
    """One step along the sum of both gradients; returns their norms and cosine."""
    own = [
        torch.zeros_like(tensor) if part is None else part
        for tensor, part in zip(teacher, reconstructing, strict=True)
    ]
    flat, other = (torch.cat([part.reshape(-1) for part in parts]) for parts in (own, teaching))
    length, other_length = float(flat.norm()), float(other.norm())
    factor = settings.weight
    if settings.is_bounded and other_length > 0:
        factor = min(1.0, settings.weight * length / other_length)
    for tensor, part, taught in zip(teacher, own, teaching, strict=True):
        tensor.grad = part + factor * taught
    optimizer.step()
    product = length * other_length
    cosine = float(flat @ other) / product if product else 0.0
    return {"mae_norm": length, "implicit_norm": other_length, "cosine": cosine}
