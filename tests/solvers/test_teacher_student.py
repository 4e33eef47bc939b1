"""The alternation of teacher and students, on problems whose every gradient is a closed form."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from skbilevel.numerics.problem import BilevelProblem, CompositeLoss
from skbilevel.solvers.teacher_student import ADJOINTS, MONITORED, Alternation, Step, alternate
from tests.problems import TanhRegression


@dataclass(frozen=True)
class Linear:
    """Inner ``|L theta - B phi|^2/2 + ridge/2 |theta|^2``, outer ``|theta - t|^2/2 + c'phi``, and
    a reconstruction ``2 |phi - a|^2``; the teacher is phi itself."""

    L: np.ndarray
    B: np.ndarray
    t: np.ndarray
    c: np.ndarray
    a: np.ndarray
    ridge: float = 0.5

    @classmethod
    def random(cls, direct=0.0, seed=0):
        rng = np.random.default_rng(seed)
        L = np.eye(4) + 0.3 * rng.normal(size=(4, 4))
        return cls(
            L,
            rng.normal(size=(4, 3)),
            *rng.normal(size=(1, 4)),
            np.full(3, direct),
            *(rng.normal(size=(1, 3))),
        )

    @property
    def A(self):
        return self.L.T @ self.L + self.ridge * np.eye(4)

    def theta_star(self, phi):
        return np.linalg.solve(self.A, self.L.T @ self.B @ phi)

    def implicit(self, theta):
        return self.B.T @ self.L @ np.linalg.solve(self.A, theta - self.t)

    def minimiser(self, weight=1.0):
        """Of ``weight h(phi) + 2 |phi - a|^2`` for c = 0."""
        S = np.linalg.solve(self.A, self.L.T @ self.B)
        return np.linalg.solve(
            weight * S.T @ S + 4 * np.eye(3), weight * S.T @ self.t + 4 * self.a
        )

    def bilevel(self):
        L, B, t, c = map(torch.from_numpy, (self.L, self.B, self.t, self.c))
        inner = CompositeLoss(
            lambda theta, phi: L @ theta - B @ phi, lambda z, phi: z.square().sum() / 2, self.ridge
        )
        return BilevelProblem(inner, lambda theta, phi: (theta - t).square().sum() / 2 + c @ phi)

    def reconstruction(self, phi):
        return 2 * (phi - torch.from_numpy(self.a)).square().sum()

    def draw(self, teacher, n_students=1):
        """Steps in which every student has its turn."""
        problem = self.bilevel()
        return lambda iteration: Step(
            iteration % n_students,
            lambda: 1.0 * teacher,
            problem,
            lambda: self.reconstruction(teacher),
        )


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


PHI = (1.0, -0.5, 2.0)


def one_step(problem, theta, **settings):
    """The gradient by which the teacher moved from PHI, the student being held at theta."""
    teacher, student = leaf(*PHI), torch.from_numpy(theta.copy())
    result = alternate(
        [teacher], [student], problem.draw(teacher), Alternation(1, student_rate=0.0, **settings)
    )
    np.testing.assert_array_equal(student.detach(), theta)
    return teacher.grad.numpy(), result.history


def gradients(problem, theta):
    """Of the reconstruction, and of the outer loss through the student."""
    return 4 * (np.array(PHI) - problem.a), problem.implicit(theta)


# One step


@pytest.mark.parametrize("curvature", ADJOINTS)
@pytest.mark.parametrize("weight", [0.25, 1.0, 2.0])
def test_unbounded_gradient_is_multiplied_by_the_weight(curvature, weight):
    problem = Linear.random()
    theta = problem.theta_star(PHI)
    own, taught = gradients(problem, theta)
    settings = {"curvature": curvature, "n_products": 10, "is_bounded": False}
    moved, _ = one_step(problem, theta, weight=weight, **settings)
    np.testing.assert_allclose(moved, own + weight * taught, rtol=1e-9)
    assert np.linalg.norm(taught) > 0.1


@pytest.mark.parametrize("weight", [0.01, 0.1, 1.0, 1e3])
def test_bounded_gradient_is_cut_to_the_weight_times_the_reconstructions_and_never_raised(weight):
    problem = Linear.random()
    theta = problem.theta_star(PHI)
    own, taught = gradients(problem, theta)
    most = weight * np.linalg.norm(own)
    is_cut = most < np.linalg.norm(taught)
    assert is_cut == (weight < 1)
    moved, _ = one_step(problem, theta, weight=weight, curvature="exact", is_bounded=True)
    expected = most * taught / np.linalg.norm(taught) if is_cut else taught
    np.testing.assert_allclose(moved - own, expected, rtol=1e-12)


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_direct_term_holds_the_student_and_is_multiplied_by_the_weight_once(weight):
    problem = Linear.random(direct=0.7)
    theta = problem.theta_star(PHI)
    own, _ = gradients(problem, theta)
    moved, history = one_step(problem, theta, weight=weight, terms="direct", is_bounded=False)
    np.testing.assert_allclose(moved - own, weight * problem.c, rtol=1e-13)
    assert history["implicit_norm"][0] == pytest.approx(np.linalg.norm(problem.c))


def test_both_terms_are_the_direct_and_the_implicit_part():
    problem = Linear.random(direct=0.7)
    theta = problem.theta_star(PHI)
    own, taught = gradients(problem, theta)
    moved, _ = one_step(problem, theta, curvature="exact", is_bounded=False)
    np.testing.assert_allclose(moved, own + problem.c + taught, rtol=1e-12)


def test_history_tells_losses_and_norms_after_the_student_and_before_the_teacher():
    problem = Linear.random()
    theta, phi = problem.theta_star(PHI) + 0.1, np.array(PHI)
    own, taught = gradients(problem, theta)
    _, history = one_step(problem, theta, curvature="exact")
    misfit = problem.L @ theta - problem.B @ phi
    expected = {
        "inner": (misfit @ misfit + problem.ridge * theta @ theta) / 2,
        "outer": (theta - problem.t) @ (theta - problem.t) / 2,
        "mae": 2 * np.square(phi - problem.a).sum(),
        "stationarity": np.linalg.norm(problem.A @ theta - problem.L.T @ problem.B @ phi),
        "implicit_norm": np.linalg.norm(taught),
        "mae_norm": np.linalg.norm(own),
        "cosine": own @ taught / np.linalg.norm(own) / np.linalg.norm(taught),
        "negative_curvature": 0.0,
    }
    assert history.pop("cg_residual")[0] < 1e-14
    assert {name: pytest.approx([value]) for name, value in expected.items()} == history
    assert set(expected) | {"cg_residual"} == set(MONITORED)


@pytest.mark.parametrize("n_products", [1, 2])
def test_residual_of_few_products_is_relative_to_the_right_hand_side(n_products):
    problem = Linear.random()
    theta = problem.theta_star(PHI)
    _, history = one_step(problem, theta, n_products=n_products)
    b = theta - problem.t
    powers = [b] if n_products == 1 else [b, problem.A @ b]
    basis = np.stack(powers, axis=1)
    # Conjugate gradients: the solution in the space of the powers of A, in the norm of A.
    x = basis @ np.linalg.solve(basis.T @ problem.A @ basis, basis.T @ b)
    expected = np.linalg.norm(b - problem.A @ x) / np.linalg.norm(b)
    assert history["cg_residual"][0] == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-3


def test_hessian_of_negative_curvature_gives_way_to_gauss_newton():
    """The labels y + phi of a curved model: implicit = J (J'J + ridge I)^-1 d_theta outer."""
    curved = TanhRegression.random()
    X, y = torch.from_numpy(curved.X), torch.from_numpy(curved.y)
    inner = CompositeLoss(
        lambda theta, phi: torch.tanh(X @ theta),
        lambda z, phi: (z - y - phi).square().sum() / 2,
        0.01,
    )
    jacobian = (1 - np.tanh(curved.X @ curved.theta) ** 2)[:, None] * curved.X
    expected = jacobian @ np.linalg.solve(curved.gauss_newton() + 0.01 * np.eye(4), np.ones(4))
    assert np.linalg.eigvalsh(curved.hessian())[0] < -0.1
    for curvature, was_negative in (("hessian", 1.0), ("gauss_newton", 0.0), ("exact", 0.0)):
        teacher, student = leaf(*np.zeros(10)), torch.from_numpy(curved.theta.copy())
        step = Step(
            0,
            lambda teacher=teacher: 1.0 * teacher,
            BilevelProblem(inner, lambda theta, phi: theta.sum()),
            lambda teacher=teacher: 0.0 * teacher.sum(),
        )
        settings = Alternation(
            1, student_rate=0.0, curvature=curvature, n_products=20, is_bounded=False
        )
        result = alternate([teacher], [student], lambda _, step=step: step, settings)
        assert result.history["negative_curvature"] == [was_negative]
        np.testing.assert_allclose(teacher.grad, expected, rtol=1e-6)
    assert np.linalg.norm(expected) > 0.1


def test_each_tensor_of_the_teacher_moves_by_what_depends_on_it():
    problem = Linear.random()
    imputing, reconstructing = leaf(*PHI), leaf(*PHI)
    theta = problem.theta_star(PHI)
    step = Step(
        0,
        lambda: 1.0 * imputing,
        problem.bilevel(),
        lambda: problem.reconstruction(reconstructing),
    )
    settings = Alternation(1, student_rate=0.0, curvature="exact", is_bounded=False)
    alternate([imputing, reconstructing], [torch.from_numpy(theta)], lambda _: step, settings)
    own, taught = gradients(problem, theta)
    np.testing.assert_allclose(imputing.grad, taught, rtol=1e-12)
    np.testing.assert_allclose(reconstructing.grad, own, rtol=1e-12)


# Many steps


@pytest.mark.parametrize("is_bounded", [False, True])
@pytest.mark.parametrize("terms", ["both", "direct"])
def test_weight_zero_is_adam_on_the_reconstruction_alone_to_the_bit(terms, is_bounded):
    problem, teacher, alone = Linear.random(direct=0.7), leaf(*PHI), leaf(*PHI)
    settings = Alternation(20, teacher_rate=0.05, weight=0.0, terms=terms, is_bounded=is_bounded)
    student = torch.zeros(4, dtype=torch.float64)
    result = alternate([teacher], [student], problem.draw(teacher), settings)
    optimizer = torch.optim.Adam([alone], lr=0.05)
    for _ in range(20):
        (alone.grad,) = torch.autograd.grad(problem.reconstruction(alone), alone)
        optimizer.step()
    assert torch.equal(teacher, alone)
    assert student.any()
    assert result.history["implicit_norm"] == [0.0] * 20
    assert min(result.history["stationarity"]) > 0.1


def test_student_that_descends_for_long_is_stationary():
    problem = Linear.random()
    found = []
    for inner_steps in (1, 100, 2000):
        teacher, student = leaf(*PHI), torch.zeros(4, dtype=torch.float64)
        settings = Alternation(1, inner_steps=inner_steps, student_rate=0.02)
        result = alternate([teacher], [student], problem.draw(teacher), settings)
        found += result.history["stationarity"]
    np.testing.assert_allclose(student.detach(), problem.theta_star(PHI), rtol=0, atol=1e-6)
    assert found[0] > 1 > found[1] > 1e-3
    assert found[2] < 1e-6


def converged(weight, is_bounded, start=PHI):
    problem, teacher = Linear.random(), leaf(*start)
    student = torch.zeros(4, dtype=torch.float64)
    settings = Alternation(300, 3, 0.05, 0.1, weight, is_bounded=is_bounded, curvature="exact")
    result = alternate([teacher], [student], problem.draw(teacher), settings)
    phi = teacher.detach().numpy()
    np.testing.assert_allclose(student.detach(), problem.theta_star(phi), rtol=0, atol=1e-6)
    assert (result.n_iter, result.converged) == (300, True)
    assert {len(values) for values in result.history.values()} == {300}
    return phi


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_teacher_reaches_the_minimum_of_the_outer_loss_and_the_reconstruction(weight):
    problem = Linear.random()
    expected = problem.minimiser(weight)
    assert np.linalg.norm(expected - problem.a) > 0.05
    np.testing.assert_allclose(converged(weight, False), expected, rtol=0, atol=1e-6)


def test_bound_above_one_leaves_the_minimum_where_it_is():
    """There both gradients have one length, and nothing is cut."""
    expected = Linear.random().minimiser()
    np.testing.assert_allclose(converged(2.0, True), expected, rtol=0, atol=1e-6)


def test_bound_below_one_rests_where_the_reconstruction_does():
    """What is shorter than the gradient of the reconstruction cannot hold it up."""
    problem = Linear.random()
    np.testing.assert_allclose(converged(0.5, True), problem.a, rtol=0, atol=1e-6)
    assert np.linalg.norm(problem.minimiser() - problem.a) > 0.1


def test_students_take_turns_as_the_steps_say():
    problem, teacher = Linear.random(), leaf(*PHI)
    students = [torch.zeros(4, dtype=torch.float64) for _ in range(3)]
    places = [[student.clone() for student in students]]

    def on_step(history):
        places.append([student.detach().clone() for student in students])
        return False

    alternate([teacher], students, problem.draw(teacher, 3), Alternation(7), on_step)
    for iteration in range(7):
        before, after = places[iteration], places[iteration + 1]
        moved = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert moved == [number == iteration % 3 for number in range(3)]


def test_each_student_keeps_its_own_optimiser():
    """A student that has had two turns is where one that was alone is after two, to the bit."""
    problem, places = Linear.random(), []
    for n_students in (1, 2):
        teacher, students = leaf(*PHI), [torch.zeros(4).double() for _ in range(n_students)]
        settings = Alternation(2 * n_students, teacher_rate=0.0)
        alternate([teacher], students, problem.draw(teacher, n_students), settings)
        places += students
    assert torch.equal(places[0], places[1])
    assert torch.equal(places[0], places[2])


def test_a_callback_that_returns_true_ends_the_loop():
    problem, teacher = Linear.random(), leaf(*PHI)
    seen = []

    def on_step(history):
        seen.append(len(history["mae"]))
        return len(seen) == 3

    student = torch.zeros(4, dtype=torch.float64)
    result = alternate([teacher], [student], problem.draw(teacher), Alternation(10), on_step)
    assert seen == [1, 2, 3]
    assert (result.n_iter, result.converged) == (3, False)
    assert result.outer[0] is teacher
    assert result.inner[0] is student


def test_no_iteration_changes_nothing():
    problem, teacher = Linear.random(), leaf(*PHI)
    student = torch.zeros(4, dtype=torch.float64)
    result = alternate([teacher], [student], problem.draw(teacher), Alternation(0))
    assert torch.equal(teacher.detach(), torch.tensor(PHI).double())
    assert not student.any()
    assert (result.n_iter, result.converged) == (0, True)
    assert result.history == {name: [] for name in MONITORED}
