"""GaussianImputer against its peers: errors on real data, and speed and memory on low-rank data.

Every cell of a table runs in a process of its own, after a small warm-up; times are CPU seconds of
fitting and imputing on one thread, so set OMP_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1 and
MKL_NUM_THREADS=1 (``make bench`` does). Prints the tables, and writes them with the machine, the
date and the commit to a JSON file.

Real data: 30 % of the cells missing completely at random, masks
``default_rng(s).random(X.shape) < .3`` for s = 0..4, errors in standard deviations of the complete
columns, mean and standard error over the masks. The set that no package carries, UCI's banknote
authentication, is read from ``--data-dir``: banknote.csv with a header.

Low-rank data: `skbilevel.datasets.make_low_rank`. The floor is the error of the conditional mean
under the true parameters, on the first 20000 rows.
"""

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from real_data import real_sets
from record import write_record
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from skbilevel import GaussianImputer
from skbilevel.datasets import make_low_rank
from skbilevel.metrics import imputation_rmse

IMPUTERS: dict[str, Callable[[], Any]] = {
    "mean": SimpleImputer,
    "KNNImputer": KNNImputer,
    "IterativeImputer": lambda: IterativeImputer(max_iter=10, random_state=0),
    "GaussianImputer": lambda: GaussianImputer(random_state=0),
}
SIZES = [(1_000, 20), (10_000, 20), (100_000, 20), (1_000, 100), (10_000, 100)]
SMALL = [(60, 20), (200, 20), (80, 100), (300, 100)]
LARGE = [10_000, 100_000, 1_000_000]


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a new process, so that no cell inherits another's memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def warm_up(name: str) -> None:
    """Load what is loaded on first use."""
    data = make_low_rank(300, 5, random_state=1)
    IMPUTERS[name]().fit_transform(hidden(data.X, data.mask))


def hidden(X: np.ndarray, observed: np.ndarray) -> np.ndarray:
    return np.where(observed, X, np.nan)


def floor(n_rows: int, n_columns: int) -> float:
    """Error of the conditional mean under the true parameters, on the first 20000 rows."""
    data = make_low_rank(n_rows, n_columns, random_state=0)
    X, observed = data.X[:20_000], data.mask[:20_000]
    imputed = X.copy()
    precision = np.linalg.inv(data.covariance)
    for row, mask in zip(imputed, observed, strict=True):
        m, o = np.flatnonzero(~mask), np.flatnonzero(mask)
        pull = precision[np.ix_(m, o)] @ (row[o] - data.location[o])
        row[m] = data.location[m] - np.linalg.solve(precision[np.ix_(m, m)], pull)
    return imputation_rmse(X, imputed, observed, scale=np.ones(X.shape[1]))


