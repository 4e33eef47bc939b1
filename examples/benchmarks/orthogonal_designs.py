"""The designs of orthogonal gradients, with closed-form nuisances and truths by quasi-Monte Carlo.

All are linear in omega, r = D'omega - y. The order of the random calls is part of each design, so
that figures can be compared. The source's own designs are not known; these are of this project.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm, qmc

from skbilevel import NystroemRidge

Array = NDArray[np.float64]
W_IV = np.array([0.5, 1.0, -1.5])
W_FQE = np.array([1.0, 0.8, -0.5, 0.6, -0.7, 2.0])
GAMMA, POLICY = 0.9, 0.7
N_FOLDS = 5


class Sample(NamedTuple):
    """Rows of a conditional moment, and what an oracle knows.

    Attributes
    ----------
    X : ndarray of shape (n, d)
        What is conditioned on.
    y : ndarray of shape (n,)
    D : ndarray of shape (n, p)
    mu, K : ndarray of shape (n,) and (n, p)
        E[y | X] and E[D | X].
    folds : list of (ndarray, ndarray)
        Training and test rows, drawn before the data.
    extra : dict of str to ndarray
        Of transitions: S, A, S_next and psi(S, A).
    """

    X: Array
    y: Array
    D: Array
    mu: Array
    K: Array
    folds: list[tuple[NDArray, NDArray]]
    extra: dict[str, Array]


@dataclass(frozen=True)
class Design:
    """A distribution, and where its gradient is evaluated.

    Attributes
    ----------
    draw : callable
        ``(n, generator) -> Sample``.
    moments : callable
        ``() -> (A, b)``, of the distribution.
    omega : ndarray of shape (p,)
        Where the gradient is evaluated.
    coordinates : slice
        Those that need a nuisance.
    nuisance : NystroemRidge
        With fixed centers and bandwidth.
    """

    draw: Callable[[int, Generator], Sample]
    moments: Callable[[], tuple[Array, Array]]
    omega: Array
    coordinates: slice
    nuisance: NystroemRidge

    @property
    def gradient(self) -> Array:
        """G at omega."""
        A, b = self.moments()
        return A @ self.omega - b

    @property
    def root(self) -> Array:
        """Where G is 0."""
        return np.linalg.solve(*self.moments())


def folds_of(n: int, r: Generator) -> list[tuple[NDArray, NDArray]]:
    """Five folds."""
    fold = r.permutation(n) % N_FOLDS
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(N_FOLDS)]


def _features(t: Array, kind: str) -> Array:
    third = {"poly": t**2, "sin": np.sin(2 * t), "wide": np.sin(t)}[kind]
    return np.column_stack([np.ones(len(t)), t, third])


def _given_x(g: Array, kind: str) -> Array:
    """E[(1, T, ...) | X] for T ~ N(g, .25), or N(g, 1) of "wide"."""
    third = {
        "poly": g**2 + 0.25,
        "sin": np.exp(-0.5) * np.sin(2 * g),
        "wide": np.exp(-0.5) * np.sin(g),
    }[kind]
    return np.column_stack([np.ones(len(g)), g, third])


def _first_stage(X: Array, kind: str) -> Array:
    if kind == "wide":
        return 1.2 * np.sin(np.pi * X[:, 0]) + 1.5 * X[:, 1] * X[:, 2] + np.abs(X[:, 3])
    return np.sin(np.pi * X[:, 0]) + X[:, 1]


def instrumental(n: int, r: Generator, kind: str = "poly", delta: float = 0.0) -> Sample:
    """T and the outcome share a cause U; with delta no omega has E[r | X] = 0."""
    folds = folds_of(n, r)
    X = r.uniform(-1, 1, (n, 4 if kind == "wide" else 2))
    U, V, e = r.standard_normal((3, n))
    g = _first_stage(X, kind)
    noise = 0.8 * U + 0.6 * V
    D, K = _features(g + (1.0 if kind == "wide" else 0.5) * noise, kind), _given_x(g, kind)
    off = delta * np.cos(np.pi * X[:, 1])
    return Sample(X, D @ W_IV + U + 0.5 * e + off, D, K @ W_IV + off, K, folds, {})


@cache
def instrumental_moments(kind: str = "poly", delta: float = 0.0) -> tuple[Array, Array]:
    """A and b by 2^21 Sobol points."""
    X = 2 * qmc.Sobol(4 if kind == "wide" else 2, scramble=True, seed=0).random(2**21) - 1
    K = _given_x(_first_stage(X, kind), kind)
    mu = K @ W_IV + delta * np.cos(np.pi * X[:, 1])
    return K.T @ K / len(K), K.T @ mu / len(K)


def q_features(s: Array, a: Array) -> Array:
    """psi(s, a), of states (n, 2) and actions or their mean, (n,)."""
    bump = np.exp(-np.square(s).sum(axis=1) / 2)
    return np.column_stack([np.ones(len(s)), s, a, a * s[:, 0], bump])


def _next_mean(s: Array, a: Array) -> Array:
    z = 2 * a - 1
    first = 0.7 * s[:, 0] + 0.5 * z * np.sin(2 * s[:, 1])
    return np.column_stack([first, 0.6 * s[:, 1] + 0.5 * z * np.cos(2 * s[:, 0])])


def _next_features(mean: Array) -> Array:
    """E[psi_pi(S') | S, A] for S' ~ N(mean, .25 I)."""
    told = q_features(mean, np.full(len(mean), POLICY))
    told[:, -1] = np.exp(-np.square(mean).sum(axis=1) / 2.5) / 1.25
    return told


def transitions(n: int, r: Generator) -> Sample:
    """Two actions; the value of a policy that takes the second with probability .7."""
    folds = folds_of(n, r)
    s = r.standard_normal((n, 2))
    a = (r.uniform(size=n) < expit(s[:, 0])).astype(float)
    mean = _next_mean(s, a)
    following = mean + 0.5 * r.standard_normal((n, 2))
    psi = q_features(s, a)
    K = psi - GAMMA * _next_features(mean)
    R = K @ W_FQE + 0.5 * r.standard_normal(n)
    D = psi - GAMMA * q_features(following, np.full(n, POLICY))
    X = np.column_stack([s, 1.5 * a])
    extra = {"S": s, "A": a, "S_next": following, "psi": psi}
    return Sample(X, R, D, K @ W_FQE, K, folds, extra)


@cache
def transition_moments() -> tuple[Array, Array]:
    """A and b by 2^20 Sobol points for each action."""
    s = norm.ppf(qmc.Sobol(2, scramble=True, seed=0).random(2**20))
    A = np.zeros((6, 6))
    for action in (0.0, 1.0):
        a = np.full(len(s), action)
        K = q_features(s, a) - GAMMA * _next_features(_next_mean(s, a))
        share = expit(s[:, 0]) if action else expit(-s[:, 0])
        A += (share[:, None] * K).T @ K / len(K)
    return A, A @ W_FQE


@cache
def initial_states() -> Array:
    """2^16 points of N(0, .25 I); the value of the policy over these is 3.0200."""
    return 0.5 * norm.ppf(qmc.Sobol(2, seed=9).random(2**16))


def initial_features() -> Array:
    """Mean of psi_pi over the initial states, (6,)."""
    s = initial_states()
    return q_features(s, np.full(len(s), POLICY)).mean(axis=0)


def _square(n_centers: int, d: int, bandwidth: float) -> NystroemRidge:
    centers = 2 * qmc.Sobol(d, seed=3).random(n_centers) - 1
    return NystroemRidge(centers=centers, bandwidth=bandwidth, standardize=False)


def _plane() -> NystroemRidge:
    centers = norm.ppf(qmc.Sobol(2, seed=3).random(128))
    both = [np.column_stack([centers, np.full(128, third)]) for third in (0.0, 1.5)]
    return NystroemRidge(centers=np.vstack(both), bandwidth=0.8, standardize=False)


def policy_nuisance() -> NystroemRidge:
    """That of the transitions for `OrthogonalFQE`, whose third column is 0 or 1 and not 1.5."""
    centers = np.asarray(_plane().centers) / [1, 1, 1.5]
    return NystroemRidge(centers=centers, bandwidth=[0.8, 0.8, 0.8 / 1.5], standardize=False)


def _iv(kind: str, delta: float = 0.0) -> Design:
    wide = kind == "wide"
    return Design(
        lambda n, r: instrumental(n, r, kind, delta),
        lambda: instrumental_moments(kind, delta),
        np.array([0.0, 0.5, 0.5]) if wide else np.zeros(3),
        slice(1, None),
        _square(256, 4, 0.8) if wide else _square(128, 2, 0.6),
    )


DESIGNS = {
    "IV-poly": _iv("poly"),
    "IV-sin": _iv("sin"),
    "IV-4D": _iv("wide"),
    "IV-poly delta=1": _iv("poly", 1.0),
    "FQE": Design(
        transitions,
        transition_moments,
        np.array([0.0, 0.5, 0.0, 0.0, 0.0, 1.0]),
        slice(None),
        _plane(),
    ),
}
