"""The losses of teacher and student: their transcription by loops, and their hypergradient."""

from functools import partial

import numpy as np
import pytest
import torch

from skbilevel.numerics.derivatives import grad, vjp
from skbilevel.numerics.implicit_gradient import CURVATURES, implicit_gradient
from skbilevel.numerics.linear_solve import conjugate_gradient, direct_solve
from skbilevel.numerics.parameters import flatten
from skbilevel.objectives import bilevel_imputation as objectives
from skbilevel.objectives.bilevel_imputation import CLASSES, NUMBERS, Rows
from tests.problems import central_differences
from tests.reference import bilevel_imputation as reference
from tests.teacher_student_problem import ImputingTeacher

KINDS = {"numbers": NUMBERS, "classes": CLASSES}
N, M, D, Q = 9, 7, 4, 3


def rows(kind, n, rng):
    """As arrays: values, mask, targets, labelled."""
    mask = 1.0 * (rng.random((n, D)) < 0.6)
    targets = rng.normal(size=(n, Q))
    if kind == "classes":
        targets = np.eye(Q)[targets.argmax(axis=1)]
    return rng.normal(size=(n, D)) * mask, mask, targets, 1.0 * (rng.random(n) < 0.5)


def torch_student(theta, values, mask):
    """tanh([x, m] A), of any number of rows."""
    return torch.tanh(torch.cat([values, mask], dim=1) @ theta.view(2 * D, Q))


def numpy_student(theta):
    return lambda values, mask: np.tanh(np.r_[values, mask] @ theta.reshape(2 * D, Q))


def draw(kind, seed=0):
    """Rows that are learnt and rows that judge, theta, features and outputs of all of them."""
    rng = np.random.default_rng(seed)
    learnt, judged = rows(kind, N, rng), rows(kind, M, rng)
    theta = rng.normal(size=2 * D * Q)
    return learnt, judged, theta, rng.normal(size=(N + M, D)), rng.normal(size=(N + M, Q))


def tensors(*arrays):
    return tuple(map(torch.from_numpy, arrays))


# Equations


@pytest.mark.parametrize("kind", KINDS)
def test_inner_loss_is_equation_2_row_by_row(kind):
    learnt, _, theta, features, outputs = draw(kind)
    rng = np.random.default_rng(1)
    kept, weights = 1.0 * (rng.random((N, D)) < 0.7), rng.random(N)
    inner = objectives.inner_loss(
        torch_student, KINDS[kind], Rows(*tensors(*learnt)), *tensors(kept, weights), 0.3
    )
    phi = objectives.packed(*tensors(features[:N], outputs[:N]))
    expected = reference.inner_loss(
        numpy_student(theta), kind, learnt, features, outputs, kept, weights, theta, 0.3
    )
    assert inner(torch.from_numpy(theta), phi).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_inner_loss_ignores_imputations_of_rows_that_follow_its_own(kind):
    learnt, _, theta, features, outputs = draw(kind)
    inner = objectives.inner_loss(
        torch_student, KINDS[kind], Rows(*tensors(*learnt)), *tensors(learnt[1], np.ones(N)), 0.0
    )
    (theta,) = tensors(theta)
    whole = objectives.packed(*tensors(features, outputs))
    own = objectives.packed(*tensors(features[:N], outputs[:N]))
    assert inner(theta, whole) == inner(theta, own)


@pytest.mark.parametrize("kind", KINDS)
def test_outer_losses_are_equations_3_and_4_row_by_row(kind):
    _, judged, theta, features, outputs = draw(kind)
    arguments = torch_student, KINDS[kind], Rows(*tensors(*judged))
    theta_, phi = torch.from_numpy(theta), objectives.packed(*tensors(features, outputs))
    student = numpy_student(theta)
    outer = objectives.outer_loss(*arguments)(theta_, phi)
    expected = reference.outer_loss(student, kind, judged)
    assert outer.item() == pytest.approx(expected, rel=1e-13)
    naive = objectives.naive_outer_loss(*arguments)(theta_, phi)
    expected = reference.naive_outer_loss(student, kind, judged, features[N:])
    assert naive.item() == pytest.approx(expected, rel=1e-13)
    assert abs(naive - outer) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_and_label_loss_are_equation_5_cell_by_cell(kind):
    (truth, mask, targets, labelled), _, _, features, outputs = draw(kind)
    hidden = mask * (np.random.default_rng(2).random(mask.shape) < 0.5)
    seen = mask - hidden
    cells = objectives.reconstruction_loss(*tensors(features[:N], truth, hidden, seen))
    expected = reference.reconstruction_loss(features[:N], truth, hidden, seen)
    assert cells.item() == pytest.approx(expected, rel=1e-13)
    labels = objectives.label_loss(
        KINDS[kind], torch.from_numpy(outputs[:N]), Rows(*tensors(truth, mask, targets, labelled))
    )
    expected = reference.label_loss(kind, outputs[:N], targets, labelled)
    assert labels.item() == pytest.approx(expected, rel=1e-13)


def test_nothing_to_reconstruct_and_no_label_cost_nothing():
    zero, (outputs,) = torch.zeros(2, 3), tensors(np.ones((2, 1)))
    assert objectives.reconstruction_loss(zero + 1, zero, zero, zero) == 0
    unlabelled = Rows(zero, zero, outputs, torch.zeros(2))
    assert objectives.label_loss(NUMBERS, 2 * outputs, unlabelled) == 0
    without = Rows(zero, zero, outputs[:, :0], torch.ones(2))
    assert objectives.label_loss(NUMBERS, outputs[:, :0], without) == 0


