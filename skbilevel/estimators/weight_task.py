"""What weights are learnt from, and what is learnt: the types that all families share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from skbilevel.estimators.linear_proxy import Sample, fitted, losses
from skbilevel.objectives.linear_loss import LinearLoss
from skbilevel.objectives.reweighting import ReweightedLinear, divergence, reweighted_linear
from skbilevel.solvers.parametric_weights import Penalty


@dataclass(frozen=True)
class Task:
    """Training rows, and a sample of the distribution that matters.

    Attributes
    ----------
    train, target : Sample
    loss : LinearLoss
    ridge : float
        Of the inner problem.
    has_constant : bool
        Whether the last column of X is one.
    groups : ndarray of shape (n,), int
        Of the training rows.
    kl : float or None
        Strength of the divergence from equal weights; None is for what each family chooses.
    pools : bool
        Whether target rows are to be in the final fit.
    seed : int
    significance : float or None
        At which a gradient in few parameters has to be told from 0 for a descent to go on; None
        is for any gradient.
    """

    train: Sample
    target: Sample
    loss: LinearLoss
    ridge: float
    has_constant: bool
    groups: np.ndarray
    kl: float | None
    seed: int
    pools: bool = True
    significance: float | None = None

    def features(self, sample: Sample) -> np.ndarray:
        """Rows without the constant."""
        return sample.X[:, :-1] if self.has_constant else sample.X

    def judged_by_others(self, index: np.ndarray) -> Task:
        """Without these target rows."""
        return replace(self, target=self.target.without(index))

    def problem(self, judges: Sample, rows: Sample | None = None) -> ReweightedLinear:
        """With these rows as the target, of training rows or others."""
        rows = self.train if rows is None else rows
        arrays = (rows.X, rows.Y, judges.X, judges.Y, judges.shares)
        X, Y, X_target, Y_target, shares = map(torch.from_numpy, arrays)
        return reweighted_linear(X, Y, X_target, Y_target, self.loss, self.ridge, shares)

    def penalty(self, strength: float, rows: Sample | None = None) -> Penalty:
        """The divergence from equal weights of training rows or others, ``strength`` times the
        loss of one who knows nothing, or `kl` times if that is given."""
        shares = (self.train if rows is None else rows).shares
        times = strength if self.kl is None else self.kl
        prior, strength = torch.from_numpy(shares), times * self.unit

        def penalty(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value, slope = divergence(weights, prior)
            return strength * value, strength * slope

        return penalty

    @cached_property
    def unit(self) -> float:
        """Of classes, the loss of equal shares; of numbers, that of the target rows under a model
        of all training rows."""
        if not self.loss.is_quadratic:
            return float(np.log(self.train.Y.shape[1]))
        theta = fitted(self.train, self.loss, self.ridge)
        return float(self.target.shares @ losses(self.target, theta, self.loss))

    def rng(self) -> np.random.RandomState:
        """A generator that starts alike for whoever asks, so that families do not depend on which
        others are tried."""
        return np.random.RandomState(self.seed)


@dataclass(frozen=True)
class WeightFit:
    """Weights that have been learnt.

    Attributes
    ----------
    weights : ndarray of shape (n,)
        Of the training rows, with sum 1; or 0, if only target rows are to count.
    phi : ndarray of shape (q,)
        What they are made of, if they are made of little.
    history : dict of str to list of float
    rule : dict
        What tells the weight of a row that has not been seen: arrays and numbers.
    theta : ndarray of shape (p, k) or None
        Of a solver that moves it along with the weights.
    converged : bool
    n_iter : int
        Steps, or evaluations of the outer loss.
    mass : float or None
        How many rows the weights count as together; None is for their effective sample size.
    """

    weights: np.ndarray
    phi: np.ndarray = field(default_factory=lambda: np.zeros(0))
    history: dict[str, list[float]] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    theta: np.ndarray | None = None
    converged: bool = True
    n_iter: int = 1
    mass: float | None = None


def size(weights: np.ndarray, counts: np.ndarray) -> float:
    """Kish's effective sample size of weights (n,) of rows that occur so many times each, as if
    every occurrence were a row of its own."""
    return float(weights.sum() ** 2 / np.sum(np.square(weights) / counts))


def pooled(
    weights: np.ndarray, train: Sample, target: Sample, mass: float | None = None
) -> np.ndarray:
    """Weights of training and target rows together, (n + m,), in occurrences of a row.

    Training rows, whose weights sum to 1, count as ``mass`` rows, by default their effective
    sample size, and each target row once.
    """
    if mass is None:
        mass = size(weights, train.counts) if weights.any() else 0.0
    return np.concatenate([weights * mass, target.counts])
