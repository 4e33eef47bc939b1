"""Log-linear weights are the density ratio where that is the answer; groups weigh as they fit."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from skbilevel.estimators.density_weights import (
    density_features,
    fit_groups,
    fit_log_linear,
    group_strength,
    log_linear_strength,
)
from skbilevel.estimators.linear_proxy import Sample, random_folds
from skbilevel.estimators.weight_task import Task
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED

RIDGE = 1e-4


def task_of(train, target, groups=None, kl=None, loss=SQUARED, counts=None, ridge=RIDGE):
    """Of columns without a constant, which is added."""
    samples = [
        Sample(np.column_stack([X, np.ones(len(X))]), Y, np.ones(len(X)))
        for X, Y in (train, target)
    ]
    if counts is not None:
        samples = [each.weighted(part) for each, part in zip(samples, counts, strict=True)]
    groups = np.zeros(samples[0].n_rows, int) if groups is None else groups
    return Task(*samples, loss, ridge, True, groups, kl, 0)


def truth(x):
    return x**3 - x


def cubic(n, m, seed):
    """Training rows from N(.5, .5^2), target rows from N(0, .3^2)."""
    r = np.random.RandomState(seed)
    x, x_target = r.normal(0.5, 0.5, n), r.normal(0, 0.3, m)
    y = truth(x) + 0.3 * r.randn(n)
    return (x[:, None], y[:, None]), (x_target[:, None], truth(x_target)[:, None])


def theta_of(sample, weights, ridge=RIDGE):
    """Ridge regression by normal equations, (p, k)."""
    w = weights / weights.sum()
    p = sample.X.shape[1]
    return np.linalg.solve(
        (sample.X.T * w) @ sample.X + ridge * np.eye(p), sample.X.T * w @ sample.Y
    )


def ratio(x):
    return norm.pdf(x, 0, 0.3) / norm.pdf(x, 0.5, 0.5)


# Rows by where they are


@pytest.mark.parametrize("kl", [0.0, 1e-5])
def test_parameters_are_those_of_the_density_ratio_in_the_population(kl):
    """Proposition 1 with densities on a grid, and more labels than weights could suit otherwise.

    The logarithm of the ratio is quadratic in x, and in z = (x - c) / s its coefficients are
    -s^2/(2 .3^2) + s^2/(2 .5^2) and, as x = .5 where the training density is centred, -c s / .3^2.
    """
    x = np.linspace(-2, 3, 401)
    Y = 100 * np.column_stack([truth(x), x**2, np.sin(3 * x), np.abs(x)])
    densities = norm.pdf(x, 0.5, 0.5), norm.pdf(x, 0, 0.3)
    rows = (x[:, None], Y)
    task = task_of(rows, rows, kl=kl, counts=densities, ridge=1e-10)
    found = fit_log_linear(task, kl)
    kept = task.train.X[:, 0]
    c = np.average(kept, weights=task.train.counts)
    s = np.sqrt(np.average((kept - c) ** 2, weights=task.train.counts))
    slope = -c * s / 0.3**2 + (c - 0.5) * s / 0.5**2
    curvature = s**2 * (1 / 0.5**2 - 1 / 0.3**2) / 2
    assert_allclose(found.phi, [slope, curvature], rtol=2e-6 if kl == 0 else 5e-4)
    expected = ratio(kept) * task.train.counts
    assert_allclose(found.weights, expected / expected.sum(), atol=1e-3 * found.weights.max())
    assert found.history["objective"][0] > 5 * found.history["objective"][-1]


def test_target_loss_is_near_that_of_the_true_ratio_and_far_below_that_of_equal_weights():
    """Of 300 training rows and 30 target rows, in the mean of eight samples; loss against the
    truth on a grid of the target's distribution."""
    x = norm.ppf((np.arange(2000) + 0.5) / 2000, 0, 0.3)
    total = np.zeros(3)
    for seed in range(8):
        train, (x_target, y_target) = cubic(300, 30, seed)
        y_target = y_target + 0.3 * np.random.RandomState(100 + seed).randn(30, 1)
        task = task_of(train, (x_target, y_target))
        found = fit_log_linear(task, log_linear_strength(task)).weights
        for number, weights in enumerate((found, ratio(train[0][:, 0]), np.ones(300))):
            slope, level = theta_of(task.train, weights)[:, 0]
            total[number] += np.mean((slope * x + level - truth(x)) ** 2) / 8
    learnt, true, equal = total
    assert learnt < 2.5 * true
    assert learnt < equal / 15


def test_weights_of_samples_are_like_the_true_ratio():
    train, target = cubic(1000, 1000, 0)
    x = train[0][:, 0]
    more, more_target = (
        np.column_stack([rows[1], rows[0] ** 2, np.sin(3 * rows[0])]) for rows in (train, target)
    )
    task = task_of((train[0], more), (target[0], more_target))
    found = fit_log_linear(task, 1e-3).weights
    assert np.corrcoef(found, ratio(x))[0, 1] > 0.97
    assert found.sum() == pytest.approx(1, rel=1e-12)


