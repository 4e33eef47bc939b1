"""Residuals of conditional moments that a user has written, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skbilevel.numerics.derivatives import row_jacobian

# Step of central differences of D, relative to 1 + |omega|: its cube is the rounding of doubles.
_STEP = 6e-6
# D that changes by no more than this, relative to its largest entry, does not depend on omega.
_EQUAL = 1e-9


class NotFiniteError(ValueError):
    """A residual, or its derivative, that is not finite at some omega."""


@dataclass(frozen=True)
class Residual:
    """r of rows, and D = dr / domega.

    Attributes
    ----------
    function : callable
        ``(omega, data) -> r``, on tensors, or on arrays if ``jac`` says where D is from.
    jac : callable, True or None
        ``(omega, data) -> D``; True if the function returns both; None for torch.
    data : Any
        What the function gets.
    n_rows : int
    """

    function: Callable[..., Any]
    jac: Any
    data: Any
    n_rows: int

    def at(self, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """r (n,) and D (n, p).

        Raises
        ------
        ValueError
            If they have another shape, or are not finite.
        TypeError
            If the function returns no tensor, but D is to be its derivative.
        """
        r, D = self._raw(omega)
        expected = {"residual": (r, (self.n_rows,)), "jac": (D, (self.n_rows, len(omega)))}
        for name, (found, shape) in expected.items():
            if found.shape != shape:
                raise ValueError(
                    f"{name} must give an array of shape {shape} at omega={omega.tolist()}, got "
                    f"{found.shape}."
                )
            if not np.isfinite(found).all():
                raise NotFiniteError(f"{name} is not finite at omega={omega.tolist()}.")
        return r, D

    def curvatures(self, omega: np.ndarray) -> np.ndarray:
        """d2r / domega2 of every row, (n, p (p + 1) / 2): the upper triangle, by central
        differences of D."""
        columns = []
        for number, step in enumerate(_STEP * (1 + np.abs(omega))):
            moved = np.zeros(len(omega))
            moved[number] = step
            ahead, behind = self.at(omega + moved)[1], self.at(omega - moved)[1]
            columns.append((ahead - behind)[:, number:] / (2 * step))
        return np.hstack(columns)

    def is_linear(self, omegas: np.ndarray) -> bool:
        """Whether D is the same at all of the omegas (m, p) and at some around the first, and r
        is the line that it says.

        Raises
        ------
        ValueError, TypeError
            As `at` does, at the first.
        """
        first = omegas[0]
        r, D = self.at(first)
        around = first + (1 + np.abs(first)) * _directions(len(first))
        return all(self._is_on_line(r, D, first, other) for other in [*omegas[1:], *around])

    def _is_on_line(
        self, r: np.ndarray, D: np.ndarray, omega: np.ndarray, other: np.ndarray
    ) -> bool:
        there, slopes = self._raw(other)
        if slopes.shape != D.shape or not np.isfinite(slopes).all():
            return False
        off = np.abs(there - r - D @ (other - omega)).max(initial=0.0)
        size = max(np.abs(there).max(initial=0.0), np.abs(r).max(initial=0.0))
        turned = np.abs(slopes - D).max(initial=0.0)
        return bool(turned <= _EQUAL * np.abs(D).max(initial=0.0) and off <= _EQUAL * size)

    def _raw(self, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.jac is None:
            return self._by_torch(omega)
        if callable(self.jac):
            pair = self.function(omega, self.data), self.jac(omega, self.data)
        else:
            pair = self.function(omega, self.data)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError("jac=True needs residual to return a pair, (r, D).")
        r, D = (np.asarray(each, dtype=np.float64) for each in pair)
        return r, D

    def _by_torch(self, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = torch.tensor(omega, requires_grad=True)
        try:
            r = self.function(given, self.data)
        except (RuntimeError, TypeError) as error:
            if "numpy" not in str(error).lower():
                raise
            raise TypeError(
                "residual must be written in torch where jac=None, of which the derivative is "
                "taken: give jac for a residual of NumPy arrays."
            ) from error
        if not isinstance(r, torch.Tensor):
            raise TypeError(
                "residual must return a torch tensor where jac=None, of which the derivative is "
                f"taken; got {type(r).__name__}. Give jac for a residual of NumPy arrays."
            )
        if not r.requires_grad:
            raise ValueError(
                "residual gives a tensor that does not depend on omega: it must be computed from "
                "it by torch, without detach."
            )
        if r.shape != (self.n_rows,):
            return r.detach().double().numpy(), np.zeros((self.n_rows, len(omega)))
        D = row_jacobian(r, given)
        return r.detach().double().numpy(), D.double().numpy()


def _directions(n_parameters: int) -> np.ndarray:
    """Steps (4, p) that differ in each coordinate, to both sides: a function of differences of
    parameters, or with a kink where one is 0, bends along some of them."""
    steps = np.random.RandomState(0).uniform(0.3, 1.7, (2, n_parameters))
    signs = np.where(np.arange(n_parameters) % 2, -1.0, 1.0)
    return np.vstack([steps * signs, -steps])


def checked_data(data: Any, n_rows: int) -> Any:
    """Data of rows as they are kept: a dict or tuple of arrays, a DataFrame, or an array.

    Raises
    ------
    ValueError
        If a part has another number of rows than X.
    """
    if isinstance(data, dict):
        return {name: _part(part, n_rows, f"data[{name!r}]") for name, part in data.items()}
    if isinstance(data, tuple):
        return tuple(_part(part, n_rows, f"data[{k}]") for k, part in enumerate(data))
    if hasattr(data, "columns"):
        _check_length(data, n_rows, "data")
        return data
    return _part(data, n_rows, "data")


def as_tensors(data: Any) -> Any:
    """The same with float64 tensors; a DataFrame becomes a dict of its columns."""
    if isinstance(data, dict):
        return {name: _tensor(part, f"data[{name!r}]") for name, part in data.items()}
    if isinstance(data, tuple):
        return tuple(_tensor(part, f"data[{k}]") for k, part in enumerate(data))
    if hasattr(data, "columns"):
        return {name: _tensor(data[name], f"data[{name!r}]") for name in data.columns}
    return _tensor(data, "data")


def _part(part: Any, n_rows: int, name: str) -> np.ndarray:
    array = np.asarray(part)
    _check_length(array, n_rows, name)
    return array


def _check_length(part: Any, n_rows: int, name: str) -> None:
    n_found = len(part) if np.ndim(part) or hasattr(part, "columns") else 0
    if n_found != n_rows:
        raise ValueError(f"{name} has {n_found} rows and X has {n_rows}.")


def _tensor(part: Any, name: str) -> torch.Tensor:
    try:
        array = np.array(part, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold numbers, for torch.") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinity.")
    return torch.from_numpy(array)
