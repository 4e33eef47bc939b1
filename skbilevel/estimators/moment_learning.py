"""From rows and settings to moments whose nuisances are told, once for each repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils import check_array, check_random_state

from skbilevel._sklearn import column_or_1d, warn_user
from skbilevel.estimators.moment_fit import Design, LinearMoment, MomentDiagnostics
from skbilevel.estimators.nuisances import Folds, Learner, Split, splits_of
from skbilevel.estimators.nystroem import NystroemRidge
from skbilevel.numerics.random import draw_seed
from skbilevel.objectives.orthogonal import PRODUCT_SHARE

CORRECTIONS = ("auto", "none", "second_order", "disjoint")
# Standard errors by which a correction may move an estimate before it is worth a warning, and
# those by which the least eigenvalue of A is to be clear of 0.
_LARGEST_GAP, _CLEAR = 0.5, 2.0


def repetitions_of(
    X: np.ndarray,
    groups: np.ndarray | None,
    cv: Any,
    n_rep: int,
    seed: int,
    cross_fit: bool = True,
) -> list[Folds]:
    """Splits of rows X (n, d) with groups (n,), n_rep times.

    Raises
    ------
    ValueError
        If rows are too few for ``cv``, or ``n_rep`` says to repeat splits that are given.
    """
    if n_rep > 1 and not isinstance(cv, int | np.integer):
        raise ValueError(f"n_rep={n_rep} needs cv to be a number of folds, got cv={cv!r}.")
    everything, rng, found = np.arange(len(X)), np.random.RandomState(seed), []
    codes = everything if groups is None else groups
    for _ in range(n_rep):
        own = int(rng.randint(2**31 - 1))
        splits = splits_of(cv, X, groups, own) if cross_fit else [Split(everything, everything)]
        # Halves of the groups of rows, or of rows, as even as can be.
        order = rng.permutation(codes.max() + 1)
        found.append(Folds(splits, (order % 2 == 0)[codes], groups, own))
    return found


def learner_of(
    nuisance: Any, correction: str, score: str, seed: int, cross_fit: bool = True
) -> Learner:
    """Who tells, with the correction that goes with him.

    Raises
    ------
    ValueError
        If ``correction`` goes with a score that has no product of nuisances, with nuisances that
        have seen the rows which they tell, or is "second_order" of a regressor whose weights are
        not known.
    """
    nuisance = NystroemRidge() if nuisance is None else clone(nuisance)
    knows = isinstance(nuisance, NystroemRidge)
    has_product = bool(PRODUCT_SHARE.get(score))
    if correction == "auto":
        correction = "none"
        if score == "orthogonal" and cross_fit:
            correction = "second_order" if knows else "disjoint"
    if correction != "none" and not (has_product and cross_fit):
        which = "cross_fit=False" if has_product else f"score={score!r}"
        raise ValueError(
            f"correction={correction!r} is for products of nuisances that have not seen the row, "
            f"and says nothing of {which}: use 'none' or 'auto'."
        )
    if correction == "second_order" and not knows:
        raise ValueError(
            f"correction='second_order' needs the weights of nuisance={nuisance!r}, which only "
            "NystroemRidge tells: use 'disjoint' for other regressors."
        )
    return Learner(nuisance, correction, seed)


def linear_moments_of(
    X: np.ndarray,
    y: np.ndarray,
    slopes: np.ndarray,
    learner: Learner,
    repetitions: Sequence[Folds],
    score: str,
    known: np.ndarray | None = None,
) -> list[LinearMoment]:
    """Of r = D'omega - y given X, (n, d), once for each repetition, with a part of D that X
    tells."""
    outputs = np.column_stack([y, slopes if known is None else slopes - known])
    features, found = learner.prepared(X, outputs, repetitions[0].groups), []
    for folds in repetitions:
        told = learner.tell(X, outputs, folds, learner.rows(X, features, folds))
        rows = folds.rows
        parts = y[rows], slopes[rows], told.at(rows), design_of(folds, score)
        found.append(LinearMoment.of(*parts, None if known is None else known[rows]))
    return found


def design_of(folds: Folds, score: str) -> Design:
    """Of the rows that are told."""
    clusters = None
    if folds.groups is not None:
        clusters = np.unique(folds.groups[folds.rows], return_inverse=True)[1]
    return Design(score, folds.which, clusters)


def nuisance_scores(
    diagnostics: Sequence[MomentDiagnostics], names: Sequence[str]
) -> dict[str, float]:
    """R2 of each output that varies, by its name: the median over repetitions."""
    r2 = np.median([each.r2 for each in diagnostics], axis=0)
    pairs = zip(names, r2, strict=True)
    return {str(name): float(score) for name, score in pairs if not np.isnan(score)}


def strength(diagnostics: Sequence[MomentDiagnostics]) -> float:
    """Smallest eigenvalue of A over its standard error: the median over repetitions; 0 where both
    are 0."""
    pairs = [(each.least_eigenvalue, each.least_eigenvalue_stderr) for each in diagnostics]
    least, stderr = np.transpose(pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.median(np.where(least == 0, 0.0, least / stderr)))


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
            f"be sure. More rows help, or a nuisance that fits better ({scores} has its R2)."
        )
    if (clear := strength(diagnostics)) < _CLEAR:
        warn_user(
            f"The smallest eigenvalue of the Hessian is {clear:.1f} of its standard errors: some "
            "combination of parameters is hardly identified by what is conditioned on, and "
            "intervals can be far too short. confidence_set of ConditionalMomentGradient is "
            "nearer to its level there."
        )


def seed_of(random_state: Any) -> int:
    """A seed for folds and nuisances, drawn once, in the range that NumPy takes."""
    return int(draw_seed(check_random_state(random_state)) % 2**32)


def checked_groups(groups: ArrayLike | None, n_rows: int) -> np.ndarray | None:
    """Codes of groups (n,), or None.

    Raises
    ------
    ValueError
        If there is not one for each row, or all rows are of one group.
    """
    if groups is None:
        return None
    labels = column_or_1d(groups)
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError("groups contains NaN.")
    if len(labels) != n_rows:
        raise ValueError(f"groups has {len(labels)} rows and X has {n_rows}.")
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("groups must tell at least two groups apart.")
    return codes


def checked_omega(omega: ArrayLike) -> np.ndarray:
    """(p,), float64.

    Raises
    ------
    ValueError
        If it is no vector of finite numbers.
    """
    point = check_array(omega, dtype=np.float64, ensure_2d=False, input_name="omega")
    if point.ndim != 1:
        raise ValueError(f"omega must have the shape (p,), got {point.shape}.")
    return point
