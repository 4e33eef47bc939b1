import numpy as np
import pytest
from scipy import stats

from skbilevel.numerics import observed
from skbilevel.numerics.observed import mean_and_deviation, median_and_quartile_deviation
from skbilevel.numerics.row_groups import BLOCK_ROWS, slices

STATISTICS = [mean_and_deviation, median_and_quartile_deviation]


def incomplete(n=200, d=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * 10.0 ** np.arange(-2, d - 2) + np.arange(d)
    X[rng.random(X.shape) < 0.3] = np.nan
    return X


@pytest.mark.parametrize("block", [7, 200, 1000])
def test_mean_and_deviation_are_those_of_the_observed_cells(monkeypatch, block):
    monkeypatch.setattr(observed, "row_blocks", lambda X: slices(len(X), block))
    X = incomplete()
    mean, deviation = mean_and_deviation(X)
    np.testing.assert_allclose(mean, np.nanmean(X, axis=0), rtol=1e-13)
    np.testing.assert_allclose(deviation, np.nanstd(X, axis=0), rtol=1e-13)


def test_many_rows_are_read_in_blocks():
    X = incomplete(2 * BLOCK_ROWS + 1, 2)
    mean, deviation = mean_and_deviation(X)
    np.testing.assert_allclose(mean, np.nanmean(X, axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(deviation, np.nanstd(X, axis=0), rtol=1e-12)


def test_a_large_mean_costs_the_deviation_no_digits():
    """Rows 1e9 + (-1, 0, 1): the deviation is sqrt(2/3); squares less the squared mean give 0."""
    X = 1e9 + np.tile([-1.0, 0.0, 1.0, np.nan], 10)[:, None]
    mean, deviation = mean_and_deviation(X)
    assert mean.item() == 1e9
    assert deviation.item() == pytest.approx(np.sqrt(2 / 3), rel=1e-15)


def test_median_and_quartile_deviation_are_those_of_the_observed_cells():
    X = incomplete()
    lower, median, upper = np.nanpercentile(X, [25, 50, 75], axis=0)
    normal_iqr = stats.norm.ppf(0.75) - stats.norm.ppf(0.25)
    result = median_and_quartile_deviation(X)
    np.testing.assert_allclose(result, [median, (upper - lower) / normal_iqr], rtol=1e-14)


def test_quartile_deviation_of_exact_normal_quantiles_is_the_standard_deviation():
    X = 3 + 2 * stats.norm.ppf(np.linspace(0, 1, 4001)[1:-1])[:, None]
    median, deviation = median_and_quartile_deviation(X)
    assert median.item() == pytest.approx(3, abs=1e-14)
    assert deviation.item() == pytest.approx(2, abs=2e-3)


def test_outliers_do_not_move_median_and_quartiles():
    X = np.arange(101.0)[:, None]
    X[-5:] = 1e12
    median, deviation = median_and_quartile_deviation(X)
    assert median.item() == 50
    assert deviation.item() == pytest.approx(50 / (2 * stats.norm.ppf(0.75)), rel=1e-15)


def test_where_quartiles_agree_the_standard_deviation_takes_their_place():
    X = np.zeros((100, 1))
    X[:10] = 3.0
    median, deviation = median_and_quartile_deviation(X)
    assert median.item() == 0
    assert deviation.item() == pytest.approx(3 * np.sqrt(0.1 * 0.9), rel=1e-15)


@pytest.mark.parametrize("n_rows", [1, 3, 10, 1000, BLOCK_ROWS + 10])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_constant_columns_have_deviation_one_whatever_rounding_does(statistics, n_rows):
    """Sums of 0.1 carry a rounding error that grows with their length."""
    constants = np.array([0.0, 0.1, 1 / 3, -123.456, 1e9 + 0.1, 1e-100, 1e100])
    X = np.tile(constants, (n_rows, 1))
    X[1::3, ::2] = np.nan
    centre, deviation = statistics(X)
    np.testing.assert_array_equal(deviation, np.ones(7))
    np.testing.assert_allclose(centre, constants, rtol=1e-11)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_little_variation_is_not_taken_for_rounding(statistics):
    steps = np.linspace(-1, 1, 41)
    X = np.column_stack([1e-100 * steps, 1 + 1e-10 * steps, 1e9 + 1e-3 * steps])
    _, deviation = statistics(X)
    _, unit = statistics(steps[:, None])
    np.testing.assert_allclose(deviation, unit * [1e-100, 1e-10, 1e-3], rtol=1e-4)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_columns_whose_squares_overflow_are_refused_by_number(statistics):
    X = np.column_stack([np.arange(4.0), [1e200, -1e200, np.nan, 0.0], [1e308, 1e308, 1e308, 0.0]])
    with pytest.raises(ValueError, match=r"Columns \[1, 2\] .* rescale"):
        statistics(X)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_columns_whose_squares_are_just_representable_are_not_refused(statistics):
    X = np.array([[0.0, 1.0, 2.0, 7.0, np.nan]]).T
    large = statistics(X * 1e150)
    np.testing.assert_allclose(large, np.multiply(statistics(X), 1e150), rtol=1e-14)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_single_precision_is_summed_in_double(statistics):
    X = (incomplete() + 1e4).astype(np.float32)
    for single, double in zip(statistics(X), statistics(X.astype(np.float64)), strict=True):
        assert single.dtype == np.float64
        np.testing.assert_allclose(single, double, rtol=1e-15)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_units_and_order_of_rows_do_not_matter(statistics):
    X = incomplete()
    centre, deviation = statistics(X)
    moved = statistics(4 * X[::-1] + 32)
    np.testing.assert_allclose(moved, [4 * centre + 32, 4 * deviation], rtol=1e-12)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_input_is_left_as_it_was(statistics):
    X = incomplete()
    X.flags.writeable = False
    before = X.tobytes()
    statistics(X)
    assert X.tobytes() == before
