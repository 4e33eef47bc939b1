"""
Does mirror descent make weights collapse?
==========================================

Weights of training rows that are moved by mirror descent beside the parameters end on few rows.
Ivanova and Ablin (2023) ask whether mirror descent is to blame, and take weights sigmoid(a) / n
and gradient descent on a instead. They see three stages: weights soon are good, so that parameters
solved for with them are; the running parameters lag behind; and when these arrive, weights are
sparse. Here is such a run, and beside it one by mirror descent that starts at the same speeds.

What not to expect: the third stage under sigmoids. The source's constants are not known, and in
our own design the parameters lag, but the weights do not become sparse. Their entropy falls ever
more slowly, and they count as more than half of the rows when the run is over, with parameters
near those of the target rows alone. Mirror descent comes there too, with weights that count as
five rows; parameters solved for with them get worse again while the running ones catch up. Runs
that are longer, or of other rates and designs, may differ.
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
# A callback notes, at some iterations, how far the parameters are from those of the first
# relation, how far parameters solved for with the weights of that moment would be, and the
# entropy of the weights.


class Checkpoints:
    """Errors and entropy at given iterations."""

    def __init__(self, iterations):
        self.iterations, self.iteration, self.rows = set(iterations), 0, []

    def setup(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def teardown(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        self.iteration += context.task_name == "iteration"
        if context.task_name != "iteration" or self.iteration not in self.iterations:
            return
        weighted = X.T * fitted_estimator.weights_
        solved = np.linalg.solve(weighted @ X, weighted @ y)
        errors = [np.linalg.norm(each - theta) for each in (fitted_estimator.coef_, solved)]
        sizes = fitted_estimator.entropy_, fitted_estimator.effective_sample_size_
        self.rows.append((self.iteration, *errors, *sizes))


# %%
# Weights sigmoid(a) / n with a = 0 sum to a half. With weights that sum to 1, as for mirror
# descent, parameters move twice as fast at the same rate, and hypergradients are half as large. A
# step of size eta under sigmoids first moves a by eta / (4 n) hypergradients, and log w by half of
# that.

n_steps = 2000 if os.environ.get("SKBILEVEL_QUICK") else 12000
shared = {"l2": 1e-6, "standardize": False, "fit_intercept": False, "random_state": 0}
RATES = {"sigmoid": (0.01, 200.0), "mirror": (0.01 / 2, 200.0 / (4 * n_rows))}
marks = np.unique(np.geomspace(1, n_steps, 80).astype(int))
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), sharey=True)
for axis, (parametrization, (inner_rate, outer_rate)) in zip(axes, RATES.items(), strict=True):
    checkpoints = Checkpoints(marks)
    model = ReweightingRegressor(
        weighting="sample",
        solver="warm_started",
        parametrization=parametrization,
        outer_rate=outer_rate,
        inner_rate=inner_rate,
        max_iter=n_steps,
        refit=None,
        **shared,
    ).set_callbacks(checkpoints)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    iterations, running, solved, entropy, size = np.array(checkpoints.rows).T
    print(f"{parametrization:>9s}{'running':>10s}{'solved':>10s}{'entropy':>9s}{'ESS':>8s}")
    for at in np.searchsorted(iterations, [1, 10, 30, 100, 300, 1000, n_steps]):
        print(f"{iterations[at]:9.0f}{running[at]:10.4f}{solved[at]:10.4f}", end="")
        print(f"{entropy[at]:9.2f}{size[at]:8.1f}")
    axis.loglog(iterations, running, label="parameters, as they run")
    axis.loglog(iterations, solved, label="parameters, solved for with the weights")
    axis.set(title=parametrization, xlabel="iteration")
    twin = axis.twinx()
    twin.plot(iterations, entropy, color="tab:red", label="entropy of the weights")
    twin.set(ylim=(0, 6.5), ylabel="entropy", yticks=range(7))
axes[0].set_ylabel("error")
axes[0].plot([], [], color="tab:red", label="entropy of the weights")
axes[0].legend(loc="lower left", fontsize="small")
figure.tight_layout()

alone = ReweightingRegressor(weighting="target", **shared).fit(X, y, X_val=X_val, y_val=y_val)
print(f"target rows alone: error {np.linalg.norm(alone.coef_ - theta):.4f}")
