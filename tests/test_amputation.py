import inspect

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyampute.ampute import MultivariateAmputation
from scipy import sparse
from scipy.stats import norm
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.utils import check_random_state

from skbilevel.amputation import MECHANISMS, ampute
from skbilevel.datasets import make_correlated_gaussian, make_ring

WITH_RATE = ["mcar", "mar", "mnar", "mnar_threshold", "mnar_logistic", "censored", "sector"]
rates = st.one_of(st.just(0.0), st.floats(0.02, 0.98))
seeds = st.integers(0, 2**32 - 1)


def normal_table(n=200, d=6, seed=0):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n, 1))
    return factor + rng.standard_normal((n, d)) * np.arange(1, d + 1) + np.arange(d)


def with_holes(X, rate=0.2, seed=1):
    holes = np.random.default_rng(seed).random(X.shape) < rate
    return np.where(holes, np.nan, X)


def arguments(mechanism, d=6):
    """Columns to ampute, and the keywords that select them."""
    if mechanism == "sector":
        return [1], {"columns": [1, 3]}
    if mechanism == "mar":
        return [0, 1, 2, 3], {"predictors": [4, 5]}
    return list(range(d)), {}


def probability_of(mechanism, X, rate):
    """Probabilities (n, number of amputed columns), straight from the mechanism."""
    columns, keywords = arguments(mechanism, X.shape[1])
    causes = keywords.get("predictors")
    extra = {} if causes is None else {"predictors": X[:, causes]}
    chosen = keywords.get("columns", columns)
    rng = np.random.RandomState(0)
    return MECHANISMS[mechanism](X[:, chosen], rng, missing_rate=rate, **extra)[:, : len(columns)]


# ------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize("mechanism", WITH_RATE)
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.77])
@pytest.mark.parametrize("discrete", [False, True])
def test_rate_is_met_in_expectation_in_each_amputed_column(mechanism, rate, discrete):
    X = normal_table(n=137)
    X = np.round(X) if discrete else X
    probability = probability_of(mechanism, X, rate)
    assert probability.min() >= 0 and probability.max() <= 1
    np.testing.assert_allclose(probability.mean(axis=0), rate, atol=1e-10)


@pytest.mark.parametrize("mechanism", WITH_RATE)
def test_observed_rate_is_within_four_standard_errors(mechanism):
    X = normal_table(n=20_000)
    columns, keywords = arguments(mechanism)
    _, mask = ampute(X, mechanism, missing_rate=0.35, random_state=3, **keywords)
    missing = 1 - mask.mean(axis=0)
    assert np.abs(missing[columns] - 0.35).max() < 4 * np.sqrt(0.35 * 0.65 / len(X))
    np.testing.assert_array_equal(np.delete(missing, columns), 0)


@pytest.mark.parametrize("mechanism", ["mcar", "mnar_threshold", "mnar_logistic", "censored"])
def test_rate_counts_over_the_cells_that_were_observed(mechanism):
    X = with_holes(normal_table())
    seen = ~np.isnan(X)
    probability = probability_of(mechanism, X, 0.4)
    np.testing.assert_allclose((probability * seen).sum(axis=0) / seen.sum(axis=0), 0.4)


def test_rate_of_mar_counts_over_the_cells_that_were_observed():
    X = normal_table()
    X[:, :4] = with_holes(X[:, :4])
    probability, seen = probability_of("mar", X, 0.4), ~np.isnan(X[:, :4])
    np.testing.assert_allclose((probability * seen).sum(axis=0) / seen.sum(axis=0), 0.4)


