"""The designs against their published figures, closed forms and a transcription of their text."""

import numpy as np
import pytest
from scipy import integrate, stats

from skbilevel.metrics import imputation_rmse
from tests.benchmark_modules import benchmark_module

designs = benchmark_module("not_at_random_designs")
real_data = benchmark_module("real_data")


@pytest.fixture(scope="module")
def uci():
    """What the packages of the tests carry, at least red, yeast and breast."""
    return real_data.uci_sets(None)


@pytest.fixture(scope="module")
def development():
    return real_data.development_sets()


def pooled(X, imputed, missing):
    return np.sqrt(np.mean((X - imputed)[missing] ** 2))


# The UCI protocol.


@pytest.mark.parametrize(
    ("name", "shape", "mean", "reflection", "constant", "gaussian"),
    [
        ("red", (1599, 11), 1.838, 1.077, 1.013, 0.864),
        ("yeast", (1484, 8), 1.729, 0.774, 0.727, 0.700),
        ("breast", (569, 30), 1.820, 0.973, 0.911, 0.479),
    ],
)
def test_baselines_of_the_uci_protocol_have_their_published_errors(
    uci, name, shape, mean, reflection, constant, gaussian
):
    X = uci[name]
    assert X.shape == shape
    missing = designs.missing_above_mean(X)
    X_missing = designs.hidden(X, missing)
    rows = {
        mean: np.where(missing, np.nanmean(X_missing, axis=0), X),
        reflection: designs.reflection(X_missing),
        constant: designs.oracle_constant(X, missing),
        gaussian: designs.oracle_gaussian(X, missing),
    }
    for error, imputed in rows.items():
        assert imputation_rmse(X, imputed, ~missing) == pytest.approx(error, abs=6e-4)
        np.testing.assert_array_equal(imputed[~missing], X[~missing])


def test_the_uci_mask_is_that_of_the_standardised_columns(uci):
    for X in uci.values():
        missing = designs.missing_above_mean(X)
        Z = (X - X.mean(axis=0)) / X.std(axis=0)
        half = X.shape[1] // 2
        np.testing.assert_array_equal(missing[:, :half], Z[:, :half] > 0)
        assert not missing[:, half:].any()


def test_reflection_from_below_is_that_of_the_mirrored_data():
    X = np.array([[1.0, np.nan], [2.0, 5.0], [6.0, 7.0], [np.nan, 9.0]])
    above, below = designs.reflection(X), designs.reflection(X, side=-1)
    assert above[3, 0] == 2 * 6 - 3
    assert below[3, 0] == 2 * 1 - 3
    np.testing.assert_array_equal(below, -designs.reflection(-X))


# The normal with the true threshold.


def test_one_missing_cell_is_imputed_by_the_closed_form():
    X, missing = designs.gaussian_design(0)
    limit = np.full(2, X[:, 0].mean())
    covariance = np.array([[1, 0.8], [0.8, 1]])
    imputed = designs.truncated_normal_mean(X, missing, np.zeros(2), covariance, limit)
    truth = designs.gaussian_bayes(X)[missing[:, 0]]
    np.testing.assert_allclose(imputed[missing], truth, rtol=1e-10)
    np.testing.assert_array_equal(imputed[~missing], X[~missing])
    beyond = stats.truncnorm((limit[0] - 0.8 * X[:, 1]) / 0.6, np.inf, 0.8 * X[:, 1], 0.6)
    np.testing.assert_allclose(truth, beyond.mean()[missing[:, 0]], rtol=1e-8)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.8])
def test_mean_of_the_positive_quadrant(correlation):
    missing = np.ones((1, 2), dtype=bool)
    covariance = np.array([[1, correlation], [correlation, 1]])
    probability = 0.25 + np.arcsin(correlation) / (2 * np.pi)
    truth = (1 + correlation) / (2 * np.sqrt(2 * np.pi)) / probability
    zero = np.zeros(2)
    imputed = designs.truncated_normal_mean(np.zeros((1, 2)), missing, zero, covariance, zero)
    np.testing.assert_allclose(imputed, truth, rtol=0.004)


