"""A fitted latent-variable model as arrays and plain Python, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from skbilevel.estimators.column_units import ColumnUnits, units_of
from skbilevel.estimators.latent_build import Architecture, random_autoencoder
from skbilevel.estimators.latent_fit import NetworkFit
from skbilevel.estimators.latent_missing import MissingModel, MissingStart, missing_model
from skbilevel.estimators.latent_model import LatentModel
from skbilevel.estimators.latent_parts import NetworkParts, filled_by
from skbilevel.estimators.latent_plan import Plan
from skbilevel.estimators.linear_fit import LINEAR_FITS, LinearFit, no_mechanism
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.models.missing_mechanism import SlopeAndThreshold
from skbilevel.objectives.family import as_arrays, as_tensors
from skbilevel.objectives.normal import NormalParameters
from skbilevel.objectives.self_masking import SelfMasking
from skbilevel.objectives.tail_prior import TailPrior

# Only shapes matter of what stored weights are loaded into.
_ANY_SEED = 0


def linear_state(model: LinearModel) -> dict[str, Any]:
    """Of a linear model."""
    return {
        **as_arrays(model.parameters),
        **as_arrays(model.mechanism),
        "center": model.center,
        "column_scale": model.scale,
        "limit": model.limit,
    }


def linear_of(state: dict[str, Any]) -> LinearModel:
    """The inverse of `linear_state`."""
    parameters = NormalParameters(**_tensors(state, "location", "covariance"))
    mechanism = SelfMasking(**_tensors(state, *SelfMasking._fields))
    return LinearModel(
        parameters, mechanism, state["center"], state["column_scale"], state["limit"]
    )


def _tensors(state: dict[str, Any], *names: str) -> dict[str, Any]:
    return as_tensors({name: state[name] for name in names})


def tail_state(prior: TailPrior | None) -> dict[str, Any] | None:
    """Of a tail prior."""
    return None if prior is None else as_arrays(prior)


def tail_of(state: dict[str, Any] | None) -> TailPrior | None:
    """The inverse of `tail_state`."""
    return None if state is None else TailPrior(**as_tensors(state))


def network_state(
    model: LatentModel, missing: MissingModel, parts: NetworkParts
) -> dict[str, Any]:
    """Of a network."""
    architecture = {**vars(parts.architecture), "hidden": list(parts.architecture.hidden)}
    module = missing.module
    return {
        "architecture": architecture,
        "units": parts.units.state(),
        "means": parts.means,
        "start": _start_state(parts.missing),
        "seed": parts.seed,
        "n_importance": parts.n_importance,
        "encoder": module_state(model.encoder),
        "decoder": module_state(model.decoder),
        "missing": None if module is None else module_state(module),
    }


def network_of(
    state: dict[str, Any],
    linear: LinearModel | None,
    own: Any,
) -> LatentModel:
    """The inverse of `network_state`; ``own`` is the user's missing model, if it has one."""
    parts = parts_of(state)
    generator = torch.Generator().manual_seed(_ANY_SEED)
    encoder, decoder = random_autoencoder(parts.units, parts.architecture, generator)
    missing = missing_model(parts.missing, own, parts.units, generator)
    load_state(encoder, state["encoder"])
    load_state(decoder, state["decoder"])
    if missing.module is not None:
        load_state(missing.module, state["missing"])
    return LatentModel(
        encoder,
        decoder,
        missing.term,
        parts.units,
        filled_by(linear, parts),
        parts.seed,
        parts.n_importance,
    )


def parts_of(state: dict[str, Any]) -> NetworkParts:
    """What the state of a network says of its parts."""
    stored = dict(state["architecture"])
    image_shape = stored["image_shape"]
    stored["image_shape"] = None if image_shape is None else tuple(image_shape)
    return NetworkParts(
        Architecture(**{**stored, "hidden": tuple(stored["hidden"])}),
        units_of(state["units"]),
        state["means"],
        _start_of(state["start"]),
        state["seed"],
        state["n_importance"],
    )


# What is found is a self-masking mechanism, whether or not its signs were known.
_NAMES = {"self_masking_known": "self_masking"}
# What `MIWAEImputer` has no use for.
_OF_MECHANISM = (
    "mechanism_",
    "signs_",
    "thresholds_",
    "slopes_",
    "evidence_",
    "reliability_",
    "trust_",
)


def fitted_attributes(
    plan: Plan, linear: LinearFit | None, network: NetworkFit | None, X: np.ndarray
) -> dict[str, Any]:
    """All that an imputer stores, from what was fitted to the rows ``X`` (n, d)."""
    n_columns = len(plan.kinds)
    attributes: dict[str, Any] = {
        "_linear": None,
        "_network": None,
        "_tail": None,
        "mechanism_": _NAMES.get(plan.mechanism, plan.mechanism),
        **_mechanism_attributes(no_mechanism(n_columns), np.zeros(n_columns), np.ones(n_columns)),
        "evidence_": {},
        "reliability_": np.ones(n_columns),
        "trust_": np.ones(n_columns),
    }
    if linear is not None:
        attributes |= _linear_attributes(plan, linear, X)
    if network is not None:
        if linear is None:
            attributes |= _start_attributes(network.parts)
        attributes |= _network_attributes(network)
    hidden = _OF_MECHANISM if plan.ignores_mask else ()
    return {name: value for name, value in attributes.items() if name not in hidden}


