"""Hiding cells of a table by named mechanisms of missingness.

A mechanism is a function ``(X, rng, *, ...) -> probability`` that a cell goes missing, (n, k). X,
(n, k), holds the columns to ampute as float64, NaN where missing already. The keyword-only
parameters are those that belong to the mechanism: :func:`ampute` refuses all others.
"""

import math
from collections.abc import Callable
from functools import partial
from inspect import signature
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.utils import check_random_state

from skbilevel.tables import (
    check_numeric,
    observed_cells,
    positions,
    read_numbers,
    with_columns,
)

__all__ = ["MECHANISMS", "ampute"]

Array = NDArray[Any]
Mechanism = Callable[..., Array]
Rate = float | None
Rng = np.random.RandomState


def ampute(
    X: Any,
    mechanism: str = "mcar",
    *,
    missing_rate: Rate = None,
    columns: Any = None,
    threshold: Any = None,
    side: str | None = None,
    slope: float | None = None,
    predictors: Any = None,
    image_shape: tuple[int, int] | None = None,
    center: ArrayLike | None = None,
    radius: float | None = None,
    random_state: int | Rng | None = None,
) -> tuple[Any, NDArray[np.bool_]]:
    """Hide cells of X by a named mechanism.

    Parameters
    ----------
    X : array-like or DataFrame of shape (n_samples, n_features)
        Not modified. The columns to ampute are of real numbers. NaN cells stay missing, and
        rates count over the others.
    mechanism : str, default="mcar"
        A key of `MECHANISMS`. The cell x of an amputed column goes missing

        - "mcar": with probability `missing_rate`, whatever the data;
        - "mar": with a probability logistic in a random mix of the `predictors`;
        - "mnar_threshold" (or "mnar"): when x is beyond `threshold`, as in not-MIWAE [1]_;
        - "mnar_logistic": with a probability logistic in x;
        - "censored": when x is below a detection limit, the `threshold`;
        - "sector": when the angle of the point (x, x') is in [pi/4, 3 pi/4]; x is of the first,
          x' of the second of two `columns`;
        - "circle": when x is beyond `threshold` and its pixel inside a circle; rows are images
          flattened row by row.
    missing_rate : float in [0, 1), optional
        Expected share of missing cells in each amputed column; 0.3 by default for "mcar", "mar"
        and "mnar_logistic", and 0 hides none. For "mnar_threshold", "censored" and "sector" (its
        half-width about pi/2), puts the limit at a quantile; cells tied there are hidden at
        random, so that discrete columns meet the rate too.
    columns : int, str, sequence of them, slice or boolean mask, optional
        Columns to ampute. As in scikit-learn, strings are names in a DataFrame (the last one of
        a slice included) and integers are positions, also where names are integers. By default
        all; for "mar" all but the predictors.
    threshold : float, array-like of one for each amputed column, "mean" or "median", optional
        Values strictly beyond it go missing; statistics are over the observed cells of a column.
        "mean" by default, 0.5 for "circle". Not together with `missing_rate`.
    side : str, optional
        Beyond the threshold is "above" (default) or "below" it; "below" by default for
        "censored"; for "circle" also "absolute" (default) or "all", the disc without threshold.
    slope : float, default=2.0
        Standard deviation of the logit of "mar" or "mnar_logistic" (< 0: low values are hidden).
    predictors : like `columns`, optional
        Complete columns of numbers outside `columns`, for "mar". By default drawn among those,
        30 % of all columns of numbers, at least one.
    image_shape : (height, width), optional
        For "circle", by default a square.
    center : array-like of shape (2,) or (n_samples, 2), optional
        For "circle": (x, y) in pixels, of all images or each; (width // 2, height // 2) if None.
    radius : float, default=5.0
        For "circle", in pixels; the boundary belongs to the disc.
    random_state : int, RandomState instance or None, default=None
        Draws the predictors and coefficients of "mar", then one uniform number for each cell of
        the amputed columns: at the same seed, a higher rate hides a superset of the cells.

    Returns
    -------
    X_missing : ndarray or DataFrame of shape (n_samples, n_features)
        Copy of X as float64 (float32 is kept) with NaN at missing cells. A pandas or polars
        DataFrame comes back as one, with its index and column names; only its amputed columns
        are replaced, and the others, of whatever type, are as in X.
    mask : ndarray of bool of shape (n_samples, n_features)
        True where the cell of X_missing is observed.

    Raises
    ------
    ValueError
        If the columns to ampute are not a dense table of real numbers, or a parameter (which
        the message names) is out of range or does not belong to the mechanism.

    References
    ----------
    .. [1] N. B. Ipsen, P.-A. Mattei and J. Frellsen (2021). not-MIWAE: Deep generative modelling
       with missing not at random data. ICLR.

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel.amputation import ampute
    >>> X = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]])
    >>> X_missing, mask = ampute(X, "mnar_threshold", columns=[1])
    >>> X_missing
    array([[ 1., 10.],
           [ 2., 20.],
           [ 3., nan]])
    """
    values, numeric = read_numbers(X)
    complete = values.astype(np.float64)
    rng = check_random_state(random_state)
    given = {
        "threshold": threshold,
        "missing_rate": missing_rate,
        "side": side,
        "slope": slope,
        "predictors": _chosen("predictors", predictors, X, numeric),
        "image_shape": image_shape,
        "center": center,
        "radius": radius,
    }
    given = {name: value for name, value in given.items() if value is not None}
    hide, takes = _checked_mechanism(mechanism, given)
    chosen = _chosen("columns", columns, X, numeric)
    if chosen is None:
        check_numeric("without `columns`, X", X, numeric)
    if "predictors" in takes:
        causes = given.get("predictors")
        chosen, causes = _amputed_and_predictors(complete, numeric, rng, chosen, causes)
        given["predictors"] = complete[:, causes]
    chosen = np.arange(values.shape[1]) if chosen is None else chosen
    probability = hide(complete[:, chosen], rng, **given)
    hidden = rng.random_sample(probability.shape) < probability
    values[:, chosen] = np.where(hidden, np.nan, values[:, chosen])
    return with_columns(X, chosen, values), observed_cells(X, values, numeric)


