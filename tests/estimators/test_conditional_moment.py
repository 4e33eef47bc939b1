"""ConditionalMomentGradient: its answers against loops and closed forms, its contract, errors."""

import pickle
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import chi2
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import KFold

from skbilevel import ConditionalMomentGradient, NystroemRidge
from skbilevel._sklearn import ConvergenceWarning
from skbilevel.estimators import moment_problem
from tests.benchmark_modules import benchmark_module
from tests.problems import central_differences

designs = benchmark_module("orthogonal_designs")
SMOOTH = NystroemRidge(n_centers=60, bandwidth=1.0, random_state=0)


def linear(omega, data):
    return data["D"] @ omega - data["y"]


def slopes(omega, data):
    return data["D"]


def exponential(omega, data):
    """y is exp(omega_0 + omega_1 t) on average, given z."""
    return torch.exp(omega[0] + omega[1] * data["t"]) - data["y"]


def exponential_pair(omega, data):
    mean = np.exp(omega[0] + omega[1] * data["t"])
    return mean - data["y"], mean[:, None] * np.column_stack([np.ones(len(mean)), data["t"]])


@pytest.fixture(scope="module")
def sample():
    return designs.DESIGNS["IV-poly"].draw(400, np.random.default_rng(0))


@pytest.fixture(scope="module")
def fitted(sample):
    model = ConditionalMomentGradient(linear, SMOOTH, random_state=0)
    return model.fit(sample.X, {"D": sample.D, "y": sample.y})


@pytest.fixture(scope="module")
def curved():
    rng = np.random.default_rng(1)
    z, u = rng.uniform(-1, 1, 800), rng.normal(size=800)
    t = z + 0.4 * u
    y = np.exp(0.3 + 0.8 * t) + u + 0.3 * rng.normal(size=800)
    return z[:, None], {"t": t, "y": y}


OMEGA = np.array([0.2, -0.4, 0.7])


def test_scores_are_of_nuisances_that_have_not_seen_the_row(fitted, sample):
    """By a loop over folds with NystroemRidge itself; without the second-order correction."""
    plain = clone(fitted).set_params(correction="none").fit(sample.X, fitted._data)
    found = plain.gradient(OMEGA)
    learner = NystroemRidge(n_centers=60, bandwidth=1.0, random_state=0)
    # Features are of all rows: the same centers and units for every fold.
    features = learner.fit(sample.X, sample.y)
    fixed = NystroemRidge(
        centers=features.centers_, bandwidth=sample.X.std(axis=0), standardize=False
    )
    outputs, told = np.column_stack([sample.y, sample.D]), np.ones((400, 4))
    for train, test in plain.splits_[0]:
        assert not set(train) & set(test)
        for column in (0, 2, 3):
            model = fixed.fit(sample.X[train], outputs[train, column])
            told[test, column] = model.predict(sample.X[test])
    rho, kappa = told[:, 1:] @ OMEGA - told[:, 0], told[:, 1:]
    r, D = sample.D @ OMEGA - sample.y, sample.D
    expected = np.mean(
        [a * d + k * b - a * k for a, d, k, b in zip(rho, D, kappa, r, strict=True)], axis=0
    )
    assert_allclose(found.coef_, expected, rtol=1e-5)
    assert np.abs(found.coef_).min() > 0.1


def test_linear_residual_is_found_out_and_learnt_once(fitted):
    """The gradient is linear in omega, to rounding, and its root is that of the line."""
    points = np.random.default_rng(2).normal(size=(4, 3))
    at = [fitted.gradient(point).coef_ for point in points]
    matrix = np.column_stack([points, np.ones(4)])
    solution = np.linalg.solve(matrix, np.stack(at))
    assert_allclose(fitted.gradient(OMEGA).coef_, np.append(OMEGA, 1) @ solution, rtol=1e-8)
    root = fitted.solve(np.zeros(3))
    assert_allclose(fitted.gradient(root.coef_).coef_, 0, atol=1e-9)
    assert_allclose(root.hessian_, solution[:3], rtol=1e-7)
    assert_allclose(fitted.solve(OMEGA).coef_, root.coef_, rtol=1e-8)


