"""BilevelGradient against the quadratic case, quadrature, and a loop over folds."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor
from torch.nn.functional import softplus

from skbilevel import BilevelGradient, ConditionalMomentGradient, NystroemRidge
from skbilevel._sklearn import ConvergenceWarning
from tests.benchmark_modules import benchmark_module
from tests.problems import central_differences

designs = benchmark_module("orthogonal_designs")
OMEGA = np.array([0.2, -0.4, 0.7])
POINT = np.array([0.3, 1.2])


def squared_inner(omega, v, row):
    return (v - row["D"] @ omega) ** 2 / 2


def squared_outer(omega, v, row):
    return (row["y"] - v) ** 2 / 2


def logistic_inner(omega, v, row):
    """A weighted logistic regression of a label that T tells softly: its curvature varies given X.

    h = logit(E[w sigma | X] / E[w | X]).
    """
    weight = 1 + 0.8 * torch.sin(3 * row["t"])
    return weight * (softplus(v) - torch.sigmoid(omega[0] + omega[1] * row["t"]) * v)


def bent_outer(omega, v, row):
    """It bends in the prediction, and depends on omega by itself."""
    return (row["y"] - torch.tanh(v)) ** 2 / 2 + 0.1 * omega[0] * v


@pytest.fixture(scope="module")
def sample():
    return designs.DESIGNS["IV-poly"].draw(300, np.random.default_rng(0))


def draw(n, seed):
    """T ~ N(1.5 sin 2x, .5^2) given x in [-1, 1], and y shares its noise."""
    r = np.random.default_rng(seed)
    x, u = r.uniform(-1, 1, n), r.normal(size=n)
    t = 1.5 * np.sin(2 * x) + 0.5 * u
    return x[:, None], {"t": t, "y": np.cos(2 * x) + 0.5 * u + 0.2 * r.normal(size=n)}


def objective(omega):
    """F by Gauss quadrature in x and in T: y is cos 2x and independent noise, given x."""
    x, of_x = np.polynomial.legendre.leggauss(60)
    node, of_node = np.polynomial.hermite_e.hermegauss(60)
    t = 1.5 * np.sin(2 * x)[:, None] + 0.5 * node
    weight = 1 + 0.8 * np.sin(3 * t)
    h = logit((weight * expit(omega[0] + omega[1] * t)) @ of_node / (weight @ of_node))
    noise = 0.5**2 + 0.2**2
    values = ((np.cos(2 * x) - np.tanh(h)) ** 2 + noise) / 2 + 0.1 * omega[0] * h
    return values @ of_x / 2


GRADIENT = central_differences(objective, POINT)


def test_squared_losses_are_a_conditional_moment(sample):
    """With a projection as nuisance all of J, a and c are those of rho and kappa, exactly."""
    data = {"D": sample.D, "y": sample.y}
    bilevel = BilevelGradient(squared_inner, squared_outer, LinearRegression(), random_state=0)
    moment = ConditionalMomentGradient(
        lambda w, d: d["D"] @ w - d["y"], LinearRegression(), correction="none", random_state=0
    )
    one, other = (m.fit(sample.X, data).gradient(OMEGA) for m in (bilevel, moment))
    assert_allclose(one.scores_, other.scores_, rtol=1e-8, atol=1e-9)
    assert_allclose(one.cov_, other.cov_, rtol=1e-8)
    for score in ("plug_in", "plug_in_product"):
        one, other = (
            clone(m).set_params(score=score).fit(sample.X, data).gradient(OMEGA)
            for m in (bilevel, moment)
        )
        if score == "plug_in":
            assert_allclose(one.coef_, other.coef_, rtol=1e-7)
        else:
            # The bilevel form has the outcome where the moment has what is told of it.
            assert np.abs(one.coef_ - other.coef_).max() < 2 * one.stderr_.max()


def test_squared_losses_with_the_default_nuisance_are_about_that_moment(sample):
    data = {"D": sample.D, "y": sample.y}
    nuisance = NystroemRidge(random_state=0)
    bilevel = BilevelGradient(squared_inner, squared_outer, nuisance, random_state=0)
    moment = ConditionalMomentGradient(
        lambda w, d: d["D"] @ w - d["y"], nuisance, correction="none", random_state=0
    )
    one, other = (m.fit(sample.X, data).gradient(OMEGA) for m in (bilevel, moment))
    assert (np.abs(one.coef_ - other.coef_) < 0.3 * other.stderr_).all()


def test_gradient_is_near_that_of_quadrature():
    X, data = draw(4000, 0)
    found = BilevelGradient(logistic_inner, bent_outer, random_state=0).fit(X, data)
    gradient = found.gradient(POINT)
    assert np.abs(GRADIENT).min() > 5 * gradient.stderr_.max()
    assert (np.abs(gradient.coef_ - GRADIENT) < 3.5 * gradient.stderr_).all()
    value = found.value(POINT)
    assert abs(value.coef_[0] - objective(POINT)) < 3.5 * value.stderr_[0]


def errors(n, n_draws, what, truth, **settings):
    """Errors and standard errors of an estimate, (n_draws, 2, p)."""
    found = []
    for seed in range(n_draws):
        X, data = draw(n, 1000 + seed)
        model = BilevelGradient(logistic_inner, bent_outer, random_state=seed, **settings)
        estimate = getattr(model.fit(X, data), what)(POINT)
        found.append((estimate.coef_ - truth, estimate.stderr_))
    return np.array(found)


def covered(each):
    return np.mean(np.abs(each[:, 0]) <= 1.96 * each[:, 1])


def test_intervals_cover_where_losses_are_not_squared():
    """60 draws of two coordinates: .95 less three standard errors of 60 draws is .866."""
    assert covered(errors(300, 60, "gradient", GRADIENT)) >= 0.866


@pytest.mark.slow
def test_intervals_cover_as_they_say_where_losses_are_not_squared():
    assert 0.92 <= covered(errors(1000, 400, "gradient", GRADIENT)) <= 0.97
    assert 0.92 <= covered(errors(1000, 400, "value", objective(POINT))) <= 0.975
    plain = {"score": "plug_in_product", "cross_fit": False}
    assert covered(errors(1000, 200, "gradient", GRADIENT, **plain)) <= 0.87


def test_nuisances_have_not_seen_the_rows_that_they_tell():
    X, data = draw(200, 3)
    model = BilevelGradient(
        logistic_inner, bent_outer, NystroemRidge(bandwidth=1.0, n_centers=20), random_state=0
    ).fit(X, data)
    before = model.gradient(POINT)
    _, test = model.splits_[0][0]
    other = {name: part.copy() for name, part in data.items()}
    other["y"][test] += 1.0
    after = clone(model).fit(X, other).gradient(POINT)
    # a is linear in y: of the fold that has changed only its own d has, by -(1 - tanh^2 h).
    gap = (after.scores_ - before.scores_)[test]
    through = gap[:, 0] / gap[:, 1]
    assert np.isfinite(through).all()
    assert np.abs(after.scores_ - before.scores_).max() > 0.01


def test_inner_problem_that_is_linear_in_the_prediction_is_refused(sample):
    model = BilevelGradient(lambda w, v, row: w[0] * v * row["y"], squared_outer, random_state=0)
    model.fit(sample.X, {"D": sample.D, "y": sample.y})
    with pytest.raises(ValueError, match="inner_loss must be strictly convex"):
        model.gradient([1.0])


def test_loss_that_is_not_finite_is_named(sample):
    data = {"D": sample.D, "y": sample.y}
    model = BilevelGradient(
        lambda w, v, row: v**2 / torch.log(w[0]), squared_outer, random_state=0
    )
    with pytest.raises(
        ValueError, match=r"inner_loss has no finite derivatives at omega=\[-1.0\]"
    ):
        model.fit(sample.X, data).gradient([-1.0])
    model = BilevelGradient(
        lambda w, v, row: (v - w[0]) ** 2, lambda w, v, row: torch.log(w[0]) * v, random_state=0
    )
    with pytest.raises(ValueError, match="outer_loss has no finite derivatives"):
        model.fit(sample.X, data).gradient([-1.0])


def test_newton_that_is_cut_short_says_so():
    X, data = draw(200, 4)
    model = BilevelGradient(logistic_inner, bent_outer, max_iter=1, random_state=0).fit(X, data)
    with pytest.warns(ConvergenceWarning, match="max_iter=1 Newton steps"):
        model.gradient(POINT)


def test_poisson_losses_start_where_they_are_finite():
    """A loss of a positive mean, which has no value at 0."""
    rng = np.random.default_rng(5)
    x = rng.uniform(-1, 1, 500)
    y = rng.poisson(np.exp(1 + x)).astype(float)

    def poisson(omega, v, row):
        return v - (row["y"] + omega[0]) * torch.log(v)

    model = BilevelGradient(poisson, squared_outer, initial_prediction=3.0, random_state=0).fit(
        x[:, None], {"y": y}
    )
    found = model.gradient([0.5])
    # h = E[y | x] + omega, F = E[(y - h)^2] / 2, dF = omega.
    assert abs(found.coef_[0] - 0.5) < 4 * found.stderr_[0]


def test_repetitions_and_groups():
    X, data = draw(200, 6)
    names = np.repeat(np.arange(50), 4)
    model = BilevelGradient(logistic_inner, bent_outer, n_rep=2, random_state=0)
    found = model.fit(X, data, groups=names).gradient(POINT)
    assert found.scores_.shape == (50, 2)
    for splits in model.splits_:
        for train, test in splits:
            assert not set(names[train]) & set(names[test])
    assert len(model.splits_) == 2


def test_data_may_come_in_several_forms(sample):
    frame = pd.DataFrame(sample.D, columns=["a", "b", "c"]).assign(y=sample.y)
    nuisance = LinearRegression()
    expected = BilevelGradient(squared_inner, squared_outer, nuisance, random_state=0)
    expected = expected.fit(sample.X, {"D": sample.D, "y": sample.y}).gradient(OMEGA).coef_
    forms = [
        (
            lambda w, v, row: (v - w[0] * row["a"] - w[1] * row["b"] - w[2] * row["c"]) ** 2 / 2,
            squared_outer,
            frame,
        ),
        (
            lambda w, v, row: (v - row[0] @ w) ** 2 / 2,
            lambda w, v, row: (row[1] - v) ** 2 / 2,
            (sample.D, sample.y),
        ),
        (
            lambda w, v, row: (v - row[:3] @ w) ** 2 / 2,
            lambda w, v, row: (row[3] - v) ** 2 / 2,
            np.column_stack([sample.D, sample.y]),
        ),
    ]
    for inner, outer, data in forms:
        model = BilevelGradient(inner, outer, nuisance, random_state=0).fit(sample.X, data)
        assert_allclose(model.gradient(OMEGA).coef_, expected, rtol=1e-9)


def test_contract(sample):
    data = {"D": sample.D, "y": sample.y}
    model = BilevelGradient(squared_inner, squared_outer, NystroemRidge(), random_state=0)
    with pytest.raises(NotFittedError):
        model.gradient(OMEGA)
    model.fit(sample.X, data)
    assert model.get_params()["nuisance__undersmooth"] == 1.0
    other = pickle.loads(pickle.dumps(model))
    assert_array_equal(other.gradient(OMEGA).coef_, model.gradient(OMEGA).coef_)
    assert not hasattr(clone(model), "splits_")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"nuisance": KNeighborsRegressor()}, TypeError, "takes no sample_weight"),
        ({"score": "instrument"}, ValueError, "score"),
        ({"inner_loss": 3}, ValueError, "inner_loss"),
        ({"cv": 400}, ValueError, "cv=400 needs as many rows"),
        ({"tol": 0.0}, ValueError, "tol"),
    ],
)
def test_settings_that_do_not_fit_are_named(sample, change, error, message):
    settings = {"inner_loss": squared_inner, "outer_loss": squared_outer, **change}
    with pytest.raises(error, match=message):
        BilevelGradient(**settings).fit(sample.X, {"D": sample.D, "y": sample.y})