def mcar(X: Array, rng: Rng, *, missing_rate: float = 0.3) -> Array:
    """Missing completely at random."""
    return np.full(X.shape, missing_rate)


def mar(
    X: Array, rng: Rng, *, predictors: Array, missing_rate: float = 0.3, slope: float = 2.0
) -> Array:
    """Missing at random, expit(slope s + b): s, of variance 1, is a normal mix of predictors."""
    mix = rng.standard_normal((predictors.shape[1], X.shape[1]))
    score = slope * _standardized(_standardized(predictors) @ mix)
    return _by_column(np.where(np.isnan(X), np.nan, score), partial(_logistic, rate=missing_rate))


def mnar_threshold(
    X: Array, rng: Rng, *, threshold: Any = "mean", missing_rate: Rate = None, side: str = "above"
) -> Array:
    """Self-masking: beyond the threshold, or among the `missing_rate` most extreme cells."""
    sign = _one_of("side", side, {"above": 1.0, "below": -1.0})
    if missing_rate is not None:
        return _by_column(sign * X, partial(_highest, rate=missing_rate))
    return (sign * X > sign * _limits(X, threshold)).astype(float)


def mnar_logistic(X: Array, rng: Rng, *, missing_rate: float = 0.3, slope: float = 2.0) -> Array:
    """Self-masking, expit(slope z + b): z is the standardised column itself."""
    return _by_column(X, lambda x: _logistic(slope * _standardized(x), missing_rate))


def sector(X: Array, rng: Rng, *, missing_rate: Rate = None) -> Array:
    """First of two columns, |angle - pi/2| at most pi/4 or among the least; NaN has no angle."""
    if X.shape[1] != 2:
        raise ValueError(f"columns must be two for 'sector', got {X.shape[1]}")
    turn = np.abs(np.arctan2(X[:, 1], X[:, 0]) - np.pi / 2)
    distance = np.full(X.shape, np.nan)
    distance[:, 0] = np.minimum(turn, 2 * np.pi - turn)
    if missing_rate is not None:
        return _by_column(-distance, partial(_highest, rate=missing_rate))
    return (distance <= np.pi / 4).astype(float)


def circle(
    X: Array,
    rng: Rng,
    *,
    image_shape: tuple[int, int] | None = None,
    center: ArrayLike | None = None,
    radius: float = 5.0,
    threshold: Any = None,
    side: str = "absolute",
) -> Array:
    """Pixels of a disc whose value is beyond the threshold, in images flattened row by row."""
    score = _one_of("side", side, _PIXEL_SCORES)
    inside = _disc(X.shape, image_shape, center, radius)
    if score is None and threshold is not None:
        raise ValueError("threshold does not belong to side='all', which hides the whole disc")
    if score is not None:
        limits = _limits(X, 0.5 if threshold is None else threshold)
        inside = inside & (score(X) > score(limits))
    return np.broadcast_to(inside, X.shape).astype(float)


#: Mechanisms of :func:`ampute` by name; "mnar" is an alias of "mnar_threshold".
MECHANISMS: dict[str, Mechanism] = {
    "mcar": mcar,
    "mar": mar,
    "mnar": mnar_threshold,
    "mnar_threshold": mnar_threshold,
    "mnar_logistic": mnar_logistic,
    "censored": partial(mnar_threshold, side="below"),
    "sector": sector,
    "circle": circle,
}

_PIXEL_SCORES = {"absolute": np.abs, "above": np.positive, "below": np.negative, "all": None}
_STATISTICS = {"mean": lambda x: np.clip(x.mean(), x.min(), x.max()), "median": np.median}
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "missing_rate": ("[0, 1)", lambda rate: 0 <= rate < 1),
    "slope": ("(-inf, inf)", math.isfinite),
    "radius": ("(0, inf)", lambda radius: 0 < radius < math.inf),
}