def test_residual_may_be_written_in_numpy(fitted, sample):
    expected = fitted.gradient(OMEGA)
    pair = lambda omega, data: (linear(omega, data), slopes(omega, data))  # noqa: E731
    for residual, jac in ((linear, slopes), (pair, True)):
        model = ConditionalMomentGradient(residual, SMOOTH, jac=jac, random_state=0)
        found = model.fit(sample.X, {"D": sample.D, "y": sample.y}).gradient(OMEGA)
        assert_allclose(found.coef_, expected.coef_, rtol=1e-9)
        assert_allclose(found.cov_, expected.cov_, rtol=1e-9)


def test_data_may_come_in_several_forms(fitted, sample):
    expected = fitted.gradient(OMEGA).coef_
    table = pd.DataFrame(sample.D, columns=["a", "b", "c"]).assign(y=sample.y)
    forms = [
        (lambda w, d: d[0] @ w - d[1], (sample.D, sample.y)),
        (lambda w, d: d[:, :3] @ w - d[:, 3], np.column_stack([sample.D, sample.y])),
        (lambda w, d: w[0] * d["a"] + w[1] * d["b"] + w[2] * d["c"] - d["y"], table),
    ]
    for residual, data in forms:
        model = ConditionalMomentGradient(residual, SMOOTH, random_state=0).fit(sample.X, data)
        assert_allclose(model.gradient(OMEGA).coef_, expected, rtol=1e-9)


@pytest.mark.parametrize("correction", ["second_order", "disjoint", "none"])
def test_gradient_is_the_derivative_of_the_value_where_ridges_stay(sample, correction):
    nuisance = NystroemRidge(n_centers=40, bandwidth=1.0, ridge=1e-3, random_state=0)
    model = ConditionalMomentGradient(linear, nuisance, correction=correction, random_state=0)
    model.fit(sample.X, {"D": sample.D, "y": sample.y})
    expected = central_differences(lambda w: model.value(w).value_, OMEGA)
    assert np.abs(expected).min() > 0.1
    assert_allclose(model.gradient(OMEGA).coef_, expected, rtol=1e-6)


def test_nonlinear_residual_has_the_gradient_of_its_value(curved):
    """With one ridge for all, the value and its gradient are those of one function."""
    Z, data = curved
    nuisance = NystroemRidge(n_centers=30, bandwidth=1.0, ridge=1e-3, random_state=0)
    model = ConditionalMomentGradient(exponential, nuisance, random_state=0).fit(Z, data)
    at = np.array([0.1, 0.5])
    expected = central_differences(lambda w: model.value(w).value_, at)
    assert np.abs(expected).min() > 0.1
    assert_allclose(model.gradient(at).coef_, expected, rtol=1e-6)
    by_numpy = ConditionalMomentGradient(exponential_pair, nuisance, jac=True, random_state=0)
    found = by_numpy.fit(Z, data)
    assert_allclose(found.gradient(at).coef_, model.gradient(at).coef_, rtol=1e-9)
    one, other = found.solve([0.2, 0.7]), model.solve([0.2, 0.7])
    assert_allclose(one.coef_, other.coef_, rtol=1e-6)
    assert_allclose(one.hessian_, other.hessian_, rtol=1e-5)


@pytest.mark.parametrize("nuisance", [SMOOTH, LinearRegression()], ids=["smoother", "linear"])
def test_newton_finds_the_root_of_a_nonlinear_moment(curved, nuisance):
    Z, data = curved
    model = ConditionalMomentGradient(exponential, nuisance, random_state=0).fit(Z, data)
    found = model.solve([0.0, 0.0])
    assert np.abs(found.coef_ - [0.3, 0.8]).max() < 4 * found.stderr_.max()
    assert found.stderr_.max() < 0.2
    assert 2 <= found.n_iter_ < 60


def entangled(omega, data):
    """Its second derivatives are no multiples of the first, as those of `exponential` are."""
    return exponential(omega, data) + torch.sin(omega[0] * omega[1])