def test_level_of_the_rule_makes_the_mean_weight_one():
    task = task_of(*cubic(100, 30, 0), counts=(1.0 + np.arange(100) % 3, np.ones(30)))
    fit = fit_log_linear(task, 0.01)
    features = density_features(task.features(task.train), fit.rule)
    each = np.exp(features @ fit.phi - fit.rule["log_level"])
    assert task.train.shares @ each == pytest.approx(1, rel=1e-12)
    assert_allclose(fit.weights, task.train.shares * each, rtol=1e-10)


# Features


def test_features_are_standardised_columns_and_their_squares():
    """Of twelve columns that vary."""
    rng = np.random.default_rng(0)
    X, counts = rng.normal(3, 2, size=(50, 13)), 1.0 + np.arange(50) % 3
    X[:, 5] = 4.0
    task = task_of((X, X[:, :1]), (X[:9], X[:9, :1]), counts=(counts, np.ones(9)))
    rule = fit_log_linear(task, 1.0).rule
    features = density_features(X, rule)
    others = np.delete(X, 5, axis=1)
    center = np.average(others, axis=0, weights=counts)
    z = (others - center) / np.sqrt(np.average((others - center) ** 2, axis=0, weights=counts))
    assert_allclose(features, np.hstack([z, z**2]), rtol=1e-10, atol=1e-12)


def test_features_of_many_columns_are_four_principal_components():
    rng = np.random.default_rng(0)
    spread = np.r_[5.0, 4.0, 3.0, 2.0, np.full(9, 0.1)]
    X = spread * rng.normal(size=(60, 13)) @ np.linalg.qr(rng.normal(size=(13, 13)))[0] + 7
    counts = 1.0 + np.arange(60) % 2
    task = task_of((X, X[:, :1]), (X[:9], X[:9, :1]), counts=(counts, np.ones(9)))
    features = density_features(X, fit_log_linear(task, 1.0).rule)
    repeated = np.repeat(X, counts.astype(int), axis=0)
    scaler = StandardScaler().fit(repeated)
    pca = PCA(4, svd_solver="full").fit(scaler.transform(repeated))
    z = pca.transform(scaler.transform(X)) / np.sqrt(
        pca.explained_variance_ * (len(repeated) - 1) / len(repeated)
    )
    signs = np.sign(np.sum(z * features[:, :4], axis=0))
    assert_allclose(features, np.hstack([signs * z, z**2]), rtol=1e-8, atol=1e-9)


def test_features_of_many_columns_of_low_rank_are_those_that_vary():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 13))
    rule = fit_log_linear(task_of((X, X[:, :1]), (X[:9], X[:9, :1])), 1.0).rule
    assert np.abs(rule["directions"]).max() < 100


# Groups


def sources(seed=0, n=120, m=20):
    """Three sources of equal rows; the numbers of the last have another sign."""
    rng = np.random.default_rng(seed)
    X, X_target = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    groups = np.arange(n) % 3
    sign = np.where(groups == 2, -1.0, 1.0)
    Y = (sign * (X @ [1.0, 2.0]) + 0.1 * rng.normal(size=n))[:, None]
    Y_target = (X_target @ [1.0, 2.0] + 0.1 * rng.normal(size=m))[:, None]
    return (X, Y), (X_target, Y_target), groups


def test_source_with_wrong_numbers_weighs_nothing_and_others_stay():
    train, target, groups = sources()
    counts = (1.0 + np.arange(120) % 2, np.ones(20))
    task = task_of(train, target, groups, counts=counts)
    fit = fit_groups(task, group_strength(task))
    each = fit.weights / counts[0]
    for group in range(3):
        assert np.ptp(each[groups == group]) < 1e-12
    shares = np.bincount(groups, weights=fit.weights)
    assert shares[2] < 0.01
    assert 0.3 < shares[0] < 0.7
    assert shares.sum() == pytest.approx(1, rel=1e-12)
    relative = np.exp(fit.phi - fit.rule["log_level"])
    assert_allclose(relative[groups], each * counts[0].sum(), rtol=1e-9)


def test_group_weights_are_those_of_a_search_on_a_grid():
    """Two groups: one number, the share of the second, is found by trying every one."""
    train, target, groups = sources()
    groups = (groups == 2).astype(int)
    task = task_of(train, target, groups)
    gaps = task.target.Y - task.target.X @ theta_of(task.train, np.ones(120))
    unit, strength = np.mean(gaps**2) / 2, 0.5
    share = np.linspace(1e-6, 0.3, 3001)
    values = []
    for s in share:
        weights = np.where(groups == 1, s / 40, (1 - s) / 80)
        gaps = task.target.Y - task.target.X @ theta_of(task.train, weights)
        divergence = s * np.log(s * 3) + (1 - s) * np.log((1 - s) * 1.5)
        values.append(np.mean(gaps**2) / 2 + strength * unit * divergence)
    found = fit_groups(task, strength).weights[groups == 1].sum()
    best = share[int(np.argmin(values))]
    assert found == pytest.approx(best, abs=1e-3)
    assert 0.02 < best < 0.28


