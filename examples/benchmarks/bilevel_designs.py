"""The designs of bilevel imputation: tables, masks, splits.

The order of the random calls is part of each design, so that figures can be compared. A mask is
called `observed` here and is True where a cell is OBSERVED.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.random import RandomState
from numpy.typing import NDArray
from real_data import Table
from scipy.special import expit

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_FARTHEST = 8.0
# Features of a day without the season, which a day before shares.
_DAILY = 18


class Split(NamedTuple):
    """A case: training rows first, standardised by what is observed of them.

    Attributes
    ----------
    Z : ndarray of shape (n, d)
        Complete.
    observed : ndarray of shape (n, d), bool
    y : ndarray of shape (n,)
        Numbers standardised by labelled rows; classes as they are.
    labelled : ndarray of shape (n_train,), bool
    n_train : int
    scale : ndarray of shape (d,)
        Units of errors.
    """

    Z: Array
    observed: Mask
    y: NDArray
    labelled: Mask
    n_train: int
    scale: Array

    @property
    def incomplete(self) -> Array:
        """Z with NaN where missing."""
        return np.where(self.observed, self.Z, np.nan)

    def labels(self) -> NDArray:
        """y of the training rows, missing where it has no label: NaN, or None for classes."""
        y = self.y[: self.n_train]
        if y.dtype.kind == "f":
            return np.where(self.labelled, y, np.nan)
        return np.array(
            [v if known else None for v, known in zip(y.tolist(), self.labelled, strict=True)],
            dtype=object,
        )

    def error(self, imputed: Array) -> float:
        """RMSE at the missing cells of the test rows, from those rows imputed."""
        rows = slice(self.n_train, None)
        missing = ~self.observed[rows]
        return float(np.sqrt(np.mean((((imputed - self.Z[rows]) / self.scale)[missing]) ** 2)))


def synthetic_linear() -> Table:
    """Ten columns of three factors and noise, a linear target; 3000 rows."""
    r = RandomState(0)
    Z = r.randn(3000, 3)
    X = Z @ r.randn(3, 10) * 0.7 + 0.7 * r.randn(3000, 10)
    return Table(X, X @ r.randn(10) / 2 + 0.5 * r.randn(3000))


def factor_linear() -> Table:
    """Twelve columns of three factors and little noise, a linear target; 1000 rows."""
    r = RandomState(0)
    X = r.randn(1000, 3) @ r.randn(3, 12) + 0.3 * r.randn(1000, 12)
    return Table(X, X @ r.randn(12) / 3 + 0.3 * r.randn(1000))


def hanoi(path: Path, n_days: int = 1) -> dict[str, Array]:
    """Next-day PM2.5 of stations: "X" and "y" by part, "train" and "test".

    Features are the 20 of a day, followed by those of ``n_days - 1`` days before it; the target is
    the same station's concentration a day later, NaN where that day is not listed.
    """
    frame = pd.read_csv(path)
    frame["time"] = pd.to_datetime(frame["time"])
    frame = frame.sort_values(["ID", "time"]).reset_index(drop=True)
    angle = 2 * np.pi * frame["WDIR"] / 360
    season = 2 * np.pi * frame["time"].dt.dayofyear / 365
    plain = ["pm25", "lat", "lon", "SQRT_SEA_DEM_LAT", "WSPD"]
    other = ["TMP", "TX", "TN", "TP", "RH", "PRES2M", "CO_column_number_density", "Cloud"]
    other += ["NO2_column_number_density", "O3_column_number_density", "absorbing_aerosol_index"]
    features = np.column_stack(
        [frame[plain], np.sin(angle), np.cos(angle), frame[other], np.sin(season), np.cos(season)]
    )
    where = {key: i for i, key in enumerate(zip(frame["ID"], frame["time"], strict=True))}

    def shifted(values: Array, n: int) -> Array:
        """Of the same station n days later."""
        day = pd.Timedelta(days=n)
        index = [where.get((key[0], key[1] + day), -1) for key in where]
        found = values[np.array(index)].astype(float)
        found[np.array(index) < 0] = np.nan
        return found

    X = np.hstack([features, *(shifted(features[:, :_DAILY], -n) for n in range(1, n_days))])
    y = shifted(frame["pm25"].to_numpy(), 1)
    train = (frame["time"] <= "2021-05-31").to_numpy()
    test = (frame["time"] >= "2021-08-01").to_numpy() & ~np.isnan(y)
    return {"X_train": X[train], "y_train": y[train], "X_test": X[test], "y_test": y[test]}


def _bisected(score: Array, rate: float, low: float, n_steps: int) -> float:
    """The intercept b at which sigmoid(score + b) has that mean."""
    high = -low
    for _ in range(n_steps):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(score + middle).mean() < rate else (low, middle)
    return middle


def _at_random(Zs: Array, rate: float, r: RandomState) -> Mask:
    n, d = Zs.shape
    driving = r.choice(d, max(1, int(0.3 * d)), replace=False)
    driven = np.setdiff1d(np.arange(d), driving)
    weights = r.randn(len(driving), len(driven))
    scores = Zs[:, driving] @ weights / np.sqrt(len(driving)) * 2
    share = min(0.9, rate * d / len(driven))
    observed = np.ones((n, d), dtype=bool)
    for c, j in enumerate(driven):
        observed[:, j] = r.rand(n) > expit(scores[:, c] + _bisected(scores[:, c], share, -20, 40))
    return observed


def _hard(Zs: Array) -> Mask:
    observed = np.ones(Zs.shape, dtype=bool)
    half = Zs.shape[1] // 2
    observed[:, :half] = Zs[:, :half] <= 0
    return observed


def _self_masked(Zs: Array, rate: float, r: RandomState) -> Mask:
    observed = np.ones(Zs.shape, dtype=bool)
    for j, column in enumerate(Zs.T):
        observed[:, j] = r.rand(len(Zs)) > expit(2 * column + _bisected(2 * column, rate, -20, 50))
    return observed


MASKS = {
    "mcar": lambda Zs, rate, r: r.rand(*Zs.shape) > rate,
    "mar": _at_random,
    "soft": lambda Zs, rate, r: r.rand(*Zs.shape) > expit(2 * Zs - 0.6),
    "alternating": lambda Zs, rate, r: (
        r.rand(*Zs.shape) > expit(2 * Zs * np.where(np.arange(Zs.shape[1]) % 2, -1, 1) - 0.6)
    ),
    "hard": lambda Zs, rate, r: _hard(Zs),
    "mnar": _self_masked,
}


def mask(X: Array, mechanism: str, rate: float, r: RandomState) -> Mask:
    """A mask of a complete table."""
    return MASKS[mechanism]((X - X.mean(0)) / (X.std(0) + 1e-9), rate, r)


def shuffled(table: Table, seed: int) -> Table:
    """The same columns and target, each in an order of its own: nothing tells of anything."""
    r = RandomState(seed)
    X = np.column_stack([r.permutation(column) for column in table.X.T])
    return Table(X, r.permutation(table.y))


def tilt_case(
    table: Table, mechanism: str, seed: int, n_train: int = 600, label_rate: float = 0.1
) -> Split:
    """Case of the tilt: the first labelled rows, errors in deviations of the training rows."""
    n = len(table.X)
    r = RandomState(1000 + seed)
    order = r.permutation(n)
    X, y = table.X[order], table.y[order]
    observed = mask(X, mechanism, 0.4, r)
    n_train = min(n_train, int(0.65 * n))
    n_rows = min(n, n_train + 800)
    n_labels = max(20, int(label_rate * n_train)) if label_rate < 1 else n_train
    Z = _standardized(X, observed, n_train)[:n_rows]
    scale = Z[:n_train].std(0)
    if not table.is_class:
        y = (y - y[:n_train].mean()) / y[:n_train].std()
    labelled = np.arange(n_train) < n_labels
    return Split(Z, observed[:n_rows], y[:n_rows], labelled, n_train, scale)


def teacher_case(
    table: Table,
    mechanism: str,
    seed: int,
    rate: float = 0.3,
    label_rate: float = 1.0,
    most_train: int | None = None,
) -> Split:
    """Case of teacher and student: labels at random, errors in observed deviations."""
    r = RandomState(seed)
    X, y = table.X, table.y
    if len(X) > 1000:
        rows = r.choice(len(X), 1000, replace=False)
        X, y = X[rows], y[rows]
    n, d = X.shape
    observed = mask(X, mechanism, rate, r)
    for i in np.flatnonzero(~observed.any(axis=1)):
        observed[i, r.randint(d)] = True
    order = r.permutation(n)
    X, y, observed = X[order], y[order], observed[order]
    n_train = int(0.7 * n)
    if most_train is not None and n_train > most_train:
        kept = np.r_[:most_train, n_train:n]
        X, y, observed, n_train = X[kept], y[kept], observed[kept], most_train
    Z = _standardized(X, observed, n_train)
    labelled = r.rand(n_train) < label_rate
    if labelled.sum() < 12:
        labelled = np.arange(n_train) < 12
    if not table.is_class:
        known = y[:n_train][labelled]
        y = (y - known.mean()) / known.std()
    return Split(Z, observed, y, labelled, n_train, np.ones(d))


def _standardized(X: Array, observed: Mask, n_train: int) -> Array:
    seen = np.where(observed, X, np.nan)[:n_train]
    center, scale = np.nanmean(seen, axis=0), np.nanstd(seen, axis=0) + 1e-9
    return np.clip((X - center) / scale, -_FARTHEST, _FARTHEST)
