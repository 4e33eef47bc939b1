"""Benchmarks of bilevel imputation: `python bench_bilevel.py --help` lists the tables.

Every cell is written to a JSON file as soon as it is measured, and a run that is started again
goes on where it was.
"""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bilevel_cost import iteration_cost
from bilevel_designs import Split, hanoi, shuffled, synthetic_linear, teacher_case, tilt_case
from bilevel_peers import HEADS, IMPUTERS, boosted, constant, masked_network, ridge_head, score
from bilevel_summary import summary
from cells import Cell, Cells
from real_data import Table, bilevel_sets, tilt_sets
from record import circumstances
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import IterativeImputer

from skbilevel import BilevelImputer, BilevelRegressor, GaussianImputer


def imputation(sets: dict[str, Table], seeds: Iterable[int], cells: Cells) -> None:
    """30 % MCAR and MAR: error on test rows beside that of five peers."""
    for name, table in sets.items():
        for mechanism in ("mcar", "mar"):
            for seed in seeds:

                def run(
                    table: Table = table, mechanism: str = mechanism, seed: int = seed
                ) -> Cell:
                    case = teacher_case(table, mechanism, seed)
                    default = BilevelImputer(random_state=seed)
                    contestants = {"BilevelImputer": default, **IMPUTERS}
                    return {who: _error(each, case) for who, each in contestants.items()}

                cells.measure(f"imputation {name} {mechanism} {seed}", run)


def _error(imputer: Any, case: Split) -> float:
    rows, n = case.incomplete, case.n_train
    fitted = clone(imputer)
    if isinstance(fitted, BilevelImputer):
        fitted.set_params(target_type=_type(case)).fit(rows[:n], case.labels())
    else:
        fitted.fit(rows[:n])
    return round(case.error(fitted.transform(rows[n:])), 4)


def _type(case: Split) -> str:
    return "continuous" if case.y.dtype.kind == "f" else "auto"


def prediction(sets: dict[str, Table], seeds: Iterable[int], cells: Cells) -> None:
    """`predict` beside the student's network on zeros and mask, and boosting on NaN."""
    for name, table in sets.items():
        for mechanism in ("mcar", "mar"):
            for rate in (0.1, 0.2, 1.0):
                for seed in seeds:

                    def run(
                        table: Table = table,
                        mechanism: str = mechanism,
                        rate: float = rate,
                        seed: int = seed,
                    ) -> Cell:
                        return _scores(teacher_case(table, mechanism, seed, label_rate=rate), seed)

                    cells.measure(f"prediction {name} {mechanism} {rate} {seed}", run)


def _scores(case: Split, seed: int) -> Cell:
    rows, n = case.incomplete, case.n_train
    model = BilevelImputer(target_type=_type(case), random_state=seed)
    model.fit(rows[:n], case.labels())
    truth, labelled = case.y[n:], case.labelled
    known = rows[:n][labelled], case.y[:n][labelled]
    linear = HEADS[_type(case)]()
    normal = GaussianImputer(random_state=seed).fit(rows[:n])
    linear.fit(normal.transform(known[0]), known[1])
    return {
        "student": score(truth, model.predict(rows[n:])),
        "network on mask": score(truth, masked_network(*known, seed=seed)(rows[n:])),
        "boosting": score(truth, boosted(*known, seed=seed).predict(rows[n:])),
        "EM + linear": score(truth, linear.predict(normal.transform(rows[n:]))),
        "constant": score(truth, constant(known[1], len(truth))),
        "selected": model.selected_,
    }


# Mechanism, rows, share of labels: the cells of the tilt, and the sets that each is about.
_SIX = ("synthetic linear", "diabetes", "concrete", "california", "red wine", "banknote")
TILT_CELLS = {
    "soft": ("soft", 600, 0.1, _SIX),
    "soft, all labels": ("soft", 360, 1.0, _SIX[:5]),
    "soft, all labels, lines": ("soft", 360, 1.0, _SIX[:5]),
    "alternating": ("alternating", 360, 0.1, _SIX[:3]),
    "hard": ("hard", 600, 0.1, _SIX),
    "MAR": ("mar", 360, 0.1, _SIX),
    "MCAR": ("mcar", 360, 0.1, _SIX),
    "placebo": ("soft", 360, 0.1, _SIX),
}


def tilt(sets: dict[str, Table], seeds: Iterable[int], cells: Cells) -> None:
    """Self-masked values: error, and a ridge regression behind, paired with peers by seed."""
    for name, (mechanism, n_train, rate, of) in TILT_CELLS.items():
        for seed in seeds:
            for which in (which for which in of if which in sets):
                table = shuffled(sets[which], seed) if name == "placebo" else sets[which]

                def run(
                    case: Any = (table, mechanism, seed, n_train, rate),
                    seed: int = seed,
                    name: str = name,
                ) -> Cell:
                    settings = {"base": "gaussian"} if name.endswith("lines") else {}
                    return _behind(tilt_case(*case), seed, **settings)

                cells.measure(f"tilt {name} {which} {seed}", run)


