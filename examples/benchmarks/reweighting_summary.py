"""Tables of reweighting from measured cells: means and standard errors over seeds."""

from collections import defaultdict
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

Cell = dict[str, Any]
_FAMILIES = ("uniform", "target", "group", "loglinear", "gate", "sample")


def summary(measured: dict[str, Cell]) -> str:
    """All tables whose cells are there, one line for each row."""
    grouped: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for key, cell in measured.items():
        table, row, _ = key.split("|")
        grouped[table, row].append(cell)
    lines = [
        f"{table} {row} ({len(cells)}): {_means(cells)}" for (table, row), cells in grouped.items()
    ]
    return "\n".join([*lines, *_regrets(grouped)])


def _means(cells: list[Cell]) -> str:
    parts = []
    for name, value in cells[0].items():
        if name == "seconds":
            continue
        values = np.array([cell[name] for cell in cells], dtype=float)
        mean = np.round(values.mean(axis=0), 4)
        if isinstance(value, list) or len(cells) < 2:
            parts.append(f"{name} {mean}")
        else:
            parts.append(f"{name} {mean:.4g}+-{values.std(ddof=1) / len(values) ** 0.5:.2g}")
    return "; ".join(parts)


def _holm(p: list[float]) -> float:
    """The least of p-values, adjusted for their number."""
    return min(1.0, len(p) * min(p))


def _regrets(grouped: dict[tuple[str, str], list[Cell]]) -> list[str]:
    """Of the choice against the best family of each task, and paired against two of them."""
    lines, regrets, tests = [], defaultdict(list), []
    for (table, task), cells in grouped.items():
        if table != "auto":
            continue
        means = {name: np.mean([cell[name] for cell in cells]) for name in (*_FAMILIES, "auto")}
        best = min(_FAMILIES, key=lambda name: means[name])
        regret = float(np.log(means["auto"] / means[best]))
        regrets["digits" if task.startswith("digits") else "regression"].append(regret)
        line = f"auto {task}: best {best}, log-regret {regret:.3f}"
        for name in ("uniform", "target"):
            gap = np.array([cell["auto"] - cell[name] for cell in cells])
            error = gap.std(ddof=1) / len(gap) ** 0.5
            ratio = means["auto"] / means[name]
            tests.append(ttest_1samp(gap, 0, alternative="greater").pvalue if error else 1.0)
            line += f", to {name} {gap.mean() / error if error else 0:.2f} se, ratio {ratio:.3f}"
        lines.append(line)
    if tests:
        lines.append(f"auto, worse than uniform or target: least Holm p {_holm(tests):.2f}")
    lines += [
        f"auto, {kind}: mean log-regret {np.mean(each):.3f}" for kind, each in regrets.items()
    ]
    return lines
