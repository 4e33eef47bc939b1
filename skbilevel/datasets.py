"""Synthetic designs of the benchmarks, generators only: hide cells with :mod:`~.amputation`.

The order of the random calls is part of each design, so that figures can be compared.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

__all__ = ["LowRank", "make_correlated_gaussian", "make_low_rank", "make_ring"]

Array = NDArray[np.float64]


class LowRank(NamedTuple):
    """Incomplete low-rank data with its truth, made by :func:`make_low_rank`.

    Attributes
    ----------
    X : ndarray of shape (n_samples, n_features)
        Complete data; every column has mean 0 and standard deviation 1 (``ddof=0``).
    mask : ndarray of bool of shape (n_samples, n_features)
        True where observed; a row may have no observed cell.
    location : ndarray of shape (n_features,)
        Mean of the distribution from which the rows of X are drawn, given the factors V.
    covariance : ndarray of shape (n_features, n_features)
        Its covariance.
    """

    X: Array
    mask: NDArray[np.bool_]
    location: Array
    covariance: Array


def make_low_rank(
    n_samples: int,
    n_features: int,
    *,
    rank: int = 5,
    noise: float = 0.3,
    missing_rate: float = 0.3,
    random_state: int | np.random.RandomState | None = None,
) -> LowRank:
    """Gaussian factors plus noise, standardised, with cells missing completely at random.

    X = U V + e with normal U (n, rank), V (rank, d) and noise variance ``rank * noise^2``, then
    standardised by the mean and standard deviation of the complete sample.

    Parameters
    ----------
    n_samples, n_features : int
        Shape of X.
    rank : int, default=5
        Number of factors, which is also the mean signal variance of a column.
    noise : float, default=0.3
        Standard deviation of the noise relative to that of the signal.
    missing_rate : float, default=0.3
        Probability that a cell is missing.
    random_state : int, RandomState instance or None, default=None
        Draws, in this order, U (row by row), V (it depends on n_samples, therefore), the noise,
        and one uniform number for each cell, missing if below `missing_rate`.

    Returns
    -------
    data : LowRank
        Named tuple (X, mask, location, covariance).

    Examples
    --------
    >>> from skbilevel.datasets import make_low_rank
    >>> X, mask, location, covariance = make_low_rank(1000, 20, random_state=0)
    >>> X.shape, covariance.shape, round(float(mask.mean()), 3)
    ((1000, 20), (20, 20), 0.701)
    """
    rng = check_random_state(random_state)
    U = rng.standard_normal((n_samples, rank))
    V = rng.standard_normal((rank, n_features))
    scale = noise * np.sqrt(rank)
    X = U @ V + scale * rng.standard_normal((n_samples, n_features))
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    mask = rng.random_sample(X.shape) >= missing_rate
    covariance = (V.T @ V + scale**2 * np.eye(n_features)) / np.outer(deviation, deviation)
    return LowRank((X - mean) / deviation, mask, -mean / deviation, covariance)


def make_correlated_gaussian(
    n_samples: int = 500,
    *,
    correlation: float = 0.8,
    random_state: int | np.random.Generator | None = None,
) -> Array:
    """Two normal columns of mean 0 and variance 1.

    The not-MIWAE experiment [1]_ hides the first column above its mean:
    ``ampute(X, "mnar_threshold", columns=[0])``.

    Parameters
    ----------
    n_samples : int, default=500
        Number of rows.
    correlation : float, default=0.8
        Covariance of the two columns.
    random_state : int, Generator or None, default=None
        Given to :func:`numpy.random.default_rng`; one call of ``multivariate_normal``.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        Rows drawn independently.

    References
    ----------
    .. [1] S. Blotas and C. Dezons. Deep Generative Modelling with Missing not at Random Data,
       section 6.1.

    Examples
    --------
    >>> from skbilevel.datasets import make_correlated_gaussian
    >>> make_correlated_gaussian(3, random_state=0).shape
    (3, 2)
    """
    rng = np.random.default_rng(random_state)
    covariance = [[1.0, correlation], [correlation, 1.0]]
    return rng.multivariate_normal([0.0, 0.0], covariance, n_samples)


def make_ring(
    n_samples: int = 1500,
    *,
    radius: float = 4.5,
    noise: float = 0.5,
    random_state: int | np.random.Generator | None = None,
) -> Array:
    """Points about a circle, (r cos t, r sin t) with t uniform and r normal.

    The experiment of [1]_ hides the first column in a sector: ``ampute(X, "sector")``.

    Parameters
    ----------
    n_samples : int, default=1500
        Number of points.
    radius : float, default=4.5
        Mean of r.
    noise : float, default=0.5
        Standard deviation of r. (The text of [1]_ calls 0.5 the variance, its code uses it as
        the standard deviation.)
    random_state : int, Generator or None, default=None
        Given to :func:`numpy.random.default_rng`; draws all angles, then all radii.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        Points.

    References
    ----------
    .. [1] S. Blotas and C. Dezons. Deep Generative Modelling with Missing not at Random Data,
       section 6.2.

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel.datasets import make_ring
    >>> np.hypot(*make_ring(3, noise=0.0, random_state=0).T)
    array([4.5, 4.5, 4.5])
    """
    rng = np.random.default_rng(random_state)
    angle = rng.uniform(0, 2 * np.pi, n_samples)
    distance = rng.normal(radius, noise, n_samples)
    return np.column_stack([distance * np.cos(angle), distance * np.sin(angle)])
