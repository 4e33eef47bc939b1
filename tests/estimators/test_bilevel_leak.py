"""Labels must not find their way into imputed values: where they do, and where they do not."""

import warnings
from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from skbilevel import BilevelImputer, GaussianImputer
from skbilevel.amputation import ampute
from skbilevel.estimators.imputer import Imputer

COMPLETE, Y = load_diabetes(return_X_y=True)
Y = (Y - Y.mean()) / Y.std()
HALF, _ = ampute(COMPLETE, "mcar", missing_rate=0.5, random_state=0)
N_TRAIN = 309
# As in the figures of the source's note: a mean imputation as base, 150 iterations.
SETTINGS = {
    "base": "mean",
    "tilt": None,
    "max_iter": 151,
    "inner_iter": 4,
    "pretrain_iter": 250,
    "student_iter": 600,
    "learning_rate": 1e-3,
    "l2": 1e-3,
    "target_type": "continuous",
    "random_state": 0,
}


class LossOnNewRows:
    """Squared error on rows that were not in the fit, after the first and the last iteration."""

    def __init__(self):
        self.losses = {}

    def setup(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def teardown(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        if context.task_name == "iteration" and fitted_estimator.n_iter_ in (1, 151):
            error = Y[N_TRAIN:] - fitted_estimator.predict(HALF[N_TRAIN:])
            self.losses[fitted_estimator.n_iter_] = float(np.mean(error**2))


@cache
def losses(outer):
    """Of rows set aside and of new rows, at the start and at the end: (2, 2)."""
    callback = LossOnNewRows()
    imputer = BilevelImputer(outer=outer, **SETTINGS).set_callbacks(callback)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "outer='imputed'")
        imputer.fit(HALF[:N_TRAIN], Y[:N_TRAIN])
    # With three folds each iteration judges another one.
    aside = np.array(imputer.history_["outer"])
    return np.array(
        [[aside[:3].mean(), aside[-3:].mean()], [callback.losses[1], callback.losses[151]]]
    )


def test_naive_teacher_writes_labels_into_the_rows_that_judge_it():
    aside, new = losses("imputed")
    assert new[1] > 5 * aside[1]
    assert new[1] > new[0]


def test_cross_fitted_teacher_does_not():
    aside, new = losses("crossfit")
    assert new[1] <= 1.05 * new[0]
    assert new[1] / aside[1] <= 1.5 * new[0] / aside[0]


# What a model behind the imputer can learn of labels that are noise

SPARSE, _ = ampute(COMPLETE, "mcar", missing_rate=0.3, random_state=1)
NOISE = np.random.default_rng(0).standard_normal(len(Y))


def r2_in_training(imputed, y):
    rows = StandardScaler().fit_transform(imputed)
    return Ridge().fit(rows, y).score(rows, y)


class Leaking(Imputer):
    """Writes the label of a row into its missing cells."""

    def fit(self, X, y):
        self._start_fit(X)
        self._rows = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
        return self

    def _completer(self):
        def completed(rows):
            labels = np.array([self._rows.get(row.tobytes(), 0.0) for row in rows])
            return np.where(np.isnan(rows), labels[:, np.newaxis], rows)

        return completed


def gained(imputer):
    unsupervised = GaussianImputer(random_state=0).fit_transform(SPARSE)
    supervised = imputer.fit_transform(SPARSE, NOISE)
    return r2_in_training(supervised, NOISE) - r2_in_training(unsupervised, NOISE)


def test_labels_that_are_noise_cannot_be_learnt_from_the_imputed_rows():
    assert gained(BilevelImputer(random_state=0)) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"tilt": "both"}, {"tilt": "y"}, {"cross_fit": 3}], ids=str)
def test_nor_can_they_with_other_settings(settings):
    assert gained(BilevelImputer(random_state=0, **settings)) <= 0.01


def test_an_imputer_that_leaks_is_found_out():
    assert gained(Leaking()) > 0.05
