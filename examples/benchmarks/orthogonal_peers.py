"""Instrumental variables beside DoubleML and EconML, on the designs of `orthogonal_designs`.

Each method tells the coefficients of T and T^2, and 95 % intervals. The outcome has a cause in
common with T; the instruments move T along a curve. Peers that are not installed are left out.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cells import Cell, Cells
from orthogonal_designs import DESIGNS, W_IV, Array
from scipy.stats import norm
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import cross_val_predict
from sklearn.multioutput import MultiOutputRegressor
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures

from skbilevel import NystroemRidge, OrthogonalIVRegressor

Z95 = norm.ppf(0.975)
_BOOTSTRAPS = {"SieveTSLS": 100, "DMLIV": 30}


class Problem(NamedTuple):
    """A sample, as a method sees it, and what only an oracle sees.

    Attributes
    ----------
    y : ndarray of shape (n,)
    T : ndarray of shape (n, p)
        The treatment and its powers.
    Z : ndarray of shape (n, 2)
    K : ndarray of shape (n, p)
        E[T | Z].
    folds : list of (ndarray, ndarray)
    seed : int
    groups : ndarray of shape (n,) or None
        Rows of a group are not independent.
    """

    y: Array
    T: Array
    Z: Array
    K: Array
    folds: list[tuple[Any, Any]]
    seed: int
    groups: Array | None = None


class Estimate(NamedTuple):
    """Coefficients (p,), and their intervals."""

    coef: Array
    low: Array
    high: Array

    @classmethod
    def wald(cls, coef: Array, stderr: Array) -> "Estimate":
        """Symmetric intervals."""
        return cls(coef, coef - Z95 * stderr, coef + Z95 * stderr)


Method = Callable[[Problem], Estimate]


def drawn(n: int, rep: int, kind: str = "poly") -> Problem:
    """Draw "poly", "linear" in T, "shift" (T + 1 is recorded for T), "delta" (misspecified), or
    "clusters" of rows, linear in T, where "clusters-z" share their instruments too."""
    if kind.startswith("clusters"):
        return _clusters(n, rep, kind == "clusters-z")
    design = DESIGNS["IV-poly delta=1" if kind == "delta" else "IV-poly"]
    s = design.draw(n, np.random.default_rng(555 * n + rep))
    y, T, K = s.y, s.D[:, 1:], s.K[:, 1:]
    if kind == "linear":
        return Problem(y - W_IV[2] * T[:, 1], T[:, :1], s.X, K[:, :1], s.folds, rep)
    if kind == "shift":
        T, K = (np.column_stack([A[:, 0] + 1, A[:, 1] + 2 * A[:, 0] + 1]) for A in (T, K))
    return Problem(y, T, s.X, K, s.folds, rep)


def _clusters(n: int, rep: int, same_instruments: bool) -> Problem:
    """Groups of five rows, which share .64 of the variance of what they do not see."""
    r, group = np.random.default_rng(555 * n + rep), np.arange(n) // 5
    X = r.uniform(-1, 1, (n, 2))
    X = X[5 * group] if same_instruments else X
    own, common = r.standard_normal((2, 2, n))
    (U, V), e = 0.8 * common[:, 5 * group] + 0.6 * own, r.standard_normal(n)
    first_stage = np.sin(np.pi * X[:, 0]) + X[:, 1]
    T = first_stage + 0.5 * (0.8 * U + 0.6 * V)
    fold = (r.permutation(n // 5) % 5)[group]
    folds = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5)]
    y = 0.5 + T + U + 0.5 * e
    return Problem(y, T[:, None], X, first_stage[:, None], folds, rep, group)


def truth(kind: str) -> Array:
    """The coefficients of T and its powers."""
    if kind == "delta":
        return DESIGNS["IV-poly delta=1"].root[1:]
    if kind == "shift":
        return np.array([4.0, -1.5])
    return W_IV[1:] if kind == "poly" else W_IV[1:2]


def _powers(problem: Problem) -> PolynomialFeatures:
    return PolynomialFeatures(problem.T.shape[1], include_bias=False)


def _squares(Z: Array) -> Array:
    return PolynomialFeatures(2, include_bias=False).fit_transform(Z)


def _boosting() -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(random_state=0)


def two_stage(problem: Problem, instruments: Callable[[Problem], Array]) -> Estimate:
    """Two-stage least squares with a constant, and robust standard errors."""
    one = np.ones((len(problem.y), 1))
    T, Z = np.hstack([one, problem.T]), np.hstack([one, instruments(problem)])
    fitted = Z @ np.linalg.lstsq(Z, T, rcond=None)[0]
    inverse = np.linalg.inv(fitted.T @ T)
    coef = inverse @ fitted.T @ problem.y
    rows = fitted * (problem.y - T @ coef)[:, None]
    if problem.groups is not None:
        rows = np.array(
            [rows[problem.groups == group].sum(axis=0) for group in np.unique(problem.groups)]
        )
    stderr = np.sqrt(np.diag(inverse @ rows.T @ rows @ inverse.T))
    return Estimate.wald(coef[1:], stderr[1:])


def skbilevel(problem: Problem, **parameters: Any) -> Estimate:
    """`OrthogonalIVRegressor` on the raw treatment and instruments."""
    model = OrthogonalIVRegressor(_powers(problem), random_state=problem.seed, **parameters)
    model.fit(problem.T[:, :1], problem.y, problem.Z, groups=problem.groups)
    return Estimate(model.coef_, *model.conf_int().T)


def ortho_iv(problem: Problem, squares: bool = False, **parameters: Any) -> Estimate:
    """EconML's OrthoIV with the powers as featurizer of the treatment."""
    from econml.iv.dml import OrthoIV  # noqa: PLC0415

    model = OrthoIV(treatment_featurizer=_powers(problem), random_state=problem.seed, **parameters)
    Z = _squares(problem.Z) if squares else problem.Z
    model.fit(problem.y, problem.T[:, :1], Z=Z, groups=problem.groups)
    low, high = model.intercept__interval(alpha=0.05)
    return Estimate(*map(np.ravel, (model.intercept_, low, high)))


