"""
Does the imputation leak the labels that judge it?
==================================================

A teacher imputes, a student learns from what it imputes, and the student's loss on rows set aside
is what the teacher is trained by. If those rows are imputed too, the teacher can write their
labels into their missing features: the loss on them falls, and nothing is gained. Here it is seen
on half-missing rows of the diabetes data, for three ways of setting rows aside:

- *naive*: rows set aside are imputed by the teacher (``outer="imputed"``, which warns);
- *held-out*: they keep their missing cells (``outer="holdout"``, Algorithm 1 of the source);
- *cross-fitted*: so they do, and each of three students is judged by a fold of its own
  (``outer="crossfit"``, the default).

What not to expect: that the third is much better than no bilevel training at all. On data missing
at random it is about as good, and its merit here is that it does no harm.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from skbilevel import BilevelImputer
from skbilevel.amputation import ampute

# The naive way warns that it leaks: that is the point.
warnings.filterwarnings("ignore", message="outer='imputed'")

# %%
# Half of the cells are missing; a third of the rows is never seen in training.

X, y = load_diabetes(return_X_y=True)
X_missing, _ = ampute(X, mechanism="mcar", missing_rate=0.5, random_state=0)
y = (y - y.mean()) / y.std()
rows = train_test_split(X_missing, y, test_size=0.3, random_state=0)
X_train, X_test, y_train, y_test = rows


class LossOnNewRows:
    """A callback that notes, after every iteration, the loss on rows that nobody has seen."""

    def __init__(self):
        self.losses = []

    def setup(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def teardown(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        if context.task_name == "iteration":
            error = y_test - fitted_estimator.predict(X_test)
            self.losses.append(float(np.mean(error**2)))


# %%
# All three start from the same networks, with a mean imputation as base.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
settings = {
    "base": "mean",
    "tilt": None,
    "max_iter": 60 if quick else 150,
    "inner_iter": 4,
    "pretrain_iter": 250,
    "student_iter": 600,
    "learning_rate": 1e-3,
    "l2": 1e-3,
    "target_type": "continuous",
    "random_state": 0,
}
WAYS = {"naive": "imputed", "held-out": "holdout", "cross-fitted": "crossfit"}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
print(f"{'':14s}{'rows set aside':>24s}{'new rows':>20s}{'ratio':>16s}")
for axis, (name, outer) in zip(axes, WAYS.items(), strict=True):
    callback = LossOnNewRows()
    imputer = BilevelImputer(outer=outer, **settings).set_callbacks(callback)
    imputer.fit(X_train, y_train)
    # A cross-fitted loss is that of another fold in every iteration: average over three.
    width = 3 if outer == "crossfit" else 1
    aside = np.convolve(imputer.history_["outer"], np.ones(width) / width, mode="valid")
    new = np.array(callback.losses)
    axis.plot(aside, label="rows set aside")
    axis.plot(new, label="new rows")
    axis.set(title=name, xlabel="iteration", yscale="log")
    ends = [f"{part[0]:.2f} -> {part[-1]:.2f}" for part in (aside, new)]
    ratio = f"{new[0] / aside[0]:.1f} -> {new[-1] / aside[-1]:.1f}"
    print(f"{name:14s}{ends[0]:>24s}{ends[1]:>20s}{ratio:>16s}")
axes[0].set_ylabel("squared error, in variances of y")
axes[0].legend()
figure.tight_layout()
