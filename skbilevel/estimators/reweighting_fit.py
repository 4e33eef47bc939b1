"""From checked rows to a task for weights, and from weights to what an estimator keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin

from skbilevel._sklearn import ConvergenceWarning, warn_user
from skbilevel.estimators.linear_head import Units, units_of
from skbilevel.estimators.linear_proxy import Sample
from skbilevel.estimators.reweighting_rows import Rows, in_order
from skbilevel.estimators.weight_choice import blended, difference, log_relative
from skbilevel.estimators.weight_learning import Learnt
from skbilevel.estimators.weight_rules import log_weights
from skbilevel.estimators.weight_task import Task, size
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED

_KMEANS_STARTS = 3
# Of tol="significance".
_SIGNIFICANCE = 0.05
# Logarithm of a weight far from all training rows, which the exponential still takes.
_LARGEST = 700.0


@dataclass(frozen=True)
class Grouping:
    """Groups of training rows: sources that a user has named, or clusters.

    Attributes
    ----------
    sources : ndarray of shape (g,) or None
        Sorted names.
    centers : ndarray of shape (g, d) or None
        Of clusters, in the units of the linear model.
    """

    sources: np.ndarray | None
    centers: np.ndarray | None

    def codes(self, features: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Numbers of the groups of rows (b, d) with names (b,); -1 for one that is not known."""
        if self.centers is not None:
            return pairwise_distances_argmin(features, self.centers)
        if self.sources is None or groups is None:
            return np.full(len(features), -1)
        place = np.searchsorted(self.sources, groups).clip(max=len(self.sources) - 1)
        return np.where(self.sources[place] == groups, place, -1)


@dataclass(frozen=True)
class Problem:
    """Rows before a linear model, in an order that does not depend on how they came.

    Attributes
    ----------
    rows : Rows
    units : Units
    classes : ndarray or None
    train, target : ndarray of int
        Positions of rows that count.
    grouping : Grouping
    task : Task
    """

    rows: Rows
    units: Units
    classes: np.ndarray | None
    train: np.ndarray
    target: np.ndarray
    grouping: Grouping
    task: Task


def problem_of(rows: Rows, classes: np.ndarray | None, estimator: Any, seed: int) -> Problem:
    """Put training and target rows before the linear model that an estimator asks for."""
    order = in_order(rows, seed)
    train, target = order[np.isin(order, rows.train)], order[np.isin(order, rows.target)]
    used = np.concatenate([train, target])
    units = units_of(
        rows.X[used],
        rows.y[used] if classes is None else None,
        rows.counts[used] / rows.counts[used].sum(),
        estimator.standardize,
        estimator.fit_intercept,
    )
    train_rows, target_rows = (
        sample_of(rows.X[part], rows.y[part], rows.counts[part], units, classes)
        for part in (train, target)
    )
    seed %= 2**32
    features = train_rows.X[:, : rows.X.shape[1]]
    names = None if rows.groups is None else rows.groups[train]
    grouping = _grouping(estimator, features, train_rows.counts, names, seed)
    task = Task(
        train_rows,
        target_rows,
        SQUARED if classes is None else CROSS_ENTROPY,
        ridge=estimator._inner_ridge,
        has_constant=bool(units.constant),
        groups=grouping.codes(features, names),
        kl=None if estimator.kl == "auto" else float(estimator.kl),
        seed=seed,
        pools=estimator.refit != "train",
        significance=None if estimator.tol is None else _SIGNIFICANCE,
    )
    return Problem(rows, units, classes, train, target, grouping, task)


def sample_of(
    X: np.ndarray, y: np.ndarray, counts: np.ndarray, units: Units, classes: np.ndarray | None
) -> Sample:
    """Rows (n, d), numbers or classes (n,) and counts (n,), as a linear model sees them."""
    if classes is None:
        return Sample(units.rows(X), units.numbers(y), counts)
    return Sample(units.rows(X), np.equal.outer(y, classes).astype(float), counts)


def _grouping(
    estimator: Any,
    features: np.ndarray,
    counts: np.ndarray,
    names: np.ndarray | None,
    seed: int,
) -> Grouping:
    if estimator.weighting not in ("auto", "group"):
        return Grouping(None, None)
    if names is not None:
        return Grouping(np.unique(names), None)
    n_groups = min(estimator.n_groups, len(np.unique(features, axis=0)))
    clusters = KMeans(n_groups, n_init=_KMEANS_STARTS, random_state=seed)
    return Grouping(None, clusters.fit(features, sample_weight=counts).cluster_centers_)


def final_weights_of(problem: Problem, learnt: Learnt, with_target: bool) -> np.ndarray:
    """Weights of all rows for the final fit, (N,)."""
    weights = np.zeros(len(problem.rows.X))
    n_train = len(problem.train)
    weights[problem.train] = learnt.mixture.weights[:n_train]
    if with_target:
        weights[problem.target] = learnt.mixture.weights[n_train:]
    elif weights.any():
        # How much they count beside target rows says nothing without these.
        own = weights[problem.train]
        weights *= size(own, problem.task.train.counts) / own.sum()
    return weights


