"""Weights that follow where a row is: the ratio of two densities, log-linear in the features.

By proposition 1 of the paper the density ratio of target and training rows solves the bilevel
problem where labels are drawn alike given features. Here it is learnt for the target's loss, not
for the densities: directions in which these differ and the model does not care cost nothing.

Reference: Ivanova and Ablin (2023), arXiv 2310.17386.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.special import logsumexp

from skbilevel.estimators.linear_head import varied
from skbilevel.estimators.linear_hypergradient import group_gradient
from skbilevel.estimators.linear_proxy import fitted, losses, random_folds
from skbilevel.estimators.weight_task import Task, WeightFit
from skbilevel.objectives.reweighting import Weights, log_linear
from skbilevel.solvers.parametric_weights import Fold, OnStep, parametric_weights

# Strengths of the divergence, in losses of equal weights, and folds of the target by which it is
# chosen; of groups, which have few parameters, it is fixed, as it is for classes.
_STRENGTHS, _FIXED, _N_FOLDS = (0.1, 0.01, 0.001), 0.01, 3
# More columns than this are turned into the first few principal components.
_MOST_COLUMNS, _N_COMPONENTS = 12, 4
_LARGEST, _MAX_ITER, _FTOL = 30.0, 50, 1e-6


def fit_log_linear(task: Task, strength: float) -> WeightFit:
    """w proportional to ``exp(phi'[z, z^2])`` for standardised columns z, or the first principal
    components of many."""
    rows = task.features(task.train)
    axes = _axes(rows, task.train.shares)
    rule = {**axes, "kind": "log_linear"}
    return _fit(task, strength, density_features(rows, axes), rule)


def fit_groups(task: Task, strength: float) -> WeightFit:
    """One weight for all rows of a group."""
    features, told = np.eye(task.groups.max() + 1)[task.groups], dict[str, list[float]]()
    on_step = None if task.significance is None else _told_from_zero(task, features, told)
    found = _fit(task, strength, features, {"kind": "groups"}, on_step)
    return replace(found, history={**found.history, **told})


def _told_from_zero(task: Task, features: np.ndarray, told: dict[str, list[float]]) -> OnStep:
    """Stops where the gradient on the target rows cannot be told from 0; what it saw is told.

    The rows that steer the weights are those that judge them, so that this is a rule and no test:
    p-values grow as weights adapt to these rows. The divergence has no part in it.
    """
    problem, prior = task.problem(task.target), torch.from_numpy(task.train.shares)
    told.update(statistic=[], pvalue=[])

    def on_step(phi: np.ndarray) -> bool:
        weights = log_linear(torch.from_numpy(features), torch.from_numpy(phi), prior).value
        found = group_gradient(problem, weights.numpy(), task.groups, len(phi))
        test = found.result.stationarity_test()
        told["statistic"].append(test.statistic)
        told["pvalue"].append(test.pvalue)
        return task.significance is not None and test.pvalue >= task.significance

    return on_step


def log_linear_strength(task: Task) -> float:
    """By the loss of target rows that the weights were not learnt for."""
    if task.kl is not None:
        return task.kl
    if not task.loss.is_quadratic:
        return _FIXED
    total = np.zeros(len(_STRENGTHS))
    for fold in random_folds(task.target.n_rows, _N_FOLDS, task.rng()):
        judges, rest = task.target.at(fold), task.judged_by_others(fold)
        for number, strength in enumerate(_STRENGTHS):
            weights = fit_log_linear(rest, strength).weights
            theta = fitted(task.train.weighted(weights), task.loss, task.ridge)
            total[number] += judges.counts @ losses(judges, theta, task.loss)
    return _STRENGTHS[int(total.argmin())]


def group_strength(task: Task) -> float:
    """As the user says, or a fixed one."""
    return _FIXED if task.kl is None else task.kl


def density_features(rows: np.ndarray, axes: dict[str, np.ndarray]) -> np.ndarray:
    """z and its square, (b, q), for rows (b, d)."""
    z = (rows - axes["center"]) @ axes["directions"]
    return np.hstack([z, z**2])


def _axes(rows: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
    """Directions (d, r) along which rows (n, d) are standardised: columns, or components."""
    center = shares @ rows
    scale = np.sqrt(varied(shares @ (rows - center) ** 2, shares @ rows**2, len(rows)))
    inverse = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1.0), 0.0)
    directions = np.diag(inverse)[:, scale > 0]
    if directions.shape[1] > _MOST_COLUMNS:
        z = np.sqrt(shares)[:, np.newaxis] * ((rows - center) @ directions)
        spread, turned = np.linalg.eigh(z.T @ z)
        largest = np.argsort(spread)[::-1][:_N_COMPONENTS]
        last = largest[spread[largest] > len(spread) * np.finfo(float).eps * spread.max()]
        directions = directions @ (turned[:, last] / np.sqrt(spread[last]))
    return {"center": center, "directions": directions}


def _fit(
    task: Task,
    strength: float,
    features: np.ndarray,
    rule: dict,
    on_step: OnStep | None = None,
) -> WeightFit:
    known, prior = torch.from_numpy(features), torch.from_numpy(task.train.shares)
    q = features.shape[1]
    if not q:
        # Rows that do not differ.
        nothing = {"phi": np.zeros(0), "log_level": 0.0}
        return WeightFit(task.train.shares, rule={**rule, **nothing})

    def family(phi: torch.Tensor) -> Weights:
        return log_linear(known, phi, prior)

    found = parametric_weights(
        [Fold(task.problem(task.target), family, task.penalty(strength))],
        np.zeros(q),
        bounds=[(-_LARGEST, _LARGEST)] * q,
        max_iter=_MAX_ITER,
        ftol=_FTOL,
        on_step=on_step,
    )
    phi = found.outer
    weights = log_linear(known, torch.from_numpy(phi), prior).value.numpy()
    level = float(logsumexp(features @ phi, b=task.train.shares))
    rule = {**rule, "phi": phi, "log_level": level}
    n_iter = len(found.history["objective"])
    return WeightFit(weights, phi, found.history, rule, n_iter=n_iter)
