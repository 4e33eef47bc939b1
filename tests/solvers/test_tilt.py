"""The outer problem of a tilt on problems whose answer is known."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.solvers.tilt import Rule, learn_tilt


def quadratic(optima, scales):
    """Gains of targets that are best at their optimum (t,) of theta_0; the others do nothing.

    The width has nothing to do with gains, but costs its square in the objective.
    """
    optima, scales = (torch.as_tensor(part, dtype=torch.float64) for part in (optima, scales))

    def gains(theta, width):
        return scales * (optima**2 - (theta[0] - optima) ** 2)

    def objective(theta, width, kept):
        return theta.square().sum() / 2 - gains(theta, width)[kept].sum() + width**2

    return objective, gains


def learnt(optima, scales, free=None, agreement=1.0, score=5.0, **rule):
    objective, gains = quadratic(optima, scales)
    free = torch.zeros(len(optima)) if free is None else torch.tensor(free)
    # The examples have an evidence of some nats.
    rule = Rule(**{"least_evidence": 0.0, **rule})
    return learn_tilt(objective, gains, lambda g: g, lambda *_: (agreement, score), free, 2, rule)


def test_minimum_is_that_of_the_closed_form():
    found = learnt([2.0, 3.0], [2.0, 4.0])
    # theta - sum 2 s (optimum - theta) = 0
    expected = 2 * (2 * 2 + 4 * 3) / (1 + 2 * 6)
    assert_allclose(found.outer.theta, [expected, 0.0], rtol=1e-6, atol=1e-9)
    assert found.outer.is_accepted and found.converged
    # Width costs its square, and the first decides: it gives way to a narrower one only.
    assert found.outer.width == 0.5
    assert learnt([2.0, 3.0], [2.0, 4.0], widths=(1.5, 0.5)).outer.width == 0.5
    assert_allclose(found.inner, [2 * (4 - (expected - 2) ** 2), 4 * (9 - (expected - 3) ** 2)])


@pytest.mark.parametrize(
    ("optima", "scales", "accepted"),
    [
        ([1.0, 1.0, 1.0], [3.0, 3.0, 3.0], True),
        # Less than 2.5 nats per target.
        ([1.0, 1.0, 1.0], [1.4, 1.4, 1.4], False),
        # One target of three is for it, however much.
        ([3.0, -0.1, -0.1], [30.0, 1.0, 1.0], False),
    ],
)
def test_tilt_is_accepted_if_it_is_worth_it_for_most_targets(optima, scales, accepted):
    found = learnt(optima, scales)
    assert found.outer.is_accepted == accepted
    assert bool(found.outer.theta.any()) == accepted


def test_target_that_the_free_alternative_explains_is_dropped_and_the_rest_is_solved_again():
    optima, scales = [1.0, 1.0, -3.0], [3.0, 3.0, 30.0]
    every = learnt(optima, scales)
    assert not every.outer.is_accepted
    # It gains 270 by a tilt of -3, of which the alternative has 1000.
    found = learnt(optima, scales, free=[0.0, 0.0, 1000.0])
    assert_array_equal(found.outer.kept, [True, True, False])
    assert_allclose(found.outer.theta[0], learnt([1.0, 1.0], [3.0, 3.0]).outer.theta[0], rtol=1e-6)
    assert found.outer.is_accepted
    assert len(found.history["objective"]) == 2


def test_nothing_is_accepted_where_every_target_is_dropped():
    found = learnt([1.0, 1.0], [3.0, 3.0], free=[50.0, 50.0])
    assert not found.outer.is_accepted
    assert not found.outer.kept.any() and not found.outer.theta.any()


def test_evidence_is_that_of_the_integral():
    """The objective is quadratic, so that Laplace's formula is exact: by quadrature."""
    optima, scales, width = np.array([1.0, 1.2]), np.array([2.0, 1.0]), 0.5
    found = learnt(optima, scales, widths=(width,))
    theta = np.linspace(-12, 12, 20001)
    gains = sum(s * (o**2 - (theta - o) ** 2) for o, s in zip(optima, scales, strict=True))
    prior = np.exp(-(theta**2) / 2) / np.sqrt(2 * np.pi)
    expected = np.log(np.trapezoid(prior * np.exp(gains), theta)) - width**2
    assert found.outer.support.evidence == pytest.approx(expected, rel=1e-6)
    assert found.outer.support.gain_per_target == pytest.approx(found.inner.mean().item())
    assert found.outer.support.share == 1.0


def test_what_is_not_evident_is_not_believed():
    evidence = learnt([1.0, 1.0], [3.0, 3.0], widths=(0.5,)).outer.support.evidence
    for difference, accepted in ((-1e-6, True), (1e-6, False)):
        found = learnt([1.0, 1.0], [3.0, 3.0], widths=(0.5,), least_evidence=evidence + difference)
        assert found.outer.is_accepted == accepted
        assert bool(found.outer.theta.any()) == accepted


def test_what_contradicts_other_knowledge_is_not_believed():
    assert learnt([1.0], [9.0], agreement=0.34).outer.is_accepted
    refused = learnt([1.0], [9.0], agreement=0.33).outer
    assert not refused.is_accepted and not refused.theta.any()
    assert refused.support.agreement == 0.33
    assert not learnt([1.0], [9.0], score=4.99).outer.is_accepted


def test_wide_prior_has_to_pay_for_all_that_it_could_have_fitted():
    """A width of 5 has the smaller minimum and the smaller evidence."""

    def gains(theta, width):
        return (9 - (width * theta.sum() - 3) ** 2)[None]

    def objective(theta, width, kept):
        return theta.square().sum() / 2 - gains(theta, width)[kept].sum()

    def outer(*widths):
        rule = Rule(widths=widths, least_evidence=-9.0)
        return learn_tilt(
            objective, gains, lambda g: g, lambda *_: (1.0, 9.0), torch.zeros(1), 1, rule
        )

    narrow, wide = outer(2.0), outer(5.0)
    assert wide.history["objective"][0] < narrow.history["objective"][0]
    assert wide.outer.support.evidence < narrow.outer.support.evidence
    assert outer(2.0, 5.0).outer.width == 2.0
    assert outer(5.0, 2.0).outer.width == 2.0
