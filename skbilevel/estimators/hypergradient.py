"""Whether rows of the target that nothing has seen still ask for other weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from skbilevel._sklearn import ConvergenceWarning, warn_user
from skbilevel.estimators.gradient_result import GradientResult, check_level
from skbilevel.estimators.hypergradient_rows import (
    FittedRows,
    FreshRows,
    check_testable,
    fitted_rows,
    fresh_rows,
)
from skbilevel.estimators.linear_head import Units, units_of
from skbilevel.estimators.linear_hypergradient import group_gradient
from skbilevel.estimators.reweighting_fit import sample_of
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.linear_loss import CROSS_ENTROPY, SQUARED
from skbilevel.objectives.reweighting import ReweightedLinear, reweighted_linear

# Coefficients that differ by more are not those of the same rows.
_SAME = 1e-4


@dataclass(frozen=True)
class HypergradientTest(GradientResult):
    """What `hypergradient_test` returns.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
        Derivative of the loss of ``X_val`` in the logarithm of the weight of each group. Where it
        is negative, more weight lowers the loss. They sum to 0.
    cov_ : ndarray of shape (p, p)
        Of ``coef_``, by the noise of the rows of ``X_val`` and of those of the fit.
    scores_ : ndarray of shape (n_val + n_fit, p)
        Of the rows of both, whose mean is ``coef_``.
    groups_ : tuple of length p
        Names of the groups.
    shares_ : ndarray of shape (p,)
        Of the weight in the fit.
    n_val_ : int
        Rows of ``X_val``.
    level : float
        Of the intervals in the summary, and of the certainty that ``converged_`` asks for.
    """

    groups_: tuple
    shares_: np.ndarray
    n_val_: int
    level: float

    @property
    def converged_(self) -> bool:
        """Whether the gradient cannot be told from 0, at significance ``1 - level``: no descent is
        left that these rows could show."""
        return self.stationarity_test().pvalue >= 1 - self.level

    def summary(self, level: float | None = None) -> str:
        """A table in plain text: intervals of each group, and the test of all of them.

        Parameters
        ----------
        level : float, default=None
            Of the intervals; None is that of the test.

        Returns
        -------
        str
        """
        level = self.level if level is None else level
        names = [str(name) for name in self.groups_]
        width = max(map(len, ["group", *names]))
        interval = f"{100 * level:g} % interval"
        lines = [
            f"Derivative of the mean loss of {self.n_val_} rows in the log weight of groups",
            f"{'group':{width}s}{'share':>8s}{'coef':>12s}{'std err':>12s}{interval:>26s}",
        ]
        columns = (names, self.shares_, self.coef_, self.stderr_, self.conf_int(level))
        for name, share, coef, stderr, (low, high) in zip(*columns, strict=True):
            bounds = f"[{low:.4g}, {high:.4g}]"
            lines.append(f"{name:{width}s}{share:8.3f}{coef:12.4g}{stderr:12.4g}{bounds:>26s}")
        test = self.stationarity_test()
        verdict = "not told from 0" if self.converged_ else "other weights lower the loss"
        lines.append(f"chi2({test.df}) = {test.statistic:.2f}, p = {test.pvalue:.3g}: {verdict}")
        return "\n".join(lines)


@single_thread()
def hypergradient_test(
    estimator: Any,
    X_val: ArrayLike,
    y_val: ArrayLike,
    *,
    X: ArrayLike | None = None,
    y: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> HypergradientTest:
    """The gradient of the target's loss in the weights of a fitted model, with its errors.

    Parameters
    ----------
    estimator : ReweightingRegressor or ReweightingClassifier
        Fitted, with the linear default as its final estimator.
    X_val : array-like of shape (n_val, n_features)
        Rows of the target that the fit has not seen. On target rows that have led the weights
        the gradient is about 0 because they have, and looks as if nothing was left to gain.
    y_val : array-like of shape (n_val,)
    X, y : array-like of shape (n_samples, n_features) and (n_samples,), default=None
        The rows of the fit as they were given to it, and below them its ``X_val``, ``y_val`` if
        there were any and they count. They are needed only for an estimator that was pickled,
        copied or loaded: these do not carry their rows along.
    groups : array-like of shape (n_samples,), default=None
        Labels of at least two groups of the rows of the fit; those of its ``X_val`` are a group of
        their own unless they have labels as well. None: the ``source_groups`` of the fit, or else
        its clusters with "group" and "auto", or else quarters of the training rows by their
        weight; target rows that count in the fit are a group of their own.
    level : float, default=0.95
        Of intervals in the summary; ``1 - level`` is the significance of ``converged_``.

    Returns
    -------
    HypergradientTest
        With ``coef_``, ``stderr_`` and ``cov_`` for the groups in ``groups_``,
        ``conf_int(level, joint=False)``, ``stationarity_test()`` (statistic, pvalue and df),
        ``norm_upper_bound(level)``, ``converged_``, and a table as text by ``summary()``.

    Raises
    ------
    TypeError
        If ``estimator`` is no reweighting estimator, or its final one not the linear default.
    ValueError
        If rows do not fit those of the fit, ``y_val`` has a class that was not there, there are
        fewer than two rows or groups, or the final model is not the minimum of a weighted loss of
        the rows of the fit, with ``refit=None`` and ``relabel=True``.
    sklearn.exceptions.NotFittedError
        If the estimator has not been fitted.

    Warns
    -----
    ConvergenceWarning
        If a linear system could not be solved, for an ``l2`` next to 0.

    See Also
    --------
    ReweightingRegressor, ReweightingClassifier : What is tested.

    Notes
    -----
    With weights ``w_i exp(omega_k)`` for the rows of group k and theta*(omega) the parameters of
    the linear model, this is the gradient at omega = 0 of F, the mean of ``l(theta*(omega))`` over
    the rows of ``X_val``, where l is half the squared error of ``y`` or the log-loss in nats.
    Weights are shares: a factor of all of them changes nothing, so that the covariance has rank
    p - 1 at most, which is ``df`` of the test.

    F depends on the rows of the fit as well, by theta*. Their noise is part of the covariance:
    each row of either sample has a score, and the covariances of the means of both add up
    (`skbilevel.objectives.two_sample`). Without it, intervals cover far less than they say.
    Weights, groups, ``l2`` and the scales of columns are taken as they are, and the rows of each
    sample as drawn independently; a row is one observation whatever its ``sample_weight``.

    Intervals and the test are those of large samples: every group needs some dozens of rows. Where
    all groups and the target follow one and the same model, the gradient is a product of two
    errors, of about half the variance that is told: intervals are then too wide, and the test
    finds something less often than it may.

    References
    ----------
    El Khoury, Zenati, Kallus, Arbel and Bibaut (2026), Semiparametric efficient bilevel gradient
    estimation, arXiv 2605.21341.

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel import ReweightingRegressor, hypergradient_test
    >>> rng = np.random.default_rng(0)
    >>> X, source = rng.normal(size=(700, 2)), np.repeat(["good", "bad", "new"], [300, 300, 100])
    >>> slopes = np.where(source[:, np.newaxis] == "bad", [2.0, -1.0], [1.0, 1.0])
    >>> y = (X * slopes).sum(axis=1) + 0.5 * rng.normal(size=700)
    >>> old, new = source != "new", source == "new"
    >>> model = ReweightingRegressor(weighting="uniform", refit="train", l2=1e-4)
    >>> X_val, y_val = X[new][:50], y[new][:50]
    >>> fit = model.fit(X[old], y[old], X_val=X_val, y_val=y_val, source_groups=source[old])
    >>> test = hypergradient_test(fit, X[new][50:], y[new][50:])
    >>> test.groups_
    ('bad', 'good')
    >>> bool(test.conf_int()[0, 0] > 0)  # less weight for the bad ones
    True
    >>> test.converged_
    False
    """
    check_level(level)
    check_testable(estimator)
    rows = fitted_rows(estimator, X, y, groups)
    fresh = fresh_rows(estimator, X_val, y_val)
    problem, units = _problem(estimator.estimator_, rows, fresh)
    found = group_gradient(problem, rows.shares, rows.codes, len(rows.names))
    _check_same(estimator.estimator_, units, found.theta)
    if not found.converged:
        warn_user(
            "The linear systems of the hypergradient were not solved, so that its errors are not "
            "what they should be: raise l2 of the estimator.",
            ConvergenceWarning,
        )
    result, square = found.result, units.y_scale**2
    return HypergradientTest(
        square * result.coef_,
        square**2 * result.cov_,
        square * result.scores_,
        rows.names,
        np.bincount(rows.codes, rows.shares),
        len(fresh.y),
        level,
    )


def _problem(head: Any, rows: FittedRows, fresh: FreshRows) -> tuple[ReweightedLinear, Units]:
    """The weighted problem that a head has solved, judged by fresh rows."""
    classes = getattr(head, "classes_", None)
    numbers = rows.y if classes is None else None
    units = units_of(rows.X, numbers, rows.shares, head.standardize, head.fit_intercept)
    train = sample_of(rows.X, rows.y, rows.shares, units, classes)
    target = sample_of(fresh.X, fresh.y, np.ones(len(fresh.y)), units, classes)
    X, Y, X_target, Y_target = map(torch.from_numpy, (train.X, train.Y, target.X, target.Y))
    loss = SQUARED if classes is None else CROSS_ENTROPY
    return reweighted_linear(X, Y, X_target, Y_target, loss, head.l2), units


def _check_same(head: Any, units: Units, theta: np.ndarray) -> None:
    known = np.atleast_2d(head.coef_)
    coef, _ = units.coefficients(theta.reshape(-1, len(known)))
    if np.abs(coef - known).max() > _SAME * np.abs(known).max() + np.finfo(float).tiny:
        raise ValueError(
            "X and y are not the rows that the estimator was fitted with, in their order: with "
            "its weights they lead to other coefficients."
        )
