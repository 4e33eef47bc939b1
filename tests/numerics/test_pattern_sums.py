import numpy as np
import torch

import skbilevel.numerics.pattern_sums as module
from skbilevel.numerics.pattern_sums import pattern_sums
from skbilevel.numerics.row_groups import StandardizedRows
from skbilevel.objectives.normal import NormalFamily, NormalParameters
from tests.reference.gaussian import naive_expectation


def few_patterns(n_rows=400, n_columns=5, n_patterns=6, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.random((n_patterns, n_columns)) < 0.5
    masks[0], masks[1] = False, True
    X = rng.standard_normal((n_rows, n_columns)) + np.arange(n_columns)
    return np.where(masks[rng.integers(0, n_patterns, n_rows)], np.nan, X)


def rows_of(X):
    return StandardizedRows(X, np.zeros(X.shape[1]), np.ones(X.shape[1]))


def test_sums_are_those_of_a_loop_over_rows():
    X = few_patterns()
    sums = pattern_sums(rows_of(X))
    patterns = {tuple(~np.isnan(row)) for row in X if not np.isnan(row).all()}
    assert {tuple(mask) for mask in sums.observed.bool().tolist()} == patterns
    for mask, n, first, second in zip(*vars_of(sums), strict=True):
        own = np.nan_to_num(X[(~np.isnan(X) == mask.astype(bool)).all(axis=1)])
        assert n == len(own)
        np.testing.assert_allclose(first, own.sum(axis=0), atol=1e-12)
        np.testing.assert_allclose(second, own.T @ own, atol=1e-11)


def vars_of(sums):
    return (part.numpy() for part in (sums.observed, sums.n_rows, sums.first, sums.second))


def test_e_step_by_pattern_equals_the_naive_row_loop():
    X = few_patterns()
    rng = np.random.default_rng(1)
    root = rng.standard_normal((5, 5))
    location, covariance = rng.standard_normal(5), root @ root.T + np.eye(5)
    family = NormalFamily(1e-3)
    model = family.model(
        NormalParameters(torch.from_numpy(location), torch.from_numpy(covariance))
    )
    moments = family.pattern_expectation(pattern_sums(rows_of(X)), model)
    informative = X[~np.isnan(X).all(axis=1)]
    expected = naive_expectation(informative, location, covariance)
    second = expected.completed.T @ expected.completed + expected.covariances.sum(axis=0)
    assert float(moments.n_rows) == len(informative)
    np.testing.assert_allclose(moments.first, expected.completed.sum(axis=0), atol=1e-10)
    np.testing.assert_allclose(moments.second, second, atol=1e-9)
    np.testing.assert_allclose(float(moments.log_likelihood), expected.log_likelihood, rtol=1e-12)


def test_many_patterns_are_not_summed():
    rng = np.random.default_rng(0)
    X = np.where(rng.random((400, 10)) < 0.3, np.nan, 1.0)
    assert pattern_sums(rows_of(X)) is None


def test_few_patterns_in_each_block_but_many_in_all_are_not_summed(monkeypatch):
    """Row i of 400 misses the columns of the bits of i // 20: one pattern in a block of 20."""
    bits = (np.arange(400)[:, np.newaxis] // 20 >> np.arange(5)) & 1
    X = np.where(bits == 1, np.nan, 1.0)
    rows = rows_of(X)
    monkeypatch.setattr(rows, "_slices", [slice(i, i + 20) for i in range(0, 400, 20)])
    monkeypatch.setattr(rows, "_kept", None)
    monkeypatch.setattr(module, "_ROWS_PER_COLUMN", 8)
    assert pattern_sums(rows) is None
    monkeypatch.setattr(module, "_ROWS_PER_COLUMN", 4)
    assert pattern_sums(rows).n_rows.tolist() == [20.0] * 20


def test_patterns_that_share_a_code_are_kept_apart(monkeypatch):
    class Constant:
        def random(self, size):
            return np.ones(size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: Constant())
    X = np.tile([[1.0, np.nan, 3.0], [np.nan, 2.0, 3.0]], (50, 1))
    sums = pattern_sums(rows_of(X))
    assert sums.n_rows.tolist() == [50.0, 50.0]
    assert sorted(sums.first.tolist()) == [[0.0, 100.0, 150.0], [50.0, 0.0, 150.0]]


def test_nothing_observed_is_no_pattern():
    assert pattern_sums(rows_of(np.full((100, 2), np.nan))) is None
