"""What the cells of `bench_bilevel.py` say: means, standard errors and paired intervals."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Cells = dict[str, dict[str, Any]]
Array = NDArray[np.float64]


def summary(table: str, cells: Cells) -> Iterator[str]:
    """Lines about the cells of a table; none if there are no such cells."""
    of_table = {key: cell for key, cell in cells.items() if key.split()[0] == table}
    return _SUMMARIES[table](of_table) if of_table else iter(())


def by_case(cells: Cells) -> dict[str, Cells]:
    """Cells of each case by seed: a key is the table, the case, and the seed."""
    cases: dict[str, Cells] = {}
    for key, cell in cells.items():
        _, *case, seed = key.split()
        cases.setdefault(" ".join(case), {})[seed] = cell
    return cases


def column(of_seeds: Cells, name: str) -> Array:
    """One figure of all seeds."""
    return np.array([cell[name] for cell in of_seeds.values()])


def mean_and_error(values: Array) -> str:
    """Mean and its standard error."""
    if len(values) < 2:
        return f"{values.mean():.4f}"
    return f"{values.mean():.4f}+-{stats.sem(values):.4f}"


def interval(values: Array) -> str:
    """Mean and the 95 % interval of Student's t."""
    if len(values) < 2:
        return f"{values.mean():+.3f}"
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values) or 1e-12)
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def _imputation(cells: Cells) -> Iterator[str]:
    rivals = ("GaussianImputer", "iterative trees", "IterativeImputer", "KNNImputer", "mean")
    yield f"{'error relative to':28s}" + "".join(f"{who:>18s}" for who in (*rivals, "better of 2"))
    ratios = []
    for case, of_seeds in by_case(cells).items():
        own = column(of_seeds, "BilevelImputer")
        against = np.array([own / column(of_seeds, who) for who in rivals])
        better = against[:2].max(axis=0)
        ratios.append(np.vstack([against, better[np.newaxis]]))
        told = [mean_and_error(each) for each in (*against, better)]
        yield f"{case:28s}" + "".join(f"{each:>18s}" for each in told)
    every = np.hstack(ratios)
    yield f"cells with at most 1.03 of the better of the first two: {_share(every[-1] <= 1.03)}"
    yield f"below IterativeImputer: {_share(every[2] < 1)}; KNNImputer: {_share(every[3] < 1)}"


def _share(is_true: NDArray[np.bool_]) -> str:
    return f"{int(is_true.sum())} of {len(is_true)}"


def _prediction(cells: Cells) -> Iterator[str]:
    who = ("student", "network on mask", "boosting", "EM + linear", "constant")
    yield f"{'R2 or accuracy':28s}" + "".join(f"{each:>18s}" for each in who)
    behind_network, behind_boosting, few = [], [], 0
    for case, of_seeds in by_case(cells).items():
        scores = [column(of_seeds, each) for each in who]
        yield f"{case:28s}" + "".join(f"{mean_and_error(each):>18s}" for each in scores)
        if scores[0].mean() < scores[1].mean() - 0.01:
            behind_network.append(case)
        if not case.endswith("1.0"):
            few += 1
            if scores[0].mean() <= scores[2].mean():
                behind_boosting.append(case)
    yield f"behind the network on the mask by more than .01: {behind_network or 'nowhere'}"
    yield f"not above boosting, of {few} cases with few labels: {behind_boosting or 'nowhere'}"


def _tilt(cells: Cells) -> Iterator[str]:
    rivals = ("EM", "IterativeImputer", "boosting")
    cases = by_case(cells)
    names = sorted({_mechanism(case) for case in cases})
    for name in names:
        of_name = {case: each for case, each in cases.items() if _mechanism(case) == name}
        yield f"{name}: error / that of EM; score minus that of ... + indicators + ridge; accepted"
        for case, of_seeds in of_name.items():
            ratio = column(of_seeds, "bilevel rmse") / column(of_seeds, "EM rmse")
            gains = [column(of_seeds, "bilevel score") - _score(of_seeds, who) for who in rivals]
            told = "  ".join(f"{who} {interval(g)}" for who, g in zip(rivals, gains, strict=True))
            accepted = column(of_seeds, "accepted")
            which = case.removeprefix(name).strip()
            yield f"  {which:18s} {_log_interval(ratio)}  {told}  {accepted.mean():.2f}"
        yield from _pooled(of_name, rivals)


