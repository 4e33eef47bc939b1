"""Incomplete rows that many tests fit."""

import numpy as np

FAMILIES = [{}, {"robust": True}, {"covariance": "factor", "n_factors": 2}]


def incomplete(n_rows=300, n_columns=6, seed=0, rate=0.3):
    """(complete, incomplete) correlated normal rows on different scales."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((n_columns, n_columns)) + np.eye(n_columns)
    X = rng.standard_normal((n_rows, n_columns)) @ mixing * 10.0 ** np.arange(-2, n_columns - 2)
    X += np.arange(n_columns)
    return X, np.where(rng.random(X.shape) < rate, np.nan, X)
