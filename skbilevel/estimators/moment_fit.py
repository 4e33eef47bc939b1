"""Conditional moments with nuisances that are told: from numbers of rows to estimates.

For r = D'omega - y the gradient of ``F = 1/2 E[E[r | X]^2]`` is A omega - b at every omega, of
which the nuisances E[y | X] and E[D | X] know nothing: they are told once. `objectives.orthogonal`
has the scores; this is where they become estimates, covariances and roots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from skbilevel.estimators.gradient_result import (
    Estimate,
    GradientResult,
    covariance_of_mean,
    median_of,
)
from skbilevel.estimators.nuisances import Told, varying
from skbilevel.objectives.orthogonal import (
    MOMENT_SCORES,
    PRODUCT_SHARE,
    linear_moments,
    moment_value,
)

# Eigenvalues of A below so many times the rounding of doubles are rounding.
_ROUNDING = 10.0


@dataclass(frozen=True)
class MomentDiagnostics:
    """Signs by which an interval is not to be trusted.

    Attributes
    ----------
    r2 : ndarray of shape (p + 1,)
        Of what is told of r (or y) and of each column of D, on rows that the models have not
        seen, unless ``cross_fit=False``; NaN for a column that does not vary.
    shift, gap : ndarray of shape (p,)
        How far the correction for shared noise has moved each coordinate, and that in standard
        errors; 0 without one. An estimate less its shift is that of first order (of a root, to
        first order). What the correction cannot see is as a rule smaller than what it moves.
    fold_spread : ndarray of shape (p,)
        Variance of the means of folds over what it would be by chance: about 1.
    least_eigenvalue, least_eigenvalue_stderr : float
        Of the Hessian A of F, for columns of D with mean square 1, and its standard error; NaN
        where A is not known. Where it is not clear of 0, omega is hardly identified.
    """

    r2: np.ndarray
    shift: np.ndarray
    gap: np.ndarray
    fold_spread: np.ndarray
    least_eigenvalue: float = np.nan
    least_eigenvalue_stderr: float = np.nan


@dataclass(frozen=True)
class MomentGradient(GradientResult):
    """An estimate of the gradient of ``1/2 E[E[r | X]^2]``.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
        The gradient.
    cov_ : ndarray of shape (p, p)
        Its covariance.
    scores_ : ndarray of shape (n, p)
        Of rows, or of groups of rows as times of an average one: their mean is the gradient, and
        their covariance over n is that of the gradient.
    diagnostics_ : MomentDiagnostics
    """

    diagnostics_: MomentDiagnostics


@dataclass(frozen=True)
class MomentRoot(Estimate):
    """An estimate of omega, where the gradient of ``1/2 E[E[r | X]^2]`` is 0.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
        omega.
    cov_ : ndarray of shape (p, p)
        A^-1 cov(psi) A^-T / n.
    scores_ : ndarray of shape (n, p)
        omega - A^-1 psi, of rows or groups of rows.
    hessian_ : ndarray of shape (p, p)
        A.
    diagnostics_ : MomentDiagnostics
    rank_ : int
        Of A: where it is below p, omega is the solution with the smallest norm, in units of the
        columns of D.
    n_iter_ : int
        Steps; 1 where omega is in closed form.
    """

    hessian_: np.ndarray
    diagnostics_: MomentDiagnostics
    rank_: int
    n_iter_: int = 1


@dataclass(frozen=True)
class Design:
    """What of rows is the same at every omega.

    Attributes
    ----------
    score : str
        Of `MOMENT_SCORES`.
    folds : ndarray of shape (n,), int
        Which split tells a row.
    clusters : ndarray of shape (n,), int, or None
        Rows that are not independent.
    """

    score: str
    folds: np.ndarray
    clusters: np.ndarray | None = None

    def of_clusters(self, scores: np.ndarray) -> np.ndarray:
        """Scores (n, p) as they are, or their mean and, for each cluster, what its rows deviate by
        together, in times of an average cluster: the mean is the same, and the covariance of it
        knows that rows of a cluster are not independent."""
        if self.clusters is None:
            return scores
        n_clusters, mean = int(self.clusters.max()) + 1, scores.mean(axis=0)
        total = np.zeros((n_clusters, scores.shape[1]))
        np.add.at(total, self.clusters, scores - mean)
        return mean + total * (n_clusters / len(scores))


@dataclass(frozen=True)
class MomentRows:
    """Rows at one omega.

    Attributes
    ----------
    residual, rho : ndarray of shape (n,)
        r, and what is told of it.
    slopes, kappa : ndarray of shape (n, p)
        D, and what is told of it.
    shared : ndarray of shape (1, p + 1, p + 1) or (n, p + 1, p + 1)
        What products of rho and kappa expect too much.
    r2 : ndarray of shape (p + 1,)
    design : Design
    """

    residual: np.ndarray
    slopes: np.ndarray
    rho: np.ndarray
    kappa: np.ndarray
    shared: np.ndarray
    r2: np.ndarray
    design: Design

    @property
    def corrections(self) -> np.ndarray:
        """Of the score for shared noise, (1, p) or (n, p)."""
        return -PRODUCT_SHARE[self.design.score] * self.shared[:, 0, 1:]

    @property
    def scores(self) -> np.ndarray:
        """(n, p)."""
        parts = _tensors(self.rho, self.kappa, self.residual, self.slopes)
        return MOMENT_SCORES[self.design.score](*parts).numpy() + self.corrections

    def gradient(self) -> MomentGradient:
        """Its estimate."""
        scores = self.scores
        by_cluster = self.design.of_clusters(scores)
        stderr = np.sqrt(np.diag(covariance_of_mean(by_cluster)))
        return MomentGradient.of(by_cluster, diagnostics_=self.diagnostics(scores, stderr))

    def root(self, omega: np.ndarray, hessian: np.ndarray, n_iter: int = 1) -> MomentRoot:
        """For omega where the gradient is 0, with its Hessian there."""
        inverse, rank = pseudo_inverse(hessian, self.slopes)
        moved = -self.scores @ inverse.T
        by_cluster = self.design.of_clusters(omega + moved)
        covariance = covariance_of_mean(by_cluster)
        told = self.diagnostics(moved, np.sqrt(np.diag(covariance)), inverse, hessian)
        return MomentRoot(omega, covariance, by_cluster, hessian, told, rank, n_iter)

    def values(self) -> np.ndarray:
        """Of F, (n,): their mean is its estimate."""
        value = moment_value(*_tensors(self.rho, self.residual)).numpy()
        return value + self.shared[:, 0, 0] / 2

    def diagnostics(
        self,
        scores: np.ndarray,
        stderr: np.ndarray,
        turn: np.ndarray | None = None,
        hessian: np.ndarray | None = None,
    ) -> MomentDiagnostics:
        """Of an estimate with standard errors (p,), whose scores (n, p) are those of the gradient
        turned by a matrix."""
        shift = self.corrections.mean(axis=0)
        if turn is not None:
            shift = -turn @ shift
        gap = np.divide(np.abs(shift), stderr, out=np.zeros_like(shift), where=stderr > 0)
        spread = _fold_spread(scores, self.design)
        least = (np.nan, np.nan) if hessian is None else self._least_eigenvalue(hessian)
        return MomentDiagnostics(self.r2, shift, gap, spread, *least)

    def _least_eigenvalue(self, hessian: np.ndarray) -> tuple[float, float]:
        size = column_sizes(self.slopes)
        scaled = (hessian + hessian.T) / 2 / size / size[:, np.newaxis]
        values, vectors = np.linalg.eigh(scaled)
        if np.abs(values[0]) <= len(values) * _ROUNDING * np.finfo(float).eps * values[-1]:
            return 0.0, 0.0
        v = vectors[:, 0] / size
        told, seen = self.kappa @ v, self.slopes @ v
        of_rows = self.design.of_clusters((told * (2 * seen - told))[:, np.newaxis])
        return float(values[0]), float(np.sqrt(covariance_of_mean(of_rows)[0, 0]))


@dataclass(frozen=True)
class LinearMoment:
    """Rows with r = D'omega - y, for every omega.

    Attributes
    ----------
    y, mu : ndarray of shape (n,)
        And what is told of it.
    slopes, kappa : ndarray of shape (n, p)
        D, and what is told of it.
    shared : ndarray of shape (1, p + 1, p + 1) or (n, p + 1, p + 1)
        What products of mu and kappa expect too much.
    r2 : ndarray of shape (p + 1,)
    design : Design
    """

    y: np.ndarray
    slopes: np.ndarray
    mu: np.ndarray
    kappa: np.ndarray
    shared: np.ndarray
    r2: np.ndarray
    design: Design
    _moments: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        y, slopes, mu, kappa = _tensors(self.y, self.slopes, self.mu, self.kappa)
        score = MOMENT_SCORES[self.design.score]
        matrix, vector = linear_moments(y, slopes, mu, kappa, score)
        share, shared = PRODUCT_SHARE[self.design.score], self.shared.mean(axis=0)
        moments = matrix.numpy() - share * shared[1:, 1:], vector.numpy() - share * shared[1:, 0]
        object.__setattr__(self, "_moments", moments)

    @classmethod
    def of(
        cls,
        y: np.ndarray,
        slopes: np.ndarray,
        told: Told,
        design: Design,
        known: np.ndarray | None = None,
    ) -> LinearMoment:
        """From what is told of (y, D), less a part of D that is known, (n, p)."""
        outputs = np.column_stack([y, slopes])
        offset = np.zeros_like(outputs)
        if known is not None:
            offset[:, 1:] = known
        means = told.means + offset
        r2 = out_of_fold_r2(outputs - offset, told.means)
        return cls(y, slopes, means[:, 0], means[:, 1:], told.shared, r2, design)

    @property
    def matrix(self) -> np.ndarray:
        """A, (p, p): the Hessian of F."""
        return self._moments[0]

    @property
    def vector(self) -> np.ndarray:
        """b, (p,)."""
        return self._moments[1]

    def at(self, omega: np.ndarray) -> MomentRows:
        """Rows at omega, (p,)."""
        turn = np.eye(len(omega) + 1)
        turn[0] = [-1, *omega]
        return MomentRows(
            self.slopes @ omega - self.y,
            self.slopes,
            self.kappa @ omega - self.mu,
            self.kappa,
            turn @ self.shared @ turn.T,
            self.r2,
            self.design,
        )

    def root(self) -> MomentRoot:
        """omega where the gradient is 0; of many, the smallest."""
        omega = pseudo_inverse(self.matrix, self.slopes)[0] @ self.vector
        return self.at(omega).root(omega, self.matrix)


Estimated = TypeVar("Estimated", MomentGradient, MomentRoot)


def combined(estimates: Sequence[Estimated]) -> Estimated:
    """The median of repetitions, with the medians of their diagnostics, and for roots the mean of
    their Hessians, the least of their ranks and the sum of their steps."""
    found = median_of(estimates)
    if len(estimates) == 1:
        return found
    told = [vars(each.diagnostics_) for each in estimates]
    medians = {name: np.median([each[name] for each in told], axis=0) for name in told[0]}
    others: dict[str, Any] = {}
    roots = [each for each in estimates if isinstance(each, MomentRoot)]
    if roots:
        others["hessian_"] = np.mean([each.hessian_ for each in roots], axis=0)
        others["rank_"] = min(each.rank_ for each in roots)
        others["n_iter_"] = sum(each.n_iter_ for each in roots)
    return replace(found, diagnostics_=MomentDiagnostics(**medians), **others)


def exogenous_moment(
    y: np.ndarray, slopes: np.ndarray, clusters: np.ndarray | None
) -> LinearMoment:
    """Of D that X tells, which makes the score D r whatever is told of y: least squares."""
    n, p = slopes.shape
    design = Design("orthogonal", np.zeros(n, dtype=int), clusters)
    unknown = np.full(p + 1, np.nan)
    shared = np.zeros((1, p + 1, p + 1))
    return LinearMoment(y, slopes, np.zeros(n), slopes, shared, unknown, design)


def pseudo_inverse(matrix: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, int]:
    """Of A, (p, p), and its rank, both for columns of D (n, p) of one size."""
    size = column_sizes(slopes)
    left, values, right = np.linalg.svd(matrix / size / size[:, np.newaxis])
    kept = values > len(values) * np.finfo(float).eps * max(values[0], 0.0) * _ROUNDING
    inverse = (right[kept].T / values[kept]) @ left[:, kept].T
    return inverse / size / size[:, np.newaxis], int(kept.sum())


def hessian_of(rows: MomentRows) -> np.ndarray:
    """A of rows, (p, p), but for the curvature of r; for the orthogonal score the mean of
    ``D kappa' + kappa D' - kappa kappa'``, less the noise that kappa shares with itself."""
    r, slopes, rho, kappa = _tensors(rows.residual, rows.slopes, rows.rho, rows.kappa)
    score = MOMENT_SCORES[rows.design.score]
    matrix = linear_moments(r, slopes, rho, kappa, score).matrix.numpy()
    return matrix - PRODUCT_SHARE[rows.design.score] * rows.shared[:, 1:, 1:].mean(axis=0)


