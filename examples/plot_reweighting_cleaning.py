"""
Can weights find the wrong labels?
==================================

Four fifths of the training labels of a digits data set are replaced by another label; 150 target
rows are clean. One weight for each training row is learnt by SOBA, with parameters, adjoint and
weights taking a step each, as in the data cleaning of Ivanova and Ablin (2023). After 700
iterations: a small ratio of the rates has done little, a large one has put all weight on single
rows, and in between wrong labels have lost their weight and accuracy has its peak. Past the peak
accuracy falls slowly, since the parameters remember what they learnt before the collapse; a model
that is fitted to the final weights alone falls all the way.

What not to expect: the source's figures, as it takes MNIST and its constants are not known; nor a
gain over simpler ways. A model of the 150 target rows alone is no worse than the best ratio. (The
standard error of an accuracy on 500 test rows is about 1.3 points.) A gate, which learns a few
numbers and needs no rate, puts its weight on clean rows too, with the entropy of equal weights on
them.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils import check_random_state

from skbilevel import ReweightingClassifier

# Estimators warn of weights that count as fewer rows than there are target rows: the point here.
warnings.filterwarnings("ignore", message="The weights count as")

# %%
# A wrong label is always another one. Test rows are clean.

rng = check_random_state(0)
X, y = load_digits(return_X_y=True)
order = rng.permutation(len(X))
X, y = X[order][:, X.std(axis=0) > 0.16], y[order]
X_test, X_val, X_train = np.split(X, [500, 650])
y_test, y_val, y_train = np.split(y, [500, 650])
is_wrong = rng.rand(len(y_train)) < 0.8
y_train[is_wrong] = (y_train[is_wrong] + rng.randint(1, 10, is_wrong.sum())) % 10


def fit(model, shares=None):
    counts = None if shares is None else shares * len(shares)
    return model.fit(X_train, y_train, counts, X_val=X_val, y_val=y_val)


# %%
# All columns are divided by one number; after that, rows have a mean squared length of 1, and a
# rate of 1 is stable for the parameters. Target loss is the log-loss of target rows under the
# running parameters, which have been led by these very rows.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
ratios = 10.0 ** np.arange(-4, 2.1, 2 if quick else 0.5)
model = ReweightingClassifier(
    weighting="sample",
    solver="soba",
    inner_rate=1.0,
    early_stopping=False,
    max_iter=700,
    l2=1e-4,
    refit=None,
    standardize=False,
    random_state=0,
)
plain = clone(model).set_params(weighting="uniform", refit="train")
rows = []
print(f"{'ratio':>8s}{'loss':>8s}{'accuracy':>10s}{'refitted':>10s}{'entropy':>9s}{'clean':>7s}")
for ratio in ratios:
    learnt = fit(clone(model).set_params(outer_rate=ratio))
    refitted = fit(clone(plain), learnt.weights_).score(X_test, y_test)
    accuracy, clean = learnt.score(X_test, y_test), learnt.weights_[~is_wrong].sum()
    rows.append((learnt.history_["target_loss"][-1], accuracy, refitted, learnt.entropy_))
    print(f"{ratio:8.4f}{rows[-1][0]:8.2f}{accuracy:10.3f}{refitted:10.3f}", end="")
    print(f"{learnt.entropy_:9.2f}{clean:7.2f}")

# %%
# What else there is. "Clean" is the share of the weight that clean training rows have. By default
# target rows are added to the final fit of a gate; its weights alone, like those of SOBA, are
# refitted to the training rows too.

OTHERS = {
    "uniform": {"weighting": "uniform", "refit": "train"},
    "target only": {"weighting": "target", "refit": "all", "l2": "auto"},
    "gate": {"weighting": "gate", "refit": "all"},
}
others = {}
for name, settings in OTHERS.items():
    other = fit(clone(model).set_params(**settings))
    others[name] = other.score(X_test, y_test)
    print(f"{name:12s} accuracy {others[name]:.3f}, entropy {other.entropy_:.2f}, ", end="")
    print(f"clean {other.weights_[~is_wrong].sum():.2f}")
refitted = fit(clone(plain), other.weights_).score(X_test, y_test)
print(f"gate, refitted to training rows: accuracy {refitted:.3f}")
print(f"entropy of equal weights on clean rows: {np.log((~is_wrong).sum()):.2f}")

# %%
# The entropy falls past that of equal weights on clean rows, about log n(1-p), without a halt.

loss, accuracy, refitted, entropy = np.array(rows).T
figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.9))
axes[0].semilogx(ratios, loss, "o-")
axes[0].set(title="target loss", xlabel="ratio of the rates")
axes[1].semilogx(ratios, accuracy, "o-", label="parameters, as they run")
axes[1].semilogx(ratios, refitted, "s--", label="fitted to the final weights")
for number, (name, score) in enumerate(others.items()):
    axes[1].axhline(score, color=f"C{number + 2}", linestyle=":", label=name)
axes[1].set(title="test accuracy", xlabel="ratio of the rates", ylim=(0, 1))
axes[1].legend(fontsize="x-small", loc="lower left")
axes[2].semilogx(ratios, entropy, "o-")
for level, name in ((len(y_train), "log n"), (0.2 * len(y_train), "log n(1-p)")):
    axes[2].axhline(np.log(level), color="black", linestyle=":", linewidth=1)
    axes[2].text(ratios[-1], np.log(level) + 0.1, name, ha="right")
axes[2].set(title="entropy of the weights", xlabel="ratio of the rates", ylim=(-0.2, 7.8))
figure.tight_layout()