def _mechanism(case: str) -> str:
    """Of a case of the tilt, without the name of its set."""
    known = ("soft, all labels, lines", "soft, all labels", "soft", "alternating", "hard")
    known += ("MAR", "MCAR", "placebo")
    return next(name for name in known if case.startswith(f"{name} "))


def _score(of_seeds: Cells, who: str) -> Array:
    return column(of_seeds, f"{who} score")


def _log_interval(ratios: Array) -> str:
    """Geometric mean and 95 % interval."""
    logs = np.log(ratios)
    if len(logs) < 2:
        return f"{np.exp(logs.mean()):.3f}"
    ends = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs) or 1e-12)
    return f"{np.exp(logs.mean()):.3f} [{np.exp(ends[0]):.3f}, {np.exp(ends[1]):.3f}]"


def _pooled(of_name: dict[str, Cells], rivals: Iterable[str]) -> Iterator[str]:
    """Means over sets, paired by seed."""
    seeds = sorted(set.intersection(*(set(each) for each in of_name.values())), key=int)
    if not seeds:
        return

    def pooled(figure: Callable[[dict[str, Any]], float]) -> Array:
        return np.array([[figure(each[seed]) for each in of_name.values()] for seed in seeds])

    ratio = np.exp(np.log(pooled(lambda c: c["bilevel rmse"] / c["EM rmse"])).mean(axis=1))
    accepted = pooled(lambda cell: float(cell["accepted"])).mean()
    gains = {
        who: pooled(lambda c, who=who: c["bilevel score"] - c[f"{who} score"]).mean(axis=1)
        for who in rivals
    }
    told = "  ".join(f"{who} {interval(gain)}" for who, gain in gains.items())
    yield f"  {'all':18s} {_log_interval(ratio)}  {told}  {accepted:.2f}"


def _teacher(cells: Cells) -> Iterator[str]:
    cases = by_case(cells)
    values = {"student": [], "rmse": []}
    for of_seeds in cases.values():
        for what, sign in (("student", 1.0), ("rmse", -1.0)):
            with_loop, without = (column(of_seeds, f"{what} {w}") for w in (1.0, 0.0))
            values[what].append(sign * (with_loop - without))
    adjusted = {what: holm([_worse(each) for each in gains]) for what, gains in values.items()}
    yield "gain by the outer loop of the teacher; p that it harms, adjusted after Holm; kept"
    for number, (case, of_seeds) in enumerate(cases.items()):
        told = [
            f"{what} {interval(values[what][number])} p {adjusted[what][number]:.2f}"
            for what in values
        ]
        kept = np.mean([cell["selected 1.0"] == "bilevel" for cell in of_seeds.values()])
        yield f"{case:22s} {'  '.join(told)}  {kept:.2f}"


def _worse(gains: Array) -> float:
    """One-sided p value that the mean gain is below zero."""
    if len(gains) < 2 or not gains.any():
        return 1.0
    return float(stats.ttest_1samp(gains, 0.0, alternative="less").pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p values, in the same order."""
    order = np.argsort(p_values)
    scaled = np.array(p_values)[order] * (len(p_values) - np.arange(len(p_values)))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted.tolist()


def _air(cells: Cells) -> Iterator[str]:
    for case, of_seeds in by_case(cells).items():
        told = [
            f"{who} {mean_and_error(column(of_seeds, f'{who} MSE'))}"
            for who in ("student", "boosting", "persistence")
        ]
        yield f"{case}: MSE {', '.join(told)}"


def _leak(cells: Cells) -> Iterator[str]:
    yield "loss on new rows / on rows aside, and on new rows, each at the start and at the end"
    for case, of_seeds in by_case(cells).items():
        aside, new = (np.array([cell[what] for cell in of_seeds.values()]) for what in _LOSSES)
        ratio = new / aside
        told = [mean_and_error(part) for each in (ratio, new) for part in each.T]
        yield f"{case:16s}" + "".join(f"{each:>18s}" for each in told)


_LOSSES = ("aside", "new")


def _figures(cells: Cells) -> Iterator[str]:
    for case, of_seeds in by_case(cells).items():
        names = [name for name in next(iter(of_seeds.values())) if name != "seconds"]
        told = [f"{name} {mean_and_error(column(of_seeds, name))}" for name in names]
        yield f"{case}: {', '.join(told)}"


_SUMMARIES: dict[str, Callable[[Cells], Iterator[str]]] = {
    "imputation": _imputation,
    "prediction": _prediction,
    "tilt": _tilt,
    "teacher": _teacher,
    "air": _air,
    "leak": _leak,
    "seconds": _figures,
    "iteration": _figures,
}
