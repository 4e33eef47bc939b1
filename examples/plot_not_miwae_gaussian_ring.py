"""
Missing because of the value itself: a normal and a ring
========================================================

Two designs with two columns, of which the best imputation is known. In the first, x1 is missing
above its mean and x2 has a correlation of .8 with it. In the second, points lie about a circle
and x1 is missing in the sector at the top.

What not to expect. On the ring no method can have a lower error than imputing 0: given x2, the
truth is as likely to be to the left as to the right. A lower error than that of a rival therefore
says nothing about whether a model has seen the ring; draws do. But the data do not tell where the
ring goes on: at the top x1 was never seen, and a corner fits as well as an arc. Draws come near
the truth only where the model is told the sector. On the normal the error falls to its limit only
because the mechanism is taken to be of x1 alone: models that may use all of the row keep most of
the error. The surfaces of p(missing | x) at the end are as much the model's form as the data's,
and all figures are of one draw of the data.
"""

import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import norm
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from skbilevel import MIWAEImputer, NotMIWAEImputer
from skbilevel.amputation import ampute
from skbilevel.datasets import make_ring
from skbilevel.metrics import imputation_rmse

# A forest in IterativeImputer never settles, and few importance samples suffice for a picture.
warnings.filterwarnings("ignore", category=UserWarning)
quick = bool(os.environ.get("SKBILEVEL_QUICK"))
short = {"max_iter": 3 if quick else 40}

# %%
# The data. What the clipped panels lack is drawn as ticks at the left margin: x2 is known there.
# ``BEST`` is E[x1 | x2, x1 missing].

rng = np.random.default_rng(0)
X_normal = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 500)
X_ring = make_ring(500 if quick else 1500, radius=4.5, noise=0.5, random_state=0)
DESIGNS = {
    "normal": (X_normal, *ampute(X_normal, "mnar_threshold", columns=[0])),
    "ring": (X_ring, *ampute(X_ring, "sector", columns=[0, 1])),
}
above = (X_normal[:, 0].mean() - 0.8 * X_normal[:, 1]) / 0.6
hazard = np.exp(norm.logpdf(above) - norm.logsf(above))
BEST = {"normal": 0.8 * X_normal[:, 1] + 0.6 * hazard, "ring": np.zeros(len(X_ring))}

# %%
# The contestants. A decoder that starts from a normal suits the first design. For the ring it has
# two layers, two codes, more codes drawn at a time and more steps. Its missing model is none, one
# with a hidden layer, or a function that tells the sector: log odds that x1 and x2 are missing.


def sector(rows):
    x1, x2 = rows[..., 0], rows[..., 1]
    return torch.stack([10 * (x2 - x1.abs()), torch.full_like(x2, -20.0)], dim=-1)


trees = RandomForestRegressor(5 if quick else 30, random_state=0)
COMMON = {
    "KNNImputer": KNNImputer(),
    "IterativeImputer": IterativeImputer(random_state=0),
    "random forest": IterativeImputer(trees, max_iter=3, random_state=0),
    "MIWAE": MIWAEImputer(random_state=0, **short),
}
BENT = {
    "n_latent": 2,
    "hidden_layer_sizes": (64, 64),
    "activation": "tanh",
    "n_importance": 20,
    "batch_size": 128,
    "max_iter": 3 if quick else 100,
    "random_state": 0,
}
KNOWN = {"mechanism": "self_masking_known", "signs": [1, 0]}
IMPUTERS = {
    "normal": {
        **COMMON,
        "not-MIWAE, sign known": NotMIWAEImputer(**KNOWN, random_state=0, **short),
    },
    "ring": {
        **COMMON,
        "bent MIWAE": MIWAEImputer(**BENT),
        "bent, hidden layer": NotMIWAEImputer(mechanism="nonlinear", **BENT),
        "bent, told the sector": NotMIWAEImputer(mechanism=sector, **BENT),
    },
}

# %%
# The table. "Off ring" is the mean of abs(radius - 4.5), about .40 for the truth; that of the
# conditional mean, the imputation with the least squared error, is .61.


def distance(points):
    return np.mean(np.abs(np.hypot(points[..., 0], points[..., 1]) - 4.5))


