import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.special import ndtri

from skbilevel.numerics.random import draw_seed, row_keys, row_normal, row_uniform

SEED = 20260127
WORD = 2**64


def low_entropy_rows(n=20_000):
    """Rows that differ in few bits, as real tables do: counters, codes, zeros, missing cells."""
    i = np.arange(n)
    return np.column_stack([i // 100, i % 10, i // 10 % 10, np.where(i % 2, np.nan, 0.0)])


def splitmix64(state):
    """One output of SplitMix64, by Python integers of any size."""
    z = (state + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def slow_uniform(row, seed, draw, column, row_id=None):
    """The definition, one number at a time."""
    key = splitmix64(seed)
    for value in row:
        value = float("nan") if value != value else value + 0.0
        key = splitmix64(key ^ struct.unpack("<Q", struct.pack("<d", value))[0])
    if row_id is not None:
        key = splitmix64(key ^ row_id % WORD)
    word = splitmix64((splitmix64(key ^ draw) + column * 0x9E3779B97F4A7C15) % WORD)
    return ((word >> 12) + 0.5) / 2**52


def test_mixing_is_that_of_splitmix64():
    """The published sequence from the state 1234567 pins the oracle, and the oracle the code."""
    states = [1234567 + k * 0x9E3779B97F4A7C15 for k in range(3)]
    assert [splitmix64(state % WORD) for state in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("row_ids", [None, [7, -1, 2**40]])
@pytest.mark.parametrize("seed", [0, SEED, 2**63 - 1])
def test_draws_are_those_of_the_definition(seed, row_ids):
    X = np.array([[0.0, 1.0, -2.5], [np.nan, -0.0, np.inf], [-np.inf, 1e-310, 3.0]])
    ids = [None] * 3 if row_ids is None else row_ids
    result = row_uniform(row_keys(X, seed, row_ids), draw=5, n_columns=4)
    expected = [
        [slow_uniform(row, seed, 5, column, row_id) for column in range(4)]
        for row, row_id in zip(X, ids, strict=True)
    ]
    np.testing.assert_array_equal(result, expected)


finite_or_not = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(
    X=arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 4)), elements=finite_or_not),
    seed=st.integers(0, 2**63 - 1),
    draw=st.integers(0, 2**32),
    data=st.data(),
)
@settings(deadline=None)
def test_draws_of_a_row_do_not_depend_on_its_batch(X, seed, draw, data):
    whole = row_normal(row_keys(X, seed), draw, 3)
    order = data.draw(st.permutations(range(len(X))))
    cut = data.draw(st.integers(0, len(X)))
    np.testing.assert_array_equal(row_normal(row_keys(X[order], seed), draw, 3), whole[order])
    parts = [row_normal(row_keys(part, seed), draw, 3) for part in (X[:cut], X[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(draw=st.integers(0, 100), n_columns=st.integers(0, 5), more=st.integers(0, 5))
@settings(deadline=None)
def test_first_columns_do_not_depend_on_how_many_are_drawn(draw, n_columns, more):
    keys = row_keys(low_entropy_rows(4), SEED)
    narrow, wide = (row_uniform(keys, draw, n) for n in (n_columns, n_columns + more))
    np.testing.assert_array_equal(narrow, wide[:, :n_columns])


def test_draws_of_a_row_do_not_depend_on_memory_layout_or_container():
    X = low_entropy_rows(50)
    keys = row_keys(X, SEED)
    frozen = X.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], frozen, X.tolist()):
        np.testing.assert_array_equal(row_keys(same, SEED), keys)
    np.testing.assert_array_equal(row_keys(X.astype(np.float32), SEED), keys)


def test_input_is_left_as_it_was():
    X = np.array([[-0.0, np.nan]])
    before = X.tobytes()
    keys = row_keys(X, SEED)
    copy = keys.copy()
    row_normal(keys, 0, 3)
    assert X.tobytes() == before
    np.testing.assert_array_equal(keys, copy)


def test_equal_values_with_different_bits_have_one_key():
    patterns = [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF]
    nans = np.array(patterns, dtype=np.uint64).view(np.float64)
    assert np.isnan(nans).all()
    assert len(set(row_keys(nans[:, None], SEED))) == 1
    assert len(set(row_keys([[0.0], [-0.0]], SEED))) == 1


def test_nan_zero_and_infinities_have_different_keys():
    assert len(set(row_keys([[np.nan], [0.0], [np.inf], [-np.inf], [5e-324]], SEED))) == 5


def test_signalling_nans_of_single_precision_pass_without_a_warning():
    bits = np.array([[0x7F800001], [0x7FC00000]], dtype=np.uint32)
    assert len(set(row_keys(bits.view(np.float32), SEED))) == 1


def test_key_depends_on_where_a_value_stands():
    assert len(set(row_keys([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [2.0, 2.0]], SEED))) == 4
    assert row_keys([[0.0]], SEED) != row_keys([[0.0, 0.0]], SEED)


def test_rows_that_differ_have_keys_that_differ():
    X = low_entropy_rows()
    assert len(np.unique(row_keys(X, SEED))) == len(np.unique(X, axis=0)) == len(X)


def test_seeds_do_not_trade_with_the_last_bits_of_a_value():
    """Seed s and bits b would give the key of s^1 and b^1, were the seed not hashed first."""
    neighbours = np.array([0, 1], dtype=np.uint64).view(np.float64)[:, None]
    assert row_keys(neighbours[:1], 1) != row_keys(neighbours[1:], 0)


def test_equal_rows_have_equal_draws_unless_row_ids_tell_them_apart():
    X = np.ones((4, 3))
    same = row_normal(row_keys(X, SEED), 0, 5)
    assert (same == same[0]).all()
    keys = row_keys(X, SEED, row_ids=[3, 1, 3, 2])
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3
    different = row_normal(keys, 0, 5)
    assert len(np.unique(different)) == 15
    assert keys[0] != row_keys(X, SEED)[0]


def test_row_ids_travel_with_their_rows():
    X, ids = low_entropy_rows(30), np.arange(30) // 2
    keys = row_keys(X, SEED, ids)
    np.testing.assert_array_equal(row_keys(X[::-1], SEED, ids[::-1]), keys[::-1])
    for dtype in (np.int8, np.uint16, np.int64, np.uint64):
        np.testing.assert_array_equal(row_keys(X, SEED, ids.astype(dtype)), keys)


@pytest.mark.parametrize(
    "row_ids",
    [
        [1, 2],
        [[1], [2], [3]],
        3,
        [1.0, 2.0, 3.0],
        ["a", "b", "c"],
        [True, False, True],
        [1, 2, 2**70],
        [1, None, 3],
    ],
)
def test_row_ids_that_are_not_one_integer_per_row_are_an_error(row_ids):
    with pytest.raises(ValueError, match="row_ids must be a 1-D array of 3 integers"):
        row_keys(np.ones((3, 2)), SEED, row_ids)


@pytest.mark.parametrize("draw", [0, 1, 17])
def test_uniform_draws_of_low_entropy_rows_are_uniform(draw):
    uniform = row_uniform(row_keys(low_entropy_rows(), SEED), draw, 3)
    assert 0 < uniform.min() < uniform.max() < 1
    for column in uniform.T:
        assert stats.kstest(column, "uniform").pvalue > 0.01


@pytest.mark.parametrize("draw", [0, 1, 17])
def test_normal_draws_of_low_entropy_rows_are_normal(draw):
    for column in row_normal(row_keys(low_entropy_rows(), SEED), draw, 3).T:
        assert stats.kstest(column, "norm").pvalue > 0.01


def test_draws_within_one_row_are_uniform_over_its_columns():
    uniform = row_uniform(row_keys(np.zeros((1, 3)), SEED), 0, 20_000)[0]
    assert stats.kstest(uniform, "uniform").pvalue > 0.01


def pairs():
    """Samples that must be independent: they differ in one of column, draw, seed, row, row id."""
    X = low_entropy_rows()
    keys = row_keys(X, SEED)
    first, second = row_uniform(keys, 0, 2).T
    return {
        "columns": (first, second),
        "draws": (first, row_uniform(keys, 1, 1)[:, 0]),
        "seeds": (first, row_uniform(row_keys(X, SEED + 1), 0, 1)[:, 0]),
        "adjacent rows": (first[:-1], first[1:]),
        "row ids": tuple(
            row_uniform(row_keys(X * 0, SEED, np.arange(len(X)) + shift), 0, 1)[:, 0]
            for shift in (0, len(X))
        ),
        "column of one draw and next draw": (second, row_uniform(keys, 1, 1)[:, 0]),
    }


@pytest.mark.parametrize("name", pairs())
def test_draws_are_independent_across(name):
    a, b = pairs()[name]
    assert abs(np.corrcoef(a, b)[0, 1]) < 3 / np.sqrt(len(a))
    table, _, _ = np.histogram2d(a, b, bins=16, range=[[0, 1], [0, 1]])
    assert stats.chisquare(table.ravel()).pvalue > 0.01


def test_one_flipped_bit_moves_half_of_the_bits_of_the_key():
    base = np.float64(1.5).view(np.uint64)
    flipped = base ^ (np.uint64(1) << np.arange(52, dtype=np.uint64))
    keys = row_keys(np.r_[base, flipped].view(np.float64)[:, None], SEED)
    bits = np.unpackbits(keys.view(np.uint8).reshape(-1, 8), axis=1)
    moved = (bits[1:] != bits[0]).sum(axis=1)
    assert 12 < moved.min() < moved.max() < 52
    assert abs(moved.mean() - 32) < 2


def test_uniform_draws_are_odd_multiples_of_the_53rd_binary_digit():
    scaled = row_uniform(row_keys(low_entropy_rows(), SEED), 0, 5) * 2.0**53
    np.testing.assert_array_equal(scaled % 2, 1)


def test_extreme_words_stay_inside_the_open_interval(monkeypatch):
    """The mixing is a bijection, so that words of all zeros and all ones do occur."""
    extremes = np.array([[0, 2**64 - 1]], dtype=np.uint64)
    monkeypatch.setattr("skbilevel.numerics.random._mix", lambda words: extremes.copy())
    keys = np.zeros(1, dtype=np.uint64)
    np.testing.assert_array_equal(row_uniform(keys, 0, 2), [[2.0**-53, 1 - 2.0**-53]])
    normal = row_normal(keys, 0, 2)
    np.testing.assert_allclose(normal, [[-8.209536, 8.209536]], atol=1e-6)


def test_normal_draws_are_the_quantiles_of_the_uniform_ones():
    keys = row_keys(low_entropy_rows(10), SEED)
    np.testing.assert_array_equal(row_normal(keys, 3, 4), ndtri(row_uniform(keys, 3, 4)))


def test_seed_is_a_python_integer_that_the_random_state_determines():
    seeds = [draw_seed(np.random.RandomState(s)) for s in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    random_state = np.random.RandomState(0)
    many = [draw_seed(random_state) for _ in range(200)]
    assert {type(seed) for seed in many} == {int}
    assert 0 <= min(many) < 2**57
    assert 2**62 < max(many) < 2**63


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_rows_or_no_columns_are_no_error(shape):
    assert row_normal(row_keys(np.ones(shape), SEED), 0, 4).shape == (shape[0], 4)
