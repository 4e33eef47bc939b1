"""A linear smoother for many outputs: ridge regression on features, with a ridge for each output.

The weights that it gives to training rows are known, which the second-order correction of
orthogonal scores needs. Everything is told in the coordinates of the principal axes of the
features, in which the ridges of all outputs are diagonal: one factorisation serves every output
and every ridge. Rows enter by sums alone, so that they can come in blocks, and so that many
training sets that share rows share their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from sklearn.metrics.pairwise import rbf_kernel

# Eigenvalues of the kernel of the centres below this share of the largest are rounding.
_LEAST_EIGENVALUE = 1e-8
# Leverage of a training row, at most, where its residual is scaled up by what it has fitted.
_MOST_LEVERAGE = 0.95
# Axes whose variance is below this share of every ridge have no part in weights: it enters these
# squared.
_LEAST_SHARE = 1e-4
RIDGES = tuple(np.logspace(-7, 0, 15))


@dataclass(frozen=True)
class KernelFeatures:
    """Nyström features of a Gaussian kernel, ``exp(-|x - c|^2 / (2 bandwidth^2))``.

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
class Gram:
    """Sums over rows of products of their features behind a constant, z = (1, features).

    Attributes
    ----------
    total : ndarray of shape (q + 1, q + 1)
        sum_i w_i z_i z_i'.
    """

    total: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, weights: np.ndarray | None = None) -> Gram:
        """Of features (n, q), with weights (n,)."""
        z = with_constant(features)
        return cls(z.T @ (z if weights is None else weights[:, np.newaxis] * z))

    @property
    def n_rows(self) -> float:
        """How many rows, or the sum of their weights."""
        return float(self.total[0, 0])

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.total + other.total)

    def __sub__(self, other: Gram) -> Gram:
        return Gram(self.total - other.total)


@dataclass(frozen=True)
class Products:
    """Sums over rows of products of outputs with z, and with themselves.

    Attributes
    ----------
    with_features : ndarray of shape (q + 1, k)
    squares : ndarray of shape (k,)
    """

    with_features: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(
        cls, features: np.ndarray, Y: np.ndarray, weights: np.ndarray | None = None
    ) -> Products:
        """Of features (n, q) and outputs (n, k), with weights (n,)."""
        weighted = Y if weights is None else weights[:, np.newaxis] * Y
        return cls(with_constant(features).T @ weighted, (weighted * Y).sum(axis=0))

    def __add__(self, other: Products) -> Products:
        return Products(self.with_features + other.with_features, self.squares + other.squares)

    def __sub__(self, other: Products) -> Products:
        return Products(self.with_features - other.with_features, self.squares - other.squares)


@dataclass(frozen=True)
class Axes:
    """Principal axes of the features of training rows.

    Attributes
    ----------
    n_rows : float
        How many rows, or the sum of their weights: a weight says how often a row occurs.
    center : ndarray of shape (q,)
    axes : ndarray of shape (q, r)
    spread : ndarray of shape (r,)
        s, the variance along each axis.
    """

    n_rows: float
    center: np.ndarray
    axes: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, gram: Gram) -> Axes:
        """Of training rows with these sums."""
        center = gram.total[0, 1:] / gram.n_rows
        spread, axes = np.linalg.eigh(gram.total[1:, 1:] / gram.n_rows - np.outer(center, center))
        kept = spread > np.finfo(float).eps * gram.n_rows * max(spread[-1:], default=0.0)
        return cls(gram.n_rows, center, axes[:, kept], spread[kept])

    def coordinates(self, features: np.ndarray) -> np.ndarray:
        """(b, r), for features (b, q)."""
        return (features - self.center) @ self.axes


