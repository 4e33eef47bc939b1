"""Oracle: the reflection as a prior beyond a hard limit, steps 4 and 5 of the notes' algorithm.

For a column j with side s_j = 1 whose values above b_j are missing; side -1 is the mirror image.
E is a completed row, L the inverse of the covariance, lam = phi / Phi:

4. Reliability, observed cells only: the leave-one-cell-out mean m and sd of a cell give the
   prediction p = m - sd lam((b_j - m) / sd). The rank u of x is where it stands in that
   truncated normal, counted from the far end, in 1024 even intervals; D is the distance of
   Kolmogorov and Smirnov of the ranks from the even distribution, P the limiting probability of
   a larger one. w = P exp(-(D / .08)^2), q = 1 - exp(-(D / .1)^2), r_j = clip(corr(p, x), 0, 1).
5. x' is what the normal imputes and x'' what a network does; E = q x'' + (1 - q) x', or x' without
   a network; e = max(E - b_j, 0), A_j = b_j - mean of the observed cells, g the mean over the
   missing cells of max(x' - b_j, 0);
   y = b_j + e (A_j / g)^(1 - r_j^2);  z = r_j y + (1 - r_j) (b_j + A_j);
   imputation = w x' + (1 - w) z.

The prediction is conditioned in the textbook form, without the cell, and truncated by SciPy.
"""

import numpy as np
from scipy.stats import kstwobign, truncnorm

from tests.reference.gaussian import condition


def predicted(row, j, location, covariance, side, threshold):
    """p of cell j of a complete row."""
    without = row.copy()
    without[j] = np.nan
    completed, conditional, _ = condition(without, location, covariance)
    mean, sd = completed[j], conditional[j, j] ** 0.5
    return mean if side == 0 else _truncated(mean, sd, side, threshold).mean()


def rank(row, j, location, covariance, side, threshold):
    """u of cell j of a complete row, for a side that is not 0."""
    without = row.copy()
    without[j] = np.nan
    completed, conditional, _ = condition(without, location, covariance)
    law = _truncated(completed[j], conditional[j, j] ** 0.5, side, threshold)
    return law.cdf(row[j]) if side > 0 else law.sf(row[j])


def _truncated(mean, sd, side, threshold):
    limit = (threshold - mean) / sd
    ends = (-np.inf, limit) if side > 0 else (limit, np.inf)
    return truncnorm(*ends, loc=mean, scale=sd)


def reliability(completed, observed, j, location, covariance, side, threshold):
    """r_j."""
    rows = [row for row, seen in zip(completed, observed, strict=True) if seen[j]]
    guesses = [predicted(row, j, location, covariance, side, threshold) for row in rows]
    return float(np.clip(np.corrcoef(guesses, [row[j] for row in rows])[0, 1], 0, 1))


def distance(completed, observed, j, location, covariance, side, threshold):
    """D and the number of ranks."""
    rows = [row for row, seen in zip(completed, observed, strict=True) if seen[j]]
    ranks = [rank(row, j, location, covariance, side, threshold) for row in rows]
    counts, edges = np.histogram(ranks, bins=1024, range=(0, 1))
    return np.abs(np.cumsum(counts) / len(ranks) - edges[1:]).max(), len(ranks)


def trust(D, n):
    """w."""
    return kstwobign.sf(n**0.5 * D) * np.exp(-((D / 0.08) ** 2))


def share(D):
    """q."""
    return 1 - np.exp(-((D / 0.1) ** 2))


def reach(completed, observed, j, side, threshold):
    """A_j."""
    return side * (threshold - completed[observed[:, j], j].mean())


def mean_excess(completed, observed, j, side, threshold):
    """Mean of e over the missing cells."""
    return np.mean([max(side * (x - threshold), 0.0) for x in completed[~observed[:, j], j]])


def drawn_in(value, side, threshold, r, A, g):
    """z of a missing cell that the model imputes by ``value``."""
    e = max(side * (value - threshold), 0.0)
    y = threshold + side * e * (A / g) ** (1 - r**2)
    return r * y + (1 - r) * (threshold + side * A)


def imputed(normal, network, q, w, side, threshold, r, A, g):
    """What the cell becomes, if ``normal`` and ``network`` are what the two impute."""
    return w * normal + (1 - w) * drawn_in(
        q * network + (1 - q) * normal, side, threshold, r, A, g
    )
