"""Scores of two samples against finite differences, and derivatives along distributions."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import binom
from torch.func import grad, jacrev, vmap

from skbilevel.estimators.linear_hypergradient import group_gradient
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED
from skbilevel.objectives.reweighting import reweighted_linear
from skbilevel.objectives.two_sample import grouped_linear_scores, two_sample_scores
from tests.problems import central_differences
from tests.reference import reweighting as reference

LOSSES = {"squared": SQUARED, "cross-entropy": CROSS_ENTROPY}
P, RIDGE = 3, 0.05


def centred(n, seed):
    """A direction in which probabilities of n rows can move."""
    s = np.random.default_rng(seed).normal(size=n)
    return s - s.mean()


def along(gradient_at, step=1e-4):
    """d/dt at 0, by differences of fourth order."""
    near, far = (gradient_at(t) - gradient_at(-t) for t in (step, 2 * step))
    return (8 * near - far) / (12 * step)


# Any losses


def bent_inner(omega, theta, row):
    """Not quadratic, with a Hessian that depends on theta and on omega; row[-1] is a factor."""
    z, pull = row[:P] @ theta, torch.sigmoid(omega @ row[:P])
    own = torch.nn.functional.softplus(z) - pull * z + torch.exp(0.3 * z + omega[0]) / 4
    return row[-1] * (own + (0.3 + 0.1 * torch.sin(omega @ theta)) * theta @ theta)


def bent_outer(omega, theta, row):
    """It depends on omega by itself and beside theta."""
    z = row[:P] @ theta
    return row[-1] * (
        (torch.sin(z) - row[P]) ** 2 / 2 + 0.3 * z**2 * (omega @ row[:P]) + 0.1 * omega @ omega
    )


@dataclass(frozen=True)
class Bent:
    """Both samples as finite supports, with the probabilities as factors of rows."""

    inner: torch.Tensor
    outer: torch.Tensor

    @classmethod
    def random(cls, seed=0):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(2, 9, P + 2))
        rows[:, :, -1] = 9 * rng.dirichlet(np.ones(9), size=2)
        return cls(*torch.from_numpy(rows))

    def moved(self, name, s, t):
        """With probabilities times 1 + t s."""
        rows = getattr(self, name).clone()
        rows[:, -1] *= 1 + t * torch.from_numpy(s)
        return replace(self, **{name: rows})

    def mean(self, loss, rows):
        return lambda omega, theta: vmap(loss, (None, None, 0))(omega, theta, rows).mean()

    def theta(self, omega):
        """By Newton's method."""
        theta, loss = torch.zeros(P, dtype=torch.float64), self.mean(bent_inner, self.inner)
        for _ in range(40):
            slope, matrix = grad(loss, 1)(omega, theta), jacrev(grad(loss, 1), 1)(omega, theta)
            theta = theta - torch.linalg.solve(matrix, slope)
        return theta

    def objective(self, omega):
        omega = torch.from_numpy(omega)
        return float(self.mean(bent_outer, self.outer)(omega, self.theta(omega)))

    def scores(self, omega):
        omega = torch.from_numpy(omega)
        rows = self.inner, self.outer
        return two_sample_scores(bent_inner, bent_outer, omega, self.theta(omega), *rows)


OMEGA = np.array([0.4, -0.7, 0.3])


def test_means_of_the_scores_of_any_losses_add_up_to_the_gradient():
    problem = Bent.random()
    truth, scores = central_differences(problem.objective, OMEGA), problem.scores(OMEGA)
    found = scores.outer.mean(dim=0) + scores.inner.mean(dim=0)
    assert_allclose(found, truth, rtol=1e-7, atol=1e-9)
    assert np.abs(truth).min() > 0.01
    assert_allclose(scores.inner.mean(dim=0), 0, atol=1e-12)


