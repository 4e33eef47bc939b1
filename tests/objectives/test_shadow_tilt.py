"""Shadow targets against a transcription in NumPy loops, quadrature and finite differences."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LinearRegression

from skbilevel.objectives.shadow_tilt import (
    ShadowTarget,
    capped,
    held_out_loss,
    losses,
    mask_agreement,
    mask_fit,
    mask_score,
    objective,
    stacked,
    students,
    tilt_of,
    tilted_rows,
    unopposed,
)
from tests.problems import central_differences

RIDGE, CAP, SHARED, OWN = 2.0, 8.0, 2.0, 0.5


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def targets(n_targets=3, n=40, d=4, n_folds=5, seed=0):
    """Random rows with covariances that are 0 at observed cells; the last one has two columns.

    Each target has a row more than the one before it, so that folds are of different sizes.
    """
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n_targets):
        n_rows = n + k
        root = rng.normal(size=(n_rows, d, d)) * (rng.random((n_rows, d, 1)) < 0.5)
        covariance = root @ root.transpose(0, 2, 1) / d
        mean = rng.normal(size=(n_rows, d))
        truth = mean + covariance @ np.array([0.8, 0.8, -0.4, 0.0])
        values = truth @ rng.normal(size=(d, 1 + (k == n_targets - 1)))
        values = values + 0.3 * rng.normal(size=values.shape)
        n_per_fold = -(-n_rows // n_folds)
        order = np.full(n_per_fold * n_folds, n_rows)
        order[:n_rows] = rng.permutation(n_rows)
        rows = order.reshape(n_per_fold, n_folds).T
        parts = (mean, covariance, values, np.ones((n_rows, 1)))
        filled = (np.concatenate([part, 0 * part[:1]])[rows] for part in parts)
        found.append(ShadowTarget(*map(tensor, filled)))
    return found


def loss_by_hand(target, tilt):
    """Eqs. (1) to (3), row by row and fold by fold."""
    folds = []
    for mean, covariance, values, present in zip(*(part.numpy() for part in target), strict=True):
        true = present[:, 0] > 0
        moved = [e + c @ tilt for e, c in zip(mean[true], covariance[true], strict=True)]
        folds.append((np.array([[*row, 1.0] for row in moved]), values[true]))
    total = 0.0
    for k, (own_rows, own_values) in enumerate(folds):
        Z, t = (
            np.concatenate([part[i] for j, part in enumerate(folds) if j != k]) for i in (0, 1)
        )
        w = np.linalg.solve(Z.T @ Z + RIDGE * np.eye(Z.shape[1]), Z.T @ t)
        total += ((own_values - own_rows @ w) ** 2).sum()
    n_rows = sum(len(rows) for rows, _ in folds)
    return n_rows / 2 * np.log(total / n_rows + 1e-3)


def objective_by_hand(problem, theta):
    """Eqs. (4) to (7)."""
    tilt = SHARED * theta[0] + OWN * theta[1:]
    total = 0.5 * theta @ theta
    for target in problem:
        gain = loss_by_hand(target, np.zeros(4)) - loss_by_hand(target, tilt)
        total -= CAP * (1 - np.exp(-gain / CAP)) if gain > 0 else gain
    return total


def test_loss_is_that_of_ridge_regressions_on_rows_that_they_have_not_seen():
    tilt = np.array([0.3, -0.2, 0.5, 0.1])
    for target in targets():
        ours = held_out_loss(
            tilted_rows(target.mean, target.covariance, tensor(tilt)), target, RIDGE
        )
        assert ours.item() == pytest.approx(loss_by_hand(target, tilt), rel=1e-12)
    together = losses(stacked(targets()), tensor(tilt), RIDGE)
    assert_allclose(together, [loss_by_hand(target, tilt) for target in targets()], rtol=1e-12)


def test_student_of_a_fold_does_not_see_it():
    (target,) = targets(1)
    rows = torch.cat([target.mean, target.present], dim=-1)
    before = students(rows, target, RIDGE)
    spoilt = target.values.clone()
    spoilt[2] = 1e3
    after = students(rows, target._replace(values=spoilt), RIDGE)
    assert_allclose(after[2], before[2], rtol=1e-6)
    assert (after[[0, 1, 3, 4]] - before[[0, 1, 3, 4]]).abs().amax(dim=(1, 2)).min() > 1


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_students_that_are_solved_anew(seed):
    """Direct and implicit part at once, by central differences of the transcription."""
    problem, theta = targets(seed=seed), np.random.default_rng(seed).normal(size=5)

    def ours(x):
        at_random = losses(stacked(problem), torch.zeros(4).double(), RIDGE)
        gains = at_random - losses(stacked(problem), tilt_of(x, SHARED, OWN), RIDGE)
        return objective(gains, x, CAP)

    x = tensor(theta).requires_grad_()
    value = ours(x)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(objective_by_hand(problem, theta), rel=1e-10)
    differences = central_differences(lambda t: objective_by_hand(problem, t), theta)
    beyond_the_prior = np.linalg.norm(differences - theta)
    assert beyond_the_prior > 1
    assert np.linalg.norm(gradient.numpy() - differences) < 1e-6 * beyond_the_prior


def test_tilted_mean_is_that_of_a_normal_times_exponentials():
    """Two missing cells by quadrature on a grid."""
    mean, tilt = np.array([0.4, -1.0]), np.array([0.7, -0.5])
    covariance = np.array([[0.8, 0.3], [0.3, 0.5]])
    grid = np.linspace(-9, 9, 601)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    e = points - mean
    log_density = -0.5 * (e @ np.linalg.inv(covariance) * e).sum(axis=1) + points @ tilt
    weights = np.exp(log_density - log_density.max())
    expected = weights @ points / weights.sum()
    ours = tilted_rows(tensor(mean[None]), tensor(covariance[None]), tensor(tilt))
    assert_allclose(ours[0], expected, rtol=1e-9)


def test_gains_are_capped_and_harm_is_not():
    gains = torch.linspace(-1e4, 1e4, 2001, dtype=torch.float64, requires_grad=True)
    counted = capped(gains, CAP)
    (slope,) = torch.autograd.grad(counted.sum(), gains)
    assert counted.max() <= CAP
    assert_allclose(counted.detach()[:1001], gains.detach()[:1001])
    assert ((slope >= 0) & (slope <= 1)).all()
    small = capped(tensor([1e-9]), CAP)
    assert_allclose(small, 1e-9, rtol=1e-8)


def test_mask_is_told_by_the_prediction_of_its_column_and_by_all_columns_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(60, 3))
    missing = (predicted @ [-1.0, 0.5, 0.0] + rng.normal(size=60) > 0).astype(float)
    fit = mask_fit(tensor(missing), tensor(predicted), 0)
    assert fit[0] == pytest.approx(np.corrcoef(missing, predicted[:, 0])[0, 1], rel=1e-12)
    by_all = LinearRegression().fit(predicted, missing).score(predicted, missing)
    assert fit[1] == pytest.approx(by_all, rel=1e-12)
    assert fit[2] == pytest.approx(predicted[:, 0].std(), rel=1e-12)
    assert_array_equal(mask_fit(tensor(np.ones(60)), tensor(predicted), 0)[:2], 0.0)


def test_mask_that_hides_by_its_own_value_agrees_and_one_that_others_drive_does_not():
    """The mask of x = 2 z_1 + z_2 + noise goes by x, or by z_3."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(20000, 3))
    e = z @ [2.0, 1.0, 0.0]
    x = e + rng.normal(size=20000)
    predicted = tensor(np.column_stack([e, z]))
    own, other = (
        mask_fit(tensor((driver + rng.logistic(size=20000) > 0).astype(float)), predicted, 0)
        for driver in (-x, 3 * z[:, 2])
    )
    agreements = [mask_agreement(tensor([tilt]), own[None]).item() for tilt in (-0.7, 0.7)]
    assert_allclose(agreements, [1.0, -1.0], atol=0.01)
    assert abs(mask_agreement(tensor([0.7]), other[None]).item()) < 0.01
    both = torch.stack([own, other])
    assert mask_agreement(tensor([-2.0, 0.0]), both).item() == pytest.approx(agreements[0])
    assert_array_equal(unopposed(tensor([-0.7]), own[None]), -0.7)
    assert_array_equal(unopposed(tensor([0.7]), own[None]), 0.0)


