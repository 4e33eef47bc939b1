"""What a user says of the columns of a table, checked against it and the mechanism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbilevel.estimators.column_units import CONTINUOUS, DISTRIBUTIONS
from skbilevel.estimators.imputer import Floats

# Messages name this many columns at most.
_MOST_NAMED = 5


def distributions(
    distribution: Any, features: Sequence[str], kept: NDArray[np.bool_]
) -> tuple[str, ...]:
    """One name for every column that is ``kept``."""
    given = by_name("distribution", distribution, features, "gaussian")
    names = [given] * len(kept) if isinstance(given, str) else list(given)
    if len(names) != len(kept):
        raise ValueError(
            f"distribution must be a name or one for each of {len(kept)} features, "
            f"got {len(names)} names."
        )
    unknown = sorted({str(name) for name in names} - set(DISTRIBUTIONS))
    if unknown:
        raise ValueError(f"distribution must be of {DISTRIBUTIONS}, got {unknown}.")
    return tuple(name for name, is_kept in zip(names, kept, strict=True) if is_kept)


def by_name(parameter: str, value: Any, features: Sequence[str], rest: Any) -> Any:
    """A dict or Series from names of features to values as a list of all, with ``rest``
    elsewhere; anything else as it is."""
    to_dict = getattr(value, "to_dict", None)
    if to_dict is not None:
        named_values = to_dict()
        if len(named_values) < len(value):
            raise ValueError(f"{parameter} has several values for one name.")
        # A Series that counts its values has no names.
        value = value if list(named_values) == list(range(len(value))) else named_values
    if not isinstance(value, Mapping):
        return value
    position = {name: j for j, name in enumerate(features)}
    unknown = [key for key in value if key not in position]
    if unknown:
        every = named(features, np.ones(len(features), dtype=bool))
        raise ValueError(
            f"{parameter} names {unknown}, which are no features of X; these are {every}."
        )
    values = [rest] * len(features)
    for key, own in value.items():
        values[position[key]] = own
    return values


def by_column(
    name: str, value: ArrayLike | None, kept: NDArray[np.bool_]
) -> NDArray[np.float64] | None:
    """A number for all columns, or one each, for those ``kept``."""
    if value is None:
        return None
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a number, or an array of one for each feature; got {value!r}."
        ) from error
    if numbers.ndim == 0:
        return np.full(int(kept.sum()), float(numbers))
    if numbers.shape != kept.shape:
        raise ValueError(
            f"{name} must be a number or an array of {len(kept)}, one for each feature; "
            f"got shape {numbers.shape}."
        )
    return numbers[kept]


def known_sides(
    signs: ArrayLike | None, mechanism: str, kept: NDArray[np.bool_]
) -> NDArray[np.float64] | None:
    """``signs``, checked against the mechanism; NaN where not given."""
    side = by_column("signs", signs, kept)
    if mechanism == "self_masking_known" and side is None:
        raise ValueError("mechanism='self_masking_known' needs signs: 1, -1 or 0 per feature.")
    if side is None:
        return None
    if mechanism not in ("self_masking_known", "censored"):
        raise ValueError(
            "signs is for the mechanisms 'self_masking_known' and 'censored', "
            f"got mechanism={mechanism!r}."
        )
    if not np.isin(side[~np.isnan(side)], (-1.0, 0.0, 1.0)).all():
        raise ValueError(f"signs must be 1, -1 or 0, got {np.unique(side).tolist()}.")
    return side


def known_limits(
    limits: ArrayLike | None, mechanism: str, kept: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """``limits``, checked against the mechanism; NaN where not known."""
    numbers = by_column("limits", limits, kept)
    if numbers is None:
        return np.full(int(kept.sum()), np.nan)
    if mechanism != "censored":
        raise ValueError(f"limits is for mechanism='censored', got mechanism={mechanism!r}.")
    if np.isinf(numbers).any():
        raise ValueError("limits must be finite, or NaN where a limit is not known.")
    return numbers


def held_by(dtype: Any, limits: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    """Limits as a table of this dtype can hold them."""
    with np.errstate(over="ignore"):
        held = limits.astype(dtype).astype(np.float64)
    if np.isinf(held).any():
        raise ValueError(
            f"limits must be values that {dtype} can hold, as X is; those of "
            f"{named(names, np.isinf(held))} are not."
        )
    return held


def sides_of_limits(
    X: Floats, side: NDArray[np.float64] | None, limits: NDArray[np.float64], names: Sequence[str]
) -> NDArray[np.float64] | None:
    """Sides, also those that follow from known limits: no value is observed beyond them."""
    known = ~np.isnan(limits)
    if side is not None and (known & (side == 0)).any():
        raise ValueError(
            f"Columns {named(names, known & (side == 0))} have limits but signs of 0; leave them "
            "out of limits, or give the side on which values are missing."
        )
    unknown = np.isnan(X).any(axis=0) & ~known
    if side is None and known.any() and unknown.any():
        raise ValueError(
            f"limits without signs leave open those of columns {named(names, unknown)}; give "
            "their signs, 0 for missing at random."
        )
    if side is None and not known.any():
        return None
    low, high = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
    inferred = np.where(high <= limits, 1.0, np.where(low >= limits, -1.0, 0.0))
    open_ = np.full(len(limits), np.nan) if side is None else side
    sides = np.where(np.isnan(open_), inferred, open_)
    beyond = known & ~np.where(sides > 0, high <= limits, low >= limits)
    if beyond.any():
        raise ValueError(
            f"Columns {named(names, beyond)} have observed values beyond limits, where by their "
            "signs all should be missing."
        )
    return sides


def check_discrete(
    X: Floats, kinds: Sequence[str], names: Sequence[str], limited: NDArray[np.float64] | None
) -> None:
    """Columns of few values: a bernoulli has two, and none of them lies beyond a limit."""
    for j, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        if kind == "bernoulli" and len(np.unique(X[~np.isnan(X[:, j]), j])) > 2:
            raise ValueError(
                f"Column {name!r} has more than two values, but its distribution is 'bernoulli'."
            )
        if kind not in CONTINUOUS and limited is not None and limited[j] != 0:
            raise ValueError(
                f"mechanism='censored' is for continuous columns: no category of {name!r} is ever "
                "observed beyond a limit; give it the sign 0, or use 'self_masking'."
            )


def named(names: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    """The names of the chosen columns, or the first of many."""
    index = np.flatnonzero(chosen).tolist()
    first = ", ".join(repr(names[j]) for j in index[:_MOST_NAMED])
    return f"[{first}]" if len(index) <= _MOST_NAMED else f"[{first}, ... {len(index)} in all]"
