"""What a decoder's outputs are parameters of: one distribution for each kind of column."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.column_units import ColumnUnits
from skbilevel.models.latent_variable import Decoder
from skbilevel.objectives.observation import (
    Bernoulli,
    Categorical,
    Gaussian,
    Joined,
    Observation,
    StudentT,
)


def decoded(
    decoder: Decoder, units: ColumnUnits, codes: Tensor, temperature: float | None
) -> Observation:
    """p(x | z) of codes (K, b, L), columns of each kind side by side."""
    outputs = decoder(codes).unflatten(-1, (len(units.kinds), -1))
    kinds = np.array(units.kinds)
    parts, columns = [], []
    for kind in dict.fromkeys(units.kinds):
        index = torch.from_numpy(np.flatnonzero(kinds == kind))
        own = outputs if len(index) == len(kinds) else outputs[..., index, :]
        parts.append(_PARTS[kind](decoder, units, own, index, temperature))
        columns.append(index)
    return parts[0] if len(parts) == 1 else Joined(tuple(parts), tuple(columns))


def _gaussian(
    decoder: Decoder, units: ColumnUnits, outputs: Tensor, index: Tensor, _: float | None
) -> Gaussian:
    return Gaussian(outputs[..., 0], decoder.scale()[index])


def _student(
    decoder: Decoder, units: ColumnUnits, outputs: Tensor, index: Tensor, _: float | None
) -> StudentT:
    scale, degrees = decoder.scale()[index], decoder.degrees()[index]
    return StudentT(outputs[..., 0], scale, degrees)


def _bernoulli(
    decoder: Decoder, units: ColumnUnits, outputs: Tensor, index: Tensor, temperature: float | None
) -> Bernoulli:
    return Bernoulli(outputs[..., 0], temperature)


def _categorical(
    decoder: Decoder, units: ColumnUnits, outputs: Tensor, index: Tensor, temperature: float | None
) -> Categorical:
    counts = torch.from_numpy(units.n_categories)[index].unsqueeze(1)
    is_category = torch.arange(outputs.shape[-1]) < counts
    return Categorical(torch.where(is_category, outputs, -torch.inf), temperature)


_PARTS: dict[str, Callable[..., Observation]] = {
    "gaussian": _gaussian,
    "student_t": _student,
    "bernoulli": _bernoulli,
    "categorical": _categorical,
}
