"""What a network is made of, and what fills the rows that its encoder sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skbilevel.estimators.column_units import ColumnUnits
from skbilevel.estimators.latent_build import Architecture
from skbilevel.estimators.latent_missing import MissingStart
from skbilevel.estimators.linear_model import LinearModel


@dataclass(frozen=True)
class NetworkParts:
    """What a `LatentModel` is made of, apart from the linear model that fills its input.

    Attributes
    ----------
    architecture : Architecture
    units : ColumnUnits
    means : ndarray of shape (d,)
        Codes that missing cells are filled with where no linear model fills them.
    missing : MissingStart
    seed, n_importance : int
    """

    architecture: Architecture
    units: ColumnUnits
    means: np.ndarray
    missing: MissingStart
    seed: int
    n_importance: int


def filled_by(
    linear: LinearModel | None, parts: NetworkParts
) -> Callable[[np.ndarray], np.ndarray]:
    """What completes the rows that an encoder sees."""
    units = parts.units
    if linear is not None:
        return lambda rows: units.coded(linear.completed(rows))
    return lambda rows: np.where(np.isnan(rows), parts.means, units.coded(rows))
