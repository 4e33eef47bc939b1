"""The one place that touches scikit-learn names that may move: validation, callbacks, tags."""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any, TypeVar

from sklearn.base import _fit_context
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning
from sklearn.impute import MissingIndicator
from sklearn.utils._missing import is_scalar_nan
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import (
    _check_feature_names_in,
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

__all__ = [
    "UNUSED",
    "CallbackSupportMixin",
    "ConvergenceWarning",
    "DataConversionWarning",
    "FitLoop",
    "HasMethods",
    "Interval",
    "MissingIndicator",
    "Parallel",
    "StrOptions",
    "check_is_fitted",
    "check_sample_weight",
    "column_or_1d",
    "delayed",
    "fit_method",
    "input_feature_names",
    "is_scalar_nan",
    "validate_data",
    "warn_user",
]

_LIBRARIES = ("skbilevel.", "sklearn.", "joblib.", "contextlib", "threading", "concurrent.")
Method = TypeVar("Method", bound=Callable[..., Any])


def fit_method(method: Method) -> Method:
    """Decorate ``fit`` or ``partial_fit``: parameters are checked, callbacks are run down, and an
    error leaves the estimator as it was before the call."""
    checked = _fit_context(prefer_skip_nested_validation=True)(with_callbacks(method))

    @wraps(method)
    def all_or_nothing(estimator: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(vars(estimator))
        try:
            return checked(estimator, *args, **kwargs)
        except BaseException:
            vars(estimator).clear()
            vars(estimator).update(before)
            raise

    return all_or_nothing  # type: ignore[return-value]


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside of this package, scikit-learn and joblib that led here."""
    frame: FrameType | None = sys._getframe()
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def check_sample_weight(sample_weight: Any, X: Any, name: str = "sample_weight") -> Any:
    """Non-negative float64 weights of the rows, (n,), that are not all zero."""
    try:
        return _check_sample_weight(sample_weight, X, dtype=float, ensure_non_negative=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def input_feature_names(estimator: Any, input_features: Any) -> Any:
    """Names of the input features: the given, those seen at fit, or x0, x1, ..."""
    return _check_feature_names_in(estimator, input_features)


class FitLoop:
    """Reports the iterations of a loop to the callbacks that a user has set.

    Parameters
    ----------
    estimator : estimator with `CallbackSupportMixin`
        The estimator being fitted.
    X, y : array-like
        What it is fitted on; y may be None.
    max_steps : int
        Most calls of `step`.

    Attributes
    ----------
    stopped : bool
        Whether a callback has asked to stop, at any step.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, max_steps: int):
        self._data = {"estimator": estimator, "X": X, "y": y}
        self._context = estimator._init_callback_context(max_subtasks=max_steps)
        self._context.call_on_fit_task_begin(**self._data)
        self.stopped = False

    def step(self, attributes: Callable[[], dict[str, Any]], task_name: str = "iteration") -> bool:
        """Report one iteration; True if a callback asks to stop, or has asked before.

        ``attributes()`` are all fitted attributes if the fit ended here; it is called only if a
        callback asks for a fitted estimator.
        """
        task = self._context.subcontext(task_name=task_name)
        task.call_on_fit_task_begin(**self._data)
        self.stopped |= self._end(task, attributes)
        return self.stopped

    def end(self, attributes: dict[str, Any]) -> None:
        """Report that the fit is over."""
        self._end(self._context, attributes)

    def _end(self, context: Any, attributes: Any) -> bool:
        return context.call_on_fit_task_end(**self._data, reconstruction_attributes=attributes)