def test_rate_of_sector_counts_over_the_rows_with_an_angle():
    X = with_holes(normal_table(d=2))
    probability = MECHANISMS["sector"](X, np.random.RandomState(0), missing_rate=0.25)
    has_angle = ~np.isnan(X).any(axis=1)
    assert not probability[~has_angle].any() and not probability[:, 1].any()
    assert probability[has_angle, 0].mean() == pytest.approx(0.25)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(float, st.integers(1, 60), elements=st.integers(-3, 3).map(float)),
    rates,
    st.sampled_from(["mnar_threshold", "censored", "mnar_logistic"]),
)
def test_rate_is_met_for_any_column_with_ties(column, rate, mechanism):
    rng = np.random.RandomState(0)
    probability = MECHANISMS[mechanism](column[:, None], rng, missing_rate=rate)
    assert probability.mean() == pytest.approx(rate, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(rates, rates, seeds, st.sampled_from(WITH_RATE))
def test_a_higher_rate_hides_a_superset_of_the_cells(low, high, seed, mechanism):
    low, high = sorted((low, high))
    X, (_, keywords) = normal_table(n=50), arguments(mechanism)
    few, many = (
        ~ampute(X, mechanism, missing_rate=rate, random_state=seed, **keywords)[1]
        for rate in (low, high)
    )
    assert not (few & ~many).any()


@pytest.mark.parametrize("mechanism", ["mcar", "mar", "mnar_logistic"])
def test_default_rate_is_three_tenths(mechanism):
    X, (_, keywords) = normal_table(), arguments(mechanism)
    got = ampute(X, mechanism, random_state=0, **keywords)[1]
    expected = ampute(X, mechanism, missing_rate=0.3, random_state=0, **keywords)[1]
    np.testing.assert_array_equal(got, expected)


# ------------------------------------------------------------------- dependence on the values


def pyampute_missing(X, mechanism, weights):
    """Column 0 amputed by pyampute, which seeds NumPy's global generator: put it back."""
    generator = check_random_state(None)
    state = generator.get_state()
    pattern = {
        "incomplete_vars": [0],
        "mechanism": mechanism,
        "weights": weights,
        "score_to_probability_func": "sigmoid-right",
    }
    amputed = MultivariateAmputation(prop=0.3, patterns=[pattern], seed=1).fit_transform(X)
    generator.set_state(state)
    return np.isnan(amputed[:, 0])


@pytest.mark.parametrize(
    ("mechanism", "keywords", "theirs", "weights"),
    [
        ("mcar", {}, "MCAR", [0, 0, 0]),
        ("mnar_logistic", {"slope": 1.0}, "MNAR", [1, 0, 0]),
        ("mar", {"slope": 1.0, "predictors": [1]}, "MAR", [0, 1, 0]),
    ],
)
def test_rate_and_correlation_with_the_values_are_those_of_pyampute(
    mechanism, keywords, theirs, weights
):
    n = 20_000
    X = np.random.default_rng(0).multivariate_normal([1, 2, 3], np.eye(3) / 2 + 0.5, n)
    ours = ~ampute(X, mechanism, missing_rate=0.3, columns=[0], random_state=0, **keywords)[1]
    expected = pyampute_missing(X, theirs, weights)
    assert abs(ours[:, 0].mean() - expected.mean()) < 4 * np.sqrt(2 * 0.21 / n)
    correlation = np.array([np.corrcoef(ours[:, 0], x)[0, 1] for x in X.T])
    correlation *= np.sign(correlation[1]) if mechanism == "mar" else 1  # random coefficient
    target = [np.corrcoef(expected, x)[0, 1] for x in X.T]
    np.testing.assert_allclose(correlation, target, atol=4 * np.sqrt(2 / n))


def test_mcar_is_independent_of_all_values():
    X = normal_table(n=20_000)
    missing = ~ampute(X, "mcar", missing_rate=0.3, random_state=0)[1]
    correlation = np.corrcoef(missing.T, X.T)[:6, 6:]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(X))


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(float, (30, 4), elements=st.floats(-1e6, 1e6)), seeds, rates)
def test_mar_mask_does_not_change_with_the_amputed_columns(other, seed, rate):
    X = normal_table(n=30)
    changed = np.hstack([other, X[:, 4:]])
    for keywords in ({"predictors": [4, 5]}, {"columns": [0, 1, 2, 3]}):
        first, second = (
            ampute(table, "mar", missing_rate=rate, random_state=seed, **keywords)[1]
            for table in (X, changed)
        )
        np.testing.assert_array_equal(first, second)


def test_mar_depends_on_the_predictors():
    X = normal_table(n=20_000)
    missing = ~ampute(X, "mar", columns=[0], predictors=[5], slope=2.0, random_state=0)[1]
    assert abs(np.corrcoef(missing[:, 0], X[:, 5])[0, 1]) > 0.5


@pytest.mark.parametrize(("d", "k"), [(2, 1), (4, 1), (6, 2), (10, 3), (30, 9)])
def test_mar_leaves_thirty_percent_of_the_columns_complete_by_default(d, k):
    mask = ampute(normal_table(n=300, d=d), "mar", random_state=5)[1]
    assert mask.all(axis=0).sum() == k


def test_mar_draws_its_predictors_among_complete_columns_outside_columns():
    X = normal_table(n=300)
    X[0, 3:] = np.nan
    mask = ampute(X, "mar", columns=[0, 4], random_state=0)[1]
    np.testing.assert_array_equal(mask[:, [1, 2, 3, 5]], ~np.isnan(X[:, [1, 2, 3, 5]]))
    assert not mask[:, 0].all()


@pytest.mark.parametrize("sign", [1, -1])
def test_mnar_logistic_hides_the_side_of_its_slope(sign):
    X = normal_table(n=2_000)
    mask = ampute(X, "mnar_logistic", slope=2.0 * sign, random_state=0)[1]
    for x, seen in zip(X.T, mask.T, strict=True):
        assert sign * (x[~seen].mean() - x[seen].mean()) > 0.5 * x.std()


def test_an_infinitely_steep_logistic_is_the_quantile_threshold():
    X = normal_table(n=100)
    steep = ampute(X, "mnar_logistic", missing_rate=0.3, slope=1e7, random_state=0)[1]
    hard = ampute(X, "mnar_threshold", missing_rate=0.3, random_state=0)[1]
    np.testing.assert_array_equal(steep, hard)


