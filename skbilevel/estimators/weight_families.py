"""Families of weights: equal ones, those of target rows alone, and few parameters between."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from skbilevel.estimators.density_weights import (
    fit_groups,
    fit_log_linear,
    group_strength,
    log_linear_strength,
)
from skbilevel.estimators.free_weights import fit_stopped, stopping_time
from skbilevel.estimators.label_gate import fit_label_gate
from skbilevel.estimators.loss_gate import fit_loss_gate
from skbilevel.estimators.weight_task import Task, WeightFit


class Family(NamedTuple):
    """A family of weights.

    Attributes
    ----------
    tune : callable
        ``task -> setting``, a number that is chosen once, on all target rows.
    fit : callable
        ``(task, setting) -> WeightFit``.
    prior : float
        Credit before any data, where families are mixed, beside the square of the effective sample
        size.
    """

    tune: Callable[[Task], float]
    fit: Callable[[Task, float], WeightFit]
    prior: float


def _untuned(task: Task) -> float:
    return 0.0


def _uniform(task: Task, setting: float) -> WeightFit:
    return WeightFit(task.train.shares)


def _target(task: Task, setting: float) -> WeightFit:
    return WeightFit(np.zeros(task.train.n_rows))


def _gate(task: Task, setting: float) -> WeightFit:
    return fit_loss_gate(task) if task.loss.is_quadratic else fit_label_gate(task)


FAMILIES = {
    "uniform": Family(_untuned, _uniform, 2.0),
    "target": Family(_untuned, _target, 1.0),
    "group": Family(group_strength, fit_groups, 2.0),
    "loglinear": Family(log_linear_strength, fit_log_linear, 1.0),
    "gate": Family(_untuned, _gate, 2.0),
    "sample": Family(stopping_time, fit_stopped, 0.5),
}
