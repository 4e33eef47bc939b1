"""What a network knows and learns of the missing mechanism."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skbilevel.estimators.column_units import ColumnUnits, values_of
from skbilevel.estimators.latent_plan import Plan
from skbilevel.estimators.linear_fit import LinearFit, Table
from skbilevel.estimators.mask_terms import Collapsed, Ignored, MaskTerm, Sampled
from skbilevel.estimators.mechanism_start import hard_limits
from skbilevel.models.missing_mechanism import SlopeAndThreshold, agnostic, nonlinear
from skbilevel.objectives.masking_links import Link, LogitLink, ProbitLink, probit_of
from skbilevel.objectives.self_masking import SelfMasking

# The logistic function of 1.702 u is within .01 of the probit of u.
_LOGIT_OF_PROBIT = 1.702
# A mechanism that is learnt from nothing starts as a gentle slope, in standardised units; no
# slope starts steeper than one over the second number.
_FIRST_WIDTH, _STEEPEST = 0.5, 0.02


class MissingModel(NamedTuple):
    """The term of the mask, and the module with what is learnt of it, if anything is."""

    term: MaskTerm
    module: nn.Module | None


@dataclass(frozen=True)
class MissingStart:
    """What a missing model is built from; in the network's units.

    Attributes
    ----------
    form : str
        A key of `FORMS`.
    mechanism : SelfMasking or None
        For "fixed" and "learnt"; a side of 0 has a sign that is to be learnt.
    active : Tensor of shape (d,)
        1 for columns that have a mechanism.
    link : {"probit", "logit"}
    keep_signs : bool
    """

    form: str
    mechanism: SelfMasking | None
    active: Tensor
    link: str = "probit"
    keep_signs: bool = False


def missing_start(
    plan: Plan, linear: LinearFit | None, table: Table, units: ColumnUnits
) -> MissingStart:
    """What the plan and the linear model, if there is one, say of the mechanism."""
    has_missing = torch.from_numpy(np.isnan(table.X).any(axis=0)).float()
    if plan.mechanism in FORMS:
        return MissingStart(plan.mechanism, None, has_missing)
    if linear is None:
        limits = units.coded(plan.limits[np.newaxis])[0]
        return _cold_start(plan, units.coded(table.X), limits, has_missing)
    if linear.mechanism == "mar":
        return MissingStart("mar", None, has_missing)
    found = linear.model.mechanism
    active = found.side.abs().float()
    in_network = _in_units(found, linear.model, units)
    is_known = plan.link == "probit" or linear.is_hard[active.numpy() > 0].all()
    form = "fixed" if is_known else "learnt"
    return MissingStart(form, in_network, active, plan.link, plan.side is not None)


def _in_units(mechanism: SelfMasking, model: Any, units: ColumnUnits) -> SelfMasking:
    """From the linear model's units to the network's."""
    center, scale, to_center, to_scale = (
        torch.from_numpy(part) for part in (model.center, model.scale, units.center, units.scale)
    )
    threshold = (mechanism.threshold * scale + center - to_center) / to_scale
    return SelfMasking(mechanism.side, threshold, mechanism.width * scale / to_scale)


def _cold_start(
    plan: Plan, Z: np.ndarray, limits: np.ndarray, has_missing: Tensor
) -> MissingStart:
    side = np.zeros(Z.shape[1]) if plan.side is None else plan.side
    if plan.mechanism == "censored":
        hard = hard_limits(Z, side, limits)
        return MissingStart("fixed", hard, hard.side.abs().float())
    know_signs = plan.mechanism == "self_masking_known"
    active = has_missing * torch.from_numpy(side).abs().float() if know_signs else has_missing
    return MissingStart("learnt", _gentle(Z, side), active, plan.link, know_signs)


def _gentle(Z: np.ndarray, side: np.ndarray) -> SelfMasking:
    """A soft mechanism at the ends of the observed values; one of side 0 has no slope yet."""
    ends = np.where(side > 0, np.nanmax(Z, axis=0), np.nanmin(Z, axis=0))
    threshold, width = np.where(side == 0, 0.0, ends), np.full(len(side), _FIRST_WIDTH)
    return SelfMasking(*(torch.from_numpy(part) for part in (side, threshold, width)))


def missing_model(
    start: MissingStart, own: Any, units: ColumnUnits, generator: torch.Generator
) -> MissingModel:
    """Build it; ``own`` is the user's module or callable."""
    return FORMS[start.form](start, own, units, generator)


