"""Hand sample weights to any estimator of scikit-learn."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import numpy as np
from sklearn import config_context, get_config
from sklearn.base import clone
from sklearn.pipeline import Pipeline


def fit_weighted(estimator: Any, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Any:
    """A clone, fitted to rows whose weight is above 0.

    Raises
    ------
    TypeError
        If its ``fit`` takes no ``sample_weight``.
    """
    counts = weights > 0
    name = weight_name(estimator)
    # With routing each step of a Pipeline would have to be told what to do with weights.
    is_routed = get_config()["enable_metadata_routing"] and not isinstance(estimator, Pipeline)
    with config_context(enable_metadata_routing=is_routed):
        return clone(estimator).fit(X[counts], y[counts], **{name: weights[counts]})


def weight_name(estimator: Any) -> str:
    """The keyword of ``fit`` for weights; of a Pipeline that of its last step."""
    if isinstance(estimator, Pipeline):
        return f"{estimator.steps[-1][0]}__{weight_name(estimator.steps[-1][1])}"
    parameters = signature(estimator.fit).parameters
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    if "sample_weight" not in parameters and not takes_any:
        raise TypeError(
            f"estimator={estimator!r} cannot be used: its fit takes no sample_weight, so that it "
            "cannot tell rows apart."
        )
    return "sample_weight"
