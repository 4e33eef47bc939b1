"""Conditional moments that are linear in their parameters, with nuisances fitted on other folds.

For r = D'omega - y the gradient of ``F = 1/2 E[E[r | X]^2]`` is A omega - b at every omega, of
which the nuisances E[y | X] and E[D | X] know nothing: they are fitted once. `linear_moments` of
`objectives.orthogonal` has the scores; this is where predictions out of fold become estimates,
covariances and roots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skbilevel.estimators.gradient_result import GradientResult
from skbilevel.estimators.smoother import RIDGES, fit_smoother
from skbilevel.objectives.orthogonal import linear_moments


@dataclass(frozen=True)
class Nuisances:
    """What has been told of rows by models that have not seen them.

    Attributes
    ----------
    mu : ndarray of shape (n,)
        E[y | X].
    kappa : ndarray of shape (n, p)
        E[D | X].
    shared : ndarray of shape (p + 1, p + 1)
        `Smoother.shared_noise` of y and D, the mean over rows; 0 without a second-order
        correction.
    """

    mu: np.ndarray
    kappa: np.ndarray
    shared: np.ndarray


@dataclass(frozen=True)
class LinearMomentFit:
    """Scores A_i omega - b_i of all rows.

    Attributes
    ----------
    matrices : ndarray of shape (n, p, p)
    vectors : ndarray of shape (n, p)
    """

    matrices: np.ndarray
    vectors: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """A, (p, p): the Hessian of F."""
        return self.matrices.mean(axis=0)

    def scores(self, omega: np.ndarray) -> np.ndarray:
        """(n, p); their mean is the gradient."""
        return self.matrices @ omega - self.vectors

    def gradient(self, omega: np.ndarray) -> GradientResult:
        """At omega, (p,)."""
        scores = self.scores(omega)
        return GradientResult(scores.mean(axis=0), _covariance(scores), scores)

    def root(self) -> tuple[np.ndarray, np.ndarray]:
        """omega where the gradient is 0, (p,), and its covariance A^-1 cov(psi) A^-1 / n.

        Raises
        ------
        numpy.linalg.LinAlgError
            If A is singular.
        """
        matrix = self.matrix
        omega = np.linalg.solve(matrix, self.vectors.mean(axis=0))
        inverse = np.linalg.inv(matrix)
        return omega, inverse @ _covariance(self.scores(omega)) @ inverse.T


def smoothed(
    features: np.ndarray,
    y: np.ndarray,
    slopes: np.ndarray,
    folds: Sequence[np.ndarray],
    ridges: Sequence[float] = RIDGES,
    undersmooth: float = 1.0,
    second_order: bool = True,
) -> Nuisances:
    """Nuisances by smoothers of features (n, q), each fitted without the fold that it tells."""
    outputs = np.column_stack([y, slopes])
    told, shared = np.empty_like(outputs), np.zeros((outputs.shape[1],) * 2)
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(y)), fold)
        smoother = fit_smoother(features[rest], outputs[rest], ridges, undersmooth)
        at = smoother.coordinates(features[fold])
        told[fold] = smoother.predict(at)
        if second_order:
            shared += len(fold) / len(y) * smoother.shared_noise(at)
    return Nuisances(told[:, 0], told[:, 1:], shared)


def moment_fit(y: np.ndarray, slopes: np.ndarray, nuisances: Nuisances) -> LinearMomentFit:
    """Scores of rows with numbers y (n,) and slopes D (n, p).

    The products K K' and K mu of eq. (2) are of nuisances of the same training rows, and expect
    their shared noise too much, which is taken from them.
    """
    parts = (y, slopes, nuisances.mu, nuisances.kappa)
    matrix, vector = linear_moments(*map(torch.from_numpy, map(np.ascontiguousarray, parts)))
    shared = nuisances.shared
    return LinearMomentFit(matrix.numpy() + shared[1:, 1:], vector.numpy() + shared[1:, 0])


def _covariance(scores: np.ndarray) -> np.ndarray:
    """Of the mean of scores (n, p), (p, p)."""
    return np.atleast_2d(np.cov(scores, rowvar=False)) / len(scores)
