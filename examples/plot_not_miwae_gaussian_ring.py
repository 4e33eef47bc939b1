"""
Missing because of the value itself: a normal and a ring
========================================================

Two designs with two columns, of which the best imputation is known. In the first, x1 is missing
above its mean and x2 has a correlation of .8 with it. In the second, points lie about a circle
and x1 is missing in the sector at the top.

What not to expect. On the ring no method can have a lower error than imputing 0: given x2, the
truth is as likely to be to the left as to the right. A lower error than that of a rival therefore
says nothing about whether a model has seen the ring; draws do, and those here come near it, not
onto it. On the normal the error falls to its limit only because the sign of the mechanism is
told: a missing model that is free to depend on all of the row does not find out by itself
what it was not shown, and the surfaces of p(missing | x) at the end are as much the model's
form as the data's.
"""

import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
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
short = {"max_iter": 10} if quick else {}

# %%
# The data. What the clipped panels lack is drawn as ticks at the left margin: x2 is known there.

rng = np.random.default_rng(0)
X_normal = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 500)
X_ring = make_ring(1500, radius=4.5, noise=0.5, random_state=0)
DESIGNS = {
    "normal": (X_normal, *ampute(X_normal, "mnar_threshold", columns=[0])),
    "ring": (X_ring, *ampute(X_ring, "sector", columns=[0, 1])),
}


def limits():
    """The least error that can be had: E[x1 | x2, x1 above its mean], and 0."""
    above = (X_normal[:, 0].mean() - 0.8 * X_normal[:, 1]) / 0.6
    mean = 0.8 * X_normal[:, 1] + 0.6 * np.exp(norm.logpdf(above) - norm.logsf(above))
    return {"normal": mean, "ring": np.zeros(len(X_ring))}


# %%
# The contestants. A decoder that starts from a normal suits the first design. For the ring it
# takes two codes, more codes drawn at a time and more steps.

trees = RandomForestRegressor(5 if quick else 30, random_state=0)
COMMON = {
    "KNNImputer": KNNImputer(),
    "IterativeImputer": IterativeImputer(random_state=0),
    "random forest": IterativeImputer(trees, max_iter=3, random_state=0),
    "MIWAE": MIWAEImputer(random_state=0, **short),
}
BENT = {
    "decoder": "residual",
    "n_latent": 2,
    "hidden_layer_sizes": (64, 64),
    "activation": "tanh",
    "n_importance": 20,
    "batch_size": 128,
    "max_iter": 10 if quick else 150,
    "random_state": 0,
}
KNOWN = {"mechanism": "self_masking_known", "signs": [1, 0]}
IMPUTERS = {
    "normal": {**COMMON, "not-MIWAE, sign known": NotMIWAEImputer(**KNOWN, random_state=0)},
    "ring": {**COMMON, "MIWAE for the ring": MIWAEImputer(**BENT)},
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
        cells = [np.nan, np.nan]
        if design == "ring":
            cells[0] = distance(imputed[hit])
            if hasattr(imputer, "sample"):
                cells[1] = distance(imputer.sample(X_missing[hit], n_draws=20))
        results[design, name] = imputed
        rmse = imputation_rmse(X, imputed, mask, scale=1.0)
        text = "".join(f"{'-' if np.isnan(v) else format(v, '.3f'):>10s}" for v in cells)
        print(f"{design:8s}{name:24s}{rmse:6.3f}{text} {seconds:7.1f}", flush=True)
    best = np.column_stack([limits()[design], X[:, 1]])
    rmse = imputation_rmse(X, best, mask, scale=1.0)
    print(f"{design:8s}{'limit':24s}{rmse:6.3f}")

# %%
# Recovered points. A conditional mean draws a curve through the gap, a draw of the same model
# fills it.

figure, axes = plt.subplots(4, 4, figsize=(13, 13), layout="constrained")
for design, grid in zip(DESIGNS, (axes[:2], axes[2:]), strict=True):
    X, X_missing, mask = DESIGNS[design]
    hit = ~mask[:, 0]
    names = list(IMPUTERS[design])
    draw = IMPUTERS[design][names[-1]].sample(X_missing, n_draws=1)[0]
    panels = {name: results[design, name] for name in names} | {"a draw of it": draw}
    for axis in grid.flat:
        axis.plot(*X[~hit].T, ".", color="0.7", markersize=2)
        axis.set(xlim=1.1 * np.array([X[:, 0].min(), X[:, 0].max()]))
    grid.flat[0].plot(*X[hit].T, ".", color="C1", markersize=3)
    grid.flat[0].set_title(f"{design}: original")
    grid.flat[1].plot(np.full(hit.sum(), 1.05 * X[:, 0].min()), X[hit, 1], "_", color="C1")
    grid.flat[1].set_title("clipped")
    for axis, (name, points) in zip(grid.flat[2:], panels.items(), strict=True):
        axis.plot(*points[hit].T, ".", color="C1", markersize=3)
        axis.set_title(name)

# %%
# The learnt probability that x1 is missing, over the plane. The linear ("agnostic") model has one
# line to separate it, the self-masking one a vertical line. A hidden layer can bend the line, but
# no more: where x1 was never seen, nothing tells what it would have been.

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
        settings = BENT if design == "ring" else {"random_state": 0, **short}
        imputer = NotMIWAEImputer(**mechanism, **settings)
        rmse = imputation_rmse(X, imputer.fit_transform(X_missing), mask, scale=1.0)
        probability = imputer.missing_probability(grid.reshape(-1, 2))[:, 0].reshape(60, 60)
        mesh = axis.pcolormesh(*grid.transpose(2, 0, 1), probability, vmin=0, vmax=1)
        axis.plot(*X[mask[:, 0]].T, ".", color="white", markersize=1.5)
        axis.plot(*X[~mask[:, 0]].T, ".", color="C1", markersize=1.5)
        axis.set_title(f"{design}, {name}: RMSE {rmse:.3f}")
        print(f"{design:8s}missing model {name:14s} RMSE {rmse:.3f}", flush=True)
surfaces.colorbar(mesh, ax=axes, label="p(x1 missing | x)")
