"""
Can the settings of not-MIWAE be tuned?
=======================================

A search over learning rate, batch size, number of importance samples, hidden units and the loss
(MIWAE or not-MIWAE), on 500 normal rows of two columns with a correlation of .8 whose first column
is missing above its mean. It needs no truth: the scorer hides observed cells and looks at how they
are imputed. As the truth is known here, the candidates are also judged by it.

What not to expect: a scorer that finds the mechanism. It can only hide cells that were observed,
here those below the mean, and these are better imputed by a model to which they are missing
at random. So its choice is the wrong loss; a scorer of observed cells has nothing else to look at.
The bound of the likelihood does not help, for that of not-MIWAE also pays for the mask: the two
are of different data. The mechanism has to come from knowledge, or from ``mechanism="auto"``,
which compares evidences of the same data. Within one mechanism the bound is comparable, yet a
higher one is no promise of a lower error, and the settings matter little beside the mechanism.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import RandomizedSearchCV

from skbilevel import NotMIWAEImputer
from skbilevel.amputation import ampute
from skbilevel.metrics import imputation_rmse, make_masked_scorer

# Few steps and few importance samples are among the candidates, and are warned of.
warnings.filterwarnings("ignore", category=UserWarning)
quick = bool(os.environ.get("SKBILEVEL_QUICK"))

# %%
# Data and candidates. ``signs`` belongs to one mechanism only, so there are two lists.

rng = np.random.default_rng(0)
X = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 500)
X_missing, _ = ampute(X, "mnar_threshold", columns=[0])

settings = {
    "learning_rate": [1e-3, 3e-3, 1e-2],
    "batch_size": [16, 32, 64],
    "n_importance": [1, 5, 25, 100],
    "hidden_layer_sizes": [(16,), (64,), (256,)],
}
candidates = [
    {**settings, "mechanism": ["mar"]},
    {**settings, "mechanism": ["self_masking_known"], "signs": [[1, 0]]},
]

# %%
# Three scorers look at every candidate; the higher the better. The first one chooses. The last
# one reads the truth, which the search hands on as ``y`` and the imputer ignores: only in a
# simulation there is one.

masked = make_masked_scorer(fraction=0.2, n_repeats=5, scale=X.std(axis=0), random_state=0)


def bound(imputer, X_missing, y=None):
    return imputer.score(X_missing)


def truth(imputer, X_missing, y):
    mask = ~np.isnan(X_missing)
    return -imputation_rmse(y, imputer.transform(X_missing), mask, scale=1.0)


search = RandomizedSearchCV(
    NotMIWAEImputer(max_iter=2 if quick else 8, random_state=0),
    candidates,
    n_iter=4 if quick else 16,
    cv=2,
    scoring={"masked": masked, "bound": bound, "truth": truth},
    refit="masked",
    random_state=0,
).fit(X_missing, X)

# %%
# The table, best score first. The error at truly missing cells is what counts.

results = search.cv_results_
loss = np.array(["MIWAE" if p["mechanism"] == "mar" else "not-MIWAE" for p in results["params"]])
hidden_error, error = -results["mean_test_masked"], -results["mean_test_truth"]
bounds = results["mean_test_bound"]
print(f"{'loss':11s}{'rate':>7s}{'batch':>7s}{'samples':>9s}{'hidden':>8s}", end="")
print(f"{'at hidden':>11s}{'bound':>9s}{'at missing':>12s}")
for k in np.argsort(hidden_error):
    p = results["params"][k]
    print(
        f"{loss[k]:11s}{p['learning_rate']:7g}{p['batch_size']:7d}{p['n_importance']:9d}"
        f"{p['hidden_layer_sizes'][0]:8d}{hidden_error[k]:11.3f}{bounds[k]:9.3f}{error[k]:12.3f}"
    )

# %%
# What each criterion would have chosen, among all candidates and within each loss.


def chosen(label, criterion, among):
    """Print the error of the candidate that is best by a criterion, and the least one."""
    best = among[np.argmax(criterion[among])]
    least = error[among].min()
    print(f"{label:32s}{loss[best]:11s} error {error[best]:.3f}, least {least:.3f}")


everything = np.arange(len(loss))
print()
chosen("hidden cells, all candidates", -hidden_error, everything)
chosen("bound, all candidates", bounds, everything)
for name in dict.fromkeys(loss):
    chosen(f"hidden cells, {name}", -hidden_error, np.flatnonzero(loss == name))
    chosen(f"bound, {name}", bounds, np.flatnonzero(loss == name))

# %%
# The error that counts against both criteria. A useful criterion would fall from left to right in
# one line.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for name in dict.fromkeys(loss):
    mine = loss == name
    axes[0].plot(-hidden_error[mine], error[mine], "o", label=name)
    axes[1].plot(bounds[mine], error[mine], "o", label=name)
axes[0].set(xlabel="score: - RMSE at hidden cells", ylabel="RMSE at missing cells")
axes[1].set(xlabel="score: bound (nats per row)")
axes[0].legend()
