"""An estimated gradient as a user sees it: intervals, a test of stationarity, a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2, norm
from sklearn.utils import check_random_state

_N_DRAWS = 2000
# Of correlations: directions that vary less are those of a singular covariance.
_ROUNDING = 1e-12


class StationarityTest(NamedTuple):
    """Of the hypothesis that the gradient is 0.

    Attributes
    ----------
    statistic : float
        G' cov^-1 G.
    pvalue : float
        By the chi-squared distribution with ``df`` degrees of freedom.
    df : int
        Rank of the covariance.
    """

    statistic: float
    pvalue: float
    df: int


@dataclass(frozen=True)
class GradientResult:
    """An estimate of a gradient that is a mean of scores.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
        The gradient.
    cov_ : ndarray of shape (p, p)
        Its covariance.
    scores_ : ndarray of shape (n, p)
        Whose mean it is, up to a correction that is the same in every row.
    """

    coef_: np.ndarray
    cov_: np.ndarray
    scores_: np.ndarray

    @property
    def stderr_(self) -> np.ndarray:
        """Standard errors, (p,)."""
        return np.sqrt(np.diag(self.cov_))

    def conf_int(
        self, level: float = 0.95, *, joint: bool = False, random_state: Any = None
    ) -> np.ndarray:
        """Wald intervals.

        Parameters
        ----------
        level : float, default=0.95
        joint : bool, default=False
            Intervals that hold at once for all coordinates: a quantile of the largest of their
            absolute t values takes the place of the normal one, by a multiplier bootstrap.
        random_state : int, RandomState instance or None, default=None
            Draws the multipliers.

        Returns
        -------
        ndarray of shape (p, 2)

        Raises
        ------
        ValueError
            If ``level`` is not between 0 and 1.
        """
        check_level(level)
        width = norm.ppf((1 + level) / 2)
        if joint:
            width = joint_quantile(self.scores_, level, check_random_state(random_state))
        return self.coef_[:, np.newaxis] + width * self.stderr_[:, np.newaxis] * [-1, 1]

    def stationarity_test(self) -> StationarityTest:
        """Whether the gradient can be told from 0.

        Where the covariance is singular, only directions that vary are tested; of coordinates in
        units of their own standard errors, so that a small one is not taken for one that does not.
        """
        unit = np.where(self.stderr_ > 0, self.stderr_, 1.0)
        values, vectors = np.linalg.eigh(self.cov_ / np.outer(unit, unit))
        kept = values > len(values) * _ROUNDING * max(values[-1], 0.0)
        along = vectors[:, kept].T @ (self.coef_ / unit)
        statistic, df = float(np.sum(along**2 / values[kept])), int(kept.sum())
        pvalue = float(chi2.sf(statistic, df)) if df else 1.0
        return StationarityTest(statistic, pvalue, df)

    def norm_upper_bound(self, level: float = 0.95) -> float:
        """What the norm of the gradient is below, with that probability at least:
        ``|G| + sqrt(lambda_max(cov) chi2_{p, level})``.

        Raises
        ------
        ValueError
            If ``level`` is not between 0 and 1.
        """
        check_level(level)
        largest = float(np.linalg.eigvalsh(self.cov_)[-1])
        radius = np.sqrt(max(largest, 0.0) * chi2.ppf(level, len(self.coef_)))
        return float(np.linalg.norm(self.coef_) + radius)


def joint_quantile(scores: np.ndarray, level: float, rng: np.random.RandomState) -> float:
    """Quantile of the largest absolute t value of means of scores (n, p) whose rows are multiplied
    by independent normal numbers. Coordinates that do not vary are left out."""
    centred = scores - scores.mean(axis=0)
    spread = np.sqrt(np.square(centred).sum(axis=0))
    rounding = len(scores) * np.finfo(float).eps * np.abs(scores).max(axis=0)
    varies = spread > rounding
    if not varies.any():
        return float(norm.ppf((1 + level) / 2))
    draws = rng.standard_normal((_N_DRAWS, len(scores))) @ (centred / np.where(varies, spread, 1))
    return float(np.quantile(np.abs(draws[:, varies]).max(axis=1), level))


def check_level(level: float) -> None:
    """Raise a ValueError unless it is a probability between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must be between 0 and 1.")