def test_observed_cells_and_labels_stay_to_the_bit():
    """Eq. (1), whatever is imputed: infinity at an observed cell is not looked at."""
    rows = Rows(*tensors(*draw("numbers")[0]))
    features = torch.where(rows.mask > 0, torch.inf, 2.0)
    filled = objectives.imputed(rows, features)
    assert torch.equal(filled[rows.mask > 0], rows.values[rows.mask > 0])
    assert (filled[rows.mask == 0] == 2).all()
    labels = objectives.completed_labels(rows, torch.full((N, Q), 3.0).double())
    assert torch.equal(labels[rows.labelled > 0], rows.targets[rows.labelled > 0])
    assert (labels[rows.labelled == 0] == 3).all()


def test_unpacked_is_the_inverse_of_packed():
    learnt, _, _, features, outputs = draw("numbers")
    phi = objectives.packed(*tensors(features, outputs))
    first, last = objectives.unpacked(phi, Rows(*tensors(*learnt)))
    assert torch.equal(first, torch.from_numpy(features[:N]))
    assert torch.equal(last, torch.from_numpy(outputs[:N]))


# Gradients


def hypergradient(problem, curvature="exact", solve=direct_solve):
    """At the solution of the inner problem; its direct and implicit part and their sum, each taken
    to the teacher by the chain rule."""
    theta = torch.from_numpy(problem.theta_star(flatten(problem.teacher).numpy()))
    phi = problem.phi()
    found = implicit_gradient(
        problem.bilevel(), theta, phi.detach(), curvature=curvature, solve=solve
    )
    parameters = tuple(problem.teacher.parameters())
    chained = (vjp(phi, parameters, part) for part in (found.direct, found.implicit, found.total))
    return tuple(torch.cat([each.reshape(-1) for each in parts]).numpy() for parts in chained)


def finite_differences(problem):
    expected = central_differences(problem.value, flatten(problem.teacher).numpy())
    assert np.linalg.norm(expected) > 1e-2
    return expected


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


CASES = {
    "numbers": {},
    "pseudo-labels": {"n_labelled": 12},
    "classes": {"is_class": True, "d": 3, "q": 3, "n_labelled": 30},
    "pseudo-labels of classes": {"is_class": True, "d": 3, "q": 3, "n_labelled": 12},
}
TIGHT = partial(conjugate_gradient, rtol=1e-12, max_iter=100)


@pytest.mark.parametrize("case", CASES)
def test_solution_of_the_oracle_is_stationary(case):
    problem = ImputingTeacher.random(**CASES[case])
    theta = torch.from_numpy(problem.theta_star(flatten(problem.teacher).numpy()))
    gradient = grad(problem.bilevel().inner, theta, problem.phi().detach())[0]
    assert gradient.abs().max() < 1e-12
    assert theta.norm() > 0.1


@pytest.mark.parametrize("is_naive", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_hypergradient_matches_finite_differences_with_the_student_fitted_again(case, is_naive):
    problem = ImputingTeacher.random(**CASES[case], is_naive=is_naive)
    expected = finite_differences(problem)
    for curvature in CURVATURES:
        solve = direct_solve if curvature == "exact" else TIGHT
        *_, total = hypergradient(problem, curvature, solve)
        assert relative_error(total, expected) < 1e-7


@pytest.mark.parametrize("case", ["numbers", "pseudo-labels"])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("seed", [0, 1])
def test_five_products_give_the_direction(case, curvature, seed):
    problem = ImputingTeacher.random(seed, **CASES[case])
    assert problem.theta_star(flatten(problem.teacher).numpy()).size == 11
    expected = finite_differences(problem)
    *_, few = hypergradient(problem, curvature, partial(conjugate_gradient, max_iter=5))
    cosine = few @ expected / np.linalg.norm(few) / np.linalg.norm(expected)
    assert cosine > 0.99
    *_, whole = hypergradient(problem, curvature, partial(conjugate_gradient, max_iter=11))
    assert relative_error(whole, expected) < min(1e-5, relative_error(few, expected) / 100)


@pytest.mark.parametrize("case", CASES)
def test_rows_set_aside_as_they_are_leave_no_direct_part(case):
    direct, implicit, total = hypergradient(ImputingTeacher.random(**CASES[case]))
    assert not direct.any()
    np.testing.assert_array_equal(total, implicit)
    assert np.linalg.norm(implicit) > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_imputed_rows_that_judge_have_a_direct_part(case):
    """With the student held: the teacher writes into their features what he wants to read."""
    problem = ImputingTeacher.random(**CASES[case], is_naive=True)
    theta = problem.solved(flatten(problem.teacher).numpy())
    at = flatten(problem.teacher).numpy()
    expected = central_differences(lambda parameters: problem.outer(theta, parameters), at)
    assert np.linalg.norm(expected) > 1e-2
    assert relative_error(hypergradient(problem)[0], expected) < 1e-7


def test_labels_of_the_teacher_move_the_student_only_where_there_is_no_label():
    problem = ImputingTeacher.random(n_labelled=12)
    theta = torch.from_numpy(problem.theta_star(flatten(problem.teacher).numpy()))
    found = implicit_gradient(problem.bilevel(), theta, problem.phi().detach())
    by_row = found.total.view(30, 6)
    assert not by_row[:12, 5].any()
    assert by_row[12:, 5].all()
    observed = torch.from_numpy(problem.learnt[1]) > 0
    assert not by_row[:, :5][observed].any()
    kept = torch.from_numpy(problem.kept) > 0
    assert by_row[:, :5][~observed & kept].all()
    assert not by_row[:, :5][~kept].any()
