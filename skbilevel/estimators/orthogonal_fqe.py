"""The value of a policy from data of another one, with an interval: `OrthogonalFQE`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils import check_array, check_consistent_length

from skbilevel._sklearn import (
    HasMethods,
    Interval,
    StrOptions,
    check_is_fitted,
    column_or_1d,
    fit_method,
    validate_data,
    warn_user,
)
from skbilevel.estimators.estimate_table import estimate_table
from skbilevel.estimators.gradient_result import (
    Estimate,
    check_level,
    covariance_of_mean,
    interval_width,
    median_of,
)
from skbilevel.estimators.moment_fit import Design, MomentRoot, combined
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
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.orthogonal import MOMENT_SCORES

# Actions that an error lists.
_FEW = 10


class OrthogonalFQE(BaseEstimator):
    """Fitted Q-evaluation with an orthogonal score: what a policy is worth, with an interval.

    From transitions (S, A, R, S') of whatever policy made them, the action values of a target
    policy pi are fitted as ``Q(s, a) = psi(s, a)'omega``. With
    ``psi_pi(s) = sum_a pi(a | s) psi(s, a)``, the Bellman residual is ::

        r = D'omega - R,    D = psi(S, A) - gamma (1 - done) psi_pi(S'),

    and omega minimises ``1/2 E[E[r | S, A]^2]``. The mean of the squared residual itself would
    be biased by the noise of S', which r and D share (double sampling); here
    ``K = E[D | S, A]`` and ``mu = E[R | S, A]`` are learnt by regressions on other folds, and
    enter by an orthogonal score [1]_. The value of the policy is the mean of psi_pi(S_0)'omega.

    Parameters
    ----------
    policy : callable or array-like of shape (n_actions,)
        ``policy(states) -> (n, n_actions)``, probabilities of the actions in the order of
        ``actions_``; or the same probabilities in every state. With ``policy_kind="actions"``,
        ``policy(states) -> actions``, like those that `fit` gets: labels, where these are text or
        booleans, or numbers.
    gamma : float, default=0.99
        Discount, from 0 to 1; the latter only where episodes end.
    features : callable, default=None
        ``features(states, actions) -> psi`` of shape (n, p). None is, for each of several actions,
        a constant, the columns of the state, their squares and their products; for actions that
        are numbers of a kind, the same of state and action together.
    nuisance : regressor, default=None
        Learns R and gamma (1 - done) psi_pi(S') from state and action; None is
        `NystroemRidge`. It sees the columns of the state, then an indicator of each action but the
        first, or the columns of the action.
    policy_kind : {"probabilities", "actions"}, default="probabilities"
        What ``policy`` gives.
    cv : int, splitter or iterable of (train, test), default=5
        Folds; an int shuffles rows, or groups of rows.
    n_rep : int, default=1
        Times to split anew.
    correction : {"auto", "second_order", "disjoint", "none"}, default="auto"
        For noise that nuisances share; see `ConditionalMomentGradient`.
    score : {"orthogonal", "plug_in", "plug_in_product", "instrument"}, default="orthogonal"
        See `ConditionalMomentGradient`.
    cross_fit : bool, default=True
        False: nuisances are learnt from the transitions that they tell. For comparison.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    value_ : float
        Of the policy, in units of discounted reward.
    value_stderr_ : float
        That of omega, and of the sample of initial states.
    coef_ : ndarray of shape (p,)
        omega.
    stderr_ : ndarray of shape (p,)
    cov_ : ndarray of shape (p, p)
    actions_ : ndarray of shape (n_actions,) or None
        Sorted labels; None where actions are numbers, with ``policy_kind="actions"``.
    nuisance_scores_ : dict of str to float
        R2 of what is told of the reward and of each feature of what comes next, on transitions
        that the models have not seen.
    hessian_strength_ : float
        Smallest eigenvalue of the Hessian over its standard error. Below 2 there is a warning.
    correction_ : str
        What "auto" came to.
    correction_gap_ : float
        How far the correction has moved the value, in standard errors.
    n_features_in_ : int
        Columns of the state.
    feature_names_in_ : ndarray of shape (n_features,)
        If states had names.

    See Also
    --------
    OrthogonalIVRegressor : The same for instruments.
    ConditionalMomentGradient : For other models of Q.

    Notes
    -----
    Where Q is of the form psi'omega, least-squares temporal differences (LSTDQ) estimate the same
    omega without nuisances, and do about as well. Where it is not, this is the best approximation
    in the mean squared Bellman error of the data, and the interval is for the value by it.

    References
    ----------
    .. [1] L. El Khoury, H. Zenati, N. Kallus, M. Arbel, A. Bibaut (2026). Semiparametric efficient
       bilevel gradient estimation. arXiv:2605.21341. The formulas were derived anew.
    .. [2] H. Le, C. Voloshin, Y. Yue (2019). Batch policy learning under constraints. ICML.

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel import OrthogonalFQE
    >>> rng = np.random.default_rng(0)
    >>> S = rng.normal(size=(2000, 1))
    >>> A = rng.integers(2, size=2000)
    >>> R = S[:, 0] + A + rng.normal(size=2000)
    >>> S_next = 0.5 * S + rng.normal(size=(2000, 1))
    >>> model = OrthogonalFQE([0.0, 1.0], gamma=0.5, random_state=0)  # always the second action
    >>> model = model.fit(S, A, R, S_next, initial_states=rng.normal(size=(500, 1)))
    >>> round(model.value_, 2), round(model.value_stderr_, 2)  # 2 is 1 / (1 - gamma)
    (2.11, 0.1)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "policy": [callable, "array-like"],
        "gamma": [Interval(Real, 0, 1, closed="both")],
        "features": [callable, None],
        "nuisance": [HasMethods(["fit", "predict"]), None],
        "policy_kind": [StrOptions({"probabilities", "actions"})],
        "cv": ["cv_object"],
        "n_rep": [Interval(Integral, 1, None, closed="left")],
        "correction": [StrOptions(set(CORRECTIONS))],
        "score": [StrOptions(set(MOMENT_SCORES))],
        "cross_fit": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        policy: Callable[[np.ndarray], ArrayLike] | ArrayLike,
        gamma: float = 0.99,
        features: Callable[[np.ndarray, np.ndarray], ArrayLike] | None = None,
        nuisance: Any = None,
        *,
        policy_kind: str = "probabilities",
        cv: Any = 5,
        n_rep: int = 1,
        correction: str = "auto",
        score: str = "orthogonal",
        cross_fit: bool = True,
        random_state: Any = None,
    ) -> None:
        self.policy = policy
        self.gamma = gamma
        self.features = features
        self.nuisance = nuisance
        self.policy_kind = policy_kind
        self.cv = cv
        self.n_rep = n_rep
        self.correction = correction
        self.score = score
        self.cross_fit = cross_fit
        self.random_state = random_state

    @fit_method
    @single_thread()
    def fit(
        self,
        S: ArrayLike,
        A: ArrayLike,
        R: ArrayLike,
        S_next: ArrayLike,
        done: ArrayLike | None = None,
        *,
        initial_states: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Learn the nuisances, and solve for omega.

        Parameters
        ----------
        S : array-like of shape (n_samples, n_features)
            States.
        A : array-like of shape (n_samples,) or (n_samples, n_action_features)
            Actions taken there; labels of any kind with ``policy_kind="probabilities"``.
        R : array-like of shape (n_samples,)
            Rewards.
        S_next : array-like of shape (n_samples, n_features)
            States that came next; where ``done``, any finite numbers.
        done : array-like of bool of shape (n_samples,), default=None
            Whether the episode ended with this transition; None is nowhere.
        initial_states : array-like of shape (m, n_features), default=None
            A sample of the states that the value is the mean over; None is the rows of S that
            ``cv`` tells.
        groups : array-like of shape (n_samples,), default=None
            Episodes, or other transitions that are not independent: they are told together, and
            standard errors are of sums over them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If lengths or columns do not match, ``policy`` or ``features`` gives another shape or
            no probabilities, or rows are too few for ``cv``.

        Warns
        -----
        UserWarning
            If the data hardly tell some combination of coefficients, or the correction for
            shared noise moves the value by more than half a standard error.
        """
        states = validate_data(self, S, dtype=np.float64, ensure_min_samples=2)
        following = self._states(S_next, "S_next")
        rewards = column_or_1d(check_array(R, ensure_2d=False, dtype=np.float64, input_name="R"))
        self.actions_ = None
        taken = self._actions(A)
        self._action_shape = taken.shape[1:]
        going = 1.0 - _flags(done, len(states))
        for name, part in {"A": taken, "R": rewards, "S_next": following, "done": going}.items():
            if len(part) != len(states):
                raise ValueError(f"{name} has {len(part)} rows and S has {len(states)}.")
        start = (
            states if initial_states is None else self._states(initial_states, "initial_states")
        )
        codes, seed = checked_groups(groups, len(states)), seed_of(self.random_state)
        settings = self.correction, self.score, seed, self.cross_fit
        learner = learner_of(self.nuisance, *settings)
        self.correction_ = learner.correction
        self.actions_ = np.unique(taken) if self._has_labels(A) else None
        psi = self._psi(states, taken)
        slopes = psi - self.gamma * going[:, np.newaxis] * self._under_policy(following)
        X = np.column_stack([states, self._action_columns(taken)])
        repetitions = repetitions_of(X, codes, self.cv, self.n_rep, seed, self.cross_fit)
        moments = linear_moments_of(X, rewards, slopes, learner, repetitions, self.score, psi)
        of_start = self._under_policy(start)
        self._store(
            [moment.root() for moment in moments],
            of_start,
            [
                (each.rows if initial_states is None else None, moment.design)
                for each, moment in zip(repetitions, moments, strict=True)
            ],
        )
        return self

    def predict(self, S: ArrayLike, A: ArrayLike | None = None) -> np.ndarray:
        """Action values ``psi(s, a)'omega``, or values of states under the policy.

        Parameters
        ----------
        S : array-like of shape (n_samples, n_features)
        A : array-like of shape (n_samples,) or (n_samples, n_action_features), default=None
            None is what the policy would do.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        states = validate_data(self, S, dtype=np.float64, reset=False)
        if A is None:
            return self._under_policy(states) @ self.coef_
        taken = self._actions(A)
        check_consistent_length(states, taken)
        return self._psi(states, taken) @ self.coef_

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
        ndarray of shape (p, 2)
        """
        check_is_fitted(self)
        width = interval_width(np.eye(len(self.coef_)), self.cov_, level, joint, random_state)
        return self.coef_[:, np.newaxis] + width * self.stderr_[:, np.newaxis] * [-1, 1]

    def value_interval(self, level: float = 0.95) -> np.ndarray:
        """Wald interval of the value of the policy.

        Parameters
        ----------
        level : float, default=0.95

        Returns
        -------
        ndarray of shape (2,)
        """
        check_is_fitted(self)
        check_level(level)
        return self.value_ + norm.ppf((1 + level) / 2) * self.value_stderr_ * np.array([-1, 1])

    def summary(self, level: float = 0.95) -> str:
        """The value and the coefficients, and what there is to know before they are trusted.

        Parameters
        ----------
        level : float, default=0.95

        Returns
        -------
        str
        """
        check_is_fitted(self)
        check_level(level)
        names = ["value", *_names(len(self.coef_))]
        coef, stderr = (
            np.append(self.value_, self.coef_),
            np.append(self.value_stderr_, self.stderr_),
        )
        lines = estimate_table(names, coef, stderr, level)
        told = ", ".join(f"{name} {r2:.2f}" for name, r2 in self.nuisance_scores_.items())
        notes = [
            f"R2 of what state and action tell: {told}",
            f"smallest eigenvalue of the Hessian: {self.hessian_strength_:.1f} standard errors",
        ]
        return "\n".join([*lines, "-" * max(map(len, lines)), *notes])

    def _store(
        self,
        roots: list[MomentRoot],
        of_start: np.ndarray,
        told: list[tuple[np.ndarray | None, Design]],
    ) -> None:
        found, values, gaps = combined(roots), [], []
        for root, (rows, design) in zip(roots, told, strict=True):
            values.append(_value(root, of_start, rows, design))
            along = (of_start if rows is None else of_start[rows]).mean(axis=0)
            moved = abs(float(along @ root.diagnostics_.shift))
            gaps.append(moved / values[-1].stderr_[0] if moved else 0.0)
        value = median_of(values)
        self.coef_, self.stderr_, self.cov_ = found.coef_, found.stderr_, found.cov_
        self.value_, self.value_stderr_ = float(value.coef_[0]), float(value.stderr_[0])
        diagnostics = found.diagnostics_
        self.nuisance_scores_ = nuisance_scores([diagnostics], ["R", *_names(len(found.coef_))])
        self.hessian_strength_ = strength([diagnostics])
        self.correction_gap_ = float(np.median(gaps))
        if found.rank_ < len(found.coef_):
            warn_user(
                "Some combination of coefficients cannot be told from these transitions at all, "
                "as where gamma=1 and no episode ends: of these the smallest are taken, and the "
                "value need not mean anything."
            )
            return
        of_value = replace(diagnostics, gap=np.array([self.correction_gap_]))
        warn_of([of_value], ["policy"], "the value", "nuisance_scores_")

    def _states(self, S: ArrayLike, name: str) -> np.ndarray:
        states = check_array(S, dtype=np.float64, input_name=name)
        names, known = getattr(S, "columns", ()), getattr(self, "feature_names_in_", ())
        if list(names) != list(known) and set(names) == set(known):
            raise ValueError(f"{name} has the columns of S in another order: {list(names)}.")
        if states.shape[1] != self.n_features_in_:
            raise ValueError(
                f"{name} has {states.shape[1]} columns and S has {self.n_features_in_}."
            )
        return states

    def _actions(self, A: ArrayLike, name: str = "A") -> np.ndarray:
        """Labels (n,), or columns of numbers (n, k)."""
        if not self._has_labels(A):
            taken = check_array(A, dtype=np.float64, ensure_2d=False, input_name=name)
            return taken.reshape(len(taken), -1)
        labels = column_or_1d(A)
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise ValueError(f"{name} contains NaN or infinity.")
        known = getattr(self, "actions_", None)
        if known is not None and not np.isin(labels, known).all():
            other = np.unique(labels[~np.isin(labels, known)]).tolist()
            raise ValueError(f"{name} has actions {_few(other)}; those of fit are {_few(known)}.")
        return labels

    def _has_labels(self, A: ArrayLike) -> bool:
        return self.policy_kind == "probabilities" or np.asarray(A).dtype.kind in "OUSTb"

    def _action_columns(self, taken: np.ndarray) -> np.ndarray:
        """Of what nuisances see: an indicator of each action but the first, or numbers."""
        if self.actions_ is None:
            return taken
        return (taken[:, np.newaxis] == self.actions_[1:]).astype(np.float64)

    def _psi(self, states: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """Features (n, p) of states and actions."""
        if self.features is None:
            return _quadratic(states, taken, self.actions_)
        given = taken if self.actions_ is not None or taken.shape[1] > 1 else taken[:, 0]
        psi = check_array(self.features(states, given), dtype=np.float64, input_name="features")
        if len(psi) != len(states):
            raise ValueError(f"features gave {len(psi)} rows for {len(states)} states.")
        return psi

    def _under_policy(self, states: np.ndarray) -> np.ndarray:
        """psi_pi(s), (n, p)."""
        if self.actions_ is None:
            return self._psi(states, self._chosen(states))
        shares = self._probabilities(states)
        total = 0.0
        for action, share in zip(self.actions_, shares.T, strict=True):
            psi = self._psi(states, np.full(len(states), action))
            total = total + share[:, np.newaxis] * psi
        return np.asarray(total)

    def _chosen(self, states: np.ndarray) -> np.ndarray:
        """Actions of a policy that gives one, like those of fit."""
        if not callable(self.policy):
            raise ValueError("policy_kind='actions' needs policy to be a function of states.")
        actions = self._actions(self.policy(states), "policy(states)")
        expected = (len(states), *self._action_shape)
        if actions.shape != expected:
            raise ValueError(
                f"policy gave actions of shape {actions.shape}, and {expected} is needed."
            )
        return actions

    def _probabilities(self, states: np.ndarray) -> np.ndarray:
        """Of the actions in each state, (n, n_actions)."""
        actions = np.asarray(self.actions_)
        if self.policy_kind == "actions":
            return (self._chosen(states)[:, np.newaxis] == actions).astype(np.float64)
        given = self.policy(states) if callable(self.policy) else self.policy
        shares = np.asarray(given, dtype=np.float64)
        if shares.ndim == 1 and not callable(self.policy):
            shares = np.broadcast_to(shares, (len(states), len(shares)))
        expected = (len(states), len(actions))
        if shares.shape != expected:
            raise ValueError(
                f"policy gave probabilities of shape {shares.shape}, and {expected} is needed: "
                f"one for each of the actions {_few(actions)} that occur in A. If actions are "
                "numbers of a kind, policy_kind='actions' takes them as such."
            )
        if (shares < 0).any() or not np.allclose(shares.sum(axis=1), 1, atol=1e-6):
            raise ValueError("policy must give probabilities: at least 0, with sum 1.")
        return shares


def _value(
    root: MomentRoot, of_start: np.ndarray, rows: np.ndarray | None, design: Design
) -> Estimate:
    """Of the policy, from features of initial states under it, (m, p): a sample of its own, or
    those of transitions, of which ``rows`` are told."""
    if rows is None:
        along = of_start.mean(axis=0)
        scores = (root.scores_ @ along)[:, np.newaxis]
        of_sample = covariance_of_mean((of_start @ root.coef_)[:, np.newaxis])
        return Estimate(
            along[np.newaxis] @ root.coef_, covariance_of_mean(scores) + of_sample, scores
        )
    some = of_start[rows]
    scores = (root.scores_ - root.coef_) @ some.mean(axis=0)
    values = (some @ root.coef_)[:, np.newaxis]
    return Estimate.of(scores[:, np.newaxis] + design.of_clusters(values))


def _quadratic(states: np.ndarray, taken: np.ndarray, actions: np.ndarray | None) -> np.ndarray:
    """A constant, columns, squares and products: of states for each action, or of both."""
    if actions is None:
        return PolynomialFeatures(2).fit_transform(np.column_stack([states, taken]))
    of_states = PolynomialFeatures(2).fit_transform(states)
    return np.hstack([(taken == action)[:, np.newaxis] * of_states for action in actions])


def _few(actions: ArrayLike) -> str:
    """At most ten of them, as text."""
    listed = np.asarray(actions).tolist()
    return str(listed) if len(listed) <= _FEW else f"{str(listed[:_FEW])[:-1]}, ...]"


def _names(n_coefficients: int) -> list[str]:
    return [f"psi[{number}]" for number in range(n_coefficients)]


def _flags(done: ArrayLike | None, n_rows: int) -> np.ndarray:
    """Of the ends of episodes, (n,), 0 or 1."""
    if done is None:
        return np.zeros(n_rows)
    flags = column_or_1d(done)
    if not np.isin(flags, [0, 1]).all():
        raise ValueError("done must hold booleans, or 0 and 1.")
    return flags.astype(np.float64)
