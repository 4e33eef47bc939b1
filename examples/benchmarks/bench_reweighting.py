"""Benchmarks of reweighting: `python bench_reweighting.py --help` lists the tables.

Every cell is written to a JSON file as soon as it is measured, and a run that is started again
goes on where it was. The designs are those of `reweighting_designs`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, Cells
from numpy.linalg import norm
from record import circumstances
from reweighting_designs import (
    REGRESSION,
    TOYS,
    Case,
    biased_diabetes,
    cleaning,
    inland_to_coast,
    sugiyama,
)
from reweighting_peers import (
    FAMILIES,
    fitted,
    irbl,
    logistic_ratio,
    loss,
    peer_weights,
    with_chosen_l2,
    with_weights,
)
from reweighting_summary import summary

from skbilevel.metrics import effective_sample_size, entropy

Seeds = Iterable[int]
_RATIOS = (0.1, 1.0, 10.0, 30.0, 100.0)
# Wrong labels, and clean rows, of MNIST.
_MNIST = ((0.8, 100), (0.5, 100), (0.8, 300), (0.9, 300))


def toys(seeds: Seeds, cells: Cells) -> None:
    """Error of the coefficients beside that of ideal weights."""
    for name, design in TOYS.items():
        for seed in seeds:

            def run(design: Callable[[int], Case] = design, seed: int = seed) -> Cell:
                case = design(seed)
                gate = fitted(case, weighting="gate", random_state=seed)
                told = {
                    "gate": gate,
                    "auto": fitted(case, random_state=seed),
                    "target": fitted(case, weighting="target", random_state=seed),
                    "uniform": fitted(case, weighting="uniform"),
                    "ideal": with_weights(case, case.ideal, False, l2=1e-6),
                    "ideal + target": with_weights(case, case.ideal, True, l2=1e-6),
                }
                cell = {who: _error(model, case) for who, model in told.items()}
                size = gate.effective_sample_size_ / effective_sample_size(case.ideal)
                return {**cell, "size": size}

            cells.measure(f"toys|{name}|{seed}", run)


def _error(model: Any, case: Case) -> float:
    return float(norm(model.coef_ - case.theta))


def collapse(seeds: Seeds, cells: Cells) -> None:
    """Warm-started mirror descent and SOBA on the toy, by the ratio of the rates."""
    for seed in seeds:
        case = TOYS["d=2"](seed)
        rate = 0.2 / float(norm(case.X.T @ case.X / len(case.X), 2))
        for solver, n_iter in (("warm_started", 5000), ("soba", 10000)):
            for ratio in (0.01, *_RATIOS):

                def run(
                    case: Case = case,
                    solver: str = solver,
                    rate: float = rate,
                    ratio: float = ratio,
                    n_iter: int = n_iter,
                ) -> Cell:
                    model = _by_descent(case, solver, rate, ratio, n_iter, l2=1e-6)
                    path = model.history_["entropy"]
                    return {
                        "error": _error(model, case),
                        "size": model.effective_sample_size_,
                        "entropies": [path[t] for t in (100, 300, 1000, 3000, 4999)],
                    }

                cells.measure(f"collapse|{solver} {ratio:g}|{seed}", run)


def _by_descent(
    case: Case, solver: str, rate: float, ratio: float, n_iter: int, **parameters: Any
) -> Any:
    """An algorithm of the paper, with the parameters where it ends."""
    return fitted(
        case,
        weighting="sample",
        solver=solver,
        inner_rate=rate,
        outer_rate=ratio * rate,
        max_iter=n_iter,
        early_stopping=False,
        refit=None,
        **parameters,
    )


def digits(seeds: Seeds, cells: Cells) -> None:
    """Wrong labels of digits."""
    for wrong in (0.5, 0.8, 0.9):
        for seed in seeds:
            case = cleaning("digits", wrong, seed, 150)
            cells.measure(
                f"cleaning|digits {wrong:g}|{seed}", lambda c=case, s=seed: _cleaned(c, s)
            )


def mnist(seeds: Seeds, cells: Cells) -> None:
    """Wrong labels of MNIST, 5000 rows."""
    for wrong, m in _MNIST:
        for seed in seeds:
            case = cleaning("mnist", wrong, seed, m)
            key = f"cleaning|MNIST {wrong:g}, m={m}|{seed}"
            cells.measure(key, lambda c=case, s=seed: _cleaned(c, s))


def pairs(seeds: Seeds, cells: Cells) -> None:
    """Wrong labels that are confused with one other class."""
    for seed in seeds:
        case = cleaning("digits", 0.3, seed, 150, is_pairwise=True)
        cells.measure(f"cleaning|digits pairs 0.3|{seed}", lambda c=case, s=seed: _cleaned(c, s))


def noise_graph(seeds: Seeds, cells: Cells) -> None:
    """Digits, with neighbours that mean nothing: the graph is that of random rows."""
    from skbilevel.estimators import label_gate, label_graph  # noqa: PLC0415

    real = label_graph.label_graph

    def of_noise(X: Any, X_target: Any, rng: Any) -> Any:
        noise = np.random.RandomState(len(X))
        return real(noise.randn(len(X), 20), noise.randn(len(X_target), 20), rng)

    for wrong in (0.5, 0.8, 0.9):
        for seed in seeds:
            case = cleaning("digits", wrong, seed, 150)

            def run(case: Case = case, seed: int = seed) -> Cell:
                label_gate.label_graph = of_noise
                try:
                    gate = fitted(case, weighting="gate", random_state=seed)
                finally:
                    label_gate.label_graph = real
                target = fitted(case, weighting="target", random_state=seed)
                return {"gate": 1 - loss(gate, case), "target": 1 - loss(target, case)}

            cells.measure(f"noise_graph|digits {wrong:g}|{seed}", run)


def _cleaned(case: Case, seed: int) -> Cell:
    """Accuracies, seconds of the gate, and how its weights lie."""
    start = time.process_time()
    gate = fitted(case, weighting="gate", random_state=seed)
    seconds = time.process_time() - start
    odds = irbl(case, 1e-4)
    told = {
        "gate": gate,
        "gate, relabel": fitted(case, weighting="gate", relabel=True, random_state=seed),
        "uniform": fitted(case, weighting="uniform"),
        "uniform, train": with_weights(case, np.ones(len(case.y)), False, l2=1e-4),
        "target": fitted(case, weighting="target", random_state=seed),
        "IRBL": with_weights(case, odds, True, l2=1e-4),
        "ideal, train": with_weights(case, case.ideal, False, l2=1e-4),
        "ideal": with_weights(case, case.ideal, True, l2=1e-4),
    }
    return {
        **{who: 1 - loss(model, case) for who, model in told.items()},
        "entropy gap": gate.entropy_ - entropy(case.ideal),
        "clean mass": float(gate.weights_[: len(case.y)] @ case.ideal),
        "gate seconds": seconds,
    }


def auto(seeds: Seeds, cells: Cells) -> None:
    """The choice among families beside each of them, on regression and digits tasks."""
    for name, design in REGRESSION.items():
        for seed in seeds:
            case = design(seed)
            cells.measure(f"auto|{name}|{seed}", lambda c=case, s=seed: _families(c, s))
    for wrong in (0.0, 0.5, 0.8, 0.9):
        for seed in seeds:
            case = cleaning("digits", wrong, seed, 150)
            cells.measure(f"auto|digits {wrong:g}|{seed}", lambda c=case, s=seed: _families(c, s))


def _families(case: Case, seed: int) -> Cell:
    cell = {name: loss(fitted(case, weighting=name, random_state=seed), case) for name in FAMILIES}
    start = time.process_time()
    chosen = fitted(case, random_state=seed)
    seconds = time.process_time() - start
    shifted = float(chosen.shift_detected_)
    return {**cell, "auto": loss(chosen, case), "shift": shifted, "auto seconds": seconds}


def shift(seeds: Seeds, cells: Cells) -> None:
    """Covariate shift by design, beside density ratios."""
    designs = {"Sugiyama": lambda s: sugiyama(30, s), "diabetes": lambda s: biased_diabetes(40, s)}
    for name, design in designs.items():
        for seed in seeds:
            case = design(seed)
            cells.measure(f"shift|{name}|{seed}", lambda c=case, s=seed: _shifted(c, s))


def real_shift(seeds: Seeds, cells: Cells, data_dir: Path | None) -> None:
    """Houses inland and near the ocean."""
    if data_dir is None:
        print("real_shift needs --data-dir; left out")
        return
    designs = {
        "inland to coast, m=50": lambda s: inland_to_coast(data_dir, 50, s),
        "inland to coast, m=200": lambda s: inland_to_coast(data_dir, 200, s),
    }
    for name, design in designs.items():
        for seed in seeds:
            case = design(seed)
            cells.measure(f"shift|{name}|{seed}", lambda c=case, s=seed: _shifted(c, s))


def _shifted(case: Case, seed: int) -> Cell:
    cell = {
        name: loss(fitted(case, weighting=name, random_state=seed), case)
        for name in ("auto", "loglinear", "gate", "uniform", "target", "sample")
    }
    weights = {"logistic ratio": logistic_ratio(case), **peer_weights(case)}
    if case.ideal is not None:
        weights["true ratio"] = case.ideal
    ratios = {who: loss(with_chosen_l2(case, w), case) for who, w in weights.items()}
    return {**cell, **ratios}


def soba(seeds: Seeds, cells: Cells) -> None:
    """SOBA for 700 iterations beside the gate, digits with four fifths wrong."""
    for seed in seeds:
        case = cleaning("digits", 0.8, seed, 150)

        def run(case: Case = case, seed: int = seed) -> Cell:
            told: dict[str, Callable[[], Any]] = {
                "SOBA": lambda: _by_descent(case, "soba", 1.0, 1.0, 700, l2=1e-4),
                "gate": lambda: fitted(case, weighting="gate", random_state=seed),
                "target": lambda: fitted(case, weighting="target", random_state=seed),
            }
            cell: Cell = {}
            for name, fit in told.items():
                start = time.process_time()
                model = fit()
                cell[f"{name} seconds"] = time.process_time() - start
                cell[name] = 1 - loss(model, case)
                cell[f"{name} size"] = model.effective_sample_size_
            return cell

        cells.measure(f"soba|digits 0.8|{seed}", run)


def ratios(seeds: Seeds, cells: Cells) -> None:
    """SOBA on digits by the ratio of the rates, 2000 iterations."""
    for seed in seeds:
        case = cleaning("digits", 0.8, seed, 150)
        for ratio in _RATIOS:

            def run(case: Case = case, ratio: float = ratio) -> Cell:
                model = _by_descent(case, "soba", 1.0, ratio, 2000, l2=1e-4)
                return {
                    "accuracy": 1 - loss(model, case),
                    "size": model.effective_sample_size_,
                    "entropy": model.entropy_,
                }

            cells.measure(f"ratios|SOBA {ratio:g}|{seed}", run)


TABLES: dict[str, Callable[..., None]] = {
    "toys": toys,
    "collapse": collapse,
    "ratios": ratios,
    "digits": digits,
    "noise_graph": noise_graph,
    "pairs": pairs,
    "soba": soba,
    "shift": shift,
    "real_shift": real_shift,
    "auto": auto,
    "mnist": mnist,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seeds", type=int, nargs=2, default=(100, 108), metavar=("FROM", "TO"))
    parser.add_argument("--data-dir", type=Path, help="folder with California housing")
    parser.add_argument("--json", type=Path, default=Path("results/bench_reweighting.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells, seeds = Cells(arguments.json), range(*arguments.seeds)
    for name in arguments.tables:
        more = (arguments.data_dir,) if name == "real_shift" else ()
        TABLES[name](seeds, cells, *more)
    print(json.dumps(circumstances()))
    print(summary(cells.measured))


if __name__ == "__main__":
    main()