def _by_column(score: Array, probability: Callable[[Array], Array]) -> Array:
    """Apply `probability` to the cells of each column that are not NaN; 0 elsewhere."""
    result = np.zeros(score.shape)
    for j, column in enumerate(score.T):
        rows = np.flatnonzero(~np.isnan(column))
        if rows.size:
            result[rows, j] = probability(column[rows])
    return result


def _highest(score: Array, rate: float) -> Array:
    """Probability that a cell is among the `rate` highest scores; tied cells share theirs."""
    _, group, count = np.unique(score, return_inverse=True, return_counts=True)
    higher = len(score) - np.cumsum(count)
    return np.clip((rate * len(score) - higher) / count, 0, 1)[group]


def _logistic(score: Array, rate: float) -> Array:
    """expit(score + b), with the intercept b at which its mean is `rate`: -inf for 0."""
    if rate == 0:
        return np.zeros_like(score)
    low, high = logit(rate) - score.max() - 1, logit(rate) - score.min() + 1
    return expit(score + brentq(lambda b: expit(score + b).mean() - rate, low, high))


def _standardized(x: Array) -> Array:
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def _limits(X: Array, threshold: Any) -> Array:
    """Thresholds in units of the data: one, one for each column or, at X's cells, a statistic."""
    if isinstance(threshold, str):
        return _by_column(X, _one_of("threshold", threshold, _STATISTICS))
    limits = np.asarray(threshold, dtype=object)
    finite = all(isinstance(limit, Real) and math.isfinite(limit) for limit in limits.flat)
    if not finite or limits.shape not in [(), (X.shape[1],)]:
        raise ValueError(f"threshold must be finite, 1 or {X.shape[1]} numbers: {threshold!r}")
    return limits.astype(float)


def _disc(shape: tuple[int, ...], image_shape: Any, center: Any, radius: float) -> Array:
    """Pixels inside the circle, (1, n_pixels) or (n, n_pixels)."""
    size = 2 * (math.isqrt(shape[1]),) if image_shape is None else image_shape
    if np.shape(size) != (2,) or math.prod(size) != shape[1]:
        raise ValueError(f"image_shape must be (height, width) of {shape[1]} pixels, got {size}")
    centers = np.asarray((size[1] // 2, size[0] // 2) if center is None else center, dtype=float)
    if centers.shape not in [(2,), (shape[0], 2)] or not np.isfinite(centers).all():
        raise ValueError(f"center must be finite, (2,) or ({shape[0]}, 2), got {center!r}")
    x0, y0 = np.atleast_2d(centers).T.reshape(2, -1, 1)
    y, x = np.indices(size).reshape(2, -1)
    return (x - x0) ** 2 + (y - y0) ** 2 <= radius**2


def _amputed_and_predictors(
    X: Array, numeric: Array, rng: Rng, columns: Array | None, predictors: Array | None
) -> tuple[Array, Array]:
    """Columns that "mar" amputes and those on which it depends, drawn if not given.

    A column that does not hold numbers is NaN in X, hence never complete.
    """
    complete = np.flatnonzero(~np.isnan(X).any(axis=0))
    if predictors is None:
        free = np.setdiff1d(complete, [] if columns is None else columns)
        predictors = rng.permutation(free)[: max(1, round(0.3 * numeric.sum()))]
    if columns is None:
        columns = np.setdiff1d(np.arange(X.shape[1]), predictors)
    if not (predictors.size and columns.size) or np.setdiff1d(predictors, complete).size:
        raise ValueError(
            "predictors of 'mar' must be complete columns of numbers, and leave some to ampute"
        )
    if np.intersect1d(columns, predictors).size:
        raise ValueError("predictors and columns of 'mar' must be different columns")
    return columns, predictors


def _checked_mechanism(mechanism: str, given: dict[str, Any]) -> tuple[Mechanism, set[str]]:
    """Function of that name and the parameters that it takes, after checking those given."""
    function = _one_of("mechanism", mechanism, MECHANISMS)
    takes = set(signature(function).parameters) - {"X", "rng"}
    foreign = [name for name in given if name not in takes]
    if foreign:
        raise ValueError(f"{foreign[0]} does not belong to {mechanism!r}; {sorted(takes)} do")
    if {"threshold", "missing_rate"} <= given.keys():
        raise ValueError("give threshold or missing_rate, not both: each sets the limit")
    for name in _RANGES.keys() & given.keys():
        interval, contains = _RANGES[name]
        if not (isinstance(given[name], Real) and contains(float(given[name]))):
            raise ValueError(f"{name} must be a number in {interval}, got {given[name]!r}")
    return function, takes


def _one_of(parameter: str, name: Any, choices: dict[str, Any]) -> Any:
    if not (isinstance(name, str) and name in choices):
        raise ValueError(f"{parameter} must be one of {list(choices)}, got {name!r}")
    return choices[name]


def _chosen(parameter: str, columns: Any, X: Any, numeric: Array) -> Array | None:
    """Positions of the columns, which have to hold numbers; None for None."""
    if columns is None:
        return None
    chosen = positions(parameter, columns, X, len(numeric))
    check_numeric(parameter, X, numeric, chosen)
    return chosen
