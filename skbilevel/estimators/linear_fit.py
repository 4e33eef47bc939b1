"""The normal beside each kind of missing mechanism, fitted to a table.

What is known of the mechanism decides how it is found: `LINEAR_FITS` has one way for each name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from skbilevel.estimators.block_em import maximum_likelihood
from skbilevel.estimators.gaussian_choice import Settings, candidate_families, choose
from skbilevel.estimators.linear_model import NO_LIMIT, LinearModel
from skbilevel.estimators.mechanism_choice import choose as choose_mechanism
from skbilevel.estimators.mechanism_choice import known_class
from skbilevel.estimators.mechanism_em import LIMIT, NARROWEST, MechanismFit, fit_self_masked
from skbilevel.estimators.mechanism_slope import known_sign
from skbilevel.estimators.mechanism_start import hard_limits
from skbilevel.numerics.observed import drawn_rows
from skbilevel.numerics.row_groups import StandardizedRows
from skbilevel.objectives.normal import NormalParameters
from skbilevel.objectives.self_masking import SelfMasking

# Sites are kept for all rows of a fit, whose memory would grow with them: a normal of a few dozen
# columns is known to a hundredth of a standard deviation from this many.
MOST_ROWS = 20_000

OnStep = Callable[[Callable[[], "LinearFit"]], bool]


@dataclass(frozen=True)
class Knowledge:
    """What is known of the mechanism, by column and in standardised units.

    Attributes
    ----------
    side : ndarray of shape (d,) or None
        1, -1 or 0; None if not known.
    limits : ndarray of shape (d,)
        NaN where not known.
    """

    side: np.ndarray | None
    limits: np.ndarray


class Table(NamedTuple):
    """Rows (n, d) with NaN at missing cells, and center and scale of the columns (d,)."""

    X: np.ndarray
    center: np.ndarray
    scale: np.ndarray

    def standardized(self) -> np.ndarray:
        """(X - center) / scale."""
        return (self.X - self.center) / self.scale

    def rows(self) -> StandardizedRows:
        """The same as groups."""
        return StandardizedRows(self.X, self.center, self.scale)


class Loop(NamedTuple):
    """Most iterations, the tolerance, what is reported to, and the source of randomness."""

    max_iter: int
    tol: float
    on_step: OnStep
    rng: np.random.RandomState


@dataclass(frozen=True)
class LinearFit:
    """A normal with its mechanism.

    Attributes
    ----------
    model : LinearModel
    mechanism : str
        "mar", "self_masking" or "censored".
    evidence : dict of str to float
        Gain of candidates over missing at random in nats per missing cell, where several were
        compared.
    n_iter : int
    converged : bool
    """

    model: LinearModel
    mechanism: str
    evidence: dict[str, float] = field(default_factory=dict)
    n_iter: int = 1
    converged: bool = True

    @property
    def is_hard(self) -> np.ndarray:
        """Columns whose values are missing beyond a limit, (d,)."""
        side, _, width = (part.numpy() for part in self.model.mechanism)
        return (side != 0) & (width <= NARROWEST)


def thinned(table: Table, rng: np.random.RandomState) -> Table:
    """The rows, or as many of them as a fit keeps sites for."""
    if len(table.X) <= MOST_ROWS:
        return table
    return table._replace(X=table.X[drawn_rows(table.X, MOST_ROWS, rng)])


def _missing_at_random(table: Table, knowledge: Knowledge, loop: Loop) -> LinearFit:
    """The normal as `GaussianImputer` fits it."""
    rows, n_columns = table.rows(), table.X.shape[1]
    n_observed = np.count_nonzero(~np.isnan(table.X), axis=0)
    families = candidate_families(
        Settings("full", False, "auto", "auto"), len(table.X), n_observed
    )
    limits: dict[str, Any] = {"max_iter": loop.max_iter, "tol": loop.tol, "n_jobs": None}
    family, start = choose(families, table.X, rows, loop.rng, limits, lambda fit: False)

    def fit_of(result: Any) -> LinearFit:
        parameters = NormalParameters(result.inner.location, result.inner.covariance)
        model = LinearModel(
            parameters, no_mechanism(n_columns), table.center, table.scale, NO_LIMIT
        )
        return LinearFit(model, "mar", {}, max(result.n_iter, 1), result.converged)

    result = maximum_likelihood(
        family,
        rows,
        start,
        **limits,
        on_step=lambda current: loop.on_step(lambda: fit_of(current())),
    )
    return fit_of(result)


def _with_mechanism(
    table: Table, mechanism: SelfMasking, name: str, loop: Loop, evidence: dict[str, float]
) -> LinearFit:
    def fit_of(result: MechanismFit) -> LinearFit:
        model = LinearModel(result.parameters, result.mechanism, table.center, table.scale, LIMIT)
        return LinearFit(model, name, evidence, result.n_iter, result.converged)

    result = fit_self_masked(
        table.rows(),
        mechanism,
        max_iter=loop.max_iter,
        tol=loop.tol,
        on_step=lambda current: loop.on_step(lambda: fit_of(current())),
    )
    return fit_of(result)


def _censored(table: Table, knowledge: Knowledge, loop: Loop) -> LinearFit:
    table = thinned(table, loop.rng)
    Z = table.standardized()
    if knowledge.side is None:
        choice = known_class(Z, "censored", loop.rng)
        side, evidence = choice.mechanism.side.numpy(), choice.gaps
    else:
        side, evidence = knowledge.side, {}
    mechanism = hard_limits(Z, side, knowledge.limits)
    return _with_mechanism(table, mechanism, "censored", loop, evidence)


def _self_masking_known(table: Table, knowledge: Knowledge, loop: Loop) -> LinearFit:
    assert knowledge.side is not None
    table = thinned(table, loop.rng)
    fit = known_sign(table.standardized(), knowledge.side, loop.rng)
    return _with_mechanism(table, fit.mechanism, "self_masking", loop, {})


def _self_masking(table: Table, knowledge: Knowledge, loop: Loop) -> LinearFit:
    table = thinned(table, loop.rng)
    choice = known_class(table.standardized(), "self_masking", loop.rng)
    return _with_mechanism(table, choice.mechanism, "self_masking", loop, choice.gaps)


def _auto(table: Table, knowledge: Knowledge, loop: Loop) -> LinearFit:
    few = thinned(table, loop.rng)
    choice = choose_mechanism(few.standardized(), loop.rng)
    if choice.name == "mar":
        # Without sites there is nothing that grows with the rows.
        fit = _missing_at_random(table, knowledge, loop)
        return LinearFit(fit.model, "mar", choice.gaps, fit.n_iter, fit.converged)
    return _with_mechanism(few, choice.mechanism, choice.name, loop, choice.gaps)


def no_mechanism(n_columns: int) -> SelfMasking:
    """No column is missing because of its value."""
    zero = torch.zeros(n_columns, dtype=torch.float64)
    return SelfMasking(zero, zero, zero + 1)


LINEAR_FITS: dict[str, Callable[[Table, Knowledge, Loop], LinearFit]] = {
    "mar": _missing_at_random,
    "censored": _censored,
    "self_masking_known": _self_masking_known,
    "self_masking": _self_masking,
    "auto": _auto,
}
