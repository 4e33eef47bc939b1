"""Which cells are hidden from a teacher or dropped from a student's rows: random masks.

All masks are (n, d) and True where a cell is observed, or stays so.
"""

from __future__ import annotations

import numpy as np

# Range of the share of cells that are hidden from a row, where each row has its own.
_LEAST_HIDDEN, _MOST_HIDDEN = 0.1, 0.9
# Cells that are held out to stop training and to weigh the base, of the observed ones.
_HELD_OUT = 0.2


def copied(observed: np.ndarray, n_rows: int, rng: np.random.RandomState) -> np.ndarray:
    """Masks of rows of the table ``observed`` (m, d), drawn at random."""
    return observed[rng.randint(len(observed), size=n_rows)]


def at_rate(shape: tuple[int, int], rate: float, rng: np.random.RandomState) -> np.ndarray:
    """Every cell is dropped with one probability."""
    return rng.random_sample(shape) >= rate


def at_own_rates(shape: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """Every row has a rate of its own, between a tenth and nine tenths."""
    rates = rng.uniform(_LEAST_HIDDEN, _MOST_HIDDEN, (shape[0], 1))
    return rng.random_sample(shape) >= rates


def dropout(
    feature_dropout: str | float, observed: np.ndarray, n_rows: int, rng: np.random.RandomState
) -> np.ndarray:
    """D_p: "empirical" copies masks of the table, a number is a rate."""
    if feature_dropout == "empirical":
        return copied(observed, n_rows, rng)
    return at_rate((n_rows, observed.shape[1]), float(feature_dropout), rng)


def masking(
    mask_ratio: str | float, observed: np.ndarray, rng: np.random.RandomState
) -> np.ndarray:
    """What a masked autoencoder sees of the rows of a table: "mix" copies masks to half of the
    rows and gives the others a rate of their own; a number is a rate. Every row keeps a cell."""
    n_rows, _ = observed.shape
    if mask_ratio == "mix":
        is_copy = rng.random_sample((n_rows, 1)) < 0.5
        kept = np.where(is_copy, copied(observed, n_rows, rng), at_own_rates(observed.shape, rng))
    else:
        kept = at_rate(observed.shape, float(mask_ratio), rng)
    seen = observed & kept
    blind = ~np.any(seen, axis=1)
    # A row of which nothing is seen shows what it has.
    return np.where(blind.reshape(-1, 1), observed, seen)


def held_out_cells(observed: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A fifth of the observed cells, (n, d), but never all of a row or of a column."""
    hidden = observed & (rng.random_sample(observed.shape) < _HELD_OUT)
    hidden[(hidden == observed).all(axis=1)] = False
    hidden[:, (hidden == observed).all(axis=0)] = False
    return hidden


def judging_cells(observed: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Cells to judge a fitted imputer by, (n, d): a fifth of the observed ones, but never all of a
    row; if chance takes none, then one of every row that has two."""
    hidden = observed & (rng.random_sample(observed.shape) < _HELD_OUT)
    hidden[(hidden == observed).all(axis=1)] = False
    if not hidden.any():
        rows = np.flatnonzero(observed.sum(axis=1) > 1)
        hidden[rows, observed[rows].argmax(axis=1)] = True
    return hidden
