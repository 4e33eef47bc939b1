"""Imputation by the multivariate normal, its robust and its low-rank kin."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
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
from skbilevel.estimators.block_em import completed_rows, in_row_order, maximum_likelihood, total
from skbilevel.estimators.gaussian_choice import KINDS, Settings, choose
from skbilevel.estimators.imputer import Floats, Imputer, RowCompleter
from skbilevel.numerics.observed import mean_and_deviation, median_and_quartile_deviation
from skbilevel.numerics.random import draw_seed, row_keys, row_normal
from skbilevel.numerics.row_groups import StandardizedRows, row_block, row_blocks
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.family import (
    Family,
    add,
    as_arrays,
    as_tensors,
    hyper_parameters,
    multiply,
)
from skbilevel.solvers.em import EMResult, stepwise_weight

_STANDARDIZATION = {False: mean_and_deviation, True: median_and_quartile_deviation}


class GaussianImputer(CallbackSupportMixin, Imputer):
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
        "auto" is 1e-3, and for a full covariance with fewer than 10 rows a column the value of
        a path from 300 to 1e-3 with the lowest error on held-out cells (1 where there are fewer
        than ten of those).
    robust : bool, default=False
        Fit a multivariate t with estimated degrees of freedom instead of the normal. Rows far
        from the centre then get less weight. Single wrong cells are not recognised: only
        whole rows are.
    max_iter : int, default=200
        Most iterations of expectation maximisation.
    tol : float, default=1e-3
        Stop when an iteration raises the penalised log-likelihood per row by less than this, in
        nats: a bound on a step, not on the distance to the optimum, which can be many times as
        large where much is missing. 1e-6 suits inference on the parameters.
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
        y : None
            Ignored.

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
        self._center, self._scale = _STANDARDIZATION[self.robust](incomplete)
        rows = StandardizedRows(incomplete, self._center, self._scale)
        rng = check_random_state(self.random_state)
        self._seed = draw_seed(rng)
        loop: dict[str, Any] = {"max_iter": self.max_iter, "tol": self.tol, "n_jobs": self.n_jobs}
        settings = Settings(self.covariance, self.robust, self.shrinkage, self.n_factors, loop)
        family, start = choose(settings, incomplete, rows, rng)
        self._kind, self._family = (self.covariance, self.robust), hyper_parameters(family)
        reporter = FitLoop(self, X, self.max_iter, self._attributes)
        result = maximum_likelihood(family, rows, start, **loop, on_step=reporter.step)
        self._store(result)
        reporter.end()
        if not (result.converged or reporter.stopped):
            remedy = "max_iter, tol or" if result.n_iter == self.max_iter else "tol or"
            warn_user(
                f"GaussianImputer did not converge in {result.n_iter} iterations; "
                f"increase {remedy} shrinkage.",
                ConvergenceWarning,
            )
        return self

    @fit_method
    @single_thread()
    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Update the distribution with a batch of rows, by stepwise expectation maximisation.

        The first batch is fitted as by `fit` and sets the units of the columns. A later batch of
        b rows enters with the weight ``(1 + n_samples_seen_ / b)^-0.6``, also after a `fit`.
        ``n_iter_``, ``converged_``, ``history_`` and ``n_observed_`` stay those of the first
        batch.

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
            As for `fit`, and if a column of the first batch has no observed value.
        """
        if not hasattr(self, "location_"):
            return self._fit_first_batch(X)
        X = self._with_nan(self._validate_incomplete(X, reset=False))
        self._refuse_overflow(X)
        rows = StandardizedRows(X[:, ~self.empty_features_], self._center, self._scale)
        family, model = self._distribution()
        batch = total(rows, lambda group: family.expectation(group, model), self.n_jobs)
        if batch is None:
            return self
        n_seen, n_batch = float(self.n_samples_seen_), float(batch.n_rows)
        weight = stepwise_weight(n_seen, n_batch)
        past = type(batch)(**as_tensors(self._sums))
        sums = multiply(
            add(multiply(past, (1 - weight) / n_seen), multiply(batch, weight / n_batch)),
            n_seen + n_batch,
        )
        self.__dict__.update(self._attributes(family.maximisation(sums)))
        self._sums = as_arrays(sums)
        self.n_samples_seen_ = int(n_seen + n_batch)
        return self

    def _refuse_overflow(self, X: Floats) -> None:
        fitted = np.flatnonzero(~self.empty_features_)
        with np.errstate(over="ignore"):
            squares = np.nansum(((X[:, fitted] - self._center) / self._scale) ** 2, axis=0)
        if not np.isfinite(squares).all():
            raise ValueError(
                f"Columns {fitted[~np.isfinite(squares)].tolist()} hold values whose squares are "
                "too large for float64; rescale them."
            )

    def _fit_first_batch(self, X: ArrayLike) -> Self:
        self.fit(X)
        if self.empty_features_.any():
            raise ValueError(
                "The first batch of partial_fit needs an observed value in every feature; "
                f"features {np.flatnonzero(self.empty_features_).tolist()} have none."
            )
        return self

    @single_thread()
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log density of the observed cells of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            log p(x_o) in nats and in the units of the data; 0 for a row with nothing observed.
        """
        check_is_fitted(self)
        X = self._validate_incomplete(X, reset=False)
        family, model = self._distribution()
        log_scale = np.log(self._scale)
        densities = []
        for block in row_blocks(X):
            rows = self._with_nan(X[block])[:, ~self.empty_features_]
            density = in_row_order(
                row_block(rows, self._center, self._scale),
                lambda group, _: family.log_density(group, model),
            )
            observed = ~np.isnan(rows)
            densities.append(np.where(observed.any(axis=1), density - observed @ log_scale, 0.0))
        return np.concatenate(densities)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Mean of `score_samples`: the observed-data log-likelihood per row.

        It is what ``GridSearchCV`` maximises by default, for example over ``shrinkage``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.
        y : None
            Ignored.

        Returns
        -------
        float
            Nats per row.
        """
        return float(self.score_samples(X).mean())

    @single_thread()
    def sample(
        self, X: ArrayLike, n_draws: int = 1, row_ids: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Draw the missing cells given the observed ones, for multiple imputation.

        A draw is a function of the seed fixed at fit, the index of the draw and the values of
        the row. It does not depend on the other rows, and a call repeats the last one. Rows that
        are equal therefore get equal draws, which are no independent imputations: pass
        ``row_ids=np.arange(len(X))`` or identifiers of your own to tell such rows apart.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.
        n_draws : int, default=1
            Number of draws.
        row_ids : array-like of int of shape (n_samples,), default=None
            Mixed into the key of each row, where equal rows need different draws.

        Returns
        -------
        ndarray of shape (n_draws, n_samples, n_features_kept), float64
            Complete rows, without indicator columns. Observed cells are those of ``X``.

        Warns
        -----
        UserWarning
            If incomplete rows are equal and ``row_ids`` does not tell them apart.
        """
        check_is_fitted(self)
        if not isinstance(n_draws, Integral) or n_draws < 1:
            raise ValueError(f"n_draws must be an integer of at least 1, got {n_draws!r}.")
        X = self._validate_incomplete(X, reset=False)
        keys = row_keys(self._with_nan(X), self._seed, row_ids)
        self._warn_of_equal_draws(keys[np.isnan(self._with_nan(X)).any(axis=1)])
        draws = np.empty((n_draws, len(X), len(self._kept_features())))
        for index in range(n_draws):
            for block in row_blocks(X):
                rows = self._with_nan(X[block])
                drawer = self._drawer(keys[block], index)
                filled = self._filled(rows, np.isnan(rows), drawer)
                draws[index, block] = filled[:, self._kept_features()]
        return draws

    def _warn_of_equal_draws(self, keys: NDArray[np.uint64]) -> None:
        n_equal = len(keys) - len(np.unique(keys))
        if n_equal:
            warn_user(
                f"{n_equal} incomplete rows equal another row and get its draws; pass row_ids "
                "to give them draws of their own."
            )

    def _store(self, result: EMResult) -> None:
        for name in ("loadings_", "noise_variance_", "degrees_of_freedom_", "n_factors_"):
            self.__dict__.pop(name, None)
        self.__dict__.update(self._attributes(result.inner))
        self._sums = as_arrays(result.sums)
        self.n_samples_seen_ = int(result.sums.n_rows)
        self.shrinkage_ = self._family["shrinkage"]
        self.n_iter_, self.converged_ = max(result.n_iter, 1), result.converged
        fitted = ~self.empty_features_
        units = float(self.n_observed_[fitted] @ np.log(self._scale)) / self.n_samples_seen_
        self.history_ = {
            name: [value - units for value in values] for name, values in result.history.items()
        }

    def _attributes(self, parameters: Any) -> dict[str, Any]:
        """The fitted attributes that follow from parameters in standardised units."""
        arrays = as_arrays(parameters)
        scale = self._scale
        attributes: dict[str, Any] = {
            "_parameters": arrays,
            "location_": self._center + scale * arrays["location"],
        }
        if "loadings" in arrays:
            loadings = arrays["loadings"] * scale[:, np.newaxis]
            noise = np.exp(arrays["log_noise"]) * scale**2
            attributes |= {
                "loadings_": loadings,
                "noise_variance_": noise,
                "n_factors_": loadings.shape[1],
                "covariance_": loadings @ loadings.T + np.diag(noise),
            }
        else:
            attributes["covariance_"] = arrays["covariance"] * np.outer(scale, scale)
        if "log_degrees" in arrays:
            attributes["degrees_of_freedom_"] = float(np.exp(arrays["log_degrees"]))
        return attributes

    def _distribution(self) -> tuple[Family, Any]:
        """The fitted family and its model, rebuilt from arrays."""
        kind = KINDS[self._kind]
        family = kind.family(**self._family)
        return family, family.model(kind.parameters(**as_tensors(self._parameters)))

    def _completer(self) -> RowCompleter:
        family, model = self._distribution()
        return lambda rows, _: completed_rows(family, model, rows, self._center, self._scale)

    def _drawer(self, keys: NDArray[np.uint64], draw: int) -> RowCompleter:
        family, model = self._distribution()
        width = family.noise_width(len(self._center))

        def complete(rows: Floats, where: NDArray[np.bool_]) -> Floats:
            block = row_block(rows, self._center, self._scale)
            noise = torch.from_numpy(row_normal(keys[where][block.order], draw, width))
            drawn = in_row_order(block, lambda group, at: family.drawn(group, model, noise[at]))
            return drawn * self._scale + self._center

        return complete
