"""A file holds what was saved, says which version saved it, and runs no type that is not known."""

import sys
import warnings

import numpy as np
import pytest
import skops.io
from numpy.testing import assert_array_equal, assert_equal
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skops.io.exceptions import UntrustedTypesFoundException

import skbilevel
from skbilevel import (
    BilevelGradient,
    ConditionalMomentGradient,
    GaussianImputer,
    NystroemRidge,
    OrthogonalFQE,
    OrthogonalIVRegressor,
    io,
)
from skbilevel.estimators.linear_head import RidgeHead, SoftmaxHead
from skbilevel.metrics import make_masked_scorer
from skbilevel.metrics.masked_scorer import MaskedScorer
from skbilevel.model_selection import TargetKFold
from skbilevel.testing import all_estimators

# For those that predict; imputers of the table alone ignore them.
LABELS = np.arange(30) % 2
# Estimators that hold others have their own tests.
ESTIMATORS = [
    pytest.param(cls, id=name) for name, cls in all_estimators() if hasattr(cls, "transform")
]


class Doubling(TransformerMixin, BaseEstimator):
    """A user's own step of a Pipeline."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return 2 * X


def incomplete():
    X = np.random.default_rng(0).normal(size=(30, 3)) @ [[1, 2, 3], [0, 1, 2], [0, 0, 1.0]]
    X[::3, 0] = X[1::4, 1] = np.nan
    return X


def qualified_name(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.skops"


# What comes back


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_every_fitted_estimator_comes_back_with_all_that_it_had(cls, path):
    estimator = cls(random_state=0).fit(incomplete(), LABELS)
    io.save(estimator, path)
    loaded = io.load(path)
    assert type(loaded) is cls
    assert_equal(vars(loaded), vars(estimator))
    assert all(type(vars(loaded)[name]) is type(value) for name, value in vars(estimator).items())
    assert_array_equal(loaded.transform(incomplete()), estimator.transform(incomplete()))


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_every_estimator_comes_back_unfitted_if_it_was(cls, path):
    io.save(cls(max_iter=7), path)
    assert_equal(vars(io.load(path)), vars(cls(max_iter=7)))


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_every_estimator_comes_back_inside_a_pipeline(cls, path):
    model = make_pipeline(cls(random_state=0), StandardScaler()).fit(incomplete(), LABELS)
    io.save(model, path)
    assert_array_equal(io.load(path).transform(incomplete()), model.transform(incomplete()))


def test_scorer_comes_back_equal(path):
    scorer = make_masked_scorer(metric="mae", scale=[1.0, 2.0, 3.0], random_state=5)
    io.save(scorer, path)
    assert io.load(path) == scorer


def test_path_may_be_a_string(path):
    io.save(GaussianImputer(tol=0.5), str(path))
    assert io.load(str(path)).tol == 0.5


def test_orthogonal_estimators_come_back_with_their_estimates(path):
    rng = np.random.default_rng(0)
    Z = rng.uniform(-1, 1, (200, 1))
    X = Z + 0.3 * rng.normal(size=(200, 1))
    model = OrthogonalIVRegressor(nuisance=NystroemRidge(n_centers=20), random_state=0)
    io.save(model.fit(X, X[:, 0] + rng.normal(size=200), Z), path)
    loaded = io.load(path)
    assert loaded.summary() == model.summary()
    assert_array_equal(loaded.predict_interval(X), model.predict_interval(X))
    ridge = NystroemRidge(n_centers=20, random_state=0).fit(Z, X)
    io.save(ridge, path)
    assert_array_equal(io.load(path).predict(Z), ridge.predict(Z))
    value = OrthogonalFQE([0.5, 0.5], 0.5, random_state=0)
    value.fit(X, np.arange(200) % 2, X[:, 0], Z)
    io.save(value, path)
    assert_array_equal(io.load(path).value_interval(), value.value_interval())


def test_later_save_replaces_the_file(path):
    io.save(GaussianImputer(tol=0.5), path)
    io.save(GaussianImputer(tol=0.25), path)
    assert io.load(path).tol == 0.25


# What is trusted


def test_trusted_types_are_the_estimators_and_what_goes_with_them():
    others = [MaskedScorer, RidgeHead, SoftmaxHead, TargetKFold]
    # They cannot be constructed without arguments.
    others += [BilevelGradient, ConditionalMomentGradient, OrthogonalFQE]
    expected = {qualified_name(cls) for cls in [*others, *dict(all_estimators()).values()]}
    assert set(io.TRUSTED_TYPES) == expected
    assert len(io.TRUSTED_TYPES) == len(expected)


def test_type_of_another_package_is_refused_unless_it_is_named(path):
    with pytest.warns(UserWarning, match="trusted=.*Doubling"):
        io.save(make_pipeline(GaussianImputer(), Doubling()), path)
    with pytest.raises(UntrustedTypesFoundException, match="Doubling"):
        io.load(path)
    loaded = io.load(path, trusted=(qualified_name(Doubling),))
    assert type(loaded[1]) is Doubling


# Versions


def test_file_of_this_version_is_read_without_a_warning(path):
    io.save(GaussianImputer(), path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        io.load(path)
    assert caught == []


@pytest.mark.parametrize(
    "model", [GaussianImputer(), make_pipeline(GaussianImputer())], ids=["alone", "in a pipeline"]
)
def test_file_of_another_version_is_read_with_a_warning_that_names_both(model, path, monkeypatch):
    monkeypatch.setattr(skbilevel, "__version__", "7.1.0")
    io.save(model, path)
    monkeypatch.setattr(skbilevel, "__version__", "8.2.0")
    with pytest.warns(UserWarning, match=r"skbilevel 7\.1\.0 and is read by 8\.2\.0") as caught:
        loaded = io.load(path)
    assert caught[0].filename == __file__
    assert len(caught) == 1
    assert type(loaded) is type(model)


def test_file_of_skops_itself_is_read_without_a_version(path):
    skops.io.dump(GaussianImputer(tol=0.5), path)
    assert io.load(path).tol == 0.5


def test_skops_itself_reads_a_saved_file(path):
    io.save(GaussianImputer(tol=0.5), path)
    assert skops.io.load(path, trusted=list(io.TRUSTED_TYPES)).tol == 0.5


# Without the extra


@pytest.mark.parametrize("act", [lambda path: io.save(GaussianImputer(), path), io.load])
def test_missing_skops_names_the_extra_to_install(act, path, monkeypatch):
    io.save(GaussianImputer(), path)
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(ImportError, match=r'pip install "skbilevel\[io\]"') as caught:
        act(path)
    assert isinstance(caught.value.__cause__, ImportError)


def test_save_says_which_types_load_will_not_trust(tmp_path):
    from sklearn.callback import ProgressBar  # noqa: PLC0415

    imputer = GaussianImputer().set_callbacks(ProgressBar())
    with pytest.warns(UserWarning, match="sklearn.callback._progressbar.ProgressBar") as caught:
        io.save(imputer, tmp_path / "imputer.skops")
    assert caught[0].filename == __file__
    named = str(caught[0].message).split("'")[1]
    loaded = io.load(tmp_path / "imputer.skops", trusted=(named,))
    assert type(loaded) is GaussianImputer


@pytest.mark.parametrize("trusted", [True, "module.Type"])
def test_trust_is_given_by_names(trusted, tmp_path):
    io.save(GaussianImputer(), tmp_path / "imputer.skops")
    with pytest.raises(TypeError, match="trusted must be a sequence"):
        io.load(tmp_path / "imputer.skops", trusted=trusted)