@pytest.mark.parametrize("sample", ["inner", "outer"])
def test_scores_of_any_losses_are_the_influence_functions_of_the_gradient(sample):
    """d/dt of the gradient under P (1 + t s) of one of the samples is E[psi s]."""
    problem = Bent.random()
    s = centred(9, 1)
    # Factors are no probabilities of equal rows: s has mean 0 under these.
    s = s - np.average(s, weights=getattr(problem, sample)[:, -1])

    def gradient_at(t):
        moved = problem.moved(sample, s, t)
        scores = moved.scores(OMEGA)
        return (scores.outer.mean(dim=0) + scores.inner.mean(dim=0)).numpy()

    scores = getattr(problem.scores(OMEGA), sample)
    slope = along(gradient_at)
    assert_allclose((scores.T @ torch.from_numpy(s) / 9), slope, rtol=1e-6, atol=1e-8)
    assert np.abs(slope).max() > 0.01


# Linear models whose weights are those of groups


@dataclass(frozen=True)
class Grouped:
    """Rows of three groups, with weights that do not sum to 1, and target rows with theirs."""

    kind: str
    X: np.ndarray
    Y: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    X_target: np.ndarray
    Y_target: np.ndarray
    target_weights: np.ndarray

    @classmethod
    def random(cls, kind, seed=0, n=24, m=15):
        rng = np.random.default_rng(seed)
        X, X_target = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
        groups = rng.permutation(np.arange(n) % P)
        if kind == "squared":
            Y, Y_target = rng.normal(size=(n, 2)) + groups[:, None], rng.normal(size=(m, 2))
        else:
            Y, Y_target = np.eye(P)[rng.integers(P, size=n)], np.eye(P)[rng.integers(P, size=m)]
            Y[groups == 0] = np.eye(P)[0]
        weights, judges = rng.gamma(2, size=n), rng.dirichlet(np.ones(m))
        return cls(kind, X, Y, weights, groups, X_target, Y_target, judges)

    @property
    def share(self):
        """mu of a row."""
        return RIDGE / self.weights.sum()

    def theta(self, omega, weights):
        each = weights * np.exp(omega)[self.groups]
        ridge = self.share * each.sum()
        return reference.solution(self.kind, each, self.X, self.Y, ridge), each, ridge

    def objective(self, omega):
        theta = self.theta(omega, self.weights)[0]
        rows = zip(self.target_weights, self.X_target, self.Y_target, strict=True)
        return sum(t * reference.row_loss(self.kind, x @ theta, y) for t, x, y in rows)

    def gradient(self, weights, target_weights):
        """At omega = 0, by the implicit function theorem with a dense Hessian."""
        theta, each, ridge = self.theta(np.zeros(P), weights)
        rows = zip(target_weights, self.X_target, self.Y_target, strict=True)
        right = sum(t * reference.row_gradient(self.kind, theta, x, y) for t, x, y in rows)
        v = np.linalg.solve(
            reference.hessian(self.kind, theta, each, self.X, ridge), right.ravel()
        )
        found = np.zeros(P)
        for w, k, x, y in zip(weights, self.groups, self.X, self.Y, strict=True):
            slope = reference.row_gradient(self.kind, theta, x, y) + self.share * theta
            found[k] -= w * slope.ravel() @ v
        return found

    def problem(self):
        arrays = (self.X, self.Y, self.X_target, self.Y_target, self.target_weights)
        X, Y, X_target, Y_target, judges = map(torch.from_numpy, arrays)
        return reweighted_linear(X, Y, X_target, Y_target, LOSSES[self.kind], RIDGE, judges)

    def scores(self):
        problem = self.problem()
        theta, weights, ridge = self.theta(np.zeros(P), self.weights)
        matrix = reference.hessian(self.kind, theta, weights, self.X, ridge)
        theta, weights, groups = map(torch.from_numpy, (theta.ravel(), weights, self.groups))
        return grouped_linear_scores(
            problem,
            weights,
            groups,
            P,
            theta,
            lambda right: torch.linalg.solve(torch.from_numpy(matrix), right),
        )

    def losses(self):
        """Eq. (4) as functions of packed rows, and the rows."""
        k = self.Y.shape[1]

        def loss(theta, row):
            outputs = row[:2] @ theta.view(2, k)
            if self.kind == "squared":
                return (outputs - row[2 : 2 + k]).square().sum() / 2
            return outputs.logsumexp(dim=0) - row[2 : 2 + k] @ outputs

        def inner(omega, theta, row):
            factor = row[2 + k] * torch.exp(omega @ row[-P:])
            return factor * (loss(theta, row) + self.share / 2 * theta @ theta)

        def outer(omega, theta, row):
            return row[2 + k] * loss(theta, row)

        n, m = len(self.X), len(self.X_target)
        rows = np.column_stack([self.X, self.Y, n * self.weights, np.eye(P)[self.groups]])
        judges = np.column_stack([self.X_target, self.Y_target, m * self.target_weights])
        return inner, outer, torch.from_numpy(rows), torch.from_numpy(judges)