def _behind(case: Split, seed: int, **settings: Any) -> Cell:
    rows, n, labelled = case.incomplete, case.n_train, np.flatnonzero(case.labelled)
    bilevel = BilevelImputer(
        add_indicator=True, target_type=_type(case), random_state=seed, **settings
    )
    contestants = {
        "EM": GaussianImputer(add_indicator=True, random_state=seed),
        "IterativeImputer": IterativeImputer(
            max_iter=6, random_state=0, keep_empty_features=True, add_indicator=True
        ),
        "bilevel": bilevel,
    }
    cell: Cell = {}
    for who, imputer in contestants.items():
        labels = (case.labels(),) if who == "bilevel" else ()
        imputed = imputer.fit(rows[:n], *labels).transform(rows)
        predicted = ridge_head(imputed[labelled], case.y[labelled], imputed[n:])
        cell[f"{who} rmse"] = round(case.error(imputed[n:, : rows.shape[1]]), 4)
        cell[f"{who} score"] = score(case.y[n:], predicted)
    trees = boosted(rows[labelled], case.y[labelled], seed=0)
    cell["boosting score"] = score(case.y[n:], trees.predict(rows[n:]))
    cell["student score"] = score(case.y[n:], bilevel.predict(rows[n:]))
    cell["accepted"], cell["selected"] = bool(bilevel.tilt_accepted_), bilevel.selected_
    return cell


def teacher(sets: dict[str, Table], seeds: Iterable[int], cells: Cells) -> None:
    """The outer loop of the teacher, with it and without, paired by seed."""
    for which in ("diabetes", "boston", "concrete", "yeast"):
        for mechanism, rate in (("mcar", 0.3), ("mnar", 0.15)):
            for seed in seeds if which in sets else ():

                def run(
                    table: Table = sets[which],
                    mechanism: str = mechanism,
                    rate: float = rate,
                    seed: int = seed,
                ) -> Cell:
                    case = teacher_case(table, mechanism, seed, 0.4, rate, 300)
                    return {
                        f"{what} {weight}": value
                        for weight in (1.0, 0.0)
                        for what, value in _with_weight(case, seed, weight).items()
                    }

                cells.measure(f"teacher {which} {mechanism} {seed}", run)


def _with_weight(case: Split, seed: int, weight: float) -> Cell:
    rows, n = case.incomplete, case.n_train
    model = BilevelImputer(bilevel_weight=weight, target_type=_type(case), random_state=seed)
    model.fit(rows[:n], case.labels())
    return {
        "student": score(case.y[n:], model.predict(rows[n:])),
        "rmse": round(case.error(model.transform(rows[n:])), 4),
        "selected": model.selected_,
    }


def air(sets: Any, seeds: Iterable[int], cells: Cells) -> None:
    """Next-day PM2.5 of stations in Hanoi, naturally missing features: squared errors."""
    for n_days, data in sets.items():
        for seed in seeds:

            def run(data: Any = data, seed: int = seed) -> Cell:
                known = ~np.isnan(data["y_train"])
                trees = HistGradientBoostingRegressor(
                    max_iter=80, learning_rate=0.07, random_state=seed
                ).fit(data["X_train"][known], data["y_train"][known])
                model = BilevelRegressor(random_state=seed)
                model.fit(data["X_train"], data["y_train"])
                told = {
                    "student": model.predict(data["X_test"]),
                    "boosting": trees.predict(data["X_test"]),
                    "persistence": data["X_test"][:, 0],
                }
                cell: Cell = {}
                for who, predicted in told.items():
                    error = predicted - data["y_test"]
                    cell[f"{who} MSE"] = round(float(np.mean(error**2)), 1)
                    cell[f"{who} MAE"] = round(float(np.mean(np.abs(error))), 2)
                return {**cell, "accepted": model.tilt_accepted_, "selected": model.selected_}

            cells.measure(f"air {n_days} days {seed}", run)


class LossOnNewRows:
    """Mean squared error on rows that nobody has seen, after the first and the last iteration."""

    def __init__(self, X: Any, y: Any, n_iter: int) -> None:
        self.X, self.y, self.watched, self.losses = X, y, (1, n_iter), []

    def setup(self, estimator: Any, context: Any) -> None: ...
    def on_fit_task_begin(self, estimator: Any, context: Any) -> None: ...
    def teardown(self, estimator: Any, context: Any) -> None: ...

    def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any) -> None:
        if context.task_name == "iteration" and fitted_estimator.n_iter_ in self.watched:
            error = fitted_estimator.predict(self.X) - self.y
            self.losses.append(round(float(np.mean(error**2)), 4))


