"""What neighbours say of a label: labels diffused over a graph of rows, without a row's own.

Wrong labels are not wrong together: a row whose neighbours have its label is more likely right.
Rows of the training set and of the target are nodes; labels spread along edges, and a target row,
whose label is known to be right, counts more.

Reference: Zhou, Bousquet, Lal, Weston and Schölkopf (2004), Learning with local and global
consistency, NeurIPS 16, whose equation is in `LabelGraph.diffused`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, diags_array
from sklearn.neighbors import NearestNeighbors

# Neighbours of a row, what an edge passes on of a label, and how often.
_NEIGHBOURS, _SPREAD, _STEPS = 10, 0.9, 15
# Labels of training rows are set aside fold by fold; a target row counts as so many of them.
_FOLDS, _OF_TARGET = 5, 10.0


@dataclass(frozen=True)
class LabelGraph:
    """A graph of the training rows, first, and of the target rows.

    Attributes
    ----------
    adjacency : csr_array of shape (n + m, n + m)
        Normalised to D^-1/2 W D^-1/2.
    folds : ndarray of shape (n,), int
        Of the training rows, whose own labels are set aside together.
    scale : float
        Of squared distances.
    """

    adjacency: csr_array
    folds: np.ndarray
    scale: float

    def margins(
        self, shares: np.ndarray, shares_target: np.ndarray, voices: np.ndarray | None = None
    ) -> np.ndarray:
        """Share of a training row's label less the largest share of any other, (n,).

        Parameters
        ----------
        shares : ndarray of shape (n, k)
            Labels of the training rows, one column a class.
        shares_target : ndarray of shape (m, k)
            Those of the target rows, of zeros for rows that are to say nothing.
        voices : ndarray of shape (n + m,), optional
            How much each row has to say, 1 on average; the same by default.
        """
        return label_margins(self.shares(shares, shares_target, voices), shares)

    def shares(
        self, shares: np.ndarray, shares_target: np.ndarray, voices: np.ndarray | None = None
    ) -> np.ndarray:
        """What neighbours say of every training row, (n, k), without its fold; rows are scaled to
        sum to 1 in absolute value."""
        n_rows, n_classes = shares.shape
        target = _of_target(shares_target)
        heard = np.ones((n_rows + len(target), 1)) if voices is None else voices[:, np.newaxis]
        labels = []
        for fold in range(self.folds.max() + 1):
            seen = (self.folds != fold)[:, np.newaxis] * (shares - 1 / n_classes)
            labels.append(heard * np.vstack([seen, target]))
        each = self.diffused(np.hstack(labels))[:n_rows].reshape(n_rows, -1, n_classes)
        return _scaled(each[np.arange(n_rows), self.folds])

    def diffused(self, labels: np.ndarray) -> np.ndarray:
        """F <- .9 S F + .1 Y, fifteen times, from labels Y of all nodes, (n + m, q)."""
        told = labels
        for _ in range(_STEPS):
            told = _SPREAD * (self.adjacency @ told) + (1 - _SPREAD) * labels
        return told

    def of_all_labels(
        self, shares: np.ndarray, shares_target: np.ndarray, voices: np.ndarray
    ) -> np.ndarray:
        """What every node says to a row that is not in the graph, (n + m, k)."""
        labels = np.vstack([shares - 1 / shares.shape[1], _of_target(shares_target)])
        return self.diffused(voices[:, np.newaxis] * labels)


def label_graph(X: np.ndarray, X_target: np.ndarray, rng: np.random.RandomState) -> LabelGraph:
    """The graph of training rows (n, d) and target rows (m, d), of ten neighbours each."""
    rows = np.vstack([X, X_target])
    n_neighbours = min(_NEIGHBOURS, len(rows) - 1)
    # Without a row itself: a row that is there twice is a neighbour of the other.
    distances, index = NearestNeighbors(n_neighbors=n_neighbours).fit(rows).kneighbors()
    squared = distances**2
    scale = float(np.median(squared[:, -1])) or 1.0
    edges = np.exp(-squared / scale)
    start = np.arange(len(rows) + 1) * n_neighbours
    one_way = csr_array((edges.ravel(), index.ravel(), start), shape=(len(rows), len(rows)))
    weights = one_way.maximum(one_way.T)
    root = diags_array(1 / np.sqrt(np.maximum(weights.sum(axis=1), np.finfo(float).tiny)))
    folds = rng.permutation(len(X)) % min(_FOLDS, len(X))
    return LabelGraph(csr_array(root @ weights @ root), folds, scale)


def told_by_neighbours(
    nodes: np.ndarray, told: np.ndarray, scale: float, rows: np.ndarray
) -> np.ndarray:
    """What nodes (n + m, d) that say ``told``, (n + m, k), say of other rows (b, d); (b, k)."""
    search = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(nodes))).fit(nodes)
    distances, index = search.kneighbors(rows)
    edges = np.exp(-(distances**2) / scale)
    return _scaled(np.einsum("bi,bik->bk", edges, told[index]))


def label_margins(told: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Share of a row's label less the largest share of any other, (n,)."""
    own = (told * shares).sum(axis=1)
    return own - np.where(shares > 0, -np.inf, told).max(axis=1)


def _of_target(shares: np.ndarray) -> np.ndarray:
    known = (shares != 0).sum(axis=1, keepdims=True) > 0
    return _OF_TARGET * known * (shares - 1 / shares.shape[1])


def _scaled(told: np.ndarray) -> np.ndarray:
    return told / np.maximum(np.abs(told).sum(axis=1, keepdims=True), np.finfo(float).tiny)
