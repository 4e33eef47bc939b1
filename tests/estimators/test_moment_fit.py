"""Linear moments with nuisances that are told, against loops over rows."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators.moment_fit import (
    Design,
    LinearMoment,
    combined,
    exogenous_moment,
    out_of_fold_r2,
)
from skbilevel.estimators.nuisances import Told
from skbilevel.objectives.orthogonal import MOMENT_SCORES, moment_score
from tests.problems import central_differences

N, P = 60, 2
OMEGA = np.array([0.3, -0.8])
FOLDS = np.arange(N) % 4
# Of one to five rows.
CLUSTERS = np.repeat(np.arange(21), np.tile([1, 5, 3, 2, 4, 1, 4], 3))


def moment_of(score="orthogonal", clusters=None, shared="one", known=None):
    rng = np.random.default_rng(0)
    told = rng.normal(size=(N, P + 1))
    outputs = told + rng.normal(size=(N, P + 1))
    root = rng.normal(size=(1 if shared == "one" else N, P + 1, P + 1))
    both = root @ root.transpose(0, 2, 1) / 10
    if shared == "none":
        both = np.zeros((1, P + 1, P + 1))
    y, D = outputs[:, 0], outputs[:, 1:]
    design = Design(score, FOLDS, clusters)
    return LinearMoment.of(y, D, Told(told, both, []), design, known), told, both


def test_scores_are_those_of_a_conditional_moment():
    moment, told, _ = moment_of(shared="none")
    mu, kappa = told[:, 0], told[:, 1:]
    parts = kappa @ OMEGA - mu, kappa, moment.slopes @ OMEGA - moment.y, moment.slopes
    expected = moment_score(*map(torch.from_numpy, parts))
    gradient = moment.at(OMEGA).gradient()
    assert_allclose(gradient.scores_, expected, rtol=1e-10, atol=1e-12)
    assert_allclose(gradient.coef_, expected.mean(dim=0), rtol=1e-10)
    centred = expected.numpy() - gradient.coef_
    assert_allclose(gradient.cov_, centred.T @ centred / (N - 1) / N, rtol=1e-10)
    assert_array_equal(gradient.diagnostics_.gap, 0)


@pytest.mark.parametrize("score", MOMENT_SCORES)
@pytest.mark.parametrize("shared", ["one", "each"])
def test_gradient_is_linear_in_omega_and_gone_at_the_root(score, shared):
    moment, _, _ = moment_of(score, shared=shared)
    gradient = moment.at(OMEGA).gradient()
    assert_allclose(gradient.coef_, moment.matrix @ OMEGA - moment.vector, rtol=1e-10)
    root = moment.root()
    assert_allclose(moment.at(root.coef_).gradient().coef_, 0, atol=1e-12)
    inverse = np.linalg.inv(moment.matrix)
    expected = inverse @ moment.at(root.coef_).gradient().cov_ @ inverse.T
    assert_allclose(root.cov_, expected, rtol=1e-9)
    assert_allclose(root.scores_.mean(axis=0), root.coef_, rtol=1e-9)
    assert_array_equal(root.hessian_, moment.matrix)
    assert root.rank_ == P


@pytest.mark.parametrize("shared", ["one", "each"])
def test_shared_noise_is_added_to_the_score_and_taken_from_the_product(shared):
    """rho kappa expects omega'S_DD - S_yD too much, of which the score has minus one times."""
    plain, _, both = moment_of(shared="none")
    expected = both[:, 1:, 1:] @ OMEGA - both[:, 0, 1:]
    for score, sign in (("orthogonal", 1), ("plug_in_product", -1), ("plug_in", 0)):
        one = moment_of(score, shared="none")[0].at(OMEGA).scores
        other = moment_of(score, shared=shared)[0].at(OMEGA).scores
        # moment_of draws shared noise last: all else is the same.
        _, _, both = moment_of(score, shared=shared)
        expected = both[:, 1:, 1:] @ OMEGA - both[:, 0, 1:]
        assert_allclose(other - one, np.broadcast_to(sign * expected, one.shape), atol=1e-12)
    assert np.abs(expected).min() > 0
    assert plain.design.score == "orthogonal"


