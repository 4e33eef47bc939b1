"""Weights of few parameters against a search that solves the inner problem by a transcription."""

import numpy as np
import torch
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED
from skbilevel.objectives.reweighting import divergence, gate, reweighted_linear
from skbilevel.solvers import parametric_weights as parametric
from skbilevel.solvers.parametric_weights import Fold, parametric_weights
from tests.reference import reweighting as reference

RIDGE = 0.05


def case(n=40, m=12, seed=0):
    """Half of the rows have another sign; the first feature tells which."""
    rng = np.random.default_rng(seed)
    X, X_target = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    sign = np.where(np.arange(n) < n // 2, 1.0, -1.0)
    Y, Y_target = sign[:, None] * X[:, :1], X_target[:, :1]
    told = sign + rng.normal(size=n)
    return X, Y, X_target, Y_target, np.column_stack([np.ones(n), told])


def test_minimum_is_that_of_a_search_without_gradients():
    X, Y, X_target, Y_target, features = case()
    parts = [slice(0, 6), slice(6, 12)]
    uniform, noisy = np.full(40, 1 / 40), features + 0.1 * features[::-1]
    each = [features, noisy]

    def weights_of(rows, phi):
        shares = 1 / (1 + np.exp(-rows @ phi))
        return shares / shares.sum()

    def objective(phi):
        total = 1e-3 * phi @ phi
        for part, rows in zip(parts, each, strict=True):
            w = weights_of(rows, phi)
            theta = reference.solution("squared", w, X, Y, RIDGE)
            total += reference.target_loss("squared", theta, X_target[part], Y_target[part]) / 2
            total += 0.02 * np.sum(w * np.log(w / uniform)) / 2
        return total

    def penalty(weights):
        value, slope = divergence(weights, torch.from_numpy(uniform))
        return 0.02 * value, 0.02 * slope

    def fold(part, rows):
        tensors = map(torch.from_numpy, (X, Y, X_target[part], Y_target[part]))
        features = torch.from_numpy(rows)
        problem = reweighted_linear(*tensors, SQUARED, RIDGE)
        return Fold(problem, lambda phi: gate(features, phi), penalty)

    found = parametric_weights(
        [fold(*each) for each in zip(parts, each, strict=True)],
        np.array([0.0, 0.5]),
        precision=1e-3,
        max_iter=100,
        ftol=1e-14,
    )
    truth = minimize(objective, [0.0, 0.5], method="Nelder-Mead", options={"xatol": 1e-8})
    assert_allclose(found.outer, truth.x, rtol=1e-3)
    assert_allclose(min(found.history["objective"]), truth.fun, rtol=1e-8)
    assert_allclose(found.history["objective"][0], objective(np.array([0.0, 0.5])), rtol=1e-10)
    assert found.outer[1] > 1


def test_inner_problem_starts_where_others_have_not_been(monkeypatch):
    """What one fold's problem knows of labels is not where that of another starts."""
    X, Y, X_target, Y_target, features = case()
    starts = []
    real = parametric.minimum

    def spy(problem, weights, start, **options):
        starts.append(start)
        return real(problem, weights, start, **options)

    monkeypatch.setattr(parametric, "minimum", spy)
    Y, Y_target = (np.hstack([part > 0, part <= 0]).astype(float) for part in (Y, Y_target))
    tensors = map(torch.from_numpy, (X, Y, X_target, Y_target))
    problem, rows = reweighted_linear(*tensors, CROSS_ENTROPY, RIDGE), torch.from_numpy(features)
    fold = Fold(problem, lambda phi: gate(rows, phi), lambda w: (w.sum(), torch.ones_like(w)))
    parametric_weights([fold, fold], np.array([0.0, 0.1]), max_iter=1)
    for start in starts[:2]:
        assert not start.theta.any()
        assert start.adjoint is None
    # The preconditioner is of training rows alike, and where it was made says nothing.
    assert starts[1].factor is not None
    assert starts[2].theta.any()


def test_bounds_hold():
    X, Y, X_target, Y_target, features = case()
    tensors = map(torch.from_numpy, (X, Y, X_target, Y_target))
    rows = torch.from_numpy(features)
    problem = reweighted_linear(*tensors, SQUARED, RIDGE)
    free = lambda w: (w.new_zeros(()), torch.zeros_like(w))  # noqa: E731
    found = parametric_weights(
        [Fold(problem, lambda phi: gate(rows, phi), free)],
        np.array([0.0, 0.1]),
        bounds=[(-1, 1), (-0.3, 0.3)],
        max_iter=50,
    )
    assert found.outer[1] == 0.3


def descent(on_step):
    X, Y, X_target, Y_target, features = case()
    tensors, rows = map(torch.from_numpy, (X, Y, X_target, Y_target)), torch.from_numpy(features)
    fold = Fold(
        reweighted_linear(*tensors, SQUARED, RIDGE),
        lambda phi: gate(rows, phi),
        lambda w: (w.new_zeros(()), torch.zeros_like(w)),
    )
    return parametric_weights(
        [fold], np.array([0.0, 0.1]), precision=1e-3, max_iter=20, ftol=1e-12, on_step=on_step
    )


def test_descent_tells_of_every_iterate_and_stops_when_it_is_told():
    seen, full = [], descent(None)
    watched = descent(lambda phi: bool(seen.append(phi.copy())))
    assert len(seen) == full.n_iter + 1 > 4
    assert_allclose(seen[0], [0, 0.1])
    assert_allclose(seen[-1], full.outer)
    assert_allclose(watched.outer, full.outer)
    for n_steps in (0, 2):
        path = []

        def after(phi, path=path, n_steps=n_steps):
            path.append(phi.copy())
            return len(path) > n_steps

        found = descent(after)
        assert (len(path), found.n_iter, found.converged) == (n_steps + 1, n_steps, True)
        assert_allclose(found.outer, seen[n_steps])
        evaluated = found.history["objective"]
        assert_allclose(evaluated, full.history["objective"][: len(evaluated)])
        assert n_steps < len(evaluated) < len(full.history["objective"])
