"""Draws of missing cells."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import kstest

import skbilevel.numerics.row_groups as row_groups
from skbilevel import GaussianImputer
from skbilevel.amputation import ampute
from skbilevel.metrics import interval_coverage
from tests.incomplete_data import FAMILIES, incomplete


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_draws_do_not_depend_on_the_batch_and_repeat(settings):
    _, X = incomplete()
    imputer = GaussianImputer(random_state=3, **settings).fit(X)
    draws = imputer.sample(X, n_draws=2)
    parts = [imputer.sample(part, n_draws=2) for part in (X[:1], X[1:77], X[77:])]
    assert_allclose(np.concatenate(parts, axis=1), draws, rtol=1e-9)
    order = np.random.default_rng(0).permutation(len(X))
    assert_allclose(imputer.sample(X[order], n_draws=2), draws[:, order], rtol=1e-9)
    assert_array_equal(imputer.sample(X, n_draws=2), draws)
    observed = ~np.isnan(X)
    assert_array_equal(draws[:, observed], np.broadcast_to(X[observed], (2, observed.sum())))
    assert not np.isclose(draws[0][~observed], draws[1][~observed]).any()


def test_draws_are_the_same_in_many_blocks(monkeypatch):
    _, X = incomplete()
    imputer = GaussianImputer(random_state=3).fit(X)
    whole = imputer.sample(X, n_draws=2)
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 70)
    assert_allclose(imputer.sample(X, n_draws=2), whole, rtol=1e-9)


def test_rows_that_lack_only_an_empty_feature_are_no_equal_draws():
    """Nothing is drawn for them, so that there is nothing to warn of."""
    _, X = incomplete(n_rows=60, n_columns=3)
    X[:2] = [1.0, 2.0, 3.0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dropping features")
        imputer = GaussianImputer(random_state=0).fit(np.insert(X, 0, np.nan, axis=1))
    drawn = imputer.sample(np.insert(X[:2], 0, np.nan, axis=1))
    assert_array_equal(drawn[0], X[:2])


def test_row_ids_separate_equal_rows():
    X = np.tile([[1.0, np.nan], [2.0, 1.0]], (50, 1)) + np.zeros((100, 1))
    X[1::2] += np.random.default_rng(0).standard_normal((50, 2))
    imputer = GaussianImputer(random_state=0).fit(X)
    with pytest.warns(UserWarning, match="49 incomplete rows equal another row") as caught:
        equal = imputer.sample(X[::2])[0, :, 1]
    assert caught[0].filename == __file__
    separate = imputer.sample(X[::2], row_ids=np.arange(50))[0, :, 1]
    assert len(np.unique(equal)) == 1
    assert len(np.unique(separate)) == 50
    with pytest.raises(ValueError, match="row_ids"):
        imputer.sample(X, row_ids=np.arange(3))


def test_draws_have_the_conditional_distribution():
    rng = np.random.default_rng(0)
    X = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 4000)
    X[::2, 0] = np.nan
    imputer = GaussianImputer(random_state=0).fit(X)
    drawn = imputer.sample(X)[0][::2, 0]
    mean, S = imputer.location_, imputer.covariance_
    slope = S[0, 1] / S[1, 1]
    residual = drawn - mean[0] - slope * (X[::2, 1] - mean[1])
    assert kstest(residual / np.sqrt(S[0, 0] - slope * S[0, 1]), "norm").pvalue > 0.01


def test_draws_of_the_robust_fit_cover_heavy_tails():
    """On t rows with 3 degrees of freedom, intervals of the t hold in the far half of the rows."""
    rng = np.random.default_rng(1)
    rows = rng.multivariate_normal(np.zeros(3), 0.5 + 0.5 * np.eye(3), 3000)
    rows *= np.sqrt(3 / rng.chisquare(3, 3000))[:, np.newaxis]
    X, mask = ampute(rows, missing_rate=0.3, random_state=0)
    far = np.linalg.norm(np.nan_to_num(X), axis=1) > np.median(np.linalg.norm(rows, axis=1))
    coverages = [
        interval_coverage(
            rows[far],
            GaussianImputer(robust=robust, random_state=0).fit(X).sample(X[far], n_draws=60),
            mask[far],
            level=0.9,
        )
        for robust in (False, True)
    ]
    assert abs(coverages[1] - 0.9) < 0.03 < abs(coverages[0] - 0.9) + 0.01
    assert abs(coverages[1] - 0.9) < abs(coverages[0] - 0.9)


@pytest.mark.parametrize("n_draws", [0, -1, 1.5, True])
def test_wrong_number_of_draws_is_refused(n_draws):
    _, X = incomplete()
    with pytest.raises(ValueError, match="n_draws"):
        GaussianImputer().fit(X).sample(X, n_draws=n_draws)
