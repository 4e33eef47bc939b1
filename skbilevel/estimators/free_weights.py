"""One free weight for each row: the problem of the paper, and where its solution is to stop.

With more rows than parameters the best weights make the model that of the target rows alone. What
training rows are worth is gained on the way there, so that the exact method stops where target
rows which do not steer it are predicted best.

Reference: Ivanova and Ablin (2023), arXiv 2310.17386.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from skbilevel.estimators.linear_proxy import random_folds
from skbilevel.estimators.weight_task import Task, WeightFit
from skbilevel.objectives.reweighting import PARAMETRISATIONS
from skbilevel.solvers.exact import exact_descent
from skbilevel.solvers.soba import soba
from skbilevel.solvers.warm_started import warm_started
from skbilevel.solvers.weight_descent import Descent, OnStep, State

SOLVERS: dict[str, Callable] = {
    "exact": exact_descent,
    "warm_started": warm_started,
    "soba": soba,
}
# Held-out rows are not watched further where so many steps have gained nothing.
_N_FOLDS, _PATIENCE = 3, 5
# Steps are many and small beside what target rows are off by: inner problems need not be exact.
STOPPED = Descent(30, tol=1e-3)


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of the paper.

    Attributes
    ----------
    solver, parametrisation : str
        Of `SOLVERS`, and of `PARAMETRISATIONS`.
    settings : Descent
    """

    solver: str = "exact"
    parametrisation: str = "mirror"
    settings: Descent = STOPPED

    def stopped_at(self, n_iter: int) -> Algorithm:
        """The same for so many steps."""
        return replace(self, settings=replace(self.settings, n_iter=n_iter))


def fit_stopped(task: Task, n_iter: float) -> WeightFit:
    """The exact method, with rates of its own, for so many steps."""
    return fit_free(task, Algorithm().stopped_at(int(n_iter)))


def stopping_time(task: Task, algorithm: Algorithm = Algorithm()) -> int:
    """Steps after which target rows that are held out have the least loss; 0 is for weights that
    are equal."""
    total = np.zeros(algorithm.settings.n_iter + 1)
    for fold in random_folds(task.target.n_rows, _N_FOLDS, task.rng()):
        judges, path = task.problem(task.target.at(fold)), list[float]()

        def watch(state: State, judges: Any = judges, path: list[float] = path) -> bool:
            path.append(float(judges.target_loss(state.theta)))
            return len(path) - path.index(min(path)) > _PATIENCE

        fit_free(task.judged_by_others(fold), algorithm, watch)
        path += [path[-1]] * (len(total) - len(path))
        total += task.target.counts[fold].sum() * np.array(path)
    return int(total.argmin())


def fit_free(task: Task, algorithm: Algorithm, on_step: OnStep | None = None) -> WeightFit:
    """One weight for each row."""
    form = PARAMETRISATIONS[algorithm.parametrisation](torch.from_numpy(task.train.counts))
    solve = SOLVERS[algorithm.solver]
    advice = (
        f"solver={algorithm.solver!r} has left the range of numbers: lower inner_rate or "
        "outer_rate."
    )
    try:
        found = solve(task.problem(task.target), form, algorithm.settings, on_step)
    except FloatingPointError as error:
        raise FloatingPointError(advice) from error
    weights = found.outer.numpy()
    theta = found.inner.numpy().reshape(task.train.X.shape[1], -1)
    if not (np.isfinite(theta).all() and np.isfinite(weights).all()):
        raise FloatingPointError(advice)
    return WeightFit(
        weights / weights.sum(),
        history=found.history,
        theta=theta,
        converged=found.converged,
        n_iter=found.n_iter,
    )
