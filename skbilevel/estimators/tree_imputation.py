"""Imputation of each column in turn by extremely randomised trees.

scikit-learn grows the trees; they are kept as arrays, so that a fitted imputer is small and can be
stored without pickle, and rows are sent through all trees of a forest at once.

Reference: Geurts, Ernst and Wehenkel (2006), Extremely randomized trees, Machine Learning 63.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

_LEAF, _SHARE_OF_COLUMNS = 2, 0.7
_ROUNDS = 3
# Trees of more rows than this know little more, and take memory for every row.
_MOST_ROWS = 4000
_ROWS_AT_A_TIME = 4096


class Forest(NamedTuple):
    """Trees, their nodes one after the other.

    Attributes
    ----------
    roots : ndarray of shape (t,), int32
    feature, left, right : ndarray of shape (k,), int32
        Of each node; ``left`` is -1 at leaves.
    threshold : ndarray of shape (k,), float64
        A value up to it goes left.
    value : ndarray of shape (k,) or (k, q), float64
        What a leaf predicts.
    """

    roots: np.ndarray
    feature: np.ndarray
    left: np.ndarray
    right: np.ndarray
    threshold: np.ndarray
    value: np.ndarray

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The mean over trees, (n,) or (n, q), from rows (n, p)."""
        n_rows, n_columns = X.shape
        # Trees are grown on float32, and a value equal to a threshold has to go the same way.
        with np.errstate(over="ignore"):
            cells = X.astype(np.float32).ravel()
        nodes = np.repeat(self.roots, n_rows)
        starts = np.tile(np.arange(0, n_rows * n_columns, n_columns), len(self.roots))
        inside = np.arange(len(nodes))
        while len(inside):
            at = nodes[inside]
            inside = inside[self.left[at] >= 0]
            at = nodes[inside]
            goes_left = cells[starts[inside] + self.feature[at]] <= self.threshold[at]
            nodes[inside] = np.where(goes_left, self.left[at], self.right[at])
        of_trees = self.value[nodes].reshape(len(self.roots), n_rows, *self.value.shape[1:])
        return of_trees.mean(axis=0)


def new_forest(n_trees: int, rng: np.random.RandomState) -> ExtraTreesRegressor:
    """To be grown."""
    return ExtraTreesRegressor(
        n_trees,
        min_samples_leaf=_LEAF,
        max_features=_SHARE_OF_COLUMNS,
        random_state=rng.randint(2**31 - 1),
    )


def grown(X: np.ndarray, y: np.ndarray, n_trees: int, rng: np.random.RandomState) -> Forest:
    """A forest that predicts ``y``, (n,) or (n, q), from complete rows (n, p)."""
    if len(X) > _MOST_ROWS:
        index = rng.choice(len(X), _MOST_ROWS, replace=False)
        X, y = X[index], y[index]
    model = new_forest(n_trees, rng)
    trees = [each.tree_ for each in model.fit(X, y).estimators_]
    sizes = [tree.node_count for tree in trees]
    roots = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
    shifted = {
        name: np.concatenate(
            [
                np.where(nodes >= 0, nodes + root, -1)
                for nodes, root in zip((getattr(tree, name) for tree in trees), roots, strict=True)
            ]
        ).astype(np.int32)
        for name in ("children_left", "children_right")
    }
    return Forest(
        roots,
        np.concatenate([tree.feature for tree in trees]).astype(np.int32),
        shifted["children_left"],
        shifted["children_right"],
        np.concatenate([tree.threshold for tree in trees]),
        np.concatenate([tree.value[:, :, 0] for tree in trees]).reshape(-1, *y.shape[1:]),
    )


@dataclass(frozen=True)
class TreeImputation:
    """Forests that complete rows, column after column.

    Attributes
    ----------
    start : ndarray of shape (d,)
        What missing cells are at first.
    sequence : list of (int, Forest)
        Which column is predicted from the others, in this order.
    """

    start: np.ndarray
    sequence: list[tuple[int, Forest]]

    def completed(self, rows: np.ndarray) -> np.ndarray:
        """Rows (b, d) with NaN at missing cells, complete."""
        missing = np.isnan(rows)
        filled = np.where(missing, self.start, rows)
        for column, forest in self.sequence:
            predict_into(filled, missing[:, column], column, forest)
        return filled

    def state(self) -> dict[str, Any]:
        """Arrays and plain Python."""
        columns = [column for column, _ in self.sequence]
        forests = [dict(forest._asdict()) for _, forest in self.sequence]
        return {"start": self.start, "columns": columns, "forests": forests}


def tree_imputation_of(state: dict[str, Any]) -> TreeImputation:
    """The inverse of `TreeImputation.state`."""
    forests = [Forest(**forest) for forest in state["forests"]]
    return TreeImputation(state["start"], list(zip(state["columns"], forests, strict=True)))


def fit_trees(Z: np.ndarray, n_trees: int, rng: np.random.RandomState) -> TreeImputation:
    """Columns with the fewest missing cells first, each from the others, in rounds.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Rows with NaN at missing cells, an observed one in every column.
    n_trees : int
        Of each forest.
    rng : RandomState
    """
    missing = np.isnan(Z)
    start = np.nanmean(Z, axis=0)
    filled, sequence = np.where(missing, start, Z), []
    order = np.argsort(missing.sum(axis=0), kind="stable").tolist()
    if Z.shape[1] == 1:
        return TreeImputation(start, [])
    for is_last in (False,) * (_ROUNDS - 1) + (True,):
        for column in order:
            lacking = missing[:, column]
            # A complete column has nothing to tell the others anew: only new rows may lack it.
            if not (lacking.any() or is_last):
                continue
            others = np.delete(filled, column, axis=1)
            forest = grown(others[~lacking], Z[~lacking, column], n_trees, rng)
            sequence.append((column, forest))
            predict_into(filled, lacking, column, forest)
    return TreeImputation(start, sequence)


def predict_into(filled: np.ndarray, where: np.ndarray, column: int, forest: Forest) -> None:
    """Write a column of those rows (b,) of ``filled``, predicted from their other columns."""
    index = np.flatnonzero(where)
    for first in range(0, len(index), _ROWS_AT_A_TIME):
        rows = index[first : first + _ROWS_AT_A_TIME]
        filled[rows, column] = forest.predict(np.delete(filled[rows], column, axis=1))
