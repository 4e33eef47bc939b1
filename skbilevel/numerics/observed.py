"""Location and scale of the observed cells of each column."""

from collections.abc import Sequence

import numpy as np

from skbilevel.numerics.row_groups import row_blocks

# Interquartile range of the standard normal.
_NORMAL_IQR = 1.3489795003921634
# Smaller sums of squares have lost digits, or vanished.
_TINY = 1e-290
_FEW = 10


def mean_and_deviation(
    X: np.ndarray, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (population) of the observed cells of each column.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Rows with NaN at missing cells, at least one observed cell in every column.
    names : sequence of str of length d, optional
        What errors call the columns.

    Returns
    -------
    mean, deviation : ndarray of shape (d,), float64
        The deviation is 1 for columns that are constant up to rounding.

    Raises
    ------
    ValueError
        If the squares of a column overflow.
    """
    first = _first_observed(X)
    counts, totals, squares = np.zeros((3, X.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in row_blocks(X):
            counts += np.count_nonzero(~np.isnan(X[block]), axis=0)
            totals += np.nansum(X[block] - first, axis=0)
        mean = first + totals / counts
        for block in row_blocks(X):
            squares += np.nansum((X[block] - mean) ** 2, axis=0)
    refuse_overflow(mean + squares, names)
    deviation = np.sqrt(squares / counts)
    for j in np.flatnonzero(squares < _TINY):
        deviation[j] = _tiny_deviation(X[:, j] - mean[j])
    return mean, _no_zeros(deviation, mean)


def drawn_rows(X: np.ndarray, n_rows: int, rng: np.random.RandomState) -> np.ndarray:
    """Indices of rows of ``X`` (n, d), drawn without replacement, ascending.

    The rows with the smallest and the largest observed value of each column are always among
    them, as a limit of observed values is one of those, and so are the first ten rows that lack
    it, as few may.
    """
    ends = [end(column) for column in X.T for end in (np.nanargmin, np.nanargmax)]
    lacking = [np.flatnonzero(np.isnan(column))[:_FEW] for column in X.T]
    return np.union1d(rng.choice(len(X), n_rows, replace=False), [*ends, *np.concatenate(lacking)])


def _tiny_deviation(differences: np.ndarray) -> float:
    """Standard deviation of differences whose squares are too small for float64."""
    largest = float(np.nanmax(np.abs(differences)))
    return largest * float(np.sqrt(np.nanmean((differences / largest) ** 2))) if largest else 0.0


def refuse_overflow(squares: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Raise a ValueError that names the columns whose sum of squares, (d,), is not finite."""
    overflown = np.flatnonzero(~np.isfinite(squares))
    if len(overflown):
        columns = [j if names is None else str(names[j]) for j in overflown.tolist()]
        raise ValueError(
            f"Columns {columns} hold values whose squares are too large for float64; rescale them."
        )


def _first_observed(X: np.ndarray) -> np.ndarray:
    """The first observed value of each column, as float64.

    Sums of differences to it are exact for constant columns, where sums of the values carry a
    rounding error that grows with their number.
    """
    first = np.full(X.shape[1], np.nan)
    for block in row_blocks(X):
        position = np.argmax(~np.isnan(X[block]), axis=0)
        found = X[block][position, np.arange(X.shape[1])]
        first = np.where(np.isnan(first), found, first)
        if not np.isnan(first).any():
            break
    return first


def median_and_quartile_deviation(
    X: np.ndarray, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Median and IQR / 1.349 of the observed cells of each column.

    Where the quartiles agree the standard deviation takes the place of the latter. Shapes as in
    `mean_and_deviation`.
    """
    _, deviation = mean_and_deviation(X, names)
    observed = (column[~np.isnan(column)] for column in X.T)
    lower, median, upper = np.transpose([np.percentile(x, (25, 50, 75)) for x in observed])
    spread = (upper - lower) / _NORMAL_IQR
    return median, np.where(spread > 0, _no_zeros(spread, median), deviation)


def _no_zeros(deviation: np.ndarray, center: np.ndarray) -> np.ndarray:
    # The mean of equal numbers is off by a few units in the last place.
    rounding = 16 * np.finfo(np.float64).eps * np.abs(center)
    return np.where(deviation <= rounding, 1.0, deviation)
