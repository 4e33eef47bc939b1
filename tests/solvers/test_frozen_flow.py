"""The mirror flow of weights at frozen parameters: where it rests, how fast it gets there, and
where it never does.

The flow is that of the package, in small steps; the field g, its Jacobian and the stationary
points are found from the slow transcription.

Reference: Ivanova and Ablin (2023), arXiv 2310.17386, Section 3, whose propositions are named.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import root

from skbilevel.objectives.linear_loss import SQUARED
from skbilevel.objectives.reweighting import PARAMETRISATIONS, reweighted_linear
from skbilevel.solvers.warm_started import warm_started
from skbilevel.solvers.weight_descent import Descent
from tests.reference import reweighting as reference


class Frozen(NamedTuple):
    """A problem with the squared loss, and theta (p, k)."""

    X: np.ndarray
    Y: np.ndarray
    X_target: np.ndarray
    Y_target: np.ndarray
    theta: np.ndarray
    ridge: float

    def field(self, weights, rows=None):
        """g, of these rows alone where some are named."""
        rows = np.arange(len(self.X)) if rows is None else rows
        parts = self.X[rows], self.Y[rows], self.X_target, self.Y_target
        return reference.hypergradient("squared", self.theta, weights, *parts, self.ridge)

    def settled(self, rows):
        """A stationary point (n,) with weight on these rows alone, by root finding."""

        def weights(a):
            raised = np.exp(np.append(a, 0.0))
            return raised / raised.sum()

        def spread(a):
            g = self.field(weights(a), rows)
            return g[:-1] - g[-1]

        found = root(spread, np.zeros(len(rows) - 1), tol=1e-12)
        assert found.success
        everywhere = np.zeros(len(self.X))
        everywhere[rows] = weights(found.x)
        return everywhere

    def gaps(self, weights):
        """Of a stationary point: g of each row less that of its support, (n,)."""
        g = self.field(weights)
        return g - weights @ g

    def rates(self, weights):
        """Of a stationary point: the eigenvalues of minus the flow's Jacobian along its support,
        the Jacobian of g by differences."""
        rows = np.flatnonzero(weights)
        w, step = weights[rows], 1e-5
        jacobian = np.transpose(
            [
                (self.field(w + move, rows) - self.field(w - move, rows)) / (2 * step)
                for move in step * np.eye(len(rows))
            ]
        )
        tangent = np.linalg.svd(np.ones((1, len(rows))))[2][1:]
        return np.linalg.eigvals(tangent @ (np.diag(w) - np.outer(w, w)) @ jacobian @ tangent.T)

    def flow(self, weights, step, n_iter):
        """Weights (n_iter + 1, n) of the package, from the first ones on."""
        seen = [np.asarray(weights)]
        warm_started(
            reweighted_linear(*map(torch.from_numpy, self[:4]), SQUARED, self.ridge),
            PARAMETRISATIONS["mirror"](torch.ones(len(self.X), dtype=torch.float64)),
            Descent(n_iter, step, 0.0),
            lambda state: bool(seen.append(state.weights.numpy())),
            a=torch.from_numpy(seen[0]).log(),
            theta=torch.from_numpy(self.theta.ravel()),
        )
        return np.array(seen)


def frozen(n, p, k, seed, ridge=1.0):
    rng = np.random.default_rng(seed)
    X, X_target = rng.normal(size=(n, p)), rng.normal(0.3, 1, size=(8, p))
    truth = rng.normal(size=(p, k))
    Y, Y_target = (rows @ truth + 0.5 * rng.normal(size=(len(rows), k)) for rows in (X, X_target))
    theta = np.random.default_rng(seed).normal(size=(p, k))
    return Frozen(X, Y, X_target, Y_target, theta, ridge)


def with_a_little_elsewhere(weights, share):
    """This share spread over rows without weight."""
    others = weights == 0
    return np.where(others, share / others.sum(), (1 - share) * weights)


# Where the flow rests


@pytest.mark.parametrize("seed", [1, 5])
def test_limit_has_one_value_of_the_field_on_its_support_and_more_elsewhere(seed):
    """Proposition 3: at rest g is the same for all rows that have weight. A row that has lost
    its weight on the way has no smaller g."""
    problem = frozen(20, 3, 2, seed)
    start = np.random.default_rng(seed).dirichlet(np.ones(20))
    end = problem.flow(start, 0.2, 1500)[-1]
    support = end > 1e-6
    before, after = problem.field(start), problem.field(end)
    assert 1 < support.sum() <= 6
    assert np.ptp(before[support]) > 0.3
    assert_allclose(after[support], end @ after, rtol=1e-6)
    assert after[~support].min() > after[support].max() + 0.1


@pytest.mark.parametrize(("rows", "is_stable"), [([8, 10, 12], True), ([1, 12], False)])
def test_flow_stays_at_a_stationary_point_of_few_rows(rows, is_stable):
    """Proposition 3: without weight a row keeps none, be its g smaller than that of the rows with
    weight; and these keep theirs where g is the same for all of them, and nowhere else."""
    problem = frozen(20, 3, 2, seed=1)
    point, equal = problem.settled(rows), np.zeros(20)
    equal[rows] = 1 / len(rows)
    assert (np.delete(problem.gaps(point), rows).min() > 0) == is_stable
    assert_allclose(problem.flow(point, 0.1, 300)[-1], point, rtol=1e-7)
    moved = problem.flow(equal, 0.1, 300)[-1]
    assert np.abs(moved - equal).max() > 0.05
    assert (np.delete(moved, rows) == 0).all()


# Stability and rates


@pytest.mark.parametrize(("rows", "is_stable"), [([8, 10, 12], True), ([1, 12], False)])
def test_stationary_point_is_kept_just_if_other_rows_have_more_of_the_field(rows, is_stable):
    """Proposition 4: log w of a row outside of the support falls at the rate by which its g
    exceeds that of the support, and rises if it is less."""
    problem = frozen(20, 3, 2, seed=1)
    point = problem.settled(rows)
    gaps, others = problem.gaps(point), point == 0
    assert (problem.rates(point).real > 0).all()
    path = problem.flow(with_a_little_elsewhere(point, 1e-8), 0.01, 20)
    moved = np.log(path[-1] / path[0])
    assert_allclose(moved[others], -0.2 * gaps[others], rtol=1e-4)
    assert_allclose(moved[rows], 0, atol=1e-7)
    assert np.ptp(gaps[others]) > 1
    assert (gaps[others].min() > 0.1) == is_stable
    late = problem.flow(with_a_little_elsewhere(point, 1e-6), 0.1, 500)[-1]
    assert (late[others].sum() < 1e-8) == is_stable
    assert (late[others].sum() > 0.1) != is_stable


def test_corner_is_kept_just_if_its_row_has_the_least_field_there():
    """Proposition 4 for one row with all weight, each in turn."""
    problem, kept = frozen(8, 3, 2, seed=149), []
    for corner in np.eye(8):
        gaps, start = problem.gaps(corner), with_a_little_elsewhere(corner, 1e-6)
        path = problem.flow(start, 0.05, 600)
        moved = np.log(path[2] / path[0])
        assert_allclose(moved, -0.1 * gaps, rtol=0, atol=2e-5)
        assert np.ptp(gaps) > 1
        kept.append(path[-1] @ corner > 1 - 1e-7)
        assert kept[-1] == (gaps >= 0).all()
        assert kept[-1] or path[-1] @ corner < 0.9
    assert sum(kept) == 1


@pytest.mark.parametrize(
    ("k", "seed", "rows", "slowest"),
    [(2, 1, [8, 10, 12], "on the support"), (1, 5, [4, 8, 19], "elsewhere")],
)
def test_distance_to_a_limit_falls_at_the_slowest_rate(k, seed, rows, slowest):
    """Proposition 5: exponentially, at the least of the gaps and the Jacobian's eigenvalues."""
    problem = frozen(20, 3, k, seed)
    limit = problem.settled(rows)
    inside = problem.rates(limit).real.min()
    outside = np.delete(problem.gaps(limit), rows).min()
    rate = min(inside, outside)
    assert rate > 0
    assert max(inside, outside) > 2 * rate
    assert (inside < outside) == (slowest == "on the support")
    path = problem.flow(0.95 * limit + 0.05 / 20, 0.1, 1000)
    early, late = np.abs(path[[600, 1000]] - limit).sum(axis=1)
    assert_allclose(np.log(early / late) / 40, rate, rtol=0.03)


