"""The family of distributions that `GaussianImputer` fits, and its hyper-parameter.

"auto" hides a tenth of the observed cells, fits along a path and keeps the value that imputes the
hidden cells best.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from skbilevel.estimators.block_em import completed_rows, maximum_likelihood, pairwise_estimate
from skbilevel.numerics.row_groups import StandardizedRows
from skbilevel.objectives.factor_analysis import FactorFamily, FactorParameters
from skbilevel.objectives.family import Family
from skbilevel.objectives.normal import NormalFamily, NormalParameters
from skbilevel.objectives.student_t import StudentFamily, StudentParameters
from skbilevel.solvers.em import EMResult
from skbilevel.solvers.path import best_along_path

# Prior weight that keeps a covariance definite and changes no imputation where rows abound.
_LEAST_SHRINKAGE = 1e-3
_SHRINKAGES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, _LEAST_SHRINKAGE)
_N_FACTORS = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90)
_CELLS_PER_COVARIANCE = 10
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


class Fit(NamedTuple):
    """A family with what EM made of it, and the number of observed cells a column it saw."""

    family: Family
    result: EMResult
    n_observed: np.ndarray


def has_many_cells(n_observed: np.ndarray) -> bool:
    """Whether a covariance needs no shrinkage, from the observed cells of each column (d,).

    Cells count, not rows: a long table with many holes says little.
    """
    return bool(n_observed.mean() >= _CELLS_PER_COVARIANCE * len(n_observed))


def candidate_families(settings: Settings, n_rows: int, n_observed: np.ndarray) -> list[Family]:
    """The families to choose from in the order of the path; only one if nothing is "auto".

    ``n_observed`` (d,) is the number of observed cells of each column, of ``n_rows``.
    """
    kind = (settings.covariance, settings.robust)
    if kind not in KINDS:
        raise ValueError("robust=True needs covariance='full', got covariance='factor'.")
    candidates = _CANDIDATES[settings.covariance](settings, n_rows, n_observed)
    return [KINDS[kind].family(**candidate) for candidate in candidates]


def choose(
    families: list[Family],
    X: np.ndarray,
    rows: StandardizedRows,
    rng: np.random.RandomState,
    loop: dict[str, Any],
    on_candidate: Callable[[Fit], bool],
) -> tuple[Family, Any]:
    """The family to fit to ``rows``, and the parameters to start from.

    Parameters
    ----------
    families : list of Family
        Those of `candidate_families`.
    X : ndarray of shape (n, d)
        Training rows with NaN at missing cells.
    rows : StandardizedRows
        The same rows, standardised.
    rng : RandomState
        Draws the held-out cells, if there is a choice.
    loop : dict
        ``max_iter``, ``tol`` and ``n_jobs`` of `maximum_likelihood`.
    on_candidate : callable
        ``on_candidate(fit) -> stop`` after every candidate of the path.

    Returns
    -------
    family, parameters
        The latter belong to the best candidate on held-out cells, if there was a choice.
    """
    if len(families) == 1:
        return families[0], families[0].start(pairwise_estimate(rows, loop["n_jobs"]))
    hidden = held_out_cells(X, rng)
    if hidden.sum() < _FEWEST_HELD_OUT:
        family = _untuned(families[0])
        return family, family.start(pairwise_estimate(rows, loop["n_jobs"]))
    fit = _best(families, loop, X, hidden, rows, on_candidate)
    return fit.family, fit.result.inner


def held_out_cells(X: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A tenth of the observed cells at random, but never all of a row or of a column."""
    observed = ~np.isnan(X)
    hidden = observed & (rng.random_sample(X.shape) < _HELD_OUT)
    hidden[(hidden == observed).all(axis=1)] = False
    hidden[:, (hidden == observed).all(axis=0)] = False
    return hidden


def _shrinkage_candidates(
    settings: Settings, n_rows: int, n_observed: np.ndarray
) -> list[dict[str, Any]]:
    if settings.shrinkage != "auto":
        return [{"shrinkage": settings.shrinkage}]
    if has_many_cells(n_observed):
        return [{"shrinkage": _LEAST_SHRINKAGE}]
    return [{"shrinkage": shrinkage} for shrinkage in _SHRINKAGES]


def _factor_candidates(
    settings: Settings, n_rows: int, n_observed: np.ndarray
) -> list[dict[str, Any]]:
    n_columns = len(n_observed)
    shrinkage = _LEAST_SHRINKAGE if settings.shrinkage == "auto" else settings.shrinkage
    if settings.n_factors == "auto":
        path = [q for q in _N_FACTORS if q < min(n_rows, n_columns)] or [1]
        return [{"shrinkage": shrinkage, "n_factors": q} for q in path]
    if int(settings.n_factors) > n_columns:
        raise ValueError(
            f"n_factors must be at most the number of columns with observed values, "
            f"{n_columns}, got {settings.n_factors}."
        )
    return [{"shrinkage": shrinkage, "n_factors": int(settings.n_factors)}]


_CANDIDATES = {"full": _shrinkage_candidates, "factor": _factor_candidates}


def _untuned(family: Family) -> Family:
    """What to fit where too few cells can be held out: one row of prior, or one factor."""
    if isinstance(family, FactorFamily):
        return replace(family, n_factors=1)
    return replace(family, shrinkage=1.0)  # type: ignore[type-var]


def _best(
    families: list[Family],
    loop: dict[str, Any],
    X: np.ndarray,
    hidden: np.ndarray,
    rows: StandardizedRows,
    on_candidate: Callable[[Fit], bool],
) -> Fit:
    masked = np.where(hidden, np.nan, X)
    visible = StandardizedRows(masked, rows.center, rows.scale)
    n_observed = np.count_nonzero(~np.isnan(masked), axis=0)
    estimate = pairwise_estimate(visible, loop["n_jobs"])
    short = {**loop, "max_iter": min(loop["max_iter"], _PATH_ITERATIONS)}

    def solve(family: Family, last: Fit | None) -> Fit:
        # Along a path of shrinkage the last parameters are a warm start; the number of factors
        # changes their shape.
        warm = last is not None and not isinstance(family, FactorFamily)
        start = last.result.inner if warm else family.start(estimate)  # type: ignore[union-attr]
        return Fit(family, maximum_likelihood(family, visible, start, **short), n_observed)

    def error(fit: Fit) -> float:
        model = fit.family.model(fit.result.inner)
        completed = completed_rows(fit.family, model, masked, rows.center, rows.scale)
        return float(np.sqrt(np.mean((((completed - X) / rows.scale)[hidden]) ** 2)))

    return best_along_path(families, solve, error, on_step=on_candidate)[1]
