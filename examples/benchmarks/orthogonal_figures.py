"""Figures of orthogonal gradients on the designs: what each method says in one draw, and tables.

A method is a way to learn nuisances and a score. Of each the gradient at the design's omega, the
root, and the test of stationarity at the true root are kept, with their standard errors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from orthogonal_designs import DESIGNS, Design, Sample
from sklearn.base import clone

from skbilevel import NystroemRidge
from skbilevel.estimators.moment_fit import Design as Rows
from skbilevel.estimators.moment_fit import LinearMoment
from skbilevel.estimators.moment_learning import learner_of, linear_moments_of, repetitions_of

_Z = 1.959964


class Told(NamedTuple):
    """What a method says in one draw.

    Attributes
    ----------
    gradient, root : ndarray of shape (2, p)
        Error, and standard error.
    pvalue : float
        Of the test of stationarity at the true root.
    gap : float
        Largest move of the gradient by the correction, in standard errors.
    root_gap : float
        The same of the root.
    strength : float
        Least eigenvalue of the Hessian in standard errors.
    coef, cov : ndarray
        Of the root.
    """

    gradient: np.ndarray
    root: np.ndarray
    pvalue: float
    gap: float
    root_gap: float
    strength: float
    coef: np.ndarray
    cov: np.ndarray


@dataclass(frozen=True)
class Method:
    """Settings of `ConditionalMomentGradient`.

    Attributes
    ----------
    correction, score : str
    cross_fit : bool
    ridge : float or None
        Fixed, for nuisances of the first half of the rows and scores of the second.
    undersmooth : float
    default : bool
        Whether the nuisance is the default one, and what X tells of D is known.
    """

    correction: str = "second_order"
    score: str = "orthogonal"
    cross_fit: bool = True
    ridge: float | None = None
    undersmooth: float = 1.0
    default: bool = False

    def nuisance(self, design: Design) -> NystroemRidge:
        """With the centers and the bandwidth of the design, unless it is the default one."""
        nuisance = NystroemRidge() if self.default else clone(design.nuisance)
        if self.ridge is not None:
            nuisance.set_params(ridge=self.ridge)
        return nuisance.set_params(undersmooth=self.undersmooth)

    def moment(self, design: Design, sample: Sample, seed: int) -> LinearMoment:
        """The conditional moment of a draw."""
        cv: Any = sample.folds
        if self.ridge is not None:
            cv = [tuple(np.array_split(np.arange(len(sample.y)), 2))]
        settings = self.correction, self.score, seed, self.cross_fit
        learner = learner_of(self.nuisance(design), *settings)
        repetitions = repetitions_of(sample.X, None, cv, 1, seed, self.cross_fit)
        known = sample.extra.get("psi") if self.default else None
        parts = sample.X, sample.y, sample.D, learner, repetitions, self.score, known
        return linear_moments_of(*parts)[0]


METHODS = {
    "second order": Method(),
    "default": Method(default=True),
    "first order": Method("none"),
    "disjoint": Method("disjoint"),
    "no cross-fitting": Method("none", cross_fit=False),
    "plug-in": Method("none", "plug_in", cross_fit=False),
    "plug-in product": Method("none", "plug_in_product", cross_fit=False),
    "instrument": Method("none", "instrument"),
    "fixed .1": Method("none", "plug_in_product", ridge=0.1),
    "fixed .01": Method("none", "plug_in_product", ridge=0.01),
    "fixed .001": Method("none", "plug_in_product", ridge=0.001),
}


def oracle(sample: Sample) -> LinearMoment:
    """The moment with the true nuisances."""
    n, p = sample.D.shape
    rows = Rows("orthogonal", np.zeros(n, dtype=int))
    shared, unknown = np.zeros((1, p + 1, p + 1)), np.full(p + 1, np.nan)
    return LinearMoment(sample.y, sample.D, sample.mu, sample.K, shared, unknown, rows)


def told(moment: LinearMoment, design: Design) -> Told:
    """What a moment says."""
    at, root = moment.at(design.omega).gradient(), moment.root()
    test = moment.at(design.root).gradient().stationarity_test()
    found = root.diagnostics_
    return Told(
        np.stack([at.coef_ - design.gradient, at.stderr_]),
        np.stack([root.coef_ - design.root, root.stderr_]),
        test.pvalue,
        float(at.diagnostics_.gap.max()),
        float(found.gap.max()),
        found.least_eigenvalue / found.least_eigenvalue_stderr,
        root.coef_,
        root.cov_,
    )


def draws(
    name: str, n: int, methods: Iterable[str], n_draws: int, base: int = 1000
) -> dict[str, list[Told]]:
    """What each method and the oracle say in draws of the generators ``base n + draw``."""
    design = DESIGNS[name]
    found: dict[str, list[Told]] = {"oracle": [], **{method: [] for method in methods}}
    for number in range(n_draws):
        sample = design.draw(n, np.random.default_rng(base * n + number))
        found["oracle"].append(told(oracle(sample), design))
        for method in found:
            if method != "oracle":
                moment = METHODS[method].moment(design, sample, number)
                found[method].append(told(moment, design))
    return found


def coverage(each: list[Told], part: str, coordinates: slice) -> float:
    """Share of the coordinates whose interval of 95 % covers the truth."""
    inside = [np.abs(getattr(t, part)[0]) <= _Z * getattr(t, part)[1] for t in each]
    return float(np.mean([row[coordinates] for row in inside]))


def coverage_stderr(each: list[Told], part: str, coordinates: slice) -> float:
    """Of a coverage: coordinates of one draw are not independent."""
    inside = [np.abs(getattr(t, part)[0]) <= _Z * getattr(t, part)[1] for t in each]
    means = np.array([row[coordinates].mean() for row in inside])
    return float(means.std(ddof=1) / np.sqrt(len(means)))


def rmse(each: list[Told], part: str, coordinates: slice = slice(None)) -> float:
    """Root of the mean over draws of the sum over coordinates of squared errors."""
    errors = np.stack([getattr(t, part)[0][coordinates] for t in each])
    return float(np.sqrt(np.square(errors).sum(axis=1).mean()))


def size(each: list[Told]) -> float:
    """Share of the draws in which a test at 5 % rejects the true root."""
    return float(np.mean([t.pvalue < 0.05 for t in each]))


def flagged(each: list[Told], part: Callable[[Told], bool]) -> float:
    """Share of the draws of which that is so."""
    return float(np.mean([part(t) for t in each]))


def lines(name: str, n: int, found: dict[str, list[Told]]) -> list[str]:
    """A table, a row for each method."""
    coordinates = DESIGNS[name].coordinates
    best = {part: rmse(found["oracle"], part) for part in ("gradient", "root")}
    table = [
        f"{name}, n = {n}, {len(found['oracle'])} draws",
        f"{'':18s}{'gradient':>12s}{'RMSE':>9s}{'/oracle':>8s}{'root':>12s}{'RMSE':>9s}"
        f"{'/oracle':>8s}{'size':>7s}{'gap>.5':>8s}{'weak':>6s}",
    ]
    for method, each in found.items():
        cells = f"{method:18s}"
        for part in ("gradient", "root"):
            some = coordinates if part == "gradient" else slice(None)
            inside, error = coverage(each, part, some), coverage_stderr(each, part, some)
            cells += f"{inside:7.3f}±{error:.3f}{rmse(each, part):9.4f}"
            cells += f"{rmse(each, part) / best[part]:8.3f}"
        rough = flagged(each, lambda t: t.gap > 0.5)
        weak = flagged(each, lambda t: t.strength < 2)
        table.append(f"{cells}{size(each):7.3f}{rough:8.2f}{weak:6.2f}")
    return table
