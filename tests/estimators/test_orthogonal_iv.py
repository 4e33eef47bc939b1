"""OrthogonalIVRegressor against least squares, two-stage least squares and known truths."""

import pickle

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import chi2, norm
from sklearn import config_context
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import cross_val_predict, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from skbilevel import ConditionalMomentGradient, NystroemRidge, OrthogonalIVRegressor
from tests.benchmark_modules import benchmark_module

designs = benchmark_module("orthogonal_designs")
SQUARES = PolynomialFeatures(2, include_bias=False)


@pytest.fixture(scope="module")
def sample():
    return designs.DESIGNS["IV-poly"].draw(600, np.random.default_rng(0))


@pytest.fixture(scope="module")
def fitted(sample):
    model = OrthogonalIVRegressor(SQUARES, random_state=0)
    return model.fit(sample.D[:, 1:2], sample.y, sample.X)


def test_coefficients_are_the_root_of_the_conditional_moment(fitted, sample):
    moment = ConditionalMomentGradient(lambda w, d: d[0] @ w - d[1], random_state=0)
    root = moment.fit(sample.X, (sample.D, sample.y)).solve(np.zeros(3))
    assert_allclose(np.append(fitted.intercept_, fitted.coef_), root.coef_, rtol=1e-9)
    assert_allclose(np.append(fitted.intercept_stderr_, fitted.stderr_), root.stderr_, rtol=1e-9)
    assert_allclose(fitted.cov_, root.cov_[1:, 1:], rtol=1e-9)
    assert (np.abs(fitted.coef_ - designs.W_IV[1:]) < 4 * fitted.stderr_).all()
    ordinary = LinearRegression().fit(sample.D[:, 1:], sample.y).coef_
    assert np.abs(ordinary - designs.W_IV[1:]).max() > 4 * fitted.stderr_.max()


def test_without_instruments_it_is_least_squares_with_robust_errors(sample):
    X, y = sample.D[:, 1:], sample.y
    model = OrthogonalIVRegressor().fit(X, y)
    ordinary = LinearRegression().fit(X, y)
    assert_allclose(model.coef_, ordinary.coef_, rtol=1e-9)
    assert model.intercept_ == pytest.approx(ordinary.intercept_)
    rows = np.column_stack([np.ones(len(X)), X])
    bread, e = np.linalg.inv(rows.T @ rows), y - ordinary.predict(X)
    expected = bread @ (rows * e[:, None] ** 2).T @ rows @ bread * len(X) / (len(X) - 1)
    assert_allclose(model.cov_, expected[1:, 1:], rtol=1e-8)
    assert model.nuisance_scores_ == {}
    same = OrthogonalIVRegressor(random_state=0).fit(X, y, X)
    assert_allclose(same.coef_, ordinary.coef_, rtol=1e-9)
    assert_allclose(same.cov_, model.cov_, rtol=1e-9)
    assert set(same.nuisance_scores_) == {"y"}


def test_linear_nuisances_as_instruments_without_folds_are_two_stage_least_squares(sample):
    """kappa r with kappa by least squares of all rows."""
    X, Z, y = sample.D[:, 1:], np.column_stack([sample.X, sample.X**2]), sample.y
    for moment_score in ("orthogonal", "plug_in", "plug_in_product", "instrument"):
        model = OrthogonalIVRegressor(
            nuisance=LinearRegression(), cross_fit=False, moment_score=moment_score
        ).fit(X, y, Z)
        rows, told = np.column_stack([np.ones(len(y)), X]), LinearRegression().fit(Z, X).predict(Z)
        kappa = np.column_stack([np.ones(len(y)), told])
        expected = np.linalg.solve(kappa.T @ rows, kappa.T @ y)
        assert_allclose(np.append(model.intercept_, model.coef_), expected, rtol=1e-9)


def test_exogenous_columns_that_z_holds_are_known(sample):
    rng = np.random.default_rng(1)
    control = rng.normal(size=len(sample.y))
    X = np.column_stack([sample.D[:, 1], control])
    Z = np.column_stack([sample.X, control])
    y = sample.y + 0.5 * control
    model = OrthogonalIVRegressor(random_state=0).fit(X, y, Z)
    assert set(model.nuisance_scores_) == {"y", "x0"}
    assert abs(model.coef_[1] - 0.5) < 5 * model.stderr_[1]