@pytest.fixture(params=LOSSES)
def grouped(request):
    return Grouped.random(request.param)


def test_means_of_the_scores_of_groups_add_up_to_the_gradient(grouped):
    truth, scores = central_differences(grouped.objective, np.zeros(P)), grouped.scores()
    found = scores.outer.mean(dim=0) + scores.inner.mean(dim=0)
    assert_allclose(found, truth, rtol=1e-7, atol=1e-9)
    assert np.abs(truth).min() > 0.005
    assert_allclose(found, grouped.gradient(grouped.weights, grouped.target_weights), rtol=1e-9)


@pytest.mark.parametrize("sample", ["inner", "outer"])
def test_scores_of_groups_are_the_influence_functions_of_the_gradient(grouped, sample):
    """Under equal rows of which some occur more often, with the losses of eq. (4) as they are."""
    scores = getattr(grouped.scores(), sample).numpy()
    s = centred(len(scores), 2)

    def gradient_at(t):
        weights, judges = grouped.weights, grouped.target_weights
        if sample == "inner":
            return grouped.gradient(weights * (1 + t * s), judges)
        return grouped.gradient(weights, judges * (1 + t * s))

    slope = along(gradient_at)
    assert_allclose(s @ scores / len(s), slope, rtol=1e-6, atol=1e-9)
    assert np.abs(slope).max() > 0.005


def test_scores_of_groups_are_those_of_automatic_differentiation(grouped):
    inner, outer, rows, judges = grouped.losses()
    theta = torch.from_numpy(grouped.theta(np.zeros(P), grouped.weights)[0].ravel())
    omega = torch.zeros(P, dtype=torch.float64)
    expected = two_sample_scores(inner, outer, omega, theta, rows, judges)
    for found, truth in zip(grouped.scores(), expected, strict=True):
        assert_allclose(found, truth, rtol=1e-9, atol=1e-11)
        assert float(truth.abs().max()) > 0.1


def test_scaling_all_weights_changes_no_score(grouped):
    """The ones are a direction in which no score moves."""
    for scores in grouped.scores():
        assert_allclose(scores.sum(dim=1), 0, atol=1e-12)
        assert float(scores.abs().max()) > 0.1
    result = group_gradient(grouped.problem(), grouped.weights, grouped.groups, P).result
    assert result.stationarity_test().df == P - 1
    one = group_gradient(grouped.problem(), grouped.weights, 0 * grouped.groups, 1).result
    assert (one.coef_, one.stderr_, one.stationarity_test().df) == (0, 0, 0)


def test_group_that_hardly_counts_is_tested_as_well(grouped):
    """Rounding of the others would hide it."""
    weights = np.where(grouped.groups == 1, 1e-13, 1) * grouped.weights
    result = group_gradient(grouped.problem(), weights, grouped.groups, P).result
    assert result.stationarity_test().df == P - 1
    assert 0 < result.stderr_[1] < 1e-10


def test_gradient_of_groups_solves_for_what_the_scores_need(grouped):
    found = group_gradient(grouped.problem(), grouped.weights, grouped.groups, P)
    assert found.converged
    theta = grouped.theta(np.zeros(P), grouped.weights)[0]
    assert_allclose(found.theta, theta.ravel(), rtol=1e-7, atol=1e-9)
    scores = grouped.scores()
    assert_allclose(found.result.coef_, scores.outer.mean(dim=0), rtol=1e-7)
    cov = sum(np.cov(each, rowvar=False) / len(each) for each in scores)
    assert_allclose(found.result.cov_, cov, rtol=1e-6, atol=1e-9 * cov.max())


