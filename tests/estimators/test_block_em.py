"""The parts joined: sums over blocks, and fits against an optimiser that knows nothing of EM."""

import math
from functools import reduce

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes

from skbilevel.estimators import block_em
from skbilevel.estimators.block_em import (
    completed_rows,
    drawn_rows,
    in_row_order,
    maximum_likelihood,
    pairwise_estimate,
    total,
)
from skbilevel.numerics import row_groups
from skbilevel.numerics.random import row_keys, row_normal
from skbilevel.numerics.row_groups import StandardizedRows, row_block, slices
from skbilevel.objectives.family import add, pack, pairwise_sums
from skbilevel.objectives.normal import NormalFamily
from skbilevel.objectives.student_t import StudentFamily
from tests.problems import symmetric_matrix
from tests.reference.families import (
    ObservedLikelihood,
    block_of,
    normal_parameters,
    of_each_family,
    with_holes,
)
from tests.reference.gaussian import conditional_mean


def normal_rows(n=300, d=6, seed=0):
    rng = np.random.default_rng(seed)
    covariance = symmetric_matrix(np.linspace(0.1, 3, d), seed)
    X = rng.multivariate_normal(np.arange(d), covariance, n)
    return with_holes(X, 0.3, np.random.default_rng(seed))


def few_patterns():
    """Rows that miss one of five sets of columns, which EM then sums by pattern."""
    rng = np.random.default_rng(0)
    X = rng.multivariate_normal(np.arange(6), symmetric_matrix(np.linspace(0.1, 3, 6)), 300)
    masks = rng.random((5, 6)) < 0.4
    return np.where(masks[rng.integers(5, size=300)], np.nan, X)


def diabetes():
    return with_holes(load_diabetes().data, 0.3, np.random.default_rng(0))


def standardized(X):
    return StandardizedRows(X, np.nanmean(X, axis=0), np.nanstd(X, axis=0))


@pytest.fixture
def small_blocks(monkeypatch):
    """Cuts rows into blocks of 64."""
    monkeypatch.setattr(row_groups, "row_blocks", lambda X: slices(len(X), 64))


def assert_same_sums(left, right):
    assert type(left) is type(right)
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


def likelihood_of(X, rows, shrinkage):
    """Of the standardised rows."""
    return ObservedLikelihood((X - rows.center) / rows.scale, shrinkage)


def lbfgs(likelihood, d, student=False):
    """Largest value per row over mu, a Cholesky factor of S and log nu, from the identity."""
    lower, n = np.tril_indices(d), len(likelihood.rows)
    diagonal = np.flatnonzero(lower[0] == lower[1]) + d

    def value(theta):
        root = torch.zeros(d, d, dtype=torch.float64)
        entries = theta.clone()
        entries[diagonal] = theta[diagonal].exp()
        root = root.index_put(tuple(map(torch.from_numpy, lower)), entries[d : d + len(lower[0])])
        covariance = root @ root.T
        if student:
            return likelihood.student(theta[:d], covariance, theta[-1])
        return likelihood.normal(theta[:d], covariance)

    def loss(x):
        theta = torch.from_numpy(x).requires_grad_()
        result = -value(theta) / n
        (slope,) = torch.autograd.grad(result, theta)
        return result.item(), slope.numpy()

    start = np.zeros(d + len(lower[0]) + student)
    if student:
        start[-1] = math.log(5)
    options = {"maxiter": 2000, "maxfun": 3000, "ftol": 1e-14, "gtol": 1e-7, "maxcor": 30}
    return -minimize(loss, start, jac=True, method="L-BFGS-B", options=options).fun


def start_of(family, rows):
    return family.start(pairwise_estimate(rows))


def fit(family, rows, **kwargs):
    kwargs = {"max_iter": 500, "tol": 1e-11} | kwargs
    return maximum_likelihood(family, rows, start_of(family, rows), **kwargs)


def model_of(family, rows):
    """The model where EM starts."""
    return family.model(start_of(family, rows))


@pytest.mark.parametrize("load", [normal_rows, few_patterns, diabetes])
def test_accelerated_em_and_lbfgs_reach_the_same_likelihood(load):
    X = load()
    rows = standardized(X)
    result = fit(NormalFamily(0.5), rows)
    likelihood = likelihood_of(X, rows, 0.5)
    best = lbfgs(likelihood, X.shape[1])
    assert result.converged
    assert likelihood.per_row(result.inner) == pytest.approx(best, abs=1e-9)
    start = start_of(NormalFamily(0.5), rows)
    assert best - likelihood.per_row(start) > 1e-3


