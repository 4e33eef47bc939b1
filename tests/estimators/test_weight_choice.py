"""Families of weights are judged by rows that they have not seen, and mixed by their shares."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.estimators import weight_choice
from skbilevel.estimators.density_weights import fit_groups
from skbilevel.estimators.linear_proxy import Sample, random_folds
from skbilevel.estimators.weight_choice import (
    Judged,
    difference,
    final_weights,
    judged,
    log_relative,
    mixed,
    ridges_of,
    with_ridge,
)
from skbilevel.estimators.weight_families import FAMILIES
from skbilevel.estimators.weight_task import Task, WeightFit
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED

N, M, P, SEED = 40, 12, 3, 5
RIDGES = (1e-2, 10.0, 1e-4, 1.0)


def task_of(seed=0, loss=SQUARED, shift=0.0, kl=None, n=N, m=M):
    """Rows that count once, twice or three times; a third of the training rows is wrong."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(P, 1))
    X, X_target = rng.normal(size=(n, P)), rng.normal(shift, 1, size=(m, P))
    Y, Y_target = (rows @ theta + 0.5 * rng.normal(size=(len(rows), 1)) for rows in (X, X_target))
    groups = (np.arange(n) % 3 == 2).astype(int)
    Y[groups == 1] *= -1
    if loss is CROSS_ENTROPY:
        Y, Y_target = (np.eye(2)[(part[:, 0] > 0).astype(int)] for part in (Y, Y_target))
    counts, counts_target = 1.0 + np.arange(n) % 3, 1.0 + np.arange(m) % 2
    train, target = Sample(X, Y, counts), Sample(X_target, Y_target, counts_target)
    return Task(train, target, loss, 1e-4, False, groups, kl, SEED)


def ridge_regression(rows, numbers, weights, ridge):
    w = weights / weights.sum()
    return np.linalg.solve(
        (rows.T * w) @ rows + ridge * np.eye(rows.shape[1]), (rows.T * w) @ numbers
    )


def pooled_by_hand(weights, counts):
    """Occurrences: as many as the effective number of rows, each repeated as it counts."""
    if not weights.any():
        return weights
    each = np.concatenate([[w / c] * int(c) for w, c in zip(weights, counts, strict=True)])
    return weights / weights.sum() * (each.sum() ** 2 / np.sum(each**2))


def losses_out_of_fold(task, n_folds, weights_without):
    """By every ridge, of every target row, from a model without its fold, (r, m)."""
    told = np.zeros((len(RIDGES), task.target.n_rows))
    for fold in random_folds(task.target.n_rows, n_folds, np.random.RandomState(SEED)):
        rest = np.setdiff1d(np.arange(task.target.n_rows), fold)
        weights = np.concatenate([weights_without(rest), task.target.counts[rest]])
        rows = np.vstack([task.train.X, task.target.X[rest]])
        numbers = np.vstack([task.train.Y, task.target.Y[rest]])
        for number, ridge in enumerate(RIDGES):
            theta = ridge_regression(rows, numbers, weights, ridge)
            for j in fold:
                told[number, j] = np.sum((task.target.X[j] @ theta - task.target.Y[j]) ** 2) / 2
    return told


def effective_number(counts):
    """Of rows that weigh differently, which are fewer in effect than there are."""
    return sum(counts) ** 2 / sum(c**2 for c in counts)


def least_that_does(told, counts, n_errors):
    """Number of the least ridge whose losses exceed those of the best by so many standard errors
    of their mean at most."""
    rows = np.repeat(np.arange(len(counts)), counts.astype(int))
    best = int(told[:, rows].mean(axis=1).argmin())
    does = []
    for number in range(len(told)):
        gaps = told[number, rows] - told[best, rows]
        if gaps.mean() <= n_errors * gaps.std() / np.sqrt(effective_number(counts)):
            does.append(number)
    return min(does, key=lambda number: RIDGES[number])


