"""The reweighting of data as in the paper, in NumPy and loops.

Reference: Ivanova and Ablin (2023), A challenge in reweighting data with bilevel optimization,
arXiv 2310.17386. theta is a matrix (p, k) here.
"""

import numpy as np
from scipy.optimize import minimize


def row_loss(kind, outputs, label):
    """l of one row, from its outputs (k,) and its label (k,)."""
    if kind == "squared":
        return 0.5 * np.sum((outputs - label) ** 2)
    top = outputs.max()
    return top + np.log(np.exp(outputs - top).sum()) - label @ outputs


def row_gradient(kind, theta, x, label):
    """Of one row, (p, k)."""
    outputs = x @ theta
    if kind == "squared":
        return np.outer(x, outputs - label)
    shares = np.exp(outputs - outputs.max())
    return np.outer(x, shares / shares.sum() - label)


def row_hessian(kind, theta, x):
    """Of one row in theta.ravel(), (p k, p k)."""
    outputs = x @ theta
    if kind == "squared":
        block = np.eye(len(outputs))
    else:
        shares = np.exp(outputs - outputs.max())
        shares = shares / shares.sum()
        block = np.diag(shares) - np.outer(shares, shares)
    return np.kron(np.outer(x, x), block)


def inner_loss(kind, theta, weights, X, Y, ridge):
    """Eq. (1) with a ridge."""
    total = ridge / 2 * np.sum(theta**2)
    for w, x, y in zip(weights, X, Y, strict=True):
        total += w * row_loss(kind, x @ theta, y)
    return total


def solution(kind, weights, X, Y, ridge):
    """theta*(w), (p, k): the normal equations, or Newton's method with dense Hessians."""
    p, k = X.shape[1], Y.shape[1]
    if kind == "squared":
        return np.linalg.solve(X.T * weights @ X + ridge * np.eye(p), X.T * weights @ Y)

    def value_and_gradient(flat):
        theta = flat.reshape(p, k)
        gradient = ridge * theta
        for w, x, y in zip(weights, X, Y, strict=True):
            gradient = gradient + w * row_gradient(kind, theta, x, y)
        return inner_loss(kind, theta, weights, X, Y, ridge), gradient.ravel()

    start = minimize(value_and_gradient, np.zeros(p * k), jac=True, method="L-BFGS-B").x
    for _ in range(20):
        theta = start.reshape(p, k)
        gradient = value_and_gradient(start)[1]
        start = start - np.linalg.solve(hessian(kind, theta, weights, X, ridge), gradient)
    return start.reshape(p, k)


def hessian(kind, theta, weights, X, ridge):
    """H(theta, w), (p k, p k)."""
    total = ridge * np.eye(theta.size)
    for w, x in zip(weights, X, strict=True):
        total = total + w * row_hessian(kind, theta, x)
    return total


def target_loss(kind, theta, X_target, Y_target):
    """F."""
    losses = [row_loss(kind, x @ theta, y) for x, y in zip(X_target, Y_target, strict=True)]
    return np.mean(losses)


def target_gradient(kind, theta, X_target, Y_target):
    """grad F, (p, k)."""
    rows = zip(X_target, Y_target, strict=True)
    return np.mean([row_gradient(kind, theta, x, y) for x, y in rows], axis=0)


def hypergradient(kind, theta, weights, X, Y, X_target, Y_target, ridge):
    """Eq. (6) for every row, (n,)."""
    right = target_gradient(kind, theta, X_target, Y_target).ravel()
    v = np.linalg.solve(hessian(kind, theta, weights, X, ridge), right)
    return np.array(
        [-row_gradient(kind, theta, x, y).ravel() @ v for x, y in zip(X, Y, strict=True)]
    )


def mirror_step(weights, field, rate):
    """w <- w exp(-rate field) / sum."""
    moved = np.array([w * np.exp(-rate * f) for w, f in zip(weights, field, strict=True)])
    return moved / moved.sum()


def algorithm_1(kind, X, Y, X_target, Y_target, ridge, rate, n_iter):
    """Weights (n,) after so many exact steps of mirror descent from equal ones."""
    weights = np.full(len(X), 1 / len(X))
    for _ in range(n_iter):
        theta = solution(kind, weights, X, Y, ridge)
        field = hypergradient(kind, theta, weights, X, Y, X_target, Y_target, ridge)
        weights = mirror_step(weights, field, rate)
    return weights


def algorithm_2(kind, X, Y, X_target, Y_target, ridge, inner_rate, outer_rate, n_iter):
    """Theta and weights after so many warm-started steps, theta first."""
    weights, theta = np.full(len(X), 1 / len(X)), np.zeros((X.shape[1], Y.shape[1]))
    for _ in range(n_iter):
        gradient = ridge * theta
        for w, x, y in zip(weights, X, Y, strict=True):
            gradient = gradient + w * row_gradient(kind, theta, x, y)
        theta = theta - inner_rate * gradient
        field = hypergradient(kind, theta, weights, X, Y, X_target, Y_target, ridge)
        weights = mirror_step(weights, field, outer_rate)
    return theta, weights


def soba(kind, X, Y, X_target, Y_target, ridge, inner_rate, outer_rate, n_iter):
    """Theta and weights after so many steps of SOBA (Dagréou et al., 2022), full batches."""
    weights, theta = np.full(len(X), 1 / len(X)), np.zeros((X.shape[1], Y.shape[1]))
    v = np.zeros(theta.size)
    for _ in range(n_iter):
        rows = list(zip(X, Y, strict=True))
        field = np.array([-row_gradient(kind, theta, x, y).ravel() @ v for x, y in rows])
        gradient = ridge * theta
        for w, (x, y) in zip(weights, rows, strict=True):
            gradient = gradient + w * row_gradient(kind, theta, x, y)
        right = target_gradient(kind, theta, X_target, Y_target).ravel()
        residual = hessian(kind, theta, weights, X, ridge) @ v - right
        theta, v = theta - inner_rate * gradient, v - inner_rate * residual
        weights = mirror_step(weights, field, outer_rate)
    return theta, weights