def test_score_of_a_mask_that_goes_by_nothing_is_standard_normal():
    """Whatever the tilt and the spread of the predictions, over many masks."""
    rng = np.random.default_rng(2)
    predicted, tilt = tensor(rng.normal(size=(200, 3)) * [0.2, 1.0, 3.0]), tensor([2.0, -0.5, 0.1])
    scores = []
    for _ in range(2000):
        missing = tensor((rng.random((3, 200)) < 0.4).astype(float))
        fits = torch.stack([mask_fit(missing[j], predicted, j) for j in range(3)])
        scores.append(mask_score(tilt, fits, 200).item())
    assert abs(np.mean(scores)) < 0.07
    assert 0.95 < np.std(scores) < 1.05


def test_score_grows_with_the_root_of_the_rows_and_has_the_sign_of_the_tilt():
    fits = tensor([[0.3, 0.2, 2.0], [-0.1, 0.2, 1.0]])
    # a = (2, 1): sqrt(100) (2 * .3 - 1 * .1) / sqrt(5)
    assert mask_score(tensor([1.0, 1.0]), fits, 100).item() == pytest.approx(5 / 5**0.5)
    assert mask_score(tensor([-1.0, -1.0]), fits, 400).item() == pytest.approx(-10 / 5**0.5)
    assert mask_score(tensor([0.0, 0.0]), fits, 100).item() == 0
