"""The fitted attributes of `GaussianImputer`, in the units of the data."""

from dataclasses import asdict
from typing import Any

import numpy as np

from skbilevel.objectives.family import Family, as_arrays
from skbilevel.solvers.em import EMResult


def fitted_state(
    kind: tuple[str, bool],
    family: Family,
    result: EMResult,
    n_observed: np.ndarray,
    center: np.ndarray,
    scale: np.ndarray,
) -> dict[str, Any]:
    """All attributes that follow from a result of EM.

    Parameters
    ----------
    kind : tuple
        Key of the family in ``KINDS``.
    family : Family
        What was fitted.
    result : EMResult
        In standardised units.
    n_observed : ndarray of shape (d,), int
        Number of observed cells of each column.
    center, scale : ndarray of shape (d,)
        Units of the columns.
    """
    n_rows = int(result.sums.n_rows)
    log_units = float(n_observed @ np.log(scale)) / n_rows
    return {
        "_kind": kind,
        "_family": asdict(family),  # type: ignore[call-overload]
        "_sums": as_arrays(result.sums),
        "n_samples_seen_": n_rows,
        "shrinkage_": float(family.shrinkage),
        "n_iter_": max(result.n_iter, 1),
        "converged_": bool(result.converged),
        "history_": {
            name: [value - log_units for value in values]
            for name, values in result.history.items()
        },
        **distribution(result.inner, center, scale),
    }


def distribution(parameters: Any, center: np.ndarray, scale: np.ndarray) -> dict[str, Any]:
    """The attributes that follow from parameters in standardised units."""
    arrays = as_arrays(parameters)
    attributes: dict[str, Any] = {
        "_parameters": arrays,
        "location_": center + scale * arrays["location"],
    }
    if "loadings" in arrays:
        loadings = arrays["loadings"] * scale[:, np.newaxis]
        noise = np.exp(arrays["log_noise"]) * scale**2
        attributes |= {
            "loadings_": loadings,
            "noise_variance_": noise,
            "n_factors_": loadings.shape[1],
            "covariance_": loadings @ loadings.T + np.diag(noise),
        }
    else:
        attributes["covariance_"] = arrays["covariance"] * np.outer(scale, scale)
    if "log_degrees" in arrays:
        attributes["degrees_of_freedom_"] = float(np.exp(arrays["log_degrees"]))
    return attributes
