"""A teacher that imputes the rows of a linear student, whose fit is solved anew in NumPy.

The truth is ``value(parameters of the teacher)``, the outer loss of the student that fits what
this teacher imputes: a closed form for numbers, and Newton's method for classes. It can be
differenced.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.special import expit, log_softmax, softmax

from skbilevel.models.masked_autoencoder import MaskedAutoencoder
from skbilevel.models.student import Student
from skbilevel.numerics.parameters import assign, flatten, functional
from skbilevel.numerics.problem import BilevelProblem
from skbilevel.objectives.bilevel_imputation import (
    CLASSES,
    NUMBERS,
    Rows,
    inner_loss,
    naive_outer_loss,
    outer_loss,
    packed,
)


def minimiser(model, labels, weights, ridge, is_class):
    """theta (k, q) that minimises ``sum_i w_i l(z_i'theta, y_i) / sum_i w_i + ridge/2 |theta|^2``
    for rows z_i of the model (n, k): a linear system, or Newton's method."""
    (n_inputs, n_outputs), w = (model.shape[1], labels.shape[1]), weights / weights.sum()
    if not is_class:
        scale = 2 / n_outputs
        gram = scale * (model.T * w) @ model + ridge * np.eye(n_inputs)
        return np.linalg.solve(gram, scale * (model.T * w) @ labels)
    theta = np.zeros((n_inputs, n_outputs))
    for _ in range(30):
        p = softmax(model @ theta, axis=1)
        gradient = (model.T * w) @ (p - labels) + ridge * theta
        if np.abs(gradient).max() < 1e-14:
            break
        middle = p[:, :, None] * (np.eye(n_outputs) - p[:, None, :])
        hessian = np.einsum("i,ia,ib,ikl->akbl", w, model, model, middle)
        hessian = hessian.reshape(theta.size, theta.size) + ridge * np.eye(theta.size)
        theta = theta - np.linalg.solve(hessian, gradient.ravel()).reshape(theta.shape)
    assert np.abs(gradient).max() < 1e-12
    return theta


def mean_loss(outputs, labels, is_class):
    if is_class:
        return -(labels * log_softmax(outputs, axis=1)).sum(axis=1).mean()
    return np.square(outputs - labels).mean()


@dataclass(frozen=True)
class ImputingTeacher:
    """`learnt` rows are imputed by a teacher; `judged` rows judge the student.

    Both are (values, mask, targets, labelled). The base of the teacher is 0. If ``is_naive``, the
    judging rows are imputed as well.
    """

    learnt: tuple
    judged: tuple
    kept: np.ndarray
    weights: np.ndarray
    ridge: float
    is_class: bool
    is_naive: bool = False
    hidden: int = 4

    @classmethod
    def random(cls, seed=0, n=30, m=20, d=5, q=1, is_class=False, n_labelled=30, **options):
        rng = np.random.default_rng(seed)

        def rows(size, n_labelled):
            values, mask = rng.normal(size=(size, d)), 1.0 * (rng.random((size, d)) < 0.7)
            values = values + rng.normal(size=(size, 1))
            scores = values @ rng.normal(size=(d, q)) + 0.3 * rng.normal(size=(size, q))
            targets = np.eye(q)[scores.argmax(axis=1)] if is_class else scores
            labelled = 1.0 * (np.arange(size) < n_labelled)
            return values * mask, mask, targets * labelled[:, None], labelled

        learnt, judged = rows(n, n_labelled), rows(m, m)
        weights = np.where(learnt[3] > 0, 1.0, 0.5)
        kept = 1.0 * (rng.random((n, d)) < 0.8)
        return cls(learnt, judged, kept, weights, 0.1, is_class, **options)

    @property
    def sizes(self):
        """d and q."""
        return self.learnt[0].shape[1], self.learnt[2].shape[1]

    # What the package sees

    @cached_property
    def teacher(self):
        """With a last layer that is not zero."""
        generator = torch.Generator().manual_seed(0)
        module = MaskedAutoencoder(*self.sizes, (self.hidden,), generator=generator)
        assign(module, torch.randn(len(flatten(module)), generator=generator).double() / 2)
        return module

    def phi(self):
        """With the graph that leads to the teacher."""
        parts = (self.learnt, self.judged) if self.is_naive else (self.learnt,)
        values, mask = (
            torch.from_numpy(np.concatenate([part[k] for part in parts])) for k in (0, 1)
        )
        return packed(*self.teacher(values, mask, torch.zeros_like(values)))

    def bilevel(self):
        generator, kind = torch.Generator().manual_seed(0), CLASSES if self.is_class else NUMBERS
        student = functional(Student(*self.sizes, (), generator=generator))
        learnt, judged = (
            Rows(*map(torch.from_numpy, each)) for each in (self.learnt, self.judged)
        )
        kept, weights = torch.from_numpy(self.kept), torch.from_numpy(self.weights)
        outer = naive_outer_loss if self.is_naive else outer_loss
        return BilevelProblem(
            inner_loss(student, kind, learnt, kept, weights, self.ridge),
            outer(student, kind, judged),
        )

    # The truth

    def taught(self, rows, parameters):
        """Features and outputs of the teacher."""
        (d, q), h = self.sizes, self.hidden
        ends = np.cumsum([3 * d * h, h, h * (d + q)])
        first, bias, last, last_bias = np.split(parameters, ends)
        inputs = np.hstack([rows[0], rows[1], np.zeros_like(rows[0])])
        hidden = inputs @ first.reshape(h, 3 * d).T + bias
        found = hidden * expit(hidden) @ last.reshape(d + q, h).T + last_bias
        return found[:, :d], found[:, d:]

    def solved(self, parameters):
        """The student's coefficients (2 d + 1, q): of values, of the mask, and the intercept."""
        values, mask, targets, labelled = self.learnt
        features, outputs = self.taught(self.learnt, parameters)
        filled = np.where(mask > 0, values, features) * self.kept
        told = softmax(outputs, axis=1) if self.is_class else outputs
        labels = np.where(labelled[:, None] > 0, targets, told)
        model = np.hstack([filled, self.kept, np.ones((len(filled), 1))])
        return minimiser(model, labels, self.weights, self.ridge, self.is_class)

    def theta_star(self, parameters):
        """In the order of the student's parameters: weights (q, 2 d), then the intercepts."""
        theta = self.solved(parameters)
        return np.concatenate([theta[:-1].T.ravel(), theta[-1]])

    def outer(self, theta, parameters):
        """Of coefficients as of `solved`."""
        values, mask, targets, _ = self.judged
        if self.is_naive:
            values = np.where(mask > 0, values, self.taught(self.judged, parameters)[0])
            mask = np.ones_like(mask)
        model = np.hstack([values, mask, np.ones((len(values), 1))])
        return mean_loss(model @ theta, targets, self.is_class)

    def value(self, parameters):
        return self.outer(self.solved(parameters), parameters)
