"""The gradient of a squared conditional moment, with intervals: `ConditionalMomentGradient`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2, norm
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state

from skbilevel._sklearn import (
    HasMethods,
    Interval,
    StrOptions,
    check_is_fitted,
    fit_method,
    validate_data,
    warn_user,
)
from skbilevel.estimators.gradient_result import (
    GradientResult,
    check_level,
    joint_quantile,
    median_of,
)
from skbilevel.estimators.moment_fit import MomentGradient, MomentRoot, combined
from skbilevel.estimators.moment_learning import (
    CORRECTIONS,
    checked_groups,
    checked_omega,
    learner_of,
    repetitions_of,
    seed_of,
    warn_of,
)
from skbilevel.estimators.moment_problem import SOLVERS, MomentProblem
from skbilevel.estimators.moment_residual import Residual, as_tensors, checked_data
from skbilevel.estimators.nuisances import Folds, Learner, Split
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.orthogonal import MOMENT_SCORES

# A value that is not so many standard errors above 0 has no interval.
_CLEAR_OF_ZERO = 3.0


class MomentValue(NamedTuple):
    """An estimate of ``F(omega) = 1/2 E[E[r | X]^2]``.

    Attributes
    ----------
    value_ : float
    stderr_ : float
        Of first order. Near F = 0 it is too small, as the influence of a row vanishes there.
    """

    value_: float
    stderr_: float

    def conf_int(self, level: float = 0.95) -> np.ndarray:
        """Wald interval, (2,); NaN, with a warning, where the value is within three standard
        errors of 0, near which it would not hold.

        Parameters
        ----------
        level : float, default=0.95

        Returns
        -------
        ndarray of shape (2,)
        """
        check_level(level)
        if self.value_ < _CLEAR_OF_ZERO * self.stderr_:
            warn_user(
                f"The value {self.value_:.3g} is not clear of 0 (standard error "
                f"{self.stderr_:.3g}), where an interval of this kind does not hold: "
                "use stationarity_test of the gradient."
            )
            return np.full(2, np.nan)
        return self.value_ + norm.ppf((1 + level) / 2) * self.stderr_ * np.array([-1, 1])


class ConditionalMomentGradient(BaseEstimator):
    """Gradient of a squared conditional moment, debiased, with confidence intervals.

    For a residual r with parameters omega, of which nothing is known but the mean given X ::

        F(omega) = 1/2 E[ E[r_omega | X]^2 ],    G(omega) = dF/domega = E[rho kappa],

    with ``rho = E[r | X]`` and ``kappa = E[D | X]``, ``D = dr/domega``. Instrumental variables
    (``r = f_omega(T) - Y``, X the instruments), Bellman residuals and every other conditional
    moment restriction ``E[r | X] = 0`` are of this form. rho and kappa are learnt by regressions
    on other folds; a plug-in of these is biased to first order, and its spread says nothing of
    their errors. The orthogonal score ::

        psi = rho D + kappa r - rho kappa,

    has a bias of ``-E[(rho_hat - rho)(kappa_hat - kappa)]`` only, and its spread is that of the
    estimate [1]_.

    Parameters
    ----------
    residual : callable
        ``residual(omega, data) -> r``. With ``jac=None`` it gets a torch tensor omega of shape
        (p,) and data as float64 tensors, and returns a tensor of shape (n_samples,); else it gets
        arrays and returns one.
    nuisance : regressor, default=None
        Learns rho and each column of kappa; None is `NystroemRidge`. Columns that do not vary
        are not learnt.
    cv : int, splitter or iterable of (train, test), default=5
        Folds; an int shuffles rows, or groups of rows. Test sets must not overlap; rows in none of
        them are left out.
    n_rep : int, default=1
        Times to split anew. The estimate is the median, and its variance the median of
        ``se^2 + (coef - median)^2``.
    correction : {"auto", "second_order", "disjoint", "none"}, default="auto"
        rho_hat and kappa_hat are made of the same training rows, whose r and D are noisy
        together, so that ``rho_hat kappa_hat`` expects ``sum_j s_j^2 Cov(r_j, D_j | X_j)`` too
        much, with the weights s of the smoother. "second_order" estimates it and takes it away,
        for `NystroemRidge`; "disjoint" learns the two from halves that share no row, in both
        orders, for any regressor. "auto" is the first where it can be had, else the second, and
        none for other scores than the orthogonal one and with ``cross_fit=False``. With groups,
        sums over a group take the place of those of a row.
    score : {"orthogonal", "plug_in", "plug_in_product", "instrument"}, default="orthogonal"
        For comparison: ``rho D`` (functional implicit differentiation), ``rho kappa``, and
        ``kappa r``, which is orthogonal where rho = 0 only.
    cross_fit : bool, default=True
        False: nuisances are learnt from the rows that they tell. For comparison.
    jac : callable, True or None, default=None
        ``jac(omega, data) -> D`` of shape (n_samples, p); True if ``residual`` returns the pair
        (r, D); None for automatic differentiation of a residual written in torch.
    random_state : int, RandomState instance or None, default=None
        Shuffles folds, and draws what nuisances draw.

    Attributes
    ----------
    nuisance_ : regressor
        The unfitted regressor in use.
    correction_ : str
        What "auto" came to.
    splits_ : list of list of (ndarray, ndarray)
        Training and test rows of each fold of each repetition: the same for every omega.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of shape (n_features,)
        If X had names.

    See Also
    --------
    OrthogonalIVRegressor : For ``r = omega'f(T) - Y``.
    OrthogonalFQE : For Bellman residuals.
    BilevelGradient : For losses that are not squared.

    Notes
    -----
    Where r is linear in omega, which is found out at some points, nuisances are learnt once in
    each call, for every omega of it; where it is not, at every omega, and some dozens of times by
    `solve`, which takes long with forests. `fit` learns nothing yet: it takes the rows and splits
    them.

    Centers, units and the bandwidth of `NystroemRidge` are chosen once, by all rows; only the
    bandwidth looks at r and D for that, which is one number of five. A handful of folds is enough:
    time and memory grow with their number.

    References
    ----------
    .. [1] L. El Khoury, H. Zenati, N. Kallus, M. Arbel, A. Bibaut (2026). Semiparametric efficient
       bilevel gradient estimation. arXiv:2605.21341. The formulas were derived anew.
    .. [2] V. Chernozhukov et al. (2018). Double/debiased machine learning for treatment and
       structural parameters. Econometrics Journal 21(1).

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel import ConditionalMomentGradient
    >>> rng = np.random.default_rng(0)
    >>> Z = rng.uniform(-1, 1, (1000, 1))
    >>> U = rng.normal(size=1000)
    >>> T = np.sin(3 * Z[:, 0]) + 0.5 * U
    >>> data = {"T": T, "Y": 2 * T + U + 0.5 * rng.normal(size=1000)}
    >>> model = ConditionalMomentGradient(
    ...     lambda omega, data: omega[0] * data["T"] - data["Y"], random_state=0
    ... ).fit(Z, data)
    >>> found = model.solve([0.0])
    >>> found.coef_.round(1), found.stderr_.round(2)
    (array([2.]), array([0.05]))
    >>> model.gradient([2.0]).stationarity_test().pvalue > 0.05
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "residual": [callable],
        "nuisance": [HasMethods(["fit", "predict"]), None],
        "cv": ["cv_object"],
        "n_rep": [Interval(Integral, 1, None, closed="left")],
        "correction": [StrOptions(set(CORRECTIONS))],
        "score": [StrOptions(set(MOMENT_SCORES))],
        "cross_fit": ["boolean"],
        "jac": [callable, "boolean", None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        residual: Callable[..., Any],
        nuisance: Any = None,
        *,
        cv: Any = 5,
        n_rep: int = 1,
        correction: str = "auto",
        score: str = "orthogonal",
        cross_fit: bool = True,
        jac: Any = None,
        random_state: Any = None,
    ) -> None:
        self.residual = residual
        self.nuisance = nuisance
        self.cv = cv
        self.n_rep = n_rep
        self.correction = correction
        self.score = score
        self.cross_fit = cross_fit
        self.jac = jac
        self.random_state = random_state

    @fit_method
    def fit(self, X: ArrayLike, data: Any, *, groups: ArrayLike | None = None) -> Self:
        """Take the rows, and split them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            What is conditioned on: instruments, or state and action.
        data : dict or tuple of array-like, DataFrame, or array-like
            What ``residual`` is called with, each part with n_samples rows. For torch, a
            DataFrame becomes a dict of its columns.
        groups : array-like of shape (n_samples,), default=None
            Rows of a group are not independent: they go into one fold together, and standard
            errors are of sums over groups.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a part of ``data`` or ``groups`` has another number of rows than X, ``data`` holds
            other things than finite numbers where ``jac=None``, there are fewer rows (groups) than
            folds, test sets of ``cv`` overlap one another or their training sets, or
            ``correction`` does not go with ``nuisance``, ``score`` or ``cross_fit``.
        """
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        kept = checked_data(data, len(rows))
        if self.jac is None or self.jac is False:
            as_tensors(kept)
        codes = checked_groups(groups, len(rows))
        seed = seed_of(self.random_state)
        settings = self.correction, self.score, seed, self.cross_fit
        learner = learner_of(self.nuisance, *settings)
        repetitions = repetitions_of(rows, codes, self.cv, self.n_rep, seed, self.cross_fit)
        self.nuisance_, self.correction_ = learner.nuisance, learner.correction
        self.splits_ = [[tuple(split) for split in each.splits] for each in repetitions]
        self._sides = [each.side for each in repetitions]
        self._X, self._data, self._groups, self._seed = rows, kept, codes, seed
        return self

    @single_thread()
    def gradient(self, omega: ArrayLike) -> MomentGradient:
        """Estimate G at omega.

        Parameters
        ----------
        omega : array-like of shape (p,)

        Returns
        -------
        MomentGradient
            With ``coef_``, ``stderr_``, ``cov_``, ``scores_``, ``conf_int(level, joint=...)``,
            ``stationarity_test()``, ``norm_upper_bound(level)`` and ``diagnostics_``.

        Warns
        -----
        UserWarning
            If the correction for shared noise moves a coordinate by more than half a standard
            error.
        """
        at = checked_omega(omega)
        each = [rows.gradient() for rows in self._problem().rows(at)]
        self._warn([one.diagnostics_ for one in each], len(at), "the gradient")
        return combined(each)

    @single_thread()
    def gradient_band(
        self, omegas: ArrayLike, level: float = 0.95, *, random_state: Any = None
    ) -> np.ndarray:
        """Intervals of the gradient that hold at once, for all coordinates at all omegas.

        A quantile of the largest absolute t value takes the place of the normal one, by a
        multiplier bootstrap of the scores.

        Parameters
        ----------
        omegas : array-like of shape (m, p)
        level : float, default=0.95
        random_state : int, RandomState instance or None, default=None
            Draws the multipliers.

        Returns
        -------
        ndarray of shape (m, p, 2)
        """
        check_level(level)
        grid = check_array(omegas, dtype=np.float64, input_name="omegas")
        each = [
            median_of([rows.gradient() for rows in at])
            for at in self._problem().rows_at_each(grid)
        ]
        quantile = joint_quantile(
            np.hstack([one.scores_ for one in each]), level, check_random_state(random_state)
        )
        coef, stderr = (np.stack([getattr(e, a) for e in each]) for a in ("coef_", "stderr_"))
        return coef[:, :, np.newaxis] + quantile * stderr[:, :, np.newaxis] * [-1, 1]

    @single_thread()
    def value(self, omega: ArrayLike) -> MomentValue:
        """Estimate F at omega: the mean of ``rho r - rho^2 / 2``.

        Parameters
        ----------
        omega : array-like of shape (p,)

        Returns
        -------
        MomentValue
            With ``value_``, ``stderr_`` and ``conf_int(level)``. It can be below 0, as it is
            debiased.
        """
        each = []
        for rows in self._problem().rows(checked_omega(omega)):
            values = rows.design.of_clusters(rows.values()[:, np.newaxis])
            each.append(GradientResult.of(values))
        found = median_of(each)
        return MomentValue(float(found.coef_[0]), float(found.stderr_[0]))

    @single_thread()
    def solve(self, omega0: ArrayLike, method: str = "newton") -> MomentRoot:
        """Find omega where the gradient is 0.

        Parameters
        ----------
        omega0 : array-like of shape (p,)
            Where to start; where r is linear in omega it says how many parameters there are.
        method : {"newton", "lbfgs"}, default="newton"
            Where r is not linear: a Newton method for G = 0 with a trust region, by
            ``E[kappa kappa']``, or descent on F, for which all outputs of a fold share one ridge,
            so that G is the gradient of F to rounding. Ridges are chosen at omega0, and once more
            where that has led. There can be several roots: start where omega may be.

        Returns
        -------
        MomentRoot
            With ``coef_``, ``stderr_``, ``cov_``, ``conf_int(level, joint=...)``, ``hessian_``
            and ``diagnostics_``.

        Raises
        ------
        ValueError
            If ``method="lbfgs"`` goes with another score than the orthogonal one or another
            nuisance than `NystroemRidge`, or the Hessian is singular: parameters are then not
            identified.

        Warns
        -----
        ConvergenceWarning
            If no root is found.
        UserWarning
            If nuisances are told too roughly, or the least eigenvalue of the Hessian is within
            two standard errors of 0.
        """
        start = checked_omega(omega0)
        if method not in SOLVERS:
            raise ValueError(f"method={method!r} must be 'newton' or 'lbfgs'.")
        each = self._problem().roots(start, method)
        if any(one.rank_ < len(start) for one in each):
            raise ValueError(
                "The Hessian of F is singular: X does not tell all parameters apart"
                f"{self._without_effect(each[0].coef_)}."
            )
        self._warn([one.diagnostics_ for one in each], len(start), "the estimate")
        return combined(each)

    @single_thread()
    def confidence_set(self, omegas: ArrayLike, level: float = 0.95) -> np.ndarray:
        """Which omegas the stationarity test does not reject, ``n G'Sigma^-1 G <= chi2_p``.

        Where omega is hardly identified, Wald intervals of `solve` are far too short; the set is
        wide then, or without bounds, and far nearer to its level, if below it where r and D are
        strongly correlated: nuisances are made of noise there, and the score is not orthogonal to
        it. With as many instruments as parameters (a constant counts, if the nuisance has one)
        ``score="instrument"``, a linear regression as nuisance and ``cross_fit=False`` give the
        set of Anderson and Rubin, which keeps its level however weak they are; with more
        instruments it does not.

        Parameters
        ----------
        omegas : array-like of shape (m, p)
        level : float, default=0.95

        Returns
        -------
        ndarray of bool of shape (m,)
        """
        check_level(level)
        grid = check_array(omegas, dtype=np.float64, input_name="omegas")
        tests = [
            median_of([rows.gradient() for rows in at]).stationarity_test()
            for at in self._problem().rows_at_each(grid)
        ]
        return np.array([test.statistic <= chi2.ppf(level, test.df) for test in tests])

    def _problem(self) -> MomentProblem:
        check_is_fitted(self)
        jac = None if self.jac is False else self.jac
        data = as_tensors(self._data) if jac is None else self._data
        pairs = zip(self.splits_, self._sides, strict=True)
        repetitions = [
            Folds([Split(*split) for split in splits], side, self._groups, self._seed)
            for splits, side in pairs
        ]
        return MomentProblem(
            self._X,
            Residual(self.residual, jac, data, len(self._X)),
            Learner(self.nuisance_, self.correction_, self._seed),
            repetitions,
            self.score,
        )

    def _without_effect(self, omega: np.ndarray) -> str:
        D = self._problem().residual.at(omega)[1]
        unused = [f"omega[{number}]" for number in np.flatnonzero(~D.any(axis=0))]
        return f", and the residual does not depend on {', '.join(unused)}" if unused else ""

    def _warn(self, diagnostics: Sequence[Any], n_parameters: int, what: str) -> None:
        names = [f"omega[{number}]" for number in range(n_parameters)]
        warn_of(diagnostics, names, what, "diagnostics_.r2")
