"""Why cells are missing: the choice of a self-masking mechanism by evidence.

The candidates are missing at random (MAR) and, for either side, a probit of the value itself
(soft) or a limit beyond which values are missing (hard). Each is fitted by EM, and all see the
same rows, pulled in by the normal of missing at random: an outlier would outweigh all else.

Missing at random has a model of the mask as well. What the other columns tell of a mask is the
out-of-fold gain of a logistic regression on them; a self-masking mechanism would otherwise be
credited with it. Two things are compared with that gain, in nats:

gain
    log p(x_o, s) of a candidate over that of missing at random at constant rates.
insight
    log p(s | the other columns) under a candidate over that of constant rates. A column that is
    not normal looks like one that lost its tail, which shows in the gain. But if its values
    decided what is missing, the columns that predict the values would predict the mask, and the
    mechanism tells in which way: better than a regression that has to learn it.

Beside one mechanism for all columns, each column is fitted by itself, with the missing cells of
the others filled in, so that the number of fits grows with the number of columns and not with its
powers; what comes out has to hold its own in a joint fit.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import log_ndtr, ndtri
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import scale as standardized

from skbilevel.estimators.mechanism_em import (
    LIMIT,
    NARROWEST,
    MechanismFit,
    completed_self_masked,
    fit_self_masked,
)
from skbilevel.numerics.row_groups import StandardizedRows, row_block
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.normal import NormalParameters, precision
from skbilevel.objectives.self_masked_normal import projected
from skbilevel.objectives.self_masking import SelfMasking, log_probability_terms
from skbilevel.solvers.separable_newton import Quadratic, newton_step

# A column with fewer cells says nothing about why they are missing.
_FEWEST_MISSING, _FEWEST_OBSERVED = 10, 20
# A column of fewer values follows the others: by itself it would be taken for its shape.
_FEWEST_VALUES, _FEWEST_TO_PICK = 2, 5
# The order of candidates shows on this many rows, after this many iterations.
_MOST_ROWS, _ITERATIONS, _COLUMN_ITERATIONS = 2000, 30, 15
_SOFT_WIDTH = 0.5
# Widths that all columns share where the side is known: slopes of 50, 12, 3 and 1.5.
_SHARED_WIDTHS = (NARROWEST, 1 / 12, 1 / 3, 1 / 1.5)
_THRESHOLD_STEPS = 8
_FOLDS = 5
_SIDES = {1.0: "above", -1.0: "below"}
_NAMES = {False: "self_masking", True: "censored"}
_BOTH = (False, True)

# Margins are in nats per missing cell. A probit has two parameters where a limit has one.
_FOR_HARD = 0.05
# What a probit has to gain over a limit where the side is known: columns that are not normal
# may prefer a flat one by .03 if a limit hid their cells; true ones were ahead by .3 and more.
_FOR_SOFT = 0.1
# Least insight beyond the model of the mask for a column to be picked out. On columns that were
# picked chance has smiled: together they need as much gain and insight beyond it.
_TO_PICK, _OF_PICKED = 0.015, 0.05
# What a mechanism for each column has to gain over one for all.
_FOR_OWN = 0.05
# Without this much insight nothing is looked at. A mechanism is proposed for as much gain,
# and a share of that of missing at random; not for all of it, as that fills in the other cells.
_SEEN, _PROPOSED, _SHARE = 0.03, 0.1, 0.6
_ROUNDS = 2


class Choice(NamedTuple):
    """A mechanism that was chosen, and what spoke for it.

    Attributes
    ----------
    name : {"mar", "censored", "self_masking"}
        "self_masking" if any column has a soft mechanism.
    mechanism : SelfMasking
        Side, threshold and width of every column, in standardised units.
    gaps : dict of str to float
        Evidence of each candidate over that of missing at random at constant rates, in nats per
        missing cell.
    mask_gain : float
        What missing at random gains by a model of the mask, in nats per missing cell.
    """

    name: str
    mechanism: SelfMasking
    gaps: dict[str, float]
    mask_gain: float


class _Form(NamedTuple):
    """Side of every column, and whether it has a hard limit; arrays (d,)."""

    side: np.ndarray
    is_hard: np.ndarray


class _Judged(NamedTuple):
    """A form with its fit and, in nats, its gain and the insight into every column (d,)."""

    form: _Form
    fit: MechanismFit
    gain: float
    insight: np.ndarray


class _Sample(NamedTuple):
    """Rows (n, d) that candidates are compared on, the number of missing cells of the columns
    that can have a mechanism and 0 elsewhere, (d,), those that can have one of their own, and the
    fit of missing at random."""

    Z: np.ndarray
    n_missing: np.ndarray
    can_differ: np.ndarray
    mar: MechanismFit


def hard_limits(
    Z: np.ndarray, side: np.ndarray | float, limits: np.ndarray | None = None
) -> SelfMasking:
    """A hard limit for every column with missing cells.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows with NaN at missing cells.
    side : float or ndarray of shape (d,)
        1 where values above the limit are missing, -1 where those below it are, 0 for none.
    limits : ndarray of shape (d,), optional
        Limits that are known; NaN is estimated by the largest, or smallest, observed value.

    Returns
    -------
    SelfMasking
        Estimated limits have the least width rather than none, so that the evidence of a new row
        slightly beyond them is finite.
    """
    missing = np.isnan(Z)
    has = missing.any(axis=0) & (np.broadcast_to(side, Z.shape[1]) != 0)
    low, high = np.where(missing, np.inf, Z).min(axis=0), np.where(missing, -np.inf, Z).max(axis=0)
    known = np.full(Z.shape[1], np.nan) if limits is None else limits
    threshold = np.where(np.isnan(known), np.where(np.greater(side, 0), high, low), known)
    width = np.where(np.isnan(known), NARROWEST, 0.0)
    return _mechanism(has * side, np.where(has, threshold, 0.0), np.where(has, width, 1.0))


def known_sign(
    data: StandardizedRows, Z: np.ndarray, side: np.ndarray | float, rng: np.random.RandomState
) -> MechanismFit:
    """The mechanism of known side whose slope is learnt.

    All columns share the slope: slopes of their own have more evidence and are worse where columns
    are not normal. The steepest stands for a limit at the largest, or smallest, observed value,
    and is kept unless another is ahead by a margin.

    Parameters
    ----------
    data, Z : StandardizedRows, ndarray of shape (n, d)
        Rows and the same standardised, with NaN at missing cells.
    side : float or ndarray of shape (d,)
        1 where high values are missing, -1 where low ones are, 0 for missing at random.
    rng : RandomState
        Draws the rows to compare on, where there are many.

    Returns
    -------
    MechanismFit
        With the mechanism for all rows, and the normal of those compared on.
    """
    _, rows = _thinned(data, Z, rng)
    own = np.where(np.isnan(Z).any(axis=0), side, 0.0)
    steep, *soft = (_with_shared_width(rows, own, width) for width in _SHARED_WIDTHS)
    best = max(soft, key=lambda fit: fit.evidence)
    n_missing = np.count_nonzero(np.isnan(rows[:, own != 0]))
    if (best.evidence - steep.evidence) * len(rows) > _FOR_SOFT * n_missing:
        return best
    return steep._replace(mechanism=hard_limits(Z, own))


def _with_shared_width(Z: np.ndarray, side: np.ndarray, width: float) -> MechanismFit:
    """Thresholds are learnt from what a first fit tells of every cell by the others."""
    if width == NARROWEST:
        return _fitted(Z, _Form(side, side != 0))
    widths = np.where(side == 0, 1.0, width)
    mechanism = _mechanism(side, -side * ndtri(_rates(Z)) * np.hypot(1, width), widths)
    for learns in (True, False):
        fit = fit_self_masked(_rows(Z), mechanism, max_iter=_ITERATIONS, limit=np.inf)
        if learns:
            mechanism = mechanism._replace(threshold=_learnt_thresholds(Z, fit))
    return fit


def _learnt_thresholds(Z: np.ndarray, fit: MechanismFit) -> torch.Tensor:
    missing, (mean, variance) = np.isnan(Z), _by_the_others(Z, fit)
    cells = (np.where(missing, mean, Z), np.where(missing, variance, 0.0))
    location, spread = (torch.from_numpy(part).reshape(-1) for part in cells)
    side = fit.mechanism.side * torch.from_numpy(np.where(missing, 1.0, -1.0))
    width = fit.mechanism.width.expand(side.shape).reshape(-1)

    def evaluate(theta: torch.Tensor) -> Quadratic:
        threshold = theta.T.expand(side.shape).reshape(-1)
        own = SelfMasking(side.reshape(-1), threshold, width)
        value, gradient, curvature = log_probability_terms(location, spread, own)
        by_column = (*side.shape, -1)
        return Quadratic(
            value.reshape(side.shape).sum(0),
            gradient[:, :1].reshape(by_column).sum(0),
            curvature[:, :1, :1].reshape(*by_column, 1).sum(0),
        )

    theta = fit.mechanism.threshold[:, None]
    for _ in range(_THRESHOLD_STEPS):
        theta = newton_step(evaluate, theta)
    return theta[:, 0]


def known_class(
    data: StandardizedRows, Z: np.ndarray, name: str, rng: np.random.RandomState
) -> Choice:
    """The side of every column, if the mechanism is known to be ``name``.

    Parameters
    ----------
    data, Z : StandardizedRows, ndarray of shape (n, d)
        Rows and the same standardised, with NaN at missing cells.
    name : {"censored", "self_masking"}
        What is known.
    rng : RandomState
        Draws the rows to compare on, where there are many.

    Returns
    -------
    Choice
        Columns with too few cells to tell are missing at random.
    """
    sample, kinds = _sample(data, Z, rng), (name == _NAMES[True],)
    total = sample.n_missing.sum()
    if total == 0:
        return Choice("mar", hard_limits(Z, 0.0), {}, 0.0)
    judged = _uniform_candidates(sample, kinds)
    anything = np.full(Z.shape[1], -np.inf)
    form = _own_form(sample, _completed(sample.Z, sample.mar), anything, kinds)
    if _is_new(form, judged):
        judged["own"] = _judged(sample.Z, form, sample.mar)
    merits = {key: each.gain - _FOR_OWN * total * (key == "own") for key, each in judged.items()}
    return _choice(judged, merits, Z, total, 0.0)


def choose(data: StandardizedRows, Z: np.ndarray, rng: np.random.RandomState) -> Choice:
    """Missing at random, censored or self-masking, of which side, for every column.

    Parameters
    ----------
    data, Z : StandardizedRows, ndarray of shape (n, d)
        Rows and the same standardised, with NaN at missing cells.
    rng : RandomState
        Draws the rows to compare on, where there are many, and the folds of the regressions.

    Returns
    -------
    Choice
        Missing at random unless another candidate is clearly better.
    """
    sample = _sample(data, Z, rng)
    total = sample.n_missing.sum()
    if total == 0:
        return Choice("mar", hard_limits(Z, 0.0), {}, 0.0)
    mask_gains = _mask_gains(sample, rng)
    judged = _uniform_candidates(sample, _BOTH)
    merits = {key: _merit(each, mask_gains, sample) for key, each in judged.items()}
    own = None
    if not _is_explained(judged[max(merits, key=merits.__getitem__)], mask_gains, sample):
        own = _own_candidate(sample, judged, mask_gains)
    if own is not None:
        judged["own"] = own
        merits["own"] = _merit(own, mask_gains, sample, picked=True) - _FOR_OWN * total
    return _choice(judged, merits, Z, total, float(mask_gains.sum() / total))


def _choice(
    judged: dict[str, _Judged],
    merits: dict[str, float],
    Z: np.ndarray,
    total: int,
    mask_gain: float,
) -> Choice:
    """The candidate of most merit, if any has some; hard limits are those of all rows."""
    gaps = {key: each.gain / total for key, each in judged.items()}
    best = max(merits, key=merits.__getitem__)
    if merits[best] == -np.inf:
        return Choice("mar", hard_limits(Z, 0.0), gaps, mask_gain)
    form, learnt = judged[best].form, judged[best].fit.mechanism
    name = _NAMES[bool(form.is_hard[form.side != 0].all())]
    mechanism = _with_limits(learnt, hard_limits(Z, form.side), form.is_hard)
    return Choice(name, mechanism, gaps, mask_gain)


def _merit(
    judged: _Judged, mask_gains: np.ndarray, sample: _Sample, picked: bool = False
) -> float:
    """Gain over missing at random with its model of the mask; -inf if that explains as much."""
    has = judged.form.side != 0
    cells, mask_gain = sample.n_missing[has].sum(), mask_gains[has].sum()
    insight = judged.insight.sum()
    excess = (judged.gain - mask_gain, insight - mask_gain)
    enough = min(excess) > _OF_PICKED * cells if picked else sum(excess) > 0
    if not enough or insight < _SEEN * cells:
        return -np.inf
    return excess[0] + _FOR_HARD * float(sample.n_missing[judged.form.is_hard].sum())


def _is_explained(judged: _Judged, mask_gains: np.ndarray, sample: _Sample) -> bool:
    """Whether a form gives more insight into each of its columns than the model of the mask."""
    least = mask_gains + _TO_PICK * sample.n_missing
    return bool((judged.insight > least)[judged.form.side != 0].all())


def _uniform(columns: np.ndarray, side: float, hard: bool) -> _Form:
    return _Form(side * columns, columns & hard)


def _uniform_candidates(sample: _Sample, kinds: tuple[bool, ...]) -> dict[str, _Judged]:
    """One mechanism for all columns; after a soft one without evidence no hard one is tried."""
    judged: dict[str, _Judged] = {}
    for hard in kinds:
        for side, where in _SIDES.items():
            soft = judged.get(f"{_NAMES[False]} {where}")
            if soft is None or soft.gain > 0:
                form = _uniform(sample.n_missing > 0, side, hard)
                judged[f"{_NAMES[hard]} {where}"] = _judged(sample.Z, form, sample.mar)
    return judged


def _is_new(form: _Form, judged: dict[str, _Judged]) -> bool:
    same = (all(map(np.array_equal, form, other.form)) for other in judged.values())
    return bool(form.side.any()) and not any(same)


def _own_candidate(
    sample: _Sample, judged: dict[str, _Judged], mask_gains: np.ndarray
) -> _Judged | None:
    """Every column as it is by itself, less those into which the joint fit gives no insight.

    What is found fills in the cells of those columns for a second look at the others.
    """
    n_missing, found, fit = sample.n_missing, None, sample.mar
    insight = np.max([mask_gains, *(each.insight for each in judged.values())], axis=0)
    least = np.maximum(_PROPOSED * n_missing, _SHARE * mask_gains)
    least[(insight <= _SEEN * n_missing) | ~sample.can_differ] = np.inf
    form = _uniform(n_missing > 0, 0.0, False)
    for _ in range(_ROUNDS):
        rest = np.where(form.side == 0, least, np.inf)
        more = _own_form(sample, _completed(sample.Z, fit), rest, _BOTH)
        if not more.side.any():
            break
        form = _Form(form.side + more.side, form.is_hard | more.is_hard)
        found = _pruned(sample, form, mask_gains + _TO_PICK * n_missing)
        if found is None:
            return None
        form, fit = found.form, found.fit
    return found if found is not None and _is_new(form, judged) else None


def _pruned(sample: _Sample, form: _Form, least: np.ndarray) -> _Judged | None:
    """The joint fit of a form without the columns of less insight than ``least``."""
    judged = _judged(sample.Z, form, sample.mar)
    kept = judged.insight > least
    if kept[form.side != 0].all():
        return judged
    form = _Form(form.side * kept, form.is_hard & kept)
    return _judged(sample.Z, form, sample.mar) if form.side.any() else None


def _own_form(
    sample: _Sample, filled: np.ndarray, least: np.ndarray, kinds: tuple[bool, ...]
) -> _Form:
    """What each column is proposed for by itself; ``least`` (d,) is inf where nothing is."""
    form = _uniform(sample.n_missing > 0, 0.0, False)
    for j in np.flatnonzero((sample.n_missing > 0) & (least < np.inf)).tolist():
        rows = filled.copy()
        rows[:, j] = sample.Z[:, j]
        form.side[j], form.is_hard[j] = _proposal(rows, j, least[j], kinds)
    return form


def _proposal(
    Z: np.ndarray, column: int, least: float, kinds: tuple[bool, ...]
) -> tuple[float, bool]:
    """Side and kind of the only column with missing cells; none if that gains less than
    ``least``."""
    alone, n_missing = np.arange(Z.shape[1]) == column, np.isnan(Z[:, column]).sum()
    mar = _fitted(Z, _uniform(alone, 0.0, False), _COLUMN_ITERATIONS)
    gains = {(0.0, False): least}
    for hard in kinds:
        for side in _SIDES:
            if gains.get((side, False), 1.0) > 0:
                form = _uniform(alone, side, hard)
                gain = _gain(Z, form, _fitted(Z, form, _COLUMN_ITERATIONS), mar)
                gains[side, hard] = gain + _FOR_HARD * n_missing * hard
    return max(gains, key=gains.__getitem__)


def _thinned(
    data: StandardizedRows, Z: np.ndarray, rng: np.random.RandomState
) -> tuple[StandardizedRows, np.ndarray]:
    if len(Z) <= _MOST_ROWS:
        return data, Z
    Z = Z[np.sort(rng.permutation(len(Z))[:_MOST_ROWS])]
    return _rows(Z), Z


def _sample(data: StandardizedRows, Z: np.ndarray, rng: np.random.RandomState) -> _Sample:
    """At most a few thousand rows, pulled in by the normal of missing at random."""
    data, Z = _thinned(data, Z, rng)
    fit = fit_self_masked(data, hard_limits(Z, 0.0), max_iter=_ITERATIONS)
    n_missing = np.count_nonzero(np.isnan(Z), axis=0)
    n_values = np.array([len(np.unique(column[~np.isnan(column)])) for column in Z.T])
    tells = (n_missing >= _FEWEST_MISSING) & (len(Z) - n_missing >= _FEWEST_OBSERVED)
    n_missing = n_missing * (tells & (n_values >= _FEWEST_VALUES))
    if n_missing.any():
        Z = _pulled_in(Z, fit.parameters)
        fit = _fitted(Z, _uniform(n_missing > 0, 0.0, False))
    return _Sample(Z, n_missing, n_values >= _FEWEST_TO_PICK, fit)


@torch.inference_mode()
@single_thread()
def _pulled_in(Z: np.ndarray, parameters: NormalParameters) -> np.ndarray:
    rows, model, zero = Z.copy(), precision(parameters), np.zeros(Z.shape[1])
    for group, where in row_block(Z, zero, zero + 1).placed():
        rows[where] = projected(group, model, LIMIT).values.numpy()
    rows[np.isnan(Z)] = np.nan
    return rows


def _rows(Z: np.ndarray) -> StandardizedRows:
    return StandardizedRows(Z, np.zeros(Z.shape[1]), np.ones(Z.shape[1]))


def _completed(Z: np.ndarray, fit: MechanismFit) -> np.ndarray:
    zero = np.zeros(Z.shape[1])
    return completed_self_masked(fit.parameters, fit.mechanism, Z, zero, zero + 1, limit=np.inf)


def _mechanism(side: np.ndarray, threshold: np.ndarray, width: np.ndarray) -> SelfMasking:
    parts = (torch.as_tensor(part, dtype=torch.float64) for part in (side, threshold, width))
    return SelfMasking(*parts)


def _with_limits(learnt: SelfMasking, hard: SelfMasking, is_hard: np.ndarray) -> SelfMasking:
    chosen = torch.from_numpy(is_hard)
    return SelfMasking(*(a.where(chosen, b) for a, b in zip(hard, learnt, strict=True)))


def _fitted(Z: np.ndarray, form: _Form, n_iter: int = _ITERATIONS) -> MechanismFit:
    """A form on rows that are pulled in; hard limits stay where they are."""
    is_soft, hard = (form.side != 0) & ~form.is_hard, hard_limits(Z, form.side)
    threshold = -form.side * ndtri(_rates(Z))
    soft = _mechanism(form.side, threshold, np.where(is_soft, _SOFT_WIDTH, 1.0))
    start = _with_limits(soft, hard, form.is_hard)
    learn = bool(is_soft.any())
    fit = fit_self_masked(_rows(Z), start, learn=learn, max_iter=n_iter, limit=np.inf)
    return fit._replace(mechanism=_with_limits(fit.mechanism, hard, form.is_hard))


def _judged(Z: np.ndarray, form: _Form, mar: MechanismFit) -> _Judged:
    fit = _fitted(Z, form)
    return _Judged(form, fit, _gain(Z, form, fit, mar), _insight(Z, fit))


def _gain(Z: np.ndarray, form: _Form, fit: MechanismFit, mar: MechanismFit) -> float:
    rates = _at_constant_rates(np.isnan(Z))[form.side != 0].sum()
    return float((fit.evidence - mar.evidence) * len(Z) - rates)


def _by_the_others(Z: np.ndarray, fit: MechanismFit) -> tuple[np.ndarray, np.ndarray]:
    """Mean m (n, d) and variance v (d,) of every cell without its own value.

    v = 1 / P_jj and m = x_j - v (P e)_j.
    """
    rows, matrix = _completed(Z, fit), precision(fit.parameters).matrix.numpy()
    variance = 1 / np.diag(matrix)
    return rows - (rows - fit.parameters.location.numpy()) @ matrix * variance, variance


def _insight(Z: np.ndarray, fit: MechanismFit) -> np.ndarray:
    """log p(s | the other columns) of every column (d,) over that at constant rates."""
    missing, (mean, variance) = np.isnan(Z), _by_the_others(Z, fit)
    side, threshold, width = (part.numpy() for part in fit.mechanism)
    ratio = side * (mean - threshold) / np.sqrt(width**2 + variance)
    total = log_ndtr(np.where(missing, ratio, -ratio)).sum(axis=0)
    return np.where(side == 0, 0.0, total - _at_constant_rates(missing))


def _rates(Z: np.ndarray) -> np.ndarray:
    """Rates of missing cells (d,), never 0 or 1."""
    return (np.isnan(Z).sum(axis=0) + 0.5) / (len(Z) + 1)


def _at_constant_rates(missing: np.ndarray) -> np.ndarray:
    """log p(s) of every column (d,) if its cells are missing at its rate."""
    n_missing = missing.sum(axis=0)
    rate = np.clip(n_missing / len(missing), 1e-12, 1 - 1e-12)
    return n_missing * np.log(rate) + (len(missing) - n_missing) * np.log1p(-rate)


def _mask_gains(sample: _Sample, rng: np.random.RandomState) -> np.ndarray:
    """What missing at random gains by a model of the mask of every column, (d,)."""
    missing, gains = np.isnan(sample.Z), np.zeros(len(sample.n_missing))
    filled = _completed(sample.Z, sample.mar)
    for j in np.flatnonzero(sample.n_missing):
        gains[j] = _regression_gain(np.delete(filled, j, axis=1), missing[:, j], rng)
    return gains


def _regression_gain(filled: np.ndarray, missing: np.ndarray, rng: np.random.RandomState) -> float:
    """Out-of-fold log p(s | the other columns) of a column over that at its rate, at least 0."""
    if filled.shape[1] == 0:
        return 0.0
    predictors, gain = standardized(filled), 0.0
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=rng)
    for train, test in folds.split(predictors, missing):
        model = LogisticRegression(max_iter=500).fit(predictors[train], missing[train])
        logs = model.predict_log_proba(predictors[test])
        rate = missing[train].mean()
        gain += float(np.where(missing[test], logs[:, 1], logs[:, 0]).sum())
        gain -= float(np.log(np.where(missing[test], rate, 1 - rate)).sum())
    return max(gain, 0.0)
