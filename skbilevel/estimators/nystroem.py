"""Kernel ridge regression on Nyström features, tuned by generalised cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_array, check_random_state

from skbilevel._sklearn import (
    Interval,
    StrOptions,
    check_is_fitted,
    check_sample_weight,
    fit_method,
    validate_data,
    warn_user,
)
from skbilevel.estimators.smoother import (
    RIDGES,
    Axes,
    Gram,
    KernelFeatures,
    Products,
    Smoother,
    fitted_smoother,
    held_out_errors,
    least_errors,
    with_ridges,
)

# Weights that are less on average look like shares.
_LEAST_COUNT = 0.1
# Bandwidths to choose from, in root mean squared distances from the mean, and the rows that judge.
_BANDWIDTHS, _N_JUDGES = (0.25, 0.5, 1.0, 2.0, 4.0), 1000
# Parts that are left out in turn where rows come in groups.
_N_PARTS = 5


@dataclass(frozen=True)
class FeatureMap:
    """Features of rows, after each column has been brought to its scale.

    Attributes
    ----------
    center, scale : ndarray of shape (d,)
    kernel : KernelFeatures
    """

    center: np.ndarray
    scale: np.ndarray
    kernel: KernelFeatures

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """(b, q), for rows (b, d)."""
        return self.kernel((X - self.center) / self.scale)


class NystroemRidge(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Kernel ridge regression with a Gaussian kernel, on Nyström features.

    It is the default nuisance of the orthogonal estimators: smooth, quick, tuned without a search,
    and a linear smoother, of which they know the weights. For every output it is ::

        f(x) = m + z(x)' b,    b = argmin 1/n sum_i (y_i - m - z(x_i)' b)^2 + lambda |b|^2,

    where z are features whose products are the kernel as the centers see it [1]_.

    Parameters
    ----------
    n_centers : int, default=200
        Rows that are drawn as centers, at most.
    centers : array-like of shape (n_centers, n_features), default=None
        Centers of your own, in the units of X, instead.
    bandwidth : float, array-like of shape (n_features,) or "auto", default="auto"
        h of the kernel ``exp(-|x - c|^2 / (2 h^2))``, in standard deviations of the columns
        unless ``standardize=False``. With "auto" it is the multiple (1/4, 1/2, 1, 2 or 4) of the
        root mean squared distance of rows from their mean whose generalised cross-validation
        error is least, in the geometric mean over outputs, on at most 1000 rows.
    ridge : float, sequence of float or "auto", default="auto"
        lambda; of several, the one with the least generalised cross-validation error,
        ``n |y - y_hat|^2 / (n - df)^2``, for each output [2]_. "auto" is 15 numbers from 1e-7
        to 1.
    undersmooth : float, default=1.0
        A factor of the chosen ridges. What smoothing biases is not seen in the spread of an
        estimate that the predictions go into; variance is.
    standardize : bool, default=True
        Bring all columns to mean 0 and variance 1 first.
    random_state : int, RandomState instance or None, default=None
        Draws centers, and the rows that bandwidths are compared on.

    Attributes
    ----------
    centers_ : ndarray of shape (n_centers, n_features)
        In the units of X.
    bandwidth_ : float
        1.0 if one for each column was given.
    ridge_ : ndarray of shape (n_outputs,)
        ``undersmooth`` included.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        If X had names.

    See Also
    --------
    sklearn.kernel_ridge.KernelRidge : Without features, for few rows.
    ConditionalMomentGradient, OrthogonalIVRegressor, OrthogonalFQE : Whose nuisance it is.

    References
    ----------
    .. [1] C. Williams and M. Seeger (2001). Using the Nyström method to speed up kernel machines.
       NeurIPS 13.
    .. [2] G. Golub, M. Heath and G. Wahba (1979). Generalized cross-validation as a method for
       choosing a good ridge parameter. Technometrics 21(2).

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel import NystroemRidge
    >>> X = np.linspace(-2, 2, 200).reshape(-1, 1)
    >>> y = np.sin(3 * X[:, 0])
    >>> bool(NystroemRidge(random_state=0).fit(X, y).score(X, y) > 0.999)
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "n_centers": [Interval(Integral, 1, None, closed="left")],
        "centers": ["array-like", None],
        "bandwidth": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="neither"),
            "array-like",
        ],
        "ridge": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither"), "array-like"],
        "undersmooth": [Interval(Real, 0, None, closed="neither")],
        "standardize": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        n_centers: int = 200,
        centers: ArrayLike | None = None,
        bandwidth: str | float | ArrayLike = "auto",
        ridge: str | float | ArrayLike = "auto",
        undersmooth: float = 1.0,
        standardize: bool = True,
        random_state: Any = None,
    ) -> None:
        self.n_centers = n_centers
        self.centers = centers
        self.bandwidth = bandwidth
        self.ridge = ridge
        self.undersmooth = undersmooth
        self.standardize = standardize
        self.random_state = random_state

    @fit_method
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to rows and outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts: their sum is the number of rows by which ridges are chosen.

        Returns
        -------
        self
        """
        rows, outputs = validate_data(
            self, X, y, dtype=np.float64, y_numeric=True, multi_output=True
        )
        counts = np.ones(len(rows))
        if sample_weight is not None:
            counts = check_sample_weight(sample_weight, rows)
            _warn_of_shares(counts)
        Y, occurs = outputs.reshape(len(rows), -1).astype(np.float64), counts > 0
        sample = rows[occurs], Y[occurs], counts[occurs]
        features = feature_map(self, *sample, check_random_state(self.random_state))
        z, settings = features(sample[0]), (ridges_of(self), self.undersmooth)
        found, shift = smoother_of(z, *sample[1:], *settings)
        self.centers_ = features.kernel.centres * features.scale + features.center
        self.bandwidth_ = features.kernel.bandwidth
        self.ridge_ = found.ridges
        self._map = (features.center, features.scale, features.kernel.root)
        slopes = found.axes.axes @ found.coef
        self._linear = (shift + found.intercept - found.axes.center @ slopes, slopes)
        self._is_vector = outputs.ndim == 1
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        center, scale, root = self._map
        kernel = KernelFeatures((self.centers_ - center) / scale, self.bandwidth_, root)
        constant, slopes = self._linear
        outputs = constant + FeatureMap(center, scale, kernel)(rows) @ slopes
        return outputs[:, 0] if self._is_vector else outputs