def test_instruments_are_told_from_controls():
    """x moves with an instrument and with a control; a control's square is no instrument."""
    rng = np.random.default_rng(2)
    control, z, u = rng.normal(size=(3, 2000))
    e = rng.normal(size=(2, 2000))
    for strength, least, most in ((1.0, 0.6, 0.72), (0.0, -0.05, 0.01)):
        x = strength * z + control + control**2 + 0.5 * u + 0.5 * e[0]
        y = x + control + u + e[1]
        X, Z = np.column_stack([x, control]), np.column_stack([z, control])
        model = OrthogonalIVRegressor(random_state=0)
        if strength:
            model.fit(X, y, Z)
        else:
            with pytest.warns(UserWarning, match="tells next to nothing more of 'x0'"):
                model.fit(X, y, Z)
            # It is identified for all that, by the square.
            assert model.hessian_strength_ > 10
            assert model.nuisance_scores_["x0"] > 0.5
        # z has 1 of 1.5 of the variance that the control leaves.
        assert set(model.instrument_scores_) == {"x0"}
        assert least < model.instrument_scores_["x0"] < most
        assert "the rest of Z tells: x0" in model.summary()


def test_without_controls_instruments_tell_what_nuisances_do(fitted):
    assert set(fitted.instrument_scores_) == {"x0", "x0^2"}
    for name, r2 in fitted.instrument_scores_.items():
        assert r2 == pytest.approx(fitted.nuisance_scores_[name])


def test_tables_of_names_and_intervals(fitted):
    assert fitted.coefficient_names_.tolist() == ["x0", "x0^2"]
    width = norm.ppf(0.95) * fitted.stderr_
    bounds = np.column_stack([fitted.coef_ - width, fitted.coef_ + width])
    assert_allclose(fitted.conf_int(0.9), bounds)
    joint = fitted.conf_int(0.9, joint=True, random_state=0)
    assert (joint[:, 0] < bounds[:, 0]).all() and (joint[:, 1] > bounds[:, 1]).all()
    bonferroni = norm.ppf(1 - 0.05 / 2) * fitted.stderr_
    assert (joint[:, 1] - fitted.coef_ < 1.05 * bonferroni).all()
    text = fitted.summary()
    for part in ("intercept", "x0^2", "std err", "R2 of what Z tells: y", "Hessian"):
        assert part in text
    statistic = fitted.coef_ @ np.linalg.solve(fitted.cov_, fitted.coef_)
    assert f"chi2(2) = {statistic:.1f}, p = {chi2.sf(statistic, 2):.3g}" in text
    assert f"{fitted.coef_[0]:.4g}" in text


def test_intervals_of_the_curve_are_those_of_its_parts(fitted):
    new = np.array([[-1.0], [0.0], [0.5]])
    told = fitted.predict(new)
    by_hand = fitted.intercept_ + new @ fitted.coef_[:1] + new[:, 0] ** 2 * fitted.coef_[1]
    assert_allclose(told, by_hand)
    low, high = fitted.predict_interval(new, 0.9).T
    assert_allclose((low + high) / 2, told)
    # At 0 the curve is its intercept.
    assert (high - low)[1] == pytest.approx(2 * norm.ppf(0.95) * fitted.intercept_stderr_)
    wide = np.ptp(fitted.predict_interval(new, 0.9, joint=True, random_state=0), axis=1)
    assert (wide > high - low).all()
    again = fitted.predict_interval(new, 0.9, joint=True, random_state=0)
    assert_allclose(wide, np.ptp(again, axis=1))


def test_features_may_be_any_transformer(sample):
    pipeline = make_pipeline(StandardScaler(), SQUARES)
    model = OrthogonalIVRegressor(pipeline, random_state=0)
    model.fit(sample.D[:, 1:2], sample.y, sample.X)
    plain = OrthogonalIVRegressor(SQUARES, random_state=0)
    plain.fit(sample.D[:, 1:2], sample.y, sample.X)
    # Ridges are chosen for each output, so that nuisances of sums are not sums of nuisances.
    assert_allclose(model.predict(sample.D[:20, 1:2]), plain.predict(sample.D[:20, 1:2]), atol=0.1)
    assert model.coefficient_names_.tolist() == ["x0", "x0^2"]


def test_units_of_outcome_and_columns_carry_over(sample):
    X, Z, y = sample.D[:, 1:], sample.X, sample.y
    one = OrthogonalIVRegressor(random_state=0).fit(X, y, Z)
    other = OrthogonalIVRegressor(random_state=0).fit(X * [1e-4, 1e3], 5 * y + 7, Z)
    assert_allclose(other.coef_ * [1e-4, 1e3] / 5, one.coef_, rtol=1e-6)
    assert_allclose(other.stderr_ * [1e-4, 1e3] / 5, one.stderr_, rtol=1e-6)


