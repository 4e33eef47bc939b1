"""Orthogonal scores on finite supports, where every conditional mean is a sum."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from skbilevel.objectives.orthogonal import (
    MOMENT_SCORES,
    PRODUCT_SHARE,
    bilevel_score,
    inner_derivatives,
    linear_moments,
    moment_score,
    moment_value,
    outer_derivatives,
    sensitivity_target,
)
from tests.problems import central_differences

N_X, N_ROWS, P = 4, 5, 3
OMEGA = np.array([0.4, -0.7, 0.3])


def logistic_inner(omega, v, row):
    """Not quadratic, with a curvature that depends on the prediction and on omega."""
    curvature = 0.3 + 0.1 * torch.sin(omega @ row[:P])
    return torch.nn.functional.softplus(v) - torch.sigmoid(omega @ row[:P]) * v + curvature * v**2


def bent_outer(omega, v, row):
    """It depends on omega by itself and beside the prediction."""
    return (torch.sin(v) - row[P]) ** 2 / 2 + 0.3 * v**2 * (omega @ row[:P]) + 0.1 * omega @ omega


def squared_inner(omega, v, row):
    return (v - omega @ row[:P]) ** 2 / 2


def squared_outer(omega, v, row):
    return (row[P] - v) ** 2 / 2


@dataclass(frozen=True)
class Finite:
    """N_X values of X with N_ROWS rows each; ``weights`` (N_X, N_ROWS) are their probabilities."""

    inner: object
    outer: object
    rows: Tensor
    weights: Tensor

    @classmethod
    def random(cls, inner, outer, seed=0):
        rng = np.random.default_rng(seed)
        weights = rng.dirichlet(np.ones(N_X * N_ROWS)).reshape(N_X, N_ROWS)
        rows = rng.normal(size=(N_X, N_ROWS, P + 1))
        return cls(inner, outer, torch.from_numpy(rows), torch.from_numpy(weights))

    def given_x(self, each):
        """Conditional means, (N_X, ...), of values (N_X * N_ROWS, ...)."""
        each = each.reshape(N_X, N_ROWS, -1)
        return (self.weights[..., None] * each).sum(1) / self.weights.sum(1)[:, None]

    def mean(self, each):
        return (self.weights.reshape(-1, *[1] * (each.ndim - 1)) * each).sum(0)

    def spread(self, by_x):
        """Of values of X, (N_X, ...), those of its rows."""
        return by_x.repeat_interleave(N_ROWS, dim=0)

    def derivatives(self, omega, h):
        args = omega, self.spread(h), self.rows.reshape(-1, P + 1)
        return inner_derivatives(self.inner, *args), outer_derivatives(self.outer, *args)

    def h(self, omega):
        """By Newton's method."""
        h = torch.zeros(N_X, dtype=torch.float64)
        for _ in range(50):
            inner, _ = self.derivatives(omega, h)
            step = self.given_x(inner.slope) / self.given_x(inner.curvature)
            h = h - step[:, 0]
        return h

    def nuisances(self, omega):
        """h, J, a and c by X."""
        h = self.h(omega)
        inner, outer = self.derivatives(omega, h)
        curvature = self.given_x(inner.curvature)
        jacobian = -self.given_x(inner.cross) / curvature
        adjoint = -self.given_x(outer.slope) / curvature
        spread = self.spread(jacobian), self.spread(adjoint[:, 0])
        target = sensitivity_target(inner, outer, *spread)
        return h, jacobian, adjoint[:, 0], -self.given_x(target) / curvature

    def scores(self, omega, nuisances):
        h, *rest = nuisances
        return bilevel_score(*self.derivatives(omega, h), *map(self.spread, rest))

    def objective(self, omega):
        omega = torch.from_numpy(omega)
        rows, h = self.rows.reshape(-1, P + 1), self.spread(self.h(omega))
        each = torch.stack([self.outer(omega, v, row) for v, row in zip(h, rows, strict=True)])
        return float(self.mean(each))

    def gradient(self, omega):
        return self.mean(self.scores(omega, self.nuisances(omega))).numpy()


PROBLEMS = [(logistic_inner, bent_outer), (squared_inner, squared_outer)]