def _network_attributes(network: NetworkFit) -> dict[str, Any]:
    model, parts = network.model, network.parts
    learnt = {} if network.missing.module is None else _learnt_attributes(network)
    return {
        "_network": network_state(model, network.missing, parts),
        "noise_scale_": np.where(
            parts.units.is_continuous,
            model.decoder.scale().detach().double().numpy() * parts.units.scale,
            np.nan,
        ),
        "n_latent_": parts.architecture.n_latent,
        "history_": {"bound": network.history},
        "n_iter_": len(network.history),
        "converged_": True,
        **learnt,
    }


def _linear_attributes(plan: Plan, linear: LinearFit, X: np.ndarray) -> dict[str, Any]:
    model = linear.model
    tail = None
    if plan.has_tail_prior and linear.is_hard.any():
        tail = model.tail_prior(X, linear.is_hard)
    ones = np.ones(len(model.center))
    location, covariance = model.parameters.location, model.parameters.covariance
    return {
        "_linear": linear_state(model),
        "_tail": tail_state(tail),
        "location_": model.center + model.scale * location.numpy(),
        "covariance_": covariance.numpy() * np.outer(model.scale, model.scale),
        "mechanism_": plan.mechanism if plan.mechanism not in LINEAR_FITS else linear.mechanism,
        **_mechanism_attributes(model.mechanism, model.center, model.scale),
        "evidence_": linear.evidence,
        "reliability_": ones if tail is None else tail.reliability.numpy(),
        "trust_": ones if tail is None else tail.trust.numpy(),
        "history_": {"bound": []},
        "n_iter_": linear.n_iter,
        "converged_": linear.converged,
    }


def _mechanism_attributes(
    mechanism: SelfMasking, center: np.ndarray, scale: np.ndarray
) -> dict[str, Any]:
    side, threshold, width = (part.numpy() for part in mechanism)
    with np.errstate(divide="ignore", over="ignore"):
        slopes = 1 / (width * scale)
    return {
        "signs_": side.astype(int),
        "thresholds_": np.where(side == 0, np.nan, center + scale * threshold),
        "slopes_": np.where(side == 0, np.nan, side * slopes),
    }


def _start_attributes(parts: NetworkParts) -> dict[str, Any]:
    """Of a self-masking mechanism that no linear model has told."""
    if parts.missing.mechanism is None:
        return {}
    found = _mechanism_attributes(
        parts.missing.mechanism, np.zeros_like(parts.units.center), np.ones_like(parts.units.scale)
    )
    return _in_data_units(found, parts.units)


def _in_data_units(found: dict[str, Any], units: ColumnUnits) -> dict[str, Any]:
    """Thresholds and slopes (d,) of a network in those of the data; a discrete column has values
    but no unit, and its slope is NaN."""
    slopes = np.where(units.is_continuous, found["slopes_"] / units.scale, np.nan)
    return {**found, "thresholds_": units.decoded(found["thresholds_"]), "slopes_": slopes}


def _learnt_attributes(network: NetworkFit) -> dict[str, Any]:
    """Of a self-masking mechanism that the network has learnt; nothing for another one."""
    module, units = network.missing.module, network.parts.units
    if not isinstance(module, SlopeAndThreshold):
        return {}
    active = network.parts.missing.active.numpy() > 0
    slope, threshold = (
        part.detach().double().numpy() for part in (module.slope(), module.threshold)
    )
    found = {
        "signs_": np.where(active, np.sign(slope), 0).astype(int),
        "thresholds_": np.where(active, threshold, np.nan),
        "slopes_": np.where(active, slope, np.nan),
    }
    return _in_data_units(found, units)


def _start_state(start: MissingStart) -> dict[str, Any]:
    mechanism = None if start.mechanism is None else as_arrays(start.mechanism)
    return {**vars(start), "mechanism": mechanism, "active": start.active.numpy()}


def _start_of(state: dict[str, Any]) -> MissingStart:
    mechanism = state["mechanism"]
    mechanism = None if mechanism is None else SelfMasking(**as_tensors(mechanism))
    active = torch.from_numpy(np.array(state["active"]))
    return MissingStart(**{**state, "mechanism": mechanism, "active": active})


def module_state(module: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers as arrays."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def load_state(module: nn.Module, state: dict[str, np.ndarray]) -> None:
    """The inverse of `module_state`."""
    module.load_state_dict(as_tensors(state))
