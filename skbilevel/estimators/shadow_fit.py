"""The tilt of a table, learnt from its shadow targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.shadow_targets import (
    RIDGE,
    column_target,
    free_loss,
    most_rows,
    outcome_target,
    target_columns,
)
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.normal import NormalParameters
from skbilevel.objectives.shadow_tilt import ShadowTarget, capped, losses, objective, tilt_of
from skbilevel.solvers.tilt import Rule, learn_tilt

# Deviations of the prior: of what all columns share, and the candidates for that of each.
_SHARED = 2.0
_CAP = 8.0
# A column with fewer missing cells has no tilt of its own to be learnt.
_FEWEST_MISSING = 10


@dataclass(frozen=True)
class TiltFit:
    """What shadow targets say of a table.

    Attributes
    ----------
    tilt : ndarray of shape (d,)
        Log odds of being missing per standard deviation of each column; 0 if not accepted.
    is_accepted : bool
    columns : list of int
        The columns that served as targets; -1 is y.
    gains, free_gains : ndarray of shape (t,)
        Of each target in nats: by the tilt, before it was accepted or not, and by free indicators.
    kept : ndarray of shape (t,), bool
        Targets that counted.
    """

    tilt: np.ndarray
    is_accepted: bool
    columns: list[int]
    gains: np.ndarray
    free_gains: np.ndarray
    kept: np.ndarray


@single_thread()
def fit_tilt(
    Z: np.ndarray,
    parameters: NormalParameters,
    rng: np.random.RandomState,
    *,
    y: np.ndarray | None = None,
    targets: str = "shadow",
    rule: Rule | None = None,
) -> TiltFit:
    """Learn the tilt.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows with NaN at missing cells.
    parameters : NormalParameters
        The normal that was fitted to them as if cells were missing at random.
    rng : RandomState
        Draws the folds, and the rows where there are too many.
    y : ndarray of shape (n, q), optional
        About standardised, NaN where there is no label.
    targets : {"shadow", "y", "both"}, default="shadow"
        Other columns, y, or both.
    rule : Rule, optional
    """
    columns = [] if targets == "y" else target_columns(Z)
    if targets != "shadow" and y is not None:
        columns = [*columns, -1]
    n_columns = Z.shape[1]
    active = np.isnan(Z).sum(axis=0) >= _FEWEST_MISSING
    if not columns or not active.any():
        none = np.zeros(len(columns))
        return TiltFit(np.zeros(n_columns), False, columns, none, none, none > 0)
    Z, y = _thinned(Z, y, most_rows(n_columns, len(columns)), rng)
    found, free = [], []
    for column in columns:
        own, missing = _target(Z, y, column, parameters, rng)
        found.append(own)
        free.append(free_loss(own, missing))
    return _learnt(found, torch.stack(free), torch.from_numpy(active), columns, rule or Rule())


def _learnt(
    targets: list[ShadowTarget], free: Tensor, active: Tensor, columns: list[int], rule: Rule
) -> TiltFit:
    at_random = losses(targets, torch.zeros(len(active), dtype=torch.float64), RIDGE)

    def tilt(theta: Tensor, own: float) -> Tensor:
        return tilt_of(theta, _SHARED, own) * active

    def gains(theta: Tensor, own: float) -> Tensor:
        return at_random - losses(targets, tilt(theta, own), RIDGE)

    def of_theta(theta: Tensor, own: float, kept: Tensor) -> Tensor:
        return objective(gains(theta, own)[kept], theta, _CAP)

    def counted(gained: Tensor) -> Tensor:
        return capped(gained, _CAP)

    found = learn_tilt(of_theta, gains, counted, at_random - free, len(active) + 1, rule)
    outer = found.outer
    return TiltFit(
        tilt(torch.from_numpy(outer.theta), outer.width).numpy(),
        outer.is_accepted,
        columns,
        found.inner.numpy(),
        (at_random - free).numpy(),
        outer.kept,
    )


def _target(
    Z: np.ndarray,
    y: np.ndarray | None,
    column: int,
    parameters: NormalParameters,
    rng: np.random.RandomState,
) -> tuple[ShadowTarget, Tensor]:
    """The target, and what is missing of the columns that predict it."""
    if column < 0:
        assert y is not None
        rows, others = ~np.isnan(y).any(axis=1), np.ones(Z.shape[1], dtype=bool)
        target = outcome_target(Z, y, parameters, rng)
    else:
        rows, others = ~np.isnan(Z[:, column]), np.arange(Z.shape[1]) != column
        target = column_target(Z, column, parameters, rng)
    missing = np.isnan(Z[rows][:, others]).astype(np.float64)
    return target, torch.from_numpy(missing)


def _thinned(
    Z: np.ndarray, y: np.ndarray | None, n_rows: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray | None]:
    if len(Z) <= n_rows:
        return Z, y
    index = np.sort(rng.choice(len(Z), n_rows, replace=False))
    return Z[index], None if y is None else y[index]