# As in the design: a mean imputation as base, 151 iterations, no tilt.
_LEAK = {
    "base": "mean",
    "tilt": None,
    "max_iter": 151,
    "inner_iter": 4,
    "pretrain_iter": 250,
    "student_iter": 600,
    "learning_rate": 1e-3,
    "l2": 1e-3,
    "target_type": "continuous",
}


def leak(sets: dict[str, Table], seeds: Iterable[int], cells: Cells) -> None:
    """Loss on rows set aside and on new rows, at the start and at the end, for each way."""
    for outer in ("imputed", "imputed_direct", "holdout", "crossfit"):
        for seed in seeds:

            def run(outer: str = outer, seed: int = seed) -> Cell:
                case = teacher_case(sets["diabetes"], "mcar", seed, 0.5)
                rows, n = case.incomplete, case.n_train
                callback = LossOnNewRows(rows[n:], case.y[n:], _LEAK["max_iter"])
                model = BilevelImputer(outer=outer, random_state=seed, **_LEAK)
                model.set_callbacks(callback).fit(rows[:n], case.y[:n])
                # Each of three iterations judges another fold.
                width = 3 if outer == "crossfit" else 1
                aside = np.array(model.history_["outer"])
                return {
                    "aside": [round(float(p.mean()), 4) for p in (aside[:width], aside[-width:])],
                    "new": callback.losses,
                }

            cells.measure(f"leak {outer} {seed}", run)


def seconds(sets: Any, seeds: Iterable[int], cells: Cells) -> None:
    """CPU seconds of a fit with the defaults on 1000 rows of 20 columns, and of its parts."""
    for rate in (1.0, 0.1):
        for seed in seeds:

            def run(rate: float = rate, seed: int = seed) -> Cell:
                rows, labels = _large(seed, rate)
                cell = {}
                for name, settings in {
                    "default": {},
                    "gaussian base": {"base": "gaussian"},
                }.items():
                    start = time.process_time()
                    BilevelImputer(random_state=seed, **settings).fit(rows, labels)
                    cell[name] = round(time.process_time() - start, 2)
                return cell

            cells.measure(f"seconds {rate} {seed}", run)


def _large(seed: int, label_rate: float) -> tuple[Any, Any]:
    """1000 rows of 20 columns, 30 % missing, and labels."""
    r = np.random.RandomState(seed)
    X = r.randn(1000, 4) @ r.randn(4, 20) + 0.5 * r.randn(1000, 20)
    y = X @ r.randn(20) / 4 + 0.3 * r.randn(1000)
    rows = np.where(r.rand(*X.shape) < 0.3, np.nan, X)
    return rows, np.where(r.rand(1000) < label_rate, y, np.nan)


def iteration(sets: Any, seeds: Iterable[int], cells: Cells) -> None:
    """CPU milliseconds of an iteration of the outer loop, beside those of its passes."""
    for outer, curvature in (
        ("crossfit", "gauss_newton"),
        ("crossfit", "hessian"),
        ("holdout", "hessian"),
    ):
        for seed in seeds:

            def run(outer: str = outer, curvature: str = curvature, seed: int = seed) -> Cell:
                found = iteration_cost(
                    *_large(seed, 1.0), outer=outer, curvature=curvature, seed=seed
                )
                return {
                    name: round(value if name == "ratio" else 1000 * value, 3)
                    for name, value in found.items()
                }

            cells.measure(f"iteration {outer} {curvature} {seed}", run)


TABLES = {
    "imputation": imputation,
    "prediction": prediction,
    "tilt": tilt,
    "teacher": teacher,
    "air": air,
    "leak": leak,
    "seconds": seconds,
    "iteration": iteration,
}


def _sets_of(table: str, data_dir: Path | None) -> Any:
    if table == "air":
        path = None if data_dir is None else data_dir / "hanoi_pm25.csv"
        if path is None or not path.exists():
            print("air is left out: no hanoi_pm25.csv in --data-dir")
            return {}
        return {n_days: hanoi(path, n_days) for n_days in (1, 2)}
    if table == "tilt":
        return {"synthetic linear": synthetic_linear(), **tilt_sets(data_dir)}
    return bilevel_sets(data_dir)


def main() -> None:
    """Run the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", default=",".join(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--sets", default="", help="names of sets; all by default")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--cells", type=Path, default=Path("results/bilevel_cells.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    print(json.dumps(circumstances()))
    for name in arguments.tables.split(","):
        sets = _sets_of(name, arguments.data_dir)
        chosen = [each for each in arguments.sets.split(",") if each in sets] or list(sets)
        cells = Cells(arguments.cells)
        TABLES[name]({each: sets[each] for each in chosen}, seeds, cells)
        print("\n".join(["", *summary(name, cells.measured)]), flush=True)


if __name__ == "__main__":
    main()