@pytest.mark.parametrize("residual", [exponential, entangled])
@pytest.mark.parametrize("half", [False, True])
def test_hessian_is_the_derivative_of_the_gradient_at_the_root(curved, residual, half):
    """Where no omega explains the outcome, so that the curvature of r counts; of all rows, or of
    those that a split tells. With one ridge for all it is so to rounding."""
    Z, data = curved
    data = {**data, "y": data["y"] + 2 * np.cos(4 * Z[:, 0])}
    nuisance = NystroemRidge(n_centers=30, bandwidth=1.0, ridge=1e-4, random_state=0)
    cv = [(np.arange(400), np.arange(400, 800))] if half else 5
    model = ConditionalMomentGradient(residual, nuisance, cv=cv, random_state=0).fit(Z, data)
    root = model.solve([0.2, 0.7])
    step, columns = 1e-4, []
    for j in range(2):
        moved = np.eye(2)[j] * step
        ahead, behind = (model.gradient(root.coef_ + s * moved).coef_ for s in (1, -1))
        columns.append((ahead - behind) / (2 * step))
    expected = np.stack(columns, axis=1)
    assert_allclose(root.hessian_, expected, rtol=1e-5)
    assert_allclose(model.gradient(root.coef_).coef_, 0, atol=1e-6)


