"""Benchmarks of orthogonal gradients: `python bench_orthogonal.py --help` lists the tables.

The designs are those of `orthogonal_designs`, with known gradients, roots and values.
"""

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from orthogonal_designs import (
    DESIGNS,
    GAMMA,
    POLICY,
    W_FQE,
    Sample,
    initial_features,
    initial_states,
    policy_nuisance,
    q_features,
)
from orthogonal_figures import _Z, METHODS, draws, lines
from record import circumstances
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.neighbors import KNeighborsRegressor

from skbilevel import ConditionalMomentGradient, OrthogonalFQE

_HARD = ("second order", "default", "first order", "disjoint", "plug-in")


def gradients(n_draws: int) -> list[str]:
    """Coverage and error of every method, n = 1000."""
    methods = [name for name in METHODS if name != "disjoint"]
    return _both(1000, methods, n_draws, base=1000)


def roots(n_draws: int) -> list[str]:
    """The same in other draws, those of roots and of tests."""
    methods = ("second order", "default", "first order", "disjoint", "instrument", "plug-in")
    return [line for n in (500, 1000) for line in _both(n, methods, n_draws, base=555)]


def _both(n: int, methods: Iterable[str], n_draws: int, base: int) -> list[str]:
    return [
        line
        for name in ("IV-poly", "FQE")
        for line in lines(name, n, draws(name, n, methods, n_draws, base))
    ]


def growing(n_draws: int) -> list[str]:
    """The same for other n, without the variants."""
    methods = ("second order", "first order", "plug-in", "plug-in product", "fixed .01")
    return [line for n in (500, 2000, 4000) for line in _both(n, methods, n_draws, base=1000)]


def hard(n_draws: int) -> list[str]:
    """Where nuisances are hard to learn."""
    cases = (("IV-sin", 500), ("IV-sin", 1000), ("IV-4D", 500), ("IV-4D", 1000))
    return [line for name, n in cases for line in lines(name, n, draws(name, n, _HARD, n_draws))]


def learners(n_draws: int) -> list[str]:
    """Other nuisances on IV-poly, n = 1000, by disjoint halves."""
    trees = {"min_samples_leaf": 5, "random_state": 0}
    nuisances = {
        "random forest": RandomForestRegressor(50, **trees),
        "extra trees": ExtraTreesRegressor(50, **trees),
        "boosting": HistGradientBoostingRegressor(random_state=0),
        "nearest neighbours": KNeighborsRegressor(15),
        "default": None,
    }
    design, table = DESIGNS["IV-poly"], []
    for name, nuisance in nuisances.items():
        found = []
        for number in range(n_draws):
            sample = design.draw(1000, default_rng(7_000_000 + number))
            model = ConditionalMomentGradient(
                _linear, nuisance, jac=_slopes, cv=sample.folds, random_state=number
            ).fit(sample.X, (sample.y, sample.D))
            gradient = model.gradient(design.omega)
            inside = np.abs(gradient.coef_ - design.gradient) <= _Z * gradient.stderr_
            found.append((inside[1:].mean(), gradient.diagnostics_.gap.max() > 0.5))
        covered, flagged = np.transpose(found)
        spread = covered.std(ddof=1) / np.sqrt(n_draws)
        table.append(
            f"{name:20s}{covered.mean():7.3f}±{spread:.3f}  gap > .5: {flagged.mean():.2f}"
        )
    return table


def misspecified(n_draws: int) -> list[str]:
    """IV-poly with an outcome that no omega explains, beside two-stage least squares."""
    name = "IV-poly delta=1"
    methods = ("second order", "default", "first order", "instrument", "plug-in", "fixed .01")
    table = lines(name, 1000, draws(name, 1000, methods, n_draws))
    design, inside, errors = DESIGNS[name], [], []
    for number in range(n_draws):
        omega, stderr = two_stage(design.draw(1000, default_rng(1_000_000 + number)))
        errors.append(omega - design.root)
        inside.append(np.abs(errors[-1]) <= _Z * stderr)
    rmse = np.sqrt(np.square(errors).sum(axis=1).mean())
    return [*table, f"2SLS, quadratic instruments: root {np.mean(inside):.3f}, RMSE {rmse:.3f}"]