def _ignored(start: MissingStart, own: Any, units: ColumnUnits, _: Any) -> MissingModel:
    return MissingModel(Ignored(), None)


def _fixed(start: MissingStart, own: Any, units: ColumnUnits, _: Any) -> MissingModel:
    assert start.mechanism is not None
    link = probit_of(SelfMasking(*(part.float() for part in start.mechanism)))
    return MissingModel(Collapsed(lambda: link, start.active), None)


def _learnt(start: MissingStart, own: Any, units: ColumnUnits, _: Any) -> MissingModel:
    assert start.mechanism is not None
    side, threshold, width = (part.float() for part in start.mechanism)
    factor = _LOGIT_OF_PROBIT if start.link == "logit" else 1.0
    slope = factor * side / width.clamp(min=_STEEPEST)
    signs = side if start.keep_signs else None
    module = SlopeAndThreshold(slope, threshold, signs=signs)
    link, active = LINKS[start.link], start.active
    return MissingModel(Collapsed(lambda: link(module, active), active), module)


def _agnostic(
    start: MissingStart, own: Any, units: ColumnUnits, generator: torch.Generator
) -> MissingModel:
    module = agnostic(len(units.kinds), generator=generator)
    return MissingModel(Sampled(module), module)


def _nonlinear(
    start: MissingStart, own: Any, units: ColumnUnits, generator: torch.Generator
) -> MissingModel:
    module = nonlinear(len(units.kinds), generator=generator)
    return MissingModel(Sampled(module), module)


def _own(start: MissingStart, own: Any, units: ColumnUnits, _: Any) -> MissingModel:
    """It takes rows in the units of the data."""
    if not callable(own):
        raise ValueError(
            "The imputer was fitted with a missing model of your own, but mechanism has been "
            "changed since; set it again."
        )
    # Dropout and its like would make what is imputed depend on the call and the batch.
    log_odds = deepcopy(own).eval().float() if isinstance(own, nn.Module) else own
    module = log_odds if isinstance(log_odds, nn.Module) else None

    def checked(rows: Tensor) -> Tensor:
        odds: Tensor = log_odds(values_of(rows, units))
        if not isinstance(odds, Tensor) or odds.shape != rows.shape:
            found = tuple(odds.shape) if isinstance(odds, Tensor) else type(odds).__name__
            raise ValueError(
                f"mechanism must give log odds of the shape of its rows, {tuple(rows.shape)}, "
                f"as a tensor; got {found}."
            )
        return odds

    return MissingModel(Sampled(checked), module)


FORMS: dict[str, Callable[[MissingStart, Any, ColumnUnits, Any], MissingModel]] = {
    "mar": _ignored,
    "fixed": _fixed,
    "learnt": _learnt,
    "agnostic": _agnostic,
    "nonlinear": _nonlinear,
    "own": _own,
}


def _probit(module: SlopeAndThreshold, active: Tensor) -> Link:
    return ProbitLink(active * module.slope(), active * module.intercept(), active)


def _logit(module: SlopeAndThreshold, active: Tensor) -> Link:
    return LogitLink(active * module.slope(), active * module.intercept(), active=active)


LINKS: dict[str, Callable[[SlopeAndThreshold, Tensor], Link]] = {
    "probit": _probit,
    "logit": _logit,
}
