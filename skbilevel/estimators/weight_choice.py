"""Which weights to believe: families judged by target rows that they have not seen, and mixed.

If equal weights are not clearly worse than the best family, they stay: target rows are few, and
the best of several is best by luck too. Otherwise the weights are mixed by how often, in Bayesian
bootstraps of the target rows, each family is the likeliest.

Mixed are logarithms of weights. A row that a family of some credit leaves out is then all but left
out: a wrong row that stays biases the model, a right row that goes only makes it a little less
sure. The family of target rows alone tells no training row from another: its share is by how much
all of them count less.

Reference: Clyde and Lee (2001), Bagging and the Bayesian bootstrap, AISTATS, for the resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from skbilevel.estimators.linear_proxy import Sample, fitted, losses, random_folds
from skbilevel.estimators.weight_families import FAMILIES
from skbilevel.estimators.weight_task import Task, WeightFit, pooled, size

_N_DRAWS = 400
# Equal weights are worse if by more than one standard error, and either by three or by three
# tenths of the loss: of the best of six by luck, the gain is small and its error is not.
_LIKELY, _CERTAIN, _LARGE = 1.0, 3.0, 1.3
# A weight is at least this much of the family's largest, where logarithms are mixed.
_LEAST = 1e-3
# Ridges per unit of weight, by whether labels are numbers; "target" has fewer rows.
RIDGES = {True: (1e-4, 1e-2, 1e-1), False: (1e-4,)}
TARGET_RIDGES = {True: (1e-4, 1e-3, 1e-2, 1e-1, 1.0), False: (1e-5, 1e-4, 1e-3)}


@dataclass(frozen=True)
class Judged:
    """A family, and how it does on target rows that it has not seen.

    Attributes
    ----------
    name : str
    fit : WeightFit
        To all target rows.
    weights : ndarray of shape (n + m,)
        Of training and target rows, in occurrences.
    ridge : float
    losses : ndarray of shape (m,)
        Of the target rows, out of fold.
    """

    name: str
    fit: WeightFit
    weights: np.ndarray
    ridge: float
    losses: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """Weights of families that have been mixed.

    Attributes
    ----------
    shares : ndarray of shape (f,)
        Of the families, with sum 1.
    weights : ndarray of shape (n + m,)
        Of training and target rows, in occurrences.
    ridge : float
    is_shifted : bool or None
        Whether equal weights are clearly worse; None if there was no choice.
    """

    shares: np.ndarray
    weights: np.ndarray
    ridge: float
    is_shifted: bool | None


def final_weights(name: str, fit: WeightFit, task: Task) -> np.ndarray:
    """Of training and target rows, (n + m,), in occurrences."""
    if name == "uniform":
        return np.concatenate([task.train.counts, task.target.counts])
    return pooled(fit.weights, task.train, task.target, fit.mass)


def judged(task: Task, name: str, ridges: Sequence[float] | None, n_folds: int) -> Judged:
    """Fit a family, and once more without each fold of the target."""
    setting, fit = FAMILIES[name].tune(task), FAMILIES[name].fit

    def without(fold: np.ndarray) -> tuple[Sample, np.ndarray]:
        rest = task.judged_by_others(fold)
        return rest.target, final_weights(name, fit(rest, setting), rest)

    told = _out_of_fold(task, name, ridges_of(name, task, ridges), n_folds, without)
    found = fit(task, setting)
    return Judged(name, found, final_weights(name, found, task), *told)


def with_ridge(
    task: Task, name: str, fit: WeightFit, ridges: Sequence[float], n_folds: int
) -> Judged:
    """The ridge for weights that have been learnt, by target rows left out of the fit. They are
    not left out of the weights, so that their losses tell ridges apart and are not told."""
    weights = final_weights(name, fit, task)

    def without(fold: np.ndarray) -> tuple[Sample, np.ndarray]:
        rest = task.target.without(fold)
        return rest, np.concatenate([weights[: task.train.n_rows], rest.counts])

    ridge, told = _out_of_fold(task, name, ridges, n_folds, without)
    return Judged(name, fit, weights, ridge, np.full_like(told, np.nan))


def ridges_of(name: str, task: Task, ridges: Sequence[float] | None) -> Sequence[float]:
    """Those to choose from, unless some are given."""
    if ridges is not None:
        return ridges
    return (TARGET_RIDGES if name == "target" else RIDGES)[task.loss.is_quadratic]


def _out_of_fold(
    task: Task,
    name: str,
    ridges: Sequence[float],
    n_folds: int,
    without: Callable[[np.ndarray], tuple[Sample, np.ndarray]],
) -> tuple[float, np.ndarray]:
    """A ridge, and the losses of target rows with it, (m,)."""
    told = np.empty((len(ridges), task.target.n_rows))
    for fold in random_folds(task.target.n_rows, n_folds, task.rng()):
        rest, weights = without(fold)
        sample, judges = task.train.with_rows(rest).weighted(weights), task.target.at(fold)
        theta = None
        # From the strongest to the weakest each is near the next.
        for number in np.argsort(ridges)[::-1]:
            theta = fitted(sample, task.loss, ridges[number], theta)
            told[number, fold] = losses(judges, theta, task.loss)
    slack = 0.0 if name == "target" else 1.0
    chosen = _least_ridge(ridges, told, task.target.counts, slack)
    return ridges[chosen], told[chosen]


def _least_ridge(
    ridges: Sequence[float], told: np.ndarray, counts: np.ndarray, slack: float
) -> int:
    """Number of the least ridge that is worse than the best by ``slack`` standard errors at most,
    by losses (r, m).

    Where training rows are many, few target rows hardly tell small ridges apart, and one that is
    too large by luck is a bias. Of target rows alone it is the best that is wanted.
    """
    best = told[int((told @ counts).argmin())]
    for number in np.argsort(ridges):
        loss, error = difference(told[number], best, counts)
        if loss <= slack * error:
            return int(number)
    raise AssertionError("the best is not clearly worse than itself")


def mixed(task: Task, families: Sequence[Judged]) -> Mixture:
    """Mix families, of which the first is of equal weights."""
    each = np.stack([family.losses for family in families])
    shares, is_shifted = np.eye(len(families))[0], _is_shifted(each, task.target.counts)
    if not is_shifted:
        return Mixture(shares, families[0].weights, families[0].ridge, False)
    counts = np.concatenate([task.train.counts, task.target.counts])
    # Rows that count make a model sure, which few target rows do not show.
    sizes = np.array([size(family.weights, counts) for family in families])
    prior = np.array([FAMILIES[family.name].prior for family in families])
    shares = _shares(each, prior * sizes**2, task)
    logs = np.stack([log_relative(family.weights / counts) for family in families])
    names = [family.name for family in families]
    weights = counts * blended(names, shares, logs)
    weights[: task.train.n_rows] *= shares @ [name != "target" for name in names]
    weights *= size(weights, counts) / weights.sum()
    ridge = float(np.exp(shares @ np.log([family.ridge for family in families])))
    return Mixture(shares, weights, ridge, True)


def blended(names: Sequence[str], shares: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Geometric mean of weights with these logarithms (f, b), by the shares (f,) of all families
    but "target"; 1 if that has every share."""
    others = np.where([name == "target" for name in names], 0.0, shares)
    return np.exp(others / (others.sum() or 1.0) @ logs)


