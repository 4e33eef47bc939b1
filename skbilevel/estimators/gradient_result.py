"""Estimates that are means of scores, as a user sees them: intervals, tests, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from scipy.stats import chi2, norm
from sklearn.utils import check_random_state

from skbilevel.estimators.estimate_table import estimate_table

_N_DRAWS = 2000
# Rows of scores that are multiplied at once.
_BLOCK = 4096
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
class Estimate:
    """An estimate that is a mean of scores.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
        What is estimated.
    cov_ : ndarray of shape (p, p)
        Its covariance.
    scores_ : ndarray of shape (n, p)
        Of rows, or of clusters of rows as times of an average one: their mean is the estimate,
        up to what is the same in all, and their covariance over n is that of the estimate.
    """

    coef_: np.ndarray
    cov_: np.ndarray = field(repr=False)
    scores_: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, scores: np.ndarray, **others: Any) -> Self:
        """From scores (n, p)."""
        return cls(scores.mean(axis=0), covariance_of_mean(scores), scores, **others)

    @property
    def stderr_(self) -> np.ndarray:
        """Standard errors, (p,)."""
        return np.sqrt(np.diag(self.cov_))

    def conf_int(
        self, level: float = 0.95, *, joint: bool = False, random_state: Any = None
    ) -> np.ndarray:
        """Wald intervals, ``coef_ ± q stderr_``.

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

    def summary(self, level: float = 0.95) -> str:
        """A table of the estimate, its standard errors and intervals.

        Parameters
        ----------
        level : float, default=0.95

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If ``level`` is not between 0 and 1.
        """
        check_level(level)
        names = [f"[{number}]" for number in range(len(self.coef_))]
        return "\n".join(estimate_table(names, self.coef_, self.stderr_, level))


@dataclass(frozen=True)
class GradientResult(Estimate):
    """An estimate of a gradient.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
        The gradient.
    cov_ : ndarray of shape (p, p)
        Its covariance.
    scores_ : ndarray of shape (n, p)
        Of rows, or of clusters of rows as times of an average one: their mean is the gradient,
        up to what is the same in all, and their covariance over n is that of the gradient.
    """

    def stationarity_test(self) -> StationarityTest:
        """Whether the gradient can be told from 0.

        Where the covariance is singular, only directions that vary are tested; of coordinates in
        units of their own standard errors, so that a small one is not taken for one that does not.
        """
        return wald_test(self.coef_, self.cov_)

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


Each = TypeVar("Each", bound="Estimate")


def median_of(estimates: Sequence[Each]) -> Each:
    """Of repeated splits: the median of each coordinate, with the variance
    ``median_r(se_r^2 + (coef_r - coef)^2)`` [1]_; correlations are those of the mean over
    repetitions of the matrices whose diagonal is in the brackets.

    References
    ----------
    .. [1] V. Chernozhukov et al. (2018). Double/debiased machine learning for treatment and
       structural parameters. Econometrics Journal 21(1), definition 3.3.
    """
    if len(estimates) == 1:
        return estimates[0]
    coef = np.median([each.coef_ for each in estimates], axis=0)
    gaps = [each.coef_ - coef for each in estimates]
    spread = [each.cov_ + np.outer(gap, gap) for each, gap in zip(estimates, gaps, strict=True)]
    mean = np.mean(spread, axis=0)
    variance = np.median([np.diag(each) for each in spread], axis=0)
    own = np.diag(mean)
    scale = np.sqrt(np.divide(variance, own, out=np.zeros_like(own), where=own > 0))
    scores = np.mean([each.scores_ for each in estimates], axis=0)
    return replace(
        estimates[0], coef_=coef, cov_=scale[:, np.newaxis] * mean * scale, scores_=scores
    )


def wald_test(coef: np.ndarray, cov: np.ndarray) -> StationarityTest:
    """Whether an estimate (p,) with covariance (p, p) can be told from 0, in directions in which
    it varies."""
    scale = np.sqrt(np.diag(cov))
    unit = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(cov / unit / unit[:, np.newaxis])
    kept = values > len(values) * _ROUNDING * max(values[-1], 0.0)
    along = vectors[:, kept].T @ (coef / unit)
    statistic, df = float(np.sum(along**2 / values[kept])), int(kept.sum())
    return StationarityTest(statistic, float(chi2.sf(statistic, df)) if df else 1.0, df)


def covariance_of_mean(scores: np.ndarray) -> np.ndarray:
    """Of the mean of scores (n, p), (p, p)."""
    centred = scores - scores.mean(axis=0)
    return centred.T @ centred / len(scores) / max(len(scores) - 1, 1)


def joint_quantile(scores: np.ndarray, level: float, rng: np.random.RandomState) -> float:
    """Quantile of the largest absolute t value of means of scores (n, p) whose rows are multiplied
    by independent normal numbers. Coordinates that do not vary are left out."""
    centred = scores - scores.mean(axis=0)
    spread = np.sqrt(np.square(centred).sum(axis=0))
    rounding = len(scores) * np.finfo(float).eps * np.abs(scores).max(axis=0)
    varies = spread > rounding
    if not varies.any():
        return float(norm.ppf((1 + level) / 2))
    scaled = centred[:, varies] / spread[varies]
    draws = np.zeros((_N_DRAWS, scaled.shape[1]))
    for start in range(0, len(scores), _BLOCK):
        some = scaled[start : start + _BLOCK]
        draws += rng.standard_normal((_N_DRAWS, len(some))) @ some
    return float(np.quantile(np.abs(draws).max(axis=1), level))


def joint_normal_quantile(
    rows: np.ndarray, cov: np.ndarray, level: float, rng: np.random.RandomState
) -> float:
    """The same of rows (m, p) times a normal estimate with covariance (p, p)."""
    values, vectors = np.linalg.eigh(cov)
    root = rows @ (vectors * np.sqrt(np.maximum(values, 0)))
    stderr = np.sqrt(np.square(root).sum(axis=1))
    varies = stderr > 0
    if not varies.any():
        return float(norm.ppf((1 + level) / 2))
    draws = rng.standard_normal((_N_DRAWS, len(cov))) @ (root[varies] / stderr[varies, None]).T
    return float(np.quantile(np.abs(draws).max(axis=1), level))


def interval_width(
    rows: np.ndarray, cov: np.ndarray, level: float, joint: bool, random_state: Any
) -> float:
    """Standard errors to both sides, of rows (m, p) times a normal estimate with covariance
    (p, p): for each by itself, or for all at once.

    Raises
    ------
    ValueError
        If ``level`` is no probability.
    """
    check_level(level)
    if joint:
        return joint_normal_quantile(rows, cov, level, check_random_state(random_state))
    return float(norm.ppf((1 + level) / 2))


def check_level(level: float) -> None:
    """Raise a ValueError unless it is a probability between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must be between 0 and 1.")