def test_columns_that_repeat_are_said_to(sample):
    X = np.column_stack([sample.D[:, 1], sample.D[:, 1]])
    with pytest.warns(UserWarning, match="cannot be told from X and Z at all"):
        model = OrthogonalIVRegressor().fit(X, sample.y)
    ordinary = LinearRegression().fit(X[:, :1], sample.y)
    assert_allclose(model.predict(X), ordinary.predict(X[:, :1]), rtol=1e-8)


def test_rough_nuisances_are_warned_of():
    design = designs.DESIGNS["IV-4D"]
    sample = design.draw(500, np.random.default_rng(0))
    with (
        pytest.warns(UserWarning, match="'x1' by .*nuisance_scores_ has its R2"),
        pytest.warns(UserWarning, match="smallest eigenvalue of the Hessian"),
    ):
        model = OrthogonalIVRegressor(random_state=0).fit(sample.D[:, 1:], sample.y, sample.X)
    assert model.hessian_strength_ < 2
    assert model.correction_gap_.max() > 0.5


@pytest.mark.filterwarnings("ignore:The smallest eigenvalue", "ignore:The correction for")
@pytest.mark.filterwarnings("ignore:What Z holds besides")
def test_groups_widen_the_intervals(sample):
    four = np.repeat(np.arange(200), 4)
    parts = sample.D[four, 1:], sample.y[four], sample.X[four]
    naive = OrthogonalIVRegressor(random_state=0).fit(*parts)
    honest = OrthogonalIVRegressor(random_state=0).fit(*parts, groups=four)
    assert (honest.stderr_ > 1.7 * naive.stderr_).all()


