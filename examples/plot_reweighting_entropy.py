"""
How fast may weights move beside parameters?
============================================

Where parameters and weights of training rows take a step each, the ratio of the rate of the
weights to that of the parameters decides what the weights become. Their entropy shows it: log n
for n equal weights, log(n/2) when half of the rows count and count alike, as they should here, and
0 for a single row. It is followed for ratios from .01 to 100, in algorithm 2 of Ivanova and Ablin
(2023) and in SOBA, which solves no linear system. The curves lie in the order of the ratios, but
for a few steps of the largest. With ratios up to a tenth, weights are still on their way when the
run is over. With ratios of 10 and more they are past log(n/2) within ten steps and end with the
effect of fewer than ten rows: they have collapsed.

What not to expect: the source's figures, since its constants are not known and the design is our
own; nor that the entropy says how good a model is. As the printed errors show, parameters that
move with collapsed weights can still be those of a model of the target rows alone, and a slow run
that has not collapsed can be far off.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.utils import check_random_state

from skbilevel import ReweightingRegressor

# Estimators warn of weights that count as fewer rows than there are target rows: the point here.
warnings.filterwarnings("ignore", message="The weights count as")


# %%
# Two clusters with a linear relation each; target rows are of the first.


def toy(n_rows, n_target, noise, seed):
    rng = check_random_state(seed)
    center = np.array([1.5, 0.0])
    theta, other = (each / np.linalg.norm(each) for each in (rng.randn(2), rng.randn(2)))
    other = -other if theta @ other > 0 else other
    is_first = rng.rand(n_rows) < 0.5
    X = np.where(is_first[:, np.newaxis], center, -center) + rng.randn(n_rows, 2)
    y = np.where(is_first, X @ theta, X @ other) + noise * rng.randn(n_rows)
    X_val = center + rng.randn(n_target, 2)
    return X, y, is_first, X_val, X_val @ theta + noise * rng.randn(n_target), theta


n_rows = 500
X, y, is_first, X_val, y_val, theta = toy(n_rows, n_target=100, noise=0.1, seed=0)

# %%
# The rate of the parameters is the same in all runs. "In order" is the share of iterations at
# which the entropy is no higher than that of the next smaller ratio; the last column is the first
# iteration at which it is below log(n/2).

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
RATIOS = [0.01, 0.1, 1, 10, 100] if quick else [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]
inner_rate, n_steps = 0.05, 800 if quick else 2000
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), sharey=True)
colors = plt.colormaps["plasma"](np.linspace(0, 0.9, len(RATIOS)))
for axis, solver in zip(axes, ("warm_started", "soba"), strict=True):
    head = f"{'entropy':>9s}{'ESS':>8s}{'error':>9s}{'in order':>11s}{'past log(n/2)':>15s}"
    print(f"{solver:14s}{head}")
    above = np.full(n_steps, np.inf)
    for ratio, color in zip(RATIOS, colors, strict=True):
        model = ReweightingRegressor(
            weighting="sample",
            solver=solver,
            outer_rate=ratio * inner_rate,
            inner_rate=inner_rate,
            max_iter=n_steps,
            l2=1e-6,
            refit=None,
            standardize=False,
            fit_intercept=False,
            random_state=0,
        ).fit(X, y, X_val=X_val, y_val=y_val)
        entropy = np.array(model.history_["entropy"])
        error, size = np.linalg.norm(model.coef_ - theta), model.effective_sample_size_
        in_order, above = np.mean(entropy <= above + 1e-9), entropy
        print(f"{ratio:14g}{entropy[-1]:9.2f}{size:8.1f}{error:9.4f}{in_order:11.1%}", end="")
        past = np.flatnonzero(entropy < np.log(n_rows / 2))
        print(f"{past[0] + 1 if len(past) else 'never':>15}")
        axis.plot(range(1, n_steps + 1), entropy, color=color, label=f"{ratio:g}")
    axis.axhline(np.log(n_rows), color="black", linestyle="--", linewidth=1)
    axis.axhline(np.log(n_rows / 2), color="black", linestyle=":", linewidth=1)
    axis.set(title=solver, xlabel="iteration", xscale="log")
axes[0].set_ylabel("entropy of the weights")
axes[0].text(1.1, np.log(n_rows) + 0.08, "log n")
axes[0].text(1.1, np.log(n_rows / 2) - 0.35, "log(n/2)")
axes[1].legend(title="ratio", bbox_to_anchor=(1.02, 1), loc="upper left")
axes[0].set_ylim(-0.2, 6.9)
figure.tight_layout()

# %%
# A model of the target rows alone, for comparison: no weights of training rows can make a model
# that fits the target rows better. Several of the larger ratios have its error.

alone = ReweightingRegressor(
    weighting="target", l2=1e-6, standardize=False, fit_intercept=False
).fit(X, y, X_val=X_val, y_val=y_val)
print(f"target rows alone: error {np.linalg.norm(alone.coef_ - theta):.4f}")