@pytest.mark.parametrize("shared", ["none", "one", "each"])
def test_score_is_the_derivative_of_the_value(shared):
    moment, _, _ = moment_of(shared=shared)

    def value(omega):
        return moment.at(omega).values().mean()

    expected = central_differences(value, OMEGA)
    assert np.abs(expected).min() > 0.01
    assert_allclose(moment.at(OMEGA).scores.mean(axis=0), expected, rtol=1e-8)


def test_part_that_is_known_is_added_to_what_is_told():
    known = np.random.default_rng(1).normal(size=(N, P))
    plain, told, _ = moment_of()
    moment, _, _ = moment_of(known=known)
    assert_allclose(moment.kappa, told[:, 1:] + known)
    assert_allclose(moment.mu, plain.mu)
    outputs = np.column_stack([moment.y, moment.slopes - known])
    expected = 1 - np.square(outputs - told).mean(axis=0) / outputs.var(axis=0)
    assert_allclose(moment.r2, expected, rtol=1e-10)


def test_r2_is_that_of_scikit_learn_and_nothing_for_constants():
    rng = np.random.default_rng(2)
    outputs, told = rng.normal(size=(2, 9, 2))
    outputs[:, 1] = 0.1
    left = ((outputs[:, 0] - told[:, 0]) ** 2).sum()
    r2 = out_of_fold_r2(outputs, told)
    total = ((outputs[:, 0] - outputs[:, 0].mean()) ** 2).sum()
    assert r2[0] == pytest.approx(1 - left / total)
    assert np.isnan(r2[1])


def test_rows_of_a_cluster_count_together():
    """The estimate stays, and its covariance is that of sums over clusters."""
    plain, clustered = moment_of()[0], moment_of(clusters=CLUSTERS)[0]
    one, other = plain.at(OMEGA).gradient(), clustered.at(OMEGA).gradient()
    assert_allclose(other.coef_, one.coef_, rtol=1e-12)
    n_clusters = CLUSTERS.max() + 1
    sums = np.zeros((n_clusters, P))
    for row, cluster in zip(plain.at(OMEGA).scores - one.coef_, CLUSTERS, strict=True):
        sums[cluster] += row
    expected = n_clusters / (n_clusters - 1) * sums.T @ sums / N**2
    assert_allclose(other.cov_, expected, rtol=1e-10)
    assert np.abs(other.cov_ / one.cov_ - 1).max() > 0.05
    assert_allclose(other.scores_.mean(axis=0), one.coef_, rtol=1e-9)
    assert_allclose(clustered.root().coef_, plain.root().coef_)


def test_clusters_of_one_row_change_nothing():
    alone = moment_of(clusters=np.arange(N))[0]
    assert_allclose(alone.at(OMEGA).gradient().cov_, moment_of()[0].at(OMEGA).gradient().cov_)


def test_gap_is_the_correction_in_standard_errors():
    moment, _, both = moment_of()
    gradient = moment.at(OMEGA).gradient()
    shift = (both[0, 1:, 1:] @ OMEGA - both[0, 0, 1:]) / gradient.stderr_
    assert_allclose(gradient.diagnostics_.gap, np.abs(shift), rtol=1e-10)
    # To first order in the correction, that of the root is what the root moves by.
    root, plain = moment.root(), moment_of(shared="none")[0]
    linear = np.linalg.inv(moment.matrix) @ (plain.matrix @ root.coef_ - plain.vector)
    assert_allclose(root.diagnostics_.shift, linear, rtol=1e-9)
    assert_allclose(root.diagnostics_.gap, np.abs(linear) / root.stderr_, rtol=1e-9)


def test_fold_spread_is_about_one_by_chance_and_large_for_a_fold_that_differs():
    rng = np.random.default_rng(3)
    fold = np.arange(4000) % 5
    outputs = rng.normal(size=(4000, P + 1))
    told = Told(np.zeros_like(outputs) + 1.0, np.zeros((1, P + 1, P + 1)), [])
    spread = []
    for shift in (0.0, 2.0):
        moved = outputs + shift * (fold == 0)[:, None]
        moment = LinearMoment.of(moved[:, 0], moved[:, 1:], told, Design("orthogonal", fold))
        spread.append(moment.at(OMEGA).gradient().diagnostics_.fold_spread)
    assert (spread[0] < 4).all()
    assert (spread[1] > 20).any()
    alone = Design("orthogonal", np.zeros(4000, dtype=int))
    moment = LinearMoment.of(outputs[:, 0], outputs[:, 1:], told, alone)
    assert np.isnan(moment.at(OMEGA).gradient().diagnostics_.fold_spread).all()