def timed(name: str, n_rows: int, n_columns: int) -> tuple[float, float]:
    """Error and CPU seconds of fitting and imputing low-rank rows."""
    data = make_low_rank(n_rows, n_columns, random_state=0)
    X = hidden(data.X, data.mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warm_up(name)
        start = time.process_time()
        imputed = IMPUTERS[name]().fit_transform(X)
        seconds = time.process_time() - start
    return imputation_rmse(data.X, imputed, data.mask, scale=np.ones(n_columns)), seconds


def memory_and_time(path: Path) -> tuple[float, float, float, float]:
    """CPU seconds and peak MB above the data of fitting, then of imputing in place."""
    X = np.load(path)
    warm_up("GaussianImputer")
    imputer = GaussianImputer(random_state=0)
    figures = []
    for step in (lambda: imputer.fit(X), lambda: imputer.transform(X, out=X)):
        before, start = peak_megabytes(reset=True), time.process_time()
        step()
        figures += [time.process_time() - start, peak_megabytes() - before]
    return tuple(figures)


def peak_megabytes(*, reset: bool = False) -> float:
    """Peak resident memory of this process, where Linux allows since the last reset."""
    status = Path("/proc/self/status")
    if reset and status.exists():
        Path("/proc/self/clear_refs").write_text("5")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def errors_on_real_data(X: np.ndarray) -> dict[str, list[float]]:
    """Errors of every imputer under five masks."""
    results: dict[str, list[float]] = {name: [] for name in IMPUTERS}
    for seed in range(5):
        observed = ~(np.random.default_rng(seed).random(X.shape) < 0.3)
        for name, imputer in IMPUTERS.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                imputed = imputer().fit_transform(hidden(X, observed))
            results[name].append(imputation_rmse(X, imputed, observed))
    return results


def bench_real(data_dir: Path | None) -> dict[str, Any]:
    print("\nRMSE at missing cells, MCAR 30 %, mean +- standard error of 5 masks")
    print(f"{'':12s}" + "".join(f"{name:>20s}" for name in IMPUTERS))
    table = {}
    for name, X in real_sets(data_dir).items():
        table[name] = in_fresh_process(errors_on_real_data, X)
        cells = (
            f"{np.mean(errors):.3f} +- {np.std(errors, ddof=1) / len(errors) ** 0.5:.3f}"
            for errors in table[name].values()
        )
        print(f"{name:12s}" + "".join(f"{cell:>20s}" for cell in cells), flush=True)
    return table


def bench_speed(repeats: int) -> list[dict[str, float]]:
    print("\nLow-rank data, 30 % MCAR: RMSE and CPU seconds (median of runs) of fit and impute")
    print("        n    d   floor | IterativeImputer | GaussianImputer  | speed-up")
    rows = []
    for n_rows, n_columns in SIZES:
        row = {"n": n_rows, "d": n_columns, "floor": in_fresh_process(floor, n_rows, n_columns)}
        ours, theirs = [], []
        for repeat in range(repeats):
            ours.append(in_fresh_process(timed, "GaussianImputer", n_rows, n_columns))
            if repeat == 0 or n_rows * n_columns < 1_000_000:
                theirs.append(in_fresh_process(timed, "IterativeImputer", n_rows, n_columns))
        for key, runs in (("peer", theirs), ("ours", ours)):
            row[f"{key}_rmse"] = runs[0][0]
            row[f"{key}_seconds"] = float(np.median([seconds for _, seconds in runs]))
        rows.append(row)
        print(
            f"{n_rows:9d} {n_columns:4d}   {row['floor']:.4f} |"
            f"  {row['peer_rmse']:.4f} {row['peer_seconds']:7.2f} s |"
            f"  {row['ours_rmse']:.4f} {row['ours_seconds']:7.2f} s |"
            f"   {row['peer_seconds'] / row['ours_seconds']:5.1f} x",
            flush=True,
        )
    return rows


def bench_large() -> list[dict[str, float]]:
    print("\nLow-rank data, d = 20, 30 % MCAR: growth with n, and memory above the data")
    print("        n | fit CPU s  peak MB | impute in place CPU s  peak MB")
    rows = []
    with TemporaryDirectory() as folder:
        for n_rows in LARGE:
            path = Path(folder) / "rows.npy"
            in_fresh_process(write_rows, path, n_rows)
            figures = in_fresh_process(memory_and_time, path)
            keys = ("fit_seconds", "fit_megabytes", "impute_seconds", "impute_megabytes")
            rows.append({"n": n_rows, **dict(zip(keys, figures, strict=True))})
            print(
                f"{n_rows:9d} | {figures[0]:9.2f} {figures[1]:8.0f} |"
                f" {figures[2]:21.2f} {figures[3]:8.0f}",
                flush=True,
            )
    seconds = [row["fit_seconds"] + row["impute_seconds"] for row in rows]
    exponent = np.log(seconds[-1] / seconds[0]) / np.log(LARGE[-1] / LARGE[0])
    print(f"growth exponent from {LARGE[0]} to {LARGE[-1]} rows: {exponent:.3f}")
    return rows


def write_rows(path: Path, n_rows: int) -> None:
    data = make_low_rank(n_rows, 20, random_state=0)
    np.save(path, hidden(data.X, data.mask))


def bench_small() -> list[dict[str, float]]:
    print("\nFewer rows than columns, or hardly more: RMSE (CPU seconds)")
    print("     n    d   floor | IterativeImputer | GaussianImputer")
    rows = []
    for n_rows, n_columns in SMALL:
        ours = in_fresh_process(timed, "GaussianImputer", n_rows, n_columns)
        theirs = in_fresh_process(timed, "IterativeImputer", n_rows, n_columns)
        lowest = in_fresh_process(floor, n_rows, n_columns)
        rows.append({"n": n_rows, "d": n_columns, "floor": lowest, "ours": ours, "peer": theirs})
        print(
            f"{n_rows:6d} {n_columns:4d}   {lowest:.4f} |  {theirs[0]:.4f} ({theirs[1]:6.2f}) |"
            f"  {ours[0]:.4f} ({ours[1]:5.2f})",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with banknote.csv")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each timing")
    parser.add_argument("--json", type=Path, default=Path("results/bench_gaussian.json"))
    arguments = parser.parse_args()
    figures = {
        "real": bench_real(arguments.data_dir),
        "speed": bench_speed(arguments.repeats),
        "large": bench_large(),
        "small": bench_small(),
    }
    write_record(arguments.json, figures)


if __name__ == "__main__":
    main()
