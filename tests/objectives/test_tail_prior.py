"""The reflection beyond a limit: the slow oracle, its two ends, and columns left alone."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skbilevel.objectives.family import add
from skbilevel.objectives.normal import NormalParameters, left_out, precision
from skbilevel.objectives.self_masking import SelfMasking
from skbilevel.objectives.tail_prior import (
    TailPrior,
    excess,
    network_share,
    predicted_within,
    ranks,
    reflected,
    shape_distance,
    shape_trust,
    shared,
    tail_prior,
    tail_sums,
    trusting,
)
from tests.reference import tail_prior as oracle

LOCATION = np.array([0.2, -0.1, 0.0, 0.4])
COVARIANCE = np.array(
    [[1.2, 0.7, 0.3, 0.1], [0.7, 1.0, 0.2, -0.3], [0.3, 0.2, 0.8, 0.4], [0.1, -0.3, 0.4, 1.5]]
)
SIDE = np.array([1.0, -1.0, 0.0, 1.0])
THRESHOLD = np.array([0.5, -0.6, 0.3, 0.9])
HARD = SIDE != 0


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def limits(side=SIDE, threshold=THRESHOLD, width=0.0):
    return SelfMasking(tensor(side), tensor(threshold), tensor(np.full(len(side), width)))


def normal(location=LOCATION, covariance=COVARIANCE):
    return precision(NormalParameters(tensor(location), tensor(covariance)))


def table(n_rows=80, seed=0):
    """Rows of the normal, and which cells lie within the limits; others are shifted a little, so
    that they are no draws of it, and some fall short of the limit."""
    rng = np.random.default_rng(seed)
    rows = rng.multivariate_normal(LOCATION, COVARIANCE, n_rows)
    observed = SIDE * (rows - THRESHOLD) <= 0
    observed[:, 2] = rng.random(n_rows) < 0.7
    return np.where(observed, rows, rows + rng.normal(0, 0.5, rows.shape)), observed


def fitted(rows, observed, is_hard=HARD, mechanism=None, model=None):
    mechanism = limits() if mechanism is None else mechanism
    sums = tail_sums(tensor(rows), tensor(observed), model or normal(), mechanism)
    return tail_prior(sums, mechanism, torch.as_tensor(is_hard))


def test_prediction_is_that_of_the_other_cells_truncated_at_the_limit():
    rows, _ = table(12)
    ours = predicted_within(left_out(tensor(rows), normal()), limits())
    for i, j in np.ndindex(rows.shape):
        theirs = oracle.predicted(rows[i], j, LOCATION, COVARIANCE, SIDE[j], THRESHOLD[j])
        assert ours[i, j] == pytest.approx(theirs, rel=1e-9, abs=1e-10)


def test_prediction_of_a_cell_does_not_look_at_it():
    rows, _ = table(5)
    moved = rows.copy()
    moved[:, 1] += 7.0
    ours, theirs = (
        predicted_within(left_out(tensor(x), normal()), limits()) for x in (rows, moved)
    )
    assert_allclose(ours[:, 1], theirs[:, 1], rtol=1e-12)
    assert (ours[:, 0] - theirs[:, 0]).abs().min() > 0.1


def test_rank_is_the_distribution_function_of_the_truncated_normal():
    rows, observed = table(12)
    cells = left_out(tensor(rows), normal())
    ours = ranks(tensor(rows), cells, limits())
    for i, j in np.argwhere(observed & HARD):
        theirs = oracle.rank(rows[i], j, LOCATION, COVARIANCE, SIDE[j], THRESHOLD[j])
        assert ours[i, j] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_shape_is_trusted_where_ranks_are_even_and_a_network_where_they_are_bent(power):
    even = (np.arange(400) + 0.5) / 400
    counts = np.histogram(even**power, bins=1024, range=(0, 1))[0]
    distance = shape_distance(tensor(counts[:, np.newaxis]))
    trust, share = shape_trust(distance, tensor([400])), network_share(distance)
    if power == 1.0:
        assert distance < 3 / 1024
        assert trust > 0.95
        assert share < 1e-3
    else:
        # x^(1/1.5) - x is largest at (2/3)^3.
        assert float(distance) == pytest.approx((2 / 3) ** 2 - (2 / 3) ** 3, abs=3 / 1024)
        assert trust < 1e-3
        assert share == pytest.approx(oracle.share(float(distance)), rel=1e-12)
        assert share > 0.85


def test_true_normal_is_trusted_and_one_of_another_scale_is_not():
    """What is observed of the true model is not told from it; the tail is then the model's."""
    rng = np.random.default_rng(0)
    rows = rng.multivariate_normal(LOCATION, COVARIANCE, 4000)
    observed = SIDE * (rows - THRESHOLD) <= 0
    wrong = normal(LOCATION, COVARIANCE * np.outer(scales := [2.0, 1, 1, 1], scales))
    true, other = (fitted(rows, observed, model=model) for model in (normal(), wrong))
    assert true.trust[0] > 0.1
    assert other.trust[0] < 1e-6
    assert true.share[0] < 0.1 < 0.9 < other.share[0]