def test_accelerated_em_and_lbfgs_reach_the_same_likelihood_of_the_t():
    X = normal_rows(200, 4)
    X *= np.random.default_rng(1).gamma(2, 0.5, size=(200, 1)) ** -0.5
    rows = standardized(X)
    result = fit(StudentFamily(0.5), rows)
    likelihood = likelihood_of(X, rows, 0.5)
    assert result.converged
    assert likelihood.per_row(result.inner) == pytest.approx(lbfgs(likelihood, 4, True), abs=1e-9)
    assert 2 < result.inner.log_degrees.exp() < 20


@of_each_family
@pytest.mark.parametrize("load", [normal_rows, few_patterns, diabetes])
def test_objective_is_the_penalised_likelihood_per_row_and_never_falls(family, load):
    X = load()
    rows = standardized(X)
    likelihood = likelihood_of(X, rows, family.shrinkage)
    seen = []
    result = fit(family, rows, tol=1e-8, max_iter=60, on_step=seen.append)
    objective = np.array(result.history["objective"])
    start = start_of(family, rows)
    assert objective[0] == pytest.approx(likelihood.per_row(start), abs=1e-11)
    assert len(seen) == result.n_iter == len(objective) - 1 > 3
    # The image of every theta is at least as good as theta, and the history is that of the thetas.
    for value, current in zip(objective[1:], seen, strict=True):
        assert likelihood.per_row(current().inner) > value - 1e-11
    assert np.diff(objective).min() > -1e-11
    prior = family.log_prior(family.model(start)) / len(likelihood.rows)
    assert result.history["log_likelihood"][0] == pytest.approx(objective[0] - prior, abs=1e-12)


@of_each_family
@pytest.mark.parametrize("max_iter", [0, 4])
def test_parameters_are_those_that_the_sums_maximise(family, max_iter):
    rows = standardized(diabetes())
    result = fit(family, rows, max_iter=max_iter)
    assert (result.n_iter, result.converged) == (max_iter, False)
    expected = family.maximisation(result.sums)
    np.testing.assert_allclose(pack(result.inner), pack(expected), atol=1e-13)
    assert result.sums.n_rows.item() == 441


def test_few_patterns_are_summed_once_and_give_the_fit_of_the_rows(monkeypatch):
    class WithoutRows(NormalFamily):
        def expectation(self, group, model):
            pytest.fail("rows were read again")

    rows = standardized(few_patterns())
    by_pattern = fit(WithoutRows(1.0), rows)
    monkeypatch.setattr(block_em, "pattern_sums", lambda rows: None)
    by_row = fit(NormalFamily(1.0), rows)
    np.testing.assert_allclose(by_pattern.history["objective"], by_row.history["objective"])
    np.testing.assert_allclose(pack(by_pattern.inner), pack(by_row.inner), atol=1e-9)
    assert by_pattern.sums.n_rows.item() == 300


def assert_same_results(left, right):
    assert type(left.inner) is type(right.inner)
    assert torch.equal(pack(left.inner), pack(right.inner))
    assert left.history == right.history
    assert (left.n_iter, left.converged) == (right.n_iter, right.converged)
    assert_same_sums(left.sums, right.sums)


def test_on_step_ends_the_fit():
    rows = standardized(normal_rows())
    seen = []

    def stop(current):
        seen.append(current())
        return len(seen) == 2

    result = fit(NormalFamily(1.0), rows, on_step=stop)
    assert (result.n_iter, result.converged) == (len(seen), False) == (2, False)
    assert_same_results(result, seen[-1])


@of_each_family
def test_on_step_sees_the_result_of_a_fit_that_ends_at_that_iteration(family):
    """Also when it asks only after the fit."""
    rows, seen = standardized(normal_rows()), []
    fit(family, rows, max_iter=5, on_step=seen.append)
    assert len(seen) == 5
    for n_iter, current in enumerate(seen, 1):
        result = current()
        assert result.n_iter == n_iter
        assert_same_results(result, fit(family, rows, max_iter=n_iter))


def test_parameters_are_unpacked_for_on_step_only_when_it_asks():
    unpacked = []

    class Watched(NormalFamily):
        def unpack(self, theta, like):
            unpacked.append(theta)
            return super().unpack(theta, like)

    rows, counts = standardized(normal_rows()), {}
    for name, on_step in {
        "none": None,
        "silent": lambda current: False,
        "asks": lambda current: current() is None,
    }.items():
        unpacked.clear()
        fit(Watched(1.0), rows, max_iter=3, on_step=on_step)
        counts[name] = len(unpacked)
    assert counts["silent"] == counts["none"]
    assert counts["asks"] == counts["none"] + 3


def test_extrapolation_never_leaves_the_definite_covariances():
    """More columns than rows and hardly any prior: in S itself candidates would be indefinite."""
    given, accepted = [], []

    class Watched(NormalFamily):
        def model(self, parameters):
            given.append(parameters)
            model = super().model(parameters)
            accepted.append(parameters)
            return model

    rows = standardized(normal_rows(12, 20))
    result = fit(Watched(1e-3), rows, max_iter=60, tol=0.0)
    assert len(given) == len(accepted) > result.n_iter > 20
    assert torch.linalg.eigvalsh(result.inner.covariance).min() > 0


