"""From rows and settings to moments whose nuisances are told, once for each repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from skbilevel._sklearn import warn_user
from skbilevel.estimators.moment_fit import Design, LinearMoment, MomentDiagnostics
from skbilevel.estimators.nuisances import Learner, Split, splits_of
from skbilevel.estimators.nystroem import NystroemRidge
from skbilevel.numerics.random import draw_seed

CORRECTIONS = ("auto", "none", "second_order", "disjoint")
# Standard errors by which a correction may move an estimate before it is worth a warning, and
# those by which the least eigenvalue of A is to be clear of 0.
_LARGEST_GAP, _CLEAR = 0.5, 2.0


@dataclass(frozen=True)
class Repetition:
    """One way to split the rows.

    Attributes
    ----------
    splits : list of Split
    side : ndarray of bool of shape (n,)
        Halves of the training rows.
    seed : int
    """

    splits: list[Split]
    side: np.ndarray
    seed: int

    @property
    def rows(self) -> np.ndarray:
        """Rows that are told, sorted."""
        return np.sort(np.concatenate([split.test for split in self.splits]))

    @property
    def folds(self) -> np.ndarray:
        """Which split tells each of these rows."""
        which = np.concatenate([np.full(len(s.test), k) for k, s in enumerate(self.splits)])
        return which[np.argsort(np.concatenate([s.test for s in self.splits]), kind="stable")]


def repetitions_of(
    X: np.ndarray,
    groups: np.ndarray | None,
    cv: Any,
    n_rep: int,
    seed: int,
    cross_fit: bool = True,
) -> list[Repetition]:
    """Splits of rows X (n, d) with groups (n,), n_rep times.

    Raises
    ------
    ValueError
        If rows are too few for ``cv``, or ``n_rep`` says to repeat splits that are given.
    """
    if n_rep > 1 and not isinstance(cv, int | np.integer):
        raise ValueError(f"n_rep={n_rep} needs cv to be a number of folds, got cv={cv!r}.")
    everything, rng, found = np.arange(len(X)), np.random.RandomState(seed), []
    codes = everything if groups is None else np.unique(groups, return_inverse=True)[1]
    for _ in range(n_rep):
        own = int(rng.randint(2**31 - 1))
        splits = splits_of(cv, X, groups, own) if cross_fit else [Split(everything, everything)]
        # Halves of each group of rows, or of rows, as even as can be.
        order = rng.permutation(codes.max() + 1)
        found.append(Repetition(splits, (order % 2 == 0)[codes], own))
    return found


def learner_of(nuisance: Any, correction: str, score: str, seed: int) -> Learner:
    """Who tells, with the correction that goes with him.

    Raises
    ------
    ValueError
        If ``correction="second_order"`` goes with a regressor whose weights are not known.
    """
    nuisance = NystroemRidge() if nuisance is None else clone(nuisance)
    knows = isinstance(nuisance, NystroemRidge)
    if correction == "second_order" and not knows:
        raise ValueError(
            f"correction='second_order' needs the weights of nuisance={nuisance!r}, which only "
            "NystroemRidge tells: use 'disjoint' for other regressors."
        )
    if correction == "auto":
        correction = "none"
        if score == "orthogonal":
            correction = "second_order" if knows else "disjoint"
    return Learner(nuisance, correction, seed)


def linear_moments_of(
    X: np.ndarray,
    y: np.ndarray,
    slopes: np.ndarray,
    learner: Learner,
    repetitions: Sequence[Repetition],
    score: str,
    groups: np.ndarray | None,
    known: np.ndarray | None = None,
) -> list[LinearMoment]:
    """Of r = D'omega - y given X, (n, d), once for each repetition, with a part of D that X
    tells."""
    outputs = np.column_stack([y, slopes if known is None else slopes - known])
    features, found = learner.prepared(X, outputs), []
    for each in repetitions:
        told = learner.tell(X, outputs, each.splits, each.side, features)
        rows = each.rows
        found.append(
            LinearMoment.of(
                y[rows],
                slopes[rows],
                told.at(rows),
                design_of(each, score, groups),
                None if known is None else known[rows],
            )
        )
    return found


def design_of(repetition: Repetition, score: str, groups: np.ndarray | None) -> Design:
    """Of the rows that a repetition tells."""
    clusters = None
    if groups is not None:
        clusters = np.unique(groups[repetition.rows], return_inverse=True)[1]
    return Design(score, repetition.folds, clusters)


def nuisance_scores(
    diagnostics: Sequence[MomentDiagnostics], names: Sequence[str]
) -> dict[str, float]:
    """R2 of each output that varies, by its name: the median over repetitions."""
    r2 = np.median([each.r2 for each in diagnostics], axis=0)
    pairs = zip(names, r2, strict=True)
    return {str(name): float(score) for name, score in pairs if not np.isnan(score)}


def strength(diagnostics: Sequence[MomentDiagnostics]) -> float:
    """Smallest eigenvalue of A over its standard error: the median over repetitions."""
    with np.errstate(divide="ignore"):
        ratios = [np.divide(d.least_eigenvalue, d.least_eigenvalue_stderr) for d in diagnostics]
    return float(np.median(ratios))


def warn_of(
    diagnostics: Sequence[MomentDiagnostics], names: Sequence[str], what: str, scores: str
) -> None:
    """Warn of estimates whose intervals are not to be trusted; ``scores`` is where R2 are."""
    gap = np.median([each.gap for each in diagnostics], axis=0)
    if (gap > _LARGEST_GAP).any():
        worst = int(gap.argmax())
        warn_user(
            f"The correction for what nuisances share moves {what} of {names[worst]!r} by "
            f"{gap[worst]:.1f} standard errors: nuisances are told too roughly for intervals to "
            f"be sure. More rows help, or a nuisance that fits better ({scores} has its R2), or "
            "for NystroemRidge a smaller undersmooth."
        )
    if (clear := strength(diagnostics)) < _CLEAR:
        warn_user(
            f"The smallest eigenvalue of the Hessian is {clear:.1f} standard errors above 0: some "
            "combination of parameters is hardly identified by what is conditioned on, and "
            "intervals can be far too short. confidence_set of ConditionalMomentGradient is "
            "nearer to its level there."
        )


def seed_of(random_state: Any) -> int:
    """A seed for folds and nuisances, drawn once, in the range that NumPy takes."""
    return int(draw_seed(check_random_state(random_state)) % 2**32)