def test_least_eigenvalue_has_the_error_of_its_direction():
    moment, told, _ = moment_of(shared="none")
    found = moment.root().diagnostics_
    size = np.sqrt((moment.slopes**2).mean(axis=0))
    values, vectors = np.linalg.eigh(moment.matrix / np.outer(size, size))
    assert found.least_eigenvalue == pytest.approx(values[0])
    kappa, v = told[:, 1:], vectors[:, 0] / size
    rows = [
        2 * (k @ v) * (d @ v) - (k @ v) ** 2 for k, d in zip(kappa, moment.slopes, strict=True)
    ]
    assert np.mean(rows) == pytest.approx(values[0])
    expected = np.std(rows, ddof=1) / np.sqrt(N)
    assert found.least_eigenvalue_stderr == pytest.approx(expected)


def test_repetitions_have_medians_of_their_diagnostics():
    each = [moment_of(score)[0].root() for score in ("orthogonal", "instrument", "plug_in")]
    found = combined(each)
    for name in ("gap", "fold_spread", "r2"):
        medians = np.median([getattr(one.diagnostics_, name) for one in each], axis=0)
        assert_allclose(getattr(found.diagnostics_, name), medians)
    assert_allclose(found.hessian_, np.mean([one.hessian_ for one in each], axis=0))
    assert found.n_iter_ == 3
    assert combined(each[:1]) is each[0]


def test_of_many_roots_the_smallest_is_taken_in_units_of_the_columns():
    rng = np.random.default_rng(4)
    D = rng.normal(size=(N, 2))
    twice = np.column_stack([D, 1000 * D[:, 1]])
    y = D @ [1.0, 2.0] + rng.normal(size=N)
    root = exogenous_moment(y, twice, None).root()
    assert root.rank_ == 2
    assert_allclose(twice @ root.coef_, D @ np.linalg.lstsq(D, y, rcond=None)[0], rtol=1e-8)
    assert root.coef_[2] == pytest.approx(root.coef_[1] / 1000, rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_clustered_errors_are_those_of_liang_and_zeger(offset):
    """G / (G - 1) times the sandwich of sums over clusters, whatever y is moved by."""
    rng = np.random.default_rng(6)
    D = np.column_stack([np.ones(N), rng.normal(size=N) + rng.normal(size=21)[CLUSTERS]])
    y = offset + D @ [1.0, 0.5] + rng.normal(size=N) + rng.normal(size=21)[CLUSTERS]
    root = exogenous_moment(y, D, CLUSTERS).root()
    e, bread = y - D @ np.linalg.lstsq(D, y, rcond=None)[0], np.linalg.inv(D.T @ D)
    sums = np.stack([(D * e[:, None])[c == CLUSTERS].sum(axis=0) for c in range(21)])
    assert_allclose(root.cov_, 21 / 20 * bread @ sums.T @ sums @ bread, rtol=1e-7)


def test_exogenous_moment_is_least_squares_with_robust_errors():
    """HC0, with n - 1 for n."""
    rng = np.random.default_rng(5)
    D = rng.normal(size=(N, 3))
    y = D @ [1.0, 0.5, -2.0] + rng.normal(size=N) * (1 + D[:, 0] ** 2)
    root = exogenous_moment(y, D, None).root()
    expected = np.linalg.lstsq(D, y, rcond=None)[0]
    assert_allclose(root.coef_, expected, rtol=1e-10)
    e, bread = y - D @ expected, np.linalg.inv(D.T @ D)
    meat = (D * e[:, None] ** 2).T @ D
    assert_allclose(root.cov_, N / (N - 1) * bread @ meat @ bread, rtol=1e-9)
