"""A gate for labels: the probability that the label of a training row is right, from two margins.

One margin is that of a model of the target rows alone, which has seen no wrong label; the other is
what neighbours say. How much each counts is learnt for the loss of target rows that neither has
seen: a reference that has seen the rows that judge it would be believed too much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from skbilevel.estimators.label_graph import LabelGraph, label_graph
from skbilevel.estimators.linear_proxy import best_ridge, fitted, margins, random_folds
from skbilevel.estimators.weight_task import Task, WeightFit
from skbilevel.objectives.reweighting import gate
from skbilevel.solvers.parametric_weights import Fold, parametric_weights

# Folds of the target that judge, and those by which the reference's ridge is chosen.
# Half of many target rows is enough for a reference.
_MANY, _N_FOLDS, _RIDGES, _RIDGE_FOLDS = 150, 3, (1e-5, 1e-4, 1e-3), 3
_FARTHEST = 4.0
# Of the divergence from equal weights, in the loss of equal shares; and of phi.
_KL, _PRECISION = 0.003, 1e-4
_START, _BOUNDS, _MAX_ITER = (-1.0, 1.0, 1.0), ((-12.0, 12.0), (-8.0, 8.0), (-8.0, 8.0)), 4


def fit_label_gate(task: Task) -> WeightFit:
    """Learn the weights of training rows from the margins of their labels."""
    rng, n_target = task.rng(), task.target.n_rows
    folds = random_folds(n_target, 2 if n_target >= _MANY else _N_FOLDS, rng)
    graph = label_graph(task.features(task.train), task.features(task.target), rng)
    ridge_folds = random_folds(n_target, _RIDGE_FOLDS, rng)
    margin = Margins(task, graph, best_ridge(task.target, task.loss, _RIDGES, ridge_folds))
    prior = torch.from_numpy(task.train.shares)
    whole = margin.seen(np.arange(n_target))
    train = task.train
    found = parametric_weights(
        [_fold(task, margin, fold, prior) for fold in folds],
        task.penalty(_KL if task.kl is None else task.kl),
        np.array(_START),
        bounds=_BOUNDS,
        precision=_PRECISION,
        max_iter=_MAX_ITER,
    )
    features, units = standardised(whole.margins, shares=train.shares)
    weights = gate(torch.from_numpy(features), torch.from_numpy(found.outer), prior).value.numpy()
    use = torch.from_numpy(features @ found.outer).sigmoid().numpy()
    rule = {
        "kind": "label_gate",
        "log_level": float(np.log(train.shares @ use)),
        "phi": found.outer,
        "units": units,
        "theta": whole.theta,
        "nodes": np.vstack([task.features(train), task.features(task.target)]),
        "told": graph.of_all_labels(train.Y, task.target.Y, voices(task)),
        "scale": graph.scale,
    }
    n_iter = len(found.history["objective"])
    return WeightFit(weights, found.outer, found.history, rule, n_iter=n_iter)


@dataclass(frozen=True)
class _Seen:
    """Margins of training rows, (n, 2), by some target rows, and the model of these, (p, k)."""

    margins: np.ndarray
    theta: np.ndarray


@dataclass(frozen=True)
class Margins:
    """Makes the margins of training rows.

    Attributes
    ----------
    task : Task
    graph : LabelGraph
    ridge : float
        Of the model of target rows.
    """

    task: Task
    graph: LabelGraph
    ridge: float

    def seen(self, index: np.ndarray) -> _Seen:
        """From these target rows alone."""
        train, target = self.task.train, self.task.target
        theta = fitted(target.at(index), self.task.loss, self.ridge)
        labels = np.zeros_like(target.Y)
        labels[index] = target.Y[index]
        by_neighbours = self.graph.margins(train.Y, labels, voices(self.task))
        return _Seen(np.column_stack([margins(train, theta), by_neighbours]), theta)


def voices(task: Task) -> np.ndarray:
    """How much training and target rows have to say to neighbours, (n + m,): their counts, which
    are 1 on average for either."""
    parts = (task.train, task.target)
    return np.concatenate([part.shares * part.n_rows for part in parts])


def standardised(
    each: np.ndarray, units: np.ndarray | None = None, shares: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A constant and both margins (n, 2) in units (2, 2) of mean and deviation, cut at four; by
    default units are their own, of rows that weigh ``shares``."""
    if units is None:
        center = np.average(each, axis=0, weights=shares)
        scale = np.sqrt(np.average((each - center) ** 2, axis=0, weights=shares))
        rounding = len(each) * np.finfo(float).eps * np.abs(center)
        units = np.stack([center, np.where(scale > rounding, scale, 1.0)])
    standard = np.clip((each - units[0]) / units[1], -_FARTHEST, _FARTHEST)
    return np.column_stack([np.ones(len(each)), standard]), units


def _fold(task: Task, margin: Margins, fold: np.ndarray, prior: torch.Tensor) -> Fold:
    seen = margin.seen(np.setdiff1d(np.arange(task.target.n_rows), fold))
    features = torch.from_numpy(standardised(seen.margins, shares=task.train.shares)[0])
    return Fold(task.problem(task.target.at(fold)), lambda phi: gate(features, phi, prior))
