"""A conditional moment with all that is needed to learn its nuisances, at any omega.

Where r is linear in omega nuisances are told once for all of them. Where it is not they are told
at each omega, of (r, D), and where a Hessian is needed of the second derivatives of r as well: the
derivative of the orthogonal score along omega is the score itself, with d2r / domega2 for D,
beside what a linear r has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize, root

from skbilevel._sklearn import ConvergenceWarning, warn_user
from skbilevel.estimators.moment_fit import (
    LinearMoment,
    MomentRoot,
    MomentRows,
    hessian_of,
    out_of_fold_r2,
)
from skbilevel.estimators.moment_learning import design_of, linear_moments_of
from skbilevel.estimators.moment_residual import NotFiniteError, Residual
from skbilevel.estimators.nuisances import BlockedRows, Folds, Learner, Told

# Times that ridges are chosen, where a solver starts, and most iterations of L-BFGS.
_N_TUNINGS, _MAX_ITER = 2, 200
# A gradient below this share of the size of scores is 0.
_NOUGHT = 1e-6
# omega -> rows
At = Callable[[np.ndarray], MomentRows]


class _Fixed(NamedTuple):
    """What a solver keeps as it is: features of rows, and ridges unless they are to be chosen."""

    rows: list[BlockedRows] | None = None
    ridges: Sequence[np.ndarray] | None = None


_FREE = _Fixed()


@dataclass(frozen=True)
class MomentProblem:
    """Rows, a residual, and who tells its conditional means.

    Attributes
    ----------
    X : ndarray of shape (n, d)
    residual : Residual
    learner : Learner
    repetitions : sequence of Folds
    score : str
    """

    X: np.ndarray
    residual: Residual
    learner: Learner
    repetitions: Sequence[Folds]
    score: str

    def rows(self, omega: np.ndarray) -> list[MomentRows]:
        """Of each repetition, at omega (p,)."""
        return self.rows_at_each(omega[np.newaxis])[0]

    def rows_at_each(self, omegas: np.ndarray) -> list[list[MomentRows]]:
        """Of each omega (m, p), the rows of each repetition."""
        if self.residual.is_linear(omegas):
            moments = self._linear(omegas[0])
            return [[moment.at(omega) for moment in moments] for omega in omegas]
        return [[self._told(each, omega) for each in self.repetitions] for omega in omegas]

    def roots(self, start: np.ndarray, method: str) -> list[MomentRoot]:
        """Where the gradient is 0, of each repetition.

        Raises
        ------
        ValueError
            If ``method="lbfgs"`` goes with a score or a nuisance without a value.

        Warns
        -----
        ConvergenceWarning
            If there is none that can be found from the start.
        """
        if self.residual.is_linear(start[np.newaxis]):
            found = [moment.root() for moment in self._linear(start)]
            # Where r bends on the way, it was none.
            if self.residual.is_linear(np.stack([start, *(each.coef_ for each in found)])):
                return found
        if method == "lbfgs" and not (self.learner.is_smoother and self.score == "orthogonal"):
            raise ValueError(
                "method='lbfgs' needs score='orthogonal' and a NystroemRidge for nuisance, whose "
                "gradient is that of the value: use method='newton'."
            )
        return [self._root(each, start, method) for each in self.repetitions]

    def _linear(self, omega: np.ndarray) -> list[LinearMoment]:
        r, D = self.residual.at(omega)
        parts = self.learner, self.repetitions, self.score
        return linear_moments_of(self.X, D @ omega - r, D, *parts)

    def _told(self, folds: Folds, omega: np.ndarray, fixed: _Fixed = _FREE) -> MomentRows:
        outputs = np.column_stack(self.residual.at(omega))
        return self._moment_rows(outputs, self.learner.tell(self.X, outputs, folds, *fixed), folds)

    def _moment_rows(self, outputs: np.ndarray, told: Told, folds: Folds) -> MomentRows:
        """Rows with (r, D), or other columns in the place of D, of which all is told."""
        some = folds.rows
        means = told.means[some]
        return MomentRows(
            outputs[some, 0],
            outputs[some, 1:],
            means[:, 0],
            means[:, 1:],
            told.at(some).shared,
            out_of_fold_r2(outputs[some], means),
            design_of(folds, self.score),
        )

    def _hessian(self, folds: Folds, omega: np.ndarray, fixed: _Fixed) -> np.ndarray:
        """Of F at omega: second derivatives of r are told with ridges of their own."""
        p, bent = len(omega), self.residual.curvatures(omega)
        outputs = np.column_stack([*self.residual.at(omega), bent])
        ridges = fixed.ridges
        if ridges is not None:
            own = self.learner.tell(self.X, bent, folds, fixed.rows).ridges or ridges
            pairs = zip(ridges, own, strict=True)
            ridges = [np.concatenate([one, other[: bent.shape[1]]]) for one, other in pairs]
        told = self.learner.tell(self.X, outputs, folds, fixed.rows, ridges)
        first, second = (
            self._moment_rows(outputs[:, part], told.of(part), folds)
            for part in (np.arange(p + 1), np.r_[0, p + 1 : outputs.shape[1]])
        )
        curvature = np.zeros((p, p))
        curvature[np.triu_indices(p)] = second.scores.mean(axis=0)
        return hessian_of(first) + curvature + np.triu(curvature, 1).T

    def _root(self, folds: Folds, start: np.ndarray, method: str) -> MomentRoot:
        omega, n_iter, converged, fixed = start, 0, False, _FREE
        for _ in range(_N_TUNINGS):
            outputs = np.column_stack(self.residual.at(omega))
            features = self.learner.prepared(self.X, outputs, folds.groups)
            rows = self.learner.rows(self.X, features, folds)
            ridges = self.learner.tell(self.X, outputs, folds, rows).ridges
            if method == "lbfgs":
                ridges = [np.full(len(each), _geometric_mean(each)) for each in ridges]
            fixed = _Fixed(rows, ridges or None)
            omega, steps, converged = SOLVERS[method](partial(self._at, folds, fixed), omega)
            n_iter += steps
        found = self._told(folds, omega, fixed)
        if not converged:
            warn_user(
                f"solve has not found a root from this omega0 with method={method!r}: a gradient "
                f"of {np.abs(found.scores.mean(axis=0)).max():.2g} is left. Try another omega0 or "
                "method.",
                ConvergenceWarning,
            )
        return found.root(omega, self._hessian(folds, omega, fixed), n_iter)

    def _at(self, folds: Folds, fixed: _Fixed, omega: np.ndarray) -> MomentRows:
        return self._told(folds, omega, fixed)


def _geometric_mean(ridges: np.ndarray) -> float:
    """Of outputs that vary; NaN for the others."""
    return float(np.exp(np.nanmean(np.log(ridges))))


def _finite(function: Callable[[np.ndarray], Any], otherwise: Any) -> Callable[[np.ndarray], Any]:
    """The same, and something else where it is not finite: steps that go there are taken back."""

    def guarded(omega: np.ndarray) -> Any:
        with np.errstate(all="ignore"):
            try:
                found = function(omega)
            except NotFiniteError:
                return otherwise
        return found if np.isfinite(found).all() else otherwise

    return guarded


def _newton(at: At, start: np.ndarray) -> tuple[np.ndarray, int, bool]:
    """Down F in a trust region, and from there to where G is 0: of some nuisances and scores it is
    not quite the gradient of F. Both go by the Hessian without the curvature of r, which is no
    help far from a root, and small near one where r has no mean given X."""

    def gradient(omega: np.ndarray) -> np.ndarray:
        return at(omega).scores.mean(axis=0)

    def matrix(omega: np.ndarray) -> np.ndarray:
        return hessian_of(at(omega))

    def value(omega: np.ndarray) -> float:
        return float(at(omega).values().mean())

    small = _NOUGHT * np.abs(at(start).scores).mean()
    options = {"gtol": small, "maxiter": _MAX_ITER}
    down = minimize(
        _finite(value, np.inf),
        start,
        jac=_finite(gradient, np.zeros(len(start))),
        hess=_finite(lambda omega: (matrix(omega) + matrix(omega).T) / 2, np.eye(len(start))),
        method="trust-exact",
        options=options,
    )
    found = root(gradient, down.x, jac=matrix, method="hybr")
    is_root = bool(np.abs(found.fun).max() <= small)
    return found.x, int(down.nit + found.nfev), is_root


def _lbfgs(at: At, start: np.ndarray) -> tuple[np.ndarray, int, bool]:
    def value(omega: np.ndarray) -> tuple[float, np.ndarray]:
        rows = at(omega)
        return float(rows.values().mean()), rows.scores.mean(axis=0)

    # Without a floor of the relative decrease: F is near 0 at the solution.
    options = {"maxiter": _MAX_ITER, "ftol": 0.0, "gtol": 1e-9}
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    is_root = bool(np.abs(found.jac).max() <= _NOUGHT * np.abs(at(start).scores).mean())
    return found.x, int(found.nit), is_root


SOLVERS: dict[str, Callable[..., tuple[np.ndarray, int, bool]]] = {
    "newton": _newton,
    "lbfgs": _lbfgs,
}
