"""Imputation by deep latent-variable models: MIWAE and not-MIWAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skbilevel._sklearn import StrOptions
from skbilevel.estimators.imputer import Floats
from skbilevel.estimators.latent_imputer import LatentVariableImputer
from skbilevel.estimators.latent_missing import LINKS
from skbilevel.estimators.latent_plan import MECHANISMS, Plan, planned


class MIWAEImputer(LatentVariableImputer):
    """MIWAE.
    """

    def __init__(
        self,
        *,
        decoder: str = "residual",
        distribution: str | Sequence[str] = "gaussian",
        n_latent: int | None = None,
        hidden_layer_sizes: int | Sequence[int] = (64,),
        activation: str = "silu",
        image_shape: tuple[int, int, int] | None = None,
        objective: str = "iwae",
        n_importance: int = 5,
        n_importance_impute: int = 256,
        loss: str = "squared_error",
        quantile: float | None = None,
        min_scale: float = 0.1,
        batch_size: int = 64,
        max_iter: int | str = "auto",
        tol: float = 1e-3,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.05,
        missing_values: float = np.nan,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        random_state: Any = None,
    ):
        super().__init__(
            missing_values=missing_values,
            add_indicator=add_indicator,
            keep_empty_features=keep_empty_features,
        )
        self.decoder = decoder
        self.distribution = distribution
        self.n_latent = n_latent
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.image_shape = image_shape
        self.objective = objective
        self.n_importance = n_importance
        self.n_importance_impute = n_importance_impute
        self.loss = loss
        self.quantile = quantile
        self.min_scale = min_scale
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def _plan(self, X: Floats) -> Plan:
        return planned(self, X, self._names(~self.empty_features_), mechanism="mar")


class NotMIWAEImputer(LatentVariableImputer):
    """not-MIWAE.
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **LatentVariableImputer._parameter_constraints,
        "mechanism": [StrOptions(set(MECHANISMS)), callable],
        "signs": [None, "array-like", int, float],
        "limits": [None, "array-like", int, float],
        "link": [StrOptions(set(LINKS))],
        "tail_prior": [None, StrOptions({"reflection"})],
    }

    def __init__(
        self,
        *,
        mechanism: Any = "auto",
        signs: ArrayLike | None = None,
        limits: ArrayLike | None = None,
        link: str = "probit",
        tail_prior: str | None = "reflection",
        decoder: str = "residual",
        distribution: str | Sequence[str] = "gaussian",
        n_latent: int | None = None,
        hidden_layer_sizes: int | Sequence[int] = (64,),
        activation: str = "silu",
        image_shape: tuple[int, int, int] | None = None,
        objective: str = "iwae",
        n_importance: int = 5,
        n_importance_impute: int = 256,
        loss: str = "squared_error",
        quantile: float | None = None,
        min_scale: float = 0.1,
        batch_size: int = 64,
        max_iter: int | str = "auto",
        tol: float = 1e-3,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.05,
        missing_values: float = np.nan,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        random_state: Any = None,
    ):
        super().__init__(
            missing_values=missing_values,
            add_indicator=add_indicator,
            keep_empty_features=keep_empty_features,
        )
        self.mechanism = mechanism
        self.signs = signs
        self.limits = limits
        self.link = link
        self.tail_prior = tail_prior
        self.decoder = decoder
        self.distribution = distribution
        self.n_latent = n_latent
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.image_shape = image_shape
        self.objective = objective
        self.n_importance = n_importance
        self.n_importance_impute = n_importance_impute
        self.loss = loss
        self.quantile = quantile
        self.min_scale = min_scale
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def _plan(self, X: Floats) -> Plan:
        named = isinstance(self.mechanism, str)
        return planned(
            self,
            X,
            self._names(~self.empty_features_),
            mechanism=self.mechanism if named else "own",
            own=None if named else self.mechanism,
            signs=self.signs,
            limits=self.limits,
            link=self.link,
        )

    def _own_missing_model(self) -> Any:
        return None if isinstance(self.mechanism, str) else self.mechanism