def learnt_attributes(problem: Problem, learnt: Learnt) -> dict[str, Any]:
    """What is told of the weights."""
    rows, n_given = problem.rows, problem.rows.n_given
    weights = final_weights_of(problem, learnt, with_target=False)[:n_given]
    total = weights.sum()
    weights = weights / (total or 1.0)
    histories = {family.name: family.fit.history for family in learnt.families}
    is_mixture = len(learnt.families) > 1
    return {
        "weights_": weights,
        **spread(weights, rows.counts[:n_given]),
        "l2_": learnt.mixture.ridge,
        "selected_": learnt.selected.name,
        "mixture_": {
            family.name: float(share)
            for family, share in zip(learnt.families, learnt.mixture.shares, strict=True)
        },
        "shift_detected_": learnt.mixture.is_shifted,
        "weight_params_": {family.name: family.fit.phi for family in learnt.families},
        "history_": histories if is_mixture else learnt.families[0].fit.history,
        "cv_results_": cv_results(problem.task, learnt),
        "n_iter_": max(1, learnt.selected.fit.n_iter),
        "_rule": _rule(problem, learnt),
    }


def equal_attributes(rows: Rows, l2: float) -> dict[str, Any]:
    """What is told of weights that nothing was learnt for."""
    weights = rows.counts / rows.counts.sum()
    return {
        "weights_": weights,
        **spread(weights, rows.counts),
        "l2_": l2,
        "selected_": "uniform",
        "mixture_": {"uniform": 1.0},
        "shift_detected_": None,
        "weight_params_": {},
        "history_": {},
        "cv_results_": {},
        "n_iter_": 1,
        "_rule": None,
    }


def warn_of_weights(problem: Problem, learnt: Learnt, size: float, solver: str) -> None:
    """Warn of a solver that has gone astray, and of weights on few rows."""
    if not learnt.selected.fit.converged:
        warn_user(
            f"solver={solver!r} has not converged: the loss of target rows has grown, or an inner "
            "problem is not solved. Lower inner_rate or outer_rate, or raise l2.",
            ConvergenceWarning,
        )
    n_target, n_parameters = len(problem.target), problem.task.train.X.shape[1]
    if problem.task.pools:
        size = min(size, float(learnt.mixture.weights[: len(problem.train)].sum()))
    if learnt.selected.name in ("target", "uniform") or size >= max(n_parameters, n_target):
        return
    which = f"{n_target} target rows"
    if size < n_parameters:
        which = f"{n_parameters} coefficients of a linear model"
    warn_user(
        f"The weights count as {size:.1f} training rows, fewer than the {which}. If that is not "
        "what you expect: a larger kl keeps the weights of few parameters nearer to equal ones, "
        "and of weighting='sample' fewer steps (max_iter) or a smaller outer_rate."
    )


def spread(weights: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Entropy in nats and effective sample size of weights (n,) that sum to 1, as if each
    occurrence of a row were a row; 0 without any weight."""
    some = weights > 0
    if not some.any():
        return {"entropy_": 0.0, "effective_sample_size_": 0.0}
    w, c = weights[some], counts[some]
    return {"entropy_": float(-w @ np.log(w / c)), "effective_sample_size_": size(w, c)}


def cv_results(task: Task, learnt: Learnt) -> dict[str, Any]:
    """How each family did on target rows that it had not seen."""
    counts = task.target.counts
    by_name = {family.name: family.losses for family in learnt.families}
    table: dict[str, Any] = {
        "family": list(by_name),
        "l2": np.array([family.ridge for family in learnt.families]),
        "share": learnt.mixture.shares,
        "mean_target_loss": np.array([counts @ each for each in by_name.values()]) / counts.sum(),
    }
    for name in ("uniform", "target"):
        if name in by_name and len(by_name) > 1:
            gaps = [difference(each, by_name[name], counts) for each in by_name.values()]
            table[f"difference_to_{name}"], table[f"stderr_to_{name}"] = np.array(gaps).T
    return table


def _rule(problem: Problem, learnt: Learnt) -> dict[str, Any]:
    """What tells the weights of other rows."""
    train, families = problem.task.train, learnt.families
    counts = np.concatenate([train.counts, problem.task.target.counts])
    logs = np.stack([log_relative(family.weights / counts) for family in families])
    names = [family.name for family in families]
    mixed = blended(names, learnt.mixture.shares, logs)[: train.n_rows]
    return {
        "shares": learnt.mixture.shares,
        "names": names,
        "rules": [family.fit.rule for family in families],
        # Occurrences of an average training row, and of the row that occurs most.
        "levels": np.array(
            [f.weights[: train.n_rows].sum() / train.counts.sum() for f in families]
        ),
        "tops": np.array([(family.weights / counts).max() for family in families]),
        "level": float(train.shares @ mixed),
        "units": vars(problem.units),
        "grouping": vars(problem.grouping),
    }


def weights_by_rule(rule: dict[str, Any], rows: Sample, groups: np.ndarray | None) -> np.ndarray:
    """Weights of rows in units of that of an average training row, (b,)."""
    d = len(rule["units"]["scale"])
    codes = Grouping(**rule["grouping"]).codes(rows.X[:, :d], groups)
    each = []
    for name, parts in zip(rule["names"], rule["rules"], strict=True):
        # Families without a rule: one free weight for each row does not carry over.
        log = log_weights(parts, rows, rows.X[:, :d], codes) if parts else np.zeros(len(rows.X))
        each.append(
            np.zeros(len(rows.X)) if name == "target" else np.exp(np.minimum(log, _LARGEST))
        )
    if rule["shares"].max() == 1:
        return each[int(rule["shares"].argmax())]
    occurrences = rule["levels"][:, np.newaxis] * np.stack(each)
    logs = [log_relative(row, top) for row, top in zip(occurrences, rule["tops"], strict=True)]
    return blended(rule["names"], rule["shares"], np.stack(logs)) / rule["level"]
