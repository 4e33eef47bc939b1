"""Bilevel problems that carry their answer: NumPy closed forms beside the torch objectives.

Each problem is a frozen dataclass of arrays with ``random(seed)`` to make one, ``bilevel()`` for
the objectives that the package sees, and the truth: ``theta_star(phi)`` and ``outer(theta, phi)``
in NumPy alone, so that ``value(phi) = outer(theta_star(phi), phi)`` can be differenced. Rows are
written x_i, targets y_i; `n`, `m` count rows of the inner and the outer sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax

from skbilevel.numerics.problem import BilevelProblem, CompositeLoss

Array = NDArray[np.float64]


def central_differences(f: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """Gradient of f at x; its error is of order step**2 + eps / step, about 1e-11 here."""
    moves = step * np.eye(len(x))
    return np.array([(f(x + move) - f(x - move)) / (2 * step) for move in moves])


def assert_is_maximum(
    value: Callable[..., float], *at: Array, tol: float = 1e-6, seed: int = 1, step: float = 1e-4
) -> None:
    """Along random directions `value` is concave at `at`, and its Newton step is below `tol`."""
    rng, best = np.random.default_rng(seed), value(*at)
    for _ in range(4):
        directions = [rng.normal(size=part.shape) for part in at]
        up, down = (
            value(*(part + t * move for part, move in zip(at, directions, strict=True)))
            for t in (step, -step)
        )
        slope, curvature = (up - down) / (2 * step), (up - 2 * best + down) / step**2
        assert curvature < 0
        assert abs(slope / curvature) < tol


def symmetric_matrix(eigenvalues: Array, seed: int = 0) -> Array:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    matrix = basis * eigenvalues @ basis.T
    return (matrix + matrix.T) / 2


@dataclass(frozen=True)
class Quadratic:
    """Everything is linear in phi, and given by matrices.

    Inner ``theta'A theta/2 - theta'(B phi + c)``; outer ``|theta - t|^2/2 + theta'C phi +
    |phi|^2/2``. Then ``theta* = A^-1 (B phi + c)``, the direct part of the gradient is ``C'theta
    + phi`` and the implicit part ``B'A^-1 (theta - t + C phi)``.
    """

    A: Array
    B: Array
    C: Array
    c: Array
    t: Array

    @classmethod
    def random(cls, seed: int = 0, p: int = 5, q: int = 3) -> "Quadratic":
        rng = np.random.default_rng(seed)
        A = symmetric_matrix(rng.uniform(1, 4, size=p), seed)
        B, C = rng.normal(size=(2, p, q))
        return cls(A, B, C, *rng.normal(size=(2, p)))

    def bilevel(self) -> BilevelProblem:
        A, B, C, c, t = map(torch.from_numpy, (self.A, self.B, self.C, self.c, self.t))
        return BilevelProblem(
            inner=lambda theta, phi: theta @ A @ theta / 2 - theta @ (B @ phi + c),
            outer=lambda theta, phi: (
                (theta - t).square().sum() / 2 + theta @ C @ phi + phi.square().sum() / 2
            ),
        )

    def theta_star(self, phi: Array) -> Array:
        return np.linalg.solve(self.A, self.B @ phi + self.c)

    def direct(self, phi: Array) -> Array:
        return self.C.T @ self.theta_star(phi) + phi

    def implicit(self, phi: Array) -> Array:
        residual = self.theta_star(phi) - self.t + self.C @ phi
        return self.B.T @ np.linalg.solve(self.A, residual)


@dataclass(frozen=True)
class SoftmaxReweightedRidge:
    """Rows of another distribution, weighted by w = softmax(a) for the sake of a target sample.

    Inner ``sum_i w_i (y_i - x_i'theta)^2 / 2 + ridge/2 |theta|^2``; outer the mean of the same
    loss over the target rows, which does not see a: the direct part is 0.
    """

    X: Array
    y: Array
    X_target: Array
    y_target: Array
    ridge: float

    @classmethod
    def random(
        cls, seed: int = 0, n: int = 12, m: int = 8, p: int = 4
    ) -> "SoftmaxReweightedRidge":
        rng = np.random.default_rng(seed)
        X, X_target = rng.normal(size=(n, p)), rng.normal(size=(m, p))
        return cls(X, rng.normal(size=n), X_target, X_target.sum(axis=1), ridge=0.1)

    def bilevel(self) -> BilevelProblem:
        X, y, X_target, y_target = map(
            torch.from_numpy, (self.X, self.y, self.X_target, self.y_target)
        )
        return BilevelProblem(
            inner=CompositeLoss(
                model=lambda theta, a: X @ theta,
                loss=lambda outputs, a: a.softmax(0) @ (y - outputs).square() / 2,
                ridge=self.ridge,
            ),
            outer=lambda theta, a: (y_target - X_target @ theta).square().mean() / 2,
        )

    def hessian(self, a: Array) -> Array:
        return self.X.T * softmax(a) @ self.X + self.ridge * np.eye(self.X.shape[1])

    def theta_star(self, a: Array) -> Array:
        return np.linalg.solve(self.hessian(a), self.X.T * softmax(a) @ self.y)

    def value(self, a: Array) -> float:
        return np.square(self.y_target - self.X_target @ self.theta_star(a)).mean() / 2


@dataclass(frozen=True)
class TanhTeacherLinearStudent:
    """A teacher fills the missing cells of a student's rows: phi acts directly and through theta*.

    The teacher, a row x with its missing cells at 0 to ``tanh(x V)``, V = phi as (d, d). Inner:
    the mean squared loss (halved) of a linear student on the filled rows, plus a ridge. Outer:
    the same loss on complete target rows, plus the teacher's error on the observed cells.
    """

    X: Array
    mask: NDArray[np.bool_]  # True = observed
    y: Array
    X_target: Array
    y_target: Array
    ridge: float

    @classmethod
    def random(
        cls, seed: int = 0, n: int = 20, m: int = 10, d: int = 3
    ) -> "TanhTeacherLinearStudent":
        rng = np.random.default_rng(seed)
        mask = rng.uniform(size=(n, d)) < 0.6
        X, X_target = rng.normal(size=(n, d)), rng.normal(size=(m, d))
        return cls(
            X * mask, mask, X.sum(axis=1), X_target, X_target @ rng.normal(size=d), ridge=0.05
        )

    def bilevel(self) -> BilevelProblem:
        X, mask, y, X_target, y_target = map(
            torch.from_numpy, (self.X, self.mask, self.y, self.X_target, self.y_target)
        )

        def teacher(phi: torch.Tensor) -> torch.Tensor:
            return torch.tanh(X @ phi.reshape(X.shape[1], -1))

        return BilevelProblem(
            inner=CompositeLoss(
                model=lambda theta, phi: torch.where(mask, X, teacher(phi)) @ theta,
                loss=lambda outputs, phi: (y - outputs).square().mean() / 2,
                ridge=self.ridge,
            ),
            outer=lambda theta, phi: (
                (y_target - X_target @ theta).square().mean() / 2
                + (mask * (teacher(phi) - X)).square().mean()
            ),
        )

    def teacher(self, phi: Array) -> Array:
        return np.tanh(self.X @ phi.reshape(self.X.shape[1], -1))

    def theta_star(self, phi: Array) -> Array:
        filled = np.where(self.mask, self.X, self.teacher(phi))
        gram = filled.T @ filled / len(filled) + self.ridge * np.eye(filled.shape[1])
        return np.linalg.solve(gram, filled.T @ self.y / len(filled))

    def outer(self, theta: Array, phi: Array) -> float:
        student = np.square(self.y_target - self.X_target @ theta).mean() / 2
        return student + np.square(self.mask * (self.teacher(phi) - self.X)).mean()


@dataclass(frozen=True)
class WeightedLogistic:
    """Logistic regression with log-weights phi: a Hessian that depends on theta.

    Inner ``sum_i exp(phi_i) log(1 + exp(-y_i x_i'theta)) + ridge/2 |theta|^2`` with y in {-1, 1};
    outer the mean of the same loss over target rows. theta* is a root found by Newton's method.
    """

    X: Array
    y: Array
    X_target: Array
    y_target: Array
    ridge: float

    @classmethod
    def random(cls, seed: int = 0, n: int = 15, m: int = 9, p: int = 3) -> "WeightedLogistic":
        rng = np.random.default_rng(seed)
        X, X_target = rng.normal(size=(n, p)), rng.normal(size=(m, p))
        y, y_target = np.sign(X[:, 0] + rng.normal(size=n)), np.sign(X_target.sum(axis=1))
        return cls(X, y, X_target, y_target, ridge=0.3)

    def bilevel(self) -> BilevelProblem:
        X, y, X_target, y_target = map(
            torch.from_numpy, (self.X, self.y, self.X_target, self.y_target)
        )
        softplus = torch.nn.functional.softplus
        return BilevelProblem(
            inner=CompositeLoss(
                model=lambda theta, phi: X @ theta,
                loss=lambda outputs, phi: phi.exp() @ softplus(-y * outputs),
                ridge=self.ridge,
            ),
            outer=lambda theta, phi: softplus(-y_target * (X_target @ theta)).mean(),
        )

    def hessian(self, theta: Array, phi: Array) -> Array:
        slope = expit(-self.y * (self.X @ theta))
        weights = np.exp(phi) * slope * (1 - slope)
        return self.X.T * weights @ self.X + self.ridge * np.eye(self.X.shape[1])

    def theta_star(self, phi: Array) -> Array:
        theta = np.zeros(self.X.shape[1])
        for _ in range(30):
            slope = expit(-self.y * (self.X @ theta))
            gradient = -self.X.T @ (np.exp(phi) * self.y * slope) + self.ridge * theta
            theta = theta - np.linalg.solve(self.hessian(theta, phi), gradient)
        return theta

    def value(self, phi: Array) -> float:
        margin = self.y_target * (self.X_target @ self.theta_star(phi))
        return np.logaddexp(0, -margin).mean()


@dataclass(frozen=True)
class TanhRegression:
    """``f(theta) = sum_i (tanh(x_i'theta) - y_i)^2 / 2``: a convex loss of a curved model.

    With z = tanh(X theta) and y = 3 z the residuals are large and their curvature negative: the
    Hessian is indefinite where the Gauss-Newton matrix J'J, J = (1 - z^2) X, cannot be.
    """

    X: Array
    y: Array
    theta: Array

    @classmethod
    def random(cls, seed: int = 0, n: int = 10, p: int = 4) -> "TanhRegression":
        rng = np.random.default_rng(seed)
        X, theta = rng.normal(size=(n, p)), rng.normal(size=p)
        sign = np.where(np.arange(n) % 2, -3.0, 3.0)
        return cls(X, sign * np.tanh(X @ theta), theta)

    def composite(self, ridge: float = 0.0) -> CompositeLoss:
        X, y = torch.from_numpy(self.X), torch.from_numpy(self.y)
        return CompositeLoss(
            model=lambda theta, phi: torch.tanh(X @ theta),
            loss=lambda outputs, phi: (outputs - y).square().sum() / 2,
            ridge=ridge,
        )

    def gauss_newton(self) -> Array:
        jacobian = (1 - np.tanh(self.X @ self.theta) ** 2)[:, None] * self.X
        return jacobian.T @ jacobian

    def hessian(self) -> Array:
        z = np.tanh(self.X @ self.theta)
        curvature = (z - self.y) * -2 * z * (1 - z**2)
        return self.gauss_newton() + self.X.T * curvature @ self.X
