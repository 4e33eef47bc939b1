"""Linear models that weights are learnt with: fits, predictions out of fold, and margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from skbilevel.objectives.linear_loss import LinearLoss
from skbilevel.objectives.reweighting import WeightedLinear
from skbilevel.solvers.weighted_newton import Minimum, minimum

# A ridge is chosen by differences of losses that are larger than those of rough fits.
_TOLERANCE, _ROUGH = 1e-3, 1e-2


@dataclass(frozen=True)
class Sample:
    """Rows of a linear model.

    Attributes
    ----------
    X : ndarray of shape (n, p)
        With a constant column, if the model has one, as the last.
    Y : ndarray of shape (n, k)
        Numbers, or one column a class.
    counts : ndarray of shape (n,)
        How often each row occurs, positive.
    """

    X: np.ndarray
    Y: np.ndarray
    counts: np.ndarray

    @property
    def n_rows(self) -> int:
        """n."""
        return len(self.X)

    @property
    def shares(self) -> np.ndarray:
        """Counts that sum to 1, (n,)."""
        return self.counts / self.counts.sum()

    def at(self, index: np.ndarray) -> Sample:
        """Some of the rows."""
        return Sample(self.X[index], self.Y[index], self.counts[index])

    def without(self, index: np.ndarray) -> Sample:
        """The other rows."""
        return self.at(np.setdiff1d(np.arange(self.n_rows), index))

    def weighted(self, weights: np.ndarray) -> Sample:
        """The rows with other counts; those that weigh next to nothing are left out."""
        counts = weights > _NOTHING * weights.max()
        return replace(self.at(np.flatnonzero(counts)), counts=weights[counts])

    def with_rows(self, other: Sample) -> Sample:
        """These rows and others."""
        pairs = ((self.X, other.X), (self.Y, other.Y), (self.counts, other.counts))
        return Sample(*map(np.concatenate, pairs))


# Rows that weigh less than that of the heaviest take as long as others, and longer: products of
# denormal numbers are slow.
_NOTHING = 1e-9


def fitted(
    sample: Sample,
    loss: LinearLoss,
    ridge: float,
    start: np.ndarray | None = None,
    tol: float = _TOLERANCE,
) -> np.ndarray:
    """theta*(w), (p, k), with w the shares of the rows."""
    p, k = sample.X.shape[1], sample.Y.shape[1]
    X, Y, shares = _tensors(sample.X, sample.Y, sample.shares)
    theta = torch.zeros(p * k, dtype=torch.float64)
    if start is not None:
        theta = torch.from_numpy(start.ravel())
    found = minimum(WeightedLinear(X, Y, loss, ridge), shares, Minimum(theta), tol=tol)
    return found.theta.numpy().reshape(p, k)


def losses(sample: Sample, theta: np.ndarray, loss: LinearLoss) -> np.ndarray:
    """Of each row, (n,)."""
    outputs, labels = _tensors(sample.X @ theta, sample.Y)
    return loss.at(outputs, labels).value.numpy()


def margins(sample: Sample, theta: np.ndarray) -> np.ndarray:
    """Output of a row's class less the largest of any other, (n,)."""
    outputs = sample.X @ theta
    own = (outputs * sample.Y).sum(axis=1)
    return own - np.where(sample.Y > 0, -np.inf, outputs).max(axis=1)


def random_folds(n_rows: int, n_folds: int, rng: np.random.RandomState) -> list[np.ndarray]:
    """Indices of rows that are held out together; as many folds as rows if these are fewer."""
    n_folds, order = min(n_folds, n_rows), rng.permutation(n_rows)
    return [order[fold::n_folds] for fold in range(n_folds)]


class RidgeChoice(NamedTuple):
    """A ridge, and what it was chosen by.

    Attributes
    ----------
    ridge : float
    thetas : list of ndarray of shape (p, k)
        Near the model with this ridge of the rows without each fold.
    """

    ridge: float
    thetas: list[np.ndarray]


def best_ridge(
    sample: Sample, loss: LinearLoss, ridges: Sequence[float], folds: Sequence[np.ndarray]
) -> RidgeChoice:
    """Of these, the one with the least loss on folds that a fit has not seen."""
    total, thetas = np.zeros(len(ridges)), []
    for fold in folds:
        seen, unseen = sample.without(fold), sample.at(fold)
        theta, path = None, {}
        # From the strongest to the weakest each is near the next.
        for number in np.argsort(ridges)[::-1]:
            theta = path[number] = fitted(seen, loss, ridges[number], theta, tol=_ROUGH)
            total[number] += unseen.counts @ losses(unseen, theta, loss)
        thetas.append(path)
    best = int(total.argmin())
    return RidgeChoice(ridges[best], [path[best] for path in thetas])


def _tensors(*parts: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