def ridges_of(model: NystroemRidge) -> Sequence[float]:
    """Those that it chooses from.

    Raises
    ------
    ValueError
        If one is not positive.
    """
    if isinstance(model.ridge, str):
        return RIDGES
    each = np.atleast_1d(np.asarray(model.ridge, dtype=float))
    if not (each > 0).all():
        raise ValueError(f"ridge={model.ridge!r} must be positive.")
    return tuple(each)


def feature_map(
    model: NystroemRidge,
    X: np.ndarray,
    Y: np.ndarray,
    counts: np.ndarray,
    rng: np.random.RandomState,
    groups: np.ndarray | None = None,
) -> FeatureMap:
    """Features of its kind for rows (n, d) that occur so many times (n,), with the bandwidth that
    suits outputs (n, k); with groups (n,), on rows of other groups.

    Raises
    ------
    ValueError
        If ``centers`` or ``bandwidth`` does not fit the columns of X.
    """
    center, scale = _units(X, counts, model.standardize)
    bandwidth: Any = model.bandwidth
    if not isinstance(bandwidth, str) and np.ndim(bandwidth):
        scale, bandwidth = scale * _checked_bandwidths(bandwidth, X.shape[1]), 1.0
    centres = (_centres(model, X, rng) - center) / scale
    if not isinstance(bandwidth, str):
        return FeatureMap(center, scale, KernelFeatures.of(centres, float(bandwidth)))
    some = _sample(len(X), _N_JUDGES, rng)
    rows, outputs, counts = (X[some] - center) / scale, Y[some], counts[some]
    gaps = np.square(rows - np.average(rows, axis=0, weights=counts)).sum(axis=1)
    spread = float(np.sqrt(np.average(gaps, weights=counts))) or 1.0
    kernels = [KernelFeatures.of(centres, times * spread) for times in _BANDWIDTHS]
    parts = None if groups is None else _parts(groups[some], rng)
    errors = [_error(kernel(rows), outputs, counts, ridges_of(model), parts) for kernel in kernels]
    return FeatureMap(center, scale, kernels[int(np.argmin(errors))])


