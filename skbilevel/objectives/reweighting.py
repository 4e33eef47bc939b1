"""Weights of training rows, learnt for a small sample of the distribution that matters.

====================  ==================  ==========  =============================================
symbol                code name           shape       meaning
====================  ==================  ==========  =============================================
x_i, y_i              X, Y                (n, p),     training rows, and their numbers or shares
                                          (n, k)      of classes
x'_j, y'_j            X_target, Y_target  (m, p),     rows of the distribution that matters
                                          (m, k)
theta                 theta               (p k,)      of a linear model, row by row of its matrix
w                     weights             (n,)        of the training rows
a, phi                a, phi              (n,), (q,)  what weights are made of
l_i, l'_j             loss                (n,), (m,)  of a row, as a function of x_i' theta
lambda                ridge               scalar      of the model
v                     adjoint             (p k,)      H(theta, w)^-1 grad F
g                     alignment           (n,)        dh / dw
====================  ==================  ==========  =============================================

The bilevel problem is ::

    G(theta, w) = sum_i w_i l_i(theta) + lambda/2 |theta|^2                                   (1)
    F(theta) = 1/m sum_j l'_j(theta),   h(w) = F(theta*(w)),   theta*(w) = argmin G(., w)     (2)

and by the implicit function theorem ::

    H(theta, w) v = grad F(theta),   H = sum_i w_i hess l_i + lambda I                        (5)
    g_i = -<grad l_i(theta), v>                                                               (6)

which is dh/dw_i at theta = theta*(w). Weights that are not free have parameters; the derivative
in these follows from g by the chain rule, written out in `PARAMETRISATIONS`, `log_linear` and
`gate`.

Reference: Ivanova and Ablin (2023), A challenge in reweighting data with bilevel optimization,
arXiv 2310.17386, whose numbers of equations these are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from skbilevel.objectives.linear_loss import LinearLoss, Response


@dataclass(frozen=True)
class WeightedLinear:
    """Eq. (1) for a linear model.

    Attributes
    ----------
    X, Y : Tensor of shape (n, p) and (n, k)
    loss : LinearLoss
    ridge : float
        lambda, always as ``lambda/2 |theta|^2``.
    """

    X: Tensor
    Y: Tensor
    loss: LinearLoss
    ridge: float = 0.0

    @property
    def n_rows(self) -> int:
        """n."""
        return len(self.X)

    @property
    def n_parameters(self) -> int:
        """p k."""
        return self.X.shape[1] * self.Y.shape[1]

    @cached_property
    def labels(self) -> Tensor:
        """Y, stored column by column as outputs are, so that sums over classes add columns."""
        return self.Y.T.contiguous().T

    @property
    def is_quadratic(self) -> bool:
        """Whether its loss is."""
        return self.loss.is_quadratic

    def at(self, theta: Tensor) -> "Point":
        """What depends on theta alone."""
        return Point(self, theta)


@dataclass(frozen=True)
class ReweightedLinear:
    """Eqs (1) and (2) for a linear model.

    Attributes
    ----------
    train : WeightedLinear
    target : WeightedLinear
        Of the target rows, without a ridge.
    target_weights : Tensor of shape (m,)
        Of the target rows in F, 1/m each unless they weigh differently.
    """

    train: WeightedLinear
    target: WeightedLinear
    target_weights: Tensor

    @property
    def n_rows(self) -> int:
        """n."""
        return self.train.n_rows

    @property
    def n_parameters(self) -> int:
        """p k."""
        return self.train.n_parameters

    @property
    def is_quadratic(self) -> bool:
        """Whether the loss of the training rows is."""
        return self.train.is_quadratic

    def at(self, theta: Tensor) -> "Point":
        """The training rows at theta."""
        return self.train.at(theta)

    def target_loss(self, theta: Tensor) -> Tensor:
        """F of eq. (2)."""
        return self.target.at(theta).value(self.target_weights)

    def target_gradient(self, theta: Tensor) -> Tensor:
        """grad F, (p k,)."""
        return self.target.at(theta).gradient(self.target_weights)


def reweighted_linear(
    X: Tensor,
    Y: Tensor,
    X_target: Tensor,
    Y_target: Tensor,
    loss: LinearLoss,
    ridge: float,
    target_weights: Tensor | None = None,
) -> ReweightedLinear:
    """The problem of training rows (n, p) with labels (n, k) and target rows (m, p), (m, k), which
    weigh 1/m each by default."""
    if target_weights is None:
        target_weights = X_target.new_full((len(X_target),), 1 / len(X_target))
    train, target = WeightedLinear(X, Y, loss, ridge), WeightedLinear(X_target, Y_target, loss)
    return ReweightedLinear(train, target, target_weights)


@dataclass(frozen=True)
class Point:
    """Rows at one theta: each of its quantities is computed once.

    Attributes
    ----------
    problem : WeightedLinear
    theta : Tensor of shape (p k,)
    """

    problem: WeightedLinear
    theta: Tensor

    @cached_property
    def _response(self) -> Response:
        return self.problem.loss.at(self._along(self.theta), self.problem.labels)

    @property
    def losses(self) -> Tensor:
        """l_i, (n,)."""
        return self._response.value

    def value(self, weights: Tensor) -> Tensor:
        """G of eq. (1)."""
        return weights @ self.losses + self.problem.ridge / 2 * self.theta.dot(self.theta)

    def gradient(self, weights: Tensor) -> Tensor:
        """d_theta G, (p k,)."""
        return self._back(weights, self._response.slope) + self.problem.ridge * self.theta

    def product(self, weights: Tensor, v: Tensor) -> Tensor:
        """H v of eq. (5), (p k,)."""
        return self._back(weights, self._response.curved(self._along(v))) + self.problem.ridge * v

    def alignment(self, v: Tensor) -> Tensor:
        """g of eq. (6), (n,)."""
        return -(self._response.slope * self._along(v)).sum(dim=1)

    def curvatures(self, u: Tensor, v: Tensor) -> Tensor:
        """u'(hess l_i) v of every row, (n,)."""
        return (self._along(u) * self._response.curved(self._along(v))).sum(dim=1)

    def third_product(self, weights: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """sum_i w_i (d3 l_i)[u, v], (p k,): how H u changes as theta moves along v."""
        return self._back(weights, self._response.bent(self._along(u), self._along(v)))

    def shared_matrix(self, weights: Tensor) -> Tensor:
        """sum_i w_i c_i x_i x_i' + lambda I, (p, p), with the mean curvature c_i of a row: one
        block of H for all outputs if the loss is quadratic, and near it if not."""
        rows, curvature = self.problem.X, self._response.curvature
        matrix = rows.T @ ((weights * curvature)[:, None] * rows)
        matrix.diagonal().add_(self.problem.ridge)
        return matrix

    def _along(self, v: Tensor) -> Tensor:
        """X v, (n, k), stored column by column."""
        return (_matrix(v, self.problem.X).T @ self.problem.X.T).T

    def _back(self, weights: Tensor, parts: Tensor) -> Tensor:
        return ((parts.T * weights) @ self.problem.X).T.reshape(-1)


def _matrix(theta: Tensor, rows: Tensor) -> Tensor:
    """theta as (p, k)."""
    return theta.view(rows.shape[1], -1)


class Parametrisation(NamedTuple):
    """Weights made of one number a for each row; a = 0 is where they are in proportion to counts.

    Attributes
    ----------
    weights : callable
        ``a -> w``, (n,) to (n,).
    direction : callable
        ``(a, g) -> (n,)``: a moves against it, given g = dh/dw.
    counts : Tensor of shape (n,)
        How often each row occurs.
    """

    weights: Callable[[Tensor], Tensor]
    direction: Callable[[Tensor, Tensor], Tensor]
    counts: Tensor


def softmax_pull(weights: Tensor, g: Tensor) -> Tensor:
    """dh/da = w * (g - w'g) for w = softmax(a), (n,)."""
    return weights * (g - weights @ g)


def _mirror(counts: Tensor) -> Parametrisation:
    """w <- w exp(-eta g) / sum: a is the dual variable of the entropy, and moves along g."""
    prior = counts.log()
    return Parametrisation(lambda a: (a + prior).softmax(dim=0), lambda a, g: g, counts)


def _softmax(counts: Tensor) -> Parametrisation:
    """w = softmax(a), by gradient descent on a."""
    weights = _mirror(counts).weights
    return Parametrisation(weights, lambda a, g: softmax_pull(weights(a), g) / counts, counts)


def _sigmoid(counts: Tensor) -> Parametrisation:
    """w = sigma(a) / n, bounded, and with a sum that is not 1, by gradient descent on a."""
    n_rows = counts.sum()

    def direction(a: Tensor, g: Tensor) -> Tensor:
        shares = a.sigmoid()
        return g * shares * (1 - shares) / n_rows

    return Parametrisation(lambda a: counts * a.sigmoid() / n_rows, direction, counts)


# Name -> weights of rows that occur so many times each, (n,): a row that counts twice moves as two
# rows do.
PARAMETRISATIONS: dict[str, Callable[[Tensor], Parametrisation]] = {
    "mirror": _mirror,
    "softmax": _softmax,
    "sigmoid": _sigmoid,
}


class Weights(NamedTuple):
    """Weights (n,) of few parameters, and how a derivative in them goes back to these.

    Attributes
    ----------
    value : Tensor of shape (n,)
        Or (n + m,), where m rows of certain use follow.
    pull : callable
        ``dh/dw -> dh/dphi``, from a tensor like ``value`` to (q,).
    """

    value: Tensor
    pull: Callable[[Tensor], Tensor]


def log_linear(features: Tensor, phi: Tensor, prior: Tensor | None = None) -> Weights:
    """w proportional to ``prior * exp(features @ phi)``: the density ratio of an exponential
    family (proposition 1), from features (n, q)."""
    a = features @ phi if prior is None else features @ phi + prior.log()
    weights = a.softmax(dim=0)
    return Weights(weights, lambda g: features.T @ softmax_pull(weights, g))


def gate(
    features: Tensor, phi: Tensor, prior: Tensor | None = None, certain: Tensor | None = None
) -> Weights:
    """w proportional to ``prior * sigma(features @ phi)``: the probability that a row is of use,
    from features (n, q). No weight exceeds that of a row which is of use for certain.

    Such rows, (m,), follow the others with ``certain`` as their prior. The constant of phi then
    says how much all other rows count beside them, which without them it does not.
    """
    a, n_rows = features @ phi, len(features)
    logs = torch.nn.functional.logsigmoid(a)
    if prior is not None:
        logs = logs + prior.log()
    if certain is not None:
        logs = torch.cat([logs, certain.log()])
    weights = logs.softmax(dim=0)

    def pull(g: Tensor) -> Tensor:
        return features.T @ (softmax_pull(weights, g)[:n_rows] * (-a).sigmoid())

    return Weights(weights, pull)


def divergence(weights: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """KL(w || q) in nats, and its derivative in w, (n,), where q are weights too."""
    ratio = torch.where(weights > 0, (weights / reference).log(), 0.0)
    return weights @ ratio, ratio + 1