# Strength


@pytest.mark.parametrize("fit", [fit_log_linear, fit_groups])
def test_strong_divergence_leaves_weights_in_proportion_to_counts(fit):
    train, target, groups = sources()
    counts = (1.0 + np.arange(120) % 3, np.ones(20))
    found = fit(task_of(train, target, groups, counts=counts), 1e8)
    assert_allclose(found.weights, counts[0] / counts[0].sum(), rtol=1e-6)
    free = fit(task_of(train, target, groups, counts=counts), 0.01)
    assert np.abs(free.weights * 120 - 1).max() > 0.5


@pytest.mark.parametrize(
    ("fit", "data"),
    [(fit_log_linear, (*cubic(60, 12, 0), None)), (fit_groups, sources(0, 60, 12))],
)
def test_row_that_counts_twice_is_two_rows(fit, data):
    train, target, groups = data
    groups = np.zeros(60, int) if groups is None else groups
    counts, counts_target = 1.0 + np.arange(60) % 3, 1.0 + np.arange(12) % 2
    rows, rows_target = (
        np.repeat(np.arange(len(c)), c.astype(int)) for c in (counts, counts_target)
    )
    once = fit(task_of(train, target, groups, counts=(counts, counts_target)), 0.1)
    repeated = fit(
        task_of(
            [part[rows] for part in train], [part[rows_target] for part in target], groups[rows]
        ),
        0.1,
    )
    assert_allclose(once.phi, repeated.phi, rtol=1e-5, atol=1e-7)
    assert_allclose(once.weights, np.bincount(rows, weights=repeated.weights), rtol=1e-5)


def test_strength_is_large_without_a_shift_and_small_with_one():
    strengths = []
    for seed in range(6):
        r = np.random.RandomState(seed)
        theta, X = r.randn(4), r.randn(230, 4)
        y = X @ theta + 0.5 * r.randn(230) + 0.3 * X[:, 0] ** 2
        task = task_of((X[:200], y[:200, None]), (X[200:], y[200:, None]))
        strengths.append(log_linear_strength(task))
    assert np.median(strengths) == 0.1
    assert sum(each == 0.1 for each in strengths) >= 5
    shifted = [log_linear_strength(task_of(*cubic(300, 300, seed))) for seed in range(6)]
    assert np.median(shifted) < 0.1


def test_strength_is_that_of_the_least_loss_on_folds_that_have_not_been_seen():
    counts = 1.0 + np.arange(200) % 3, 1.0 + np.arange(25) % 2
    for seed in range(3):
        task = task_of(*cubic(200, 25, seed), counts=counts)
        total = []
        for strength in (0.1, 0.01, 0.001):
            loss = 0.0
            for fold in random_folds(25, 3, np.random.RandomState(0)):
                rest = np.setdiff1d(np.arange(25), fold)
                seen = Task(
                    task.train, task.target.at(rest), SQUARED, RIDGE, True, task.groups, None, 0
                )
                theta = theta_of(task.train, fit_log_linear(seen, strength).weights)
                gaps = task.target.X[fold] @ theta - task.target.Y[fold]
                loss += counts[1][fold] @ gaps[:, 0] ** 2
            total.append(loss)
        assert log_linear_strength(task) == (0.1, 0.01, 0.001)[int(np.argmin(total))]


def test_strength_that_a_user_gives_is_taken_and_that_of_classes_and_groups_is_fixed():
    train, target = cubic(30, 9, 0)
    given = task_of(train, target, kl=0.7)
    assert log_linear_strength(given) == group_strength(given) == 0.7
    assert group_strength(task_of(train, target)) == 0.01
    labels = [(X, np.eye(2)[(Y[:, 0] > 0).astype(int)]) for X, Y in (train, target)]
    assert log_linear_strength(task_of(*labels, loss=CROSS_ENTROPY)) == 0.01


def test_classes_of_a_source_with_wrong_labels_weigh_little():
    train, target, groups = sources()
    labels = [(X, np.eye(2)[(Y[:, 0] > 0).astype(int)]) for X, Y in (train, target)]
    task = task_of(*labels, groups, loss=CROSS_ENTROPY)
    shares = np.bincount(groups, weights=fit_groups(task, 0.01).weights)
    assert shares[2] < 0.05
    assert_array_equal(shares[:2] > 0.1, True)