print(f"{'design':8s}{'imputer':24s}{'RMSE':>6s}{'off ring':>10s}{'draws off':>11s}{'CPU s':>7s}")
results = {}
for design, (X, X_missing, mask) in DESIGNS.items():
    hit = ~mask[:, 0]
    for name, imputer in IMPUTERS[design].items():
        start = time.process_time()
        imputed = imputer.fit_transform(X_missing)
        seconds = time.process_time() - start
        off = [distance(imputed[hit])] if design == "ring" else []
        if off and hasattr(imputer, "sample"):
            off.append(distance(imputer.sample(X_missing[hit], n_draws=20)))
        results[design, name] = imputed
        rmse = imputation_rmse(X, imputed, mask, scale=1.0)
        text = "".join(f"{value:10.3f}" for value in off)
        print(f"{design:8s}{name:24s}{rmse:6.3f}{text:21s}{seconds:7.1f}", flush=True)
    best = np.column_stack([BEST[design], X[:, 1]])
    rmse = imputation_rmse(X, best, mask, scale=1.0)
    print(f"{design:8s}{'limit':24s}{rmse:6.3f}")

# %%
# Recovered points. A conditional mean draws a curve through the gap, a draw of the same model
# fills it.

for design, (X, X_missing, mask) in DESIGNS.items():
    hit = ~mask[:, 0]
    panels = {"original": X, "clipped": None}
    panels |= {name: results[design, name] for name in IMPUTERS[design]}
    for name, imputer in IMPUTERS[design].items():
        if name.startswith(("bent", "not")):
            panels[f"a draw: {name}"] = imputer.sample(X_missing, n_draws=1)[0]
    figure, axes = plt.subplots(-(-len(panels) // 4), 4, figsize=(13, 9), layout="constrained")
    left = 1.1 * X[:, 0].min()
    for axis, (name, points) in zip(axes.flat, panels.items(), strict=False):
        axis.plot(*X[~hit].T, ".", color="0.7", markersize=2)
        if points is None:
            axis.plot(np.full(hit.sum(), left), X[hit, 1], "_", color="C1")
        else:
            axis.plot(*points[hit].T, ".", color="C1", markersize=3)
        axis.set_title(f"{design}: {name}", fontsize=10)
        axis.set_xlim(1.05 * left, -1.05 * left)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")

# %%
# The learnt probability that x1 is missing, over the plane. The linear ("agnostic") model has one
# line to separate it, the self-masking one a vertical line; a hidden layer can bend the line,
# and does not see the sector either. Self-masking is wrong on the ring, and puts x1 where no point
# is. Dots are the data, orange where x1 is missing.

SURFACES = {
    "linear": {"mechanism": "agnostic"},
    "hidden layer": {"mechanism": "nonlinear"},
    "self-masking": {"mechanism": "self_masking"},
}
surfaces, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
for (design, (X, X_missing, mask)), row in zip(DESIGNS.items(), axes, strict=True):
    side = 1.2 * np.abs(X).max()
    grid = np.stack(np.meshgrid(*[np.linspace(-side, side, 60)] * 2), axis=-1)
    for axis, (name, mechanism) in zip(row, SURFACES.items(), strict=True):
        imputer = IMPUTERS[design].get(f"bent, {name}")
        if imputer is None:
            imputer = NotMIWAEImputer(**mechanism, random_state=0, **short).fit(X_missing)
        rmse = imputation_rmse(X, imputer.transform(X_missing), mask, scale=1.0)
        probability = imputer.missing_probability(grid.reshape(-1, 2))[:, 0].reshape(60, 60)
        mesh = axis.pcolormesh(*grid.transpose(2, 0, 1), probability, vmin=0, vmax=1)
        axis.plot(*X[mask[:, 0]].T, ".", color="white", markersize=1.5)
        axis.plot(*X[~mask[:, 0]].T, ".", color="C1", markersize=1.5)
        axis.set_title(f"{design}, {name}: RMSE {rmse:.3f}")
        print(f"{design:8s}missing model {name:14s} RMSE {rmse:.3f}", flush=True)
surfaces.colorbar(mesh, ax=axes, label="p(x1 missing | x)")
