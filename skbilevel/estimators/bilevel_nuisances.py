"""Nuisances of a general bilevel score, learnt by weighted regressions: h, J, a and c.

Each is the minimiser of a mean of quadratics in its own value, with the curvature H of the inner
loss as weight: ``J(x) = -E[B | x] / E[H | x]`` is the regression of -B / H on x with weights H;
so are the adjoint and its sensitivity. h itself is found by Newton's method, as a sequence of
such regressions of ``h - u / H``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from skbilevel.estimators.nuisances import Learner, Split, seeded, varying
from skbilevel.estimators.nystroem import ridges_of, smoother_of
from skbilevel.objectives.orthogonal import (
    InnerDerivatives,
    OuterDerivatives,
    PointwiseLoss,
    inner_derivatives,
    losses_of,
    newton_parts,
    outer_derivatives,
    sensitivity_target,
)

# Newton steps after which ridges stay as they are; the share of what has been gained that a step
# may cost, and the least step.
_TUNED, _SLACK, _LEAST_STEP = 4, 0.02, 1e-3


class Newton(NamedTuple):
    """How the inner problem is solved.

    Attributes
    ----------
    start : float
        Of every prediction.
    max_iter : int
    tol : float
        Root mean square of a step, relative to 1 + that of the predictions.
    """

    start: float
    max_iter: int
    tol: float


class Problem(NamedTuple):
    """Losses of rows, and where they are.

    Attributes
    ----------
    inner, outer : callable
        ``(omega (p,), prediction, row) -> scalar``.
    omega : Tensor of shape (p,)
    rows : Any
        Tensors whose first axis has n rows: one, or a dict or tuple of them.
    X : ndarray of shape (n, d)
    """

    inner: PointwiseLoss
    outer: PointwiseLoss
    omega: Tensor
    rows: Any
    X: np.ndarray

    def inner_at(self, predictions: np.ndarray, some: np.ndarray) -> InnerDerivatives:
        """Derivatives of some rows, with finite numbers and a positive curvature.

        Raises
        ------
        ValueError
            If a derivative is not finite, or H is not positive.
        """
        h = torch.from_numpy(predictions)
        found = inner_derivatives(self.inner, self.omega, h, rows_at(self.rows, some))
        self._check_inner(h, found, found.curvature)
        return found

    def newton_at(self, predictions: np.ndarray, some: np.ndarray) -> tuple[Tensor, Tensor]:
        """u and H of some rows.

        Raises
        ------
        ValueError
            As `inner_at` does.
        """
        h = torch.from_numpy(predictions)
        u, H = newton_parts(self.inner, self.omega, h, rows_at(self.rows, some))
        self._check_inner(h, (u, H), H)
        return u, H

    def _check_inner(self, h: Tensor, parts: tuple[Tensor, ...], curvature: Tensor) -> None:
        if not all(torch.isfinite(part).all() for part in parts):
            raise ValueError(
                f"inner_loss has no finite derivatives at omega={self._point} and predictions "
                f"between {h.min():.3g} and {h.max():.3g}; initial_prediction is where they start."
            )
        if not (curvature > 0).all():
            raise ValueError(
                "inner_loss must be strictly convex in the prediction for every row: its second "
                f"derivative is {float(curvature.min()):.3g} for one at omega={self._point} and "
                f"predictions between {h.min():.3g} and {h.max():.3g}. Where predictions run "
                "away, as with labels that x tells for certain, a stronger ridge of the nuisance "
                "helps."
            )

    def outer_at(self, predictions: np.ndarray, some: np.ndarray) -> OuterDerivatives:
        """Derivatives of some rows.

        Raises
        ------
        ValueError
            If one is not finite.
        """
        h = torch.from_numpy(predictions)
        found = outer_derivatives(self.outer, self.omega, h, rows_at(self.rows, some))
        if not all(torch.isfinite(part).all() for part in found):
            raise ValueError(f"outer_loss has no finite derivatives at omega={self._point}.")
        return found

    def mean_inner(self, predictions: np.ndarray, some: np.ndarray) -> float:
        """Mean inner loss of some rows."""
        h = torch.from_numpy(predictions)
        return float(losses_of(self.inner, self.omega, h, rows_at(self.rows, some)).mean())

    @property
    def _point(self) -> list[float]:
        return self.omega.tolist()


class BilevelTold(NamedTuple):
    """What is told of rows by models that have not seen them.

    Attributes
    ----------
    prediction, adjoint : ndarray of shape (n,)
        h and a.
    jacobian, sensitivity : ndarray of shape (n, p)
        J and c.
    converged : bool
        Whether h was found.
    """

    prediction: np.ndarray
    adjoint: np.ndarray
    jacobian: np.ndarray
    sensitivity: np.ndarray
    converged: bool


@dataclass
class WeightedFits:
    """Weighted regressions on the training rows of a split, told of all its rows.

    Attributes
    ----------
    learner : Learner
    X : ndarray of shape (n, d)
    split : Split
    features : list of ndarray of shape (b, q) and (m, q)
        Of a smoother, of training and of test rows, chosen by the first targets.
    """

    learner: Learner
    X: np.ndarray
    split: Split
    features: list[np.ndarray] = field(default_factory=list)

    def tell(
        self, targets: np.ndarray, weights: np.ndarray, ridges: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Of training rows (b, k), of test rows (m, k), and the ridges (k,) of a smoother, from
        targets (b, k) and weights (b,) of the training rows."""
        train, test = (np.empty((len(part), targets.shape[1])) for part in self.split)
        weights, varies = weights / weights.mean(), varying(targets)
        for rows in (train, test):
            rows[:] = np.average(targets, axis=0, weights=weights)
        if not varies.any():
            return train, test, ridges
        if self.learner.is_smoother:
            return self._smooth(targets, weights, varies, ridges, train, test)
        for column in np.flatnonzero(varies):
            model = seeded(clone(self.learner.nuisance), self.learner.seed)
            model.fit(self.X[self.split.train], targets[:, column], sample_weight=weights)
            for rows, part in ((train, self.split.train), (test, self.split.test)):
                rows[:, column] = np.ravel(model.predict(self.X[part]))
        return train, test, None

    def _smooth(
        self,
        targets: np.ndarray,
        weights: np.ndarray,
        varies: np.ndarray,
        ridges: np.ndarray | None,
        train: np.ndarray,
        test: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.features:
            mapped = self.learner.prepared(self.X[self.split.train], targets)
            assert mapped is not None
            self.features = [mapped(self.X[part]) for part in self.split]
        nuisance, known = self.learner.nuisance, None if ridges is None else ridges[varies]
        settings = ridges_of(nuisance), nuisance.undersmooth, known
        found, shift = smoother_of(self.features[0], targets[:, varies], weights, *settings)
        for rows, z in zip((train, test), self.features, strict=True):
            rows[:, varies] = found.predict(z) + shift
        chosen = np.ones(targets.shape[1])
        chosen[varies] = found.ridges
        return train, test, chosen


def tell_bilevel(problem: Problem, learner: Learner, split: Split, newton: Newton) -> BilevelTold:
    """h, a, J and c of the test rows, by models of the training rows."""
    fits = WeightedFits(learner, problem.X, split)
    h_train, h_test, converged = _inner_solution(problem, fits, newton)
    inner = problem.inner_at(h_train, split.train)
    outer = problem.outer_at(h_train, split.train)
    H = inner.curvature.numpy()
    targets = torch.column_stack([-outer.slope, -inner.cross]) / inner.curvature[:, None]
    train, test, _ = fits.tell(targets.numpy(), H)
    a_train, J_train = torch.from_numpy(train[:, 0]), torch.from_numpy(train[:, 1:])
    moved = -sensitivity_target(inner, outer, J_train, a_train) / inner.curvature[:, None]
    _, c_test, _ = fits.tell(moved.numpy(), H)
    return BilevelTold(h_test, test[:, 0], test[:, 1:], c_test, converged)


def rows_at(rows: Any, some: np.ndarray) -> Any:
    """Some rows of a tensor, or of a dict or tuple of tensors."""
    if isinstance(rows, dict):
        return {name: part[some] for name, part in rows.items()}
    return tuple(part[some] for part in rows) if isinstance(rows, tuple) else rows[some]


def _inner_solution(
    problem: Problem, fits: WeightedFits, newton: Newton
) -> tuple[np.ndarray, np.ndarray, bool]:
    """h of training and of test rows, by Newton's method with steps that lower the mean loss."""
    train = fits.split.train
    h, h_test = (np.full(len(part), newton.start) for part in fits.split)
    first = loss = problem.mean_inner(h, train)
    ridges = None
    for number in range(newton.max_iter):
        u, H = problem.newton_at(h, train)
        working = torch.from_numpy(h) - u / H
        told, told_test, chosen = fits.tell(working.numpy()[:, np.newaxis], H.numpy(), ridges)
        ridges = chosen if number >= _TUNED else None
        gap, step = told[:, 0] - h, 1.0
        # What smoothing costs of what has been gained is no reason for a shorter step.
        bound = loss + _SLACK * abs(first - loss)
        while step > _LEAST_STEP and not problem.mean_inner(h + step * gap, train) <= bound:
            step /= 2
        h, h_test = h + step * gap, h_test + step * (told_test[:, 0] - h_test)
        loss = problem.mean_inner(h, train)
        if np.sqrt(np.square(gap).mean()) <= newton.tol * (1 + np.sqrt(np.square(h).mean())):
            return h, h_test, True
    return h, h_test, False