@pytest.fixture(params=PROBLEMS, ids=["bent", "squared"])
def problem(request):
    return Finite.random(*request.param)


def test_mean_of_the_score_is_the_gradient(problem):
    truth = central_differences(problem.objective, OMEGA)
    found = problem.gradient(torch.from_numpy(OMEGA))
    assert_allclose(found, truth, rtol=1e-7, atol=1e-9)
    assert np.abs(truth).min() > 0.01


def test_score_is_the_influence_function_of_the_gradient(problem):
    """d/dt of the gradient under P (1 + t s), for a random s of mean 0, is E[psi s]."""
    omega = torch.from_numpy(OMEGA)
    s = torch.from_numpy(np.random.default_rng(5).normal(size=(N_X, N_ROWS)))
    s = s - (problem.weights * s).sum()

    def gradient_at(t):
        moved = problem.weights * (1 + t * s)
        return Finite(problem.inner, problem.outer, problem.rows, moved).gradient(omega)

    step = 1e-4
    slope = (gradient_at(step) - gradient_at(-step)) / (2 * step)
    scores = problem.scores(omega, problem.nuisances(omega))
    expected = problem.mean(scores * s.reshape(-1, 1)).numpy()
    assert_allclose(expected, slope, rtol=1e-6, atol=1e-8)
    assert np.abs(slope).max() > 0.01


def test_errors_of_nuisances_count_by_their_square_and_those_of_plug_ins_at_once(problem):
    omega, rng = torch.from_numpy(OMEGA), np.random.default_rng(6)
    exact = problem.nuisances(omega)
    wrong = [torch.from_numpy(rng.normal(size=each.shape)) for each in exact]
    truth = problem.gradient(omega)

    def biases(t):
        h, jacobian, adjoint, sensitivity = (
            each + t * error for each, error in zip(exact, wrong, strict=True)
        )
        inner, outer = problem.derivatives(omega, h)
        along, back = problem.spread(jacobian), problem.spread(adjoint)
        scores = (
            problem.scores(omega, (h, jacobian, adjoint, sensitivity)),
            outer.direct + along * outer.slope[:, None],
            outer.direct + back[:, None] * inner.cross,
        )
        return [np.linalg.norm(problem.mean(each).numpy() - truth) for each in scores]

    order = np.log2(np.array(biases(2e-4)) / np.array(biases(1e-4)))
    assert_allclose(order, [2, 1, 1], atol=0.02)


# Conditional moments


def moments(seed=0, n=40):
    rng = np.random.default_rng(seed)
    shapes = ((n,), (n, P), (n,), (n, P))
    y, D, mu, K = (torch.from_numpy(rng.normal(size=shape)) for shape in shapes)
    return y, D, mu, K


def test_squared_losses_give_the_score_of_a_conditional_moment():
    """Instrumental variables: r = f - y with E[r | X] = h - E[y | X], and D = d_omega f."""
    problem, omega = Finite.random(squared_inner, squared_outer), torch.from_numpy(OMEGA)
    rows = problem.rows.reshape(-1, P + 1)
    D, y = rows[:, :P], rows[:, P]
    r = D @ omega - y
    rho, kappa = problem.spread(problem.given_x(r))[:, 0], problem.spread(problem.given_x(D))
    expected = problem.scores(omega, problem.nuisances(omega))
    assert_allclose(moment_score(rho, kappa, r, D), expected, rtol=1e-10, atol=1e-12)


def test_bias_of_the_moment_score_is_the_product_of_both_errors():
    problem, omega = Finite.random(squared_inner, squared_outer), torch.from_numpy(OMEGA)
    rows = problem.rows.reshape(-1, P + 1)
    D, y = rows[:, :P], rows[:, P]
    r = D @ omega - y
    rho, kappa = problem.given_x(r)[:, 0], problem.given_x(D)
    rng = np.random.default_rng(1)
    in_rho, in_kappa = (torch.from_numpy(rng.normal(size=e.shape)) for e in (rho, kappa))
    wrong = problem.spread(rho + in_rho), problem.spread(kappa + in_kappa)
    bias = problem.mean(moment_score(*wrong, r, D)) - problem.mean(
        moment_score(problem.spread(rho), problem.spread(kappa), r, D)
    )
    product_of_errors = problem.mean(problem.spread(in_rho[:, None] * in_kappa))
    assert_allclose(bias, -product_of_errors, rtol=1e-10)


