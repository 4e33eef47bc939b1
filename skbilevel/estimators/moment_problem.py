"""A conditional moment with all that is needed to learn its nuisances, at any omega.

Where r is linear in omega nuisances are told once for all of them. Where it is not they are told at
each omega, of (r, D), and where a Hessian is needed of the second derivatives of r as well: the
derivative of the orthogonal score along omega is the score itself, with d2r / domega2 for D, beside
what a linear r has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
from skbilevel.estimators.moment_learning import Repetition, design_of, linear_moments_of
from skbilevel.estimators.moment_residual import Residual
from skbilevel.estimators.nuisances import Learner, Told
from skbilevel.estimators.nystroem import FeatureMap

# Times that ridges are chosen, where a solver starts, and most iterations of L-BFGS.
_N_TUNINGS, _MAX_ITER = 2, 200
# omega -> rows, Hessian
At = Callable[[np.ndarray], tuple[MomentRows, np.ndarray]]


class _Fixed(NamedTuple):
    """What a solver keeps as it is: features, and ridges unless these are to be chosen."""

    features: FeatureMap | None
    ridges: Sequence[np.ndarray] | None


@dataclass(frozen=True)
class MomentProblem:
    """Rows, a residual, and who tells its conditional means.

    Attributes
    ----------
    X : ndarray of shape (n, d)
    residual : Residual
    learner : Learner
    repetitions : sequence of Repetition
    score : str
    groups : ndarray of shape (n,), int, or None
    """

    X: np.ndarray
    residual: Residual
    learner: Learner
    repetitions: Sequence[Repetition]
    score: str
    groups: np.ndarray | None

    def rows(self, omega: np.ndarray) -> list[MomentRows]:
        """Of each repetition, at omega (p,)."""
        return self.rows_at_each(omega[np.newaxis])[0]

    def rows_at_each(self, omegas: np.ndarray) -> list[list[MomentRows]]:
        """Of each omega (m, p), the rows of each repetition."""
        if self.residual.is_linear(omegas[0]):
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
        if self.residual.is_linear(start):
            return [moment.root() for moment in self._linear(start)]
        if method == "lbfgs" and not (self.learner.is_smoother and self.score == "orthogonal"):
            raise ValueError(
                "method='lbfgs' needs score='orthogonal' and a NystroemRidge for nuisance, whose "
                "gradient is that of the value: use method='newton'."
            )
        return [self._root(each, start, method) for each in self.repetitions]

    def _linear(self, omega: np.ndarray) -> list[LinearMoment]:
        r, D = self.residual.at(omega)
        parts = self.learner, self.repetitions, self.score, self.groups
        return linear_moments_of(self.X, D @ omega - r, D, *parts)

    def _told(self, repetition: Repetition, omega: np.ndarray) -> MomentRows:
        outputs = np.column_stack(self.residual.at(omega))
        told = self.learner.tell(self.X, outputs, repetition.splits, repetition.side)
        return self._moment_rows(outputs, told, repetition)

    def _moment_rows(self, outputs: np.ndarray, told: Told, repetition: Repetition) -> MomentRows:
        """Rows with (r, D), or other columns in the place of D, of which all is told."""
        some = repetition.rows
        means = told.means[some]
        return MomentRows(
            outputs[some, 0],
            outputs[some, 1:],
            means[:, 0],
            means[:, 1:],
            told.at(some).shared,
            out_of_fold_r2(outputs[some], means),
            design_of(repetition, self.score, self.groups),
        )

    def _curved(
        self, repetition: Repetition, omega: np.ndarray, fixed: _Fixed
    ) -> tuple[MomentRows, np.ndarray, list[np.ndarray]]:
        """Rows at omega, the Hessian of F there, and the ridges by which they were told."""
        p, splits = len(omega), (repetition.splits, repetition.side)
        outputs = np.column_stack([*self.residual.at(omega), self.residual.curvatures(omega)])
        told = self.learner.tell(self.X, outputs, *splits, fixed.features, fixed.ridges)
        rows, bent = (
            self._moment_rows(outputs[:, part], told.of(part), repetition)
            for part in (np.arange(p + 1), np.r_[0, p + 1 : outputs.shape[1]])
        )
        curvature = np.zeros((p, p))
        curvature[np.triu_indices(p)] = bent.scores.mean(axis=0)
        return rows, hessian_of(rows) + curvature + np.triu(curvature, 1).T, told.ridges

    def _root(self, repetition: Repetition, start: np.ndarray, method: str) -> MomentRoot:
        omega, n_iter, converged = start, 0, False
        for _ in range(_N_TUNINGS):
            features = self.learner.prepared(self.X, np.column_stack(self.residual.at(omega)))
            ridges = self._curved(repetition, omega, _Fixed(features, None))[2]
            if method == "lbfgs":
                ridges = [np.full(len(each), np.exp(np.log(each).mean())) for each in ridges]
            fixed = _Fixed(features, ridges or None)

            def at(x: np.ndarray, fixed: _Fixed = fixed) -> tuple[MomentRows, np.ndarray]:
                return self._curved(repetition, x, fixed)[:2]

            omega, steps, converged = SOLVERS[method](at, omega)
            n_iter += steps
        rows, hessian = at(omega)
        if not converged:
            warn_user(
                f"solve has not found a root from this omega0 with method={method!r}: a gradient "
                f"of {np.abs(rows.scores.mean(axis=0)).max():.2g} is left. Try another omega0 or "
                "method.",
                ConvergenceWarning,
            )
        return rows.root(omega, hessian, n_iter)


def _newton(at: At, start: np.ndarray) -> tuple[np.ndarray, int, bool]:
    def gradient(omega: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, hessian = at(omega)
        return rows.scores.mean(axis=0), hessian

    found = root(gradient, start, jac=True, method="hybr")
    return found.x, int(found.nfev), bool(found.success)


def _lbfgs(at: At, start: np.ndarray) -> tuple[np.ndarray, int, bool]:
    def value(omega: np.ndarray) -> tuple[float, np.ndarray]:
        rows, _ = at(omega)
        return float(rows.values().mean()), rows.scores.mean(axis=0)

    # Without a floor of the relative decrease: F is near 0 at the solution.
    options = {"maxiter": _MAX_ITER, "ftol": 0.0, "gtol": 1e-9}
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    flat = np.abs(found.jac).max() <= 1e-6 * max(1.0, np.abs(value(start)[1]).max())
    return found.x, int(found.nit), bool(flat)


SOLVERS: dict[str, Callable[..., tuple[np.ndarray, int, bool]]] = {
    "newton": _newton,
    "lbfgs": _lbfgs,
}