# ------------------------------------------------------------------------------- thresholds


def test_mnar_threshold_hides_what_is_above_the_mean():
    X = normal_table()
    np.testing.assert_array_equal(ampute(X, "mnar_threshold")[1], X.mean(axis=0) >= X)


@pytest.mark.parametrize(
    ("keywords", "missing"),
    [
        ({"threshold": "median"}, lambda X: np.median(X, axis=0) < X),
        ({"threshold": 1.5}, lambda X: X > 1.5),
        ({"threshold": 1.5, "side": "below"}, lambda X: X < 1.5),
        ({"side": "below"}, lambda X: X.mean(axis=0) > X),
        ({"threshold": np.arange(6.0)}, lambda X: np.arange(6.0) < X),
        ({"missing_rate": 0.25}, lambda X: np.quantile(X, 0.75, axis=0) < X),
        ({"missing_rate": 0.25, "side": "below"}, lambda X: np.quantile(X, 0.25, axis=0) > X),
    ],
)
def test_mnar_threshold_is_its_definition(keywords, missing):
    X = normal_table(n=200)
    mask = ampute(X, "mnar_threshold", random_state=0, **keywords)[1]
    np.testing.assert_array_equal(mask, ~missing(X))


def test_statistics_are_those_of_the_observed_cells():
    X = with_holes(normal_table())
    mask = ampute(X, "mnar_threshold")[1]
    np.testing.assert_array_equal(mask, np.nanmean(X, axis=0) >= X)
    mask = ampute(X, "mnar_threshold", threshold="median", side="below")[1]
    np.testing.assert_array_equal(mask, np.nanmedian(X, axis=0) <= X)


def test_mnar_is_an_alias_of_mnar_threshold():
    X = normal_table()
    np.testing.assert_array_equal(ampute(X, "mnar")[1], ampute(X, "mnar_threshold")[1])


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e9 + 0.1])
@pytest.mark.parametrize("side", ["above", "below"])
def test_a_constant_column_is_never_beyond_its_mean(value, side):
    assert ampute(np.full((7, 2), value), "mnar_threshold", side=side)[1].all()


def test_censoring_hides_what_is_below_the_detection_limit():
    X = normal_table()
    np.testing.assert_array_equal(ampute(X, "censored", threshold=0.5)[1], X >= 0.5)
    above = ampute(X, "censored", threshold=0.5, side="above")[1]
    np.testing.assert_array_equal(above, X <= 0.5)


def test_censoring_at_a_rate_leaves_no_value_below_a_hidden_one():
    X = np.round(normal_table())
    mask = ampute(X, "censored", missing_rate=0.4, random_state=0)[1]
    for x, seen in zip(X.T, mask.T, strict=True):
        assert x[~seen].max() <= x[seen].min()


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.1, 100), st.floats(-100, 100), st.sampled_from(["mnar_threshold", "mnar_logistic"])
)
def test_self_masking_does_not_depend_on_the_units(factor, offset, mechanism):
    X = np.round(normal_table(n=40), 3)
    for rate in (None, 0.3):
        first, second = (
            ampute(table, mechanism, missing_rate=rate, random_state=0)[1]
            for table in (X, factor * X + offset)
        )
        np.testing.assert_array_equal(first, second)


def test_self_masking_below_is_self_masking_above_of_the_negative():
    X = normal_table()
    for keywords in ({}, {"missing_rate": 0.2}):
        below = ampute(X, "mnar_threshold", side="below", random_state=0, **keywords)[1]
        above = ampute(-X, "mnar_threshold", random_state=0, **keywords)[1]
        np.testing.assert_array_equal(below, above)


def test_breast_protocol_of_not_miwae_has_its_published_mean_imputation_error():
    X = load_breast_cancer().data
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    X_missing, mask = ampute(X, "mnar_threshold", columns=np.arange(15))
    error = (np.nanmean(X_missing, axis=0) - X)[~mask]
    assert np.sqrt(np.mean(error**2)) == pytest.approx(1.820, abs=5e-4)


# ------------------------------------------------------------------------ sector and circle


def test_sector_is_a_quarter_turn_about_the_second_axis():
    X = make_ring(2000, random_state=0)
    mask = ampute(X, "sector")[1]
    np.testing.assert_array_equal(~mask[:, 0], X[:, 1] >= np.abs(X[:, 0]))
    assert mask[:, 1].all()


def test_sector_contains_both_of_its_edges():
    X = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [0.0, 1.0], [0.0, -1.0]])
    assert ampute(X, "sector")[1][:, 0].tolist() == [False, False, True, True, False, True]


def test_columns_of_sector_are_ordered():
    X = make_ring(500, random_state=0)
    mask = ampute(X, "sector", columns=[1, 0])[1]
    np.testing.assert_array_equal(~mask[:, 1], X[:, 0] >= np.abs(X[:, 1]))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.6, 0.9])