def _learnt(learner: Any) -> dict[str, Any]:
    """Settings of an EconML estimator without covariates: means but for E[T | Z]."""
    means = {"model_y_xw": DummyRegressor(), "model_t_xw": DummyRegressor()}
    return {"cv": 5, "model_t_xwz": learner, **means}


def _bootstrap(problem: Problem, name: str) -> Any:
    from econml.inference import BootstrapInference  # noqa: PLC0415

    np.random.seed(problem.seed)  # noqa: NPY002  It takes no generator.
    return BootstrapInference(_BOOTSTRAPS[name], n_jobs=1)


def dml_iv(problem: Problem) -> Estimate:
    """EconML's DMLIV, whose intervals are by bootstrap only."""
    from econml.iv.dml import DMLIV  # noqa: PLC0415

    parameters = _learnt(NystroemRidge())
    model = DMLIV(treatment_featurizer=_powers(problem), random_state=problem.seed, **parameters)
    bootstrap = _bootstrap(problem, "DMLIV")
    model.fit(problem.y, problem.T[:, :1], Z=problem.Z, inference=bootstrap)
    low, high = model.const_marginal_effect_interval(alpha=0.05)
    return Estimate(*map(np.ravel, (model.const_marginal_effect(), low, high)))


def sieve(problem: Problem, instruments: Callable[[], Any]) -> Estimate:
    """EconML's SieveTSLS, whose intervals are by bootstrap only."""
    from econml.iv.sieve import DPolynomialFeatures, SieveTSLS  # noqa: PLC0415

    model = SieveTSLS(
        t_featurizer=PolynomialFeatures(1, include_bias=False),
        x_featurizer=FunctionTransformer(),
        z_featurizer=instruments(),
        dt_featurizer=DPolynomialFeatures(1, include_bias=False),
    )
    one, p = np.ones((len(problem.y), 1)), problem.T.shape[1]
    bootstrap = _bootstrap(problem, "SieveTSLS")
    model.fit(problem.y, problem.T, Z=problem.Z, X=one, inference=bootstrap)
    steps = {"X": np.ones((p, 1)), "T0": np.zeros((p, p)), "T1": np.eye(p)}
    return Estimate(model.effect(**steps), *model.effect_interval(**steps, alpha=0.05))


def _hermite() -> Any:
    from econml.iv.sieve import HermiteFeatures  # noqa: PLC0415

    return HermiteFeatures(3, joint=True)


def pliv(
    problem: Problem,
    instruments: Callable[[Problem], Array],
    others: bool = False,
    learner: Any = None,
) -> Estimate:
    """DoubleML's DoubleMLPLIV: one coefficient after another, not jointly.

    ``others=True``, its default, takes the other powers of T for exogenous covariates; False
    leaves them to the error. A constant stands for the covariates that it asks for.
    """
    data = _frame(problem, instruments(problem), others)
    from doubleml import DoubleMLPLIV  # noqa: PLC0415

    learners = [learner or DummyRegressor()] * 3
    model = DoubleMLPLIV(data, *learners, draw_sample_splitting=False)
    return _doubleml(model, problem)


