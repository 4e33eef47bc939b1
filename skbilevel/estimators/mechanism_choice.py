"""Why cells are missing: the choice of a self-masking mechanism by evidence.

`mechanism_candidates` has the candidates, their gain and the insight that they give. Both are
compared with what missing at random gains by a model of the mask.

Beside one mechanism for all columns, each column is fitted by itself, with the missing cells of
the others filled in, so that the number of fits grows with the number of columns and not with its
powers; what comes out has to hold its own in a joint fit.
"""

from typing import NamedTuple

import numpy as np

from skbilevel.estimators.mechanism_candidates import (
    FEW_ITERATIONS,
    Candidate,
    Fewest,
    Fold,
    Form,
    Sample,
    candidate,
    completed,
    fitted,
    folds,
    gain,
    judged_by,
    regression_gains,
    sampled,
    uniform,
)
from skbilevel.estimators.mechanism_shadow import (
    believed_signs,
    says_no_more,
    told_form,
    with_known_sides,
)
from skbilevel.estimators.mechanism_start import hard_limits, with_limits
from skbilevel.objectives.self_masking import SelfMasking

_SIDES = {1.0: "above", -1.0: "below"}
_NAMES = {False: "self_masking", True: "censored"}
_BOTH = (False, True)
MASK_MODEL, SHADOW = "mar with a model of the mask", "shadow targets"
# What a column needs in order to tell whether it has a mechanism, and which of a known class.
_TO_TELL, _ANY = Fewest(missing=10, observed=20), Fewest(missing=1, observed=2)

