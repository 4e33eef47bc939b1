"""
Can rows without a label help?
==============================

Features are cheap, labels are not, and both have holes: here 30 percent of the features of the
diabetes data are missing completely at random, and all labels but a few. `BilevelRegressor` uses
all rows: to impute, and by labels that its teacher makes up for the others. It is compared with
the same imputation without labels and a ridge regression behind it, with that regression on
labelled rows alone, and with gradient boosting that splits on missing values.

What not to expect: that it wins here. These data are linear, and a ridge regression behind an
imputation by all rows is the better model by .02 of R2, and by .1 with twenty labels; networks pay
where relations bend. The point is how little they cost here, and what boosting loses.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

from skbilevel import BilevelRegressor, GaussianImputer
from skbilevel.amputation import ampute

# %%
# Each contestant gets training rows, labels with NaN, and new rows to predict.

RIDGES = np.logspace(-3, 3, 13)


def bilevel(X, y, X_new):
    return BilevelRegressor(base="gaussian", random_state=0).fit(X, y).predict(X_new)


def imputed_by_all_rows(X, y, X_new):
    known, imputer = ~np.isnan(y), GaussianImputer(random_state=0).fit(X)
    model = RidgeCV(RIDGES).fit(imputer.transform(X[known]), y[known])
    return model.predict(imputer.transform(X_new))


def labelled_rows_alone(X, y, X_new):
    known = ~np.isnan(y)
    return imputed_by_all_rows(X[known], y[known], X_new)


def boosting(X, y, X_new):
    known = ~np.isnan(y)
    model = HistGradientBoostingRegressor(min_samples_leaf=5, random_state=0)
    return model.fit(X[known], y[known]).predict(X_new)


CONTESTANTS = {
    "BilevelRegressor": bilevel,
    "GaussianImputer + ridge": imputed_by_all_rows,
    "the same, labelled rows alone": labelled_rows_alone,
    "boosting on NaN": boosting,
}

# %%
# R2 on new rows, by the number of labels: mean and standard error over splits.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
X, y = load_diabetes(return_X_y=True)
NUMBERS, SEEDS = (20, 40, 80, 160), range(2 if quick else 4)
scores = {name: np.zeros((len(NUMBERS), len(SEEDS))) for name in CONTESTANTS}
for column, seed in enumerate(SEEDS):
    X_missing, _ = ampute(X, "mcar", missing_rate=0.3, random_state=seed)
    X_train, X_test, y_train, y_test = train_test_split(
        X_missing, y, test_size=0.3, random_state=seed
    )
    for row, number in enumerate(NUMBERS):
        few = np.where(np.arange(len(y_train)) < number, y_train, np.nan)
        for name, predict in CONTESTANTS.items():
            scores[name][row, column] = r2_score(y_test, predict(X_train, few, X_test))

print(f"{'R2, by number of labels':32s}" + "".join(f"{number:>14d}" for number in NUMBERS))
figure, axis = plt.subplots(figsize=(6, 4))
for name, values in scores.items():
    mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(len(SEEDS))
    print(f"{name:32s}" + "".join(f"{m:7.3f}+-{e:.3f}" for m, e in zip(mean, error, strict=True)))
    axis.errorbar(NUMBERS, mean, error, marker="o", label=name)
axis.set(xscale="log", xlabel="labels", ylabel="R2 on new rows", ylim=(-0.2, 0.6))
axis.set_xticks(NUMBERS, NUMBERS)
axis.legend(fontsize=8)
figure.tight_layout()