def pliv_learnt(problem: Problem) -> Estimate:
    """The same with E[T | Z] by a learner, which only a private constructor of it has."""
    from doubleml import DoubleMLPLIV  # noqa: PLC0415

    data, mean = _frame(problem, problem.Z, others=False), DummyRegressor()
    model = DoubleMLPLIV._partialXZ(data, mean, NystroemRidge(), mean, draw_sample_splitting=False)
    return _doubleml(model, problem)


def _doubleml(model: Any, problem: Problem) -> Estimate:
    if problem.groups is None:
        model.set_sample_splitting(problem.folds)
    else:
        np.random.seed(problem.seed)  # noqa: NPY002  It takes no generator.
        model.draw_sample_splitting()
    model.fit()
    return Estimate(model.coef, *model.confint(level=0.95).to_numpy().T)


def _frame(problem: Problem, Z: Array, others: bool) -> Any:
    from doubleml import DoubleMLData  # noqa: PLC0415
    from pandas import DataFrame  # noqa: PLC0415

    columns = {f"t{j}": column for j, column in enumerate(problem.T.T)}
    instruments = {f"z{j}": column for j, column in enumerate(Z.T)}
    data = DataFrame({"y": problem.y, "one": 1.0, **columns, **instruments})
    clusters = None
    if problem.groups is not None:
        data["group"], clusters = problem.groups, "group"
    return DoubleMLData(
        data,
        "y",
        list(columns),
        ["one"],
        list(instruments),
        cluster_cols=clusters,
        use_other_treat_as_covariate=others,
    )


def _generated(problem: Problem) -> Array:
    """E[T | Z] learnt on other folds, (n, p)."""
    told = cross_val_predict(NystroemRidge(), problem.Z, problem.T, cv=problem.folds)
    return np.asarray(told).reshape(problem.T.shape)


def pliv_freed(problem: Problem) -> Estimate:
    """DoubleMLPLIV of each power by its generated instrument, less what the others tell of it.

    What is left out is then hardly correlated with the instrument. This is work of the user.
    """
    told = _generated(problem)
    told = told - told.mean(axis=0)
    freed = told @ np.linalg.inv(told.T @ told)
    each = [
        pliv(problem._replace(T=problem.T[:, [j]]), partial(_column, freed, j))
        for j in range(problem.T.shape[1])
    ]
    return Estimate(*map(np.concatenate, zip(*each, strict=True)))


def _column(columns: Array, j: int, _: Problem) -> Array:
    return columns[:, [j]] / columns[:, j].std()


def _of_squares(problem: Problem) -> Array:
    return _squares(problem.Z)


_SKBILEVEL: dict[str, Method] = {
    "OrthogonalIVRegressor": skbilevel,
    "the same, moment_score='instrument'": partial(skbilevel, moment_score="instrument"),
    "the same, boosting": partial(skbilevel, nuisance=_boosting()),
}
_BASELINES: dict[str, Method] = {
    "2SLS, squares": partial(two_stage, instruments=_of_squares),
    "2SLS, true means": partial(two_stage, instruments=lambda problem: problem.K),
    "OLS": partial(two_stage, instruments=lambda problem: problem.T),
}
_ECONML: dict[str, Method] = {
    "OrthoIV, defaults": ortho_iv,
    "OrthoIV, squares, defaults": partial(ortho_iv, squares=True),
    "OrthoIV, projection, defaults": partial(ortho_iv, projection=True),
    "OrthoIV, projection, NystroemRidge": partial(
        ortho_iv, projection=True, **_learnt(NystroemRidge())
    ),
    "OrthoIV, projection, boosting": partial(
        ortho_iv, projection=True, **_learnt(MultiOutputRegressor(_boosting()))
    ),
    "DMLIV, NystroemRidge, bootstrap": dml_iv,
    "SieveTSLS, squares, bootstrap": partial(
        sieve, instruments=lambda: PolynomialFeatures(2, include_bias=False)
    ),
    "SieveTSLS, Hermite, bootstrap": partial(sieve, instruments=_hermite),
}
_DOUBLEML: dict[str, Method] = {
    "PLIV, squares, others as covariates": partial(
        pliv, instruments=_of_squares, others=True, learner=NystroemRidge()
    ),
    "PLIV, squares, others left out": partial(pliv, instruments=_of_squares),
    "PLIV, generated instruments, others left out": partial(pliv, instruments=_generated),
    "PLIV, freed generated instruments, others left out": pliv_freed,
    "PLIV, private partialXZ, others left out": pliv_learnt,
}
_PACKAGES = {"econml": _ECONML, "doubleml": _DOUBLEML}
# Most repetitions with 1000 rows.
_SLOW = {
    "the same, boosting": 100,
    "OrthoIV, defaults": 100,
    "OrthoIV, squares, defaults": 100,
    "OrthoIV, projection, defaults": 100,
    "OrthoIV, projection, boosting": 100,
    "DMLIV, NystroemRidge, bootstrap": 20,
    "PLIV, squares, others as covariates": 20,
}
_FEW = ("OrthogonalIVRegressor", "the same, moment_score='instrument'", "2SLS, squares")
_FEW += ("OrthoIV, projection, defaults", "OrthoIV, projection, NystroemRidge")
_FEW += ("SieveTSLS, Hermite, bootstrap", *_DOUBLEML)