# Judging


def weights_without(name, task):
    """Target rows that stay -> weights of the training rows, in occurrences."""
    if name == "uniform":
        return lambda rest: task.train.counts
    if name == "target":
        return lambda rest: np.zeros(task.train.n_rows)

    def of_groups(rest):
        seen = Task(
            task.train, task.target.at(rest), SQUARED, 1e-4, False, task.groups, None, SEED
        )
        return pooled_by_hand(fit_groups(seen, 0.01).weights, task.train.counts)

    return of_groups


@pytest.mark.parametrize("n_folds", [3, 5, 100])
@pytest.mark.parametrize("name", ["uniform", "target", "group"])
def test_losses_are_those_of_fits_without_the_fold(name, n_folds):
    task = task_of()
    told = losses_out_of_fold(task, n_folds, weights_without(name, task))
    number = least_that_does(told, task.target.counts, 0 if name == "target" else 1)
    found = judged(task, name, RIDGES, n_folds)
    assert found.name == name
    assert found.ridge == RIDGES[number]
    assert_allclose(found.losses, told[number], rtol=1e-7)
    others = np.delete(told, number, axis=0)
    assert np.abs(np.log(others / told[number])).max(axis=1).min() > 0.01


def test_ridge_is_the_least_that_does_and_of_target_rows_alone_the_best():
    for seed in range(30):
        task = task_of(seed)
        for name, n_errors in (("uniform", 1), ("target", 0)):
            told = losses_out_of_fold(task, 4, weights_without(name, task))
            number = least_that_does(told, task.target.counts, n_errors)
            assert judged(task, name, RIDGES, 4).ridge == RIDGES[number]


def test_ridges_that_are_chosen_differ_between_tasks():
    ridges = {judged(task_of(seed), "target", RIDGES, 4).ridge for seed in range(6)}
    assert len(ridges) > 1


def test_weights_of_a_family_are_of_all_target_rows():
    task = task_of()
    uniform = judged(task, "uniform", RIDGES, 3)
    assert_array_equal(uniform.weights, np.concatenate([task.train.counts, task.target.counts]))
    target = judged(task, "target", RIDGES, 3)
    assert_array_equal(target.weights, np.concatenate([np.zeros(N), task.target.counts]))
    groups = judged(task, "group", RIDGES, 3)
    expected = pooled_by_hand(fit_groups(task, 0.01).weights, task.train.counts)
    assert_allclose(groups.weights[:N], expected, rtol=1e-10)
    assert_array_equal(groups.weights[N:], task.target.counts)


def test_ridge_for_weights_that_are_given_is_that_of_fits_without_the_fold(monkeypatch):
    seen, real = [], weight_choice.fitted

    def spy(sample, *args):
        seen.append(sample)
        return real(sample, *args)

    monkeypatch.setattr(weight_choice, "fitted", spy)
    for seed in range(10):
        task, weights = task_of(seed), np.random.default_rng(seed).dirichlet(np.ones(N))
        occurrences = pooled_by_hand(weights, task.train.counts)
        told = losses_out_of_fold(task, 4, lambda rest, given=occurrences: given)
        number = least_that_does(told, task.target.counts, 1)
        found = with_ridge(task, "sample", WeightFit(weights), RIDGES, 4)
        assert found.ridge == RIDGES[number]
        # Of rows that the weights have been learnt from.
        assert np.isnan(found.losses).all()
        assert_allclose(found.weights[:N], occurrences, rtol=1e-12)
        folds = random_folds(M, 4, np.random.RandomState(SEED))
        for sample, fold in zip(seen[-16::4], folds, strict=True):
            rest = np.setdiff1d(np.arange(M), fold)
            expected = np.concatenate([occurrences, task.target.counts[rest]])
            assert_allclose(sample.counts, expected, rtol=1e-12)


