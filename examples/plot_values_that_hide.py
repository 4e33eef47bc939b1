"""
Which columns hide their high values?
=====================================

Every cell of the diabetes data goes missing with a probability that rises with its own value: two
fifths of the cells, and mostly the high ones. A table like that looks complete enough, and every
imputation that takes it to be missing at random is too low. `BilevelImputer` asks the other
columns: where imputed values have to be moved for these to be predicted well, they were missing
because of what they are. It reports by how much, and for which columns. In a Pipeline its settings
are searched like any others.

What not to expect: a tilt where values are missing at random (the second table has none), or one
from columns that have nothing to do with each other.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skbilevel import BilevelImputer, GaussianImputer
from skbilevel.amputation import ampute
from skbilevel.metrics import imputation_rmse

X, y = load_diabetes(return_X_y=True, as_frame=True)
MECHANISMS = {
    "because of the value": {"mechanism": "mnar_logistic", "missing_rate": 0.4},
    "completely at random": {"mechanism": "mcar", "missing_rate": 0.4},
}

# %%
# The tilt of each column is the log odds of being missing per standard deviation; two where cells
# are hidden by their value. Errors are in standard deviations of the complete columns.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for axis, (name, settings) in zip(axes, MECHANISMS.items(), strict=True):
    X_missing, mask = ampute(X, random_state=0, **settings)
    imputer = BilevelImputer(random_state=0).fit(X_missing)
    errors = [
        imputation_rmse(X, each.fit(X_missing).transform(X_missing), mask)
        for each in (GaussianImputer(random_state=0), imputer)
    ]
    print(f"{name}: accepted {imputer.tilt_accepted_}, RMSE {errors[0]:.2f} -> {errors[1]:.2f}")
    axis.bar(list(X.columns), imputer.tilt_)
    axis.set(title=f"missing {name}", ylabel="tilt")
figure.tight_layout()

# %%
# What each target said, in nats: the gain by the tilt, and by free indicators of what is missing.

X_missing, mask = ampute(X, random_state=0, **MECHANISMS["because of the value"])
imputer = BilevelImputer(random_state=0).fit(X_missing)
gains = imputer.shadow_gain_
for target, tilt, free in zip(gains["target"], gains["tilt"], gains["indicators"], strict=True):
    print(f"{target:6s}{tilt:8.1f}{free:8.1f}")

# %%
# In front of a model: with indicators, and with or without a tilt, in a grid search over the
# pipeline. Few iterations are enough here, since the student is not what predicts.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
model = make_pipeline(
    BilevelImputer(base="gaussian", add_indicator=True, max_iter=0, random_state=0),
    RidgeCV(np.logspace(-3, 3, 13)),
)
grid = {"bilevelimputer__tilt": ["shadow", None]}
if not quick:
    grid["bilevelimputer__base"] = ["gaussian", "stack"]
search = GridSearchCV(model, grid, cv=5).fit(X_missing, y)
for parameters, mean in zip(
    search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
):
    print(f"R2 {mean:.3f}", parameters)
