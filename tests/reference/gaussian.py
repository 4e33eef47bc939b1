"""Oracle: the multivariate normal with missing cells, in the textbook (observed) form.

Little and Rubin, Statistical Analysis with Missing Data, chapter 11. For a row with observed
cells o and missing cells m, under location mu and covariance S:

    E[x_m | x_o]   = mu_m + S_mo S_oo^-1 (x_o - mu_o)
    Cov[x_m | x_o] = S_mm - S_mo S_oo^-1 S_om
    log p(x_o)     = -1/2 [|o| log 2 pi + log det S_oo + (x_o - mu_o)' S_oo^-1 (x_o - mu_o)]

Nothing here is shared with the package, which works in the precision form.
"""

from typing import NamedTuple

import numpy as np


class Expectation(NamedTuple):
    """E-step.

    Attributes
    ----------
    s1 : ndarray of shape (d,)
        Sum over rows of (completed row - location).
    s2 : ndarray of shape (d, d)
        Sum over rows of their outer products and of the conditional covariances.
    log_likelihood : float
        Of the observed cells, in nats.
    row_log_likelihood : ndarray of shape (n,)
        The same for each row.
    completed : ndarray of shape (n, d)
        Rows with missing cells at their conditional mean.
    covariances : ndarray of shape (n, d, d)
        Conditional covariances, 0 at observed cells.
    """

    s1: np.ndarray
    s2: np.ndarray
    log_likelihood: float
    row_log_likelihood: np.ndarray
    completed: np.ndarray
    covariances: np.ndarray

    @property
    def second(self):
        """Sum over rows of E[x x' | x_o], (d, d): s2 about zero instead of about location."""
        return self.completed.T @ self.completed + self.covariances.sum(axis=0)


class Fit(NamedTuple):
    """Result of EM; history holds the penalised log-likelihood before each step."""

    location: np.ndarray
    covariance: np.ndarray
    history: np.ndarray
    n_iter: int
    converged: bool


def condition(row, location, covariance):
    """Completed row (d,), its conditional covariance (d, d) and its log-likelihood."""
    m = np.isnan(row)
    o = ~m
    residual = row[o] - location[o]
    S_oo, S_om = covariance[np.ix_(o, o)], covariance[np.ix_(o, m)]
    completed = row.copy()
    completed[m] = location[m] + S_om.T @ np.linalg.solve(S_oo, residual)
    conditional = np.zeros_like(covariance)
    conditional[np.ix_(m, m)] = covariance[np.ix_(m, m)] - S_om.T @ np.linalg.solve(S_oo, S_om)
    distance = residual @ np.linalg.solve(S_oo, residual)
    log_det = np.linalg.slogdet(S_oo)[1]
    return completed, conditional, -0.5 * (o.sum() * np.log(2 * np.pi) + log_det + distance)


def naive_expectation(X, location, covariance):
    """E-step, row by row."""
    X, location, covariance = (np.asarray(a, dtype=float) for a in (X, location, covariance))
    n, d = X.shape
    s1, s2 = np.zeros(d), np.zeros((d, d))
    completed, covariances, log_likelihood = np.zeros((n, d)), np.zeros((n, d, d)), np.zeros(n)
    for i, row in enumerate(X):
        completed[i], covariances[i], log_likelihood[i] = condition(row, location, covariance)
        deviation = completed[i] - location
        s1 += deviation
        s2 += np.outer(deviation, deviation) + covariances[i]
    return Expectation(s1, s2, float(log_likelihood.sum()), log_likelihood, completed, covariances)


def conditional_mean(X, location, covariance):
    """X with its missing cells at their conditional mean: with the true parameters, the floor."""
    return naive_expectation(X, location, covariance).completed


def grouped_expectation(X, patterns, group, location, covariance):
    """(s1, s2, log-likelihood) of naive_expectation with one inverse for each pattern.

    patterns (p, d) are True where observed and group (n,) is the pattern of each row. S_oo is
    padded by the identity to (d, d), so that all patterns are inverted in one call.
    """
    d = len(location)
    padded = np.where(patterns[:, :, None] & patterns[:, None, :], covariance, np.eye(d))
    inverse = np.linalg.inv(padded)
    S_o = np.where(patterns[:, :, None], covariance, 0.0)
    regression = inverse @ S_o
    conditional = covariance - S_o.transpose(0, 2, 1) @ regression
    conditional *= ~patterns[:, :, None] & ~patterns[:, None, :]

    residual = np.where(np.isnan(X), 0.0, X - location)
    deviation = np.where(
        np.isnan(X), np.einsum("no,nom->nm", residual, regression[group]), residual
    )
    distance = np.einsum("ni,nij,nj->n", residual, inverse[group], residual)
    log_det = np.linalg.slogdet(padded)[1]
    log_likelihood = -0.5 * (
        np.log(2 * np.pi) * patterns[group].sum(1) + log_det[group] + distance
    )
    s2 = deviation.T @ deviation + np.tensordot(np.bincount(group), conditional, 1)
    return deviation.sum(axis=0), s2, float(log_likelihood.sum())


def penalized(log_likelihood, covariance, ridge):
    """Log-likelihood - ridge / 2 (log det S + tr S^-1), what EM with that ridge maximises."""
    log_det = np.linalg.slogdet(covariance)[1]
    return log_likelihood - ridge / 2 * (log_det + np.trace(np.linalg.inv(covariance)))


def em_to_convergence(X, tol=1e-10, max_iter=10_000, ridge=0.0, location=None, covariance=None):
    """Plain EM until the penalised log-likelihood per row rises by less than `tol`.

    The M-step is ``mu = mu + s1 / n``, ``S = (s2 - s1 s1' / n + ridge I) / (n + ridge)``. Starts
    at the means and variances of the observed cells unless told otherwise.
    """
    X = np.asarray(X, dtype=float)
    n, d = X.shape
    location = np.nanmean(X, axis=0) if location is None else np.array(location, dtype=float)
    covariance = np.diag(np.nanvar(X, axis=0)) if covariance is None else np.array(covariance)
    patterns, group = np.unique(~np.isnan(X), axis=0, return_inverse=True)
    history: list[float] = []
    for n_iter in range(max_iter):
        s1, s2, log_likelihood = grouped_expectation(
            X, patterns, group.ravel(), location, covariance
        )
        history.append(penalized(log_likelihood, covariance, ridge))
        if n_iter and history[-1] - history[-2] < tol * n:
            return Fit(location, covariance, np.array(history), n_iter, True)
        location = location + s1 / n
        covariance = (s2 - np.outer(s1, s1) / n + ridge * np.eye(d)) / (n + ridge)
    return Fit(location, covariance, np.array(history), max_iter, False)
