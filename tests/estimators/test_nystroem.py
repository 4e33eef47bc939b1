"""Nyström ridge regression against kernel ridge regression, and its choices."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.kernel_ridge import KernelRidge

from skbilevel import NystroemRidge
from skbilevel.estimators.smoother import RIDGES


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 2)) * [1.0, 3.0]
    y = np.sin(2 * X[:, 0]) + X[:, 1] / 3 + 0.3 * rng.normal(size=150)
    return X, y


def test_with_all_rows_as_centers_it_is_kernel_ridge_regression(data):
    """Of a centred kernel: predictions are of y less its mean, and features of theirs."""
    X, y = data
    model = NystroemRidge(centers=X, bandwidth=1.5, ridge=1e-2, standardize=False).fit(X, y)
    K = np.exp(-((X[:, None] - X) ** 2).sum(axis=2) / (2 * 1.5**2))
    n = len(X)
    centre = np.eye(n) - np.ones((n, n)) / n
    dual = KernelRidge(alpha=n * 1e-2, kernel="precomputed")
    expected = dual.fit(centre @ K @ centre, y - y.mean()).predict(centre @ K @ centre) + y.mean()
    assert_allclose(model.predict(X), expected, atol=1e-5)


def test_outputs_are_fitted_side_by_side(data):
    X, y = data
    Y = np.column_stack([y, 5 - 2 * X[:, 0]])
    both = NystroemRidge(bandwidth=1.0, random_state=0).fit(X, Y)
    assert both.predict(X).shape == (150, 2)
    for output in range(2):
        alone = NystroemRidge(bandwidth=1.0, random_state=0).fit(X, Y[:, output])
        assert alone.predict(X).shape == (150,)
        assert_allclose(both.predict(X)[:, output], alone.predict(X), rtol=1e-9)
        assert both.ridge_[output] == alone.ridge_[0]


def test_bandwidth_follows_what_there_is_to_see():
    rng = np.random.default_rng(1)
    X = rng.uniform(-1, 1, (400, 1))
    slow, quick = X[:, 0] + 0.3 * rng.normal(size=400), np.sin(20 * X[:, 0])
    found = [NystroemRidge(random_state=0).fit(X, y).bandwidth_ for y in (slow, quick)]
    assert found[0] > found[1]
    fitted = NystroemRidge(random_state=0).fit(X, quick)
    assert fitted.score(X, quick) > 0.99


def test_bandwidth_of_each_column_is_a_scale(data):
    X, y = data
    one = NystroemRidge(centers=X, bandwidth=[1.0, 3.0], ridge=1e-3, standardize=False)
    scaled = X / [1.0, 3.0]
    other = NystroemRidge(centers=scaled, bandwidth=1.0, ridge=1e-3, standardize=False)
    assert_allclose(one.fit(X, y).predict(X), other.fit(scaled, y).predict(scaled), rtol=1e-7)
    assert_allclose(one.centers_, X)


def test_units_of_columns_do_not_matter(data):
    X, y = data
    one = NystroemRidge(random_state=0).fit(X, y).predict(X)
    other = NystroemRidge(random_state=0).fit(X * [1e3, 1e-3] + 7, y).predict(X * [1e3, 1e-3] + 7)
    assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_column_that_does_not_vary_says_nothing(data):
    X, y = data
    with_constant = np.column_stack([X, np.full(len(X), 0.1)])
    one = NystroemRidge(bandwidth=1.0, random_state=0).fit(X, y)
    other = NystroemRidge(bandwidth=1.0, random_state=0).fit(with_constant, y)
    assert_allclose(one.predict(X), other.predict(with_constant), atol=1e-8)


def test_undersmooth_multiplies_the_ridge(data):
    X, y = data
    plain, rough = (
        NystroemRidge(bandwidth=1.0, undersmooth=u, random_state=0).fit(X, y) for u in (1.0, 0.1)
    )
    assert plain.ridge_[0] in RIDGES
    assert_allclose(rough.ridge_, 0.1 * plain.ridge_)
    assert rough.score(X, y) > plain.score(X, y)


def test_draws_follow_the_random_state(data):
    X, y = data
    first, again, other = (
        NystroemRidge(n_centers=10, random_state=seed).fit(X, y) for seed in (0, 0, 1)
    )
    assert_array_equal(first.predict(X), again.predict(X))
    assert np.abs(first.predict(X) - other.predict(X)).max() > 0
    assert first.centers_.shape == (10, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bandwidth": [1.0]}, "bandwidth=.* one for each of the 2 columns"),
        ({"bandwidth": [1.0, -1.0]}, "bandwidth=.* positive"),
        ({"centers": [[0.0]]}, "centers has 1 columns and X has 2"),
        ({"ridge": [1e-3, -1.0]}, "ridge=.* positive"),
        ({"n_centers": 0}, "n_centers"),
    ],
)
def test_settings_that_do_not_fit_are_named(data, settings, message):
    X, y = data
    with pytest.raises(ValueError, match=message):
        NystroemRidge(**settings).fit(X, y)


def test_weights_that_are_shares_are_warned_of(data):
    X, y = data
    with pytest.warns(UserWarning, match="sample_weight sums to 1 for 150 rows"):
        model = NystroemRidge(random_state=0).fit(X, y, np.full(150, 1 / 150))
    assert np.isfinite(model.predict(X)).all()