def test_prior_is_the_oracles():
    rows, observed = table()
    prior = fitted(rows, observed)
    for j in np.flatnonzero(HARD):
        own = (SIDE[j], THRESHOLD[j])
        r = oracle.reliability(rows, observed, j, LOCATION, COVARIANCE, *own)
        assert 0.1 < r < 0.95
        assert prior.reliability[j] == pytest.approx(r, rel=1e-9)
        D, n = oracle.distance(rows, observed, j, LOCATION, COVARIANCE, *own)
        assert 1e-3 < oracle.trust(D, n) < 1
        assert prior.trust[j] == pytest.approx(oracle.trust(D, n), rel=1e-8)
        assert 0.05 < oracle.share(D) < 0.99
        assert prior.share[j] == pytest.approx(oracle.share(D), rel=1e-8)
        assert prior.reach[j] == pytest.approx(oracle.reach(rows, observed, j, *own), rel=1e-12)
        g = oracle.mean_excess(rows, observed, j, *own)
        assert prior.mean_excess[j] == pytest.approx(g, rel=1e-12)


def test_imputations_are_the_oracles():
    rows, observed = table()
    prior, network = fitted(rows, observed), rows + 0.3
    model = shared(tensor(rows), tensor(network), prior)
    drawn_in = reflected(model, limits(), prior)
    ours = trusting(drawn_in, tensor(rows), prior).numpy()
    for j in np.flatnonzero(HARD):
        r, w, q, A, g = (float(part[j]) for part in prior)
        pairs = zip(rows[:, j], network[:, j], strict=True)
        theirs = [oracle.imputed(*pair, q, w, SIDE[j], THRESHOLD[j], r, A, g) for pair in pairs]
        assert_allclose(ours[:, j], theirs, rtol=1e-12)
    # Without a limit the network is all.
    assert_array_equal(model[:, 2], network[:, 2])
    assert_array_equal(drawn_in[:, 2], network[:, 2])


@pytest.mark.parametrize("r", [0.0, 0.3, 0.8])
def test_mean_excess_is_a_geometric_then_an_arithmetic_mixture_of_model_and_reflection(r):
    """r g^(r^2) A^(1-r^2) + (1 - r) A, whatever the spread of the excesses."""
    values = 0.5 + np.array([[0.1], [0.7], [2.2]])
    mechanism = limits([1.0], [0.5])
    prior = TailPrior(*map(tensor, ([r], [0.0], [0.0], [2.5], [1.0])))
    ours = excess(reflected(tensor(values), mechanism, prior), mechanism).mean()
    assert ours == pytest.approx(r * 2.5 ** (1 - r**2) + (1 - r) * 2.5, rel=1e-12)
    # With a reach of g the mean is kept, and with r = 1 every value would be.
    same = reflected(tensor(values), mechanism, prior._replace(reach=tensor([1.0])))
    assert_allclose(same, 0.5 + r * (values - 0.5) + (1 - r), rtol=1e-12)


def test_reliability_of_one_leaves_the_model_alone_and_zero_is_the_reflection():
    rows = tensor([[-3.0, -3.0], [0.9, 0.9], [2.0, 2.0]])
    mechanism = limits([1.0, 1.0], [0.5, 0.5])
    prior = TailPrior(*map(tensor, ([1, 0], [0, 0], [0, 0], [2.0, 2.0], [0.7, 0.7])))
    ours = reflected(rows, mechanism, prior)
    assert torch.equal(ours[:, 0], rows[:, 0])
    assert_allclose(ours[:, 1], 2.5, rtol=1e-14)


