"""Random numbers keyed by rows, so that a row's draw does not depend on its batch.

A draw is a pure function of (seed, index of the draw, column of the draw, values of the row), by
a counter-based generator: integers are hashed, there is no stream and no state. The mixing
function is that of SplitMix64.

References
----------
G. L. Steele, D. Lea, C. H. Flood (2014). Fast splittable pseudorandom number generators. OOPSLA.
J. K. Salmon et al. (2011). Parallel random numbers: as easy as 1, 2, 3. SC11.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

__all__ = ["draw_seed", "row_keys", "row_normal", "row_uniform"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_NOT_SIGN = np.uint64(0x7FFFFFFFFFFFFFFF)
_INFINITY = np.uint64(0x7FF0000000000000)
_NAN = np.uint64(0x7FF8000000000000)


def draw_seed(random_state: np.random.RandomState) -> int:
    """A seed in [0, 2**63), to be drawn once, at fit."""
    return int(random_state.randint(2**63, dtype=np.int64))


def row_keys(X: ArrayLike, seed: int, row_ids: ArrayLike | None = None) -> NDArray[np.uint64]:
    """One key per row: a hash of the seed, of the row's values and of where they stand.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Float64, or float32, which is converted exactly. -0.0 counts as 0.0, and every NaN as one
        value, so that the pattern of missing cells is part of the key.
    seed : int
        In [0, 2**63).
    row_ids : array-like of int of shape (n,), default=None
        Mixed in, where equal rows need different draws. None gives equal rows equal keys.

    Returns
    -------
    ndarray of shape (n,), uint64
    """
    words = _canonical_bits(X)
    keys = _absorb(np.zeros(len(words), dtype=np.uint64), _word(seed))
    for column in np.ascontiguousarray(words.T):
        keys = _absorb(keys, column)
    return keys if row_ids is None else _absorb(keys, _row_id_words(row_ids, len(keys)))


def row_uniform(keys: NDArray[np.uint64], draw: int, n_columns: int) -> NDArray[np.float64]:
    """Uniform numbers in the open interval (0, 1).

    They are odd multiples of 2**-53: all of them are exact in float64, neither end is reached,
    and u is as likely as 1 - u.

    Parameters
    ----------
    keys : ndarray of shape (n,), uint64
        From `row_keys`.
    draw : int
        Index of the draw, from 0.
    n_columns : int
        Numbers wanted per row. The first ones do not depend on how many are wanted.

    Returns
    -------
    ndarray of shape (n, n_columns), float64
    """
    states = _absorb(keys, _word(draw))
    counters = np.arange(1, n_columns + 1, dtype=np.uint64) * _GAMMA
    words = _mix(states[:, np.newaxis] + counters)
    words >>= np.uint64(12)
    uniform = words.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52
    return uniform


def row_normal(keys: NDArray[np.uint64], draw: int, n_columns: int) -> NDArray[np.float64]:
    """Standard normal numbers: the inverse distribution function at `row_uniform`.

    Returns
    -------
    ndarray of shape (n, n_columns), float64, within ±8.3
    """
    uniform = row_uniform(keys, draw, n_columns)
    return ndtri(uniform, out=uniform)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, a bijection in which each bit moves half of the others.

    Overwrites its argument. Arrays wrap around silently, where NumPy scalars would warn.
    """
    words ^= words >> np.uint64(30)
    words *= _MIX_1
    words ^= words >> np.uint64(27)
    words *= _MIX_2
    words ^= words >> np.uint64(31)
    return words


def _absorb(keys: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys that depend on the old ones and on one more word; the order of words matters."""
    return _mix((keys ^ words) + _GAMMA)


def _word(number: int) -> NDArray[np.uint64]:
    return np.array([number], dtype=np.uint64)


def _canonical_bits(X: ArrayLike) -> NDArray[np.uint64]:
    """Bits of float64 values, equal for values that are equal or both NaN; (n, d)."""
    # On integers: no floating-point operation that could raise the flag of a signalling NaN.
    with np.errstate(invalid="ignore"):
        bits = np.ascontiguousarray(X, dtype=np.float64).view(np.uint64)
    magnitude = bits & _NOT_SIGN
    return np.where(magnitude > _INFINITY, _NAN, np.where(magnitude == 0, magnitude, bits))


def _row_id_words(row_ids: ArrayLike, n_rows: int) -> NDArray[np.uint64]:
    """Validated identifiers as words; negative ones wrap around."""
    ids = np.asarray(row_ids)
    if ids.shape != (n_rows,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"row_ids must be a 1-D array of {n_rows} integers, one per row of X; got shape "
            f"{ids.shape} and dtype {ids.dtype}."
        )
    return ids.astype(np.uint64)