@pytest.mark.parametrize("failure", ["refused", "nan", "inf"])
@pytest.mark.parametrize("call", [3, 4, 6])
def test_a_candidate_without_a_likelihood_is_replaced_by_the_plain_step(failure, call):
    calls = []

    class Fragile(NormalFamily):
        def model(self, parameters):
            calls.append(parameters)
            if failure == "refused" and len(calls) == call:
                raise torch.linalg.LinAlgError("not definite")
            return super().model(parameters)

        def log_prior(self, model):
            if failure != "refused" and len(calls) == call:
                return float(failure)
            return super().log_prior(model)

    rows = standardized(normal_rows())
    seen = []
    result = fit(Fragile(1.0), rows, on_step=seen.append)
    expected = fit(NormalFamily(1.0), rows)
    # Calls are start, image, candidate, ...: on_step has seen the images of all but the start.
    np.testing.assert_allclose(pack(calls[call]), pack(seen[call - 3]().inner), atol=1e-13)
    objective = result.history["objective"]
    assert result.converged
    assert np.isfinite(objective).all() and (np.diff(objective) >= 0).all()
    assert objective[-1] == pytest.approx(expected.history["objective"][-1], abs=1e-9)


@of_each_family
def test_sums_over_blocks_are_the_same_to_the_bit_for_any_number_of_jobs(small_blocks, family):
    rows = standardized(normal_rows())
    assert len(rows) == 5
    assert_same_sums(total(rows, pairwise_sums, 2), total(rows, pairwise_sums))
    model = model_of(family, rows)

    def expectation(group):
        return family.expectation(group, model)

    assert_same_sums(total(rows, expectation, 2), total(rows, expectation))


def test_fits_are_the_same_to_the_bit_for_any_number_of_jobs(small_blocks):
    rows = standardized(normal_rows())
    serial, parallel = (fit(NormalFamily(1.0), rows, n_jobs=n) for n in (None, 2))
    assert serial.history == parallel.history
    assert torch.equal(pack(serial.inner), pack(parallel.inner))


def test_sums_over_blocks_are_added_within_a_block_and_then_in_the_order_of_the_blocks(
    small_blocks,
):
    rows = standardized(normal_rows())
    of_blocks = [
        reduce(add, [pairwise_sums(group) for group in rows[i].groups if group.n_missing < 6])
        for i in range(5)
    ]
    assert_same_sums(total(rows, pairwise_sums), reduce(add, of_blocks))


@pytest.mark.parametrize("size", [1, 7, 300])
def test_sums_do_not_depend_on_the_size_of_the_blocks_but_for_rounding(monkeypatch, size):
    """With one row a block some blocks have no row with an observed cell."""
    X = normal_rows()
    monkeypatch.setattr(row_groups, "row_blocks", lambda X: slices(len(X), size))
    sums = total(standardized(X), pairwise_sums)
    Z = (X - np.nanmean(X, axis=0)) / np.nanstd(X, axis=0)
    observed, Z = ~np.isnan(Z), np.nan_to_num(Z)
    np.testing.assert_array_equal(sums.n_rows, observed.T.astype(float) @ observed)
    np.testing.assert_allclose(sums.first, Z.T @ observed, atol=1e-11)
    np.testing.assert_allclose(sums.second, Z.T @ Z, atol=1e-11)


def test_rows_with_nothing_observed_have_no_sums():
    nothing = StandardizedRows(np.full((3, 2), np.nan), np.zeros(2), np.ones(2))
    assert total(nothing, pairwise_sums) is None


@of_each_family
def test_rows_with_nothing_observed_are_not_counted(family):
    X = normal_rows()
    X[50:80] = np.nan
    rows = standardized(X)
    model = model_of(family, rows)
    sums = total(rows, lambda group: family.expectation(group, model))
    assert sums.n_rows.item() == (~np.isnan(X).all(axis=1)).sum() == 269


def test_the_number_of_torch_threads_is_one_in_every_job_and_restored(small_blocks):
    rows, seen = standardized(normal_rows()), []

    def watched(group):
        seen.append(torch.get_num_threads())
        return pairwise_sums(group)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for n_jobs in (None, 2):
            total(rows, watched, n_jobs)
            assert torch.get_num_threads() == 2
        in_row_order(rows[0], lambda group: watched(group) and group.values)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize("load", [normal_rows, few_patterns])