@pytest.mark.parametrize("name", MOMENT_SCORES)
def test_linear_moments_are_the_mean_of_the_score_for_every_omega(name):
    y, D, mu, K = moments()
    score = MOMENT_SCORES[name]
    matrix, vector = linear_moments(y, D, mu, K, score)
    for seed in range(3):
        omega = torch.from_numpy(np.random.default_rng(seed).normal(size=P))
        expected = score(K @ omega - mu, K, D @ omega - y, D).mean(dim=0)
        assert_allclose(matrix @ omega - vector, expected, rtol=1e-10, atol=1e-12)


def test_matrix_of_the_orthogonal_score_is_symmetric():
    matrix, _ = linear_moments(*moments())
    assert_allclose(matrix, matrix.T, rtol=1e-13)


def test_with_exact_nuisances_every_score_has_the_gradient_as_its_mean():
    problem, omega = Finite.random(squared_inner, squared_outer), torch.from_numpy(OMEGA)
    rows = problem.rows.reshape(-1, P + 1)
    D, r = rows[:, :P], rows[:, :P] @ omega - rows[:, P]
    rho, kappa = problem.spread(problem.given_x(r))[:, 0], problem.spread(problem.given_x(D))
    expected = problem.mean(rho[:, None] * kappa)
    assert float(expected.abs().max()) > 1e-3
    for score in MOMENT_SCORES.values():
        assert_allclose(problem.mean(score(rho, kappa, r, D)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MOMENT_SCORES)
def test_share_of_the_product_is_what_a_score_has_of_it(name):
    """Nuisances that are both too large by e: the score has e^2 times its share of the product."""
    y, D, mu, K = moments()
    score, errors = MOMENT_SCORES[name], []
    for e in (1.0, -1.0):
        errors.append(score(mu + e, K + e, y, D) - score(mu, K, y, D))
    second = (errors[0] + errors[1]) / 2
    assert_allclose(second, PRODUCT_SHARE[name], rtol=1e-9, atol=1e-12)


def test_score_is_the_derivative_of_the_value():
    y, D, mu, K = moments(1)

    def value(omega):
        omega = torch.from_numpy(omega)
        return float(moment_value(K @ omega - mu, D @ omega - y).mean())

    omega = torch.from_numpy(OMEGA)
    score = moment_score(K @ omega - mu, K, D @ omega - y, D).mean(dim=0)
    assert_allclose(score, central_differences(value, OMEGA), rtol=1e-8, atol=1e-10)


def test_value_at_exact_nuisances_is_that_of_the_conditional_mean():
    problem = Finite.random(squared_inner, squared_outer)
    r = torch.from_numpy(np.random.default_rng(2).normal(size=N_X * N_ROWS))
    rho = problem.spread(problem.given_x(r))[:, 0]
    expected = problem.mean(rho**2 / 2)
    assert float(problem.mean(moment_value(rho, r))) == pytest.approx(float(expected), rel=1e-12)


def test_least_squares_series_without_folds_are_two_stage_least_squares():
    """Both plug-ins and the score are the same, and 0 where two-stage least squares is."""
    rng = np.random.default_rng(3)
    Z, y = rng.normal(size=(50, 6)), rng.normal(size=50)
    D = Z[:, :P] + rng.normal(size=(50, P))
    smooth = Z @ np.linalg.pinv(Z)
    kappa, mu = smooth @ D, smooth @ y
    omega = np.linalg.solve(kappa.T @ D, kappa.T @ y)
    for at in (omega, OMEGA):
        tensors = map(torch.from_numpy, (kappa @ at - mu, kappa, D @ at - y, D))
        rho, K, r, slopes = tensors
        expected = kappa.T @ (D @ at - y)
        for score in MOMENT_SCORES.values():
            assert_allclose(score(rho, K, r, slopes).sum(dim=0), expected, atol=1e-10)
    matrix, vector = linear_moments(*map(torch.from_numpy, (y, D, mu, kappa)))
    assert_allclose(torch.linalg.solve(matrix, vector), omega, rtol=1e-10)
