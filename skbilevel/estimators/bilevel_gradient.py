"""The gradient of a bilevel objective whose inner problem is learnt: `BilevelGradient`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import has_fit_parameter

from skbilevel._sklearn import (
    ConvergenceWarning,
    HasMethods,
    Interval,
    StrOptions,
    check_is_fitted,
    fit_method,
    validate_data,
    warn_user,
)
from skbilevel.estimators.bilevel_nuisances import (
    BilevelTold,
    Newton,
    Problem,
    rows_at,
    tell_bilevel,
)
from skbilevel.estimators.gradient_result import Estimate, GradientResult, median_of
from skbilevel.estimators.moment_fit import Design
from skbilevel.estimators.moment_learning import (
    checked_groups,
    checked_omega,
    design_of,
    learner_of,
    repetitions_of,
    seed_of,
)
from skbilevel.estimators.moment_residual import as_tensors, checked_data
from skbilevel.estimators.nuisances import Folds, Learner, Split
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.orthogonal import (
    InnerDerivatives,
    OuterDerivatives,
    PointwiseLoss,
    adjoint_gradient,
    bilevel_score,
    bilevel_value,
    jacobian_gradient,
    losses_of,
)


class _Parts(NamedTuple):
    """Rows that are told, at one omega."""

    inner: InnerDerivatives
    outer: OuterDerivatives
    losses: torch.Tensor
    adjoint: torch.Tensor
    jacobian: torch.Tensor
    sensitivity: torch.Tensor
    design: Design


def _orthogonal(parts: _Parts) -> torch.Tensor:
    return bilevel_score(
        parts.inner, parts.outer, parts.jacobian, parts.adjoint, parts.sensitivity
    )


SCORES: dict[str, Callable[[_Parts], torch.Tensor]] = {
    "orthogonal": _orthogonal,
    "plug_in": lambda parts: adjoint_gradient(parts.inner, parts.outer, parts.adjoint),
    "plug_in_product": lambda parts: jacobian_gradient(parts.outer, parts.jacobian),
}


class BilevelGradient(BaseEstimator):
    """Gradient of a bilevel objective whose inner problem is learnt, debiased, with intervals.

    The inner solution is a function of X, the outer objective a mean at it ::

        h_omega(x) = argmin_v E[l_in(omega, v, O) | X = x],
        F(omega) = E[l_out(omega, h_omega(X), O)].

    A gradient with learnt h in it is biased to first order in the error of h. The orthogonal
    score of a row, with the derivatives ``u = d_v l_in``, ``H = d_v u``, ``B = d_omega u``,
    ``d = d_v l_out`` and ``g = d_omega l_out`` ::

        psi = g + J d + a (B + J H) + c u,
        J = -E[B|X] / E[H|X],    a = -E[d|X] / E[H|X],    c = da / domega,

    is not: its mean is the gradient, and its spread that of the estimate [1]_. h, the Jacobian J,
    the adjoint a and its sensitivity c are learnt on other folds, as regressions with the
    weights H; h by Newton's method.

    Parameters
    ----------
    inner_loss, outer_loss : callable
        ``loss(omega, prediction, row) -> scalar``, written in torch: omega has shape (p,), the
        prediction is a scalar, and row is one row of ``data``: a tensor, or a dict or tuple of
        them. ``inner_loss`` must be three times differentiable, and strictly convex in the
        prediction for every row.
    nuisance : regressor, default=None
        With ``sample_weight`` in its ``fit``; None is `NystroemRidge`. A smooth one: h is
        evaluated on the rows that it was learnt from, to learn J, a and c.
    cv : int, splitter or iterable of (train, test), default=5
        Folds; an int shuffles rows, or groups of rows. Test sets must not overlap.
    n_rep : int, default=1
        Times to split anew; the estimate is the median, and its variance the median of
        ``se^2 + (coef - median)^2``.
    score : {"orthogonal", "plug_in", "plug_in_product"}, default="orthogonal"
        For comparison: ``g + a B`` (functional implicit differentiation), and ``g + J d``.
    cross_fit : bool, default=True
        False: nuisances are learnt from the rows that they tell. For comparison.
    initial_prediction : float, default=0.0
        Where Newton's method starts, a point at which ``inner_loss`` is finite.
    max_iter : int, default=50
        Most Newton steps.
    tol : float, default=1e-5
        Root mean square of a step of h, relative to 1 + that of h, that ends them.
    random_state : int, RandomState instance or None, default=None
        Shuffles folds, and draws what nuisances draw.

    Attributes
    ----------
    nuisance_ : regressor
        The unfitted regressor in use.
    splits_ : list of list of (ndarray, ndarray)
        Training and test rows of each fold of each repetition: the same for every omega.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of shape (n_features,)
        If X had names.

    See Also
    --------
    ConditionalMomentGradient : For squared losses, where far more is known: corrections of second
        order, roots and diagnostics.
    hypergradient_test : For weights of training rows of linear models.

    Notes
    -----
    The bias is of second order: products of errors of two nuisances, or a squared one. Where they
    are hard to learn it shows, and nothing here would: compare nuisances, and ``undersmooth``.
    Features of `NystroemRidge`, its bandwidth among them, are chosen in each fold by the first
    Newton step, and serve h, J, a and c alike. With groups, ridges and bandwidth are chosen as if
    rows were independent: what rows of a group share beyond X can be taken for signal.

    References
    ----------
    .. [1] L. El Khoury, H. Zenati, N. Kallus, M. Arbel, A. Bibaut (2026). Semiparametric efficient
       bilevel gradient estimation. arXiv:2605.21341. The formulas were derived anew.
    .. [2] I. Petrulionytė, J. Mairal, M. Arbel (2024). Functional bilevel optimization for machine
       learning. NeurIPS.

    Examples
    --------
    Labels are smoothed before a logistic regression; how does the log-loss of the labels as they
    are change with how much?

    >>> import numpy as np, torch
    >>> from skbilevel import BilevelGradient
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(-1, 1, (1000, 1))
    >>> y = (rng.uniform(size=1000) < 1 / (1 + np.exp(-2 * X[:, 0]))) * 1.0
    >>> def inner_loss(omega, v, row):  # logistic regression of smoothed labels
    ...     label = (1 - omega[0]) * row["y"] + omega[0] / 2
    ...     return torch.nn.functional.softplus(v) - label * v
    >>> def outer_loss(omega, v, row):
    ...     return torch.nn.functional.softplus(v) - row["y"] * v
    >>> model = BilevelGradient(inner_loss, outer_loss, random_state=0).fit(X, {"y": y})
    >>> found = model.gradient([0.2])
    >>> found.coef_.round(3), found.stderr_.round(3)
    (array([0.055]), array([0.008]))
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "inner_loss": [callable],
        "outer_loss": [callable],
        "nuisance": [HasMethods(["fit", "predict"]), None],
        "cv": ["cv_object"],
        "n_rep": [Interval(Integral, 1, None, closed="left")],
        "score": [StrOptions(set(SCORES))],
        "cross_fit": ["boolean"],
        "initial_prediction": [Interval(Real, None, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        inner_loss: PointwiseLoss,
        outer_loss: PointwiseLoss,
        nuisance: Any = None,
        *,
        cv: Any = 5,
        n_rep: int = 1,
        score: str = "orthogonal",
        cross_fit: bool = True,
        initial_prediction: float = 0.0,
        max_iter: int = 50,
        tol: float = 1e-5,
        random_state: Any = None,
    ) -> None:
        self.inner_loss = inner_loss
        self.outer_loss = outer_loss
        self.nuisance = nuisance
        self.cv = cv
        self.n_rep = n_rep
        self.score = score
        self.cross_fit = cross_fit
        self.initial_prediction = initial_prediction
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @fit_method
    def fit(self, X: ArrayLike, data: Any, *, groups: ArrayLike | None = None) -> Self:
        """Take the rows, and split them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            What h is a function of.
        data : dict or tuple of array-like, DataFrame, or array-like
            Numbers, each part with n_samples rows, which losses get row by row; a DataFrame is a
            dict of its columns.
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
            other things than finite numbers, there are fewer rows (groups) than folds, or test
            sets of ``cv`` overlap one another or their training sets.
        TypeError
            If ``nuisance`` takes no ``sample_weight``.
        """
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        kept = checked_data(data, len(rows))
        as_tensors(kept)
        codes, seed = checked_groups(groups, len(rows)), seed_of(self.random_state)
        learner = learner_of(self.nuisance, "none", self.score, seed, self.cross_fit)
        if not has_fit_parameter(learner.nuisance, "sample_weight"):
            raise TypeError(f"nuisance={self.nuisance!r} takes no sample_weight, which is needed.")
        repetitions = repetitions_of(rows, codes, self.cv, self.n_rep, seed, self.cross_fit)
        self.nuisance_ = learner.nuisance
        self.splits_ = [[tuple(split) for split in each.splits] for each in repetitions]
        self._X, self._data, self._groups, self._seed = rows, kept, codes, seed
        return self

    @single_thread()
    def gradient(self, omega: ArrayLike) -> GradientResult:
        """Estimate the gradient of F at omega.

        Parameters
        ----------
        omega : array-like of shape (p,)

        Returns
        -------
        GradientResult
            With ``coef_``, ``stderr_``, ``cov_``, ``scores_``, ``conf_int(level, joint=...)``,
            ``stationarity_test()`` and ``norm_upper_bound(level)``.

        Raises
        ------
        ValueError
            If a derivative of a loss is not finite, or ``inner_loss`` is not strictly convex in
            the prediction.

        Warns
        -----
        ConvergenceWarning
            If h was not found in ``max_iter`` steps.
        """
        each = []
        for parts in self._parts(checked_omega(omega)):
            scores = SCORES[self.score](parts).numpy()
            each.append(GradientResult.of(parts.design.of_clusters(scores)))
        return median_of(each)

    @single_thread()
    def value(self, omega: ArrayLike) -> Estimate:
        """Estimate F at omega: the mean of ``l_out + a u``.

        Parameters
        ----------
        omega : array-like of shape (p,)

        Returns
        -------
        Estimate
            Of shape (1,), with ``coef_``, ``stderr_`` and ``conf_int(level)``.

        Raises
        ------
        ValueError
            As `gradient` does.
        """
        each = []
        for parts in self._parts(checked_omega(omega)):
            values = bilevel_value(parts.losses, parts.inner, parts.adjoint).numpy()
            each.append(Estimate.of(parts.design.of_clusters(values[:, np.newaxis])))
        return median_of(each)

    def _parts(self, omega: np.ndarray) -> list[_Parts]:
        """Of each repetition."""
        check_is_fitted(self)
        rows = as_tensors(self._data)
        problem = Problem(self.inner_loss, self.outer_loss, torch.from_numpy(omega), rows, self._X)
        learner = Learner(self.nuisance_, "none", self._seed)
        return [
            self._told(problem, learner, [Split(*split) for split in splits])
            for splits in self.splits_
        ]

    def _told(self, problem: Problem, learner: Learner, splits: Sequence[Split]) -> _Parts:
        newton = Newton(self.initial_prediction, self.max_iter, self.tol)
        told = [tell_bilevel(problem, learner, split, newton) for split in splits]
        if not all(each.converged for each in told):
            warn_user(
                f"h was not found in max_iter={self.max_iter} Newton steps: raise max_iter or "
                "tol, or take a smoother nuisance.",
                ConvergenceWarning,
            )
        folds = Folds(splits, np.zeros(len(self._X), dtype=bool), self._groups, self._seed)
        order = np.argsort(np.concatenate([split.test for split in splits]), kind="stable")
        some = folds.rows
        h, a, J, c = (_joined(told, name)[order] for name in BilevelTold._fields[:4])
        rows, predictions = rows_at(problem.rows, some), torch.from_numpy(h)
        return _Parts(
            problem.inner_at(h, some),
            problem.outer_at(h, some),
            losses_of(problem.outer, problem.omega, predictions, rows),
            torch.from_numpy(a),
            torch.from_numpy(J),
            torch.from_numpy(c),
            design_of(folds, self.score),
        )


def _joined(told: Sequence[BilevelTold], name: str) -> np.ndarray:
    return np.concatenate([getattr(each, name) for each in told])
