"""The fit that MIWAE and not-MIWAE share, and what they do once fitted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from skbilevel._sklearn import (
    CallbackSupportMixin,
    ConvergenceWarning,
    FitLoop,
    Interval,
    StrOptions,
    check_is_fitted,
    fit_method,
    warn_user,
)
from skbilevel.estimators.column_knowledge import named
from skbilevel.estimators.column_units import DISTRIBUTIONS, units_of
from skbilevel.estimators.imputer import Floats, Imputer, RowCompleter
from skbilevel.estimators.latent_fit import NetworkFit, fit_linear, fit_network
from skbilevel.estimators.latent_model import OBJECTIVES, LatentModel
from skbilevel.estimators.latent_plan import Plan, checked_quantile
from skbilevel.estimators.latent_state import (
    fitted_attributes,
    linear_of,
    network_of,
    tail_of,
)
from skbilevel.estimators.linear_fit import LinearFit, Table
from skbilevel.estimators.linear_model import LinearModel
from skbilevel.estimators.probabilistic import ProbabilisticImputer, RowDrawer, RowScorer
from skbilevel.estimators.tail_imputation import TailImputation
from skbilevel.models.latent_variable import DECODERS
from skbilevel.models.mlp import ACTIVATIONS
from skbilevel.numerics.observed import mean_and_deviation
from skbilevel.numerics.random import draw_seed
from skbilevel.numerics.row_groups import row_blocks
from skbilevel.numerics.threads import single_thread

_AT_LEAST_1 = Interval(Integral, 1, None, closed="left")
_ABOVE_0 = Interval(Real, 0, None, closed="neither")
_FROM_0 = Interval(Real, 0, None, closed="left")
LOSSES = ("squared_error", "absolute_error", "quantile")
# Importance sampling that rests on fewer samples than this, in the median row, is warned of.
_FEWEST_EFFECTIVE = 5.0
_ROWS_FOR_ESS = 100


class LatentVariableImputer(CallbackSupportMixin, ProbabilisticImputer):
    """Base of `MIWAEImputer` and `NotMIWAEImputer`, which say what is known of the mask."""

    _parameter_constraints: dict = {  # noqa: RUF012
        **Imputer._parameter_constraints,
        "decoder": [StrOptions(set(DECODERS))],
        "distribution": [StrOptions(set(DISTRIBUTIONS)), "array-like", dict],
        "n_latent": [None, _AT_LEAST_1],
        "hidden_layer_sizes": ["array-like", _AT_LEAST_1],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "image_shape": [None, tuple],
        "objective": [StrOptions(set(OBJECTIVES))],
        "n_importance": [_AT_LEAST_1],
        "n_importance_impute": [_AT_LEAST_1],
        "loss": [StrOptions(set(LOSSES))],
        "quantile": [None, Interval(Real, 0, 1, closed="neither")],
        "min_scale": [_ABOVE_0],
        "batch_size": [_AT_LEAST_1],
        "max_iter": [StrOptions({"auto"}), _AT_LEAST_1],
        "tol": [_FROM_0],
        "learning_rate": [_ABOVE_0],
        "weight_decay": [_FROM_0],
        "random_state": ["random_state"],
    }

    n_iter_: int
    converged_: bool
    _linear: dict[str, Any] | None
    _network: dict[str, Any] | None
    _tail: dict[str, Any] | None

    def __init__(
        self,
        *,
        decoder: str = "residual",
        distribution: str | Sequence[str] | Mapping[str, str] = "gaussian",
        n_latent: int | None = None,
        hidden_layer_sizes: int | Sequence[int] = (64,),
        activation: str = "silu",
        image_shape: tuple[int, int, int] | None = None,
        objective: str = "iwae",
        n_importance: int = 5,
        n_importance_impute: int = 128,
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

    def _validate_incomplete(self, X: ArrayLike, *, reset: bool) -> Floats:
        rows = super()._validate_incomplete(X, reset=reset)
        if not reset:
            self._warn_of_unknown_values(self._fitted_columns(self._with_nan(rows)))
        return rows

    def _warn_of_unknown_values(self, rows: Floats) -> None:
        if self._network is None:
            return
        unknown = units_of(self._network["units"]).unknown(rows)
        if unknown.any():
            names = named(self._names(~self.empty_features_), unknown)
            warn_user(f"Columns {names} hold values unseen at fit, which count as the nearest.")

    @abstractmethod
    def _plan(self, X: Floats) -> Plan:
        """What to fit to the columns that are not empty."""

    @fit_method
    @single_thread()
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit the model to the observed cells of ``X``, and to which cells are missing.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, with missing cells.
        y : array-like, default=None
            Ignored; handed to callbacks.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If ``X`` has infinite or non-numeric values or no observed cell, or a parameter is
            out of range or contradicts the data; the estimator is then left as it was.
        FloatingPointError
            If the training of a network diverges.
        """
        incomplete = self._start_fit(X)
        plan = self._plan(incomplete)
        rng = check_random_state(self.random_state)
        self._seed = draw_seed(rng)
        units = mean_and_deviation(incomplete, self._names(~self.empty_features_))
        report = FitLoop(self, X, y, plan.n_steps)
        linear = network = None
        if plan.is_warm:
            linear = self._fit_linear(plan, Table(incomplete, *units), rng, report)
        if plan.architecture is not None and not (linear is not None and report.stopped):
            network = self._fit_network(plan, linear, Table(incomplete, *units), report)
        fitted = fitted_attributes(plan, linear, network, incomplete)
        self.__dict__.update(fitted)
        report.end(fitted)
        self._warn(report.stopped, incomplete)
        return self

    def _fit_linear(
        self, plan: Plan, table: Table, rng: np.random.RandomState, report: FitLoop
    ) -> LinearFit:
        def on_step(current: Any) -> bool:
            return report.step(lambda: fitted_attributes(plan, current(), None, table.X))

        return fit_linear(plan, table, self.tol, rng, on_step)

    def _fit_network(
        self, plan: Plan, linear: LinearFit | None, table: Table, report: FitLoop
    ) -> NetworkFit:
        def on_epoch(current: NetworkFit) -> bool:
            return report.step(lambda: fitted_attributes(plan, linear, current, table.X))

        seed = self._seed % 2**32
        return fit_network(plan, linear, table, seed, self.n_importance_impute, on_epoch)

    def _warn(self, stopped: bool, X: Floats) -> None:
        if not (self.converged_ or stopped or self._network):
            warn_user(
                f"{type(self).__name__} did not converge in {self.n_iter_} iterations; "
                "increase max_iter or tol.",
                ConvergenceWarning,
            )
        network = self._fitted_network()
        index = np.flatnonzero(np.isnan(X).any(axis=1))
        rows = X[index[:: max(1, -(-len(index) // _ROWS_FOR_ESS))]]
        if network is None or len(rows) == 0:
            return
        size = float(np.median(network.effective_sizes(rows)))
        if size < _FEWEST_EFFECTIVE:
            warn_user(
                f"Half of the incomplete rows rest on at most {size:.1f} effective importance "
                "samples; increase n_importance_impute, or train longer by max_iter. "
                "effective_sample_size(X) tells it by row."
            )

    def _completer(self) -> RowCompleter:
        network, linear = self._fitted_network(), self._fitted_linear()
        tail = tail_of(self._tail)
        if tail is None or linear is None or self.loss == "quantile":
            return self._filler(self._fitted_model())
        of_network = None if network is None else self._filler(network)
        return TailImputation(linear, tail, self._filler(linear), of_network).completed

    def _filler(self, model: LatentModel | LinearModel) -> RowCompleter:
        """Missing cells at what the loss asks for."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be of {LOSSES}, got {self.loss!r}.")
        if self.loss == "squared_error":
            return model.completed
        level = 0.5 if self.loss == "absolute_error" else checked_quantile(self)
        return lambda rows: model.quantile(rows, level)

    def _drawer(self, n_draws: int) -> RowDrawer:
        model = self._fitted_model()
        return lambda rows, keys: model.drawn(rows, keys, n_draws)

    def _scorer(self) -> RowScorer:
        return self._fitted_model().log_densities

    def _fitted_model(self) -> LatentModel | LinearModel:
        """The network, or the linear model where it is all."""
        model = self._fitted_network() or self._fitted_linear()
        assert model is not None
        return model

    def _fitted_linear(self) -> LinearModel | None:
        return None if self._linear is None else linear_of(self._linear)

    def _fitted_network(self) -> LatentModel | None:
        if self._network is None:
            return None
        return network_of(self._network, self._fitted_linear(), self._own_missing_model())

    def _own_missing_model(self) -> Any:
        """The user's module or callable, if there is one."""
        return None

    @single_thread()
    def effective_sample_size(self, X: ArrayLike) -> NDArray[np.float64]:
        """Effective number of importance samples behind what is imputed in each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            Between 1 and ``n_importance_impute``; infinite for the normal, which samples
            nothing.
        """
        check_is_fitted(self)
        X = self._incomplete(X)
        network = self._fitted_network()
        if network is None:
            return np.full(len(X), np.inf)
        sizes = [network.effective_sizes(X[block]) for block in row_blocks(X)]
        # Where all weights underflow one sample is as good as any other.
        return np.nan_to_num(np.concatenate(sizes), nan=1.0)
