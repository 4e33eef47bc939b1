"""
Does the interval of a hypergradient hold?
==========================================

The gradient of a bilevel objective whose inner problem is a regression is made of conditional
means that are learnt. A confidence interval of it should hold as often as it says, with errors of
these means and all. Here it is put to the test on instrumental variables, where the gradient is
known: by the orthogonal score of El Khoury, Zenati, Kallus, Arbel and Bibaut (2026), beside the
score with the true conditional means (the oracle), two plug-ins, and a kernel ridge regression
with a fixed penalty. The source claims that its estimate keeps up with the oracle, that 95 %
intervals hold, and that plug-ins and a fixed penalty fail, the latter the more, the more rows
there are.

What not to expect: the source's figures, since its designs are not known and this one is our own;
nor a smaller error than that of a plug-in. With a smooth learner that tunes itself all errors are
much the same, and it is the interval that is wrong. And nothing is said here of rough learners:
where conditional means are learnt badly, intervals of an orthogonal score fail too, as they do
with 250 rows by a little.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np

from skbilevel import ConditionalMomentGradient, NystroemRidge

# Estimators warn where the correction for shared noise is large, with few rows for example.
warnings.filterwarnings("ignore", message="The correction for what nuisances share")

# %%
# T depends on the instruments X by g(X), and shares the noise U with the outcome. The residual is
# ``r = omega'(1, T, T^2) - y``, its slopes are ``D = (1, T, T^2)``. An oracle knows their means
# given X. The gradient of ``1/2 E[E[r | X]^2]`` at omega = 0 is ``-E[E[D | X] E[y | X]]``, here to
# four digits by numerical integration.

OMEGA = np.array([0.5, 1.0, -1.5])
TRUTH = np.array([1.125, -0.8333, 2.5396])


def draw(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (n, 2))
    U, V, noise = rng.standard_normal((3, n))
    g = np.sin(np.pi * X[:, 0]) + X[:, 1]
    T = g + 0.4 * U + 0.3 * V
    D = np.column_stack([np.ones(n), T, T**2])
    kappa = np.column_stack([np.ones(n), g, g**2 + 0.25])
    return X, D, D @ OMEGA + U + 0.5 * noise, kappa


# %%
# The residual is written in NumPy, with its derivative. A fixed penalty goes the way of its
# source: the inner problem gets one half of the rows, and the gradient is taken on the other.


def residual(omega, data):
    return data["D"] @ omega - data["y"]


def slopes(omega, data):
    return data["D"]


tuned = NystroemRidge(n_centers=60, bandwidth=1.0)
fixed = NystroemRidge(n_centers=60, bandwidth=1.0, ridge=0.01)
same_rows = {"nuisance": tuned, "correction": "none", "cross_fit": False}
WAYS = {
    "orthogonal": {"nuisance": tuned, "correction": "second_order"},
    "orthogonal, first order": {"nuisance": tuned, "correction": "none"},
    "plug-in, rho D": {"score": "plug_in", **same_rows},
    "plug-in, rho kappa": {"score": "plug_in_product", **same_rows},
    "fixed penalty, rho kappa": {"nuisance": fixed, "score": "plug_in_product"},
}


def estimate(way, X, D, y):
    n = len(y)
    halves = [(np.arange(n // 2), np.arange(n // 2, n))]
    settings = WAYS[way] | ({"cv": halves} if "fixed" in way else {})
    model = ConditionalMomentGradient(residual, jac=slopes, random_state=0, **settings)
    found = model.fit(X, {"D": D, "y": y}).gradient(np.zeros(3))
    return found.coef_, found.stderr_


def oracle(D, y, kappa):
    rho = -kappa @ OMEGA
    scores = rho[:, None] * D - y[:, None] * kappa - rho[:, None] * kappa
    return scores.mean(axis=0), scores.std(axis=0, ddof=1) / np.sqrt(len(y))


# %%
# Repeated draws. The first coordinate needs no conditional mean, as its slope is 1; what follows
# is about the other two. The standard error of a share is at most that of as many coins as there
# are draws.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
SIZES, n_draws = ((250, 1000), 30) if quick else ((250, 1000, 4000), 120)
names = ["oracle", *WAYS]
covers = {name: np.zeros((len(SIZES), n_draws)) for name in names}
errors = {name: np.zeros((len(SIZES), n_draws)) for name in names}
ratios = {name: np.zeros((len(SIZES), n_draws)) for name in names}
for row, n in enumerate(SIZES):
    for column in range(n_draws):
        X, D, y, kappa = draw(n, seed=1000 * n + column)
        for name in names:
            found = oracle(D, y, kappa) if name == "oracle" else estimate(name, X, D, y)
            error, stderr = found[0][1:] - TRUTH[1:], found[1][1:]
            covers[name][row, column] = (np.abs(error) <= 1.96 * stderr).mean()
            errors[name][row, column] = np.square(error).sum()
            ratios[name][row, column] = np.square(stderr).sum()

print(f"{'coverage of 95 % intervals':28s}" + "".join(f"{n:>14d}" for n in SIZES))
coverage = {name: each.mean(axis=1) for name, each in covers.items()}
binomial = {name: np.sqrt(c * (1 - c) / n_draws) for name, c in coverage.items()}
for name in names:
    pairs = zip(coverage[name], binomial[name], strict=True)
    print(f"{name:28s}" + "".join(f"{mean:8.3f}+-{se:.3f}" for mean, se in pairs))
print(f"\n{'RMSE, and that by stderr_':28s}" + "".join(f"{n:>14d}" for n in SIZES))
rmse = {name: np.sqrt(each.mean(axis=1)) for name, each in errors.items()}
for name in names:
    told = np.sqrt(ratios[name].mean(axis=1))
    pairs = zip(rmse[name], told, strict=True)
    print(f"{name:28s}" + "".join(f"{mean:8.3f}{each:6.3f}" for mean, each in pairs))

# %%
# Both plug-ins have the error of the oracle, and standard errors that know nothing of what was
# learnt: more rows do not mend that. The error of a fixed penalty does not go to 0, and its
# intervals shrink around the wrong number.

figure, axes = plt.subplots(1, 2, figsize=(10, 4))
for number, name in enumerate(names):
    style = {"color": "black", "linestyle": ":"} if name == "oracle" else {}
    at = np.array(SIZES) * 1.03 ** (number - 2.5)
    axes[0].errorbar(at, coverage[name], binomial[name], marker="o", ms=4, label=name, **style)
    axes[1].plot(SIZES, rmse[name], marker="o", ms=4, label=name, **style)
axes[0].axhline(0.95, color="0.7", linewidth=1)
axes[0].set(title="coverage of nominal 95 % intervals", ylim=(0, 1.02))
axes[1].set(title="RMSE of the gradient, two coordinates", yscale="log")
for axis in axes:
    axis.set(xscale="log", xlabel="rows")
    axis.set_xticks(SIZES, SIZES)
    axis.minorticks_off()
axes[0].legend(fontsize="x-small", loc="lower left", bbox_to_anchor=(0, 0.12))
figure.tight_layout()
