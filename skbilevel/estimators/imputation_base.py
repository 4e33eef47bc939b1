"""The imputation that a teacher corrects: a normal, trees, a mix of both, means, or one's own.

Everything here is in standardised units, a user's own imputer aside, which sees the data as they
are. The normal is kept near the observed range: a line goes on where the data do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from sklearn.base import clone

from skbilevel.estimators.latent_state import linear_of, linear_state
from skbilevel.estimators.linear_fit import LINEAR_FITS, Knowledge, Loop, Table
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.estimators.missing_odds import missing_odds
from skbilevel.estimators.tree_imputation import (
    TreeImputation,
    fit_trees,
    tree_imputation_of,
)

# Trees of a forest. Fewer in the blind one would make all trees look worse than they are; a round
# less would not.
N_TREES, _BLIND_ROUNDS = 30, 2
# The pool counts as much for a column's weight as twice the held-out cells of the mean column.
_POOLED = 2.0
_MAX_ITER, _TOL = 200, 1e-3
_BEYOND = 3.0


class Base(Protocol):
    """Completes rows.

    Attributes
    ----------
    memorises : bool
        Whether a cell that was fitted is imputed better than a new one: errors at such cells
        then say nothing.
    """

    memorises: bool

    def completed(self, Z: np.ndarray) -> np.ndarray:
        """Rows (b, d) with NaN at missing cells, complete."""


@dataclass(frozen=True)
class Range:
    """Least and largest value that a column, (d,), is imputed by."""

    low: np.ndarray
    high: np.ndarray

    def clipped(self, Z: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """Imputed cells within the range; observed ones as they are."""
        return np.where(np.isnan(Z), np.clip(filled, self.low, self.high), Z)


@dataclass(frozen=True)
class MeanBase:
    """The observed mean, which is 0."""

    memorises = False

    def completed(self, Z: np.ndarray) -> np.ndarray:
        """See `Base`."""
        return np.where(np.isnan(Z), 0.0, Z)


@dataclass(frozen=True)
class GaussianBase:
    """The conditional mean of a normal."""

    normal: LinearModel
    range: Range
    memorises = False

    def completed(self, Z: np.ndarray) -> np.ndarray:
        """See `Base`."""
        # A row far beyond all others has a conditional mean that is not finite.
        return self.range.clipped(Z, np.nan_to_num(self.normal.completed(Z)))


@dataclass(frozen=True)
class TreeBase:
    """Extremely randomised trees, column after column."""

    trees: TreeImputation
    memorises = True

    def completed(self, Z: np.ndarray) -> np.ndarray:
        """See `Base`."""
        return self.trees.completed(Z)


@dataclass(frozen=True)
class StackBase:
    """A share of the trees in each column, (d,), and the normal for the rest."""

    gaussian: GaussianBase
    trees: TreeBase
    weights: np.ndarray
    memorises = True

    def completed(self, Z: np.ndarray) -> np.ndarray:
        """See `Base`."""
        linear = self.gaussian.completed(Z)
        if not self.weights.any():
            return linear
        return linear + self.weights * (self.trees.completed(Z) - linear)


@dataclass(frozen=True)
class OwnBase:
    """A fitted imputer of the user's."""

    imputer: Any
    center: np.ndarray
    scale: np.ndarray
    memorises = True

    def completed(self, Z: np.ndarray) -> np.ndarray:
        """See `Base`."""
        filled = np.asarray(self.imputer.transform(Z * self.scale + self.center), dtype=float)
        if filled.shape != Z.shape:
            raise ValueError(
                f"base={self.imputer!r} must return the {Z.shape[1]} columns that it is given, "
                f"and returned an array of shape {filled.shape}."
            )
        if not np.isfinite(filled).all():
            raise ValueError(f"base={self.imputer!r} must be an imputer, and left missing cells.")
        return np.where(np.isnan(Z), (filled - self.center) / self.scale, Z)


def fit_normal(table: Table, rng: np.random.RandomState) -> LinearModel:
    """The normal as `GaussianImputer` fits it, about standardised rows."""
    d = table.X.shape[1]
    unknown = Knowledge(None, np.full(d, np.nan))
    loop = Loop(_MAX_ITER, _TOL, lambda current: False, rng)
    units = Table(table.standardized(), np.zeros(d), np.ones(d))
    return LINEAR_FITS["mar"](units, unknown, loop).model


class FittedBase(NamedTuple):
    """A base, and what was fitted beside it.

    Attributes
    ----------
    base, blind : Base
        Of the table, and without the cells that judge it.
    normal : LinearModel
        Of the table.
    odds : ndarray of shape (n, d)
        Weights of observed cells, as of `missing_odds`.
    """

    base: Base
    blind: Base
    normal: LinearModel
    odds: np.ndarray


def fit_base(
    base: Any, table: Table, hidden: np.ndarray, rng: np.random.RandomState
) -> FittedBase:
    """Fit the base twice: to the table, and without cells that judge it.

    Parameters
    ----------
    base : {"mean", "gaussian", "trees", "stack"} or imputer
    table : Table
    hidden : ndarray of shape (n, d), bool
        Observed cells that the second must not see.
    rng : RandomState
    """
    visible = table._replace(X=np.where(hidden, np.nan, table.X))
    normal, Z = fit_normal(table, rng), table.standardized()
    odds = missing_odds(~np.isnan(Z), GaussianBase(normal, _range(Z)).completed(Z))
    fit = BASES[base] if isinstance(base, str) else _own(base)
    return FittedBase(*fit(table, visible, normal, hidden * odds, rng), normal, odds)