def test_setting_is_tuned_once_and_on_all_target_rows(monkeypatch):
    seen = []

    def tune(task):
        seen.append(task.target.n_rows)
        return 0.25

    def fit(task, setting):
        seen.append((task.target.n_rows, setting))
        return WeightFit(task.train.shares)

    monkeypatch.setitem(FAMILIES, "group", FAMILIES["group"]._replace(tune=tune, fit=fit))
    judged(task_of(), "group", RIDGES, 3)
    assert seen == [M, (8, 0.25), (8, 0.25), (8, 0.25), (M, 0.25)]


def test_ridges_are_those_given_or_those_of_the_family():
    numbers, classes = task_of(), task_of(loss=CROSS_ENTROPY)
    assert ridges_of("target", numbers, (0.3,)) == (0.3,)
    assert len(ridges_of("target", numbers, None)) > len(ridges_of("gate", numbers, None))
    assert len(ridges_of("gate", classes, None)) == 1


def test_final_weights_of_equal_ones_are_counts():
    task = task_of()
    fit = WeightFit(task.train.shares)
    counts = np.concatenate([task.train.counts, task.target.counts])
    assert_array_equal(final_weights("uniform", fit, task), counts)
    assert_allclose(final_weights("gate", fit, task), counts, rtol=1e-13)


# Whether there is a shift


def family(name, losses, weights=None, ridge=1e-2, task=None):
    weights = np.ones(N + M) if weights is None else weights
    return Judged(name, WeightFit(weights[:N]), weights, ridge, np.asarray(losses, float))


def losses_with(gain, error, level, counts):
    """Losses of equal weights and of another family, whose difference has this mean and error."""
    spread = np.random.default_rng(2).normal(size=len(counts))
    spread -= np.average(spread, weights=counts)
    spread /= np.sqrt(np.average(spread**2, weights=counts) / effective_number(counts))
    others = np.full(len(counts), float(level))
    return others + gain + error * spread, others


def test_difference_has_the_standard_error_of_a_mean_of_as_many_rows_as_count():
    a, b = np.random.default_rng(0).random((2, M))
    for by in (0.1, 1.0, 50.0):
        mean, error = difference(a, b, np.full(M, by))
        assert mean == pytest.approx((a - b).mean(), rel=1e-13)
        assert error == pytest.approx((a - b).std() / np.sqrt(M), rel=1e-13)
    # Of a row that counts nine times as much as the two others: (11)^2 / 83 rows.
    mean, error = difference(np.array([1.0, 3.0, 2.0]), np.zeros(3), np.array([9.0, 1.0, 1.0]))
    assert mean == pytest.approx(14 / 11, rel=1e-13)
    variance = (9 * (3 / 11) ** 2 + (19 / 11) ** 2 + (8 / 11) ** 2) / 11
    assert error == pytest.approx(np.sqrt(variance * 83) / 11, rel=1e-13)


@pytest.mark.parametrize(
    ("gain", "error", "level", "is_shifted"),
    [
        (0.9, 1.0, 1.0, False),  # large, and within an error of nothing
        (1.1, 1.0, 1.0, True),  # large, and beyond an error
        (1.1, 1.0, 5.0, False),  # neither large nor certain
        (2.9, 1.0, 20.0, False),  # not large, and all but certain
        (3.1, 1.0, 20.0, True),  # not large, and certain
        (1.0, 0.0, 20.0, True),
        (0.0, 0.0, 1.0, False),
        (-1.0, 0.1, 5.0, False),
    ],
)
def test_equal_weights_stay_unless_another_family_is_clearly_better(
    gain, error, level, is_shifted
):
    task = task_of()
    ours, others = losses_with(gain, error, level, task.target.counts)
    weights = np.concatenate([np.zeros(N), np.ones(M)])
    equal = family("uniform", ours, np.concatenate([task.train.counts, task.target.counts]), 0.3)
    found = mixed(task, [equal, family("target", others, weights)])
    assert found.is_shifted == is_shifted
    if not is_shifted:
        assert_array_equal(found.shares, [1, 0])
        assert_array_equal(found.weights, equal.weights)
        assert found.ridge == 0.3