def test_two_missing_cells_beside_an_observed_one_agree_with_quadrature():
    factor = np.array([[1.0, 0, 0], [0.6, 0.9, 0], [-0.5, 0.4, 0.7]])
    covariance, location = factor @ factor.T, np.array([0.3, -0.4, 0.2])
    limit = np.array([0.5, np.nan, 0.1])
    X, missing = np.array([[0, 0.8, 0]]), np.array([[True, False, True]])
    density = stats.multivariate_normal(location, covariance).pdf

    def moment(power_first, power_last):
        def mass(z, x):
            return x**power_first * z**power_last * density([x, 0.8, z])

        return integrate.dblquad(mass, limit[0], 8, limit[2], 8, epsabs=1e-9)[0]

    truth = np.array([moment(1, 0), moment(0, 1)]) / moment(0, 0)
    imputed = designs.truncated_normal_mean(X, missing, location, covariance, limit)
    np.testing.assert_allclose(imputed[0, [0, 2]], truth, rtol=0.002)


# Two columns.


def test_the_normal_design_cannot_be_imputed_better_than_0458():
    errors = []
    for seed in range(10):
        X, missing = designs.gaussian_design(seed)
        errors.append(pooled(X[:, 0], designs.gaussian_bayes(X), missing[:, 0]))
    assert np.mean(errors) == pytest.approx(0.458, abs=5e-4)
    assert np.std(errors) == pytest.approx(0.023, abs=5e-4)


def test_the_ring_cannot_be_imputed_better_than_1950_and_zero_is_off_it():
    errors, truth, zero = [], [], []
    for seed in range(10):
        X, missing = designs.ring_design(seed)
        hit = missing[:, 0]
        np.testing.assert_array_equal(hit, X[:, 1] >= np.abs(X[:, 0]))
        errors.append(pooled(X, 0.0, missing))
        truth.append(designs.distance_from_ring(X[hit]))
        zero.append(designs.distance_from_ring(X[hit] * [0, 1]))
    assert np.mean(errors) == pytest.approx(1.950, abs=5e-4)
    assert np.std(errors) == pytest.approx(0.035, abs=5e-4)
    # The mean of |N(0, .5)|, of 3750 points.
    assert np.mean(truth) == pytest.approx(0.5 * np.sqrt(2 / np.pi), abs=0.015)
    assert np.mean(zero) == pytest.approx(0.615, abs=5e-4)


# Many masks of real tables.


def auto_design(complete, seed):
    """Transcription of the benchmark's text; M is True where missing."""
    r = np.random.default_rng(100 + seed)
    X = complete[r.permutation(len(complete))[:300]]
    X = (X - X.mean(0)) / (X.std(0) + 1e-12)
    d = X.shape[1]
    X, h = X[:, r.permutation(d)], d // 2
    for mech in ("mcar", "mar", "above", "below", "soft+", "soft-"):
        U, M, A = r.random(X.shape), np.zeros(X.shape, bool), X[:, :h]
        if mech == "mar":
            s = X[:, h:] @ r.normal(size=(d - h, h))
            P = 1 / (1 + np.exp(-2 * s / s.std(0)))
        if mech in ("mcar", "above", "below"):
            M[:, :h] = {"mcar": U[:, :h] < 0.4, "above": A > 0, "below": A < -0.2}[mech]
        else:
            slope = 2 * A if mech == "soft+" else -2 * A
            M[:, :h] = U[:, :h] < (P if mech == "mar" else 1 / (1 + np.exp(-slope)))
        yield mech, X, M


@pytest.mark.parametrize("name", ["diabetes", "wine"])
def test_auto_cases_are_the_design_of_the_benchmark(name):
    complete = real_data.auto_sets(None)[name]
    cases = list(designs.auto_cases({name: complete}, seeds=[3]))
    assert len(cases) == 6
    for case, (mechanism, X, missing) in zip(cases, auto_design(complete, 3), strict=True):
        assert case[:3] == (name, 3, mechanism)
        np.testing.assert_array_equal(case.X, X)
        np.testing.assert_array_equal(case.missing, missing)


