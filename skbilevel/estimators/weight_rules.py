"""The weight of a row that was not there when weights were learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import log_expit

from skbilevel.estimators.density_weights import density_features
from skbilevel.estimators.label_gate import standardised
from skbilevel.estimators.label_graph import label_margins, told_by_neighbours
from skbilevel.estimators.linear_proxy import Sample, losses, margins
from skbilevel.estimators.loss_gate import gate_features
from skbilevel.objectives.linear_loss import SQUARED

Rule = dict[str, Any]


def log_weights(rule: Rule, rows: Sample, features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Logarithm of the weight in units of that of an average training row, (b,).

    Parameters
    ----------
    rule : dict
        Of a `WeightFit`.
    rows : Sample
    features : ndarray of shape (b, d)
        The rows without the constant.
    groups : ndarray of shape (b,), int
        -1 for one that was not there.
    """
    return _LOG_WEIGHTS[rule["kind"]](rule, rows, features, groups) - rule["log_level"]


def _log_linear(rule: Rule, rows: Sample, features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return density_features(features, rule) @ rule["phi"]


def _groups(rule: Rule, rows: Sample, features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    # The average, for a group that is not known.
    return np.append(rule["phi"], rule["log_level"])[groups]


def _loss_gate(rule: Rule, rows: Sample, features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    each = [losses(rows, theta[:, np.newaxis], SQUARED) for theta in rule["thetas"].T]
    return log_expit(gate_features(np.column_stack(each), rule["scale"]) @ rule["phi"])


def _label_gate(rule: Rule, rows: Sample, features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    told = told_by_neighbours(rule["nodes"], rule["told"], rule["scale"], features)
    each = np.column_stack([margins(rows, rule["theta"]), label_margins(told, rows.Y)])
    return log_expit(standardised(each, rule["units"])[0] @ rule["phi"])


_LOG_WEIGHTS: dict[str, Callable[..., np.ndarray]] = {
    "log_linear": _log_linear,
    "groups": _groups,
    "loss_gate": _loss_gate,
    "label_gate": _label_gate,
}