def test_scores_of_both_samples_are_told_as_one(grouped):
    """Mean and spread of the rows of a result are its gradient and its covariance."""
    result = group_gradient(grouped.problem(), grouped.weights, grouped.groups, P).result
    n = len(result.scores_)
    assert n == len(grouped.X) + len(grouped.X_target)
    assert_allclose(result.scores_.mean(axis=0), result.coef_, rtol=1e-10)
    spread = np.cov(result.scores_, rowvar=False, ddof=0) / n
    assert_allclose(spread, result.cov_, rtol=1e-10, atol=1e-14)


# Coverage where the gradient is known


def domains():
    """Three domains with a relation each, and what the target follows."""
    slopes = np.random.default_rng(0).normal(size=(3, 4))
    spreads = np.array([[1, 2, 0.5, 1], [1, 0.5, 1.5, 1], [2, 1, 1, 0.5]])
    return slopes, 0.7 * slopes[0] + 0.3 * slopes[1], spreads


SLOPES, TARGET, SPREADS = domains()
SHARES, NOISE, LOG_WEIGHTS = (
    np.array([0.4, 0.3, 0.3]),
    np.array([1, 1.5, 2]),
    np.array([0.2, 0, -0.1]),
)
TRUTH = np.array([-0.0928, -0.0899, 0.1827])


def population_objective(log_weights):
    each = np.exp(log_weights)[:, None] * SHARES[:, None] * SPREADS
    theta = (each * SLOPES).sum(axis=0) / each.sum(axis=0)
    return 0.5 * np.sum((theta - TARGET) ** 2)


def draw(n, m, rng):
    k = rng.choice(3, n, p=SHARES)
    X = rng.normal(size=(n, 4)) * np.sqrt(SPREADS[k])
    y = (X * SLOPES[k]).sum(axis=1) + NOISE[k] * rng.normal(size=n)
    X_target = rng.normal(size=(m, 4))
    return X, y, k, X_target, X_target @ TARGET + rng.normal(size=m)


def coverage(n, m, n_draws):
    """Of intervals by eqs (2) and (3), and by (2) alone, for each coordinate."""
    truth = central_differences(population_objective, LOG_WEIGHTS)
    hits = np.zeros((2, n_draws, 3))
    for number in range(n_draws):
        X, y, k, X_target, y_target = draw(n, m, np.random.default_rng(number))
        arrays = map(torch.from_numpy, (X, y[:, None], X_target, y_target[:, None]))
        problem = reweighted_linear(*arrays, SQUARED, 0.0)
        result = group_gradient(problem, np.exp(LOG_WEIGHTS)[k], k, 3).result
        # Rows of the outer sample come first.
        own = np.square(result.scores_[:m] - result.coef_).sum(axis=0) / (n + m) ** 2
        errors = np.abs(result.coef_ - truth)
        hits[:, number] = errors <= 1.96 * result.stderr_, errors <= 1.96 * np.sqrt(own)
    return hits.mean(axis=1)


def test_true_gradient_is_the_one_that_was_published_with_the_design():
    assert_allclose(central_differences(population_objective, LOG_WEIGHTS), TRUTH, atol=5e-5)


def test_intervals_cover_the_true_gradient_and_those_of_one_sample_do_not():
    n_draws = 200
    ours, naive = coverage(500, 200, n_draws)
    low, high = binom.interval(0.999, n_draws, 0.95) / np.array(n_draws)
    assert (ours >= low - 0.01).all()
    assert (ours <= high).all()
    assert naive.mean() <= 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(500, 200), (2000, 500), (2000, 2000)])
def test_intervals_cover_the_true_gradient_at_their_level(n, m):
    ours, naive = coverage(n, m, 1000)
    assert (ours >= 0.93).all()
    assert (ours <= 0.97).all()
    assert (naive <= 0.85).all()
