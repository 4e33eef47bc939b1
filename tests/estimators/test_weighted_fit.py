"""Sample weights reach any estimator under the name that its ``fit`` has for them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from skbilevel.estimators.weighted_fit import fit_weighted, weight_name

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 2))
Y = X @ [1.0, -2.0] + RNG.normal(size=30)
WEIGHTS = np.arange(30) % 4 * 0.5


class Recorder(RegressorMixin, BaseEstimator):
    """Keeps what it is fitted with."""

    def fit(self, X, y, sample_weight=None):
        self.seen_ = X, y, sample_weight
        return self


class AnyKeyword(Recorder):
    """Takes weights, but does not say so."""

    def fit(self, X, y, **parameters):
        return super().fit(X, y, **parameters)


def test_rows_without_weight_are_dropped_and_others_keep_theirs():
    seen = fit_weighted(Recorder(), X, Y, WEIGHTS).seen_
    some = WEIGHTS > 0
    for part, expected in zip(seen, (X, Y, WEIGHTS), strict=True):
        assert_array_equal(part, expected[some])
    assert 0 < some.sum() < 30


def test_dropped_rows_may_be_of_a_class_that_is_then_not_there():
    labels = np.where(WEIGHTS > 0, Y > 0, 2)
    fitted = fit_weighted(DecisionTreeClassifier(), X, labels, WEIGHTS)
    assert_array_equal(fitted.classes_, [0, 1])


def test_estimator_itself_is_left_as_it_is():
    model = Ridge(alpha=2.0)
    fitted = fit_weighted(model, X, Y, WEIGHTS)
    assert fitted is not model
    assert not hasattr(model, "coef_")
    assert fitted.alpha == 2.0


def least_squares():
    """Coefficients and intercept of rows as they weigh."""
    root = np.sqrt(WEIGHTS)
    return np.linalg.lstsq(root[:, None] * np.column_stack([X, np.ones(30)]), root * Y)[0]


def test_weights_are_those_of_a_weighted_fit():
    fitted = fit_weighted(LinearRegression(), X, Y, WEIGHTS)
    assert_allclose([*fitted.coef_, fitted.intercept_], least_squares(), rtol=1e-10)


def test_weights_go_to_the_last_step_of_a_pipeline_under_its_name():
    pipeline = make_pipeline(StandardScaler(), Recorder())
    assert weight_name(pipeline) == "recorder__sample_weight"
    seen = fit_weighted(pipeline, X, Y, WEIGHTS)[-1].seen_
    assert_array_equal(seen[2], WEIGHTS[WEIGHTS > 0])
    nested = make_pipeline(StandardScaler(), make_pipeline(StandardScaler(), Recorder()))
    assert weight_name(nested) == "pipeline__recorder__sample_weight"
    assert_array_equal(fit_weighted(nested, X, Y, WEIGHTS)[-1][-1].seen_[2], seen[2])


@pytest.mark.parametrize("is_told", [False, True])
def test_steps_of_a_pipeline_need_not_be_told_of_weights_where_routing_is_on(is_told):
    with config_context(enable_metadata_routing=True):
        scaler, last = StandardScaler(), Recorder()
        if is_told:
            scaler.set_fit_request(sample_weight=False)
            last.set_fit_request(sample_weight=True)
        pipeline = make_pipeline(scaler, last)
        assert weight_name(pipeline) == "recorder__sample_weight"
        seen = fit_weighted(pipeline, X, Y, WEIGHTS)[-1].seen_
        assert get_config()["enable_metadata_routing"]
    assert_array_equal(seen[2], WEIGHTS[WEIGHTS > 0])


def test_weights_reach_the_last_step_of_a_pipeline_where_routing_is_on_as_well():
    with config_context(enable_metadata_routing=True):
        seen = fit_weighted(make_pipeline(StandardScaler(), Recorder()), X, Y, WEIGHTS)[-1].seen_
    assert_array_equal(seen[2], WEIGHTS[WEIGHTS > 0])


def test_fit_of_any_keywords_is_trusted_with_weights():
    assert weight_name(AnyKeyword()) == "sample_weight"
    seen = fit_weighted(AnyKeyword(), X, Y, WEIGHTS).seen_
    assert_array_equal(seen[2], WEIGHTS[WEIGHTS > 0])


@pytest.mark.parametrize("wrapped", [False, True])
def test_estimator_that_takes_no_weights_is_named(wrapped):
    model = KNeighborsClassifier()
    if wrapped:
        model = make_pipeline(StandardScaler(), model)
    with pytest.raises(TypeError, match=r"estimator=KNeighborsClassifier\(\).*sample_weight"):
        fit_weighted(model, X, Y > 0, WEIGHTS)