def test_descent_and_newton_agree_where_ridges_are_one(curved):
    Z, data = curved
    nuisance = NystroemRidge(n_centers=30, bandwidth=1.0, ridge=1e-3, random_state=0)
    model = ConditionalMomentGradient(exponential, nuisance, random_state=0).fit(Z, data)
    newton, descent = (model.solve([0.0, 0.3], method=m) for m in ("newton", "lbfgs"))
    assert_allclose(descent.coef_, newton.coef_, atol=1e-5)
    assert_allclose(descent.stderr_, newton.stderr_, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The correction for", "ignore:The smallest eigenvalue")
@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_solver_that_is_cut_short_says_so(curved, monkeypatch, method):
    monkeypatch.setattr(moment_problem, "_MAX_ITER", 1)
    monkeypatch.setattr(moment_problem, "_N_TUNINGS", 1)
    monkeypatch.setattr(moment_problem, "root", lambda f, x, **_: Mock(x=x, fun=f(x), nfev=1))
    Z, data = curved
    model = ConditionalMomentGradient(exponential, SMOOTH, random_state=0).fit(Z, data)
    with pytest.warns(ConvergenceWarning, match=f"method='{method}': a gradient of"):
        model.solve([0.0, 0.5], method=method)


def test_descent_needs_a_gradient_of_the_value(curved):
    Z, data = curved
    model = ConditionalMomentGradient(exponential, Ridge(), random_state=0).fit(Z, data)
    with pytest.raises(ValueError, match="method='lbfgs' needs score='orthogonal'"):
        model.solve([0.0, 0.5], method="lbfgs")
    with pytest.raises(ValueError, match="method='bfgs' must be 'newton' or 'lbfgs'"):
        model.solve([0.0, 0.5], method="bfgs")


def test_confidence_set_holds_what_the_test_does_not_reject(fitted):
    root = fitted.solve(np.zeros(3))
    grid = root.coef_ + np.array([[0.0], [1.0], [2.0], [8.0]]) * root.stderr_
    expected = []
    for omega in grid:
        gradient = fitted.gradient(omega)
        statistic = gradient.coef_ @ np.linalg.solve(gradient.cov_, gradient.coef_)
        expected.append(statistic <= chi2.ppf(0.95, 3))
    found = fitted.confidence_set(grid)
    assert_array_equal(found, expected)
    assert found[0] and not found[-1]
    assert fitted.confidence_set(grid, level=0.5).sum() <= found.sum()


def test_band_of_one_point_is_its_joint_interval_up_to_draws(fitted):
    band = fitted.gradient_band(OMEGA[None], random_state=0)
    joint = fitted.gradient(OMEGA).conf_int(joint=True, random_state=0)
    assert_allclose(band[0], joint, rtol=1e-10)
    grid = OMEGA + np.linspace(-1, 1, 7)[:, None]
    wide = fitted.gradient_band(grid, random_state=0)
    assert wide.shape == (7, 3, 2)
    width = (wide[3] - joint)[:, 1]
    assert (width > 0).all()
    assert_allclose(wide.mean(axis=2)[3], fitted.gradient(OMEGA).coef_, rtol=1e-9)


def test_repetitions_are_combined_by_medians(sample):
    data = {"D": sample.D, "y": sample.y}
    model = ConditionalMomentGradient(linear, SMOOTH, n_rep=3, random_state=0)
    found = model.fit(sample.X, data).gradient(OMEGA)
    assert len(model.splits_) == 3
    each = []
    for splits in model.splits_:
        one = ConditionalMomentGradient(linear, SMOOTH, cv=splits, random_state=0)
        each.append(one.fit(sample.X, data).gradient(OMEGA))
    coef = np.median([one.coef_ for one in each], axis=0)
    assert_allclose(found.coef_, coef, rtol=1e-9)
    variances = [one.stderr_**2 + (one.coef_ - coef) ** 2 for one in each]
    assert_allclose(found.stderr_**2, np.median(variances, axis=0), rtol=1e-9)
    assert np.ptp([one.coef_[1] for one in each]) > 0
    assert np.linalg.eigvalsh(found.cov_).min() > 0


def test_groups_are_told_together_and_count_together(sample):
    data = {"D": sample.D, "y": sample.y}
    names = np.repeat(np.arange(100), 4)
    model = ConditionalMomentGradient(linear, SMOOTH, random_state=0)
    model.fit(sample.X, data, groups=names)
    for train, test in model.splits_[0]:
        assert not set(names[train]) & set(names[test])
    found = model.gradient(OMEGA)
    assert found.scores_.shape == (100, 3)
    labels = np.array([f"g{name:03d}" for name in names])
    again = clone(model).fit(sample.X, data, groups=labels).gradient(OMEGA)
    assert_allclose(again.coef_, found.coef_)


def test_repeated_rows_have_honest_errors_only_with_groups(sample):
    """Each row four times says no more than once."""
    four = np.repeat(np.arange(400), 4)
    data = {"D": sample.D[four], "y": sample.y[four]}
    plain = ConditionalMomentGradient(linear, SMOOTH, random_state=0)
    once = plain.fit(sample.X, {"D": sample.D, "y": sample.y}).gradient(OMEGA).stderr_
    naive = plain.fit(sample.X[four], data).gradient(OMEGA).stderr_
    honest = plain.fit(sample.X[four], data, groups=four).gradient(OMEGA).stderr_
    assert_allclose(honest, once, rtol=0.1)
    assert_allclose(naive, once / 2, rtol=0.1)


def test_scores_for_comparison_are_what_they_say(sample):
    data = {"D": sample.D, "y": sample.y}
    everything = ConditionalMomentGradient(
        linear, SMOOTH, cross_fit=False, correction="none", random_state=0
    )
    found = {
        name: clone(everything).set_params(score=name).fit(sample.X, data).gradient(OMEGA)
        for name in ("orthogonal", "plug_in", "plug_in_product", "instrument")
    }
    assert len(everything.fit(sample.X, data).splits_[0]) == 1
    sums = found["plug_in"].coef_ + found["instrument"].coef_ - found["plug_in_product"].coef_
    assert_allclose(found["orthogonal"].coef_, sums, rtol=1e-9)
    auto = ConditionalMomentGradient(linear, SMOOTH, score="plug_in", random_state=0)
    assert auto.fit(sample.X, data).correction_ == "none"
    assert ConditionalMomentGradient(linear).fit(sample.X, data).correction_ == "second_order"
    trees = ExtraTreesRegressor(n_estimators=2)
    assert ConditionalMomentGradient(linear, trees).fit(sample.X, data).correction_ == "disjoint"


def test_rows_that_no_split_tells_are_left_out(sample):
    """A fixed ridge, and one half that learns for the other: the kernel baseline."""
    halves = [(np.arange(200), np.arange(200, 400))]
    nuisance = NystroemRidge(n_centers=60, bandwidth=1.0, ridge=0.01, random_state=0)
    model = ConditionalMomentGradient(linear, nuisance, cv=halves, score="plug_in_product")
    model.fit(sample.X, {"D": sample.D, "y": sample.y})
    found = model.gradient(OMEGA)
    assert found.scores_.shape == (200, 3)
    assert np.isfinite(found.coef_).all()


@pytest.mark.filterwarnings("ignore:The correction for what nuisances share")
def test_any_regressor_is_a_nuisance(sample):
    model = ConditionalMomentGradient(
        linear, ExtraTreesRegressor(n_estimators=20, min_samples_leaf=5), random_state=0
    )
    model.fit(sample.X, {"D": sample.D, "y": sample.y})
    found = model.gradient(np.zeros(3))
    truth = designs.DESIGNS["IV-poly"].gradient
    assert (np.abs(found.coef_ - truth) < 5 * found.stderr_).all()
    assert_array_equal(found.coef_, model.gradient(np.zeros(3)).coef_)


def test_value_near_zero_has_no_interval(fitted):
    root = fitted.solve(np.zeros(3))
    near, far = fitted.value(root.coef_), fitted.value(np.zeros(3))
    with pytest.warns(UserWarning, match="not clear of 0"):
        assert np.isnan(near.conf_int()).all()
    low, high = far.conf_int(0.9)
    assert low < far.value_ < high
    assert high - low == pytest.approx(2 * 1.6448536 * far.stderr_)


def test_value_is_covered_where_it_is_far_from_zero():
    """F(0) = (b - A/2 omega)'... is known: 1/2 E[mu^2]."""
    design, inside = designs.DESIGNS["IV-poly"], []
    A, b = design.moments()
    truth = design.root @ A @ design.root / 2
    assert b @ design.root / 2 == pytest.approx(truth)
    for seed in range(60):
        sample = design.draw(500, np.random.default_rng(seed))
        model = ConditionalMomentGradient(linear, SMOOTH, cv=sample.folds, random_state=seed)
        model.fit(sample.X, {"D": sample.D, "y": sample.y})
        low, high = model.value(np.zeros(3)).conf_int()
        inside.append(low <= truth <= high)
    # 60 intervals: .95 less three standard errors is .866.
    assert np.mean(inside) >= 0.866


@pytest.mark.filterwarnings("ignore:The correction for what nuisances share")
def test_weak_instruments_are_warned_of(sample):
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(400, 2))
    model = ConditionalMomentGradient(linear, SMOOTH, random_state=0)
    model.fit(noise, {"D": sample.D, "y": sample.y})
    with pytest.warns(UserWarning, match="smallest eigenvalue of the Hessian"):
        model.solve(np.zeros(3))