def methods(kind: str) -> dict[str, Method]:
    """Those that can be run, all of them on "poly"."""
    every = dict(_SKBILEVEL)
    for package, those in _PACKAGES.items():
        every |= those if find_spec(package) else {}
    every |= _BASELINES
    if kind.startswith("clusters"):
        return {name: every[name] for name in _FEW if name in every and "Sieve" not in name}
    return every if kind == "poly" else {name: every[name] for name in _FEW if name in every}


def _repetitions(name: str, n: int, reps: int) -> int:
    return min(reps, max(_SLOW[name] * 1000**2 // n**2, 1)) if name in _SLOW else reps


def figures(method: Method, kind: str, n: int, reps: int) -> Cell:
    """Coverage, error, width and seconds over repetitions."""
    found, seconds, warned = [], [], 0
    for rep in range(reps):
        problem = drawn(n, rep, kind)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            start = time.process_time()
            found.append(method(problem))
            seconds.append(time.process_time() - start)
        warned += any("standard error" in str(warning.message) for warning in caught)
    coef, low, high = map(np.array, zip(*found, strict=True))
    right = truth(kind)
    return {
        "reps": reps,
        "coverage": ((low <= right) & (right <= high)).mean(axis=0).tolist(),
        "RMSE": np.sqrt(((coef - right) ** 2).mean(axis=0)).tolist(),
        "bias": (coef - right).mean(axis=0).tolist(),
        "width": np.median(high - low, axis=0).tolist(),
        "cpu": float(np.median(seconds)),
        "warned": warned / reps,
    }


def table(cells: dict[str, Cell], kind: str, n: int) -> str:
    """Markdown, a row for each method; the standard error counts a repetition once."""
    lines = [
        "| | reps | coverage | RMSE | bias | width | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, cell in cells.items():
        name, *case = key.split("|")
        if case == [kind, str(n)]:
            share = float(np.mean(cell["coverage"]))
            error = np.sqrt(share * (1 - share) / cell["reps"])
            each = " | ".join(_each(cell[what]) for what in ("RMSE", "bias", "width"))
            told = f"{share:.3f} ± {error:.3f}"
            lines.append(f"| {name} | {cell['reps']} | {told} | {each} | {cell['cpu']:.2g} |")
    return "\n".join(lines)


def _each(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ("poly", "shift", "linear", "delta", "clusters", "clusters-z")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--n", type=int, nargs="+", default=[1000])
    parser.add_argument("--reps", type=int, default=100, help="slow methods have fewer")
    parser.add_argument("--features", action="store_true", help="only what each package can do")
    parser.add_argument("--json", type=Path, default=Path("results/orthogonal_peers.json"))
    arguments = parser.parse_args()
    if arguments.features:
        from orthogonal_peer_features import features_table  # noqa: PLC0415

        print(features_table())
        return
    cells = Cells(arguments.json)
    for kind in arguments.kinds:
        for n in arguments.n:
            for name, method in methods(kind).items():
                reps = _repetitions(name, n, arguments.reps)
                run = partial(figures, method, kind, n, reps)
                cells.measure(f"{name}|{kind}|{n}", run)
            print(f"\n{kind}, n = {n}\n\n{table(cells.measured, kind, n)}\n")
    used = [*(package for package in _PACKAGES if find_spec(package)), "scikit-learn", "numpy"]
    print(json.dumps({package: version(package) for package in used}))


if __name__ == "__main__":
    main()
