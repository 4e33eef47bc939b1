"""
On how many rows can weights settle?
====================================

Where the weights of training rows move and parameters do not, Ivanova and Ablin (2023) show for
almost all data that weights which settle do so on at most as many rows as there are parameters
(proposition 8). With the parameters frozen at 0, and steps small enough to follow the flow, the
weights of a hundred rows end on 2, 5 and 10 rows for models of 2, 5 and 10 parameters.

What not to expect: that the bound holds on the way. One run of the fifteen is slow, and has a row
too many when the others have settled; run for three times as long, it keeps to the bound. Nor that
weights always settle: with large steps they do not follow the flow, all weight is on one row at a
time, and most steps move it to another. The data are our own design, as the source's are unknown.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.utils import check_random_state

from skbilevel import ReweightingRegressor

# Estimators warn of weights that count as fewer rows than there are coefficients: the point here.
warnings.filterwarnings("ignore", message="The weights count as")


# %%
# Two clusters with a linear relation each; target rows are of the first.


def toy(n_rows, n_target, n_features, noise, seed):
    rng = check_random_state(seed)
    center = 1.5 * np.eye(n_features)[0]
    theta, other = (each / np.linalg.norm(each) for each in rng.randn(2, n_features))
    other = -other if theta @ other > 0 else other
    is_first = rng.rand(n_rows) < 0.5
    X = np.where(is_first[:, np.newaxis], center, -center) + rng.randn(n_rows, n_features)
    y = np.where(is_first, X @ theta, X @ other) + noise * rng.randn(n_rows)
    X_val = center + rng.randn(n_target, n_features)
    return X, y, X_val, X_val @ theta + noise * rng.randn(n_target)


class Weights:
    """A callback that counts rows with a weight above a millionth, and notes the heaviest row."""

    def __init__(self):
        self.counts, self.heaviest = [], []

    def setup(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def teardown(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        if context.task_name == "iteration":
            self.counts.append(int((fitted_estimator.weights_ > 1e-6).sum()))
            self.heaviest.append(int(fitted_estimator.weights_.argmax()))


def frozen(n_features, seed, rate, n_steps):
    """Weights of a run with parameters of 0: an inner rate of 0 leaves them there."""
    weights = Weights()
    model = ReweightingRegressor(
        weighting="sample",
        solver="warm_started",
        outer_rate=rate,
        inner_rate=0,
        max_iter=n_steps,
        l2=1e-6,
        refit=None,
        standardize=False,
        fit_intercept=False,
        random_state=0,
    ).set_callbacks(weights)
    X, y, X_val, y_val = toy(100, 50, n_features, noise=0.1, seed=seed)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    return weights


# %%
# On the left, rows with a weight above a millionth, for each number of parameters p and five draws
# of the data; dotted lines are p. On the right, which row weighs most, for small and large steps.
# Rates are in units where features and numbers have a mean square of 1.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
n_steps, seeds = 1500, range(1 if quick else 5)
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2))
for number, p in enumerate([2, 5, 10]):
    runs = [frozen(p, seed, rate=0.4, n_steps=n_steps) for seed in seeds]
    print(f"p = {p:2d}: rows at the end {[run.counts[-1] for run in runs]}")
    for seed in np.flatnonzero([run.counts[-1] > p for run in runs]):
        longer = frozen(p, seed, rate=0.4, n_steps=3 * n_steps)
        print(f"        draw {seed} after {3 * n_steps} steps: {longer.counts[-1]}")
    left.axhline(p, color=f"C{number}", linestyle=":", linewidth=1)
    for run in runs:
        label = f"p = {p}" if run is runs[0] else None
        left.loglog(range(1, n_steps + 1), run.counts, color=f"C{number}", label=label)
left.set(xlabel="iteration", ylabel="rows with a weight", yticks=[2, 5, 10, 30, 100])
left.set_yticklabels([2, 5, 10, 30, 100])
left.minorticks_off()
left.legend()

for rate in (0.4, 5.0):
    run = frozen(5, seed=0, rate=rate, n_steps=300)
    changes = np.count_nonzero(np.diff(run.heaviest))
    print(f"p = 5, rate {rate}: {changes} of 299 steps make another row the heaviest, ", end="")
    print(f"and the last 200 have weight on up to {max(run.counts[100:])} rows")
    right.plot(run.heaviest[:100], ".", label=f"rate {rate}")
right.set(xlabel="iteration", ylabel="heaviest row", title="p = 5")
right.legend()
figure.tight_layout()
