"""Every public estimator keeps scikit-learn's contract, and every imputer ours."""

import warnings

import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from skbilevel import GaussianImputer
from skbilevel.estimators.imputer import Imputer
from skbilevel.testing import IMPUTER_CHECKS, all_estimators, check_imputer

VARIANTS = [
    GaussianImputer(robust=True),
    GaussianImputer(covariance="factor"),
    GaussianImputer(add_indicator=True, keep_empty_features=True),
]


# scikit-learn's checks fit rows that are empty or constant in a column on purpose.
@pytest.mark.filterwarnings("ignore:Dropping features")
@parametrize_with_checks([estimator() for _, estimator in all_estimators()] + VARIANTS)
def test_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", IMPUTER_CHECKS)
@pytest.mark.parametrize(
    "imputer",
    [estimator() for _, estimator in all_estimators() if issubclass(estimator, Imputer)]
    + [*VARIANTS[:2], GaussianImputer(shrinkage=0.5, n_jobs=2)],
    ids=repr,
)
def test_imputer_passes_our_checks_on_incomplete_data(imputer, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dropping features")
        IMPUTER_CHECKS[name](clone(imputer).set_params(random_state=0))


def test_all_estimators_finds_the_public_estimators():
    assert ("GaussianImputer", GaussianImputer) in all_estimators()


def test_check_imputer_skips_nothing_here():
    statuses = {result["status"] for result in check_imputer(GaussianImputer())}
    assert statuses == {"passed"}
