"""The family of distributions that `GaussianImputer` fits, and its hyper-parameter.

"auto" hides a tenth of the observed cells, fits along a path and keeps the value that imputes the
hidden cells best.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from skbilevel.estimators.block_em import completed_rows, maximum_likelihood, pairwise_start
from skbilevel.numerics.row_groups import StandardizedRows
from skbilevel.objectives.factor_analysis import FactorFamily, FactorParameters
from skbilevel.objectives.family import Family
from skbilevel.objectives.normal import NormalFamily, NormalParameters
from skbilevel.objectives.student_t import StudentFamily, StudentParameters
from skbilevel.solvers.path import best_along_path

# Prior weight that keeps a covariance definite and changes no imputation where rows abound.
_LEAST_SHRINKAGE = 1e-3
_SHRINKAGES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, _LEAST_SHRINKAGE)
_N_FACTORS = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90)
_ROWS_PER_COLUMN = 10
_HELD_OUT = 0.1
_FEWEST_HELD_OUT = 10
# The order of candidates shows long before the slow ones among them converge.
_PATH_ITERATIONS = 50


class Kind(NamedTuple):
    """A family and the type of its parameters."""

    family: Callable[..., Family]
    parameters: Callable[..., Any]


# Keys are (covariance, robust).
KINDS = {
    ("full", False): Kind(NormalFamily, NormalParameters),
    ("full", True): Kind(StudentFamily, StudentParameters),
    ("factor", False): Kind(FactorFamily, FactorParameters),
}


class Settings(NamedTuple):
    """The parameters of `GaussianImputer` that the choice depends on."""

    covariance: str
    robust: bool
    shrinkage: str | float
    n_factors: str | int
    loop: dict[str, Any]


class _Fit(NamedTuple):
    family: Family
    parameters: Any


def choose(
    settings: Settings, X: np.ndarray, rows: StandardizedRows, rng: np.random.RandomState
) -> tuple[Family, Any]:
    """The family to fit to ``rows``, and the parameters to start from.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    X : ndarray of shape (n, d)
        Training rows with NaN at missing cells.
    rows : StandardizedRows
        The same rows, standardised.
    rng : RandomState
        Draws the held-out cells.

    Returns
    -------
    family, parameters
        The latter belong to the best candidate on held-out cells, if there was a choice.
    """
    kind = (settings.covariance, settings.robust)
    if kind not in KINDS:
        raise ValueError("robust=True needs covariance='full', got covariance='factor'.")
    candidates = _CANDIDATES[settings.covariance](settings, *X.shape)
    if len(candidates) > 1:
        hidden = held_out_cells(X, rng)
        if hidden.sum() >= _FEWEST_HELD_OUT:
            return _best(KINDS[kind], candidates, settings.loop, X, hidden, rows)
    family = KINDS[kind].family(**candidates[len(candidates) // 2])
    return family, pairwise_start(family, rows)


def held_out_cells(X: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A tenth of the observed cells at random, but never all of a row or of a column."""
    observed = ~np.isnan(X)
    hidden = observed & (rng.random_sample(X.shape) < _HELD_OUT)
    hidden[(hidden == observed).all(axis=1)] = False
    hidden[:, (hidden == observed).all(axis=0)] = False
    return hidden


def _shrinkage_candidates(settings: Settings, n_rows: int, n_columns: int) -> list[dict[str, Any]]:
    if settings.shrinkage != "auto":
        return [{"shrinkage": settings.shrinkage}]
    if n_rows >= _ROWS_PER_COLUMN * n_columns:
        return [{"shrinkage": _LEAST_SHRINKAGE}]
    return [{"shrinkage": shrinkage} for shrinkage in _SHRINKAGES]


def _factor_candidates(settings: Settings, n_rows: int, n_columns: int) -> list[dict[str, Any]]:
    shrinkage = _LEAST_SHRINKAGE if settings.shrinkage == "auto" else settings.shrinkage
    most = min(n_rows, n_columns)
    if settings.n_factors == "auto":
        path = [q for q in _N_FACTORS if q < most] or [1]
        return [{"shrinkage": shrinkage, "n_factors": q} for q in path]
    if int(settings.n_factors) > n_columns:
        raise ValueError(
            f"n_factors must be at most the number of columns with observed values, "
            f"{n_columns}, got {settings.n_factors}."
        )
    return [{"shrinkage": shrinkage, "n_factors": int(settings.n_factors)}]


_CANDIDATES = {"full": _shrinkage_candidates, "factor": _factor_candidates}


def _best(
    kind: Kind,
    candidates: list[dict[str, Any]],
    loop: dict[str, Any],
    X: np.ndarray,
    hidden: np.ndarray,
    rows: StandardizedRows,
) -> _Fit:
    masked = np.where(hidden, np.nan, X)
    visible = StandardizedRows(masked, rows.center, rows.scale)
    short = {**loop, "max_iter": min(loop["max_iter"], _PATH_ITERATIONS)}

    def solve(candidate: dict[str, Any], last: _Fit | None) -> _Fit:
        family = kind.family(**candidate)
        # Along a path of shrinkage the last parameters are a warm start; the number of factors
        # changes their shape.
        cold = last is None or "n_factors" in candidate
        start = pairwise_start(family, visible) if cold else last.parameters  # type: ignore[union-attr]
        return _Fit(family, maximum_likelihood(family, visible, start, **short).inner)

    def error(fit: _Fit) -> float:
        model = fit.family.model(fit.parameters)
        completed = completed_rows(fit.family, model, masked, rows.center, rows.scale)
        return float(np.sqrt(np.mean((((completed - X) / rows.scale)[hidden]) ** 2)))

    return best_along_path(candidates, solve, error)[1]
