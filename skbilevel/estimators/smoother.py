"""A linear smoother for many outputs: ridge regression on features, with a ridge for each output.

The weights that it gives to training rows are known, which the second-order correction of
orthogonal scores needs. Everything is told in the coordinates of the principal axes of the
features, in which the ridges of all outputs are diagonal: one factorisation serves every output
and every ridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics.pairwise import rbf_kernel

# Eigenvalues of the kernel of the centres below this share of the largest are rounding.
_LEAST_EIGENVALUE = 1e-8
# Leverage of a training row, at most, where its residual is scaled up by what it has fitted.
_MOST_LEVERAGE = 0.95
# Training rows at a time, where a product is needed of every ridge with every row.
_BLOCK = 512
RIDGES = tuple(np.logspace(-7, 0, 15))


@dataclass(frozen=True)
class KernelFeatures:
    """Nyström features of a Gaussian kernel, exp(-|x - c|^2 / (2 bandwidth^2)).

    Attributes
    ----------
    centres : ndarray of shape (c, d)
    bandwidth : float
    root : ndarray of shape (c, q)
        U l^-1/2 of the kernel matrix of the centres, whose eigenvalues are l.
    """

    centres: np.ndarray
    bandwidth: float
    root: np.ndarray

    @classmethod
    def of(cls, centres: np.ndarray, bandwidth: float) -> KernelFeatures:
        """For centres (c, d)."""
        values, vectors = np.linalg.eigh(_kernel(centres, centres, bandwidth))
        kept = values > _LEAST_EIGENVALUE * values[-1]
        return cls(centres, bandwidth, vectors[:, kept] / np.sqrt(values[kept]))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """(n, q), for rows (n, d)."""
        return _kernel(X, self.centres, self.bandwidth) @ self.root


@dataclass(frozen=True)
class Smoother:
    """Ridge regression of outputs on features, in the coordinates of their principal axes.

    With t the coordinates of a row, after centring, and n training rows, row j has the weight
    ``1/n + sum_q t_q t_jq / (s_q + lambda) / n``.

    Attributes
    ----------
    center : ndarray of shape (q,)
    axes : ndarray of shape (q, r)
    spread : ndarray of shape (r,)
        s, the variance along each axis.
    ridges : ndarray of shape (k,)
        lambda of each output.
    intercept : ndarray of shape (k,)
    coef : ndarray of shape (r, k)
    train : ndarray of shape (n, r)
        Coordinates of the training rows.
    noise : ndarray of shape (n, k)
        Residuals of the training rows, over the root of what their leverage leaves.
    """

    center: np.ndarray
    axes: np.ndarray
    spread: np.ndarray
    ridges: np.ndarray
    intercept: np.ndarray
    coef: np.ndarray
    train: np.ndarray
    noise: np.ndarray

    def coordinates(self, features: np.ndarray) -> np.ndarray:
        """(b, r), for features (b, q)."""
        return (features - self.center) @ self.axes

    def predict(self, coordinates: np.ndarray) -> np.ndarray:
        """(b, k), for coordinates (b, r)."""
        return self.intercept + coordinates @ self.coef

    def weights(self, coordinates: np.ndarray, output: int) -> np.ndarray:
        """Of the training rows, (b, n), in the prediction of an output."""
        shrunk = coordinates / (self.spread + self.ridges[output])
        return (1 + shrunk @ self.train.T) / len(self.train)

    def shared_noise(self, coordinates: np.ndarray) -> np.ndarray:
        """Mean over rows i, with coordinates (b, r), of sum_j s_ij s'_ij e_j e'_j for each pair of
        outputs, (k, k), with s and s' their `weights` and e and e' their noise.

        It is what the product of two predictions expects too much of where both are made of the
        same rows, whose outputs are noisy together: sum_j s_ij s'_ij Cov(e_j, e'_j). No matrix of
        all pairs of rows is needed: with C the mean of t_i t_i', row j has t_j' S C S' t_j.
        """
        gram = _with_constant(coordinates).T @ _with_constant(coordinates) / len(coordinates)
        # Outputs of one ridge have the same weights.
        ridges, of = np.unique(self.ridges, return_inverse=True)
        shrink = _with_constant(1 / (self.spread + ridges[:, np.newaxis])) / len(self.noise)
        total = np.zeros((len(of), len(of)))
        for start in range(0, len(self.noise), _BLOCK):
            noise = self.noise[start : start + _BLOCK]
            each = shrink[:, np.newaxis] * _with_constant(self.train[start : start + _BLOCK])
            pairs = (each @ gram).transpose(1, 0, 2) @ each.transpose(1, 2, 0)
            total += np.einsum("ja,jb,jab->ab", noise, noise, pairs[:, of][:, :, of])
        return total


def fit_smoother(
    features: np.ndarray,
    Y: np.ndarray,
    ridges: Sequence[float] = RIDGES,
    undersmooth: float = 1.0,
) -> Smoother:
    """Fit outputs Y (n, k) to features (n, q), each with the ridge of the least generalised
    cross-validation error, ``n |y - y_hat|^2 / (n - df)^2``, times ``undersmooth``."""
    n_rows, center = len(features), features.mean(axis=0)
    centred, intercept = features - center, Y.mean(axis=0)
    spread, axes = np.linalg.eigh(centred.T @ centred / n_rows)
    kept = spread > np.finfo(float).eps * n_rows * spread[-1]
    spread, axes = spread[kept], axes[:, kept]
    train = centred @ axes
    along, total = train.T @ (Y - intercept) / n_rows, np.square(Y - intercept).mean(axis=0)
    chosen = undersmooth * _by_cross_validation(spread, along, total, np.asarray(ridges), n_rows)
    coef = along / (spread[:, np.newaxis] + chosen)
    leverage = (1 + np.square(train) @ (1 / (spread[:, np.newaxis] + chosen))) / n_rows
    residuals = Y - intercept - train @ coef
    noise = residuals / np.sqrt(1 - np.minimum(leverage, _MOST_LEVERAGE))
    return Smoother(center, axes, spread, chosen, intercept, coef, train, noise)


def _by_cross_validation(
    spread: np.ndarray, along: np.ndarray, total: np.ndarray, ridges: np.ndarray, n_rows: int
) -> np.ndarray:
    """The ridge of each output, (k,), from outputs along the axes (r, k) and their variance."""
    shrink = spread / (spread + ridges[:, np.newaxis])
    freedom = 1 + shrink.sum(axis=1)
    # |y - y_hat|^2 / n is the variance less what shrunk coordinates explain.
    explained = (shrink * (2 - shrink)) @ (along**2 / spread[:, np.newaxis])
    error = np.maximum(total - explained, 0) / (1 - freedom[:, np.newaxis] / n_rows) ** 2
    error[freedom >= n_rows] = np.inf
    return ridges[error.argmin(axis=0)]


def _with_constant(rows: np.ndarray) -> np.ndarray:
    """Rows (b, r) behind a 1, (b, r + 1)."""
    return np.column_stack([np.ones(len(rows)), rows])


def _kernel(X: np.ndarray, centres: np.ndarray, bandwidth: float) -> np.ndarray:
    return rbf_kernel(X, centres, gamma=1 / (2 * bandwidth**2))
