"""What orthogonal gradients are for, on designs whose truth is known: coverage, error, size.

The slow tests are of as many draws as the tables of docs/benchmarks.md; the others are of 60, with
bounds of three binomial standard errors.
"""

import numpy as np
import pytest

from skbilevel import ConditionalMomentGradient, OrthogonalFQE, OrthogonalIVRegressor
from tests.benchmark_modules import benchmark_module

designs = benchmark_module("orthogonal_designs")
figures = benchmark_module("orthogonal_figures")
bench = benchmark_module("bench_orthogonal")
EVERY = slice(None)
# .95 and .90 less three standard errors of 60 draws, of which coordinates are not independent.
LEAST, LEAST_OF_FIRST = 0.866, 0.79


@pytest.fixture(scope="module")
def few():
    """60 draws of each design."""
    methods = ("second order", "first order", "plug-in", "plug-in product", "fixed .01")
    return {name: figures.draws(name, 1000, methods, 60) for name in ("IV-poly", "FQE")}


@pytest.mark.parametrize("name", ["IV-poly", "FQE"])
def test_intervals_of_gradients_and_roots_hold(few, name):
    found, coordinates = few[name], designs.DESIGNS[name].coordinates
    for method in ("oracle", "second order"):
        assert figures.coverage(found[method], "gradient", coordinates) >= LEAST
        assert figures.coverage(found[method], "root", EVERY) >= LEAST
    assert figures.coverage(found["first order"], "gradient", coordinates) >= LEAST_OF_FIRST
    for method in ("plug-in", "plug-in product"):
        assert figures.coverage(found[method], "root", EVERY) <= 0.55
    assert figures.coverage(found["plug-in product"], "gradient", coordinates) <= 0.87
    assert figures.coverage(found["fixed .01"], "gradient", coordinates) <= 0.45


@pytest.mark.parametrize("name", ["IV-poly", "FQE"])
def test_errors_are_about_those_of_one_who_knows_the_nuisances(few, name):
    found = few[name]
    for part, most in (("gradient", 1.08), ("root", 1.15)):
        assert figures.rmse(found["second order"], part) <= most * figures.rmse(
            found["oracle"], part
        )
    fixed = figures.rmse(found["fixed .01"], "gradient")
    assert fixed > 1.6 * figures.rmse(found["oracle"], "gradient")


def test_true_root_is_rejected_as_often_as_the_test_says(few):
    """5 % and three standard errors of 60 draws are 13 %."""
    assert figures.size(few["FQE"]["second order"]) <= 0.14
    assert figures.size(few["FQE"]["plug-in"]) >= 0.9


def test_figures_are_those_of_the_public_class():
    """The benchmark goes by way of what `ConditionalMomentGradient` is made of."""
    design = designs.DESIGNS["IV-poly"]
    sample = design.draw(1000, np.random.default_rng(1_000_000))
    told = figures.draws("IV-poly", 1000, ["second order"], 1)["second order"][0]
    model = ConditionalMomentGradient(
        lambda w, d: d[0] @ w - d[1],
        design.nuisance,
        jac=lambda w, d: d[0],
        cv=sample.folds,
        random_state=0,
    ).fit(sample.X, (sample.D, sample.y))
    np.testing.assert_allclose(
        model.gradient(design.omega).coef_ - design.gradient, told.gradient[0], rtol=1e-7
    )
    np.testing.assert_allclose(model.solve(design.omega).stderr_, told.root[1], rtol=1e-7)


@pytest.mark.filterwarnings("ignore:The correction for what nuisances share")
def test_estimators_have_intervals_that_hold_with_their_defaults():
    """60 draws of 500 rows, of coefficients and of a value."""
    inside, of_value = [], []
    for seed in range(60):
        sample = designs.DESIGNS["IV-poly"].draw(500, np.random.default_rng(seed))
        model = OrthogonalIVRegressor(random_state=seed).fit(sample.D[:, 1:], sample.y, sample.X)
        low, high = model.conf_int().T
        inside.append((low <= designs.W_IV[1:]) & (designs.W_IV[1:] <= high))
        sample = designs.DESIGNS["FQE"].draw(500, np.random.default_rng(seed))
        extra, policy = sample.extra, [1 - designs.POLICY, designs.POLICY]
        value = OrthogonalFQE(policy, designs.GAMMA, designs.q_features, random_state=seed)
        start = designs.initial_states()[:2000]
        value.fit(extra["S"], extra["A"], sample.y, extra["S_next"], initial_states=start)
        low, high = value.value_interval()
        of_value.append(low <= 3.02 <= high)
    assert np.mean(inside) >= LEAST
    assert np.mean(of_value) >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IV-poly", "FQE"])