# Margins are in nats per missing cell. A probit has two parameters where a limit has one.
_FOR_HARD = 0.05
# Least insight beyond the model of the mask for a column to be picked out. On columns that were
# picked chance has smiled: together they need as much gain and insight beyond it.
_TO_PICK, _OF_PICKED = 0.015, 0.05
# What a mechanism for each column has to gain over one for all.
_FOR_OWN = 0.05
# Without this much insight nothing is looked at. A mechanism is proposed for as much gain,
# and a share of that of missing at random; not for all of it, as that fills in the other cells.
_SEEN, _PROPOSED, _SHARE = 0.03, 0.1, 0.6
_ROUNDS = 2
# What a mechanism for all columns may lack on rows held out, as four fifths of the rows tell less.
# On 200 rows of the development tables it leaves 3 false alarms of 80, and 69 mechanisms of 118
# that help; 0 left 1, and an eighth fewer of the latter.
_MAY_LACK = 0.03
# The same where shadow targets speak for it. At random .3 and more are lacking.
_HEARD_MAY_LACK = 0.1
# Candidates that are judged by rows held out, those of most merit first.
_MOST_TRIED = 3


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
        missing cell; `MASK_MODEL` is missing at random with a model of the mask.
    """

    name: str
    mechanism: SelfMasking
    gaps: dict[str, float]


def known_class(Z: np.ndarray, name: str, rng: np.random.RandomState) -> Choice:
    """The side of every column, if the mechanism is known to be ``name``.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows with NaN at missing cells.
    name : {"censored", "self_masking"}
        What is known.
    rng : RandomState
        Draws the rows to compare on, where there are many.

    Returns
    -------
    Choice
        Columns of one value are missing at random.
    """
    sample, kinds = sampled(Z, rng, _ANY), (name == _NAMES[True],)
    total = sample.n_missing.sum()
    if total == 0:
        return Choice("mar", hard_limits(Z, 0.0), {})
    candidates = _uniform_candidates(sample, kinds)
    anything = np.full(Z.shape[1], -np.inf)
    form = _own_form(sample, completed(sample.Z, sample.mar), anything, kinds)
    if _is_new(form, candidates):
        candidates["own"] = candidate(sample.Z, form, sample.mar)
    merits = {
        key: each.gain - _FOR_OWN * total * (key == "own") for key, each in candidates.items()
    }
    best = max(merits, key=merits.__getitem__)
    return _choice(candidates[best], Z, _per_cell(candidates, total))


def choose(Z: np.ndarray, rng: np.random.RandomState) -> Choice:
    """Missing at random, censored or self-masking, of which side, for every column.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows with NaN at missing cells.
    rng : RandomState
        Draws the rows to compare on, where there are many, and the folds of the regressions.

    Returns
    -------
    Choice
        Missing at random unless another candidate is clearly better.
    """
    sample = sampled(Z, rng, _TO_TELL)
    total = sample.n_missing.sum()
    if total == 0:
        return Choice("mar", hard_limits(Z, 0.0), {})
    mask_gains = regression_gains(sample, rng)
    candidates, merits = _with_merits(sample, mask_gains)
    gaps = {**_per_cell(candidates, total), MASK_MODEL: float(mask_gains.sum() / total)}
    ranked = sorted(merits, key=merits.__getitem__, reverse=True)[:_MOST_TRIED]
    tried = [key for key in ranked if merits[key] > -np.inf]
    unseen = folds(sample, rng) if tried else []
    best = None
    for key in tried:
        told = judged_by(unseen, candidates[key], sample.Z)
        if _holds(told, mask_gains, sample, picked=key == "own"):
            best = told
            break
    best, gaps_of_shadow = _heard(best, unseen, mask_gains, sample, rng)
    gaps = {**gaps, **gaps_of_shadow}
    return Choice("mar", hard_limits(Z, 0.0), gaps) if best is None else _choice(best, Z, gaps)


def _with_merits(
    sample: Sample, mask_gains: np.ndarray
) -> tuple[dict[str, Candidate], dict[str, float]]:
    """One mechanism for all columns, one for each where that leaves something open, and merits."""
    candidates = _uniform_candidates(sample, _BOTH)
    merits = {key: _merit(each, mask_gains, sample) for key, each in candidates.items()}
    own = None
    if not _is_explained(candidates[max(merits, key=merits.__getitem__)], mask_gains, sample):
        own = _own_candidate(sample, candidates, mask_gains)
    if own is not None:
        candidates["own"] = own
        margin = _FOR_OWN * float(sample.n_missing.sum())
        merits["own"] = _merit(own, mask_gains, sample, picked=True) - margin
    return candidates, merits


def _heard(
    best: Candidate | None,
    unseen: list[Fold],
    mask_gains: np.ndarray,
    sample: Sample,
    rng: np.random.RandomState,
) -> tuple[Candidate | None, dict[str, float]]:
    """The best by evidence, judged by rows held out, or what shadow targets say in its place."""
    found = None if best is None else best.form
    if found is not None and found.is_hard[sample.n_missing > 0].all():
        return best, {}  # limits all over leave nothing to ask
    signs = believed_signs(sample, rng)
    if says_no_more(signs, found):
        return best, {}
    told, gaps = best, {}
    form = told_form(signs, found)
    if best is None or not all(map(np.array_equal, form, best.form)):
        shadow = candidate(sample.Z, form, sample.mar)
        told = judged_by(unseen or folds(sample, rng), shadow, sample.Z)
        gaps = _per_cell({SHADOW: shadow}, sample.n_missing.sum())
        if not _holds(told, mask_gains, sample, may_lack=_HEARD_MAY_LACK):
            return best, gaps
    assert told is not None
    is_seen = told.insight > _SEEN * sample.n_missing
    if found is not None and says_no_more(signs * is_seen, found):
        return best, gaps
    return with_known_sides(told, is_seen, sample, rng), gaps


def _per_cell(candidates: dict[str, Candidate], total: int) -> dict[str, float]:
    return {key: float(each.gain / total) for key, each in candidates.items()}


def _choice(best: Candidate, Z: np.ndarray, gaps: dict[str, float]) -> Choice:
    """A candidate whose hard limits are those of all rows."""
    form, fit = best.form, best.fit
    name = _NAMES[bool(form.is_hard[form.side != 0].all())]
    mechanism = with_limits(fit.mechanism, hard_limits(Z, form.side), form.is_hard)
    return Choice(name, mechanism, gaps)


def _merit(
    judged: Candidate, mask_gains: np.ndarray, sample: Sample, picked: bool = False
) -> float:
    """Gain over missing at random with its model of the mask; -inf if that explains as much."""
    cells, beyond = _beyond(judged, mask_gains, sample)
    enough = min(beyond) > _OF_PICKED * cells if picked else sum(beyond) > 0
    if not enough or judged.insight.sum() < _SEEN * cells:
        return -np.inf
    return beyond[0] + _FOR_HARD * float(sample.n_missing[judged.form.is_hard].sum())


def _holds(
    judged: Candidate,
    mask_gains: np.ndarray,
    sample: Sample,
    picked: bool = False,
    may_lack: float = _MAY_LACK,
) -> bool:
    """Whether a candidate of merit has some on rows that its fit has not seen."""
    cells, beyond = _beyond(judged, mask_gains, sample)
    least = _OF_PICKED if picked else -may_lack
    enough = min(beyond[1], beyond[0] if picked else sum(beyond)) > least * cells
    return bool(enough and judged.insight.sum() >= _SEEN * cells)


def _beyond(
    judged: Candidate, mask_gains: np.ndarray, sample: Sample
) -> tuple[int, tuple[float, float]]:
    """Missing cells of the columns with a mechanism, and what the gain and the insight have over
    the model of the mask."""
    has = judged.form.side != 0
    cells, mask_gain = sample.n_missing[has].sum(), mask_gains[has].sum()
    return cells, (judged.gain - mask_gain, judged.insight.sum() - mask_gain)


def _is_explained(judged: Candidate, mask_gains: np.ndarray, sample: Sample) -> bool:
    """Whether a form gives more insight into each of its columns than the model of the mask."""
    least = mask_gains + _TO_PICK * sample.n_missing
    return bool((judged.insight > least)[judged.form.side != 0].all())


def _uniform_candidates(sample: Sample, kinds: tuple[bool, ...]) -> dict[str, Candidate]:
    """One mechanism for all columns; after a soft one without evidence no hard one is tried."""
    candidates: dict[str, Candidate] = {}
    for hard in kinds:
        for side, where in _SIDES.items():
            soft = candidates.get(f"{_NAMES[False]} {where}")
            if soft is None or soft.gain > 0:
                form = uniform(sample.n_missing > 0, side, hard)
                candidates[f"{_NAMES[hard]} {where}"] = candidate(sample.Z, form, sample.mar)
    return candidates


def _is_new(form: Form, candidates: dict[str, Candidate]) -> bool:
    same = (all(map(np.array_equal, form, other.form)) for other in candidates.values())
    return bool(form.side.any()) and not any(same)


def _own_candidate(
    sample: Sample, candidates: dict[str, Candidate], mask_gains: np.ndarray
) -> Candidate | None:
    """Every column as it is by itself, less those into which the joint fit gives no insight.

    What is found fills in the cells of those columns for a second look at the others.
    """
    n_missing, found, fit = sample.n_missing, None, sample.mar
    insight = np.max([mask_gains, *(each.insight for each in candidates.values())], axis=0)
    least = np.maximum(_PROPOSED * n_missing, _SHARE * mask_gains)
    least[(insight <= _SEEN * n_missing) | ~sample.can_differ] = np.inf
    form = uniform(n_missing > 0, 0.0, False)
    for _ in range(_ROUNDS):
        rest = np.where(form.side == 0, least, np.inf)
        more = _own_form(sample, completed(sample.Z, fit), rest, _BOTH)
        if not more.side.any():
            break
        form = Form(form.side + more.side, form.is_hard | more.is_hard)
        found = _pruned(sample, form, mask_gains + _TO_PICK * n_missing)
        if found is None:
            return None
        form, fit = found.form, found.fit
    return found if found is not None and _is_new(form, candidates) else None


def _pruned(sample: Sample, form: Form, least: np.ndarray) -> Candidate | None:
    """The joint fit of a form without the columns of less insight than ``least``."""
    judged = candidate(sample.Z, form, sample.mar)
    kept = judged.insight > least
    if kept[form.side != 0].all():
        return judged
    form = Form(form.side * kept, form.is_hard & kept)
    return candidate(sample.Z, form, sample.mar) if form.side.any() else None


def _own_form(
    sample: Sample, filled: np.ndarray, least: np.ndarray, kinds: tuple[bool, ...]
) -> Form:
    """What each column is proposed for by itself; ``least`` (d,) is inf where nothing is."""
    form = uniform(sample.n_missing > 0, 0.0, False)
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
    mar = fitted(Z, uniform(alone, 0.0, False), FEW_ITERATIONS)
    gains = {(0.0, False): least}
    for hard in kinds:
        for side in _SIDES:
            if gains.get((side, False), 1.0) > 0:
                form = uniform(alone, side, hard)
                own = gain(Z, form, fitted(Z, form, FEW_ITERATIONS), mar)
                gains[side, hard] = own + _FOR_HARD * n_missing * hard
    return max(gains, key=gains.__getitem__)
