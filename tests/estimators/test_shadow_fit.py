"""Tilts learnt from shadow targets: found where they are planted, and nowhere else."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from sklearn.datasets import load_diabetes

from skbilevel.estimators import shadow_fit
from skbilevel.estimators.shadow_fit import fit_tilt
from skbilevel.estimators.shadow_targets import conditional_law
from skbilevel.numerics.observed import mean_and_deviation
from skbilevel.objectives.normal import NormalParameters, precision
from skbilevel.objectives.shadow_tilt import tilted_rows
from skbilevel.solvers.tilt import Rule
from tests.reference.gaussian import naive_expectation


def case(mask, seed=0, signs=1.0):
    """Complete and incomplete diabetes rows, standardised by what is observed, and y."""
    X, y = load_diabetes(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(X))
    X, y = X[order], y[order]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    by_others = np.tile(4 * X[:, [2]], 10)
    by_others[:, 2:4] = -99.0
    odds = {
        "soft": 2 * signs * X - 0.6,
        "mcar": np.full(X.shape, -0.4),
        "by column 2": by_others,
    }[mask]
    incomplete = np.where(rng.random(X.shape) < expit(odds), np.nan, X)
    center, scale = mean_and_deviation(incomplete)
    return (X - center) / scale, (incomplete - center) / scale, (y - y.mean()) / y.std()


def normal(Z, n_iter=40):
    """EM, a little shrunk to uncorrelated columns."""
    location, covariance = np.zeros(Z.shape[1]), np.eye(Z.shape[1])
    for _ in range(n_iter):
        sums = naive_expectation(Z, location, covariance)
        location = sums.s1 / len(Z)
        covariance = sums.s2 / len(Z) - np.outer(location, location)
        covariance = 0.99 * covariance + 0.01 * np.diag(covariance.diagonal())
    return NormalParameters(torch.from_numpy(location), torch.from_numpy(covariance))


def rmse(complete, Z, parameters, tilt):
    law = conditional_law(Z, precision(parameters))
    imputed = tilted_rows(*law, torch.from_numpy(tilt)).numpy()
    return float(np.sqrt(np.mean((imputed - complete)[np.isnan(Z)] ** 2)))


def learnt(Z, parameters, **settings):
    return fit_tilt(Z, parameters, np.random.RandomState(0), **settings)


def test_tilt_of_values_that_hide_themselves_is_found_and_helps():
    complete, Z, _ = case("soft")
    parameters = normal(Z)
    fit = learnt(Z, parameters)
    assert fit.is_accepted
    assert (fit.tilt > 0).sum() >= 9
    before, after = (rmse(complete, Z, parameters, t) for t in (0 * fit.tilt, fit.tilt))
    assert after < 0.9 * before


def test_signs_may_differ_by_column():
    signs = np.where(np.arange(10) % 2 == 0, 1.0, -1.0)
    complete, Z, _ = case("soft", signs=signs)
    parameters = normal(Z)
    fit = learnt(Z, parameters)
    assert fit.is_accepted
    assert (np.sign(fit.tilt) == signs).sum() >= 8
    assert rmse(complete, Z, parameters, fit.tilt) < rmse(complete, Z, parameters, 0 * fit.tilt)


@pytest.mark.parametrize("mask", ["mcar", "by column 2"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_nothing_is_learnt_where_cells_do_not_hide_themselves(mask, seed):
    _, Z, _ = case(mask, seed)
    fit = learnt(Z, normal(Z))
    assert not fit.is_accepted
    assert_array_equal(fit.tilt, 0.0)
    assert_array_equal(fit.signs, 0.0)
    assert fit.agreement < 1 / 3
    assert len(fit.columns) == len(fit.gains) == len(fit.free_gains) == len(fit.kept) == 8


def test_signs_turn_with_the_table_and_the_mask_can_veto():
    _, Z, _ = case("soft")
    parameters = normal(Z)
    flipped = NormalParameters(-parameters.location, parameters.covariance)
    ours, theirs = learnt(Z, parameters), learnt(-Z, flipped)
    assert ours.is_accepted and theirs.is_accepted
    assert_allclose(theirs.tilt, -ours.tilt, rtol=1e-6)
    strict = Rule(least_agreement=ours.agreement + 1e-6)
    vetoed = learnt(Z, parameters, rule=strict)
    assert vetoed.gain_per_target == ours.gain_per_target > 2.5
    assert not vetoed.is_accepted


def test_outcome_is_a_target_like_the_others():
    _, Z, y = case("soft")
    labels = np.where(np.arange(len(y)) < 300, y, np.nan)[:, np.newaxis]
    both = learnt(Z, normal(Z), y=labels, targets="both")
    assert both.columns[-1] == -1 and len(both.columns) == 9
    assert both.is_accepted
    none = learnt(Z, normal(Z, n_iter=3), y=np.full_like(labels, np.nan), targets="y")
    assert none.columns == [] and not none.is_accepted


def test_shuffled_outcome_tells_of_no_tilt_and_the_true_one_does():
    """At most 5 % of shuffles, of which a third would pass by what they gain."""
    _, Z, y = case("soft")
    parameters, rng = normal(Z), np.random.default_rng(0)
    y = y[:, np.newaxis]
    real = learnt(Z, parameters, y=y, targets="y")
    assert real.is_accepted and real.columns == [-1]
    fits = [learnt(Z, parameters, y=rng.permutation(y), targets="y") for _ in range(40)]
    assert sum(fit.is_accepted for fit in fits) <= 2
    assert sum(fit.gain_per_target > 1.5 for fit in fits) > 40 / 3


def test_column_with_few_missing_cells_has_no_tilt():
    _, Z, _ = case("soft")
    complete, _, _ = case("soft")
    Z = Z.copy()
    Z[:, 2] = complete[:, 2]
    Z[:9, 2] = np.nan
    fit = learnt(Z, normal(Z))
    assert fit.is_accepted and fit.tilt[2] == 0.0


def test_many_rows_are_thinned(monkeypatch):
    _, Z, _ = case("soft")
    seen = []
    own = shadow_fit.column_target
    monkeypatch.setattr(shadow_fit, "most_rows", lambda *_: 150)
    monkeypatch.setattr(
        shadow_fit, "column_target", lambda Z, *a: seen.append(len(Z)) or own(Z, *a)
    )
    learnt(Z, normal(Z, n_iter=3))
    assert seen == [150] * 8


def test_complete_table_has_nothing_to_tell():
    complete, _, _ = case("mcar")
    fit = learnt(complete, normal(complete, n_iter=1))
    assert not fit.is_accepted and not fit.tilt.any()
