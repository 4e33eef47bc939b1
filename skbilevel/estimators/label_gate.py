"""A gate for labels: the probability that the label of a training row is right, from two margins.

A training row counts beside target rows, whose labels are right, as much as its own is likely to
be. Weights are learnt with both kinds of rows in the model, if both are in it in the end: where
margins tell little, training rows as a whole count little.

One margin is that of a model of the target rows alone, which has seen no wrong label; the other is
what neighbours say. How much each counts is learnt for the loss of target rows that neither has
seen: a reference that has seen the rows that judge it would be believed too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy.special import expit

from skbilevel.estimators.label_graph import Heard, label_graph, label_margins
from skbilevel.estimators.linear_proxy import best_ridge, fitted, margins, random_folds
from skbilevel.estimators.weight_task import Task, WeightFit
from skbilevel.objectives.reweighting import gate
from skbilevel.solvers.parametric_weights import Fold, parametric_weights

# Folds of the target that judge the weights, and the ridge of references.
# Half of many target rows is enough for a reference.
_MANY, _N_FOLDS, _RIDGES = 150, 3, (1e-5, 1e-4, 1e-3)
_FARTHEST = 4.0
# Of the divergence from equal weights, in the loss of equal shares; and of phi.
_KL, _PRECISION = 0.003, 1e-4
_START, _BOUNDS, _MAX_ITER = (-1.0, 1.0, 1.0), ((-12.0, 12.0), (-8.0, 8.0), (-8.0, 8.0)), 6


def fit_label_gate(task: Task) -> WeightFit:
    """Learn the weights of training rows from the margins of their labels."""
    rng, n_target, train = task.rng(), task.target.n_rows, task.train
    folds = random_folds(n_target, 2 if n_target >= _MANY else _N_FOLDS, rng)
    graph = label_graph(task.features(train), task.features(task.target), rng)
    heard = graph.heard(train.Y, task.target.Y, voices(task), folds)
    references = _references(task, folds)
    found = parametric_weights(
        _judged(task, folds, references, heard),
        np.array(_START),
        bounds=_BOUNDS,
        precision=_PRECISION,
        max_iter=_MAX_ITER,
    )
    phi, theta = found.outer, references[-1]
    features, units = standardised(_margins(task, theta, heard.shares()), shares=train.shares)
    use = expit(features @ phi)
    weights = train.counts * use
    rule = {
        "kind": "label_gate",
        "log_level": float(np.log(train.shares @ use)),
        "phi": phi,
        "units": units,
        "theta": theta,
        "nodes": np.vstack([task.features(train), task.features(task.target)]),
        "told": heard.of_all(),
        "scale": graph.scale,
    }
    return WeightFit(
        weights / weights.sum(),
        phi,
        found.history,
        rule,
        n_iter=len(found.history["objective"]),
        mass=float(weights.sum()) if task.pools else None,
    )


def _references(task: Task, folds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Models (p, k) of the target rows without each fold, and one of all."""
    ridge, near = best_ridge(task.target, task.loss, _RIDGES, folds)
    thetas = [
        fitted(task.target.without(fold), task.loss, ridge, start)
        for fold, start in zip(folds, near, strict=True)
    ]
    return [*thetas, fitted(task.target, task.loss, ridge, np.mean(thetas, axis=0))]


def _margins(task: Task, reference: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Of training rows, (n, 2), by a model of target rows and by what neighbours say."""
    return np.column_stack([margins(task.train, reference), label_margins(told, task.train.Y)])


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


def _judged(
    task: Task, folds: Sequence[np.ndarray], references: Sequence[np.ndarray], heard: Heard
) -> list[Fold]:
    """Training rows, and target rows that do not judge if these are in the final fit as well,
    before those that do."""
    prior, judged = torch.from_numpy(task.train.counts), []
    for number, fold in enumerate(folds):
        others = [each for each in range(len(folds)) if each != number]
        told = _margins(task, references[number], heard.shares(others))
        features = torch.from_numpy(standardised(told, shares=task.train.shares)[0])
        rest = task.target.without(fold if task.pools else np.arange(task.target.n_rows))
        rows, certain = task.train.with_rows(rest), torch.from_numpy(rest.counts)
        family = partial(gate, features, prior=prior, certain=certain)
        problem = task.problem(task.target.at(fold), rows)
        judged.append(Fold(problem, family, task.penalty(_KL, rows)))
    return judged
