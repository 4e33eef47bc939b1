"""Imputation of each column in turn by extremely randomised trees.

scikit-learn grows the trees; they are kept as arrays, so that a fitted imputer is small and can be
stored without pickle, and rows are sent through all trees of a forest at once.

Reference: Geurts, Ernst and Wehenkel (2006), Extremely randomized trees, Machine Learning 63.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.tree import ExtraTreeRegressor

_LEAF, _SHARE_OF_COLUMNS = 2, 0.7
# Trees of the rounds before the last, which only fill in what others are predicted from.
_FEW_TREES = 10
# Every tree of more rows than this gets so many, drawn for it: a larger one knows little more, and
# takes memory for every row.
_MOST_ROWS = 4000
_ROWS_AT_A_TIME = 4096
# Of a tree, before those who have come to a leaf are left out.
_LEVELS_AT_A_TIME = 4


class Forest(NamedTuple):
    """Trees, their nodes one after the other.

    Attributes
    ----------
    roots : ndarray of shape (t,), int32
    feature : ndarray of shape (k,), int32
        Of each node; negative at leaves.
    right : ndarray of shape (k,), int32
        Where larger values go; others go to the next node.
    threshold : ndarray of shape (k,), float64
        The largest value that does not go right.
    value : ndarray of shape (k,) or (k, q), float64
        What a leaf predicts.
    """

    roots: np.ndarray
    feature: np.ndarray
    right: np.ndarray
    threshold: np.ndarray
    value: np.ndarray

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The mean over trees, (n,) or (n, q), from rows (n, p)."""
        n_rows, n_columns = X.shape
        # Trees are grown on float32, and a value equal to a threshold has to go the same way.
        with np.errstate(over="ignore"):
            cells = X.astype(np.float32).ravel()
        is_leaf, feature, threshold, next_node = self._looped()
        leaves = np.repeat(self.roots, n_rows)
        # Who is still on the way, at which node, and where the cells of the row begin.
        who, at = np.arange(len(leaves)), leaves.copy()
        start = np.tile(np.arange(0, n_rows * n_columns, n_columns), len(self.roots))
        while len(who):
            for _ in range(_LEVELS_AT_A_TIME):
                goes_right = cells.take(start + feature.take(at)) > threshold.take(at)
                at = next_node.take(2 * at + goes_right)
            leaves[who] = at
            goes_on = np.flatnonzero(~is_leaf.take(at))
            who, at, start = who.take(goes_on), at.take(goes_on), start.take(goes_on)
        of_trees = self.value[leaves].reshape(len(self.roots), n_rows, *self.value.shape[1:])
        return of_trees.mean(axis=0)

    def _looped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Which nodes (k,) are leaves; feature and threshold of all, (k,); and where smaller and
        larger values go from each, in turn, (2 k,). Whoever is at a leaf stays there."""
        is_leaf, node = self.feature < 0, np.arange(len(self.feature))
        left, right = np.where(is_leaf, node, node + 1), np.where(is_leaf, node, self.right)
        return (
            is_leaf,
            np.where(is_leaf, 0, self.feature),
            np.where(is_leaf, np.inf, self.threshold),
            np.column_stack([left, right]).ravel(),
        )


def grown(X: np.ndarray, y: np.ndarray, n_trees: int, rng: np.random.RandomState) -> Forest:
    """A forest that predicts ``y``, (n,) or (n, q), from complete rows (n, p)."""
    cells = np.ascontiguousarray(X, dtype=np.float32)
    source = np.random.RandomState(rng.randint(2**31 - 1))
    trees = [_tree(cells, y, source) for _ in range(n_trees)]
    roots = np.cumsum([0, *(tree.node_count for tree in trees[:-1])]).astype(np.int32)
    right = [tree.children_right + root for tree, root in zip(trees, roots, strict=True)]
    # They are grown depth first, so that the left child of a node is the next one.
    return Forest(
        roots,
        np.concatenate([tree.feature for tree in trees]).astype(np.int32),
        np.concatenate(right).astype(np.int32),
        np.concatenate([tree.threshold for tree in trees]),
        np.concatenate([tree.value[:, :, 0] for tree in trees]).reshape(-1, *y.shape[1:]),
    )


def _tree(X: np.ndarray, y: np.ndarray, rng: np.random.RandomState) -> Any:
    """One of scikit-learn's `ExtraTreesRegressor`, which takes a third of its time to clone it."""
    if len(X) > _MOST_ROWS:
        drawn = rng.permutation(len(X))[:_MOST_ROWS]
        X, y = X[drawn], y[drawn]
    model = ExtraTreeRegressor(
        min_samples_leaf=_LEAF,
        max_features=_SHARE_OF_COLUMNS,
        random_state=rng.randint(2**31 - 1),
    )
    return model.fit(X, y, check_input=False).tree_


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


def fit_trees(
    Z: np.ndarray, n_trees: int, rng: np.random.RandomState, n_rounds: int = 3
) -> TreeImputation:
    """Columns with the fewest missing cells first, each from the others, in rounds.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Rows with NaN at missing cells, an observed one in every column.
    n_trees : int
        Of each forest of the last round.
    rng : RandomState
    n_rounds : int, default=3
    """
    missing = np.isnan(Z)
    start = np.nanmean(Z, axis=0)
    filled, sequence = np.where(missing, start, Z), []
    order = np.argsort(missing.sum(axis=0), kind="stable").tolist()
    if Z.shape[1] == 1:
        return TreeImputation(start, [])
    for number in range(n_rounds):
        is_last = number == n_rounds - 1
        n_grown = n_trees if is_last else min(n_trees, _FEW_TREES)
        for column in order:
            lacking = missing[:, column]
            # A complete column has nothing to tell the others anew: only new rows may lack it.
            if not (lacking.any() or is_last):
                continue
            others = np.delete(filled, column, axis=1)
            forest = grown(others[~lacking], Z[~lacking, column], n_grown, rng)
            sequence.append((column, forest))
            predict_into(filled, lacking, column, forest)
    return TreeImputation(start, sequence)


def predict_into(filled: np.ndarray, where: np.ndarray, column: int, forest: Forest) -> None:
    """Write a column of those rows (b,) of ``filled``, predicted from their other columns."""
    index = np.flatnonzero(where)
    for first in range(0, len(index), _ROWS_AT_A_TIME):
        rows = index[first : first + _ROWS_AT_A_TIME]
        filled[rows, column] = forest.predict(np.delete(filled[rows], column, axis=1))