def test_parameters_that_x_does_not_tell_apart_have_no_root(sample):
    D = np.column_stack([sample.D, sample.D[:, 1]])
    model = ConditionalMomentGradient(linear, SMOOTH, random_state=0)
    model.fit(sample.X, {"D": D, "y": sample.y})
    with pytest.raises(ValueError, match="Hessian of F is singular"):
        model.solve(np.zeros(4))


def test_clone_and_pickle_keep_what_they_should(fitted):
    again = pickle.loads(pickle.dumps(clone(fitted).set_params(residual=linear)))
    assert again.get_params()["random_state"] == 0
    with pytest.raises(NotFittedError):
        again.gradient(OMEGA)
    with pytest.raises(NotFittedError):
        again.solve(OMEGA)
    other = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(other.gradient(OMEGA).coef_, fitted.gradient(OMEGA).coef_)


def test_calls_leave_the_model_as_it_was(fitted):
    before = pickle.dumps(fitted)
    fitted.gradient(OMEGA)
    fitted.solve(OMEGA)
    fitted.value(OMEGA)
    assert pickle.dumps(fitted) == before


def test_names_of_columns_are_kept(sample):
    frame = pd.DataFrame(sample.X, columns=["a", "b"])
    model = ConditionalMomentGradient(linear, SMOOTH, random_state=0)
    model.fit(frame, {"D": sample.D, "y": sample.y})
    assert model.feature_names_in_.tolist() == ["a", "b"]
    assert model.n_features_in_ == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"D": np.ones((399, 3)), "y": np.ones(400)}}, r"data\['D'\] has 399 rows"),
        ({"data": (np.ones((400, 3)), np.ones(5))}, r"data\[1\] has 5 rows"),
        ({"data": np.ones(3)}, "data has 3 rows"),
        ({"data": pd.DataFrame({"y": [1.0]})}, "data has 1 rows"),
        ({"groups": np.ones(5)}, "groups has 5 rows"),
        ({"groups": np.ones(400)}, "at least two groups"),
        ({"cv": 500}, "cv=500 needs as many rows"),
        ({"cv": KFold(3), "n_rep": 2}, "n_rep=2 needs cv to be a number of folds"),
        ({"correction": "second_order", "nuisance": Ridge()}, "correction='second_order' needs"),
        ({"correction": "disjoint", "score": "plug_in"}, "says nothing of score='plug_in'"),
        ({"correction": "disjoint", "cross_fit": False}, "says nothing of cross_fit=False"),
        ({"groups": np.append(np.arange(399.0), np.nan)}, "groups contains NaN"),
        ({"score": "naive"}, "score"),
        ({"residual": None}, "residual"),
    ],
)
def test_input_that_does_not_fit_is_named(sample, change, message):
    parts = {"data": {"D": sample.D, "y": sample.y}, "groups": None, **change}
    data, groups = parts.pop("data"), parts.pop("groups")
    model = ConditionalMomentGradient(**{"residual": linear, "random_state": 0, **parts})
    with pytest.raises(ValueError, match=message):
        model.fit(sample.X, data, groups=groups)
    assert not hasattr(model, "splits_")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.full(400, "a"), r"data\['y'\] must hold numbers"),
        (np.full(400, np.nan), r"data\['y'\] contains NaN"),
    ],
)
def test_data_that_is_no_numbers_for_torch_is_named(sample, y, message):
    model = ConditionalMomentGradient(linear, random_state=0)
    with pytest.raises(ValueError, match=message):
        model.fit(sample.X, {"D": sample.D, "y": y})


