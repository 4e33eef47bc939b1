"""What expectation maximisation asks of a distribution with missing cells.

A family is a frozen dataclass of hyper-parameters with the methods of `Family`. Its parameters are
a frozen dataclass of tensors in standardised units (logarithms of what must be positive), its
statistics a NamedTuple of sums over rows. A new family is a new file in this folder and an entry
in ``KINDS`` of ``estimators/gaussian_choice.py``.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from skbilevel.numerics.pattern_sums import PatternSums
from skbilevel.numerics.row_groups import RowGroup

Parameters = TypeVar("Parameters")
Sums = TypeVar("Sums", bound=tuple)


class Pairwise(NamedTuple):
    """Sums over the rows in which both columns are observed.

    Attributes
    ----------
    n_rows : Tensor of shape (d, d)
        Number of those rows.
    first : Tensor of shape (d, d)
        ``first[i, j]`` is the sum of column i over them.
    second : Tensor of shape (d, d)
        Sum of the products of columns i and j.
    """

    n_rows: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class FirstEstimate:
    """Mean and covariance from pairwise observed rows, where EM starts.

    Attributes
    ----------
    mean : Tensor of shape (d,)
        Means of the observed cells.
    eigenvalues : Tensor of shape (d,)
        Of the covariance, ascending; positive.
    eigenvectors : Tensor of shape (d, d)
        In columns.
    """

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    @property
    def covariance(self) -> Tensor:
        """The covariance itself; (d, d)."""
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T


def first_estimate(sums: Pairwise, floor: float = 1e-2) -> FirstEstimate:
    """Pairwise covariance with its eigenvalues raised to ``floor`` times their mean.

    A pair that is never observed together counts as uncorrelated.
    """
    n_rows = sums.n_rows.clamp(min=1.0)
    means = sums.first / n_rows
    values, vectors = torch.linalg.eigh(sums.second / n_rows - means * means.T)
    lowest = floor * values.mean().clamp(min=1e-6)
    return FirstEstimate(means.diagonal(), values.clamp(min=lowest), vectors)


class Family(Protocol):
    """The methods of a family; ``model`` is whatever it precomputes of its parameters."""

    @property
    def shrinkage(self) -> float:
        """Weight of the prior, in rows."""

    def start(self, estimate: FirstEstimate) -> Any:
        """First parameters of EM."""

    def model(self, parameters: Any) -> Any:
        """What every row needs; raises ``torch.linalg.LinAlgError`` if not feasible."""

    def expectation(self, group: RowGroup, model: Any) -> Any:
        """E-step: the sums over the rows of a group, ``n_rows`` and ``log_likelihood`` in them."""

    def maximisation(self, sums: Any) -> Any:
        """M-step: parameters from the sums over all rows."""

    def pack(self, parameters: Any) -> Tensor:
        """A flat vector of free coordinates, in which EM is extrapolated."""

    def unpack(self, theta: Tensor, like: Any) -> Any:
        """The parameters that `pack` flattened; ``like`` gives the shapes."""

    def log_prior(self, model: Any) -> float:
        """What the M-step adds to the log-likelihood, up to a constant; in nats."""

    def log_density(self, group: RowGroup, model: Any) -> Tensor:
        """Log density of the observed cells of each row in nats; shape (b,)."""

    def completed(self, group: RowGroup, model: Any) -> Tensor:
        """Rows with missing cells at their conditional mean; shape (b, d)."""

    def noise_width(self, n_columns: int) -> int:
        """Number of standard normals that `drawn` uses for a row."""

    def given(self, group: RowGroup, model: Any) -> Any:
        """What all draws of the rows have in common."""

    def drawn(self, group: RowGroup, given: Any, noise: Tensor) -> Tensor:
        """Rows with missing cells drawn given the observed ones; ``noise`` is (b, width)."""


@runtime_checkable
class PatternFamily(Protocol):
    """A family whose E-step can also be had from sums by pattern."""

    def pattern_expectation(self, patterns: PatternSums, model: Any) -> Any:
        """`Family.expectation` of all rows from their sums by pattern."""


def pairwise_sums(group: RowGroup) -> Pairwise:
    """The pairwise sums of one group; three matrix products."""
    observed, values = group.observed(), group.values
    return Pairwise(observed.T @ observed, values.T @ observed, values.T @ values)


def add(left: Sums, right: Sums) -> Sums:
    """Add two NamedTuples of sums entry by entry."""
    return type(left)(*(a + b for a, b in zip(left, right, strict=True)))


def pack(parameters: Any) -> Tensor:
    """All fields of a dataclass of tensors in one flat vector."""
    return torch.cat([getattr(parameters, field.name).reshape(-1) for field in fields(parameters)])


def unpack(theta: Tensor, like: Parameters) -> Parameters:
    """The dataclass of tensors that `pack` flattened; ``like`` gives type and shapes."""
    shapes = [getattr(like, field.name).shape for field in fields(like)]  # type: ignore[arg-type]
    parts = torch.split(theta, [shape.numel() for shape in shapes])
    return type(like)(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


def as_arrays(record: Any) -> dict[str, np.ndarray]:
    """The tensors of a dataclass or NamedTuple by name, as NumPy arrays."""
    names = getattr(record, "_fields", None) or [field.name for field in fields(record)]
    return {name: getattr(record, name).numpy() for name in names}


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Copies of the arrays as tensors; the arrays may be read-only, as memory maps are."""
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
