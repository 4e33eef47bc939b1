"""Grouping loses no cell: rows and masks are put together again from the groups."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skbilevel.numerics import row_groups
from skbilevel.numerics.row_groups import (
    BLOCK_ROWS,
    StandardizedRows,
    row_block,
    row_blocks,
    slices,
)


def incomplete(n=60, d=5, rate=0.4, seed=0):
    """Normal rows in odd units; the first is complete, the second wholly missing."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.arange(1, d + 1) + 10
    X[rng.random(X.shape) < rate] = np.nan
    X[0], X[1] = 7.0, np.nan
    return X


def centre_and_scale(d):
    return np.linspace(9, 11, d), np.linspace(0.5, d, d)


def in_order(block, attribute):
    """What ``attribute(group)`` gives for each row, back in the order of the rows."""
    stacked = np.concatenate([attribute(group) for group in block.groups])
    result = np.full_like(stacked, np.nan)
    result[block.order] = stacked
    return result


def assert_same_blocks(left, right):
    np.testing.assert_array_equal(left.order, right.order)
    assert len(left.groups) == len(right.groups)
    for one, other in zip(left.groups, right.groups, strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.missing, other.missing)


cells = st.one_of(st.just(np.nan), st.floats(-1e6, 1e6))
tables = arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 6)), elements=cells)


@given(X=tables, batch=st.sampled_from([1, 3, 16]))
@settings(deadline=None)
def test_rows_and_masks_can_be_read_back_from_the_groups(X, batch):
    d = X.shape[1]
    centre, scale = centre_and_scale(d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_groups, "_SMALLEST_BATCH", batch)
        patch.setattr(row_groups, "_BATCH_BYTES", 1)
        block = row_block(X, centre, scale)
    np.testing.assert_array_equal(np.sort(block.order), np.arange(len(X)))
    expected = np.where(np.isnan(X), 0.0, (X - centre) / scale)
    np.testing.assert_array_equal(in_order(block, lambda group: group.values), expected)
    np.testing.assert_array_equal(in_order(block, lambda group: group.observed()), ~np.isnan(X))


@given(X=tables)
@settings(deadline=None)
def test_rows_of_a_group_miss_as_many_cells_and_name_them_in_ascending_order(X):
    block = row_block(X, *centre_and_scale(X.shape[1]))
    start = 0
    for group in block.groups:
        rows = X[block.order[start : start + len(group.values)]]
        assert group.missing.shape == (group.n_missing, len(rows))
        assert group.n_observed == X.shape[1] - group.n_missing
        assert group.count.shape == () and group.count.dtype == torch.float64
        assert group.count.item() == len(rows)
        for row, columns in zip(rows, group.missing.T, strict=True):
            np.testing.assert_array_equal(columns, np.flatnonzero(np.isnan(row)))
        start += len(rows)
    assert start == len(X)


def test_groups_ascend_in_missing_cells_and_keep_the_order_of_equal_rows():
    X = incomplete()
    block = row_block(X, *centre_and_scale(5))
    sizes = [group.n_missing for group in block.groups]
    assert sizes == sorted(set(sizes)) == [0, 1, 2, 3, 4, 5]
    counts = np.isnan(X).sum(axis=1)
    np.testing.assert_array_equal(block.order, np.lexsort((np.arange(60), counts)))