def test_sector_at_a_rate_is_symmetric_about_the_second_axis(rate):
    angle = np.linspace(-np.pi, np.pi, 400, endpoint=False) + 0.001
    X = np.column_stack([np.cos(angle), np.sin(angle)])
    hidden = ~ampute(X, "sector", missing_rate=rate, random_state=0)[1][:, 0]
    turn = np.abs((angle - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi)
    assert hidden.sum() == round(400 * rate)
    assert turn[hidden].max() <= turn[~hidden].min()


def test_zero_imputation_of_the_ring_has_its_published_error():
    errors = []
    for seed in range(10):
        X = make_ring(random_state=seed)
        mask = ampute(X, "sector")[1]
        errors.append(np.sqrt(np.mean(X[~mask] ** 2)))
    assert np.mean(errors) == pytest.approx(1.950, abs=5e-4)


def test_bayes_imputation_of_the_gaussian_has_its_published_error():
    errors = []
    for seed in range(10):
        X = make_correlated_gaussian(random_state=seed)
        hidden = ~ampute(X, "mnar_threshold", columns=[0])[1][:, 0]
        mean = 0.8 * X[hidden, 1]
        a = (X[:, 0].mean() - mean) / 0.6
        bayes = mean + 0.6 * norm.pdf(a) / norm.sf(a)
        errors.append(np.sqrt(np.mean((bayes - X[hidden, 0]) ** 2)))
    assert np.mean(errors) == pytest.approx(0.458, abs=5e-4)


def images(n=30, height=28, width=28, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, height * width))


def disc_loop(n, height, width, centers, radius):
    inside = np.zeros((n, height * width), dtype=bool)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                x0, y0 = centers[i]
                inside[i, y * width + x] = (x - x0) ** 2 + (y - y0) ** 2 <= radius**2
    return inside


@pytest.mark.parametrize(
    ("keywords", "beyond"),
    [
        ({}, lambda X: np.abs(X) > 0.5),
        ({"side": "above", "threshold": 0.0}, lambda X: X > 0),
        ({"side": "below", "threshold": -0.2}, lambda X: X < -0.2),
        ({"side": "all"}, lambda X: np.ones(X.shape, dtype=bool)),
        ({"side": "above", "threshold": "mean"}, lambda X: X.mean(axis=0) < X),
    ],
    ids=["source", "bright", "dark", "disc", "above the pixel's mean"],
)
def test_circle_is_the_pixel_loop(keywords, beyond):
    X = images()
    mask = ampute(X, "circle", **keywords)[1]
    inside = disc_loop(len(X), 28, 28, [(14, 14)] * len(X), 5)
    assert inside[0].sum() == 81
    np.testing.assert_array_equal(mask, ~(inside & beyond(X)))


def test_circle_moves_with_one_center_per_image():
    X = images()
    centers = np.random.default_rng(0).integers(8, 20, (len(X), 2))
    mask = ampute(X, "circle", center=centers, side="all")[1]
    np.testing.assert_array_equal(mask, ~disc_loop(len(X), 28, 28, centers, 5))


def test_circle_in_images_that_are_not_square():
    X = images(height=6, width=10)
    mask = ampute(X, "circle", image_shape=(6, 10), radius=2.5, side="all")[1]
    np.testing.assert_array_equal(mask, ~disc_loop(len(X), 6, 10, [(5, 3)] * len(X), 2.5))


def test_circle_leaves_missing_pixels_missing():
    X = with_holes(images())
    X_missing, mask = ampute(X, "circle")
    np.testing.assert_array_equal(mask, ~np.isnan(X_missing))
    assert not mask[np.isnan(X)].any()


# ------------------------------------------------------------------------- input and output


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_observed_cells_are_kept_and_the_input_is_not_modified(mechanism):
    X = with_holes(normal_table(d=9 if mechanism == "circle" else 6), rate=0.1)
    X[:, 4:] = normal_table(d=X.shape[1])[:, 4:]
    before = X.copy()
    X.setflags(write=False)
    keywords = arguments(mechanism)[1]
    X_missing, mask = ampute(X, mechanism, random_state=0, **keywords)
    np.testing.assert_array_equal(X, before)
    assert mask.dtype == bool and mask.shape == X.shape
    np.testing.assert_array_equal(mask, ~np.isnan(X_missing))
    np.testing.assert_array_equal(X_missing[mask], X[mask])
    assert not mask[np.isnan(X)].any() and (~mask).sum() > np.isnan(X).sum()
    assert not np.shares_memory(X, X_missing)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_same_seed_same_mask_and_the_global_generator_is_untouched(mechanism):
    X, keywords = normal_table(d=9), arguments(mechanism)[1]
    state = check_random_state(None).get_state()[1].copy()
    first = ampute(X, mechanism, random_state=7, **keywords)[1]
    again = ampute(X, mechanism, random_state=np.random.RandomState(7), **keywords)[1]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(check_random_state(None).get_state()[1], state)