def test_equal_weights_stay_where_every_loss_is_nothing():
    none = np.zeros(M)
    assert not mixed(task_of(), [family("uniform", none), family("target", none)]).is_shifted


def test_best_of_many_is_the_one_that_equal_weights_are_compared_with():
    task = task_of()
    ours, others = losses_with(5.0, 0.5, 1.0, task.target.counts)
    worse = family("target", ours + 1)
    found = mixed(task, [family("uniform", ours), worse, family("gate", others)])
    assert found.is_shifted
    assert found.shares.argmax() == 2
    assert not mixed(task, [family("uniform", ours), worse]).is_shifted


# Mixing


def mixed_families(loss=SQUARED, scale=1.0, gap=0.15):
    """Equal weights that are clearly worse, and two others of which neither is."""
    rng = np.random.default_rng(3)
    task = task_of(loss=loss)
    counts = np.concatenate([task.train.counts, task.target.counts])
    base = 0.3 + rng.random(M)
    one, other = rng.random((2, N + M)) + 0.01
    one[:10], other[5:20] = 0, 1e-6
    one[N:] = other[N:] = task.target.counts
    families = [
        family("uniform", scale * (base + 1.5), counts, 1.0),
        family("loglinear", scale * (base + gap * rng.random(M)), one, 1e-2),
        family("gate", scale * (base + gap * rng.random(M)), other, 1e-4),
    ]
    return task, counts, families


def size_of(weights, counts):
    """Of weights of rows that are repeated as they count."""
    rows = np.repeat(weights / counts, counts.astype(int))
    return rows.sum() ** 2 / np.sum(rows**2)


@pytest.mark.parametrize("loss", [SQUARED, CROSS_ENTROPY])
def test_shares_are_those_of_a_loop_over_bayesian_bootstraps(loss):
    task, counts, families = mixed_families(loss)
    m, total = effective_number(task.target.counts), np.zeros(3)
    shares = task.target.counts / task.target.counts.sum()
    draws = np.random.RandomState(SEED).dirichlet(m * shares, 400)
    for draw in draws:
        credit = []
        for each in families:
            mean = draw @ each.losses
            evidence = (1 / mean) ** (m / 2) if loss is SQUARED else np.exp(-m * mean)
            prior = FAMILIES[each.name].prior * size_of(each.weights, counts) ** 2
            credit.append(prior * evidence)
        total += np.array(credit) / np.sum(credit)
    found = mixed(task, families)
    assert found.is_shifted
    assert_allclose(found.shares, total / 400, rtol=1e-9, atol=1e-15)
    assert (found.shares[1:] > 0.05).all()


def test_scale_of_losses_of_numbers_says_nothing():
    found = mixed(*mixed_families()[::2])
    scaled = mixed(*mixed_families(scale=1e-6)[::2])
    assert_allclose(scaled.shares, found.shares, rtol=1e-9)


def test_families_of_more_rows_have_more_credit():
    task, _, families = mixed_families()
    few = np.concatenate([np.zeros(N), task.target.counts])
    losses = families[1].losses
    pair = [family("gate", losses, families[2].weights), family("gate", losses, few)]
    shares = mixed(task, [families[0], *pair]).shares
    counts = np.concatenate([task.train.counts, task.target.counts])
    sizes = [size_of(each.weights, counts) for each in pair]
    assert shares[1] / shares[2] == pytest.approx((sizes[0] / sizes[1]) ** 2, rel=1e-9)