def by_region(n, size, seed):
    """An instrument of regions, whose rows share a shock of x and y; the slope is 1.5."""
    rng = np.random.default_rng(seed)
    region = np.repeat(np.arange(n // size), size)
    z, shock = rng.uniform(-1, 1, n // size)[region], rng.normal(size=n // size)[region]
    u = rng.normal(size=n)
    x = np.sin(2 * z) + 0.5 * (u + shock) + 0.3 * rng.normal(size=n)
    return x[:, None], 1.5 * x + u + shock, z[:, None], region


@pytest.mark.filterwarnings("ignore:The correction for", "ignore:The smallest eigenvalue")
def test_instruments_of_groups_are_not_taken_for_many_rows():
    """Forty draws of 100 regions; .95 less three standard errors is .85."""
    inside, errors = [], []
    for seed in range(40):
        X, y, Z, region = by_region(1000, 10, seed)
        model = OrthogonalIVRegressor(random_state=0).fit(X, y, Z, groups=region)
        low, high = model.conf_int()[0]
        inside.append(low <= 1.5 <= high)
        errors.append(model.coef_[0] - 1.5)
        assert model.nuisance_scores_["x0"] > 0
    assert np.mean(inside) >= 0.85
    assert abs(np.median(errors)) < 0.15


@pytest.mark.parametrize("change", ["scaled", "single", "squared"])
def test_controls_are_known_in_any_units_and_by_their_functions(change):
    rng = np.random.default_rng(3)
    c, z, u = rng.normal(size=(3, 1000))
    x = c**2 + u + 0.3 * rng.normal(size=1000)
    X, Z, y = np.column_stack([x, c]), np.column_stack([z, c]), x + 0.5 * c + u
    model, names = OrthogonalIVRegressor(random_state=0), {"x0"}
    if change == "scaled":
        X = StandardScaler().fit_transform(X)
    elif change == "single":
        X = X.astype(np.float32)
    else:
        model.set_params(features=SQUARES)
        names = {"x0", "x0^2", "x0 x1"}
    # z has nothing to do with x.
    with pytest.warns(UserWarning) as caught:
        model.fit(X, y, Z)
    assert any("tells next to nothing more" in str(warning.message) for warning in caught)
    assert set(model.instrument_scores_) == names
    assert max(model.instrument_scores_.values()) < 0.02


def test_features_see_frames_with_text(sample):
    rng = np.random.default_rng(4)
    kind = np.array(["a", "b"])[rng.integers(2, size=600)]
    X = pd.DataFrame({"t": sample.D[:, 1], "kind": kind})
    features = ColumnTransformer(
        [("t", SQUARES, ["t"]), ("kind", OneHotEncoder(drop="first"), ["kind"])],
        sparse_threshold=1.0,
    )
    Z = np.column_stack([sample.X, kind == "b"])
    model = OrthogonalIVRegressor(features, random_state=0).fit(X, sample.y, Z)
    assert model.coefficient_names_.tolist() == ["t__t", "t__t^2", "kind__kind_b"]
    assert (np.abs(model.coef_[:2] - designs.W_IV[1:]) < 4 * model.stderr_[:2]).all()
    assert model.predict(X.iloc[:3]).shape == (3,)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(X[["kind", "t"]])


def test_refitting_without_features_forgets_them(sample):
    model = OrthogonalIVRegressor(SQUARES).fit(sample.D[:, 1:2], sample.y)
    assert len(model.coef_) == 2
    model.set_params(features=None).fit(sample.D[:, 1:2], sample.y)
    assert len(model.coef_) == 1
    assert model.features_ is None
    assert "no instruments: this is least squares" in model.summary()


def test_outcome_that_does_not_vary_is_no_trouble(sample):
    X = sample.D[:, 1:]
    model = OrthogonalIVRegressor(random_state=0).fit(X, np.ones(len(X)), X)
    assert_allclose(model.coef_, 0, atol=1e-10)
    assert model.intercept_ == pytest.approx(1)


def test_instruments_go_through_cross_validation_by_routing(sample):
    X, y, Z = sample.D[:, 1:], sample.y, sample.X
    with config_context(enable_metadata_routing=True):
        model = make_pipeline(StandardScaler(), OrthogonalIVRegressor(random_state=0))
        results = cross_validate(
            model, X, y, cv=3, params={"Z": Z}, return_estimator=True, scoring="r2"
        )
        told = cross_val_predict(model, X, y, cv=3, params={"Z": Z})
    assert told.shape == y.shape
    for each in results["estimator"]:
        assert set(each[-1].nuisance_scores_) == {"y", "x0", "x1"}


def test_frames_give_their_names(sample):
    X = pd.DataFrame({"t": sample.D[:, 1], "t2": sample.D[:, 2]})
    Z = pd.DataFrame(sample.X, columns=["a", "b"])
    model = OrthogonalIVRegressor(random_state=0).fit(X, sample.y, Z)
    assert model.coefficient_names_.tolist() == ["t", "t2"]
    assert set(model.nuisance_scores_) == {"y", "t", "t2"}
    assert "t2" in model.summary()
    assert_allclose(model.predict(X.iloc[:5]), model.intercept_ + X.iloc[:5] @ model.coef_)


def test_pickle_keeps_it_all(fitted):
    other = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(other.conf_int(), fitted.conf_int())
    assert other.summary() == fitted.summary()


def test_random_state_makes_it_repeat(sample):
    parts = sample.D[:, 1:], sample.y, sample.X
    first, again, other = (
        OrthogonalIVRegressor(random_state=seed).fit(*parts).coef_ for seed in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, {"Z": np.ones((5, 2))}, "Z has 5 rows and X has 600"),
        ({}, {"Z": np.full((600, 1), np.nan)}, "Input Z contains NaN"),
        ({}, {"groups": np.arange(3)}, "groups has 3 rows and X has 600"),
        ({"cv": 601}, {}, "cv=601 needs as many rows"),
        ({"cv": 4}, {"groups": np.repeat([0, 1, 2], 200)}, "number of groups=3"),
        ({"correction": "second_order", "nuisance": Ridge()}, {}, "correction='second_order'"),
        ({"moment_score": "naive"}, {}, "moment_score"),
        ({"nuisance": "ridge"}, {}, "nuisance"),
    ],
)
def test_input_that_does_not_fit_is_named(sample, settings, change, message):
    parts = {"Z": sample.X, **change}
    model = OrthogonalIVRegressor(**settings)
    with pytest.raises(ValueError, match=message):
        model.fit(sample.D[:, 1:], sample.y, **parts)
    assert not hasattr(model, "coef_")


def test_level_is_a_probability(fitted):
    for call in (fitted.conf_int, fitted.summary):
        with pytest.raises(ValueError, match="level=2 must be between 0 and 1"):
            call(level=2)
    with pytest.raises(ValueError, match="level=95 must be between 0 and 1"):
        fitted.predict_interval([[0.0]], level=95)


@pytest.mark.filterwarnings("ignore:The correction for")
def test_nuisance_settings_reach_the_fit(sample):
    parts = sample.D[:, 1:], sample.y, sample.X
    plain, rough = (
        OrthogonalIVRegressor(nuisance=NystroemRidge(undersmooth=u), random_state=0).fit(*parts)
        for u in (1.0, 0.01)
    )
    assert rough.correction_gap_.max() > plain.correction_gap_.max()
