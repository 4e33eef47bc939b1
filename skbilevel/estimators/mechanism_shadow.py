"""What shadow targets say to the choice of a mechanism.

Evidence and the tilt that shadow targets teach fail in different cases. Evidence looks at the mask
and at the shape of columns, and has to find the sides of all columns at once; a tilt hears of each
side from the other columns, but knows neither limits nor slopes. A tilt that is believed gives the
sides, and with them the slope, as all columns may share one.
"""

import numpy as np

from skbilevel.estimators.mechanism_candidates import Candidate, Form, Sample
from skbilevel.estimators.mechanism_em import NARROWEST
from skbilevel.estimators.mechanism_slope import known_sign
from skbilevel.estimators.mechanism_start import with_limits
from skbilevel.estimators.shadow_fit import fit_tilt

# Nats per target, and agreement with the mask. Alone a tilt needs 2.5 and a third, but a false one
# costs more with a mechanism: of 36 tables whose masks close proxies of the columns drive, 2.5 let
# three through, and 3 one.
_LEAST_GAIN, _LEAST_AGREEMENT = 3.0, 0.5


def believed_signs(sample: Sample, rng: np.random.RandomState) -> np.ndarray:
    """Sides (d,) of columns that can have one of their own; 0 unless the tilt is believed."""
    tilt = fit_tilt(sample.Z, sample.mar.parameters, rng)
    if tilt.gain_per_target < _LEAST_GAIN or tilt.agreement < _LEAST_AGREEMENT:
        return np.zeros(sample.Z.shape[1])
    return tilt.signs * sample.can_differ * (sample.n_missing > 0)


def says_no_more(signs: np.ndarray, form: Form | None) -> bool:
    """Whether signs are silent, or a form of hard limits has all of them: a limit that evidence
    has found is sharper than what a tilt can tell."""
    has = signs != 0
    if form is None or not has.any():
        return not has.any()
    return bool((form.is_hard | (form.side == 0)).all() and (form.side == signs)[has].all())


def told_form(signs: np.ndarray, form: Form | None) -> Form:
    """The signs as a soft form, which adds to one that contradicts them nowhere."""
    if form is None or (form.side * signs < 0).any():
        return Form(signs, np.zeros(len(signs), dtype=bool))
    return Form(np.where(signs == 0, form.side, signs), form.is_hard)


def with_known_sides(
    judged: Candidate, is_seen: np.ndarray, sample: Sample, rng: np.random.RandomState
) -> Candidate:
    """A candidate whose soft columns have the slope of known sides, or limits, where seen (d,).

    A wrong side in a column that the others do not predict goes unnoticed, and a shared slope
    would make much of it. That of its own fit is flat there.
    """
    shared = known_sign(sample.Z, judged.form.side, rng).mechanism
    is_seen = is_seen & (judged.form.side != 0) & ~judged.form.is_hard
    is_hard = judged.form.is_hard | (is_seen & (shared.width.numpy() <= NARROWEST))
    mechanism = with_limits(judged.fit.mechanism, shared, is_seen)
    form, fit = Form(judged.form.side, is_hard), judged.fit._replace(mechanism=mechanism)
    return judged._replace(form=form, fit=fit)
