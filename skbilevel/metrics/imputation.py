"""Errors and calibration of imputations at the missing cells.

Masks are (n, d) bool, True where observed. A metric reads only the missing cells; those whose
truth is unknown (NaN in X_true) do not count.
"""

import math
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbilevel.tables import check_numbers

Array = NDArray[Any]

_LOSSES: dict[str, Callable[[Array], Array]] = {"absolute": np.abs, "squared": np.square}
ERRORS: dict[str, Callable[[Array], float]] = {
    "rmse": lambda residual: math.sqrt(np.mean(residual**2)),
    "mae": lambda residual: float(np.mean(np.abs(residual))),
}


def row_normalized_loss(
    X_true: ArrayLike, X_imputed: ArrayLike, mask: ArrayLike, loss: str = "absolute"
) -> float:
    """Imputation loss in which every incomplete row counts the same.

    The sum over rows of the mean loss over the row's missing cells,
    ``sum_i <1 - m_i, l(x_i, x*_i)> / <1 - m_i, 1 - m_i>`` (section 2 of [1]_), in units of the
    data (squared for "squared"). A complete row counts 0.

    Parameters
    ----------
    X_true, X_imputed : array-like of shape (n_samples, n_features)
        Truth and imputation.
    mask : array-like of bool of shape (n_samples, n_features)
        True where observed.
    loss : {"absolute", "squared"}, default="absolute"
        Loss of one cell.

    Returns
    -------
    loss : float
        A sum over rows: divide by the number of incomplete rows for a mean.

    References
    ----------
    .. [1] Bilevel Imputation Explained, section 2, "Problem Statement".

    Examples
    --------
    >>> from skbilevel.metrics import row_normalized_loss
    >>> mask = [[False, False], [True, False], [True, True]]
    >>> row_normalized_loss([[1, 2], [3, 4], [5, 6]], [[2, 5], [3, 7], [5, 6]], mask)
    5.0
    """
    truth, missing = _truth(X_true, mask, may_be_complete=True)
    if loss not in _LOSSES:
        raise ValueError(f"loss must be one of {list(_LOSSES)}, got {loss!r}")
    imputed = _at(missing, X_imputed, "X_imputed")
    losses = np.zeros(truth.shape)
    with unwarned():
        losses[missing] = _LOSSES[loss](imputed - truth[missing])
        total = np.sum(losses.sum(axis=1) / np.maximum(missing.sum(axis=1), 1))
    return float(finite("row_normalized_loss", total))


def imputation_rmse(
    X_true: ArrayLike, X_imputed: ArrayLike, mask: ArrayLike, *, scale: ArrayLike | None = None
) -> float:
    """Root mean squared error over all missing cells, in standard deviations of their columns.

    Parameters
    ----------
    X_true, X_imputed : array-like of shape (n_samples, n_features)
        Truth and imputation.
    mask : array-like of bool of shape (n_samples, n_features)
        True where observed.
    scale : float or array-like of shape (n_features,), optional
        Units of the columns; 1.0 for those of the data. By default the standard deviation
        (``ddof=0``) of each column of X_true, and 1 for a constant column.

    Returns
    -------
    error : float
        Pooled: every missing cell has the same weight, whatever its column.

    Examples
    --------
    >>> from skbilevel.metrics import imputation_rmse
    >>> imputation_rmse([[0.0], [2.0]], [[0.0], [5.0]], [[True], [False]])
    3.0
    """
    return _pooled("rmse", X_true, X_imputed, mask, scale)


def imputation_mae(
    X_true: ArrayLike, X_imputed: ArrayLike, mask: ArrayLike, *, scale: ArrayLike | None = None
) -> float:
    """Mean absolute error over all missing cells, in standard deviations of their columns.

    Parameters
    ----------
    X_true, X_imputed : array-like of shape (n_samples, n_features)
        Truth and imputation.
    mask : array-like of bool of shape (n_samples, n_features)
        True where observed.
    scale : float or array-like of shape (n_features,), optional
        Units of the columns, as for :func:`imputation_rmse`.

    Returns
    -------
    error : float
        Pooled: every missing cell has the same weight, whatever its column.

    Examples
    --------
    >>> from skbilevel.metrics import imputation_mae
    >>> imputation_mae([[0.0], [2.0]], [[0.0], [5.0]], [[True], [False]], scale=1.0)
    3.0
    """
    return _pooled("mae", X_true, X_imputed, mask, scale)


