"""
Which rows should count, and which end up counting?
===================================================

Half of the training rows follow one linear relation, half another, and the two halves lie apart.
The target rows are a hundred of the first kind. Free weights, one for each training row, are to
make a model good on the target. Ideal weights are equal on the first half and 0 on the second.
Ivanova and Ablin (2023) find that mirror descent comes near them if parameters are solved for at
every step (algorithm 1), and that weights collapse on a few rows if parameters and weights take a
step each (algorithm 2). Both are seen here, beside a gate, which has a few numbers to learn
instead of one for each row.

What not to expect: the source's figures, since its constants are not known and the design is our
own; nor that collapsed weights make a bad model here. Parameters that take part in the descent fit
the target rows directly. The exact method, run long, does no better than a model of the target
rows alone, which the ideal weights beat.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from skbilevel import ReweightingRegressor

# Estimators warn of weights that count as fewer rows than there are target rows: the point here.
warnings.filterwarnings("ignore", message="The weights count as")


# %%
# Two clusters, with 1.5 and -1.5 for the first feature's mean, and two unit vectors that make an
# obtuse angle for the relations. There is no intercept.


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


n_rows, n_target = 500, 100
X, y, is_first, X_val, y_val, theta = toy(n_rows, n_target, noise=0.1, seed=0)

# %%
# Ideal weights are passed as sample weights. The rate of the weights is a tenth, or a hundred
# times that of the parameters, in units where features and numbers have a mean square of 1.

n_steps = 1000 if os.environ.get("SKBILEVEL_QUICK") else 3000
model = ReweightingRegressor(
    weighting="sample",
    early_stopping=False,
    max_iter=n_steps,
    l2=1e-6,
    refit=None,
    standardize=False,
    fit_intercept=False,
    random_state=0,
)
warm = {"solver": "warm_started", "inner_rate": 0.05}
WAYS = {
    "uniform": {"weighting": "uniform", "refit": "train"},
    "ideal": {"weighting": "uniform", "refit": "train"},
    "exact (algorithm 1)": {"solver": "exact", "outer_rate": 0.1},
    "warm-started, ratio 0.1": {**warm, "outer_rate": 0.005},
    "warm-started, ratio 100": {**warm, "outer_rate": 5.0},
    "gate": {"weighting": "gate", "refit": "train"},
    "target rows alone": {"weighting": "target", "refit": "all"},
}
fitted = {}
print(f"{'':26s}{'error':>8s}{'ESS':>8s}{'entropy':>9s}{'on the first kind':>19s}")
for name, settings in WAYS.items():
    counts = is_first.astype(float) if name == "ideal" else None
    each = clone(model).set_params(**settings).fit(X, y, counts, X_val=X_val, y_val=y_val)
    error = np.linalg.norm(each.coef_ - theta)
    size, share = each.effective_sample_size_, each.weights_[is_first].sum()
    fitted[name] = each.weights_, f"{name}\nESS {size:.0f}, error {error:.4f}"
    print(f"{name:26s}{error:8.4f}{size:8.1f}{each.entropy_:9.2f}{share:19.2f}")

# %%
# Areas are in proportion to weights, up to fifty times the average; grey dots are all rows. The
# error is the distance of the parameters from those of the first relation.

figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.6), sharex=True, sharey=True)
numbers = axes[0, 0].scatter(*X.T, c=y, s=8, cmap="coolwarm", vmin=-4, vmax=4)
axes[0, 0].scatter(*X_val.T, c=y_val, s=26, cmap="coolwarm", vmin=-4, vmax=4, edgecolors="black")
axes[0, 0].set_title("training rows, and target rows\nwith a rim; colours are y")
shown = ["uniform", "ideal", "exact (algorithm 1)", "warm-started, ratio 100", "gate"]
colors = np.where(is_first, "tab:blue", "tab:orange")
for axis, name in zip(axes.flat[1:], shown, strict=True):
    weights, title = fitted[name]
    axis.scatter(*X.T, s=1, color="0.75")
    axis.scatter(*X.T, s=8 * (n_rows * weights).clip(max=50), c=colors, alpha=0.6, linewidths=0)
    axis.set_title(title)
figure.tight_layout()
