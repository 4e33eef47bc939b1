"""What an imputer with a distribution can do: draw missing cells, and score rows.

Draws depend on the row and not on its batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbilevel._sklearn import check_is_fitted, warn_user
from skbilevel.estimators.imputer import Floats, Imputer
from skbilevel.numerics.random import row_keys
from skbilevel.numerics.row_groups import row_blocks
from skbilevel.numerics.threads import single_thread

# (rows (b, d) with NaN at missing cells, their keys (b,)) -> complete rows (n_draws, b, d)
RowDrawer = Callable[[Floats, NDArray[np.uint64]], Floats]


# Rows (b, d) with NaN at missing cells -> log densities (b,) in the units of the data
RowScorer = Callable[[Floats], NDArray[np.float64]]


class ProbabilisticImputer(Imputer):
    """Base of the imputers that know a distribution of the missing cells.

    A subclass sets ``_seed`` at fit.
    """

    _seed: int

    @abstractmethod
    def _drawer(self, n_draws: int) -> RowDrawer:
        """A function that completes rows with the columns that are not empty, each by itself."""

    @abstractmethod
    def _scorer(self) -> RowScorer:
        """A function of rows with the columns that are not empty."""

    @single_thread()
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log density of what is observed of each row, or a lower bound of it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            In nats and in the units of the data; -inf for a row whose squares overflow. Without a
            model of the mask it is of the observed cells, and 0, or an estimate of it, for a row
            that has none.
        """
        check_is_fitted(self)
        X = self._incomplete(X)
        score = self._scorer()
        return np.concatenate([score(X[block]) for block in row_blocks(X)])

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Mean of `score_samples`, which ``GridSearchCV`` maximises by default.

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
        the row. It does not depend on the other rows (up to rounding), and a call repeats the
        last one. Rows that are equal therefore get equal draws, which are no independent
        imputations: pass ``row_ids=np.arange(len(X))`` or integers of your own to tell such
        rows apart.

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

        Raises
        ------
        ValueError
            If ``n_draws`` is no positive integer, or a row is too extreme for float64.
        """
        check_is_fitted(self)
        if not isinstance(n_draws, Integral) or isinstance(n_draws, bool) or n_draws < 1:
            raise ValueError(f"n_draws must be an integer of at least 1, got {n_draws!r}.")
        X = self._with_nan(self._validate_incomplete(X, reset=False))
        keys = row_keys(X, self._seed, row_ids)
        self._warn_of_equal_draws(keys[np.isnan(self._fitted_columns(X)).any(axis=1)])
        kept, draw = self._kept_features(), self._drawer(n_draws)
        draws = np.empty((n_draws, len(X), len(kept)))
        for block in row_blocks(X):
            draws[:, block] = self._drawn(X[block], keys[block], n_draws, draw)[:, :, kept]
        return draws

    def _drawn(
        self, rows: Floats, keys: NDArray[np.uint64], n_draws: int, draw: RowDrawer
    ) -> NDArray[np.float64]:
        """All features of a block, (n_draws, b, n_features); empty features are 0."""
        drawn = np.empty((n_draws, *rows.shape))
        drawn[:] = np.where(np.isnan(rows), 0.0, rows)
        fitted = np.flatnonzero(~self.empty_features_)
        incomplete = np.flatnonzero(np.isnan(rows[:, fitted]).any(axis=1))
        if len(incomplete):
            given = rows[np.ix_(incomplete, fitted)]
            draws = draw(given, keys[incomplete])
            self._finite(draws.reshape(-1, len(fitted)), np.float64)
            completed = np.where(np.isnan(given), draws, given)
            drawn[:, incomplete[:, np.newaxis], fitted] = completed
        return drawn

    def _warn_of_equal_draws(self, keys: NDArray[np.uint64]) -> None:
        n_equal = len(keys) - len(np.unique(keys))
        if n_equal:
            warn_user(
                f"{n_equal} incomplete rows equal another row and get its draws; pass row_ids "
                "to give them draws of their own."
            )
