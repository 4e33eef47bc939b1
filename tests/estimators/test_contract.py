"""Every public estimator keeps scikit-learn's contract, and every imputer ours."""

import warnings

import pytest
from sklearn.base import clone
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.estimator_checks import parametrize_with_checks

from skbilevel import (
    BilevelClassifier,
    BilevelImputer,
    BilevelRegressor,
    GaussianImputer,
    MIWAEImputer,
    NotMIWAEImputer,
    NystroemRidge,
    OrthogonalIVRegressor,
    ReweightingClassifier,
    ReweightingRegressor,
)
from skbilevel.estimators.imputer import Imputer
from skbilevel.testing import IMPUTER_CHECKS, all_estimators, check_imputer

# A network is fitted for one epoch: the checks are about the contract, not about what it learnt.
FEW_STEPS = {"max_iter": 1, "pretrain_iter": 5, "student_iter": 50, "n_students": 1}
FITTED_FAST = [
    BilevelImputer(base="gaussian", **FEW_STEPS),
    GaussianImputer(),
    GaussianImputer(robust=True),
    GaussianImputer(covariance="factor"),
    GaussianImputer(add_indicator=True, keep_empty_features=True),
    MIWAEImputer(decoder="linear"),
    MIWAEImputer(max_iter=1),
    NotMIWAEImputer(decoder="linear"),
    NotMIWAEImputer(mechanism="agnostic", max_iter=1),
]
# Their defaults train for seconds in each of some hundred checks.
FITTED_SLOWLY = [
    BilevelClassifier(),
    BilevelImputer(),
    BilevelRegressor(),
    MIWAEImputer(),
    NotMIWAEImputer(),
]
# They are imputers as well, but need labels.
PREDICTORS = [
    BilevelClassifier(base="mean", **FEW_STEPS),
    BilevelRegressor(base="mean", **FEW_STEPS),
]
# Without target rows, as in the checks, they say so.
REWEIGHTING = [
    ReweightingClassifier(),
    ReweightingClassifier(GaussianNB()),
    ReweightingRegressor(),
]
# They have a nuisance to learn only where instruments are told apart from X.
ORTHOGONAL = [NystroemRidge(), OrthogonalIVRegressor(), OrthogonalIVRegressor(fit_intercept=False)]
INCOMPLETE = [
    *(imputer for imputer in FITTED_FAST if not imputer.keep_empty_features),
    BilevelImputer(**FEW_STEPS),
    GaussianImputer(shrinkage=0.5, n_jobs=2),
    NotMIWAEImputer(mechanism="censored", decoder="mlp", max_iter=1),
]


def passes(imputer, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dropping features")
        warnings.filterwarnings("ignore", "Half of the incomplete rows")
        IMPUTER_CHECKS[name](clone(imputer).set_params(random_state=0))


# scikit-learn's checks fit rows that are empty or constant in a column on purpose.
@pytest.mark.filterwarnings("ignore:Dropping features")
@parametrize_with_checks([*FITTED_FAST, *PREDICTORS])
def test_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore:Reweighting.* got no target rows")
@parametrize_with_checks(REWEIGHTING)
def test_reweighting_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


# Some of the checks have columns that repeat, or more of them than rows.
@pytest.mark.filterwarnings("ignore:Some combination of coefficients")
@pytest.mark.filterwarnings("ignore:The smallest eigenvalue of the Hessian")
@parametrize_with_checks(ORTHOGONAL)
def test_orthogonal_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dropping features")
@parametrize_with_checks(FITTED_SLOWLY)
def test_default_network_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", IMPUTER_CHECKS)
@pytest.mark.parametrize("imputer", INCOMPLETE, ids=repr)
def test_imputer_passes_our_checks_on_incomplete_data(imputer, name):
    passes(imputer, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPUTER_CHECKS)
@pytest.mark.parametrize("imputer", FITTED_SLOWLY[1:2] + FITTED_SLOWLY[3:], ids=repr)
def test_default_network_passes_our_checks_on_incomplete_data(imputer, name):
    passes(imputer, name)


def test_every_public_imputer_is_put_to_the_checks_with_its_defaults():
    public = {cls for _, cls in all_estimators() if issubclass(cls, Imputer)}
    of_defaults = [clone(imputer) for imputer in FITTED_FAST[1:2] + FITTED_SLOWLY]
    assert {type(imputer) for imputer in of_defaults} == public
    assert all(repr(imputer) == repr(type(imputer)()) for imputer in of_defaults)


def test_all_estimators_finds_the_public_estimators():
    assert ("GaussianImputer", GaussianImputer) in all_estimators()


def test_check_imputer_skips_nothing_here():
    statuses = {result["status"] for result in check_imputer(GaussianImputer())}
    assert statuses == {"passed"}