def test_parameter_without_effect_is_named(fitted, sample):
    model = ConditionalMomentGradient(
        lambda w, d: d["D"] @ w[:3] - d["y"] + 0 * w[3], SMOOTH, random_state=0
    )
    model.fit(sample.X, {"D": sample.D, "y": sample.y})
    with pytest.raises(ValueError, match=r"does not depend on omega\[3\]"):
        model.solve(np.zeros(4))


@pytest.mark.filterwarnings("ignore:The correction for what nuisances share")
@pytest.mark.parametrize("start", [[0.0, 0.0], [0.5, -0.3]])
def test_residual_that_looks_linear_from_one_side_is_not(start):
    """It depends on a difference, which equal steps leave as it is."""
    rng = np.random.default_rng(4)
    Z, u = rng.uniform(-1, 1, (1500, 2)), rng.normal(size=1500)
    T = np.column_stack([2 + Z[:, 0], Z[:, 1]]) + 0.3 * u[:, None]
    Y = np.exp(0.7 + 0.4) * T[:, 0] + (0.7 - 0.4) * T[:, 1] + u

    def residual(w, d):
        return torch.exp(w[0] - w[1]) * d["T"][:, 0] + (w[0] + w[1]) * d["T"][:, 1] - d["Y"]

    model = ConditionalMomentGradient(residual, random_state=0).fit(Z, {"T": T, "Y": Y})
    found = model.solve(start)
    assert (np.abs(found.coef_ - [0.7, -0.4]) < 4 * found.stderr_).all()
    grid = np.array([[0.7, -0.4], [0.0, 0.0]])
    assert_array_equal(model.confidence_set(grid), [True, False])
    assert_array_equal(model.confidence_set(grid[::-1]), [False, True])


def test_kink_is_no_line():
    """Slope 1 above 0 and 3 below."""
    rng = np.random.default_rng(5)
    Z = rng.uniform(-1, 1, (800, 1))
    data = {"T": 2 + Z[:, 0], "Y": -0.5 * (2 + Z[:, 0]) + 0.1 * rng.normal(size=800)}
    model = ConditionalMomentGradient(
        lambda w, d: torch.where(w[0] > 0, w[0], 3 * w[0]) * d["T"] - d["Y"], random_state=0
    ).fit(Z, data)
    for start in (1.0, -1.0):
        assert model.solve([start]).coef_[0] == pytest.approx(-1 / 6, abs=0.02)


def test_root_beyond_a_kink_is_found_out():
    """The slope is 1 above -3, further down than what is looked at around the start."""
    Z = np.random.default_rng(5).uniform(-1, 1, (800, 1))
    data = {"T": 2 + Z[:, 0], "Y": -9 * (2 + Z[:, 0])}
    model = ConditionalMomentGradient(
        lambda w, d: torch.where(w[0] > -3, w[0], 3 * w[0] + 6) * d["T"] - d["Y"], random_state=0
    ).fit(Z, data)
    assert model.solve([1.0]).coef_[0] == pytest.approx(-5, abs=0.01)