def test_mcar_mask_is_that_of_the_benchmark_design():
    X = normal_table()
    missing = np.random.RandomState(0).random_sample(X.shape) < 0.3
    np.testing.assert_array_equal(ampute(X, "mcar", random_state=0)[1], ~missing)


@pytest.mark.parametrize("mechanism", WITH_RATE)
def test_dtype_and_memory_order_do_not_change_the_mask(mechanism):
    X, keywords = normal_table().astype(np.float32), arguments(mechanism)[1]
    keywords = {"missing_rate": 0.3, "random_state": 0, **keywords}
    X_missing, mask = ampute(X, mechanism, **keywords)
    assert X_missing.dtype == np.float32
    for table in (X.astype(np.float64), np.asfortranarray(X), X.tolist()):
        other, other_mask = ampute(table, mechanism, **keywords)
        np.testing.assert_array_equal(mask, other_mask)
        np.testing.assert_array_equal(X_missing, other)


def test_integers_and_booleans_become_floats():
    assert ampute([[1, 2], [3, 4]], "mnar")[0].dtype == np.float64
    np.testing.assert_array_equal(ampute([[True], [False]], "mnar")[0], [[np.nan], [0]])


def test_a_pandas_frame_keeps_index_columns_and_type():
    X = pd.DataFrame(normal_table(d=3), columns=["b", "a", "c"]).set_index(np.arange(200)[::-1])
    X_missing, mask = ampute(X, "mnar_threshold", columns=["a", "b"])
    expected, expected_mask = ampute(X.to_numpy(), "mnar_threshold", columns=[1, 0])
    assert isinstance(X_missing, pd.DataFrame) and isinstance(mask, np.ndarray)
    pd.testing.assert_frame_equal(
        X_missing, pd.DataFrame(expected, index=X.index, columns=X.columns)
    )
    np.testing.assert_array_equal(mask, expected_mask)


def test_a_polars_frame_keeps_columns_and_type():
    X = pl.DataFrame(normal_table(d=3).astype(np.float32), schema=["b", "a", "c"])
    X_missing, mask = ampute(X, "mnar_threshold", columns="a")
    assert isinstance(X_missing, pl.DataFrame)
    assert X_missing.columns == X.columns and X_missing["a"].dtype == pl.Float32
    np.testing.assert_array_equal(mask, ~np.isnan(X_missing.to_numpy()))


def test_nullable_integers_are_read_as_missing():
    X = pd.DataFrame({"a": pd.array([1, None, 3, 8], dtype="Int64"), "b": [1.0, 2.0, 3.0, 4.0]})
    mask = ampute(X, "mnar_threshold")[1]
    np.testing.assert_array_equal(mask[:, 0], [True, False, True, False])


@pytest.mark.parametrize(
    "columns",
    [[0, 2], [0, -2], (2, 0), np.array([True, False, True, False]), [True, False, True, False]],
)
def test_columns_by_position_and_by_mask_are_the_same(columns):
    mask = ampute(normal_table(d=4), "mnar_threshold", columns=columns)[1]
    np.testing.assert_array_equal(mask.all(axis=0), [False, True, False, True])


def test_one_column_may_be_given_as_a_scalar():
    X = pd.DataFrame(normal_table(d=3), columns=list("abc"))
    for column in (1, "b", np.int64(1)):
        mask = ampute(X, "mnar_threshold", columns=column)[1]
        assert mask.all(axis=0).tolist() == [True, False, True]


def test_integer_labels_of_a_frame_are_positions():
    X = pd.DataFrame(normal_table(d=3), columns=[10, 0, 1])
    assert ampute(X, "mnar", columns=[0])[1].all(axis=0).tolist() == [False, True, True]
    assert ampute(X, "mnar", columns=-1)[1].all(axis=0).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="columns: 10 is not one of X's 3 columns"):
        ampute(X, columns=[10])


def test_strings_of_digits_are_names():
    X = pd.DataFrame(normal_table(d=3), columns=["2", "0", "1"])
    for columns, amputed in ([["0"], 1], [["2", 2], 0]):
        mask = ampute(X, "mnar", columns=columns)[1]
        assert not mask[:, amputed].all() and mask[:, 1 - amputed].all()


