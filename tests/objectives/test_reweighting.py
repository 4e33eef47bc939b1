"""Reweighting against a transcription of the paper, and against the inner problem solved anew."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED
from skbilevel.objectives.reweighting import (
    PARAMETRISATIONS,
    divergence,
    gate,
    log_linear,
    reweighted_linear,
)
from skbilevel.solvers.weighted_newton import Minimum, adjoint, minimum
from tests.problems import central_differences
from tests.reference import reweighting as reference

LOSSES = {"squared": SQUARED, "softmax": CROSS_ENTROPY}
RIDGE, P, K, N, M = 0.05, 3, 2, 14, 9


def data(kind, seed=0, n=N, m=M, p=P, k=K):
    rng = np.random.default_rng(seed)
    X, X_target = rng.normal(size=(n, p)), rng.normal(0.3, 1, size=(m, p))
    truth = rng.normal(size=(p, k))
    Y, Y_target = (rows @ truth + 0.5 * rng.normal(size=(len(rows), k)) for rows in (X, X_target))
    if kind == "softmax":
        Y, Y_target = (np.eye(k)[part.argmax(axis=1)] for part in (Y, Y_target))
    return X, Y, X_target, Y_target


def problem_of(kind, parts, ridge=RIDGE):
    return reweighted_linear(*map(torch.from_numpy, parts), LOSSES[kind], ridge)


def weights_of(seed=1, n=N):
    weights = np.random.default_rng(seed).random(n) + 0.1
    return weights / weights.sum()


def solved(problem, weights):
    start = Minimum(torch.zeros(problem.n_parameters, dtype=torch.float64))
    w = torch.from_numpy(weights)
    return adjoint(problem, w, minimum(problem, w, start, tol=1e-13), rtol=1e-13)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_gradients_and_products_are_those_of_the_transcription(kind):
    parts, weights = data(kind), weights_of()
    X, Y, X_target, Y_target = parts
    rng = np.random.default_rng(2)
    theta, v = rng.normal(size=(2, P, K))
    problem, w = problem_of(kind, parts), torch.from_numpy(weights)
    point = problem.at(torch.from_numpy(theta.ravel()))
    assert float(point.value(w)) == pytest.approx(
        reference.inner_loss(kind, theta, weights, X, Y, RIDGE), rel=1e-14
    )
    gradient = RIDGE * theta
    for each, x, y in zip(weights, X, Y, strict=True):
        gradient = gradient + each * reference.row_gradient(kind, theta, x, y)
    assert_allclose(point.gradient(w).view(P, K), gradient, rtol=1e-12)
    H = reference.hessian(kind, theta, weights, X, RIDGE)
    flat = torch.from_numpy(v.ravel())
    assert_allclose(point.product(w, flat), H @ v.ravel(), rtol=1e-11)
    assert_allclose(
        point.alignment(flat),
        [
            -np.sum(reference.row_gradient(kind, theta, x, y) * v)
            for x, y in zip(X, Y, strict=True)
        ],
        rtol=1e-11,
    )
    assert float(problem.target_loss(point.theta)) == pytest.approx(
        reference.target_loss(kind, theta, X_target, Y_target), rel=1e-14
    )
    assert_allclose(
        problem.target_gradient(point.theta).view(P, K),
        reference.target_gradient(kind, theta, X_target, Y_target),
        rtol=1e-11,
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_target_weights_are_repeated_rows(kind):
    X, Y, X_target, Y_target = data(kind)
    counts = np.arange(M) % 3
    repeated = (X, Y, np.repeat(X_target, counts, axis=0), np.repeat(Y_target, counts, axis=0))
    weighted = reweighted_linear(
        *map(torch.from_numpy, (X, Y, X_target, Y_target)),
        LOSSES[kind],
        RIDGE,
        torch.from_numpy(counts / counts.sum()),
    )
    theta = torch.from_numpy(np.random.default_rng(0).normal(size=P * K))
    other = problem_of(kind, repeated)
    assert_allclose(weighted.target_loss(theta), other.target_loss(theta), rtol=1e-14)
    assert_allclose(weighted.target_gradient(theta), other.target_gradient(theta), rtol=1e-13)


def test_shared_matrix_is_a_block_of_the_hessian_of_squares():
    parts, weights = data("squared"), weights_of()
    problem = problem_of("squared", parts)
    point = problem.at(torch.zeros(P * K, dtype=torch.float64))
    matrix = point.shared_matrix(torch.from_numpy(weights)).numpy()
    H = reference.hessian("squared", np.zeros((P, K)), weights, parts[0], RIDGE)
    assert_allclose(np.kron(matrix, np.eye(K)), H, atol=1e-15)


@pytest.mark.parametrize(("kind", "tolerance"), [("squared", 1e-9), ("softmax", 1e-7)])
def test_hypergradient_is_the_difference_of_the_inner_problem_solved_anew(kind, tolerance):
    """Eq. (6) at theta*(w), against central differences of F(theta*(w)) in free weights."""
    parts, weights = data(kind), weights_of()
    X, Y, X_target, Y_target = parts

    def value(w):
        theta = reference.solution(kind, w, X, Y, RIDGE)
        return reference.target_loss(kind, theta, X_target, Y_target)

    problem = problem_of(kind, parts)
    at = solved(problem, weights)
    g = problem.at(at.theta).alignment(at.adjoint).numpy()
    # A step's error is that of its square: two steps leave that of the fourth power.
    step = 0.01 * weights.min()
    small, large = (central_differences(value, weights, each) for each in (step, 2 * step))
    differences = (4 * small - large) / 3
    assert np.linalg.norm(g - differences) <= tolerance * np.linalg.norm(differences)
    assert np.linalg.norm(g) > 0.1


def gate_beside_certain_rows(features, phi):
    """The last five rows are of use for certain, and count two each."""
    prior = torch.linspace(1, 3, N - 5, dtype=torch.float64)
    return gate(features[:-5], phi, prior, torch.full((5,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("make", [log_linear, gate, gate_beside_certain_rows])
@pytest.mark.parametrize("kind", LOSSES)
def test_derivative_in_few_parameters_follows_by_the_chain_rule(make, kind):
    parts = data(kind)
    X, Y, X_target, Y_target = parts
    features = torch.from_numpy(np.c_[np.ones(N), X])
    phi = np.array([0.3, 0.5, -0.4, 0.2])

    def value(phi):
        weights = make(features, torch.from_numpy(phi)).value.numpy()
        theta = reference.solution(kind, weights, X, Y, RIDGE)
        return reference.target_loss(kind, theta, X_target, Y_target)

    problem, weights = problem_of(kind, parts), make(features, torch.from_numpy(phi))
    at = solved(problem, weights.value.numpy())
    found = weights.pull(problem.at(at.theta).alignment(at.adjoint)).numpy()
    expected = central_differences(value, phi, step=1e-5)
    assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert np.abs(expected[1:]).max() > 0.01


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_direction_of_weights_of_every_row(name):
    """The derivative in a, but for mirror descent, which moves along g itself."""
    form = PARAMETRISATIONS[name](torch.ones(6, dtype=torch.float64))
    a = torch.from_numpy(np.random.default_rng(0).normal(size=6)).requires_grad_()
    g = torch.from_numpy(np.random.default_rng(1).normal(size=6))
    (expected,) = torch.autograd.grad(form.weights(a) @ g, a)
    expected = g if name == "mirror" else expected
    assert_allclose(form.direction(a.detach(), g), expected, rtol=1e-12)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_row_that_counts_twice_is_two_rows(name):
    counts = torch.tensor([1.0, 2.0, 1.0, 3.0]).double()
    of = torch.repeat_interleave(torch.arange(4), counts.long())
    once = PARAMETRISATIONS[name](counts)
    repeated = PARAMETRISATIONS[name](torch.ones(7, dtype=torch.float64))
    a, g = (torch.from_numpy(np.random.default_rng(s).normal(size=4)) for s in (2, 3))
    weights = torch.zeros(4).double().index_add(0, of, repeated.weights(a[of]))
    assert_allclose(once.weights(a), weights, rtol=1e-12)
    assert_allclose(once.direction(a, g)[of], repeated.direction(a[of], g[of]), rtol=1e-12)
    assert np.ptp(weights.numpy()) > 0.05


def test_gate_is_bounded_by_rows_of_certain_use_and_log_linear_is_not():
    features = torch.linspace(-3, 300, 20, dtype=torch.float64)[:, None]
    phi = torch.ones(1, dtype=torch.float64)
    gated = gate(features, phi).value
    assert_allclose(gated[1:] / gated[-1], 1.0, rtol=1e-4)
    assert gated[0] < 0.06 * gated[-1]
    assert log_linear(features, phi).value[-1] > 1 - 1e-6
    prior = torch.full((20,), 0.05, dtype=torch.float64)
    assert_allclose(log_linear(features, 0 * phi, prior).value, prior, rtol=1e-14)


def test_constant_of_a_gate_says_how_much_rows_count_beside_those_of_certain_use():
    features, certain = torch.ones(3, 1, dtype=torch.float64), torch.tensor([1.0, 2.0]).double()
    for constant in (-5.0, 0.0, 2.0):
        phi = torch.tensor([constant], dtype=torch.float64)
        share = 1 / (1 + np.exp(-constant))
        expected = np.r_[np.full(3, share), 1, 2] / (3 * share + 3)
        assert_allclose(gate(features, phi, certain=certain).value, expected, rtol=1e-12)
        assert_allclose(gate(features, phi).value, np.full(3, 1 / 3), rtol=1e-12)


def test_divergence_is_that_of_its_sum_with_its_derivative():
    w, q = (torch.from_numpy(weights_of(seed)) for seed in (1, 2))
    value, derivative = divergence(w.requires_grad_(), q)
    assert value.item() == pytest.approx(
        sum(a * np.log(a / b) for a, b in zip(w.tolist(), q.tolist(), strict=True)), rel=1e-13
    )
    (expected,) = torch.autograd.grad(value, w)
    assert_allclose(derivative.detach(), expected, rtol=1e-12)
    assert float(divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))[0]) == (
        pytest.approx(np.log(2))
    )


def test_density_ratio_solves_the_problem_of_the_population():
    """Proposition 1 on a grid: with weights p_target / p_train theta*(w) is the best for the
    target, so that no weight has anything to gain."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(30, P)), rng.normal(size=(30, K))
    train, target = rng.random((2, 30)) + 0.05
    train, target = train / train.sum(), target / target.sum()
    # The inner objective sums over the training distribution: row i counts train_i w(x_i).
    weights = train * (target / train)
    problem = reweighted_linear(
        *map(torch.from_numpy, (X, Y, X, Y)), SQUARED, 0.0, torch.from_numpy(target)
    )
    at = solved(problem, weights)
    assert float(problem.target_gradient(at.theta).norm()) < 1e-13
    assert float(problem.at(at.theta).alignment(at.adjoint).abs().max()) < 1e-12
    uniform = solved(problem, train)
    assert float(problem.target_loss(uniform.theta)) > float(problem.target_loss(at.theta)) + 1e-3
