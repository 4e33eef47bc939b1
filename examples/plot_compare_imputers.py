"""
Which imputer for my missing values?
====================================

The answer depends on why values are missing. Here cells of two complete data sets are hidden in
three ways: completely at random (MCAR), depending on other columns that stay observed (MAR), and
because of their own value, the upper half of half of the columns (MNAR). Each imputer is judged
by its error at the hidden cells, in standard deviations of the complete columns, and by the
score of a linear model behind it in 5-fold cross-validation.

What not to expect: that the lowest error has the best score behind it, for the folds differ as
much as the imputers do; and that a network is worth its time. Under MCAR and MAR,
`MIWAEImputer` is 1 to 7 percent ahead of `GaussianImputer` and takes many times as long. Under
MNAR every method that ignores the mechanism is biased. One line that knows it, the reflection
``2 * max - mean`` of the observed values, is the bar for `NotMIWAEImputer`, which is told nothing
and has to find the mechanism: on these two sets it does, and is below the bar. Where no column
predicts another it would not. `BilevelImputer` is told nothing either: its tilt is made for
probabilities that rise with the value. Here it helps on one set, and on the other the trees in its
base extrapolate worse than a line does. A boosted tree that splits on missingness itself needs no
imputation, and is the reference for the score.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbilevel import BilevelImputer, GaussianImputer, MIWAEImputer, NotMIWAEImputer
from skbilevel.amputation import ampute
from skbilevel.metrics import imputation_rmse

# IterativeImputer warns in most of its fits here that its last round still changed values, and
# NotMIWAEImputer in some that its last iteration did.
warnings.filterwarnings("ignore", category=ConvergenceWarning)

# %%
# The contestants. An estimator joins the comparison by one line here.


class Reflection(SimpleImputer):
    """Values missing above the observed maximum, in their mirror image: the trivial baseline."""

    def fit(self, X, y=None):
        super().fit(X)
        self.statistics_ = 2 * np.nanmax(X, axis=0) - np.nanmean(X, axis=0)
        return self


IMPUTERS = {
    "mean": SimpleImputer(),
    "reflection": Reflection(),
    "KNNImputer": KNNImputer(),
    "IterativeImputer": IterativeImputer(random_state=0),
    "GaussianImputer": GaussianImputer(random_state=0),
    # Thirty epochs, a fifth of the default, as it is fitted anew in every fold.
    "MIWAEImputer": MIWAEImputer(max_iter=30, random_state=0),
    "NotMIWAEImputer": NotMIWAEImputer(decoder="linear", random_state=0),
    # Without the loop of teacher and students, whose prediction is not asked for here.
    "BilevelImputer": BilevelImputer(max_iter=0, student_iter=1, random_state=0),
}
# The choice among mechanisms takes a quarter of a minute on 30 columns, and trees take half of
# that: not in every fold.
NOT_IN_FOLDS = {("breast cancer", "NotMIWAEImputer"), ("breast cancer", "BilevelImputer")}

# %%
# Data, mechanisms and the models behind the imputers.

DATASETS = {
    "diabetes": (
        load_diabetes(return_X_y=True),
        Ridge(),
        HistGradientBoostingRegressor(max_iter=60, random_state=0),
        KFold(5, shuffle=True, random_state=0),
    ),
    "breast cancer": (
        load_breast_cancer(return_X_y=True),
        LogisticRegression(max_iter=500),
        HistGradientBoostingClassifier(max_iter=40, random_state=0),
        StratifiedKFold(5, shuffle=True, random_state=0),
    ),
}
MECHANISMS = {
    "MCAR": {"mechanism": "mcar", "missing_rate": 0.3},
    "MAR": {"mechanism": "mar", "missing_rate": 0.3},
    "MNAR": {"mechanism": "mnar_threshold"},
}


def amputed(X, mechanism, settings):
    """X with cells hidden; MNAR hides the upper half of the first half of the columns."""
    if mechanism == "MNAR":
        settings = {**settings, "columns": range(X.shape[1] // 2)}
    return ampute(X, **settings, random_state=0)


def scores(model, X, y, folds):
    """Mean and standard error over folds, in percent."""
    values = 100 * cross_val_score(model, X, y, cv=folds)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


# %%
# The table. The error is that of imputing all rows; in cross-validation each imputer is fitted
# on the training folds alone. Seconds are for imputing all rows once.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
rows = []
for dataset, ((X, y), linear, boosting, folds) in DATASETS.items():
    if quick and dataset != "diabetes":
        continue
    for mechanism, settings in MECHANISMS.items():
        X_missing, mask = amputed(X, mechanism, settings)
        for name, imputer in IMPUTERS.items():
            start = time.perf_counter()
            imputed = imputer.fit_transform(X_missing)
            seconds = time.perf_counter() - start
            model = make_pipeline(imputer, StandardScaler(), linear)
            rmse = imputation_rmse(X, imputed, mask)
            score = (np.nan, np.nan)
            if (dataset, name) not in NOT_IN_FOLDS:
                score = scores(model, X_missing, y, folds)
            rows.append((dataset, mechanism, name, rmse, *score, seconds))
        score = scores(boosting, X_missing, y, folds)
        rows.append((dataset, mechanism, "(boosting on NaN)", np.nan, *score, np.nan))

print(f"{'data':14s}{'missing':8s}{'imputer':19s}{'RMSE':>6s}{'score %':>15s}{'seconds':>9s}")
for dataset, mechanism, name, rmse, mean, error, seconds in rows:
    cells = [
        f"{'-' if np.isnan(v) else format(v, f'.{n}f')}" for v, n in ((rmse, 3), (seconds, 2))
    ]
    score = "-" if np.isnan(mean) else f"{mean:.1f} +- {error:.1f}"
    print(f"{dataset:14s}{mechanism:8s}{name:19s}{cells[0]:>6s}{score:>15s}{cells[1]:>9s}")

# %%
# The same as a figure: errors at the hidden cells above, scores of the model behind below.

datasets = list(dict.fromkeys(row[0] for row in rows))
figure, axes = plt.subplots(2, len(datasets), figsize=(5 * len(datasets), 6.5), squeeze=False)
for column, dataset in enumerate(datasets):
    for offset, name in enumerate(dict.fromkeys(row[2] for row in rows)):
        mine = [row for row in rows if row[0] == dataset and row[2] == name]
        at = np.arange(len(mine)) + 0.09 * (offset - 4)
        axes[0, column].plot(at, [row[3] for row in mine], "o", label=name)
        axes[1, column].errorbar(at, [r[4] for r in mine], [r[5] for r in mine], fmt="o")
    for axis, label in zip(axes[:, column], ("RMSE at hidden cells", "score (%)"), strict=True):
        axis.set_xticks(range(len(MECHANISMS)), MECHANISMS)
        axis.set_ylabel(label)
    axes[0, column].set(title=dataset, yscale="log")
axes[0, 0].legend(fontsize=8)
figure.tight_layout()

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--figure", type=Path, help="where to save the figure")
    arguments = parser.parse_args()
    if arguments.figure is not None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(arguments.figure, dpi=120)
        print(f"\nfigure: {arguments.figure}")