def test_a_name_of_two_columns_is_refused():
    X = pd.DataFrame(normal_table(d=3), columns=["a", "b", "a"])
    with pytest.raises(ValueError, match="unique column names"):
        ampute(X, columns="b")


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (slice(1, 3), [1, 2]),
        (slice(0, None, 2), [0, 2]),
        (slice(-2, None), [2, 3]),
        (slice("b", "c"), [1, 2]),
        (slice("c", None), [2, 3]),
        (slice(None, "b"), [0, 1]),
        (slice(None), [0, 1, 2, 3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_slices_choose_as_those_of_scikit_learn(columns, chosen, frame):
    X = frame(dict(zip("abcd", normal_table(d=4).T, strict=True)))
    transformer = ColumnTransformer([("chosen", "passthrough", columns)]).fit(X)
    assert transformer.transformers_[0][2] == columns
    names = transformer.get_feature_names_out()
    assert [name.removeprefix("chosen__") for name in names] == ["abcd"[j] for j in chosen]
    mask = ampute(X, "mnar", columns=columns)[1]
    assert np.flatnonzero(~mask.all(axis=0)).tolist() == chosen


MIXED = {
    "name": ["u", "v", None, "w"] * 10,
    "a": np.arange(40.0) % 7,
    "count": np.arange(40) % 5,
    "b": np.arange(40.0) % 11,
    "c": (np.arange(40.0) ** 2 % 13).astype(np.float32),
}
NUMBERS = ["a", "count", "b", "c"]
STRANGE = {
    "category": pd.Series(pd.Categorical([1, 2, 3, 4] * 10)),
    "digits": pd.Series(["1", "2"] * 20),
    "day": pd.Series(pd.date_range("2020-01-01", periods=40)),
    "nullable": pd.Series(["x", None] * 20, dtype="string"),
    "complex": pd.Series(np.arange(40) * 1j),
    "mixed": pd.Series([1.0, "x"] * 20, dtype=object),
}


def frames_of(data):
    index = [10] * len(data["a"])
    return [pd.DataFrame(data, index=index), pl.DataFrame(data)]


def column_of(X, name):
    return np.asarray(X[name].to_list() if isinstance(X, pl.DataFrame) else X[name])


@pytest.mark.parametrize("X", frames_of(MIXED), ids=["pandas", "polars"])
@pytest.mark.parametrize(
    ("mechanism", "columns"),
    [("mcar", ["a", "b"]), ("mnar", ["b"]), ("mar", ["b", "a"]), ("mnar_logistic", NUMBERS)],
)
def test_columns_that_are_not_amputed_pass_through_untouched(X, mechanism, columns):
    before = X.copy() if isinstance(X, pd.DataFrame) else X.clone()
    X_missing, mask = ampute(X, mechanism, columns=columns, random_state=0)
    assert type(X_missing) is type(X) and list(X_missing.columns) == list(X.columns)
    for j, name in enumerate(X.columns):
        if name in columns:
            np.testing.assert_array_equal(mask[:, j], ~np.isnan(column_of(X_missing, name)))
            assert not mask[:, j].all()
            kept = column_of(X_missing, name)[mask[:, j]]
            np.testing.assert_array_equal(kept, column_of(X, name)[mask[:, j]])
        else:
            assert X_missing[name].dtype == X[name].dtype
            assert X_missing[name].to_list() == X[name].to_list()
            np.testing.assert_array_equal(mask[:, j], [c is not None for c in X[name].to_list()])
    assert before.equals(X)
    if isinstance(X, pd.DataFrame):
        assert X_missing.index.equals(X.index)


@pytest.mark.parametrize("X", frames_of(MIXED), ids=["pandas", "polars"])
@pytest.mark.parametrize("mechanism", ["mcar", "mar", "mnar", "mnar_logistic", "censored"])
def test_columns_of_text_do_not_change_the_mask_of_the_others(X, mechanism):
    keywords = {"missing_rate": 0.4, "columns": ["a", "b"], "random_state": 3}
    mask = ampute(X, mechanism, **keywords)[1]
    expected = ampute(X[NUMBERS], mechanism, **keywords)[1]
    np.testing.assert_array_equal(mask[:, 1:], expected)


@pytest.mark.parametrize("X", frames_of(MIXED), ids=["pandas", "polars"])
def test_a_frame_keeps_the_precision_of_each_column(X):
    X_missing = ampute(X, columns=["b", "c"], random_state=0)[0]
    assert str(X_missing["b"].dtype).lower() == "float64"
    assert str(X_missing["c"].dtype).lower() == "float32"
    assert str(X_missing["count"].dtype).lower() == "int64"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strange", STRANGE)
def test_mar_is_driven_by_columns_of_numbers_only(strange, seed):
    X = pd.DataFrame({"s": STRANGE[strange], "a": MIXED["a"], "b": MIXED["b"]})
    mask = ampute(X, "mar", columns="b", slope=1e6, random_state=seed)[1]
    hidden = ~mask[:, 2]
    lowest, highest = np.sort(X["a"])[[0, -1]]
    by_a = {value: hidden[X["a"] == value].mean() for value in (lowest, highest)}
    assert set(by_a.values()) == {0.0, 1.0}


@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_not_a_number_is_neither_amputed_nor_a_predictor(strange):
    X = pd.DataFrame({"a": MIXED["a"], "s": STRANGE[strange], "b": MIXED["b"]})
    for mechanism in ("mcar", "mar"):
        with pytest.raises(
            ValueError, match=r"X must be a dense table of real .* \['s'\] are not"
        ):
            ampute(X, mechanism)
    with pytest.raises(ValueError, match=r"columns must be .* numbers: \['s'\] are not"):
        ampute(X, columns=["a", "s"])
    with pytest.raises(ValueError, match=r"predictors must be .* numbers: \['s'\] are not"):
        ampute(X, "mar", columns="a", predictors="s")
    with pytest.raises(ValueError, match="complete columns of numbers, and leave some to ampute"):
        ampute(X[["a", "s"]], "mar", columns="a")


def test_polars_columns_that_are_not_numbers_are_named():
    X = pl.DataFrame(
        {"a": [1.0, 2.0], "text": ["1", "2"], "kind": pl.Series(["u", "v"], dtype=pl.Categorical)}
    )
    with pytest.raises(ValueError, match=r"\['text', 'kind'\] are not"):
        ampute(X)
    assert ampute(X, columns="a", missing_rate=0.9, random_state=0)[0]["text"].to_list() == [
        *("1", "2")
    ]


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_booleans_and_objects_that_are_numbers_are_amputed(frame):
    X = frame({"flag": [True, False, True, False], "whole": [1, 2, 3, 9]})
    np.testing.assert_array_equal(ampute(X, "mnar")[1][:, 0], [False, True, False, True])
    if frame is pd.DataFrame:
        X = X.astype(object)
        X.iloc[0, 1] = None
        assert ampute(X, "mnar")[1][:, 1].tolist() == [False, True, True, False]


def test_a_rate_of_zero_hides_nothing():
    X = normal_table()
    for mechanism in WITH_RATE:
        X_missing, mask = ampute(X, mechanism, missing_rate=0, **arguments(mechanism)[1])
        assert mask.all()
        np.testing.assert_array_equal(X_missing, X)
    holes = with_holes(X)
    np.testing.assert_array_equal(ampute(holes, missing_rate=0.0)[1], ~np.isnan(holes))


def test_a_column_without_observed_cells_stays_empty():
    X = normal_table(n=50)
    X[:, 0] = np.nan
    for mechanism in ("mcar", "mnar", "mnar_logistic", "censored", "mar"):
        mask = ampute(X, mechanism, random_state=0)[1]
        assert not mask[:, 0].any()
    assert not ampute(X, "censored", missing_rate=0.5, random_state=0)[1][:, 0].any()


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(
        float,
        st.tuples(st.integers(1, 12), st.integers(2, 5)),
        elements=st.one_of(st.just(np.nan), st.floats(-1e6, 1e6)),
    ),
    st.sampled_from(["mcar", "mnar", "mnar_logistic", "censored"]),
    seeds,
)
def test_any_table_of_numbers_can_be_amputed(X, mechanism, seed):
    X_missing, mask = ampute(X, mechanism, random_state=seed)
    np.testing.assert_array_equal(X_missing[mask], X[mask])
    assert not (mask & np.isnan(X)).any()


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "X",
    [
        [["a", "b"]],
        [["1", "2"]],
        [[1.0, np.inf]],
        [[1 + 2j]],
        [1.0, 2.0],
        np.zeros((0, 2)),
        np.zeros((2, 0)),
        np.zeros((2, 2, 2)),
        sparse.csr_array(np.eye(3)),
        pd.DataFrame({"a": ["x", "y"]}),
        np.array([["2020-01-01"]], dtype="datetime64[D]"),
        [[10**400]],
        None,
    ],
)
def test_a_table_that_is_not_of_real_numbers_is_refused(X):
    with pytest.raises(ValueError, match="X must be a dense table of real numbers"):
        ampute(X)