def test_reflection_is_twice_the_limit_less_the_observed_mean():
    """An independent column is not predicted at all."""
    rng = np.random.default_rng(3)
    # Uniform values: of a normal shape the tail would be trusted.
    rows = rng.uniform(-1.5, 1.5, size=(3000, 2))
    observed = rows <= np.array([0.4, np.inf])
    independent = normal(np.zeros(2), np.eye(2))
    mechanism = limits([1.0, 0.0], [0.4, 0.0])
    prior = fitted(rows, observed, [True, False], mechanism, independent)
    assert prior.reliability[0] < 1e-3
    ours = reflected(tensor(rows), mechanism, prior)[~observed[:, 0], 0]
    seen = rows[observed[:, 0], 0]
    assert_allclose(ours, 2 * 0.4 - seen.mean(), atol=1e-3 * 5)


def test_column_that_the_others_determine_has_a_reliability_of_one():
    rng = np.random.default_rng(4)
    first = rng.normal(size=(200, 1))
    rows = np.hstack([first, first + 1e-4 * rng.normal(size=(200, 1))])
    observed = np.column_stack([rows[:, 0] <= 0.3, np.ones(200, dtype=bool)])
    model = normal(np.zeros(2), np.array([[1.0, 1.0], [1.0, 1.0 + 1e-8]]))
    prior = fitted(rows, observed, [True, False], limits([1.0, 0.0], [0.3, 0.0]), model)
    assert 1 - 1e-5 < prior.reliability[0] <= 1


def test_column_that_is_predicted_the_wrong_way_round_has_a_reliability_of_zero():
    rows, observed = table()
    flipped = COVARIANCE * np.where(np.eye(4), 1.0, -0.4)
    prior = fitted(rows, observed, model=normal(LOCATION, flipped))
    assert prior.reliability[0] == 0
    assert fitted(rows, observed).reliability[0] > 0.1
    assert prior.reach[0] > 0


def test_sums_of_parts_add_up():
    rows, observed = table()
    parts = [
        tail_sums(tensor(rows[part]), tensor(observed[part]), normal(), limits())
        for part in (slice(0, 7), slice(7, 80))
    ]
    whole = tail_sums(tensor(rows), tensor(observed), normal(), limits())
    for ours, theirs in zip(add(*parts), whole, strict=True):
        assert_allclose(ours, theirs, rtol=1e-12)
    assert_array_equal(whole.n_observed + whole.n_missing, 80.0)


def test_only_columns_with_a_hard_limit_are_drawn_to_the_reflection():
    rows, observed = table()
    prior = fitted(rows, observed, [True, False, True, False])
    assert_array_equal(prior.reliability < 1, [True, False, False, False])
    ours = reflected(tensor(rows), limits(), prior).numpy()
    assert_array_equal(ours[:, 1:], rows[:, 1:])
    assert np.abs(ours[:, 0] - rows[:, 0]).max() > 0.1


def test_column_without_an_excess_or_a_reach_is_left_alone():
    rows, observed = table()
    short = np.where(observed, rows, THRESHOLD - 0.1 * SIDE)
    assert_array_equal(fitted(short, observed).reliability, 1.0)
    # Its observed cells all lie at the limit.
    level = np.where(observed[:, :1], THRESHOLD[0], rows[:, :1])
    prior = fitted(np.hstack([level, rows[:, 1:]]), observed)
    assert prior.reliability[0] == 1
    # All of it is observed.
    full = fitted(rows, observed | (np.arange(4) == 0))
    assert full.reliability[0] == 1
    assert full.reliability[1] < 1


def test_shifted_rescaled_and_mirrored_columns_are_drawn_alike():
    rows, observed = table()
    factor, offset = np.array([3.0, -0.5, 1.0, -2.0]), np.array([1.0, 0.0, -4.0, 2.0])
    moved = limits(SIDE * np.sign(factor), THRESHOLD * factor + offset)
    model = normal(LOCATION * factor + offset, COVARIANCE * np.outer(factor, factor))
    plain = fitted(rows, observed)
    other = fitted(rows * factor + offset, observed, HARD, moved, model)
    assert_allclose(other.reliability, plain.reliability, rtol=1e-9)
    for ours, theirs in ((other.reach, plain.reach), (other.mean_excess, plain.mean_excess)):
        assert_allclose(ours[HARD], theirs[HARD] * tensor(factor[HARD]).abs(), rtol=1e-12)
    ours = reflected(tensor(rows * factor + offset), moved, other)
    theirs = reflected(tensor(rows), limits(), plain)
    assert_allclose((ours.numpy() - offset) / factor, theirs, rtol=1e-9, atol=1e-12)