def test_e_steps_run_on_one_torch_thread(load):
    rows, seen = standardized(load()), set()

    class Watched(NormalFamily):
        def expectation(self, group, model):
            seen.add(torch.get_num_threads())
            return super().expectation(group, model)

        def pattern_expectation(self, patterns, model):
            seen.add(torch.get_num_threads())
            return super().pattern_expectation(patterns, model)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(Watched(1.0), rows, max_iter=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_rows_are_drawn_on_one_torch_thread():
    X, seen = normal_rows(), set()
    rows = standardized(X)

    class Watched(NormalFamily):
        def given(self, group, model):
            seen.add(torch.get_num_threads())
            return super().given(group, model)

        def drawn(self, group, given, noise):
            seen.add(torch.get_num_threads())
            return super().drawn(group, given, noise)

    family, keys = Watched(1.0), row_keys(X, 0)
    model, before = model_of(family, rows), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        drawn_rows(family, model, X, rows.center, rows.scale, keys, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_pairwise_estimate_is_that_of_all_rows(small_blocks):
    X = normal_rows()
    rows = StandardizedRows(X, np.zeros(6), np.ones(6))
    assert len(rows) == 5
    estimate = pairwise_estimate(rows)
    np.testing.assert_allclose(estimate.mean, np.nanmean(X, axis=0), atol=1e-12)
    np.testing.assert_allclose(estimate.covariance.diagonal(), np.nanvar(X, axis=0), atol=1e-11)
    in_parallel = pairwise_estimate(rows, 2)
    assert torch.equal(pack(estimate), pack(in_parallel))


def test_results_of_groups_return_to_the_order_of_the_rows():
    X = normal_rows()
    block = block_of(X)
    assert not np.array_equal(block.order, np.argsort(block.order))
    rows = in_row_order(block, lambda group: group.values)
    np.testing.assert_array_equal(rows, np.nan_to_num(X))
    counts = in_row_order(block, lambda group: group.observed().sum(1))
    np.testing.assert_array_equal(counts, (~np.isnan(X)).sum(axis=1))


def test_completed_rows_are_conditional_means_in_the_units_of_the_data():
    X = normal_rows() * 10.0 ** np.arange(-3, 3) + 5
    rows = standardized(X)
    covariance = symmetric_matrix(np.linspace(0.2, 2, 6))
    location = np.linspace(-1, 1, 6)
    family = NormalFamily(1.0)
    model = family.model(normal_parameters(location, covariance))
    completed = completed_rows(family, model, X, rows.center, rows.scale)
    scale = rows.scale
    expected = conditional_mean(
        X, rows.center + scale * location, covariance * np.outer(scale, scale)
    )
    np.testing.assert_allclose(completed, expected, rtol=1e-11)


def drawing(family):
    """X in odd units, its standardised rows, a model, keys, and ``draw(X, keys, n_draws)``."""
    X = normal_rows(60) * 10.0 ** np.arange(-3, 3) + 5
    rows = standardized(X)
    model, keys = model_of(family, rows), row_keys(X, 7)

    def draw(X, keys, n_draws):
        return drawn_rows(family, model, X, rows.center, rows.scale, keys, n_draws)

    return X, rows, model, keys, draw


@of_each_family
def test_a_draw_of_a_row_comes_from_the_noise_of_its_own_key(family):
    """Row by row and draw by draw, by the family alone, in the units of the data."""
    X, rows, model, keys, draw = drawing(family)
    drawn, width = draw(X, keys, 3), family.noise_width(6)
    assert drawn.shape == (3, *X.shape)
    for i, row in enumerate(X):
        (group,) = row_block(row[None], rows.center, rows.scale).groups
        for number in range(3):
            noise = torch.from_numpy(row_normal(keys[i : i + 1], number, width))
            alone = family.drawn(group, family.given(group, model), noise)[0].numpy()
            expected = rows.center + rows.scale * alone
            np.testing.assert_allclose(drawn[number, i], expected, rtol=1e-9, atol=1e-9)


@of_each_family
def test_draws_do_not_depend_on_how_many_there_are_and_differ_where_cells_are_missing(family):
    X, _, _, keys, draw = drawing(family)
    drawn = draw(X, keys, 3)
    for n_draws in (0, 1, 2):
        np.testing.assert_array_equal(draw(X, keys, n_draws), drawn[:n_draws])
    missing = np.isnan(X)
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        np.testing.assert_array_equal(drawn[one] != drawn[other], missing)
    observed = np.broadcast_to(X, drawn.shape)[:, ~missing]
    np.testing.assert_allclose(drawn[:, ~missing], observed, rtol=1e-12, atol=1e-12)


@of_each_family
def test_draws_of_permuted_and_of_fewer_rows_are_permuted_and_fewer(family):
    X, _, _, keys, draw = drawing(family)
    drawn = draw(X, keys, 3)
    order = np.random.default_rng(0).permutation(60)
    for rows in (order, order[:7], order[:1]):
        part = draw(X[rows], keys[rows], 3)
        np.testing.assert_allclose(part, drawn[:, rows], rtol=1e-9, atol=1e-9)