@pytest.mark.parametrize("mechanism", ["MCAR", "missing", None, 3, ["mcar"]])
def test_an_unknown_mechanism_lists_the_known_ones(mechanism):
    with pytest.raises(ValueError, match=r"mechanism must be one of.*'mcar', 'mar', 'mnar'"):
        ampute(normal_table(), mechanism)


GIVEN = {
    "missing_rate": 0.3,
    "threshold": 0.5,
    "side": "above",
    "slope": 1.0,
    "predictors": [0],
    "image_shape": (2, 3),
    "center": (1, 1),
    "radius": 2.0,
}
BELONGS = {
    "mcar": {"missing_rate"},
    "mar": {"missing_rate", "slope", "predictors"},
    "mnar": {"missing_rate", "threshold", "side"},
    "mnar_threshold": {"missing_rate", "threshold", "side"},
    "mnar_logistic": {"missing_rate", "slope"},
    "censored": {"missing_rate", "threshold", "side"},
    "sector": {"missing_rate"},
    "circle": {"threshold", "side", "image_shape", "center", "radius"},
}


def test_every_mechanism_is_tested():
    assert set(BELONGS) == set(MECHANISMS)
    assert set(inspect.signature(ampute).parameters) == {
        *GIVEN,
        *("X", "mechanism", "columns", "random_state"),
    }


