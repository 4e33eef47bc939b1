"""The losses of a teacher that imputes and a student that learns from what it imputes.

======================  ==============  ============  ========================================
symbol                  code name       shape         meaning
======================  ==============  ============  ========================================
x, m                    values, mask    (n, d)        rows, 0 at missing cells; 1 = observed
y                       targets         (n, q)        standardised, or one column a class
T_x, T_y                features,       (n, d),       what the teacher makes of the rows, before
                        outputs         (n, q)        eq. (1): features, and numbers or logits
                        phi             (n (d + q),)  both, row by row: the outer variables
theta_S                 theta           (P,)          parameters of the student
D_p                     kept            (n, d)        cells that feature dropout leaves, 1 or 0
S                       student         (n, q)        outputs of the student
l                       row_loss        (n,)          squared error, or cross-entropy
lambda                  ridge           scalar        of the student
======================  ==============  ============  ========================================

Observed cells and labels stay as they are ::

    [T_x]_j = x_j where m_j = 1,   T_y = y where the row has a label              (1)

The student is fitted to imputed rows, some of whose features are dropped, and judged on rows that
the teacher has not touched. What is imputed is the outer variable of the problem; a teacher is
one application of the chain rule away ::

    L_inner = sum_i w_i l(S(D_p(T_x,i), p), T_y,i) / sum_i w_i
              + lambda/2 |theta_S|^2                                              (2)
    L_outer = mean_i l(S(x_i m_i, m_i), y_i)   over rows set aside                (3)

so that L_outer depends on the teacher by the fitted student alone. If those rows are imputed as
well, the teacher can write their labels into their features: the leak ::

    L_naive = mean_i l(S(T_x,i, 1), y_i)                                          (4)

The teacher also reconstructs cells that are hidden from it, and a little those that it sees, and
predicts labels ::

    L_mae = mean_hidden (T_x - x)^2 + .1 mean_seen (T_x - x)^2 + mean_i l(T_y,i, y_i)   (5)

Reference: Bilevel Imputation Explained, Sections 3 to 7.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from skbilevel.numerics.problem import CompositeLoss

# (theta, values, mask) -> outputs (n, q)
StudentCall = Callable[[Tensor, Tensor, Tensor], Tensor]
# Of cells that the teacher sees, in eq. (5).
_OF_SEEN = 0.1


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """l for numbers, (n,): the mean over targets."""
    return (outputs - labels).square().mean(dim=1)


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """l for classes, (n,) in nats, from logits and shares of the classes."""
    return -(labels * outputs.log_softmax(dim=1)).sum(dim=1)


class Kind(NamedTuple):
    """What a target asks of outputs: their loss, and the labels that they stand for."""

    row_loss: Callable[[Tensor, Tensor], Tensor]
    labels: Callable[[Tensor], Tensor]


NUMBERS = Kind(squared_error, lambda outputs: outputs)
CLASSES = Kind(cross_entropy, lambda logits: logits.softmax(dim=1))


class Rows(NamedTuple):
    """Rows as they are observed.

    Attributes
    ----------
    values, mask : Tensor of shape (n, d)
        0 at missing cells; 1 = observed.
    targets : Tensor of shape (n, q)
        Anything finite where there is no label.
    labelled : Tensor of shape (n,)
        1 where there is one.
    """

    values: Tensor
    mask: Tensor
    targets: Tensor
    labelled: Tensor

    def at(self, index: Tensor) -> "Rows":
        """Some of the rows."""
        return Rows(*(part[index] for part in self))


def packed(features: Tensor, outputs: Tensor) -> Tensor:
    """phi, from (n, d) and (n, q)."""
    return torch.cat([features, outputs], dim=1).reshape(-1)


def unpacked(phi: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """The inverse of `packed` for rows that stand first in phi."""
    (n_rows, n_columns), n_targets = rows.values.shape, rows.targets.shape[1]
    first = phi[: n_rows * (n_columns + n_targets)].view(n_rows, -1)
    features, outputs = first.split([n_columns, n_targets], dim=1)
    return features, outputs


def imputed(rows: Rows, features: Tensor) -> Tensor:
    """Eq. (1) for features, (n, d)."""
    return torch.where(rows.mask > 0, rows.values, features)


def completed_labels(rows: Rows, predicted: Tensor) -> Tensor:
    """Eq. (1) for labels, (n, q)."""
    return torch.where(rows.labelled.unsqueeze(1) > 0, rows.targets, predicted)


def inner_weights(rows: Rows, pseudo_label_weight: float) -> Tensor:
    """w of eq. (2), (n,): 1 for labelled rows, and for others what pseudo-labels count."""
    return rows.labelled + (1 - rows.labelled) * pseudo_label_weight


def inner_loss(
    student: StudentCall, kind: Kind, rows: Rows, kept: Tensor, weights: Tensor, ridge: float
) -> CompositeLoss:
    """Eq. (2) as a function of (theta, phi).

    Parameters
    ----------
    student : callable
    kind : Kind
    rows : Rows
        That the student learns from.
    kept : Tensor of shape (n, d)
        D_p, drawn before.
    weights : Tensor of shape (n,)
        w.
    ridge : float
    """

    def model(theta: Tensor, phi: Tensor) -> Tensor:
        return student(theta, imputed(rows, unpacked(phi, rows)[0]) * kept, kept)

    def loss(outputs: Tensor, phi: Tensor) -> Tensor:
        labels = completed_labels(rows, kind.labels(unpacked(phi, rows)[1]))
        return kind.row_loss(outputs, labels) @ weights / weights.sum()

    return CompositeLoss(model, loss, ridge)


def outer_loss(student: StudentCall, kind: Kind, rows: Rows) -> Callable[[Tensor, Tensor], Tensor]:
    """Eq. (3) as a function of (theta, phi), which does not depend on phi."""

    def loss(theta: Tensor, phi: Tensor) -> Tensor:
        return kind.row_loss(student(theta, rows.values, rows.mask), rows.targets).mean()

    return loss


def naive_outer_loss(
    student: StudentCall, kind: Kind, rows: Rows
) -> Callable[[Tensor, Tensor], Tensor]:
    """Eq. (4) as a function of (theta, phi), whose last rows are these: the loss that leaks."""
    everything = torch.ones_like(rows.mask)
    n_outer = rows.values.shape[0] * (rows.values.shape[1] + rows.targets.shape[1])

    def loss(theta: Tensor, phi: Tensor) -> Tensor:
        features = imputed(rows, unpacked(phi[-n_outer:], rows)[0])
        return kind.row_loss(student(theta, features, everything), rows.targets).mean()

    return loss


def reconstruction_loss(features: Tensor, truth: Tensor, hidden: Tensor, seen: Tensor) -> Tensor:
    """The cells of eq. (5): all (n, d), ``hidden`` and ``seen`` 1 for the cells that count."""
    errors = (features - truth).square()
    return _mean_over(errors, hidden) + _OF_SEEN * _mean_over(errors, seen)


def label_loss(kind: Kind, outputs: Tensor, rows: Rows) -> Tensor:
    """The labels of eq. (5); 0 where no row has one, or there is nothing to predict."""
    if rows.targets.shape[1] == 0:
        return outputs.sum()
    return _mean_over(kind.row_loss(outputs, rows.targets), rows.labelled)


def _mean_over(losses: Tensor, counted: Tensor) -> Tensor:
    return (losses * counted).sum() / counted.sum().clamp(min=1)