def test_weights_are_mixed_by_their_logarithms():
    task, counts, families = mixed_families()
    found = mixed(task, families)
    expected = np.zeros(N + M)
    for i in range(N + M):
        log = 0.0
        for share, each in zip(found.shares, families, strict=True):
            relative = each.weights / counts / (each.weights / counts).max()
            log += share * np.log(max(relative[i], 1e-3))
        expected[i] = counts[i] * np.exp(log)
    expected *= size_of(expected, counts) / expected.sum()
    assert_allclose(found.weights, expected, rtol=1e-10)


def test_share_of_target_rows_alone_is_taken_from_all_training_rows_alike():
    task, counts, families = mixed_families()
    few = np.concatenate([np.zeros(N), task.target.counts])
    only = family("target", families[2].losses - 0.02, few, 1e-3)
    found, without = (mixed(task, each) for each in ([*families, only], families))
    share = found.shares[3]
    assert 0.02 < share < 0.9
    assert found.shares[:3].sum() == pytest.approx(1 - share, rel=1e-12)
    # The others have the shares that they would have among themselves, so far as draws agree.
    logs = np.zeros(N + M)
    for each, of in zip(families, found.shares[:3] / (1 - share), strict=True):
        relative = each.weights / counts / (each.weights / counts).max()
        logs += of * np.log(np.maximum(relative, 1e-3))
    expected = counts * np.exp(logs)
    expected[:N] *= 1 - share
    expected *= size_of(expected, counts) / expected.sum()
    assert_allclose(found.weights, expected, rtol=1e-10)
    of_training = [mix.weights[:N].sum() / mix.weights[N:].sum() for mix in (found, without)]
    assert of_training[0] < 0.99 * of_training[1]


@pytest.mark.parametrize("loss", [SQUARED, CROSS_ENTROPY])
def test_target_rows_alone_are_left_where_they_have_all_the_credit(loss):
    task, _, families = mixed_families(loss)
    few = np.concatenate([np.zeros(N), task.target.counts])
    found = mixed(task, [families[0], family("target", 1e-9 * families[0].losses, few)])
    assert found.shares[1] > 0.99
    assert found.weights[:N].sum() < 0.01 * found.weights[N:].sum()
    ratio = found.weights[N:] / task.target.counts
    assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_row_that_a_family_of_credit_leaves_out_is_all_but_left_out():
    task, counts, families = mixed_families()
    found = mixed(task, families)
    each = found.weights / counts
    one, other = found.shares[1:]
    # A thousandth of the largest, by the share of the family that leaves the row out.
    assert each[:5].max() < each.max() * 1e-3**one * 1.001
    assert each[10:20].max() < each.max() * 1e-3**other * 1.001
    assert each[5:10].max() < each.max() * 1e-3 ** (one + other) * 1.001
    assert each[20:N].max() > 0.3 * each.max()


def test_ridge_is_the_geometric_mean():
    task, _, families = mixed_families()
    found = mixed(task, families)
    expected = np.prod(
        [each.ridge**share for share, each in zip(found.shares, families, strict=True)]
    )
    assert found.ridge == pytest.approx(expected, rel=1e-12)
    assert 1e-4 < found.ridge < 1e-2


def test_logarithms_are_of_weights_in_units_of_the_largest_and_bounded():
    weights = np.array([2.0, 1.0, 1e-9, 0.0])
    assert_allclose(log_relative(weights), np.log([1, 0.5, 1e-3, 1e-3]), rtol=1e-13)
    assert_allclose(log_relative(weights, 4.0), np.log([0.5, 0.25, 1e-3, 1e-3]), rtol=1e-13)


def test_families_that_see_the_shift_have_the_shares():
    """A third of the training rows has numbers of another sign: groups know which."""
    task = task_of(n=240, m=40)
    families = [judged(task, name, RIDGES, 5) for name in ("uniform", "target", "group")]
    found = mixed(task, families)
    assert found.is_shifted
    assert found.shares[2] > 0.9
    wrong = task.groups == 1
    assert found.weights[:240][wrong].sum() < 0.03 * found.weights[:240].sum()
