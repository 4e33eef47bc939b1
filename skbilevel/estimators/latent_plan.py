"""What is fitted for a latent-variable imputer: its parameters, checked against the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbilevel.estimators.column_knowledge import (
    Floats,
    check_discrete,
    distributions,
    held_by,
    known_limits,
    known_sides,
    named,
    sides_of_limits,
)
from skbilevel.estimators.column_units import CONTINUOUS
from skbilevel.estimators.latent_build import Architecture
from skbilevel.estimators.linear_fit import LINEAR_FITS

# Mechanisms of the whole row, and the names of all.
WHOLE_ROW = ("agnostic", "nonlinear")
MECHANISMS = (*LINEAR_FITS, *WHOLE_ROW)
# "auto" for max_iter: iterations of EM, and steps of a network.
_EM_ITERATIONS, _STEPS = 80, 1000
_ENOUGH_LATENT, _MOST_LATENT = 10, 50
# A normal of more columns costs more than a network.
_MOST_WARM = 200


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained.

    Attributes
    ----------
    objective : str
        A key of `skbilevel.estimators.latent_model.OBJECTIVES`.
    n_importance : int
        Codes a row and step.
    batch_size, n_epochs : int
    learning_rate, weight_decay : float
    """

    objective: str
    n_importance: int
    batch_size: int
    n_epochs: int
    learning_rate: float
    weight_decay: float


class Plan(NamedTuple):
    """What to fit, for the columns that are not empty.

    Attributes
    ----------
    kinds : tuple of str
        Distribution of every column.
    mechanism : str
        A key of `LINEAR_FITS`, one of `WHOLE_ROW`, or "own".
    own : object
        The user's module or callable for "own".
    side : ndarray of shape (d,) or None
        Known signs.
    limits : ndarray of shape (d,)
        Known limits in the units of the data; NaN where not known.
    link : {"probit", "logit"}
    architecture : Architecture or None
        None if the linear model is all.
    training : TrainingSettings or None
    is_warm : bool
        Whether a linear model is fitted at all.
    em_iterations : int
    has_tail_prior : bool
    ignores_mask : bool
        Whether there is nothing to be told of a mechanism.
    """

    kinds: tuple[str, ...]
    mechanism: str
    own: Any
    side: NDArray[np.float64] | None
    limits: NDArray[np.float64]
    link: str
    architecture: Architecture | None
    training: TrainingSettings | None
    is_warm: bool
    em_iterations: int
    has_tail_prior: bool
    ignores_mask: bool

    @property
    def n_steps(self) -> int:
        """Most iterations of EM and epochs."""
        epochs = 0 if self.training is None else self.training.n_epochs
        return epochs + (self.em_iterations if self.is_warm else 0)


def checked_quantile(imputer: Any) -> float:
    """The quantile of an imputer whose loss is that."""
    level = imputer.quantile
    if level is None or not 0 < level < 1:
        raise ValueError(
            f"loss='quantile' needs quantile, a number between 0 and 1, got {level!r}."
        )
    return float(level)


