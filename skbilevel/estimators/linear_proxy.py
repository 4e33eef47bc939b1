"""Linear models that weights are learnt with: fits, predictions out of fold, and margins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skbilevel.objectives.linear_loss import LinearLoss
from skbilevel.objectives.reweighting import WeightedLinear
from skbilevel.solvers.weighted_newton import Minimum, minimum

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Sample:
    """Rows (n, p) of a linear model, a constant column among them, and labels (n, k): numbers, or
    one column a class."""

    X: np.ndarray
    Y: np.ndarray

    def at(self, index: np.ndarray) -> Sample:
        """Some of the rows."""
        return Sample(self.X[index], self.Y[index])

    def with_rows(self, other: Sample) -> Sample:
        """These rows and others."""
        return Sample(np.vstack([self.X, other.X]), np.vstack([self.Y, other.Y]))


def fitted(
    sample: Sample,
    loss: LinearLoss,
    ridge: float,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """theta*(w), (p, k), for weights that sum to 1; equal ones by default."""
    n_rows, p, k = len(sample.X), sample.X.shape[1], sample.Y.shape[1]
    w = np.full(n_rows, 1 / n_rows) if weights is None else weights
    # Rows that weigh next to nothing take as long as others.
    counts = w > 1e-9 * w.max()
    X, Y = _tensors(sample.X[counts], sample.Y[counts])
    problem = WeightedLinear(X, Y, loss, ridge)
    theta = torch.zeros(p * k, dtype=torch.float64)
    if start is not None:
        theta = torch.from_numpy(start.ravel())
    found = minimum(problem, torch.from_numpy(w[counts]), Minimum(theta), tol=_TOLERANCE)
    return found.theta.numpy().reshape(p, k)


def losses(sample: Sample, theta: np.ndarray, loss: LinearLoss) -> np.ndarray:
    """Of each row, (n,)."""
    outputs, labels = _tensors(sample.X @ theta, sample.Y)
    return loss.value(outputs, labels).numpy()


def margins(sample: Sample, theta: np.ndarray) -> np.ndarray:
    """Output of a row's class less the largest of any other, (n,)."""
    outputs = sample.X @ theta
    own = (outputs * sample.Y).sum(axis=1)
    return own - np.where(sample.Y > 0, -np.inf, outputs).max(axis=1)


def best_ridge(
    sample: Sample, loss: LinearLoss, ridges: Sequence[float], folds: Iterable[np.ndarray]
) -> float:
    """Of these, the one with the least loss on rows that a fit has not seen.

    ``folds`` are indices of rows that are held out together.
    """
    total = np.zeros(len(ridges))
    for fold in folds:
        seen, unseen = sample.at(np.setdiff1d(np.arange(len(sample.X)), fold)), sample.at(fold)
        theta = None
        # From the strongest to the weakest each is near the next.
        for number in np.argsort(ridges)[::-1]:
            theta = fitted(seen, loss, ridges[number], start=theta)
            total[number] += losses(unseen, theta, loss).sum()
    return ridges[int(total.argmin())]


def _tensors(*parts: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
