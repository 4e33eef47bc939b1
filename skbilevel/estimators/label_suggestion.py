"""Labels for rows whose own look wrong, on which neighbours and a weighted model agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from skbilevel.estimators.label_gate import voices
from skbilevel.estimators.label_graph import label_graph
from skbilevel.estimators.linear_proxy import fitted
from skbilevel.estimators.weight_task import Task


class Suggestion(NamedTuple):
    """Labels for the training rows of a task.

    Attributes
    ----------
    codes : ndarray of shape (n,), int
        The most likely class.
    weights : ndarray of shape (n,)
        Occurrences of the row with that label: how likely its own is wrong, times how sure the
        suggestion is.
    is_wrong : ndarray of shape (n,), bool
        Whether its own label is more likely wrong than right.
    """

    codes: np.ndarray
    weights: np.ndarray
    is_wrong: np.ndarray


def suggested(task: Task, weights: np.ndarray, right: np.ndarray, ridge: float) -> Suggestion:
    """Suggest labels, given weights (n + m,) of training and target rows, and the probability
    (n,) that a training row's own is right.

    Shares of classes are the root of the product of those that neighbours give, without the row's
    own label, and of those of softmax regression on the weighted rows.
    """
    train, target = task.train, task.target
    graph = label_graph(task.features(train), task.features(target), task.rng())
    by_neighbours = np.maximum(graph.heard(train.Y, target.Y, voices(task)).shares(), 0)
    theta = fitted(train.with_rows(target).weighted(weights), task.loss, ridge)
    agreed = np.sqrt(by_neighbours * softmax(train.X @ theta, axis=1))
    total = agreed.sum(axis=1)
    sure = agreed.max(axis=1) / np.where(total > 0, total, 1.0)
    return Suggestion(agreed.argmax(axis=1), train.counts * (1 - right) * sure, right < 0.5)
