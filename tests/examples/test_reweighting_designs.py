"""The designs of reweighting against their published figures and properties."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.benchmark_modules import benchmark_module

designs = benchmark_module("reweighting_designs")


def ridge(case, weights, l2):
    """Coefficients of weights that sum to 1, by normal equations, and the rows of the test."""
    X, X_test = case.X, case.X_test
    if case.has_constant:
        X, X_test = (np.column_stack([rows, np.ones(len(rows))]) for rows in (X, X_test))
    w = weights / weights.sum()
    theta = np.linalg.solve((X.T * w) @ X + l2 * np.eye(X.shape[1]), (X.T * w) @ case.y)
    return theta, np.mean((X_test @ theta - case.y_test) ** 2)


def uniform(case):
    return np.ones(len(case.y))


def test_toy_has_the_published_errors_of_equal_and_of_ideal_weights():
    cases = [designs.TOYS["d=20"](seed) for seed in range(4)]
    errors = [
        [np.linalg.norm(ridge(c, w, 1e-6)[0] - c.theta) for c, w in pairs]
        for pairs in ([(c, uniform(c)) for c in cases], [(c, c.ideal) for c in cases])
    ]
    assert_allclose(np.mean(errors, axis=1), [0.741, 0.082], atol=5e-4)


@pytest.mark.parametrize(
    ("design", "published"),
    [
        (lambda seed: designs.sugiyama(30, seed), (0.209, 0.0058)),
        (lambda seed: designs.biased_diabetes(40, seed), (0.995, 1.91)),
    ],
)
def test_shifted_designs_have_the_published_errors_of_equal_weights_and_of_the_true_ratio(
    design, published
):
    cases = [design(seed) for seed in range(20)]
    told = [(ridge(c, uniform(c), 1e-4)[1], ridge(c, c.ideal, 1e-4)[1]) for c in cases]
    assert_allclose(np.mean(told, axis=0), published, rtol=0.01)


def test_cleaning_has_the_published_size_and_share_of_wrong_labels():
    cases = [designs.cleaning("digits", 0.8, seed, 150) for seed in range(6)]
    assert_allclose(np.mean([np.log(c.ideal.sum()) for c in cases]), 5.44, atol=5e-3)
    case = cases[0]
    assert case.X.shape == (1147, 55)
    assert len(case.y_target) == 150
    assert len(case.y_test) == 500


def test_pairwise_noise_swaps_a_label_with_its_partner_only():
    noisy = designs.cleaning("digits", 0.3, 0, 150, is_pairwise=True)
    clean = designs.cleaning("digits", 0.0, 0, 150)
    is_wrong = noisy.y != clean.y
    assert_allclose(is_wrong, noisy.ideal == 0)
    swapped = {
        tuple(sorted(pair)) for pair in zip(noisy.y[is_wrong], clean.y[is_wrong], strict=True)
    }
    assert swapped == {(0, 6), (3, 8), (1, 7), (4, 9), (2, 5)}


def test_without_shift_training_rows_are_like_target_rows():
    case = designs.REGRESSION["no shift, toy d=20"](0)
    theta = ridge(case, uniform(case), 1e-6)[0]
    assert np.linalg.norm(theta - case.theta) < 0.12
    assert abs(case.X[:, 0].mean() - case.X_target[:, 0].mean()) < 0.4