def _means(
    table: Table, visible: Table, normal: LinearModel, counted: np.ndarray, rng: Any
) -> tuple[Base, Base]:
    return MeanBase(), MeanBase()


def _gaussian(
    table: Table, visible: Table, normal: LinearModel, counted: np.ndarray, rng: Any
) -> tuple[GaussianBase, GaussianBase]:
    return (
        GaussianBase(normal, _range(table.standardized())),
        GaussianBase(fit_normal(visible, rng), _range(visible.standardized())),
    )


def _trees(
    table: Table, visible: Table, normal: LinearModel, counted: np.ndarray, rng: Any
) -> tuple[TreeBase, TreeBase]:
    return (
        TreeBase(fit_trees(table.standardized(), N_TREES, rng)),
        TreeBase(fit_trees(visible.standardized(), N_TREES, rng, _BLIND_ROUNDS)),
    )


def _stack(
    table: Table, visible: Table, normal: LinearModel, counted: np.ndarray, rng: Any
) -> tuple[Base, Base]:
    gaussian, blind = _gaussian(table, visible, normal, counted, rng)
    trees, blind_trees = _trees(table, visible, normal, counted, rng)
    Z, seen = table.standardized(), visible.standardized()
    linear, other = blind.completed(seen), blind_trees.completed(seen)
    weights = column_weights(Z, linear, other, counted)
    return StackBase(gaussian, trees, weights), StackBase(blind, blind_trees, weights)


def _own(imputer: Any) -> Callable[..., tuple[Base, Base]]:
    def fit(
        table: Table, visible: Table, normal: LinearModel, counted: np.ndarray, rng: Any
    ) -> tuple[Base, Base]:
        fitted = (_seeded(imputer, rng).fit(each.X) for each in (table, visible))
        whole, blind = (OwnBase(each, table.center, table.scale) for each in fitted)
        return whole, blind

    return fit


def _seeded(imputer: Any, rng: np.random.RandomState) -> Any:
    """A clone that draws from ``rng`` wherever it has been told no seed."""
    own = clone(imputer)
    seeds = {
        name: rng.randint(2**31 - 1)
        for name, value in sorted(own.get_params().items())
        if value is None and (name == "random_state" or name.endswith("__random_state"))
    }
    return own.set_params(**seeds)


BASES: dict[str, Callable[..., tuple[Base, Base]]] = {
    "mean": _means,
    "gaussian": _gaussian,
    "trees": _trees,
    "stack": _stack,
}


def column_weights(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Shares w_j in [0, 1] of ``second`` with the least squared error of first + w (second -
    first) in each column, drawn towards that of all columns.

    All arrays are (n, d); ``counted`` is what each cell weighs, 0 where ``truth`` is not known.
    """
    step = second - first
    products = (counted * step * np.where(counted > 0, truth - first, 0.0)).sum(axis=0)
    squares = (counted * step**2).sum(axis=0)
    if not squares.any():
        return np.zeros(truth.shape[1])
    pooled = np.clip(products.sum() / squares.sum(), 0.0, 1.0)
    prior = _POOLED * squares.mean()
    return np.clip((products + prior * pooled) / (squares + prior), 0.0, 1.0)


def _range(Z: np.ndarray) -> Range:
    """Three deviations beyond what was observed: extreme values are among the missing ones."""
    return Range(np.nanmin(Z, axis=0) - _BEYOND, np.nanmax(Z, axis=0) + _BEYOND)


def base_state(base: Base) -> dict[str, Any]:
    """Arrays and plain Python; a user's imputer as it is."""
    if isinstance(base, MeanBase):
        return {"kind": "mean"}
    if isinstance(base, GaussianBase):
        return {"kind": "gaussian", "normal": linear_state(base.normal), **vars(base.range)}
    if isinstance(base, TreeBase):
        return {"kind": "trees", "trees": base.trees.state()}
    if isinstance(base, StackBase):
        parts = {"gaussian": base_state(base.gaussian), "trees": base_state(base.trees)}
        return {"kind": "stack", "weights": base.weights, **parts}
    assert isinstance(base, OwnBase)
    return {"kind": "own", **vars(base)}


def base_of(state: dict[str, Any]) -> Base:
    """The inverse of `base_state`."""
    return _OF_STATE[state["kind"]](state)


def _gaussian_of(state: dict[str, Any]) -> GaussianBase:
    return GaussianBase(linear_of(state["normal"]), Range(state["low"], state["high"]))


def _trees_of(state: dict[str, Any]) -> TreeBase:
    return TreeBase(tree_imputation_of(state["trees"]))


_OF_STATE: dict[str, Callable[[dict[str, Any]], Base]] = {
    "mean": lambda state: MeanBase(),
    "gaussian": _gaussian_of,
    "trees": _trees_of,
    "stack": lambda state: StackBase(
        _gaussian_of(state["gaussian"]), _trees_of(state["trees"]), state["weights"]
    ),
    "own": lambda state: OwnBase(state["imputer"], state["center"], state["scale"]),
}
