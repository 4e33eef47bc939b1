"""What neighbours say of a label: labels diffused over a graph of rows, without a row's own.

Wrong labels are not wrong together: a row whose neighbours have its label is more likely right.
Rows of the training set and of the target are nodes; labels spread along edges, and a target row,
whose label is known to be right, counts more.

Reference: Zhou, Bousquet, Lal, Weston and Schölkopf (2004), Learning with local and global
consistency, NeurIPS 16, whose equation is in `LabelGraph.diffused`.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def heard(
        self,
        shares: np.ndarray,
        shares_target: np.ndarray,
        voices: np.ndarray,
        parts: Sequence[np.ndarray] | None = None,
    ) -> Heard:
        """Diffuse all labels once, so that they can be left out later: what is heard is a sum.

        Parameters
        ----------
        shares : ndarray of shape (n, k)
            Labels of the training rows, one column a class.
        shares_target : ndarray of shape (m, k)
            Those of the target rows.
        voices : ndarray of shape (n + m,)
            How much each row has to say, 1 on average.
        parts : sequence of ndarray, optional
            Positions of target rows that are heard or left out together; one part by default.
        """
        (n_rows, n_classes), n_target = shares.shape, len(shares_target)
        parts = [np.arange(n_target)] if parts is None else parts
        said = voices[:, np.newaxis] * np.vstack([shares, _OF_TARGET * shares_target])
        said -= said.sum(axis=1, keepdims=True) / n_classes
        train = [np.arange(n_rows)[self.folds != each] for each in range(self.folds.max() + 1)]
        speaking = np.zeros((len(said), len(train) + len(parts)))
        for column, index in enumerate([*train, *(n_rows + part for part in parts)]):
            speaking[index, column] = 1.0
        each = speaking[:, :, np.newaxis] * said[:, np.newaxis]
        told = self.diffused(each.reshape(len(said), -1)).reshape(each.shape)
        return Heard(self.folds, told[:, : len(train)], told[:, len(train) :])

    def diffused(self, labels: np.ndarray) -> np.ndarray:
        """F <- .9 S F + .1 Y, fifteen times, from labels Y of all nodes, (n + m, q)."""
        told = labels
        for _ in range(_STEPS):
            told = _SPREAD * (self.adjacency @ told) + (1 - _SPREAD) * labels
        return told


@dataclass(frozen=True)
class Heard:
    """What nodes hear of labels, by who says it.

    Attributes
    ----------
    folds : ndarray of shape (n,), int
        Of the training rows.
    train : ndarray of shape (n + m, j, k)
        From training rows, without each of their folds.
    target : ndarray of shape (n + m, q, k)
        From each part of the target rows.
    """

    folds: np.ndarray
    train: np.ndarray
    target: np.ndarray

    def shares(self, parts: Sequence[int] | None = None) -> np.ndarray:
        """What these parts of the target, or all, and training rows but those of its own fold say
        to every training row, (n, k); rows are scaled to sum to 1 in absolute value."""
        target = self.target if parts is None else self.target[:, list(parts)]
        n_rows = len(self.folds)
        own = self.train[np.arange(n_rows), self.folds]
        return _scaled(own + target[:n_rows].sum(axis=1))

    def of_all(self) -> np.ndarray:
        """What all rows say to every node, (n + m, k), but for a training row that is the only
        one."""
        n_folds = self.train.shape[1]
        # Every fold of training rows is left out once.
        train = self.train.sum(axis=1) / max(1, n_folds - 1)
        return train + self.target.sum(axis=1)


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


def _scaled(told: np.ndarray) -> np.ndarray:
    return told / np.maximum(np.abs(told).sum(axis=1, keepdims=True), np.finfo(float).tiny)