def imputation_crps(
    X_true: ArrayLike,
    draws: ArrayLike,
    mask: ArrayLike,
    *,
    scale: ArrayLike | None = None,
    fair: bool = True,
) -> float:
    """Continuous ranked probability score of imputation draws, in units of their columns.

    For the K draws x_k of a cell with truth y, ``mean_k |x_k - y| - S / c``, where S is the sum
    of ``|x_k - x_l|`` over pairs k < l, computed in O(K log K) from the sorted draws; the mean
    over all missing cells.

    Parameters
    ----------
    X_true : array-like of shape (n_samples, n_features)
        Truth.
    draws : array-like of shape (n_draws, n_samples, n_features)
        Imputations drawn at random.
    mask : array-like of bool of shape (n_samples, n_features)
        True where observed.
    scale : float or array-like of shape (n_features,), optional
        Units of the columns, as for :func:`imputation_rmse`.
    fair : bool, default=True
        True for c = K (K - 1), unbiased for the score of the distribution drawn from [1]_, so
        that methods compare whatever their number of draws; needs two draws. False for c = K^2,
        the score of the empirical distribution, which for one draw is the absolute error.

    Returns
    -------
    score : float
        Lower is better.

    References
    ----------
    .. [1] C. A. T. Ferro (2014). Fair scores for ensemble forecasts. Quarterly Journal of the
       Royal Meteorological Society 140.

    Examples
    --------
    >>> from skbilevel.metrics import imputation_crps
    >>> imputation_crps([[1.0]], [[[0.0]], [[2.0]]], [[False]], scale=1.0, fair=False)
    0.5
    """
    truth, missing = _truth(X_true, mask)
    ordered = np.sort(_draws_at(missing, draws), axis=0)
    n = len(ordered)
    if fair and n < 2:
        raise ValueError("draws must be two or more where fair=True")
    unit = _scale(truth, scale, missing)
    with unwarned():
        pairs = (2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * (n - 1 if fair else n))
        score = np.mean((np.abs(ordered - truth[missing]).mean(axis=0) - pairs) / unit)
    return float(finite("imputation_crps", score))


def interval_coverage(
    X_true: ArrayLike, draws: ArrayLike, mask: ArrayLike, level: float | None = None
) -> float:
    """Share of the missing cells whose truth is inside its interval, bounds included.

    Parameters
    ----------
    X_true : array-like of shape (n_samples, n_features)
        Truth.
    draws : array-like of shape (n_draws, n_samples, n_features) or tuple (lower, upper)
        Imputations drawn at random, whose central interval is taken, or the bounds, two
        array-likes of shape (n_samples, n_features).
    mask : array-like of bool of shape (n_samples, n_features)
        True where observed.
    level : float in (0, 1), default=0.9
        Nominal coverage of the interval of the draws. A quantile p is the (K + 1) p-th of the
        K sorted draws, interpolated: a truth exchangeable with the draws is then covered at the
        nominal level, if K is at least ``2 / (1 - level) - 1``, 19 for 0.9. Fewer draws cannot
        span the interval and cover less. Not for bounds.

    Returns
    -------
    coverage : float
        In [0, 1].

    Warns
    -----
    UserWarning
        If there are too few draws for the level.

    Examples
    --------
    >>> from skbilevel.metrics import interval_coverage
    >>> interval_coverage([[1.0, 9.0]], ([[0.0, 0.0]], [[2.0, 2.0]]), [[False, False]])
    0.5
    """
    truth, missing = _truth(X_true, mask)
    if isinstance(draws, tuple):
        if level is not None:
            raise ValueError("level does not belong to bounds: draws is a tuple (lower, upper)")
        lower, upper = (_at(missing, bound, "draws, a tuple of bounds,") for bound in draws)
    else:
        tail = (1 - check_fraction("level", 0.9 if level is None else level)) / 2
        sample = _draws_at(missing, draws)
        if (len(sample) + 1) * tail < 1 - 1e-9:
            warnings.warn(
                f"{len(sample)} draws are too few for a level of {1 - 2 * tail:.3g}: their range "
                f"covers {(len(sample) - 1) / (len(sample) + 1):.3g}.",
                stacklevel=2,
            )
        with unwarned():
            bounds = np.quantile(sample, [tail, 1 - tail], axis=0, method="weibull")
        lower, upper = finite("an interval of interval_coverage", bounds)
    return float(np.mean((lower <= truth[missing]) & (truth[missing] <= upper)))