@pytest.mark.parametrize(
    ("mechanism", "name"), [(m, name) for m in BELONGS for name in GIVEN if name not in BELONGS[m]]
)
def test_a_parameter_that_does_not_belong_to_the_mechanism_is_refused_by_name(mechanism, name):
    with pytest.raises(ValueError, match=f"^{name} does not belong to '{mechanism}'"):
        ampute(normal_table(), mechanism, **{name: GIVEN[name]})


@pytest.mark.parametrize(
    ("mechanism", "name"), [(m, name) for m in BELONGS for name in sorted(BELONGS[m])]
)
def test_a_parameter_that_belongs_to_the_mechanism_is_accepted(mechanism, name):
    columns = [1, 2] if mechanism == "sector" else None
    needed = {"image_shape": (2, 3)} if mechanism == "circle" else {}
    ampute(normal_table(), mechanism, columns=columns, **{**needed, name: GIVEN[name]})


@pytest.mark.parametrize("mechanism", ["mnar_threshold", "censored"])
def test_threshold_and_rate_together_are_refused(mechanism):
    with pytest.raises(ValueError, match="threshold or missing_rate, not both"):
        ampute(normal_table(), mechanism, threshold=0.0, missing_rate=0.3)


@pytest.mark.parametrize(
    ("mechanism", "keywords", "message"),
    [
        ("mcar", {"missing_rate": 1.0}, r"missing_rate must be a number in \[0, 1\)"),
        ("mcar", {"missing_rate": -0.1}, "missing_rate"),
        ("mcar", {"missing_rate": np.nan}, "missing_rate"),
        ("mcar", {"missing_rate": "0.3"}, "missing_rate"),
        ("mcar", {"missing_rate": [0.3]}, "missing_rate"),
        ("mcar", {"columns": [6]}, "columns: 6 is not one of X's 6 columns"),
        ("mcar", {"columns": [-7]}, "columns: -7"),
        ("mcar", {"columns": "a"}, "columns: 'a'"),
        ("mcar", {"columns": [0.5]}, "columns: 0.5"),
        ("mcar", {"columns": [1.0]}, "columns: 1.0"),
        ("mcar", {"columns": [0, True]}, "columns: True"),
        ("mcar", {"columns": slice(3, 3)}, "columns must be at least one column"),
        ("mcar", {"columns": slice("a", None)}, "columns: 'a'"),
        ("mcar", {"columns": [True, False]}, "columns masks 2 columns, X has 6"),
        ("mcar", {"columns": []}, "columns must be at least one column"),
        ("mcar", {"columns": [False] * 6}, "columns must be at least one column"),
        ("mcar", {"columns": [1, 1]}, "columns must be at least one column, each once"),
        ("mcar", {"columns": [1, -5]}, "each once"),
        ("mcar", {"random_state": "seed"}, "seed"),
        ("mnar", {"threshold": "mode"}, "threshold must be one of"),
        ("mnar", {"threshold": np.inf}, "threshold must be finite"),
        ("mnar", {"threshold": [0.0, 1.0]}, "threshold must be finite, 1 or 6 numbers"),
        ("mnar", {"threshold": ["a"] * 6}, "threshold must be finite"),
        ("mnar", {"side": "left"}, "side must be one of"),
        ("mnar", {"side": "absolute"}, "side must be one of"),
        ("mnar_logistic", {"slope": np.nan}, "slope must be a number"),
        ("mnar_logistic", {"slope": "steep"}, "slope must be a number"),
        ("mar", {"predictors": [0], "columns": [0, 1]}, "predictors and columns of 'mar'"),
        ("mar", {"predictors": [9]}, "predictors: 9"),
        ("mar", {"columns": range(6)}, "predictors of 'mar'"),
        ("mar", {"predictors": range(6)}, "predictors of 'mar'"),
        ("sector", {}, "columns must be two for 'sector', got 6"),
        ("sector", {"columns": [1]}, "columns must be two"),
        ("circle", {"image_shape": (2, 4)}, "image_shape must be .height, width. of 6 pixels"),
        ("circle", {"image_shape": 6}, "image_shape"),
        ("circle", {}, "image_shape"),
        ("circle", {"image_shape": (2, 3), "radius": 0}, "radius must be a number in"),
        ("circle", {"image_shape": (2, 3), "center": [1]}, "center"),
        ("circle", {"image_shape": (2, 3), "center": (1, np.nan)}, "center"),
        ("circle", {"image_shape": (2, 3), "side": "both"}, "side must be one of"),
        ("circle", {"image_shape": (2, 3), "side": "all", "threshold": 0.0}, "threshold does not"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(mechanism, keywords, message):
    with pytest.raises(ValueError, match=message):
        ampute(normal_table(), mechanism, **keywords)


def test_an_incomplete_predictor_is_refused():
    X = normal_table()
    X[3, 4] = np.nan
    with pytest.raises(ValueError, match="predictors of 'mar' must be complete columns"):
        ampute(X, "mar", predictors=[4])
    with pytest.raises(ValueError, match="predictors of 'mar' must be complete columns"):
        ampute(with_holes(X, rate=0.5), "mar")
