"""A scorer of imputers that needs neither y nor the truth."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from skbilevel.metrics.imputation import (
    ERRORS,
    check_fraction,
    deviations,
    pooled_error,
    without_nan,
)
from skbilevel.tables import Array, check_numbers, read_numbers, select, with_columns


def make_masked_scorer(
    *,
    fraction: float = 0.2,
    n_repeats: int = 1,
    metric: str = "rmse",
    scale: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> "MaskedScorer":
    """Scorer of imputers that hides observed cells of X and needs neither y nor the truth.

    Pass it as ``scoring`` to ``GridSearchCV`` or ``cross_val_score``, for an imputer or a Pipeline
    of transformers that mark missing cells by NaN (a ``ColumnTransformer`` needs
    ``verbose_feature_names_out=False``, so that its columns keep their names). The truth of a
    hidden cell is what ``transform`` gives when it is not hidden: its value for an imputer, its
    rescaled value after a scaler. Columns are matched by feature names: extra columns
    (indicators) are ignored, and cells of dropped columns do not count. Nor do columns of a
    DataFrame that do not hold numbers: nothing is hidden in them.

    Parameters
    ----------
    fraction : float in (0, 1), default=0.2
        Share of the observed cells to hide at random; one cell of each row is always left.
    n_repeats : int, default=1
        Number of times that cells are drawn; the errors are averaged.
    metric : {"rmse", "mae"}, default="rmse"
        Error over the hidden cells, in standard deviations (``ddof=0``) of the observed cells of
        their column of ``transform(X)``; 1 for a constant column.
    scale : float or array-like of shape (n_features,), default=None
        Units to use instead of those deviations, for example of the whole table: in small or
        sorted folds a column can hardly vary, and would then decide the score.
    random_state : int, RandomState instance or None, default=None
        The cells depend on it and on which cells of X are observed only: all candidates of a
        search are scored on the same ones. None and an instance give a seed once, here.

    Returns
    -------
    scorer : MaskedScorer
        Callable ``scorer(estimator, X, y=None)`` that returns minus the error; can be pickled.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.impute import KNNImputer
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skbilevel.metrics import make_masked_scorer
    >>> t = np.linspace(0, 1, 40)
    >>> X = np.column_stack([t, 2 * t, 3 * t])
    >>> scorer = make_masked_scorer(random_state=0)
    >>> search = GridSearchCV(KNNImputer(), {"n_neighbors": [1, 30]}, scoring=scorer).fit(X)
    >>> search.best_params_
    {'n_neighbors': 1}
    """
    check_fraction("fraction", fraction)
    if not (isinstance(n_repeats, Integral) and n_repeats >= 1):
        raise ValueError(f"n_repeats must be an integer of at least 1, got {n_repeats!r}")
    if metric not in ERRORS:
        raise ValueError(f"metric must be one of {list(ERRORS)}, got {metric!r}")
    rng = check_random_state(random_state)
    seed = random_state if isinstance(random_state, Integral) else rng.randint(2**31 - 1)
    units = None if scale is None else tuple(np.ravel(np.asarray(scale, dtype=float)).tolist())
    if units is not None and not all(0 < unit < np.inf for unit in units):
        raise ValueError(f"scale must be positive, got {scale!r}")
    return MaskedScorer(float(fraction), int(n_repeats), metric, int(seed), units)


@dataclass(frozen=True)
class MaskedScorer:
    """Minus the error at hidden cells; made by :func:`make_masked_scorer`."""

    fraction: float
    n_repeats: int
    metric: str
    seed: int
    scale: tuple[float, ...] | None = None

    def __call__(self, estimator: Any, X: Any, y: Any = None) -> float:
        """Score a fitted transformer on X; y is not used."""
        _check_marks_missing_by_nan(estimator)
        values, numeric = read_numbers(X)
        if not numeric.any():
            raise ValueError("X has no column of numbers: there is no cell to hide")
        truth = _transformed(estimator, X, numeric)
        truth[np.isnan(values)] = np.nan
        unit = deviations(truth) if self.scale is None else np.array(self.scale)
        if unit.size not in (1, values.shape[1]):
            raise ValueError(f"scale must have one unit for each of {values.shape[1]} columns")
        rng = check_random_state(self.seed)
        errors = []
        for _ in range(self.n_repeats):
            hidden = np.zeros(values.shape, dtype=bool)
            hidden[:, numeric] = _hidden_cells(~np.isnan(values[:, numeric]), self.fraction, rng)
            reduced = np.where(hidden, np.nan, values)
            reduced = with_columns(X, np.flatnonzero(numeric), reduced)
            imputed = _transformed(estimator, reduced, numeric)
            errors.append(self._error(imputed, truth, unit, hidden))
        return -float(np.mean(errors))

    def _error(self, imputed: Array, truth: Array, unit: Array, hidden: Array) -> float:
        cells = hidden & ~np.isnan(truth)
        if not cells.any():
            raise ValueError("all hidden cells are in columns that the estimator dropped")
        filled = without_nan("transform(X)", imputed[cells])
        return pooled_error(
            self.metric, filled, truth[cells], np.broadcast_to(unit, cells.shape)[cells]
        )


def _check_marks_missing_by_nan(estimator: Any) -> None:
    """Cells are hidden by NaN, which is a value like others to an imputer of -999."""
    if not hasattr(estimator, "transform"):
        raise TypeError(f"a masked scorer needs transform, which {estimator!r} does not have")
    parameters = estimator.get_params() if hasattr(estimator, "get_params") else {}
    for name, value in parameters.items():
        is_nan = value != value if isinstance(value, Real) else type(value).__name__ == "NAType"
        if name.split("__")[-1] == "missing_values" and not is_nan:
            raise ValueError(f"{name} must be NaN for a masked scorer, got {value!r}")


def _hidden_cells(observed: Array, fraction: float, rng: np.random.RandomState) -> Array:
    """That share of the observed cells, drawn without replacement; never a row's last one."""
    key = np.where(observed, rng.random_sample(observed.shape), -1.0)
    free = observed.copy()
    free[np.arange(len(key)), key.argmax(axis=1)] = False
    n_hidden = min(max(1, round(fraction * observed.sum())), free.sum())
    if n_hidden == 0:
        raise ValueError("X has no row with two observed cells: there is none to hide")
    key[~free] = np.inf
    return key <= np.sort(key, axis=None)[n_hidden - 1]


def _transformed(estimator: Any, X: Any, numeric: Array) -> Array:
    """transform(X) with the columns of X, in their order; NaN in those not numeric or dropped."""
    output = estimator.transform(X)
    inputs = list(getattr(estimator, "feature_names_in_", [f"x{j}" for j in range(len(numeric))]))
    try:
        names = list(estimator.get_feature_names_out())
    except AttributeError as error:
        if output.shape[1] != len(numeric):
            raise ValueError("transform changes columns: needs get_feature_names_out") from error
        names = inputs
    kept = [j for j in np.flatnonzero(numeric) if inputs[j] in names]
    if not kept:
        raise ValueError("transform gives no column of numbers that is named as one of X")
    found = select(output, [names.index(inputs[j]) for j in kept])
    aligned = np.full((len(found), len(numeric)), np.nan)
    aligned[:, kept] = check_numbers(found, "the output of transform")
    return aligned