def log_relative(weights: np.ndarray, top: float | None = None) -> np.ndarray:
    """Logarithm of weights in units of the largest, and not less than that of a thousandth."""
    return np.log(np.maximum(weights / (top or weights.max()), _LEAST))


def difference(losses: np.ndarray, others: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean of losses less others, (m,) each, and its standard error."""
    share, gap = counts / counts.sum(), losses - others
    mean = float(share @ gap)
    return mean, float(np.sqrt(share @ np.square(gap - mean) / _n_judges(counts)))


def _is_shifted(each: np.ndarray, counts: np.ndarray) -> bool:
    best = int((each @ counts).argmin())
    gain, error = difference(each[0], each[best], counts)
    is_large = counts @ each[0] > _LARGE * (counts @ each[best])
    return gain > _LIKELY * error and (is_large or gain > _CERTAIN * error)


def _shares(each: np.ndarray, prior: np.ndarray, task: Task) -> np.ndarray:
    """Mean over Bayesian bootstraps of the families' shares by their likelihood and prior.

    Of numbers, log-likelihood is ``-(m/2) log`` of the mean loss, which has its scale maximised
    out; of classes, minus m times the mean loss.
    """
    counts = task.target.counts
    n_judges = _n_judges(counts)
    draws = task.rng().dirichlet(counts * n_judges / counts.sum(), _N_DRAWS) @ each.T
    tiny = np.finfo(float).tiny
    loss = np.log(np.maximum(draws, tiny)) / 2 if task.loss.is_quadratic else draws
    return softmax(np.log(prior) - n_judges * loss, axis=1).mean(axis=0)


def _n_judges(counts: np.ndarray) -> float:
    """Target rows as far as judging goes: their effective number, whatever the scale of counts."""
    return float(counts.sum() ** 2 / np.square(counts).sum())
