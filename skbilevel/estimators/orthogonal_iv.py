"""Instrumental variables by an orthogonal score: `OrthogonalIVRegressor`."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils import check_array, check_consistent_length

from skbilevel._sklearn import (
    HasMethods,
    Interval,
    StrOptions,
    check_is_fitted,
    column_or_1d,
    fit_method,
    input_feature_names,
    validate_data,
    warn_user,
)
from skbilevel.estimators.estimate_table import estimate_table
from skbilevel.estimators.excluded_instruments import (
    shared_columns,
    told_beyond_controls,
    warn_of_instruments,
)
from skbilevel.estimators.gradient_result import (
    check_level,
    interval_width,
    wald_test,
)
from skbilevel.estimators.moment_fit import (
    LinearMoment,
    MomentRoot,
    combined,
    exogenous_moment,
)
from skbilevel.estimators.moment_learning import (
    CORRECTIONS,
    checked_groups,
    learner_of,
    linear_moments_of,
    nuisance_scores,
    repetitions_of,
    seed_of,
    strength,
    warn_of,
)
from skbilevel.estimators.nuisances import Folds, Learner
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.orthogonal import MOMENT_SCORES


class OrthogonalIVRegressor(RegressorMixin, BaseEstimator):
    """Regression with instruments: coefficients and intervals that hold where T is endogenous.

    With features f of X, an outcome y and instruments Z ::

        y = f(X)'omega + e,    E[e | Z] = 0,

    omega minimises ``1/2 E[E[f(X)'omega - y | Z]^2]``. The conditional means are learnt by
    regressions on other folds, of any shape, and enter by an orthogonal score: with
    ``K = E[f | Z]`` and ``mu = E[y | Z]`` ::

        A = E[K f' + f K' - K K'],    b = E[K y + (f - K) mu],    omega = A^-1 b,

    whose first-order error is that of a mean, whatever the regressions are, as long as their
    errors multiply to little [1]_. Where no omega makes E[e | Z] vanish, it is the best
    approximation in that norm, and intervals still hold for it.

    Parameters
    ----------
    features : transformer, default=None
        f, without a constant: ``PolynomialFeatures(2, include_bias=False)`` for example. None is X
        itself. It is fitted to X as it is given, a DataFrame with text among its columns for
        example.
    nuisance : regressor, default=None
        Learns K and mu from Z; None is `NystroemRidge`.
    fit_intercept : bool, default=True
    cv : int, splitter or iterable of (train, test), default=5
        Folds; an int shuffles rows, or groups of rows.
    n_rep : int, default=1
        Times to split anew; the estimate is the median, and its variance accounts for the
        spread.
    correction : {"auto", "second_order", "disjoint", "none"}, default="auto"
        For noise that K and mu share; see `ConditionalMomentGradient`.
    moment_score : {"orthogonal", "plug_in", "plug_in_product", "instrument"}, default="orthogonal"
        ``score`` of `ConditionalMomentGradient`, a name that is taken here. "instrument" is
        two-stage least squares with a first stage that is learnt on other folds: as good where
        the model is right; where it is not it leans on a first stage that is learnt well.
    cross_fit : bool, default=True
        False: nuisances are learnt from the rows that they tell. For comparison.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    coef_ : ndarray of shape (n_coefficients,)
        omega without the intercept.
    intercept_ : float
    stderr_ : ndarray of shape (n_coefficients,)
        Of ``coef_``, robust to unequal variances, and to groups if given.
    intercept_stderr_ : float
        0 without an intercept.
    cov_ : ndarray of shape (n_coefficients, n_coefficients)
        Of ``coef_``.
    features_ : transformer or None
        Fitted.
    coefficient_names_ : ndarray of shape (n_coefficients,)
    nuisance_scores_ : dict of str to float
        R2 of what is told of y and of each feature by Z, on rows that the models have not seen.
        Features that Z holds are known exactly, and not listed.
    instrument_scores_ : dict of str to float
        Of each feature that Z does not hold, the share of what columns of X in Z leave of it that
        the rest of Z tells, on rows that the models have not seen. Below .01 there is a warning:
        coefficients can then be identified by the shape of the model, if at all, and not by
        instruments.
    hessian_strength_ : float
        Smallest eigenvalue of A, for features with mean square 1, over its standard error: whether
        coefficients are identified, by whatever it is. Below 2 there is a warning.
    correction_ : str
        What "auto" came to; "none" without Z.
    correction_gap_ : ndarray of shape (n_coefficients,)
        How far the correction has moved each coefficient, in standard errors.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        If X had names.

    See Also
    --------
    ConditionalMomentGradient : For models that are not linear in their parameters; it also has
        confidence sets that hold with weak instruments.

    Notes
    -----
    Without Z, X is exogenous, and the estimate is least squares with robust standard errors.
    Columns of f that are columns of Z, in whatever units, are known, and nothing is learnt of
    them: give exogenous columns of X in Z as well, and functions of them that are features.

    Each feature has a ridge of its own: where features are written in another way, from another
    origin for example, the estimate moves, within its error.

    ``score`` is the R2 of y, as for every regressor. It is largest for least squares, whatever
    that is biased by: do not choose features, nuisances or instruments by it.

    References
    ----------
    .. [1] L. El Khoury, H. Zenati, N. Kallus, M. Arbel, A. Bibaut (2026). Semiparametric efficient
       bilevel gradient estimation. arXiv:2605.21341. The formulas were derived anew.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LinearRegression
    >>> from skbilevel import OrthogonalIVRegressor
    >>> rng = np.random.default_rng(0)
    >>> Z = rng.uniform(-1, 1, (1000, 1))
    >>> U = rng.normal(size=1000)  # moves both X and y, and nobody sees it
    >>> X = np.sin(3 * Z) + 0.5 * U[:, None]
    >>> y = 2 * X[:, 0] + U + 0.5 * rng.normal(size=1000)
    >>> model = OrthogonalIVRegressor(random_state=0).fit(X, y, Z)
    >>> LinearRegression().fit(X, y).coef_.round(2), model.coef_.round(2)
    (array([2.66]), array([2.]))
    >>> model.conf_int().round(2)
    array([[1.9 , 2.09]])
    """

    # Sent on by a Pipeline or a search where routing is enabled, without a request for each.
    __metadata_request__fit = {"Z": True, "groups": True}  # noqa: RUF012
    _parameter_constraints: dict = {  # noqa: RUF012
        "features": [HasMethods(["fit", "transform"]), None],
        "nuisance": [HasMethods(["fit", "predict"]), None],
        "fit_intercept": ["boolean"],
        "cv": ["cv_object"],
        "n_rep": [Interval(Integral, 1, None, closed="left")],
        "correction": [StrOptions(set(CORRECTIONS))],
        "moment_score": [StrOptions(set(MOMENT_SCORES))],
        "cross_fit": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        features: Any = None,
        nuisance: Any = None,
        *,
        fit_intercept: bool = True,
        cv: Any = 5,
        n_rep: int = 1,
        correction: str = "auto",
        moment_score: str = "orthogonal",
        cross_fit: bool = True,
        random_state: Any = None,
    ) -> None:
        self.features = features
        self.nuisance = nuisance
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.n_rep = n_rep
        self.correction = correction
        self.moment_score = moment_score
        self.cross_fit = cross_fit
        self.random_state = random_state

    @fit_method
    @single_thread()
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        Z: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Learn the nuisances, and solve for omega.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            What y depends on.
        y : array-like of shape (n_samples,)
        Z : array-like of shape (n_samples, n_instruments), default=None
            Instruments, exogenous columns of X among them. None is X.
        groups : array-like of shape (n_samples,), default=None
            Rows of a group are not independent: they are told together, and standard errors are
            of sums over groups.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If Z or ``groups`` has another number of rows than X, rows are too few for ``cv``,
            or ``correction`` does not go with ``nuisance``.

        Warns
        -----
        UserWarning
            If Z hardly tells some combination of coefficients, or none at all: that is then left
            at 0. If the correction for shared noise moves a coefficient by more than half a
            standard error.
        """
        rows, outcome = self._checked(X, y)
        codes = checked_groups(groups, len(outcome))
        self.features_ = None if self.features is None else clone(self.features).fit(rows, outcome)
        slopes = self._slopes(rows)
        if Z is None:
            self.correction_ = "none"
            roots = [exogenous_moment(outcome, slopes, codes).root()]
            self._store(roots, np.full(slopes.shape[1], np.nan))
            return self
        instruments, seed = _instruments(Z, len(outcome)), seed_of(self.random_state)
        settings = self.correction, self.moment_score, seed, self.cross_fit
        learner = learner_of(self.nuisance, *settings)
        repetitions = repetitions_of(instruments, codes, self.cv, self.n_rep, seed, self.cross_fit)
        known = shared_columns(slopes, instruments)
        moments = linear_moments_of(
            instruments,
            outcome,
            slopes,
            learner,
            repetitions,
            self.moment_score,
            np.where(known, slopes, 0.0),
        )
        controls = shared_columns(instruments, slopes)
        self.correction_ = learner.correction
        self._store(
            [moment.root() for moment in moments],
            _beyond(instruments, controls, known, moments[0], slopes, learner, repetitions[0]),
        )
        return self

    def _checked(self, X: ArrayLike, y: ArrayLike) -> tuple[Any, np.ndarray]:
        """Rows, as they are for a transformer, and numbers (n,)."""
        if self.features is None:
            rows, outcome = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
            return rows, outcome.astype(np.float64)
        rows = validate_data(self, X, skip_check_array=True)
        outcome = column_or_1d(check_array(y, ensure_2d=False, dtype=np.float64, input_name="y"))
        check_consistent_length(rows, outcome)
        return rows, outcome

    def _slopes(self, rows: np.ndarray) -> np.ndarray:
        """f, (n, p), behind a constant if there is one."""
        features = rows
        if self.features_ is not None:
            features = self.features_.transform(rows)
            features = features.toarray() if issparse(features) else features
            features = check_array(features, dtype=np.float64, input_name="features")
        if not self.fit_intercept:
            return features
        return np.column_stack([np.ones(len(features)), features])

    def _store(self, roots: list[MomentRoot], beyond: np.ndarray) -> None:
        found, first = combined(roots), int(self.fit_intercept)
        self._estimate = (found.coef_, found.cov_)
        self.coef_, self.stderr_ = found.coef_[first:], found.stderr_[first:]
        self.intercept_ = float(found.coef_[0]) if first else 0.0
        self.intercept_stderr_ = float(found.stderr_[0]) if first else 0.0
        self.cov_ = found.cov_[first:, first:]
        self.coefficient_names_ = self._names()
        told = [found.diagnostics_]
        names = ["intercept", *self.coefficient_names_][1 - first :]
        self.nuisance_scores_ = nuisance_scores(told, ["y", *names])
        pairs = zip(names, beyond, strict=True)
        self.instrument_scores_ = {str(n): float(r2) for n, r2 in pairs if not np.isnan(r2)}
        self.hessian_strength_ = strength(told)
        self.correction_gap_ = found.diagnostics_.gap[first:]
        if found.rank_ < len(found.coef_):
            warn_user(
                "Some combination of coefficients cannot be told from X and Z at all: of these "
                "the smallest are returned."
            )
        else:
            warn_of(told, names, "the coefficient", "nuisance_scores_")
            warn_of_instruments(self.instrument_scores_)

    def _names(self) -> np.ndarray:
        names = input_feature_names(self, None)
        if self.features_ is None:
            return names
        if hasattr(self.features_, "get_feature_names_out"):
            return np.asarray(self.features_.get_feature_names_out(names), dtype=object)
        return np.array([f"f{number}" for number in range(len(self.coef_))], dtype=object)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predict ``f(X)'omega``, what y would be on average if X were set to this.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        return self._told(X) @ self._estimate[0]

    def predict_interval(
        self, X: ArrayLike, level: float = 0.95, *, joint: bool = False, random_state: Any = None
    ) -> np.ndarray:
        """Confidence intervals of ``f(X)'omega``: of the curve, not of single outcomes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        level : float, default=0.95
        joint : bool, default=False
            Intervals that hold at once for all rows.
        random_state : int, RandomState instance or None, default=None
            Draws what joint intervals are computed from.

        Returns
        -------
        ndarray of shape (n_samples, 2)
        """
        rows = self._told(X)
        coef, cov = self._estimate
        stderr = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", rows, cov, rows), 0))
        width = interval_width(rows, cov, level, joint, random_state)
        return (rows @ coef)[:, np.newaxis] + width * stderr[:, np.newaxis] * [-1, 1]

    def conf_int(
        self, level: float = 0.95, *, joint: bool = False, random_state: Any = None
    ) -> np.ndarray:
        """Wald intervals of ``coef_``.

        Parameters
        ----------
        level : float, default=0.95
        joint : bool, default=False
            Intervals that hold at once for all coefficients.
        random_state : int, RandomState instance or None, default=None
            Draws what joint intervals are computed from.

        Returns
        -------
        ndarray of shape (n_coefficients, 2)
        """
        check_is_fitted(self)
        width = interval_width(np.eye(len(self.coef_)), self.cov_, level, joint, random_state)
        return self.coef_[:, np.newaxis] + width * self.stderr_[:, np.newaxis] * [-1, 1]

    def summary(self, level: float = 0.95) -> str:
        """A table of coefficients, and what there is to know before they are trusted.

        Parameters
        ----------
        level : float, default=0.95

        Returns
        -------
        str
        """
        check_is_fitted(self)
        check_level(level)
        first, (coef, cov) = int(self.fit_intercept), self._estimate
        names = ["intercept", *self.coefficient_names_][1 - first :]
        lines = estimate_table(names, coef, np.sqrt(np.diag(cov)), level)
        test = wald_test(self.coef_, self.cov_)
        rule = "-" * max(map(len, lines))
        told, beyond = (
            ", ".join(f"{name} {r2:.2f}" for name, r2 in scores.items())
            for scores in (self.nuisance_scores_, self.instrument_scores_)
        )
        strength = f"{self.hessian_strength_:.1f} standard errors"
        notes = [
            f"all of them 0: chi2({test.df}) = {test.statistic:.1f}, p = {test.pvalue:.3g}",
            f"R2 of what Z tells: {told}" if told else "no instruments: this is least squares",
            f"of what columns of X in Z leave, the rest of Z tells: {beyond or 'nothing'}",
            f"smallest eigenvalue of the Hessian: {strength}",
        ]
        return "\n".join([*lines, rule, *notes])

    def _told(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        if self.features_ is None:
            return self._slopes(validate_data(self, X, dtype=np.float64, reset=False))
        return self._slopes(validate_data(self, X, skip_check_array=True, reset=False))


def _instruments(Z: ArrayLike, n_rows: int) -> np.ndarray:
    instruments = check_array(Z, dtype=np.float64, input_name="Z", ensure_min_samples=2)
    if len(instruments) != n_rows:
        raise ValueError(f"Z has {len(instruments)} rows and X has {n_rows}.")
    return instruments


def _beyond(
    instruments: np.ndarray,
    controls: np.ndarray,
    known: np.ndarray,
    moment: LinearMoment,
    slopes: np.ndarray,
    learner: Learner,
    folds: Folds,
) -> np.ndarray:
    """What instruments tell of features that they do not hold, beyond controls, (p,); NaN of
    others."""
    beyond = np.full(len(known), np.nan)
    parts = slopes[:, ~known], moment.kappa[:, ~known], learner, folds
    beyond[~known] = told_beyond_controls(instruments, controls, *parts)
    return beyond
