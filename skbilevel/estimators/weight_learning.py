"""From a task and a plan to weights: of one family, of a mixture, or of the paper's algorithms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skbilevel.estimators.free_weights import Algorithm, fit_free, stopping_time
from skbilevel.estimators.weight_choice import (
    Judged,
    Mixture,
    final_weights,
    judged,
    mixed,
    ridges_of,
    with_ridge,
)
from skbilevel.estimators.weight_families import FAMILIES
from skbilevel.estimators.weight_task import Task, WeightFit
from skbilevel.solvers.weight_descent import State


@dataclass(frozen=True)
class Plan:
    """What a user has asked for.

    Attributes
    ----------
    weighting : str
        "auto" or one of `FAMILIES`.
    algorithm : Algorithm
        Of "sample", on its own.
    early_stopping : bool
        Whether the exact method stops where held-out target rows are predicted best.
    ridges : tuple of float or None
        To choose from; None is for those of the family.
    n_folds : int
    """

    weighting: str
    algorithm: Algorithm
    early_stopping: bool
    ridges: tuple[float, ...] | None
    n_folds: int

    @property
    def n_steps(self) -> int:
        """Most reports of progress."""
        if self.weighting == "auto":
            return len(FAMILIES)
        return self.algorithm.settings.n_iter + 1 if self.weighting == "sample" else 1


@dataclass(frozen=True)
class Learnt:
    """Weights, and the families that they come from.

    Attributes
    ----------
    families : list of Judged
    mixture : Mixture
    """

    families: list[Judged]
    mixture: Mixture

    @property
    def selected(self) -> Judged:
        """The family of the largest share."""
        return self.families[int(self.mixture.shares.argmax())]


OnProgress = Callable[[Callable[[], Learnt]], bool]


def learn(task: Task, plan: Plan, on_progress: OnProgress) -> Learnt:
    """Learn weights; ``on_progress`` is told what they would be if learning ended there, and may
    end it."""
    if plan.weighting == "auto":
        return _of_all_families(task, plan, on_progress)
    if plan.weighting == "sample":
        return _of_algorithm(task, plan, on_progress)
    family = FAMILIES[plan.weighting]
    learnt = _alone(task, plan, family.fit(task, family.tune(task)))
    on_progress(lambda: learnt)
    return learnt


def _of_all_families(task: Task, plan: Plan, on_progress: OnProgress) -> Learnt:
    families: list[Judged] = []

    def current() -> Learnt:
        return Learnt(families, mixed(task, families))

    for name in FAMILIES:
        families.append(judged(task, name, plan.ridges, plan.n_folds))
        if on_progress(current):
            break
    return current()


def _of_algorithm(task: Task, plan: Plan, on_progress: OnProgress) -> Learnt:
    algorithm = plan.algorithm
    if plan.early_stopping and algorithm.solver == "exact":
        algorithm = algorithm.stopped_at(stopping_time(task, algorithm))

    def on_step(state: State) -> bool:
        weights = state.weights.numpy()
        fit = WeightFit(
            weights / weights.sum(),
            history=state.history,
            theta=state.theta.numpy().reshape(task.train.X.shape[1], -1),
            # The exact solver tells of its start as well.
            n_iter=len(state.history["entropy"]) - (algorithm.solver == "exact"),
        )
        return on_progress(lambda: _alone(task, plan, fit))

    return _alone(task, plan, fit_free(task, algorithm, on_step))


def _alone(task: Task, plan: Plan, fit: WeightFit) -> Learnt:
    """Of one family, with the ridge chosen for its weights."""
    name, ridges = plan.weighting, ridges_of(plan.weighting, task, plan.ridges)
    if len(ridges) > 1:
        family = with_ridge(task, name, fit, ridges, plan.n_folds)
    else:
        unknown = np.full(task.target.n_rows, np.nan)
        family = Judged(name, fit, final_weights(name, fit, task), ridges[0], unknown)
    return Learnt([family], Mixture(np.ones(1), family.weights, family.ridge, None))