def two_stage(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Two-stage least squares with a quadratic of X as instruments, and robust errors."""
    x1, x2 = sample.X[:, 0], sample.X[:, 1]
    Z = np.column_stack([np.ones(len(x1)), x1, x2, x1**2, x2**2, x1 * x2])
    return by_instruments(Z @ np.linalg.lstsq(Z, sample.D, rcond=None)[0], sample.D, sample.y)


def by_instruments(K: np.ndarray, D: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where mean[K (D'omega - y)] is 0, and its robust standard errors."""
    omega, covariance = with_covariance(K, D, y)
    return omega, np.sqrt(np.diag(covariance))


def with_covariance(K: np.ndarray, D: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with the covariance of all of omega."""
    bread = np.linalg.inv(K.T @ D)
    omega = bread @ (K.T @ y)
    scores = K * (D @ omega - y)[:, None]
    return omega, bread @ (scores.T @ scores) @ bread.T


def values(n_draws: int) -> list[str]:
    """Value of a policy: coverage and error of intervals, by `OrthogonalFQE` and its peers."""
    along, table = initial_features(), []
    truth = along @ W_FQE
    for n in (500, 1000, 2000):
        found: dict[str, list[tuple[float, float]]] = {}
        for number in range(n_draws):
            sample = DESIGNS["FQE"].draw(n, default_rng(555 * n + number))
            for name, (value, stderr) in policy_values(sample, along, number).items():
                found.setdefault(name, []).append((value - truth, stderr))
        table.append(f"value of the policy, n = {n}, {n_draws} draws")
        for name, each in found.items():
            errors, stderrs = np.transpose(each)
            inside = np.abs(errors) <= _Z * stderrs
            spread = inside.std(ddof=1) / np.sqrt(n_draws)
            rmse = np.sqrt(np.mean(errors**2))
            table.append(f"{name:24s}{inside.mean():7.3f}±{spread:.3f}  RMSE {rmse:.4f}")
    return table


def policy_values(sample: Sample, along: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """The value by each method, and its standard error."""
    extra = sample.extra
    transitions = extra["S"], extra["A"], sample.y, extra["S_next"]
    found = {}
    nuisance = {"nuisance": policy_nuisance()}
    for name, settings in {
        "OrthogonalFQE": nuisance,
        "default nuisance": {},
        "first order": {**nuisance, "correction": "none"},
        "instrument": {**nuisance, "score": "instrument"},
        "plug-in": {**nuisance, "score": "plug_in", "cross_fit": False},
    }.items():
        model = OrthogonalFQE(
            [1 - POLICY, POLICY], GAMMA, q_features, cv=sample.folds, random_state=seed, **settings
        ).fit(*transitions, initial_states=initial_states())
        found[name] = model.value_, model.value_stderr_
    peers = {"LSTDQ": extra["psi"], "squared Bellman residual": sample.D}
    for name, K in peers.items():
        omega, covariance = with_covariance(K, sample.D, sample.y)
        found[name] = float(along @ omega), float(np.sqrt(along @ covariance @ along))
    return found


def seconds(n_draws: int) -> list[str]:
    """CPU time of one gradient with the default nuisance, its median over draws, and memory."""
    table = []
    for n in (1000, 4000, 10_000, 100_000):
        for name in ("IV-poly", "FQE"):
            times = []
            for number in range(min(n_draws, 5 if n < 100_000 else 1)):
                sample = DESIGNS[name].draw(n, default_rng(number))
                start = time.process_time()
                model = ConditionalMomentGradient(_linear, jac=_slopes, random_state=0)
                model.fit(sample.X, (sample.y, sample.D)).gradient(DESIGNS[name].omega)
                times.append(time.process_time() - start)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            taken = np.median(times)
            table.append(f"{name:8s} n = {n:6d}: {taken:6.2f} CPU s, peak {peak:.0f} MB")
    return table


def _linear(omega: np.ndarray, data: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return data[1] @ omega - data[0]


def _slopes(omega: np.ndarray, data: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return data[1]


TABLES: dict[str, tuple[Callable[[int], list[str]], int]] = {
    "gradients": (gradients, 400),
    "roots": (roots, 400),
    "growing": (growing, 400),
    "hard": (hard, 200),
    "learners": (learners, 40),
    "misspecified": (misspecified, 120),
    "values": (values, 60),
    "seconds": (seconds, 5),
}


def main() -> None:
    """Print the tables that are asked for, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="all by default")
    parser.add_argument("--draws", type=int, help="instead of those of each table")
    parser.add_argument("--output", type=Path, default=Path("results/bench_orthogonal.json"))
    options = parser.parse_args()
    found = {}
    for name in options.tables or TABLES:
        run, n_draws = TABLES[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found[name] = run(options.draws or n_draws)
        print("\n".join(found[name]), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**circumstances(), "tables": found}, indent=1))


if __name__ == "__main__":
    main()
