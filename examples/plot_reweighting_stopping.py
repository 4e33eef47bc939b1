"""
When have weights of sources been learnt?
=========================================

Training rows come from three sources, and weights of the sources are learnt for a few target rows.
Do rows of the target that the fit has not seen still ask for other weights? `hypergradient_test`
answers by the derivative of their loss in the logarithm of each weight, with intervals that know
the noise of these rows and of the training rows. And when may the descent stop? With
``tol="significance"`` it does where the derivative on its own target rows cannot be told from 0.

What not to expect: that stopping early makes a better model. Where one source is unlike the
target, the rule stops after about a third of the evaluations or fewer, and the error of the model
is two to five times that of a descent to the end: few target rows cannot tell what is left to
gain, and three weights hardly overfit them. It gains where sources do not differ: weights stay
equal, which is best. Nor is its p-value that of a test, since the rows that steer the weights
judge them: those of fresh rows, printed beside it, are what to go by.
"""

import os

import matplotlib.pyplot as plt
import numpy as np

from skbilevel import ReweightingRegressor, hypergradient_test

# %%
# In the first design one source is like the target, one near it and one far from it; in the second
# all are like it. Rows of the target are for the fit, for the test of its weights, and for the
# error that is wanted.

TARGET = np.array([1.0, -1.0, 0.5, 0.0])
DESIGNS = {
    "one source is far": [TARGET, [1.2, -0.8, 0.3, 0.2], [-1.0, 0.5, 1.0, 1.0]],
    "all are alike": [TARGET, TARGET, TARGET],
}
NAMES = ["like", "near", "far"]


def rows(slopes, n_rows, rng):
    X = rng.normal(size=(n_rows, 4))
    return X, X @ slopes + rng.normal(size=n_rows)


def learn(design, n_target, seed, **settings):
    rng = np.random.default_rng(seed)
    parts = [rows(slopes, 200, rng) for slopes in DESIGNS[design]]
    X, y = map(np.concatenate, zip(*parts, strict=True))
    X_val, y_val = rows(TARGET, n_target, rng)
    model = ReweightingRegressor(refit="train", l2=1e-4, **settings)
    return model.fit(X, y, X_val=X_val, y_val=y_val, source_groups=np.repeat(NAMES, 200))


# %%
# Before and after, in the first design: derivatives on 300 fresh rows at equal weights, and at
# those that were learnt. A negative number asks for more weight.

FRESH = rows(TARGET, 300, np.random.default_rng(1000))
MODELS = {
    "equal weights": {"weighting": "uniform"},
    "stopped": {"weighting": "group", "tol": "significance"},
    "to the end": {"weighting": "group"},
}
figure, axes = plt.subplots(1, 3, figsize=(14, 4))
for number, (name, settings) in enumerate(MODELS.items()):
    test = hypergradient_test(learn("one source is far", 60, seed=0, **settings), *FRESH)
    print(f"{name}\n{test.summary()}\n")
    low, high = test.conf_int().T
    place = np.arange(len(test.groups_)) + 0.2 * (number - 1)
    lengths = [test.coef_ - low, high - test.coef_]
    axes[0].errorbar(place, test.coef_, lengths, fmt="o", capsize=3, label=name)
axes[0].axhline(0, color="black", linewidth=1)
axes[0].set_xticks(range(len(test.groups_)), test.groups_)
axes[0].set(title="derivative on fresh rows", xlabel="log weight of a source")
axes[0].legend()

# %%
# What the rule costs and saves, over draws and numbers of target rows. "Excess" is the mean error
# of predictions on the target beyond its noise, here a squared distance of coefficients; "fresh p"
# is the median p-value on the 300 fresh rows, "own p" that of the rule where it stops, and "equal"
# the share of draws in which it stops at the start.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
SIZES, SEEDS = ([20, 200], range(5)) if quick else ([20, 50, 100, 200], range(20))
for axis, design in zip(axes[1:], DESIGNS, strict=True):
    print(f"{design}\n{'target':>6s}  {'':14s}{'excess':>8s}{'evaluations':>12s}", end="")
    print(f"{'fresh p':>9s}{'own p':>7s}{'equal':>7s}")
    for name, settings in MODELS.items():
        excess = []
        for n_target in SIZES:
            told = []
            for seed in SEEDS:
                model = learn(design, n_target, seed, **settings)
                error = np.sum((model.coef_ - TARGET) ** 2) + model.intercept_**2
                fresh = hypergradient_test(model, *FRESH).stationarity_test().pvalue
                own = model.history_.get("pvalue", [np.nan])[-1]
                told.append((error, model.n_iter_, fresh, own, np.ptp(model.weights_) < 1e-12))
            errors, n_iter, fresh, own, is_equal = np.transpose(told)
            excess.append(errors.mean())
            print(f"{n_target:6d}  {name:14s}{excess[-1]:8.4f}{n_iter.mean():12.1f}", end="")
            print(f"{np.median(fresh):9.1e}{np.median(own):7.2f}{is_equal.mean():7.0%}")
        axis.loglog(SIZES, excess, "o-", label=name)
    axis.set(title=f"error beyond the noise: {design}", xlabel="target rows of the fit")
    axis.legend()
figure.tight_layout()