def test_cells_are_flat_positions_column_after_column():
    nan = np.nan
    X = np.array([[nan, 1.0, nan, 2.0], [3.0, nan, 4.0, nan]])
    (group,) = row_block(X, np.zeros(4), np.ones(4)).groups
    np.testing.assert_array_equal(group.missing, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(group.cells, [0, 5, 2, 7])
    np.testing.assert_array_equal(group.observed(), [[0, 1, 0, 1], [1, 0, 1, 0]])


def test_complete_and_wholly_missing_rows_are_groups_like_others():
    X = incomplete()
    block = row_block(X, *centre_and_scale(5))
    complete, empty = block.groups[0], block.groups[-1]
    assert complete.missing.shape == (0, len(complete.values)) and complete.cells.numel() == 0
    assert torch.equal(complete.observed(), torch.ones_like(complete.values))
    assert empty.missing.shape == (5, len(empty.values))
    assert not empty.values.any() and not empty.observed().any()


@pytest.mark.parametrize("limit", [2000, 20_000])
def test_batches_fit_in_the_cache_and_are_as_large_as_that_allows(monkeypatch, limit):
    monkeypatch.setattr(row_groups, "_BATCH_BYTES", limit)
    X = incomplete(2000, 6)
    groups = row_block(X, *centre_and_scale(6)).groups
    batches: dict[int, list[int]] = {}
    for group in groups:
        batches.setdefault(group.n_missing, []).append(len(group.values))
    assert set(batches) == set(range(7))
    for k, sizes in batches.items():
        row_bytes = 8 * max(k**2, 6)
        largest = max(limit // row_bytes, 16)
        assert all(size == largest for size in sizes[:-1])
        assert 0 < sizes[-1] <= largest
    assert any(len(sizes) > 1 for sizes in batches.values())


def test_wide_rows_are_cut_into_batches_of_two_mebibytes():
    X = incomplete(1000, 120, rate=0.5)
    groups = row_block(X, *centre_and_scale(120)).groups
    assert max(8 * len(group.values) * group.n_missing**2 for group in groups) <= 2**21
    assert sum(len(group.values) for group in groups) == 1000


@given(n_rows=st.integers(0, 200), size=st.integers(1, 60))
def test_slices_cut_a_range_into_full_pieces_and_a_rest(n_rows, size):
    pieces = slices(n_rows, size)
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == [*range(n_rows)]
    lengths = [piece.stop - piece.start for piece in pieces]
    assert all(length == size for length in lengths[:-1])
    assert not lengths or 0 < lengths[-1] <= size


@pytest.mark.parametrize(("n_columns", "rows"), [(1, 32768), (20, 32768), (100, 6553), (10**7, 1)])
def test_blocks_of_wide_rows_are_shorter(n_columns, rows):
    assert row_blocks(np.broadcast_to(0.0, (40_000, n_columns)))[0] == slice(0, rows)


def test_blocks_are_consecutive_rows():
    X = incomplete(2 * BLOCK_ROWS + 5, 2)
    centre, scale = centre_and_scale(2)
    rows = StandardizedRows(X, centre, scale)
    assert [len(rows[i].order) for i in range(len(rows))] == [BLOCK_ROWS, BLOCK_ROWS, 5]
    values = [in_order(rows[i], lambda group: group.values) for i in range(len(rows))]
    expected = np.where(np.isnan(X), 0.0, (X - centre) / scale)
    np.testing.assert_array_equal(np.concatenate(values), expected)


@pytest.mark.parametrize("spare", [0, -1])
def test_blocks_of_small_data_are_kept_and_those_of_large_data_prepared_anew(monkeypatch, spare):
    X = incomplete(50, 4)
    monkeypatch.setattr(row_groups, "row_blocks", lambda X: slices(len(X), 20))
    monkeypatch.setattr(row_groups, "_KEPT_BYTES", X.nbytes + spare)
    rows = StandardizedRows(X, *centre_and_scale(4))
    assert (rows[0] is rows[0]) == (spare == 0)
    assert len(rows) == 3


def test_kept_and_anew_prepared_blocks_are_the_same_to_the_bit(monkeypatch):
    X = incomplete(500, 4)
    monkeypatch.setattr(row_groups, "row_blocks", lambda X: slices(len(X), 200))
    kept = StandardizedRows(X, *centre_and_scale(4))
    monkeypatch.setattr(row_groups, "_KEPT_BYTES", 0)
    anew = StandardizedRows(X, *centre_and_scale(4))
    for index in range(3):
        assert_same_blocks(kept[index], anew[index])


def test_single_precision_is_standardised_in_double():
    X = incomplete().astype(np.float32)
    centre, scale = centre_and_scale(5)
    block = row_block(X, centre, scale)
    assert all(group.values.dtype == torch.float64 for group in block.groups)
    assert_same_blocks(block, row_block(X.astype(np.float64), centre, scale))


@pytest.mark.parametrize("kept_bytes", [0, 2**24])
def test_a_read_only_memory_map_gives_the_blocks_of_the_array(monkeypatch, tmp_path, kept_bytes):
    monkeypatch.setattr(row_groups, "_KEPT_BYTES", kept_bytes)
    X = incomplete()
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    rows = StandardizedRows(mapped, *centre_and_scale(5))
    assert_same_blocks(rows[0], row_block(X, *centre_and_scale(5)))
    np.testing.assert_array_equal(mapped, X)


def test_layout_in_memory_does_not_matter_and_the_input_stays_as_it_was():
    X = incomplete()
    before = X.tobytes()
    expected = row_block(X, *centre_and_scale(5))
    for same in (np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X[::-1].copy()[::-1]):
        assert_same_blocks(row_block(same, *centre_and_scale(5)), expected)
    assert X.tobytes() == before


def test_placed_rows_of_each_group_are_those_of_the_table():
    rng = np.random.default_rng(3)
    X = np.where(rng.random((30, 5)) < 0.4, np.nan, rng.normal(size=(30, 5)))
    block, seen = row_block(X, np.zeros(5), np.ones(5)), []
    for group, rows in block.placed():
        np.testing.assert_array_equal(group.values, np.nan_to_num(X[rows]))
        np.testing.assert_array_equal(group.observed(), ~np.isnan(X[rows]))
        seen.extend(rows.tolist())
    assert sorted(seen) == list(range(30))