def _centres(model: NystroemRidge, X: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    if model.centers is None:
        distinct = np.unique(X, axis=0)
        return distinct[_sample(len(distinct), model.n_centers, rng)]
    centres = check_array(model.centers, dtype=np.float64, input_name="centers")
    if centres.shape[1] != X.shape[1]:
        raise ValueError(f"centers has {centres.shape[1]} columns and X has {X.shape[1]}.")
    return centres


def _warn_of_shares(counts: np.ndarray) -> None:
    if counts.mean() < _LEAST_COUNT:
        warn_user(
            f"sample_weight sums to {counts.sum():.3g} for {len(counts)} rows. Weights say how "
            "often a row occurs: so few say next to nothing, and the ridge will be strong. "
            "Multiply shares by the number of rows."
        )


def smoother_of(
    z: np.ndarray,
    Y: np.ndarray,
    counts: np.ndarray,
    ridges: Sequence[float],
    undersmooth: float,
    chosen: np.ndarray | None = None,
) -> tuple[Smoother, np.ndarray]:
    """Of outputs (n, k) less their means, which come with it, (k,), from features (n, q); with
    ridges (k,) if these are chosen already."""
    shift = np.average(Y, axis=0, weights=counts)
    axes = Axes.of(Gram.of(z, counts))
    products = Products.of(z, Y - shift, counts)
    if chosen is not None:
        return with_ridges(axes, products, chosen), shift
    return fitted_smoother(axes, products, ridges, undersmooth), shift


def _checked_bandwidths(bandwidth: ArrayLike, n_columns: int) -> np.ndarray:
    each = np.asarray(bandwidth, dtype=float)
    if each.shape != (n_columns,) or not (each > 0).all():
        raise ValueError(
            f"bandwidth={bandwidth!r} must be one positive number, or one for each of the "
            f"{n_columns} columns of X."
        )
    return each


def _units(X: np.ndarray, counts: np.ndarray, standardize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Center and scale (d,) of the columns; a column that does not vary has the scale 1."""
    if not standardize:
        return np.zeros(X.shape[1]), np.ones(X.shape[1])
    center = np.average(X, axis=0, weights=counts)
    scale = np.sqrt(np.average(np.square(X - center), axis=0, weights=counts))
    rounding = len(X) * np.finfo(float).eps * np.abs(X).max(axis=0)
    return center, np.where(scale > rounding, scale, 1.0)


def _sample(n_rows: int, n_wanted: int, rng: np.random.RandomState) -> np.ndarray:
    """Indices of some rows, in their order."""
    if n_rows <= n_wanted:
        return np.arange(n_rows)
    return np.sort(rng.choice(n_rows, n_wanted, replace=False))


def _parts(groups: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """One of five for each row (n,), the same for rows of a group; fewer of fewer groups."""
    names, codes = np.unique(groups, return_inverse=True)
    return (rng.permutation(len(names)) % min(_N_PARTS, len(names)))[codes]


def _error(
    features: np.ndarray,
    Y: np.ndarray,
    counts: np.ndarray,
    ridges: Sequence[float],
    parts: np.ndarray | None,
) -> float:
    """Sum over outputs that vary of the logarithm of the least error of any ridge: generalised
    cross-validation, or on parts that are left out."""
    centred = Y - np.average(Y, axis=0, weights=counts)
    varies = np.abs(centred).max(axis=0) > 0
    if parts is None or parts.max() == 0:
        products = Products.of(features, centred[:, varies], counts)
        least = least_errors(Axes.of(Gram.of(features, counts)), products, ridges)
    else:
        members = [parts == part for part in range(parts.max() + 1)]
        grams = [Gram.of(features[some], counts[some]) for some in members]
        of_parts = [
            Products.of(features[some], centred[some][:, varies], counts[some]) for some in members
        ]
        least = held_out_errors(grams, of_parts, ridges).min(axis=0)
    return float(np.log(np.maximum(least, np.finfo(float).tiny)).sum())