def latent_size(n_latent: int | None, n_columns: int) -> int:
    """Number of codes: as many as columns less one, up to 10 and half of the columns; of two
    columns two, as one code only bends a line."""
    if n_latent is not None:
        return int(n_latent)
    most = max(n_columns // 2, _ENOUGH_LATENT)
    return min(n_columns, max(2, min(n_columns - 1, most, _MOST_LATENT)))


def n_epochs(max_iter: int | str, n_rows: int, batch_size: int) -> int:
    """Epochs of a network: enough for as many steps as it needs."""
    if max_iter != "auto":
        return int(max_iter)
    return max(1, round(_STEPS / -(-n_rows // batch_size)))


def em_iterations(max_iter: int | str, is_all: bool) -> int:
    """Iterations of EM; ``max_iter`` is about them if there is no network."""
    return int(max_iter) if is_all and max_iter != "auto" else _EM_ITERATIONS


def is_linear_all(decoder: str, n_latent: int | None, kinds: Sequence[str], name: str) -> bool:
    """Whether the normal with its mechanism is all that is wanted, without a network."""
    is_normal = all(kind == "gaussian" for kind in kinds)
    return decoder == "linear" and n_latent is None and is_normal and name in LINEAR_FITS


def is_warm(decoder: str, kinds: Sequence[str]) -> bool:
    """Whether a linear model can fill the encoder's input, and start the network."""
    is_continuous = all(kind in CONTINUOUS for kind in kinds)
    return decoder != "conv" and is_continuous and len(kinds) <= _MOST_WARM


def planned(
    imputer: Any,
    X: Floats,
    names: Sequence[str],
    *,
    mechanism: str,
    own: Any = None,
    signs: ArrayLike | None = None,
    limits: ArrayLike | None = None,
    link: str = "probit",
    tail_prior: str | None = None,
    ignores_mask: bool = False,
) -> Plan:
    """The plan of an imputer for the rows (n, d) of the columns that are not empty.

    ``names`` are those of the columns, for messages.
    """
    kept = ~imputer.empty_features_
    if imputer.loss == "quantile":
        checked_quantile(imputer)
    kinds = distributions(imputer.distribution, imputer._names(np.ones_like(kept)), kept)
    side = known_sides(signs, mechanism, kept)
    known = known_limits(limits, mechanism, kept)
    # As the table can hold them, so that a value at its limit is not beyond it.
    known = held_by(X.dtype, known, names)
    if isinstance(limits, Real) and side is not None:
        known = np.where(side == 0, np.nan, known)  # one limit for all is not meant for these
    if mechanism == "censored":
        side = sides_of_limits(X, side, known, names)
    elif side is not None:
        side = np.nan_to_num(side)
    is_all = is_linear_all(imputer.decoder, imputer.n_latent, kinds, mechanism)
    warm = is_all or is_warm(imputer.decoder, kinds)
    if not warm and (mechanism == "auto" or (mechanism == "censored" and side is None)):
        raise ValueError(_refusal(mechanism, imputer.decoder, kinds, names))
    _check_image(imputer, kinds, kept)
    check_discrete(X, kinds, names, side if mechanism == "censored" else None)
    if is_all and link != "probit":
        raise ValueError("link='logit' is for networks; decoder='linear' has link='probit'.")
    return Plan(
        kinds,
        mechanism,
        own,
        side,
        known,
        link,
        None if is_all else _architecture(imputer, len(kinds)),
        None if is_all else _training(imputer, len(X)),
        warm,
        em_iterations(imputer.max_iter, is_all),
        tail_prior is not None,
        ignores_mask,
    )


def _refusal(mechanism: str, decoder: str, kinds: Sequence[str], names: Sequence[str]) -> str:
    """Why there is no linear model to compare mechanisms by."""
    discrete = np.array([kind not in CONTINUOUS for kind in kinds])
    if decoder == "conv":
        reason = "continuous columns and decoders other than 'conv'"
    elif discrete.any():
        reason = f"continuous columns, other than {named(names, discrete)}"
    else:
        reason = f"up to {_MOST_WARM} columns beside a network, not {len(kinds)}"
    needed = "another mechanism" if mechanism == "auto" else "signs"
    return (
        f"mechanism={mechanism!r} has to compare linear models, which are for {reason}; "
        f"give {needed}."
    )


def _check_image(imputer: Any, kinds: Sequence[str], kept: NDArray[np.bool_]) -> None:
    shape = imputer.image_shape
    if (imputer.decoder == "conv") != (shape is not None):
        raise ValueError(
            f"image_shape is for decoder='conv', which needs it: got decoder={imputer.decoder!r} "
            f"and image_shape={shape!r}."
        )
    is_image = shape is None or (
        len(shape) == 3
        and all(isinstance(size, int) and size > 0 for size in shape)
        and np.prod(shape) == len(kept)
        and kept.all()
    )
    if not is_image:
        raise ValueError(
            f"image_shape must be (channels, height, width) of {len(kept)} pixels, each observed "
            f"in some image; got {shape}."
        )
    if shape is not None and "categorical" in kinds:
        raise ValueError(
            "decoder='conv' is for pixels that are numbers, or of two values by "
            "distribution='bernoulli'; got 'categorical'."
        )


def _architecture(imputer: Any, n_columns: int) -> Architecture:
    hidden = np.atleast_1d(imputer.hidden_layer_sizes)
    if hidden.ndim > 1 or not np.issubdtype(hidden.dtype, np.integer) or (hidden < 1).any():
        raise ValueError(
            f"hidden_layer_sizes must be integers of at least 1, got {hidden.tolist()}."
        )
    return Architecture(
        imputer.decoder,
        latent_size(imputer.n_latent, n_columns),
        tuple(int(width) for width in hidden),
        imputer.activation,
        float(imputer.min_scale),
        imputer.image_shape,
    )


def _training(imputer: Any, n_rows: int) -> TrainingSettings:
    size = int(imputer.batch_size)
    return TrainingSettings(
        imputer.objective,
        int(imputer.n_importance),
        size,
        n_epochs(imputer.max_iter, n_rows, size),
        float(imputer.learning_rate),
        float(imputer.weight_decay),
    )