# Flows that turn


def ring(degrees):
    """Three rows a third of a turn apart: x_j = r_j = (cos, sin)(120 j), theta = 0, and grad F
    turns by this angle. By symmetry equal weights are stationary."""
    turns = np.radians([0.0, 120.0, 240.0])
    rows, angle = np.c_[np.cos(turns), np.sin(turns)], np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Frozen(rows, -rows, np.eye(2), -2 * turn, np.zeros((2, 2)), 0.5)


@pytest.mark.parametrize("degrees", [75, 98])
def test_flow_spirals_about_a_point_as_its_jacobian_says(degrees):
    """Proposition 4: a complex pair of eigenvalues turns the weights, and its real part alone
    draws them in or drives them out. For the ring it is (cos +- i sin)(degrees) / 4."""
    problem, equal = ring(degrees), np.full(3, 1 / 3)
    pair = 0.25 * np.exp(1j * np.radians(degrees))
    assert_allclose(problem.gaps(equal), 0, atol=1e-12)
    assert_allclose(np.sort_complex(problem.rates(equal)), [pair.conj(), pair], rtol=1e-6)
    path = problem.flow(equal + 1e-4 * np.array([1, -0.5, -0.5]), 0.01, 2500)
    mode = (path - equal) @ np.exp(2j * np.pi * np.arange(3) / 3)
    turned = np.unwrap(np.angle(mode))
    assert_allclose(abs(turned[-1] - turned[0]), 25 * pair.imag, rtol=0.01)
    growth = np.log(np.abs(mode[-1] / mode[0]))
    assert_allclose(growth, -25 * pair.real, rtol=0, atol=0.03)
    assert abs(25 * pair.real) > 0.5