def test_set_of_anderson_and_rubin_keeps_its_level_with_an_irrelevant_instrument():
    rng, inside = np.random.default_rng(6), []
    for _ in range(200):
        z, u = rng.normal(size=(2, 200))
        T, Y = u, u + 0.3 * rng.normal(size=200)
        model = ConditionalMomentGradient(
            lambda w, d: (w[0] * d["T"] - d["Y"], d["T"][:, None]),
            LinearRegression(fit_intercept=False),
            jac=True,
            score="instrument",
            cross_fit=False,
        ).fit(z[:, None], {"T": T, "Y": Y})
        inside.append(model.confidence_set([[0.0]])[0])
    # .95 with a standard error of .015.
    assert 0.9 <= np.mean(inside) <= 0.995


@pytest.mark.filterwarnings("ignore:The correction for what nuisances share")
def test_noise_that_groups_share_does_not_bias():
    """Groups of five with a shock that T and Y share: at the truth the gradient is 0, and so is
    what is told of it by sums over groups and on disjoint halves; uncorrected it is not."""
    corrections = {"grouped": "auto", "disjoint": "disjoint", "none": "none"}
    found = {name: [] for name in corrections}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(120), 5)
        z = rng.uniform(-1, 1, 120)[groups]
        shock = rng.normal(size=120)[groups]
        T = np.sin(2 * z) + shock + 0.3 * rng.normal(size=600)
        data = {"T": T, "Y": T + shock + 0.3 * rng.normal(size=600)}
        for name, correction in {
            "grouped": "auto",
            "disjoint": "disjoint",
            "none": "none",
        }.items():
            model = ConditionalMomentGradient(
                lambda w, d: (w[0] * d["T"] - d["Y"], d["T"][:, None]),
                NystroemRidge(ridge=1e-3, bandwidth=0.5, random_state=0),
                jac=True,
                correction=correction,
                random_state=seed,
            ).fit(z[:, None], data, groups=groups)
            found[name].append(model.gradient([1.0]).coef_[0])
    mean = {name: np.mean(each) for name, each in found.items()}
    stderr = np.std(found["grouped"]) / np.sqrt(20)
    assert mean["none"] > 4 * stderr
    assert abs(mean["grouped"]) < 0.4 * mean["none"]
    assert abs(mean["disjoint"]) < 0.4 * mean["none"]


@pytest.mark.parametrize(
    ("residual", "jac", "error", "message"),
    [
        (lambda w, d: d["y"][:5] * w[0], None, ValueError, r"residual must give .* \(400,\)"),
        (lambda w, d: torch.log(w[0] - 10) * d["y"], None, ValueError, "is not finite at omega"),
        (lambda w, d: d["y"].numpy(), None, TypeError, "must return a torch tensor"),
        (lambda w, d: np.exp(w.numpy()[0]) * d["y"], None, TypeError, "must be written in torch"),
        (lambda w, d: d["y"] - w.detach()[0], None, ValueError, "does not depend on omega"),
        (lambda w, d: d["y"], True, ValueError, "jac=True needs residual to return a pair"),
        (
            lambda w, d: d["y"],
            lambda w, d: d["D"][:, :2],
            ValueError,
            r"jac must give .* \(400, 3",
        ),
    ],
)
def test_residual_that_does_not_fit_is_named(sample, residual, jac, error, message):
    model = ConditionalMomentGradient(residual, SMOOTH, jac=jac, random_state=0)
    model.fit(sample.X, {"D": sample.D, "y": sample.y})
    with pytest.raises(error, match=message):
        model.gradient(OMEGA)


@pytest.mark.parametrize(
    ("omega", "message"),
    [
        ([[0.0, 1.0]], r"omega must have the shape \(p,\)"),
        ([np.nan, 0.0, 1.0], "omega contains NaN"),
        (["a"], "could not convert"),
    ],
)
def test_omega_is_a_vector_of_numbers(fitted, omega, message):
    with pytest.raises(ValueError, match=message):
        fitted.gradient(omega)