def column_sizes(slopes: np.ndarray) -> np.ndarray:
    """Root mean squares of columns of D (n, p), (p,); 1 for a column of zeros."""
    size = np.sqrt(np.square(slopes).mean(axis=0))
    return np.where(size > 0, size, 1.0)


def out_of_fold_r2(outputs: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Share of the variance of outputs (n, k) that is told, (k,); NaN for those that do not
    vary."""
    varies = varying(outputs)
    left = np.square(outputs - told).mean(axis=0)
    total = outputs.var(axis=0)
    return np.where(varies, 1 - left / np.where(varies, total, 1), np.nan)


def _fold_spread(scores: np.ndarray, design: Design) -> np.ndarray:
    """Variance of the means of folds over what it would be by chance, (p,)."""
    sizes = np.bincount(design.folds)
    sums = np.zeros((len(sizes), scores.shape[1]))
    np.add.at(sums, design.folds, scores)
    used = sizes > 0
    gaps = sums[used] / sizes[used, np.newaxis] - scores.mean(axis=0)
    # One fold says nothing of others.
    chance = np.diag(covariance_of_mean(design.of_clusters(scores))) * len(scores)
    freedom = used.sum() - 1
    spread = (sizes[used] @ gaps**2) / max(freedom, 1)
    out = np.full(len(spread), np.nan)
    return np.divide(spread, chance, out=out, where=(chance > 0) & (freedom > 0))


def _tensors(*parts: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.require(part, requirements=["C", "W"])) for part in parts]
