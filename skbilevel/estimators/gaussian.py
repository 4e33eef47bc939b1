"""Imputation by the multivariate normal, its robust and its low-rank kin."""

from __future__ import annotations

from collections.abc import Callable
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
    fit_method,
    warn_user,
)
from skbilevel.estimators.block_em import (
    completed_rows,
    drawn_rows,
    log_densities,
    maximum_likelihood,
    total,
)
from skbilevel.estimators.gaussian_choice import KINDS, Fit, Settings, candidate_families, choose
from skbilevel.estimators.gaussian_state import distribution, fitted_state
from skbilevel.estimators.imputer import Floats, Imputer, RowCompleter
from skbilevel.estimators.probabilistic import ProbabilisticImputer, RowDrawer, RowScorer
from skbilevel.numerics.observed import (
    mean_and_deviation,
    median_and_quartile_deviation,
    refuse_overflow,
)
from skbilevel.numerics.random import draw_seed
from skbilevel.numerics.row_groups import StandardizedRows
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.family import Family, as_arrays, as_tensors
from skbilevel.solvers.em import EMResult, stepwise_sums

_STANDARDIZATION = {False: mean_and_deviation, True: median_and_quartile_deviation}


class GaussianImputer(CallbackSupportMixin, ProbabilisticImputer):
    """Impute by the conditional mean of a multivariate normal fitted by maximum likelihood.

    The location mu and covariance S maximise the likelihood of the observed cells, by
    expectation maximisation over all rows, complete or not. A row with observed cells o and
    missing cells m is imputed by

        E[x_m | x_o] = mu_m + S_mo S_oo^-1 (x_o - mu_o).

    The estimates are consistent where cells are missing at random: given the observed cells of
    the row, being missing says nothing about the value.

    Parameters
    ----------
    covariance : {"full", "factor"}, default="full"
        "full" estimates every covariance. "factor" estimates S = W W' + diag(psi) with
        ``n_factors`` columns in W, for hundreds of columns and more, or fewer rows than columns.
    n_factors : "auto" or int, default="auto"
        Number of factors for ``covariance="factor"``; "auto" chooses it on held-out cells.
    shrinkage : "auto" or float, default="auto"
        Weight of the prior, in rows: on standardised columns
        ``S = (s2 + shrinkage * I) / (n + shrinkage)`` with s2 the expected scatter matrix.
        "auto" is 1e-3. For a full covariance of d columns that have fewer than 10 d observed
        cells on average it is the value of a path from 300 to 1e-3 with the lowest error on
        held-out cells (1 where there are fewer than ten of those).
    robust : bool, default=False
        Fit a multivariate t with estimated degrees of freedom instead of the normal. Rows far
        from the centre then get less weight. Single wrong cells are not recognised: only
        whole rows are.
    max_iter : int, default=200
        Most iterations of expectation maximisation.
    tol : float, default=1e-3
        Stop when two iterations in a row raise the penalised log-likelihood per row by less than
        this, in nats: a bound on steps, not on the distance to the optimum, which can be many
        times as large where much is missing. 1e-6 suits inference on the parameters.
    missing_values : int or float, default=numpy.nan
        The value that marks a missing cell.
    add_indicator : bool, default=False
        Append a column of 0 and 1 for every feature that had missing cells at fit.
    keep_empty_features : bool, default=False
        Keep features without any observed value at fit, filled with 0, instead of dropping them.
    n_jobs : int, default=None
        Blocks (of at most 32768 rows) that `fit` processes at a time; the result does not
        depend on it.
    random_state : int, RandomState instance or None, default=None
        Draws the held-out cells of "auto", where there is a choice, and the seed of `sample`.
        Otherwise imputation is deterministic.

    Attributes
    ----------
    location_ : ndarray of shape (n_fitted,)
        mu, for the features that are not empty.
    covariance_ : ndarray of shape (n_fitted, n_fitted)
        S; with ``robust`` the scale matrix of the t, ``(nu - 2) / nu`` times its covariance.
    loadings_ : ndarray of shape (n_fitted, n_factors)
        W; only with ``covariance="factor"``.
    noise_variance_ : ndarray of shape (n_fitted,)
        psi; only with ``covariance="factor"``.
    n_factors_ : int
        Number of factors; only with ``covariance="factor"``.
    degrees_of_freedom_ : float
        nu, between 1 and 200; only with ``robust``.
    shrinkage_ : float
        The shrinkage that was used.
    n_iter_ : int
        Number of iterations.
    converged_ : bool
        Whether ``tol`` was met within ``max_iter`` iterations.
    history_ : dict of str to list of float
        "objective", the penalised log-likelihood per row in nats, which never falls, and
        "log_likelihood", both at the start and after every iteration, in the units of the data.
    n_samples_seen_ : int
        Number of rows with an observed cell that were fitted.
    n_observed_, empty_features_, indicator_, n_features_in_, feature_names_in_
        As for every imputer of the package.

    See Also
    --------
    sklearn.impute.IterativeImputer : A regression for each feature in turn.

    References
    ----------
    Little and Rubin (2019), Statistical Analysis with Missing Data, chapter 11.
    Liu and Rubin (1995), ML estimation of the t distribution using EM, Statistica Sinica 5.
    Cappe and Moulines (2009), On-line expectation-maximization, JRSS B 71(3).

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel import GaussianImputer
    >>> X = np.array([[1.0, 2.1], [2.0, np.nan], [3.0, 6.2], [4.0, 7.9], [np.nan, 4.0]])
    >>> GaussianImputer(shrinkage=0.001).fit_transform(X).round(1)
    array([[1. , 2.1],
           [2. , 4.1],
           [3. , 6.2],
           [4. , 7.9],
           [2. , 4. ]])
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **Imputer._parameter_constraints,
        "covariance": [StrOptions({"full", "factor"})],
        "n_factors": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "shrinkage": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "robust": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_jobs": [None, Integral],
        "random_state": ["random_state"],
    }

    n_samples_seen_: int
    _sums: dict[str, NDArray[np.float64]]

    def __init__(
        self,
        *,
        covariance: str = "full",
        n_factors: str | int = "auto",
        shrinkage: str | float = "auto",
        robust: bool = False,
        max_iter: int = 200,
        tol: float = 1e-3,
        missing_values: float = np.nan,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        n_jobs: int | None = None,
        random_state: Any = None,
    ):
        super().__init__(
            missing_values=missing_values,
            add_indicator=add_indicator,
            keep_empty_features=keep_empty_features,
        )
        self.covariance = covariance
        self.n_factors = n_factors
        self.shrinkage = shrinkage
        self.robust = robust
        self.max_iter = max_iter
        self.tol = tol
        self.n_jobs = n_jobs
        self.random_state = random_state

    @fit_method
    @single_thread()
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit the distribution to the observed cells of ``X``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, with missing cells. A float64 memory map is read in blocks of rows,
            unless ``robust`` or "auto" needs a copy.
        y : array-like, default=None
            Ignored; handed to callbacks, some of which (``ScoringMonitor``) need it.

        Returns
        -------
        self : GaussianImputer

        Raises
        ------
        ValueError
            If ``X`` has infinite or non-numeric values or no observed cell, or a parameter is
            out of range; the estimator is then left as it was.
        """
        incomplete = self._start_fit(X)
        rows = self._standardized(incomplete)
        rng = check_random_state(self.random_state)
        self._seed = draw_seed(rng)
        settings = Settings(self.covariance, self.robust, self.shrinkage, self.n_factors)
        n_observed = self.n_observed_[~self.empty_features_]
        families = candidate_families(settings, len(incomplete), n_observed)
        n_candidates = len(families) if len(families) > 1 else 0
        report = FitLoop(self, X, y, n_candidates + self.max_iter)

        def on_candidate(fit: Fit) -> bool:
            return report.step(lambda: self._state(*fit), "candidate")

        loop: dict[str, Any] = {"max_iter": self.max_iter, "tol": self.tol, "n_jobs": self.n_jobs}
        family, start = choose(families, incomplete, rows, rng, loop, on_candidate)

        def on_step(current: Callable[[], EMResult]) -> bool:
            return report.step(lambda: self._state(family, current(), n_observed))

        result = maximum_likelihood(family, rows, start, **loop, on_step=on_step)
        fitted = self._state(family, result, n_observed)
        self.__dict__.update(fitted)
        report.end(fitted)
        if not (result.converged or report.stopped):
            self._warn_not_converged()
        return self

    def _standardized(self, X: Floats) -> StandardizedRows:
        names = self._names(~self.empty_features_)
        self._center, self._scale = _STANDARDIZATION[self.robust](X, names)
        return StandardizedRows(X, self._center, self._scale)

    def _warn_not_converged(self) -> None:
        remedy = "max_iter, tol or" if self.n_iter_ == self.max_iter else "tol or"
        warn_user(
            f"GaussianImputer did not converge in {self.n_iter_} iterations; "
            f"increase {remedy} shrinkage.",
            ConvergenceWarning,
        )

    @fit_method
    @single_thread()
    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Update the distribution with a batch of rows, by stepwise expectation maximisation.

        The first batch is fitted as by `fit` and sets the units of the columns. A later batch of
        b rows enters with the weight ``(1 + n_samples_seen_ / b)^-0.6``, also after a `fit`.
        ``n_iter_``, ``converged_``, ``history_``, ``shrinkage_``, ``n_observed_`` and
        ``indicator_`` stay those of the first batch.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            New rows, with missing cells.
        y : None
            Ignored.

        Returns
        -------
        self : GaussianImputer

        Raises
        ------
        ValueError
            As for `fit`, if a column of the first batch has no observed value, and if
            ``covariance`` or ``robust`` have been changed since.
        """
        if not hasattr(self, "location_"):
            return self._fit_first_batch(X)
        if (self.covariance, self.robust) != self._kind:
            raise ValueError(
                f"partial_fit continues a fit with covariance={self._kind[0]!r} and "
                f"robust={self._kind[1]}; call fit after changing them."
            )
        X = self._incomplete(X)
        with np.errstate(over="ignore"):
            squares = np.nansum(((X - self._center) / self._scale) ** 2, axis=0)
        refuse_overflow(squares, self._names(~self.empty_features_))
        rows = StandardizedRows(X, self._center, self._scale)
        family, model = self._distribution()
        batch = total(rows, lambda group: family.expectation(group, model), self.n_jobs)
        if batch is None:
            return self
        sums = stepwise_sums(type(batch)(**as_tensors(self._sums)), batch)
        parameters = family.maximisation(sums)
        self.__dict__.update(distribution(parameters, self._center, self._scale))
        self._sums, self.n_samples_seen_ = as_arrays(sums), round(float(sums.n_rows))
        return self

    def _fit_first_batch(self, X: ArrayLike) -> Self:
        self.fit(X)
        if self.empty_features_.any():
            raise ValueError(
                "The first batch of partial_fit needs an observed value in every feature; "
                f"features {self._names(self.empty_features_)} have none."
            )
        return self

    def _state(
        self, family: Family, result: EMResult, n_observed: NDArray[np.int64]
    ) -> dict[str, Any]:
        kind = (self.covariance, self.robust)
        return fitted_state(kind, family, result, n_observed, self._center, self._scale)

    def _distribution(self) -> tuple[Family, Any]:
        """The fitted family and its model, rebuilt from arrays."""
        kind = KINDS[self._kind]
        family = kind.family(**self._family)
        return family, family.model(kind.parameters(**as_tensors(self._parameters)))

    def _completer(self) -> RowCompleter:
        family, model = self._distribution()
        return lambda rows: completed_rows(family, model, rows, self._center, self._scale)

    def _scorer(self) -> RowScorer:
        family, model = self._distribution()
        return lambda rows: log_densities(family, model, rows, self._center, self._scale)

    def _drawer(self, n_draws: int) -> RowDrawer:
        family, model = self._distribution()
        return lambda rows, keys: drawn_rows(
            family, model, rows, self._center, self._scale, keys, n_draws
        )
