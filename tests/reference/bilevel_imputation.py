"""Oracle: eqs. (1) to (5) of bilevel imputation, row by row and cell by cell.

Rows are values (n, d), 0 at missing cells, and a mask (n, d), 1 where observed; targets (n, q),
and labelled (n,), 1 where a row has a label. A student is ``student(values (d,), mask (d,)) ->
outputs (q,)``, its parameters closed over. ``kind`` is "numbers" or "classes".
"""

import math

import numpy as np


def shares(logits):
    """exp(z_k) / sum_j exp(z_j)."""
    odds = [math.exp(logit) for logit in logits]
    return [each / sum(odds) for each in odds]


def row_loss(kind, outputs, labels):
    """Mean squared error over the targets, or cross-entropy in nats."""
    if kind == "numbers":
        return sum((o - y) ** 2 for o, y in zip(outputs, labels, strict=True)) / len(labels)
    return -sum(y * math.log(p) for y, p in zip(labels, shares(outputs), strict=True))


def imputed_row(values, mask, features):
    """Eq. (1) for the features of a row."""
    return np.array([values[j] if mask[j] else features[j] for j in range(len(values))])


def labels_of_row(kind, targets, labelled, outputs):
    """Eq. (1) for the label of a row: the teacher's where there is none."""
    if labelled:
        return list(targets)
    return list(outputs) if kind == "numbers" else shares(outputs)


def inner_loss(student, kind, rows, features, outputs, kept, weights, theta, ridge):
    """Eq. (2)."""
    values, mask, targets, labelled = rows
    total = 0.0
    for i in range(len(values)):
        filled = imputed_row(values[i], mask[i], features[i])
        shown = np.array([filled[j] if kept[i, j] else 0.0 for j in range(len(filled))])
        labels = labels_of_row(kind, targets[i], labelled[i], outputs[i])
        total += weights[i] * row_loss(kind, student(shown, kept[i]), labels)
    return total / sum(weights) + ridge / 2 * sum(each**2 for each in theta)


def outer_loss(student, kind, rows):
    """Eq. (3)."""
    values, mask, targets, _ = rows
    losses = [row_loss(kind, student(values[i], mask[i]), targets[i]) for i in range(len(values))]
    return sum(losses) / len(losses)


def naive_outer_loss(student, kind, rows, features):
    """Eq. (4)."""
    values, mask, targets, _ = rows
    total = 0.0
    for i in range(len(values)):
        filled = imputed_row(values[i], mask[i], features[i])
        total += row_loss(kind, student(filled, np.ones(len(filled))), targets[i])
    return total / len(values)


def reconstruction_loss(features, truth, hidden, seen):
    """The cells of eq. (5)."""
    sums, counts = {"hidden": 0.0, "seen": 0.0}, {"hidden": 0, "seen": 0}
    for name, cells in (("hidden", hidden), ("seen", seen)):
        for i, j in np.argwhere(cells):
            sums[name] += (features[i, j] - truth[i, j]) ** 2
            counts[name] += 1
    means = {name: sums[name] / max(1, counts[name]) for name in sums}
    return means["hidden"] + 0.1 * means["seen"]


def label_loss(kind, outputs, targets, labelled):
    """The labels of eq. (5)."""
    losses = [row_loss(kind, outputs[i], targets[i]) for i in np.flatnonzero(labelled)]
    return sum(losses) / len(losses) if losses else 0.0
