"""Shadow targets against a transcription in NumPy loops, quadrature and finite differences."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skbilevel.objectives.shadow_tilt import (
    ShadowTarget,
    capped,
    held_out_loss,
    losses,
    objective,
    students,
    tilt_of,
    tilted_rows,
)
from tests.problems import central_differences

RIDGE, CAP, SHARED, OWN = 2.0, 8.0, 2.0, 0.5


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def targets(n_targets=3, n=40, d=4, n_folds=5, seed=0):
    """Random rows with covariances that are 0 at observed cells; the last one has two columns."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n_targets):
        root = rng.normal(size=(n, d, d)) * (rng.random((n, d, 1)) < 0.5)
        covariance = root @ root.transpose(0, 2, 1) / d
        mean = rng.normal(size=(n, d))
        truth = mean + covariance @ np.array([0.8, 0.8, -0.4, 0.0])
        values = truth @ rng.normal(size=(d, 1 + (k == n_targets - 1)))
        values = values + 0.3 * rng.normal(size=values.shape)
        fold = rng.permutation(np.arange(n) % n_folds)
        folds = (fold == np.arange(n_folds)[:, np.newaxis]).astype(float)
        found.append(ShadowTarget(*map(tensor, (mean, covariance, values, folds))))
    return found


def loss_by_hand(target, tilt):
    """Eqs. (1) to (3), row by row and fold by fold."""
    mean, covariance, values, folds = (part.numpy() for part in target)
    rows = np.array([[*(e + c @ tilt), 1.0] for e, c in zip(mean, covariance, strict=True)])
    total = 0.0
    for fold in folds.astype(bool):
        Z, t = rows[~fold], values[~fold]
        w = np.linalg.solve(Z.T @ Z + RIDGE * np.eye(Z.shape[1]), Z.T @ t)
        total += ((values[fold] - rows[fold] @ w) ** 2).sum()
    return len(rows) / 2 * np.log(total / len(rows) + 1e-3)


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
    stacked = losses(targets(), tensor(tilt), RIDGE)
    assert_allclose(stacked, [loss_by_hand(target, tilt) for target in targets()], rtol=1e-12)


def test_student_of_a_fold_does_not_see_it():
    (target,) = targets(1)
    before = students(target.mean, target, RIDGE)
    own = target.folds[2] > 0
    spoilt = target._replace(values=torch.where(own[:, None], 1e3, target.values))
    after = students(target.mean, spoilt, RIDGE)
    assert_allclose(after[2], before[2], rtol=1e-6)
    assert (after[[0, 1, 3, 4]] - before[[0, 1, 3, 4]]).abs().amax(dim=(1, 2)).min() > 1


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_students_that_are_solved_anew(seed):
    """Direct and implicit part at once, by central differences of the transcription."""
    problem, theta = targets(seed=seed), np.random.default_rng(seed).normal(size=5)

    def ours(x):
        at_random = losses(problem, torch.zeros(4).double(), RIDGE)
        gains = at_random - losses(problem, tilt_of(x, SHARED, OWN), RIDGE)
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