def test_another_base_draws_other_cases():
    complete = {"wine": real_data.auto_sets(None)["wine"]}
    default, shifted = (
        [case.X for case in designs.auto_cases(complete, seeds=seeds, base=base)]
        for seeds, base in (([1], 100), ([0], 101))
    )
    other = next(designs.auto_cases(complete, seeds=[1], base=200)).X
    np.testing.assert_array_equal(default, shifted)
    assert not np.array_equal(default[0], other)


def test_a_mechanism_that_leaves_a_column_20_cells_is_skipped():
    few = np.zeros((300, 4))
    few[:20] = 1.0
    few += 1e-3 * np.random.default_rng(0).normal(size=few.shape)
    mechanisms = [case.mechanism for case in designs.auto_cases({"few": few}, seeds=[0])]
    assert mechanisms == ["mcar", "mar", "above", "soft+", "soft-"]


def test_breast_has_ten_columns_where_a_mechanism_is_chosen(uci):
    breast = real_data.auto_sets(None)["breast"]
    np.testing.assert_array_equal(breast, uci["breast"][:, :10])


def test_reflection_has_its_published_scores_on_the_development_sets(development):
    assert len(development) == 20
    scores = {"mean": [], "quantile": []}
    for case in designs.development_cases(development):
        imputed = designs.reflection(designs.hidden(case.X, case.missing))
        score = designs.log_loss_of_scale(case.X, imputed, case.missing)
        scores[case.mechanism].append(score)
    assert [len(values) for values in scores.values()] == [40, 40]
    assert np.mean(scores["mean"]) == pytest.approx(0.308, abs=5e-4)
    assert np.mean(scores["quantile"]) == pytest.approx(0.227, abs=5e-4)
    everything = scores["mean"] + scores["quantile"]
    assert np.quantile(everything, 0.9) == pytest.approx(0.638, abs=5e-4)


def test_reflection_has_its_published_errors_at_thresholds_elsewhere(uci):
    cases = designs.threshold_cases({name: uci[name] for name in ("red", "yeast")})
    errors = [
        pooled(X, designs.reflection(designs.hidden(X, missing)), missing)
        for *_, X, missing in cases
    ]
    published = [1.04, 1.02, 1.04, 1.13, 0.54, 0.47, 0.49, 0.68]
    published += [0.91, 0.84, 0.80, 0.76, 0.63, 0.61, 0.64, 0.63]
    np.testing.assert_allclose(errors, published, atol=0.0051)


# Digits.


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (50, 784)).astype(float)


def test_a_moving_disc_has_81_pixels_in_every_image(images):
    X, missing = designs.mnist_circles(images, "moving", 40)
    assert X.shape == missing.shape == (40, 784)
    np.testing.assert_array_equal(missing.sum(axis=1), 81)
    rows, columns = np.nonzero(missing.reshape(40, 28, 28).any(axis=0))
    assert rows.min() == columns.min() == 8 - 5
    assert rows.max() == columns.max() == 19 + 5
    assert len(np.unique(missing, axis=0)) > 20


def test_moving_discs_have_their_centre_at_column_first_then_row(images):
    rng = np.random.default_rng(0)
    centers = rng.integers(8, 20, (50, 2))
    rows = rng.permutation(50)[:40]
    X, missing = designs.mnist_circles(images, "moving", 40)
    np.testing.assert_array_equal(X, (images / 127.5 - 1)[rows])
    for mask, (column, row) in zip(missing, centers[rows], strict=True):
        y, x = np.nonzero(mask.reshape(28, 28))
        assert (x.mean(), y.mean()) == (column, row)


def test_clipping_hides_what_is_beyond_its_limit_in_the_central_disc(images):
    y, x = np.mgrid[:28, :28]
    disc = ((x - 14) ** 2 + (y - 14) ** 2 <= 25).ravel()
    for design, beyond in (("source", lambda v: np.abs(v) > 0.5), ("bright", lambda v: v > 0)):
        X, missing = designs.mnist_circles(images, design, 50)
        assert -1 <= X.min() < X.max() <= 1
        np.testing.assert_array_equal(missing, beyond(X) & disc)
