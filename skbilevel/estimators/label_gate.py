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
from skbilevel.estimators.linear_proxy import Sample, best_ridge, fitted, margins
from skbilevel.objectives.linear_loss import CROSS_ENTROPY
from skbilevel.objectives.reweighting import divergence, gate, reweighted_linear
from skbilevel.solvers.parametric_weights import Fold, parametric_weights

# Folds of the target that judge, and those by which the reference's ridge is chosen.
_N_FOLDS, _RIDGES, _RIDGE_FOLDS = 3, (1e-6, 1e-5, 1e-4, 1e-3), 3
_FARTHEST = 4.0
# Of the divergence from equal weights, in log k; and of phi.
_KL, _PRECISION = 0.003, 1e-4
_START, _BOUNDS = (-1.0, 1.0, 1.0), ((-12.0, 12.0), (-8.0, 8.0), (-8.0, 8.0))
_MAX_ITER = 5


@dataclass(frozen=True)
class GateFit:
    """What a gate has learnt.

    Attributes
    ----------
    weights : ndarray of shape (n,)
        With sum 1.
    phi : ndarray of shape (3,)
        Of a constant, the margin of the reference, and that of neighbours.
    history : dict of str to list of float
    """

    weights: np.ndarray
    phi: np.ndarray
    history: dict[str, list[float]]


def fit_label_gate(
    train: Sample, target: Sample, ridge: float, rng: np.random.RandomState
) -> GateFit:
    """Learn the weights of training rows for the sake of target rows.

    Parameters
    ----------
    train, target : Sample
        With one column a class.
    ridge : float
        Of the model that is to be trained with the weights.
    rng : RandomState
    """
    folds = np.array_split(rng.permutation(len(target.X)), min(_N_FOLDS, len(target.X)))
    graph = label_graph(train.X[:, :-1], target.X[:, :-1], rng)
    own = best_ridge(target, CROSS_ENTROPY, _RIDGES, _judges(len(target.X), rng))
    whole = _features(train, target, np.arange(len(target.X)), graph, own)
    uniform = torch.full((len(train.X),), 1 / len(train.X), dtype=torch.float64)
    strength = _KL * np.log(train.Y.shape[1])

    def penalty(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = divergence(weights, uniform)
        return strength * value, strength * slope

    found = parametric_weights(
        [_fold(train, target, fold, graph, own, ridge) for fold in folds],
        penalty,
        np.array(_START),
        bounds=_BOUNDS,
        precision=_PRECISION,
        max_iter=_MAX_ITER,
    )
    weights = gate(whole, torch.from_numpy(found.outer)).value.numpy()
    return GateFit(weights, found.outer, found.history)


def _judges(n_rows: int, rng: np.random.RandomState) -> list[np.ndarray]:
    return np.array_split(rng.permutation(n_rows), min(_RIDGE_FOLDS, n_rows))


def _fold(
    train: Sample,
    target: Sample,
    fold: np.ndarray,
    graph: LabelGraph,
    own: float,
    ridge: float,
) -> Fold:
    seen = np.setdiff1d(np.arange(len(target.X)), fold)
    features = _features(train, target, seen, graph, own)
    X, Y, X_target, Y_target = map(
        torch.from_numpy, (train.X, train.Y, target.X[fold], target.Y[fold])
    )
    problem = reweighted_linear(X, Y, X_target, Y_target, CROSS_ENTROPY, ridge)
    return Fold(problem, lambda phi: gate(features, phi))


def _features(
    train: Sample, target: Sample, seen: np.ndarray, graph: LabelGraph, ridge: float
) -> torch.Tensor:
    """A constant and both margins, about standardised, (n, 3), from these target rows alone."""
    reference = fitted(target.at(seen), CROSS_ENTROPY, ridge)
    labels = np.zeros_like(target.Y)
    labels[seen] = target.Y[seen]
    each = np.column_stack([margins(train, reference), graph.margins(train.Y, labels)])
    scale = each.std(axis=0)
    standard = (each - each.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    ones = np.ones((len(each), 1))
    return torch.from_numpy(np.hstack([ones, np.clip(standard, -_FARTHEST, _FARTHEST)]))


def with_target(weights: np.ndarray, n_target: int) -> np.ndarray:
    """Weights of training and target rows together, with sum 1: a target row counts as one of so
    many training rows as their effective sample size says there are."""
    size = 1 / np.square(weights).sum()
    pooled = np.concatenate([weights * size, np.ones(n_target)])
    return pooled / pooled.sum()