@dataclass(frozen=True)
class Smoother:
    """Ridge regression of outputs on features.

    With t the coordinates of a row on the axes, and n training rows, row j has the weight
    ``1/n + sum_q t_q t_jq / (s_q + lambda) / n`` in the prediction of an output.

    Attributes
    ----------
    axes : Axes
    ridges : ndarray of shape (k,)
        lambda of each output.
    intercept : ndarray of shape (k,)
    coef : ndarray of shape (r, k)
    """

    axes: Axes
    ridges: np.ndarray
    intercept: np.ndarray
    coef: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(b, k), for features (b, q)."""
        slopes = self.axes.axes @ self.coef
        return self.intercept - self.axes.center @ slopes + features @ slopes

    def weights(self, features: np.ndarray, train: np.ndarray, output: int) -> np.ndarray:
        """Of training rows, (b, n), in the prediction of an output, from features of both."""
        at, of = self.axes.coordinates(features), self.axes.coordinates(train)
        shrunk = at / (self.axes.spread + self.ridges[output])
        return (1 + shrunk @ of.T) / self.axes.n_rows


@dataclass(frozen=True)
class Echo:
    """What training rows say twice: where two outputs are predicted by the same rows, the product
    of their predictions expects too much of what noise the outputs share.

    Attributes
    ----------
    axes : Axes
        Those that weights need.
    ridges : ndarray of shape (u,)
        Those that differ.
    which : ndarray of shape (k,)
        Index of the ridge of each output.
    shrunk : ndarray of shape (u, r + 1, r + 1)
        S C S' for pairs of a ridge with itself, as a root: ``R`` with ``R' R = S C S``, where S
        has 1 / (s + lambda) on its diagonal and C is the mean of t t' over rows that are told.
    """

    axes: Axes
    ridges: np.ndarray
    which: np.ndarray
    shrunk: np.ndarray

    @classmethod
    def of(cls, smoother: Smoother, told: Gram) -> Echo:
        """For rows that are told, by their sums."""
        ridges, which = np.unique(smoother.ridges, return_inverse=True)
        axes = smoother.axes
        kept = axes.spread > _LEAST_SHARE * ridges.min(initial=np.inf)
        axes = Axes(axes.n_rows, axes.center, axes.axes[:, kept], axes.spread[kept])
        # (1, t) of a row is this matrix times its (1, features).
        turn = np.zeros((len(axes.spread) + 1, len(axes.center) + 1))
        turn[0, 0], turn[1:, 0], turn[1:, 1:] = 1, -axes.axes.T @ axes.center, axes.axes.T
        values, vectors = np.linalg.eigh(turn @ told.total @ turn.T / told.n_rows)
        root = np.sqrt(np.maximum(values, 0))[:, np.newaxis] * vectors.T
        shrink = with_constant(1 / (axes.spread + ridges[:, np.newaxis])) / axes.n_rows
        return cls(axes, ridges, which, root * shrink[:, np.newaxis])

    def of_rows(
        self, features: np.ndarray, residuals: np.ndarray, starts: np.ndarray | None = None
    ) -> np.ndarray:
        """Sum over training rows j, with features (b, q) and residuals (b, k), of the mean over
        rows i that are told of ``s_ij s'_ij e_j e'_j`` for each pair of outputs, (k, k).

        s and s' are the weights of the two outputs, and e and e' what their residuals are without
        the row's own part in its prediction: residual / sqrt(1 - leverage). No matrix of all pairs
        of rows is needed, as the mean of ``s_ij s'_ij`` over i is ``t_j' S C S' t_j``. Where rows
        share noise in groups, which begin at ``starts``, sums ``s_ij e_j`` over a group take the
        place of those of a row.
        """
        t = with_constant(self.axes.coordinates(features))
        leverage = np.minimum(self._leverage(t), _MOST_LEVERAGE)
        noise = residuals / np.sqrt(1 - leverage)[:, self.which]
        each = np.stack([t @ root.T for root in self.shrunk])
        if starts is not None:
            weighted = each[self.which] * noise.T[:, :, np.newaxis]
            of_group = np.add.reduceat(weighted, starts, axis=1).reshape(len(self.which), -1)
            return of_group @ of_group.T
        total = np.zeros((residuals.shape[1],) * 2)
        for one, other in combinations_with_replacement(range(len(self.ridges)), 2):
            a, b = self.which == one, self.which == other
            pairs = np.einsum("ir,ir->i", each[one], each[other])
            block = noise[:, a].T @ (pairs[:, np.newaxis] * noise[:, b])
            total[np.ix_(a, b)] = block
            total[np.ix_(b, a)] = block.T
        return total

    def _leverage(self, t: np.ndarray) -> np.ndarray:
        """(b, u), of training rows with coordinates behind a constant."""
        inverse = with_constant(1 / (self.axes.spread + self.ridges[:, np.newaxis]))
        return np.square(t) @ inverse.T / self.axes.n_rows


def fitted_smoother(
    axes: Axes,
    products: Products,
    ridges: Sequence[float] | np.ndarray = RIDGES,
    undersmooth: float = 1.0,
) -> Smoother:
    """The smoother of outputs with these products, each with the ridge of the least generalised
    cross-validation error, ``n |y - y_hat|^2 / (n - df)^2``, times ``undersmooth``."""
    chosen = np.asarray(ridges)[_errors(axes, products, ridges).argmin(axis=0)]
    return with_ridges(axes, products, undersmooth * chosen)


def least_errors(axes: Axes, products: Products, ridges: Sequence[float]) -> np.ndarray:
    """The generalised cross-validation error of the best ridge of each output, (k,)."""
    return _errors(axes, products, ridges).min(axis=0)


def held_out_errors(
    grams: Sequence[Gram], products: Sequence[Products], ridges: Sequence[float]
) -> np.ndarray:
    """Mean squared error of each ridge and output, (len(ridges), k), on parts of the rows that are
    left out in turn; of all of them no more than sums is needed.

    Rows of a group are noisy together, and generalised cross-validation takes what they share for
    signal, as it leaves out single rows; parts that keep groups together do not.
    """
    total, all_products = sum_of(grams), sum_of(products)
    errors = np.zeros((len(ridges), len(all_products.squares)))
    for gram, part in zip(grams, products, strict=True):
        axes, of_rest = Axes.of(total - gram), all_products - part
        for number, ridge in enumerate(ridges):
            model = with_ridges(axes, of_rest, np.full(len(part.squares), ridge))
            slopes = axes.axes @ model.coef
            b = np.vstack([model.intercept - axes.center @ slopes, slopes])
            fit = np.einsum("qk,qr,rk->k", b, gram.total, b)
            errors[number] += part.squares - 2 * (b * part.with_features).sum(axis=0) + fit
    return errors / total.n_rows


def sum_of(parts: Sequence[Any]) -> Any:
    """Of sums over rows."""
    total, *others = parts
    for part in others:
        total = total + part
    return total


def with_ridges(axes: Axes, products: Products, ridges: np.ndarray) -> Smoother:
    """The smoother of outputs with these products and ridges (k,)."""
    along, intercept = _along(axes, products)
    return Smoother(axes, ridges, intercept, along / (axes.spread[:, np.newaxis] + ridges))


def _errors(axes: Axes, products: Products, ridges: Sequence[float] | np.ndarray) -> np.ndarray:
    """Of each ridge and output, (len(ridges), k)."""
    along, intercept = _along(axes, products)
    total = products.squares / axes.n_rows - intercept**2
    shrink = axes.spread / (axes.spread + np.asarray(ridges)[:, np.newaxis])
    freedom = 1 + shrink.sum(axis=1)
    # |y - y_hat|^2 / n is the variance less what shrunk coordinates explain.
    explained = (shrink * (2 - shrink)) @ (along**2 / axes.spread[:, np.newaxis])
    left = 1 - freedom / axes.n_rows
    # A fit that has as many degrees of freedom as rows says nothing: of these the least are best.
    error = np.maximum(total - explained, 0) / np.square(left)[:, np.newaxis]
    spent = left <= 0
    error[spent] = np.finfo(float).max * (freedom[spent, np.newaxis] / freedom.max())
    return error


def with_constant(rows: np.ndarray) -> np.ndarray:
    """Rows (b, r) behind a 1, (b, r + 1)."""
    return np.column_stack([np.ones(len(rows)), rows])


def _along(axes: Axes, products: Products) -> tuple[np.ndarray, np.ndarray]:
    """Outputs along the axes, (r, k), and their means, (k,)."""
    intercept = products.with_features[0] / axes.n_rows
    centred = products.with_features[1:] / axes.n_rows - np.outer(axes.center, intercept)
    return axes.axes.T @ centred, intercept


def _kernel(X: np.ndarray, centres: np.ndarray, bandwidth: float) -> np.ndarray:
    return rbf_kernel(X, centres, gamma=1 / (2 * bandwidth**2))