def test_coverage_and_errors_at_a_thousand_rows(name):
    methods = ("second order", "first order", "plug-in", "plug-in product", "fixed .01")
    found, coordinates = figures.draws(name, 1000, methods, 400), designs.DESIGNS[name].coordinates

    def covers(method, part="gradient", some=coordinates):
        return figures.coverage(found[method], part, some)

    assert 0.92 <= covers("second order") <= 0.97
    assert covers("first order") >= 0.91
    assert covers("plug-in") <= 0.87
    assert covers("plug-in product") <= 0.87
    assert covers("fixed .01") <= 0.40
    assert 0.92 <= covers("second order", "root", EVERY) <= 0.97
    of_oracle = {part: figures.rmse(found["oracle"], part) for part in ("gradient", "root")}
    assert figures.rmse(found["second order"], "gradient") <= 1.05 * of_oracle["gradient"]
    assert figures.rmse(found["second order"], "root") <= 1.06 * of_oracle["root"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IV-poly", "FQE"])
def test_first_order_is_enough_with_four_thousand_rows(name):
    found = figures.draws(name, 4000, ["first order"], 400)
    covers = figures.coverage(found["first order"], "gradient", designs.DESIGNS[name].coordinates)
    assert 0.92 <= covers <= 0.97


@pytest.mark.slow
def test_size_of_the_test_of_stationarity():
    """In the draws of roots and tests."""
    found = figures.draws("FQE", 1000, ["second order", "first order", "plug-in"], 400, base=555)
    assert figures.size(found["second order"]) <= 0.08
    assert figures.size(found["first order"]) > 0.12
    assert figures.size(found["plug-in"]) > 0.97


@pytest.mark.slow
def test_misspecified_instruments_have_the_best_approximation():
    name = "IV-poly delta=1"
    found = figures.draws(name, 1000, ["second order"], 120)
    assert 0.92 <= figures.coverage(found["second order"], "root", EVERY) <= 0.97
    design, inside = designs.DESIGNS[name], []
    for number in range(120):
        sample = design.draw(1000, np.random.default_rng(1_000_000 + number))
        omega, stderr = bench.two_stage(sample)
        inside.append(np.abs(omega - design.root) <= 1.96 * stderr)
    assert np.mean(inside) < 0.6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The correction for", "ignore:The smallest eigenvalue")
@pytest.mark.parametrize("n", [500, 2000])
def test_value_of_a_policy_is_covered_and_as_exact_as_by_lstdq(n):
    along, found = designs.initial_features(), {"OrthogonalFQE": [], "LSTDQ": []}
    for number in range(60):
        sample = designs.DESIGNS["FQE"].draw(n, np.random.default_rng(555 * n + number))
        each = bench.policy_values(sample, along, number)
        for name, errors in found.items():
            value, stderr = each[name]
            errors.append((value - along @ designs.W_FQE, stderr))
    errors, stderrs = np.transpose(found["OrthogonalFQE"])
    assert np.mean(np.abs(errors) <= 1.96 * stderrs) >= 0.92
    rmse = {name: np.sqrt(np.mean(np.square(each)[:, 0])) for name, each in found.items()}
    assert rmse["OrthogonalFQE"] <= 1.05 * rmse["LSTDQ"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IV-sin", "IV-4D"])
def test_hard_nuisances_are_told_better_than_at_first_order_or_flagged(name):
    found = figures.draws(name, 500, ["second order", "first order"], 200)
    coordinates = designs.DESIGNS[name].coordinates
    one, other = (
        figures.coverage(found[method], "gradient", coordinates)
        for method in ("second order", "first order")
    )
    assert one >= other + 0.02
    rough = figures.flagged(found["second order"], lambda t: t.gap > 0.5)
    assert one >= 0.92 or rough >= 0.2
