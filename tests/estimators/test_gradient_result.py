"""Intervals and tests of a mean of scores, against closed forms and draws of normal data."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import chi2, norm

from skbilevel.estimators.gradient_result import (
    GradientResult,
    joint_normal_quantile,
    joint_quantile,
    median_of,
)

ROOT = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-0.3, 0.2, 1.5]])


def result_of(scores):
    cov = np.cov(scores, rowvar=False) / len(scores)
    return GradientResult(scores.mean(axis=0), cov, scores)


@pytest.fixture
def result():
    return result_of(np.random.default_rng(0).normal(size=(200, 3)) @ ROOT.T + [0.1, 0.0, -0.2])


def test_intervals_are_those_of_wald(result):
    scores = result.scores_
    se = scores.std(axis=0, ddof=1) / np.sqrt(200)
    assert_allclose(result.stderr_, se, rtol=1e-12)
    for level in (0.5, 0.95):
        expected = norm.interval(level, scores.mean(axis=0), se)
        assert_allclose(result.conf_int(level), np.transpose(expected), rtol=1e-10)


def test_joint_interval_of_one_coordinate_is_that_of_wald_up_to_draws(result):
    one = GradientResult(result.coef_[:1], result.cov_[:1, :1], result.scores_[:, :1])
    joint = one.conf_int(joint=True, random_state=0)
    width = np.ptp(joint) / np.ptp(one.conf_int())
    assert width == pytest.approx(1, abs=0.06)


def test_joint_quantile_of_independent_coordinates_is_that_of_the_largest_normal():
    scores = np.random.default_rng(1).normal(size=(2000, 8)) * np.arange(1, 9)
    found = joint_quantile(scores, 0.9, np.random.RandomState(0))
    assert found == pytest.approx(norm.ppf((1 + 0.9 ** (1 / 8)) / 2), abs=0.08)
    same = np.repeat(scores[:, :1], 8, axis=1)
    assert joint_quantile(same, 0.9, np.random.RandomState(0)) == pytest.approx(1.645, abs=0.08)


def test_joint_intervals_hold_at_once_and_others_do_not():
    rng, inside = np.random.default_rng(2), []
    for seed in range(200):
        each = result_of(rng.normal(size=(100, 6)))
        bounds = each.conf_int(), each.conf_int(joint=True, random_state=seed)
        inside.append([((low <= 0) & (high >= 0)).all() for low, high in (b.T for b in bounds)])
    wald, joint = np.mean(inside, axis=0)
    # Six independent intervals of .95 hold at once in .735 of the draws.
    assert wald < 0.85
    assert 0.90 <= joint <= 0.99


def test_coordinate_that_does_not_vary_has_an_interval_of_no_length():
    scores = np.column_stack([np.random.default_rng(3).normal(size=50), np.full(50, 0.1)])
    each = result_of(scores)
    bounds = each.conf_int(joint=True, random_state=0)
    assert_allclose(bounds[1], 0.1, atol=1e-12)
    assert np.isfinite(bounds).all()
    assert np.isfinite(result_of(np.full((5, 2), 0.3)).conf_int(joint=True)).all()


def test_random_state_draws_the_multipliers(result):
    first, again = (result.conf_int(joint=True, random_state=5) for _ in range(2))
    assert_array_equal(first, again)
    assert np.abs(first - result.conf_int(joint=True, random_state=6)).max() > 0


def test_statistic_is_the_squared_length_of_the_gradient_in_standard_units(result):
    test = result.stationarity_test()
    expected = result.coef_ @ np.linalg.solve(result.cov_, result.coef_)
    assert test.statistic == pytest.approx(expected, rel=1e-10)
    assert test.df == 3
    assert test.pvalue == pytest.approx(chi2.sf(expected, 3), rel=1e-10)


def test_size_of_the_test_is_its_level():
    rng = np.random.default_rng(4)
    pvalues = [
        result_of(rng.normal(size=(300, 3)) @ ROOT.T).stationarity_test().pvalue
        for _ in range(400)
    ]
    # .05 with a standard error of .011.
    assert 0.02 <= np.mean(np.array(pvalues) < 0.05) <= 0.09


def test_directions_that_do_not_vary_are_not_tested(result):
    twice = result_of(np.column_stack([result.scores_, result.scores_[:, 0]]))
    test, expected = twice.stationarity_test(), result.stationarity_test()
    assert test.df == 3
    assert test.statistic == pytest.approx(expected.statistic, rel=1e-6)
    nothing = result_of(np.zeros((4, 2))).stationarity_test()
    assert nothing.df == 0
    assert nothing.pvalue == 1


def test_bound_holds_in_as_many_draws_as_it_says():
    rng, truth, held = np.random.default_rng(5), np.array([0.1, -0.1, 0.05]), []
    for _ in range(300):
        each = result_of(rng.normal(size=(100, 3)) @ ROOT.T + truth)
        held.append(np.linalg.norm(truth) <= each.norm_upper_bound(0.9))
        assert each.norm_upper_bound(0.9) < each.norm_upper_bound(0.99)
    assert np.mean(held) >= 0.9


def test_bound_is_the_norm_and_the_radius_of_a_ball(result):
    radius = np.sqrt(np.linalg.eigvalsh(result.cov_).max() * chi2.ppf(0.95, 3))
    expected = np.linalg.norm(result.coef_) + radius
    assert result.norm_upper_bound() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_level_is_a_probability(result, level):
    with pytest.raises(ValueError, match=f"level={level} must be between 0 and 1"):
        result.conf_int(level)
    with pytest.raises(ValueError, match=f"level={level} must be between 0 and 1"):
        result.norm_upper_bound(level)


def test_stationarity_leaves_out_what_does_not_vary_and_keeps_what_is_small():
    rng = np.random.default_rng(7)
    scores = rng.normal([0.2, 0.0, 0.1], size=(300, 3))
    expected = result_of(scores).stationarity_test()
    units = [1e6, 1.0, 1e-6]
    small = result_of(scores * units).stationarity_test()
    assert (small.statistic, small.df) == (pytest.approx(expected.statistic, rel=1e-6), 3)
    summed = result_of(np.column_stack([scores, -scores.sum(axis=1)])).stationarity_test()
    assert (summed.statistic, summed.df) == (pytest.approx(expected.statistic, rel=1e-6), 3)


def repeated():
    rng = np.random.default_rng(7)
    return [result_of(rng.normal(size=(80, 3)) @ ROOT.T + shift) for shift in (0.0, 0.3, 0.1, 2.0)]


def test_median_of_repetitions_has_the_variance_of_the_rule():
    each = repeated()
    found = median_of(each)
    coef = np.median([one.coef_ for one in each], axis=0)
    assert_allclose(found.coef_, coef)
    variances = [one.stderr_**2 + (one.coef_ - coef) ** 2 for one in each]
    assert_allclose(found.stderr_**2, np.median(variances, axis=0), rtol=1e-12)
    # Four numbers, of which one is far off: its part is bounded.
    assert (found.stderr_ < 0.5 * np.sqrt(np.max(variances, axis=0))).all()
    assert np.linalg.eigvalsh(found.cov_).min() > 0
    assert found.scores_.shape == (80, 3)
    assert median_of(each[:1]) is each[0]


def test_joint_quantile_of_a_normal_estimate_is_that_of_its_scores(result):
    rows = np.array([[1.0, 0.0, 0.0], [1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    by_scores = joint_quantile(result.scores_ @ rows.T, 0.9, np.random.RandomState(0))
    found = joint_normal_quantile(rows, result.cov_, 0.9, np.random.RandomState(1))
    assert found == pytest.approx(by_scores, abs=0.08)
    nothing = joint_normal_quantile(rows[2:], result.cov_, 0.95, np.random.RandomState(0))
    assert nothing == pytest.approx(norm.ppf(0.975))


def test_wald_test_does_not_depend_on_units(result):
    unit = np.array([1e-8, 1.0, 1e6])
    scaled = result_of(result.scores_ * unit).stationarity_test()
    assert scaled.df == 3
    assert scaled.statistic == pytest.approx(result.stationarity_test().statistic, rel=1e-8)
