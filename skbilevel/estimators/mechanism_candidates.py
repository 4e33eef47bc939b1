"""Candidates for why cells are missing: their fits, and the evidence for each.

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

A normal follows what it has imputed itself, the more so the fewer rows there are: its own rows
make it credulous. Candidates are ranked by them, and judged by rows that their fit has not seen.
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import scale as standardized

from skbilevel.estimators.linear_model import NO_LIMIT, LinearModel
from skbilevel.estimators.mechanism_em import LIMIT, MechanismFit, fit_self_masked
from skbilevel.estimators.mechanism_start import (
    hard_limits,
    normal_limits,
    self_masking,
    with_limits,
)
from skbilevel.numerics.observed import drawn_rows
from skbilevel.numerics.row_groups import StandardizedRows, row_block
from skbilevel.numerics.threads import single_thread
from skbilevel.objectives.mask_evidence import log_mask_at_rates, log_mask_given_others
from skbilevel.objectives.normal import NormalParameters, precision
from skbilevel.objectives.self_masked_normal import projected
from skbilevel.objectives.self_masking import SelfMasking

# A column of fewer values follows the others: by itself it would be taken for its shape.
_FEWEST_VALUES, _FEWEST_TO_PICK = 2, 5
# The order of candidates shows on this many rows, after this many iterations.
_MOST_ROWS, ITERATIONS = 2000, 30
# Rows held out, and a column by itself, are judged after so many.
FEW_ITERATIONS = 15
# Where a soft mechanism starts: as wide as half a standard deviation.
_SOFT_WIDTH = 0.5
# To which cells settle under a fit that is itself as rough as FEW_ITERATIONS make it.
_SETTLED_ENOUGH = 1e-5
_FOLDS = 5


class Fewest(NamedTuple):
    """A column with fewer missing or observed cells says nothing about why they are missing."""

    missing: int
    observed: int


class Form(NamedTuple):
    """Side of every column, and whether it has a hard limit; arrays (d,)."""

    side: np.ndarray
    is_hard: np.ndarray


class Candidate(NamedTuple):
    """A form with its fit and, in nats, its gain and the insight into every column (d,)."""

    form: Form
    fit: MechanismFit
    gain: float
    insight: np.ndarray


class Sample(NamedTuple):
    """What candidates are compared on.

    Attributes
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows, pulled in.
    n_missing : ndarray of shape (d,)
        Missing cells of the columns that can have a mechanism, 0 of the others.
    can_differ : ndarray of shape (d,)
        Columns that can have one of their own.
    mar : MechanismFit
        Of missing at random.
    """

    Z: np.ndarray
    n_missing: np.ndarray
    can_differ: np.ndarray
    mar: MechanismFit


def uniform(columns: np.ndarray, side: float, hard: bool) -> Form:
    """The same mechanism for those of the ``columns`` (d,) that are True."""
    return Form(side * columns, columns & hard)


def thinned(Z: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """The rows, or as many of them as candidates are compared on."""
    return Z if len(Z) <= _MOST_ROWS else Z[drawn_rows(Z, _MOST_ROWS, rng)]


def as_they_are(Z: np.ndarray) -> StandardizedRows:
    """Rows that are standardised already."""
    return StandardizedRows(Z, np.zeros(Z.shape[1]), np.ones(Z.shape[1]))


def sampled(Z: np.ndarray, rng: np.random.RandomState, fewest: Fewest) -> Sample:
    """At most a few thousand rows, pulled in by the normal of missing at random."""
    Z = thinned(Z, rng)
    fit = fit_self_masked(as_they_are(Z), hard_limits(Z, 0.0), max_iter=ITERATIONS)
    n_missing = np.count_nonzero(np.isnan(Z), axis=0)
    n_observed = len(Z) - n_missing
    n_values = np.array([len(np.unique(column[~np.isnan(column)])) for column in Z.T])
    tells = (n_missing >= fewest.missing) & (n_observed >= fewest.observed)
    n_missing = n_missing * (tells & (n_values >= _FEWEST_VALUES))
    if n_missing.any():
        Z = _pulled_in(Z, fit.parameters)
        fit = fitted(Z, uniform(n_missing > 0, 0.0, False))
    return Sample(Z, n_missing, n_values >= _FEWEST_TO_PICK, fit)


@torch.inference_mode()
@single_thread()
def _pulled_in(Z: np.ndarray, parameters: NormalParameters) -> np.ndarray:
    rows, model, zero = Z.copy(), precision(parameters), np.zeros(Z.shape[1])
    for group, where in row_block(Z, zero, zero + 1).placed():
        at_zero = torch.zeros(group.missing.shape, dtype=torch.float64)
        rows[where] = projected(group, model, LIMIT, at_zero).values.numpy()
    rows[np.isnan(Z)] = np.nan
    return rows


def fitted(
    Z: np.ndarray, form: Form, max_iter: int = ITERATIONS, hard: SelfMasking | None = None
) -> MechanismFit:
    """A form on rows that are pulled in; hard limits stay where they are."""
    is_soft = (form.side != 0) & ~form.is_hard
    hard = hard_limits(Z, form.side) if hard is None else hard
    width = np.where(is_soft, _SOFT_WIDTH, 1.0)
    soft = self_masking(form.side, normal_limits(Z, form.side), width)
    start = with_limits(soft, hard, form.is_hard)
    learn = bool(is_soft.any())
    fit = fit_self_masked(as_they_are(Z), start, learn=learn, max_iter=max_iter, limit=NO_LIMIT)
    return fit._replace(mechanism=with_limits(fit.mechanism, hard, form.is_hard))


def candidate(Z: np.ndarray, form: Form, mar: MechanismFit) -> Candidate:
    """A form with its fit and the evidence for it."""
    fit = fitted(Z, form)
    return Candidate(form, fit, gain(Z, form, fit, mar), _log_mask(Z, fit) - _at_rates(Z, form))


def gain(Z: np.ndarray, form: Form, fit: MechanismFit, mar: MechanismFit) -> float:
    """log p(x_o, s) in nats over that of missing at random at constant rates."""
    return float((fit.evidence - mar.evidence) * len(Z) - _at_rates(Z, form).sum())


class Fold(NamedTuple):
    """Rows that were held out, the others, and log p(x_o) of the former by missing at random."""

    held_out: np.ndarray
    rest: np.ndarray
    at_random: float


def folds(sample: Sample, rng: np.random.RandomState) -> list[Fold]:
    """Folds to judge candidates by rows that their fit has not seen."""
    splits = KFold(_FOLDS, shuffle=True, random_state=rng).split(sample.Z)
    none = uniform(sample.n_missing > 0, 0.0, False)
    parts = ((sample.Z[fold], sample.Z[rest]) for rest, fold in splits)
    return [
        Fold(*pair, _log_evidence(pair[0], fitted(pair[1], none, FEW_ITERATIONS)))
        for pair in parts
    ]


def judged_by(folds: list[Fold], judged: Candidate, Z: np.ndarray) -> Candidate:
    """The candidate with gain and insight of the rows held out."""
    form, hard = judged.form, hard_limits(Z, judged.form.side)
    at_rates = _at_rates(Z, form)
    gained, insights = -at_rates.sum(), -at_rates
    for fold in folds:
        fit = fitted(fold.rest, form, FEW_ITERATIONS, hard)
        gained += _log_evidence(fold.held_out, fit) - fold.at_random
        insights = insights + _log_mask(fold.held_out, fit)
    return judged._replace(gain=float(gained), insight=insights)


def _at_rates(Z: np.ndarray, form: Form) -> np.ndarray:
    """log p(s) at constant rates of the columns that have a mechanism, (d,)."""
    return np.where(form.side != 0, log_mask_at_rates(torch.from_numpy(Z).isnan()).numpy(), 0.0)


def _log_mask(Z: np.ndarray, fit: MechanismFit) -> np.ndarray:
    """log p(s | the other columns) of every column, (d,), as `mask_evidence` approximates it."""
    rows, missing = torch.from_numpy(completed(Z, fit)), torch.from_numpy(Z).isnan()
    return log_mask_given_others(rows, missing, precision(fit.parameters), fit.mechanism).numpy()


@single_thread()
def _log_evidence(Z: np.ndarray, fit: MechanismFit) -> float:
    return float(_in_units_of(Z, fit).log_densities(Z).sum())


@single_thread()
def completed(Z: np.ndarray, fit: MechanismFit) -> np.ndarray:
    """Rows (n, d) that are pulled in with missing cells at their means under a fit."""
    return _in_units_of(Z, fit).completed(Z)


def _in_units_of(Z: np.ndarray, fit: MechanismFit) -> LinearModel:
    zero = np.zeros(Z.shape[1])
    return LinearModel(fit.parameters, fit.mechanism, zero, zero + 1, NO_LIMIT, _SETTLED_ENOUGH)


def regression_gains(sample: Sample, rng: np.random.RandomState) -> np.ndarray:
    """What missing at random gains by a model of the mask of every column, (d,)."""
    missing, gains = np.isnan(sample.Z), np.zeros(len(sample.n_missing))
    filled = completed(sample.Z, sample.mar)
    for j in np.flatnonzero(sample.n_missing):
        gains[j] = _regression_gain(np.delete(filled, j, axis=1), missing[:, j], rng)
    return gains


def _regression_gain(filled: np.ndarray, missing: np.ndarray, rng: np.random.RandomState) -> float:
    """Out-of-fold log p(s | the other columns) of a column over that at its rate, at least 0."""
    if filled.shape[1] == 0:
        return 0.0
    predictors, gained = standardized(filled), 0.0
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=rng)
    for train, test in folds.split(predictors, missing):
        model = LogisticRegression(max_iter=500).fit(predictors[train], missing[train])
        with np.errstate(divide="ignore"):  # a predictor far out can make it certain
            logs = model.predict_log_proba(predictors[test])
        rate = missing[train].mean()
        gained += float(np.where(missing[test], logs[:, 1], logs[:, 0]).sum())
        gained -= float(np.log(np.where(missing[test], rate, 1 - rate)).sum())
    return max(gained, 0.0)