def visits(problem, step):
    """The row of the largest weight, and since when: one of each for every change up to a time of
    400. In the last three visits that have ended each row has had all weight and lost it again."""
    path = problem.flow([0.6, 0.3, 0.1], step, round(400 / step))
    largest = path.argmax(axis=1)
    changes = 1 + np.flatnonzero(np.diff(largest))
    late = path[changes[-4] :]
    assert (late.max(axis=0) > 0.999).all()
    assert (late.min(axis=0) < 1e-9).all()
    return largest[changes], step * changes


def test_flow_without_a_stable_point_never_settles():
    """No stationary point of this ring is stable, so that by proposition 4 the weights cannot come
    to rest. They pass from one corner to the next, and in the end stay at each for longer than at
    the last by the ratio of the gaps there. It is the flow that does so and not its steps: with
    half of them the passages are the same, and their times converge as the steps do."""
    problem = ring(98)
    for i in range(3):
        at, to = np.eye(3)[[i, (i + 1) % 3]]
        edge = (at + s * (to - at) for s in np.linspace(0, 1, 101))
        along = np.array([problem.field(weights) @ (to - at) for weights in edge])
        assert (along > 0.1).all() or (along < -0.1).all()
        assert problem.gaps(at).min() < -0.1
    assert (problem.rates(np.full(3, 1 / 3)).real < -0.01).all()
    rows, since = zip(*(visits(problem, step) for step in (0.2, 0.1, 0.05)), strict=True)
    assert_allclose(rows, np.resize([2, 1, 0], (3, 9)))
    assert_allclose(since[1], since[2], rtol=0.05)
    coarse, fine = -np.diff(since, axis=0)
    assert_allclose(coarse[-3:], 2 * fine[-3:], rtol=0.15)
    least, _, most = np.sort(problem.gaps(np.eye(3)[0]))
    stays = np.diff(since[2])
    assert_allclose(stays[-1] / stays[-2], -most / least, rtol=0.05)