def _truth(
    X_true: ArrayLike, mask: ArrayLike, may_be_complete: bool = False
) -> tuple[Array, Array]:
    """Truth and the cells to score: missing, with a known truth."""
    truth = check_numbers(X_true, "X_true").astype(np.float64)
    observed = np.asarray(mask)
    if observed.dtype != bool or observed.shape != truth.shape:
        raise ValueError(f"mask must be boolean, True where observed, of shape {truth.shape}")
    missing = ~observed & ~np.isnan(truth)
    if not (missing.any() or (may_be_complete and observed.all())):
        raise ValueError("there is no missing cell with a known truth to score")
    return truth, missing


def _at(missing: Array, X: ArrayLike, name: str) -> Array:
    values = check_numbers(X, name)
    if values.shape != missing.shape:
        raise ValueError(f"{name} must have shape {missing.shape}, got {values.shape}")
    return without_nan(name, values[missing])


def without_nan(name: str, cells: Array) -> Array:
    """Imputed cells in float64; an error that says `name` if one was not imputed."""
    if np.isnan(cells).any():
        raise ValueError(f"{name} must not be NaN at missing cells")
    return cells.astype(np.float64)


def _draws_at(missing: Array, draws: ArrayLike) -> Array:
    """(n_draws, n_missing)."""
    values = np.asarray(draws)
    if values.ndim != 3 or values.shape[1:] != missing.shape or len(values) == 0:
        raise ValueError(f"draws must have shape (n_draws, {missing.shape}), got {values.shape}")
    return without_nan("draws", check_numbers(values[:, missing], "draws"))


def _pooled(
    error: str, X_true: ArrayLike, X_imputed: ArrayLike, mask: ArrayLike, scale: Any
) -> float:
    truth, missing = _truth(X_true, mask)
    imputed = _at(missing, X_imputed, "X_imputed")
    return pooled_error(error, imputed, truth[missing], _scale(truth, scale, missing))


def pooled_error(error: str, imputed: Array, truth: Array, unit: Array) -> float:
    """That of `ERRORS` over cells, each in its unit."""
    with unwarned():
        return float(finite(f"imputation_{error}", ERRORS[error]((imputed - truth) / unit)))


def unwarned() -> np.errstate:
    """Silence for arithmetic whose result goes to `finite`, which tells more than a warning."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def finite(name: str, values: Any) -> Any:
    """`values`, or an error that says `name` if one of them overflowed."""
    if not np.isfinite(values).all():
        raise ValueError(f"{name} overflows float64: errors are too large for it; rescale X")
    return values


def _scale(truth: Array, scale: Any, missing: Array) -> Array:
    """Unit of each missing cell."""
    units = np.asarray(deviations(truth) if scale is None else scale, dtype=float)
    if units.shape not in [(), (truth.shape[1],)] or not ((units > 0) & np.isfinite(units)).all():
        raise ValueError(f"scale must be positive, one or {truth.shape[1]} numbers: {scale!r}")
    return np.broadcast_to(units, truth.shape)[missing]


def deviations(X: Array) -> Array:
    """Population standard deviation of the known cells of each column; 1 if they are equal."""
    known = [column[~np.isnan(column)] for column in X.T]
    return np.array([_deviation(x) if x.size and x.min() < x.max() else 1.0 for x in known])


def _deviation(x: Array) -> float:
    """Deviation of x brought below 1 by a power of two, by which no square over- or underflows."""
    exponent = np.frexp(np.abs(x).max())[1]
    return np.ldexp(np.ldexp(x, -exponent).std(), exponent)


def check_fraction(name: str, value: Any) -> float:
    """A number strictly between 0 and 1."""
    if not (isinstance(value, Real) and 0 < float(value) < 1):
        raise ValueError(f"{name} must be a number in (0, 1), got {value!r}")
    return float(value)
