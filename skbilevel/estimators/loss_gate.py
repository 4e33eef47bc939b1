"""A gate for numbers: the probability that a training row follows the target's relation, from how
well two models predict it.

One model is of rows that are of use, the other of rows that are not; neither has seen the row. In
the first round they are one of the target rows alone and one of all training rows. In each round
that follows rows are shared out between them by the gate of the round before, as in expectation
maximisation for a mixture of two regressions. Target rows that judge a gate are in no model that
it looks at.

With l and l' the losses of a row under the two and s a scale, log odds are
``phi_0 + phi_1 log(1 + l/s) + phi_2 log(1 + l'/s)``: those of two t distributions, which unlike
normal ones are not thrown off by a row that neither model predicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from skbilevel.estimators.linear_proxy import Sample, best_ridge, fitted, losses, random_folds
from skbilevel.estimators.weight_task import Task, WeightFit, pooled
from skbilevel.objectives.reweighting import gate
from skbilevel.solvers.parametric_weights import Fold, parametric_weights

_MOST_ROUNDS, _SETTLED = 8, 0.005
# Folds of the target that judge, and by which the ridge of the first reference is chosen; folds of
# the training rows, whose losses are told by the others.
_N_FOLDS, _RIDGE_FOLDS, _TRAIN_FOLDS = 3, 3, 3
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Of the divergence from equal weights, in losses of equal weights; and of phi.
_KL, _PRECISION = 0.003, 1e-4
_START, _BOUNDS, _MAX_ITER = (-1.0, -1.0, 1.0), ((-12.0, 12.0), (-8.0, 8.0), (-8.0, 8.0)), 10
_LEAST_SHARE = 1e-12


@dataclass(frozen=True)
class _References:
    """What two models say of the training rows, and the two models of all of them.

    ``losses`` is (n, 2), out of fold; ``thetas`` are (p, 1) each, of all rows, which weigh
    ``shares``, (n,).
    """

    losses: np.ndarray
    thetas: tuple[np.ndarray, np.ndarray]
    shares: np.ndarray

    @property
    def scale(self) -> float:
        """That of losses of rows which a model predicts: twice a lower quartile, and next to
        nothing where a quarter is predicted exactly."""
        quartiles = np.quantile(
            self.losses, 0.25, axis=0, weights=self.shares, method="inverted_cdf"
        )
        least = np.finfo(float).eps * self.losses.mean()
        return float(2 * max(quartiles.min(), least)) or 1.0


def fit_loss_gate(task: Task) -> WeightFit:
    """Learn the weights of training rows from their losses."""
    rng = task.rng()
    if task.train.n_rows < _TRAIN_FOLDS:
        return WeightFit(task.train.shares)
    folds = random_folds(task.target.n_rows, _N_FOLDS, rng)
    train_folds = random_folds(task.train.n_rows, _TRAIN_FOLDS, rng)
    ridge_folds = random_folds(task.target.n_rows, _RIDGE_FOLDS, rng)
    own = best_ridge(task.target, task.loss, _RIDGES, ridge_folds).ridge
    # The last has seen all target rows: it is what the weights are made of in the end.
    seen = [task.target.without(fold) for fold in folds] + [task.target]
    shares: list[np.ndarray | None] = [None] * len(seen)
    phi, history = np.array(_START), []
    for _ in range(_MOST_ROUNDS):
        told = [
            _references(task, rows, share, train_folds, own)
            for rows, share in zip(seen, shares, strict=True)
        ]
        features = [gate_features(each.losses, each.scale) for each in told]
        judged = [_fold(task, *pair) for pair in zip(folds, features, strict=False)]
        phi, objective = _learnt(task, judged, phi)
        history += objective
        before, shares = shares[-1], [_sigmoid(each @ phi) for each in features]
        if before is not None and np.abs(shares[-1] - before).mean() < _SETTLED:
            break
    weights = task.train.counts * shares[-1]
    rule = {
        "kind": "loss_gate",
        "phi": phi,
        "scale": told[-1].scale,
        "thetas": np.hstack(told[-1].thetas),
        "log_level": float(np.log(task.train.shares @ shares[-1])),
    }
    weights /= weights.sum()
    return WeightFit(weights, phi, {"objective": history}, rule, n_iter=len(history))


def gate_features(each: np.ndarray, scale: float) -> np.ndarray:
    """A constant, and log(1 + l/s) of both losses (n, 2); (n, 3)."""
    ratio = np.minimum(each / scale, np.finfo(float).max)
    return np.column_stack([np.ones(len(each)), np.log1p(ratio)])


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return torch.from_numpy(a).sigmoid().numpy()


def _learnt(task: Task, judged: list[Fold], phi: np.ndarray) -> tuple[np.ndarray, list[float]]:
    found = parametric_weights(
        judged,
        phi,
        bounds=_BOUNDS,
        precision=_PRECISION,
        max_iter=_MAX_ITER,
    )
    return found.outer, found.history["objective"]


def _fold(task: Task, fold: np.ndarray, features: np.ndarray) -> Fold:
    known, prior = torch.from_numpy(features), torch.from_numpy(task.train.shares)
    penalty = task.penalty(_KL)
    return Fold(task.problem(task.target.at(fold)), lambda phi: gate(known, phi, prior), penalty)


def _references(
    task: Task,
    seen: Sample,
    shares: np.ndarray | None,
    train_folds: list[np.ndarray],
    own: float,
) -> _References:
    """Two models of these target rows and of training rows, by the shares (n,) of the latter that
    are of use; without any, of the target rows alone and of all training rows."""
    n_rows, first = task.train.n_rows, fitted(seen, task.loss, own)

    def models(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        train = task.train.at(rows)
        if shares is None:
            return first, fitted(train, task.loss, task.ridge)
        use = train.counts * shares[rows]
        both = train.with_rows(seen).weighted(pooled(use / use.sum(), train, seen))
        others = train.weighted(train.counts * (1 - shares[rows] + _LEAST_SHARE))
        return fitted(both, task.loss, task.ridge), fitted(others, task.loss, task.ridge)

    told = np.empty((n_rows, 2))
    for fold in train_folds:
        unseen = task.train.at(fold)
        rest = np.setdiff1d(np.arange(n_rows), fold)
        told[fold] = np.column_stack([losses(unseen, each, task.loss) for each in models(rest)])
    return _References(told, models(np.arange(n_rows)), task.train.shares)
