"""MIWAE and not-MIWAE transcribed row by row and draw by draw in NumPy: the oracle.

Numbers of equations are those of the report. A row is x (d,) with mask s (d,), True where
observed; noise is (K, L) and draws of missing cells are given as rows (K, d). A decoder maps
z (L,) to a list of frozen SciPy distributions, one a cell; a missing model maps x (d,) to
p(s_j = 0 | x), (d,).
"""

from itertools import pairwise

import numpy as np
from scipy.integrate import quad
from scipy.stats import multivariate_normal


def draw_codes(mean, root, noise):
    """z_k = mean + root @ noise_k; root is a matrix."""
    return [mean + root @ noise_k for noise_k in noise]


def log_p_over_q(z, mean, root):
    """log p(z) - log q(z) with SciPy's densities."""
    prior = multivariate_normal(np.zeros(len(mean)), np.eye(len(mean)))
    return prior.logpdf(z) - multivariate_normal(mean, root @ root.T).logpdf(z)


def log_density(cell, value):
    return cell.logpdf(value) if hasattr(cell.dist, "pdf") else cell.logpmf(value)


def miwae_log_weight(x, s, z, mean, root, decoder):
    """Eq. (19) for the observed cells: log p(x_o, z) - log q(z | x_o)."""
    cells = decoder(z)
    total = log_p_over_q(z, mean, root)
    for j in range(len(x)):
        if s[j]:
            total += log_density(cells[j], x[j])
    return total


def log_mask(x, s, missing_model):
    """Eq. (9), with pi_j = 1 - p(s_j = 0 | x)."""
    observed = 1 - missing_model(x)
    return sum(np.log(observed[j] if s[j] else 1 - observed[j]) for j in range(len(x)))


def sampled_log_weights(x, s, noise, draws, mean, root, decoder, missing_model):
    """Eqs. (6), (8) and (25); a row of K."""
    log_weights = []
    for z, drawn in zip(draw_codes(mean, root, noise), draws, strict=True):
        complete = np.where(s, x, drawn)
        log_weight = miwae_log_weight(x, s, z, mean, root, decoder)
        log_weights.append(log_weight + log_mask(complete, s, missing_model))
    return np.array(log_weights)


def collapsed_log_weights(x, s, noise, mean, root, decoder, missing_probability):
    """Eq. (6) with each missing cell integrated out; missing_probability(j, value) is a number."""
    log_weights = []
    for z in draw_codes(mean, root, noise):
        total = miwae_log_weight(x, s, z, mean, root, decoder)
        cells = decoder(z)
        for j in range(len(x)):
            if s[j]:
                total += np.log(1 - missing_probability(j, x[j]))
            else:
                total += np.log(integral(cells[j], lambda v, j=j: missing_probability(j, v)))
        log_weights.append(total)
    return np.array(log_weights)


def integral(cell, function):
    """E[function(x)] of a cell, by quadrature or by the sum over its values."""
    if not hasattr(cell.dist, "pdf"):
        values = np.arange(cell.support()[0], cell.support()[1] + 1)
        return sum(function(value) * cell.pmf(value) for value in values)
    center, spread = cell.mean(), cell.std()
    edges = center + spread * np.array([-60, -12, -6, -3, -1, 0, 1, 3, 6, 12, 60])
    return sum(
        quad(lambda v: function(v) * cell.pdf(v), a, b, epsabs=1e-14, epsrel=1e-12)[0]
        for a, b in pairwise(edges)
    )


def bound(log_weights):
    """Eq. (17)."""
    weights = [np.exp(log_weight - max(log_weights)) for log_weight in log_weights]
    return max(log_weights) + np.log(sum(weights) / len(weights))


def shares(log_weights):
    """alpha_k of eq. (7)."""
    weights = np.exp(np.array(log_weights) - max(log_weights))
    return weights / sum(weights)


def imputed(log_weights, draws):
    """Eq. (24) with h(x) = x: the sum of alpha_k x_k."""
    return sum(
        share * np.array(drawn) for share, drawn in zip(shares(log_weights), draws, strict=True)
    )


def imputed_given_missing(log_weights, codes, decoder, missing_probability, s):
    """The sum of alpha_k E[x_j | z_k, s_j = 0]."""
    total = np.zeros(len(s))
    for share, z in zip(shares(log_weights), codes, strict=True):
        for j, cell in enumerate(decoder(z)):
            factor = integral(cell, lambda v, j=j: missing_probability(j, v))
            first = integral(cell, lambda v, j=j: v * missing_probability(j, v))
            total[j] += share * first / factor
    return total


def imputed_by_means_given_codes(log_weights, codes, decoder):
    """Eq. (26): the sum of alpha_k E[x | z_k]. Biased where missing values differ from others."""
    return sum(
        share * np.array([cell.mean() for cell in decoder(z)])
        for share, z in zip(shares(log_weights), codes, strict=True)
    )
