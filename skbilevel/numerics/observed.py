"""Statistics of the observed cells of each column, in blocks of rows."""

import numpy as np

from skbilevel.numerics.row_groups import slices

# Interquartile range of the standard normal.
_NORMAL_IQR = 1.3489795003921634


def mean_and_deviation(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (population) of the observed cells of each column.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Rows with NaN at missing cells, at least one observed cell in every column.

    Returns
    -------
    mean, deviation : ndarray of shape (d,), float64
        The deviation is 1 for columns that are constant up to rounding.
    """
    counts, totals = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for block in slices(len(X)):
        observed = ~np.isnan(X[block])
        counts += observed.sum(axis=0)
        totals += np.sum(X[block], axis=0, where=observed, dtype=np.float64)
    mean = totals / counts
    squares = np.zeros(X.shape[1])
    for block in slices(len(X)):
        squares += np.nansum((X[block] - mean) ** 2, axis=0)
    return mean, _no_zeros(np.sqrt(squares / counts), mean)


def median_and_quartile_deviation(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and IQR / 1.349 of the observed cells of each column.

    Where the quartiles agree the standard deviation takes the place of the latter. Shapes as in
    `mean_and_deviation`.
    """
    _, deviation = mean_and_deviation(X)
    observed = (column[~np.isnan(column)] for column in X.T)
    lower, median, upper = np.transpose([np.percentile(x, (25, 50, 75)) for x in observed])
    spread = (upper - lower) / _NORMAL_IQR
    return median, np.where(spread > 0, _no_zeros(spread, median), deviation)


def _no_zeros(deviation: np.ndarray, center: np.ndarray) -> np.ndarray:
    # The mean of equal numbers is off by a few units in the last place.
    rounding = 16 * np.finfo(np.float64).eps * np.abs(center)
    return np.where(deviation <= rounding, 1.0, deviation)
