"""What the two reweighting estimators have in common."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.utils import check_random_state

from skbilevel._sklearn import (
    CallbackSupportMixin,
    FitLoop,
    HasMethods,
    Interval,
    StrOptions,
    check_is_fitted,
    column_or_1d,
    fit_method,
    validate_data,
    warn_user,
)
from skbilevel.estimators.free_weights import SOLVERS, STOPPED, Algorithm
from skbilevel.estimators.linear_head import DEFAULT_L2, RidgeHead, SoftmaxHead, Units, head_with
from skbilevel.estimators.reweighting_fit import (
    Problem,
    equal_attributes,
    final_weights_of,
    learnt_attributes,
    problem_of,
    sample_of,
    warn_of_weights,
    weights_by_rule,
)
from skbilevel.estimators.reweighting_rows import Given, Rows, groups_of, rows_of, target_index
from skbilevel.estimators.weight_families import FAMILIES
from skbilevel.estimators.weight_learning import Learnt, Plan, learn
from skbilevel.estimators.weighted_fit import fit_weighted, weight_name
from skbilevel.numerics.random import draw_seed
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.reweighting import PARAMETRISATIONS
from skbilevel.solvers.weight_descent import Descent

# What only some fits leave.
_OPTIONAL = ("coef_", "intercept_", "suggested_labels_")


def final_has(name: str) -> Callable[[Any], bool]:
    """Whether the final estimator of a model has that method."""

    def check(model: Any) -> bool:
        final = getattr(model, "estimator_", None)
        final = model._final(DEFAULT_L2) if final is None else final
        getattr(final, name)
        return True

    return check


class Again(NamedTuple):
    """Rows that the final estimator sees besides, and what is told of them.

    Attributes
    ----------
    X, y, weights : ndarray of shape (b, d), (b,) and (b,)
    attributes : dict
    """

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    attributes: dict[str, Any]


class Reweighting(CallbackSupportMixin, BaseEstimator):
    """What the regressor and the classifier have in common."""

    # Sent on by a Pipeline or a search where routing is enabled, without a request for each.
    __metadata_request__fit = {  # noqa: RUF012
        "X_val": True,
        "y_val": True,
        "sample_weight_val": True,
        "is_target": True,
        "source_groups": True,
    }
    _parameter_constraints: dict = {  # noqa: RUF012
        "estimator": [HasMethods(["fit", "predict"]), None],
        "weighting": [StrOptions({"auto", *FAMILIES})],
        "solver": [StrOptions(set(SOLVERS))],
        "parametrization": [StrOptions(set(PARAMETRISATIONS))],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [StrOptions({"significance"}), None],
        "outer_rate": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "inner_rate": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean"],
        "l2": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "kl": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "n_folds": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left")],
        "n_groups": [Interval(Integral, 1, None, closed="left")],
        "refit": [StrOptions({"all", "train"}), None],
        "standardize": ["boolean"],
        "fit_intercept": ["boolean"],
        "target_column": [str, Integral, None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "random_state": ["random_state"],
    }
    _has_numbers: bool
    _n_folds: int

    def __init__(
        self,
        estimator: Any = None,
        *,
        weighting: str = "auto",
        solver: str = "exact",
        parametrization: str = "mirror",
        max_iter: int = 30,
        tol: str | None = None,
        outer_rate: str | float = "auto",
        inner_rate: str | float = "auto",
        early_stopping: bool = True,
        l2: str | float = "auto",
        kl: str | float = "auto",
        n_folds: str | int = "auto",
        n_groups: int = 4,
        refit: str | None = "all",
        standardize: bool = True,
        fit_intercept: bool = True,
        target_column: str | int | None = None,
        validation_fraction: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.weighting = weighting
        self.solver = solver
        self.parametrization = parametrization
        self.max_iter = max_iter
        self.tol = tol
        self.outer_rate = outer_rate
        self.inner_rate = inner_rate
        self.early_stopping = early_stopping
        self.l2 = l2
        self.kl = kl
        self.n_folds = n_folds
        self.n_groups = n_groups
        self.refit = refit
        self.standardize = standardize
        self.fit_intercept = fit_intercept
        self.target_column = target_column
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    @fit_method
    @single_thread()
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
        sample_weight_val: ArrayLike | None = None,
        is_target: ArrayLike | None = None,
        source_groups: ArrayLike | None = None,
    ) -> Self:
        """Learn the weights, and fit the final estimator with them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, and target rows if ``is_target`` or ``target_column`` says which.
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts, before weights are learnt: frequencies, not shares.
        X_val, y_val : array-like of shape (n_val, n_features) and (n_val,), default=None
            Target rows.
        sample_weight_val : array-like of shape (n_val,), default=None
            How often each of them counts.
        is_target : array-like of bool of shape (n_samples,), default=None
            Which rows of ``X`` are target rows.
        source_groups : array-like of shape (n_samples,), default=None
            Where each training row is from, for "group" and "auto".

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If target rows are told in two ways, a mask is not boolean or not as long as ``X``,
            there are fewer than two target rows or no training row, values are missing, or
            ``refit=None`` goes with something else than the solver of "sample", or ``tol``
            with something else than "group"; the estimator is then left as it was.
        FloatingPointError
            If the steps of "sample" leave the range of numbers.
        TypeError
            If the final estimator takes no weights, or is of the other kind.

        Warns
        -----
        UserWarning
            Without any target row: all rows then count alike, times ``sample_weight``. If
            ``X_val`` looks as if it were on another scale than ``X``, or has as many rows. If
            ``sample_weight`` is below .1 on average. If the effective sample size is below the
            number of coefficients or of target rows.
        ConvergenceWarning
            If the target's loss has grown by the steps of "sample", for rates that are too large.
        """
        if self.tol is not None and self.weighting != "group":
            raise ValueError(
                f"tol={self.tol!r} needs weighting='group', which has few parameters, not "
                f"weighting={self.weighting!r}."
            )
        if self.refit is None and (self.weighting != "sample" or self.estimator is not None):
            raise ValueError(
                "refit=None keeps the parameters of the solver of weighting='sample': it needs "
                "that weighting, and estimator=None."
            )
        given = Given(
            X, y, sample_weight, X_val, y_val, sample_weight_val, is_target, source_groups
        )
        seed = draw_seed(check_random_state(self.random_state))
        rows = rows_of(self, given, seed)
        classes = self._classes_of(rows)
        self._check_final()
        for name in _OPTIONAL:
            self.__dict__.pop(name, None)
        if not len(rows.target):
            self.__dict__.update(self._without_target(rows, classes))
            return self
        problem = problem_of(rows, classes, self, seed)
        plan = self._plan(problem)
        report = FitLoop(self, X, y, plan.n_steps)
        learnt = learn(
            problem.task,
            plan,
            lambda current: report.step(lambda: self._attributes(problem, current())),
        )
        fitted = self._attributes(problem, learnt)
        self.__dict__.update(fitted)
        warn_of_weights(problem, learnt, fitted["effective_sample_size_"], self.solver)
        report.end(fitted)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the training rows, so that pickles and files stay small."""
        state = super().__getstate__()
        return {**state, "_training": None} if "_training" in state else state

    def _classes_of(self, rows: Rows) -> np.ndarray | None:
        """None for numbers."""
        return None

    def _check_final(self) -> None:
        final = self._final(DEFAULT_L2)
        weight_name(final)
        if (is_classifier if self._has_numbers else is_regressor)(final):
            kind = "regressor" if self._has_numbers else "classifier"
            raise TypeError(f"estimator={final!r} cannot be used: a {kind} is needed.")

    @property
    def _inner_ridge(self) -> float:
        return DEFAULT_L2 if self.l2 == "auto" else float(self.l2)

    def _plan(self, problem: Problem) -> Plan:
        inner = self.inner_rate
        if inner == "auto":
            inner = 0.5 / float(np.square(problem.task.train.X).sum(axis=1).max())
        outer: float | None = None
        if self.outer_rate != "auto":
            outer = float(self.outer_rate)
        elif self.solver != "exact":
            outer = float(inner)
        # Where held-out rows stop it, inner problems need not be exact.
        tol = STOPPED.tol if self.early_stopping else Descent.tol
        descent = Descent(self.max_iter, outer, float(inner), tol)
        return Plan(
            self.weighting,
            Algorithm(self.solver, self.parametrization, descent),
            self.early_stopping,
            None if self.l2 == "auto" else (float(self.l2),),
            self._n_folds if self.n_folds == "auto" else int(self.n_folds),
        )

    def _attributes(self, problem: Problem, learnt: Learnt) -> dict[str, Any]:
        attributes = learnt_attributes(problem, learnt)
        rows, head = problem.rows, self._final(attributes["l2_"])
        theta = learnt.selected.fit.theta
        weights = final_weights_of(problem, learnt, with_target=self.refit == "all")
        again = self._again(problem, learnt)
        if self.refit is None and theta is not None:
            final = head_with(head, problem.units, theta, rows.X, problem.classes)
        elif not weights.any():
            raise ValueError(
                "refit='train' leaves no row: the weights are those of target rows alone."
            )
        else:
            X, y = np.vstack([rows.X, again.X]), np.concatenate([rows.y, again.y])
            final = fit_weighted(head, X, y, np.concatenate([weights, again.weights]))
        told = {"estimator_": final, "sample_weight_": weights, **_linear(final, rows)}
        return {**attributes, **told, **again.attributes}

    def _again(self, problem: Problem, learnt: Learnt) -> Again:
        """Rows that come back in another form: none."""
        return Again(problem.rows.X[:0], problem.rows.y[:0], np.zeros(0), {})

    def _without_target(self, rows: Rows, classes: np.ndarray | None) -> dict[str, Any]:
        """Equal weights, times those that are given."""
        warn_user(
            f"{type(self).__name__} got no target rows: all rows weigh the same, times "
            "sample_weight. Pass is_target, or X_val and y_val, or set target_column or "
            "validation_fraction."
        )
        l2 = self._inner_ridge
        final = fit_weighted(self._final(l2), rows.X, rows.y, rows.counts)
        told = {"estimator_": final, "sample_weight_": rows.counts, **_linear(final, rows)}
        return {**equal_attributes(rows, l2), **told}

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict by the final estimator.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            With the target column, if there was one; what it holds does not matter.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        rows = self._features(X)
        return self.estimator_.predict(rows)

    def weights_for(
        self, X: ArrayLike, y: ArrayLike, source_groups: ArrayLike | None = None
    ) -> np.ndarray:
        """Weights that rows would have had, in units of the average training row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        source_groups : array-like of shape (n_samples,), default=None
            Where the estimator was fitted with groups; an unknown group counts as the average.

        Returns
        -------
        ndarray of shape (n_samples,)
            A gate looks at a new row by models of all rows, so that a training row can get
            another weight than it had in the fit, where it was held out. Free weights of rows say
            nothing of other rows, and in a mixture count as 1.

        Raises
        ------
        ValueError
            With ``weighting="sample"``, if weights are those of ``source_groups`` and none are
            given, or if ``y`` has a class that was not there.
        """
        check_is_fitted(self)
        if self.weighting == "sample":
            raise ValueError("weighting='sample' has no weights for rows that were not there.")
        given, labels = validate_data(
            self, X, y, dtype=np.float64, reset=False, y_numeric=self._has_numbers
        )
        if self._rule is None:
            return np.ones(len(given))
        units = Units(**self._rule["units"])
        classes = getattr(self, "classes_", None)
        labels = column_or_1d(labels)
        if classes is not None and (unknown := set(labels.tolist()) - set(classes.tolist())):
            raise ValueError(
                f"y has classes that were not there in fit, {list(unknown)}; those that were are "
                f"{classes.tolist()}."
            )
        known = self._without_column(given), labels, np.ones(len(given))
        rows = sample_of(*known, units, classes)
        groups = groups_of(source_groups, len(given))
        has_sources = self._rule["grouping"]["sources"] is not None
        if self.weighting == "group" and has_sources and groups is None:
            raise ValueError("source_groups is needed: weights were learnt for groups.")
        return weights_by_rule(self._rule, rows, groups)

    def _final(self, l2: float) -> Any:
        if self.estimator is not None:
            return self.estimator
        return self._head(l2, standardize=self.standardize, fit_intercept=self.fit_intercept)

    def _features(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        return self._without_column(validate_data(self, X, dtype=np.float64, reset=False))

    def _without_column(self, X: np.ndarray) -> np.ndarray:
        column = target_index(self)
        return X if column is None else np.delete(X, column, axis=1)


def _linear(final: Any, rows: Rows) -> dict[str, Any]:
    """Coefficients of the linear default, and its rows, which tests of its gradient look at."""
    if not isinstance(final, RidgeHead | SoftmaxHead):
        return {"_training": None}
    training = {"X": rows.X, "y": rows.y, "groups": rows.groups}
    return {"coef_": final.coef_, "intercept_": final.intercept_, "_training": training}
