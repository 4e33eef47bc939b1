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
    in_row_order,
    maximum_likelihood,
    pairwise_start,
    total,
)
from skbilevel.numerics import row_groups
from skbilevel.numerics.row_groups import StandardizedRows, row_block, slices
from skbilevel.objectives.factor_analysis import FactorFamily
from skbilevel.objectives.family import add, pack, pairwise_sums
from skbilevel.objectives.normal import NormalFamily, NormalParameters
from skbilevel.objectives.student_t import StudentFamily
from tests.problems import symmetric_matrix
from tests.reference.gaussian import conditional_mean

FAMILIES = [NormalFamily(1.0), StudentFamily(1.0), FactorFamily(1.0, 2)]


def with_holes(X, seed=0):
    """X with 30 % of its cells missing, the second row wholly."""
    holes = np.random.default_rng(seed).random(X.shape) < 0.3
    holes[1] = True
    return np.where(holes, np.nan, X)


def normal_rows(n=300, d=6, seed=0):
    rng = np.random.default_rng(seed)
    covariance = symmetric_matrix(np.linspace(0.1, 3, d), seed)
    return with_holes(rng.multivariate_normal(np.arange(d), covariance, n))


def few_patterns():
    """Rows that miss one of five sets of columns, which EM then sums by pattern."""
    rng = np.random.default_rng(0)
    X = rng.multivariate_normal(np.arange(6), symmetric_matrix(np.linspace(0.1, 3, 6)), 300)
    masks = rng.random((5, 6)) < 0.4
    return np.where(masks[rng.integers(5, size=300)], np.nan, X)


def diabetes():
    return with_holes(load_diabetes().data)


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


class ObservedLikelihood:
    """Penalised observed log-likelihood of rows in nats, in torch, by the covariance form.

    S_oo is padded by the identity to (d, d), so that one Cholesky call serves all rows.
    """

    def __init__(self, rows, X, shrinkage):
        Z = torch.from_numpy((X - rows.center) / rows.scale)
        self.rows = Z[~Z.isnan().all(1)]
        self.observed = (~self.rows.isnan()).double()
        self.shrinkage = shrinkage

    def parts(self, location, covariance):
        """Squared distances and log det S_oo, row by row."""
        residual = (self.rows - location).nan_to_num() * self.observed
        keep = self.observed.unsqueeze(2) * self.observed.unsqueeze(1)
        padded = covariance * keep + torch.diag_embed(1 - self.observed)
        root = torch.linalg.cholesky(padded)
        white = torch.linalg.solve_triangular(root, residual.unsqueeze(2), upper=False)
        log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
        return white.square().sum((1, 2)), log_det

    def prior(self, covariance):
        inverse = torch.linalg.inv(covariance)
        return -0.5 * self.shrinkage * (torch.logdet(covariance) + inverse.trace())

    def normal(self, location, covariance):
        distance, log_det = self.parts(location, covariance)
        n_observed = self.observed.sum()
        value = -0.5 * (n_observed * math.log(2 * math.pi) + log_det.sum() + distance.sum())
        return value + self.prior(covariance)

    def student(self, location, covariance, nu):
        distance, log_det = self.parts(location, covariance)
        p = self.observed.sum(1)
        value = torch.lgamma((nu + p) / 2) - torch.lgamma(nu / 2) - p / 2 * (nu * math.pi).log()
        value = value - 0.5 * log_det - (nu + p) / 2 * (1 + distance / nu).log()
        return value.sum() + self.prior(covariance)

    def factor(self, location, loadings, log_noise):
        covariance = loadings @ loadings.T + log_noise.exp().diag()
        distance, log_det = self.parts(location, covariance)
        n_observed = self.observed.sum()
        value = -0.5 * (n_observed * math.log(2 * math.pi) + log_det.sum() + distance.sum())
        penalties = (loadings.square().sum(1) + 1) / log_noise.exp() + log_noise
        return value - 0.5 * self.shrinkage * penalties.sum()

    def of(self, parameters):
        """The value at parameters of any of the families, per row."""
        if hasattr(parameters, "loadings"):
            value = self.factor(parameters.location, parameters.loadings, parameters.log_noise)
        elif hasattr(parameters, "log_degrees"):
            nu = parameters.log_degrees.exp()
            value = self.student(parameters.location, parameters.covariance, nu)
        else:
            value = self.normal(parameters.location, parameters.covariance)
        return float(value) / len(self.rows)


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
            return likelihood.student(theta[:d], covariance, theta[-1].exp())
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


def fit(family, rows, **kwargs):
    kwargs = {"max_iter": 500, "tol": 1e-11} | kwargs
    return maximum_likelihood(family, rows, pairwise_start(family, rows), **kwargs)


@pytest.mark.parametrize("load", [normal_rows, few_patterns, diabetes])
def test_accelerated_em_and_lbfgs_reach_the_same_likelihood(load):
    X = load()
    rows = standardized(X)
    result = fit(NormalFamily(0.5), rows)
    likelihood = ObservedLikelihood(rows, X, 0.5)
    best = lbfgs(likelihood, X.shape[1])
    assert result.converged
    assert likelihood.of(result.inner) == pytest.approx(best, abs=1e-9)
    start = pairwise_start(NormalFamily(0.5), rows)
    assert best - likelihood.of(start) > 1e-3


def test_accelerated_em_and_lbfgs_reach_the_same_likelihood_of_the_t():
    X = normal_rows(200, 4)
    X *= np.random.default_rng(1).gamma(2, 0.5, size=(200, 1)) ** -0.5
    rows = standardized(X)
    result = fit(StudentFamily(0.5), rows)
    likelihood = ObservedLikelihood(rows, X, 0.5)
    assert result.converged
    assert likelihood.of(result.inner) == pytest.approx(lbfgs(likelihood, 4, True), abs=1e-9)
    assert 2 < result.inner.log_degrees.exp() < 20


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
@pytest.mark.parametrize("load", [normal_rows, few_patterns, diabetes])
def test_objective_is_the_penalised_likelihood_per_row_and_never_falls(family, load):
    X = load()
    rows = standardized(X)
    likelihood = ObservedLikelihood(rows, X, family.shrinkage)
    images = []
    result = fit(family, rows, tol=1e-8, max_iter=60, on_step=images.append)
    objective = np.array(result.history["objective"])
    start = pairwise_start(family, rows)
    assert objective[0] == pytest.approx(likelihood.of(start), abs=1e-11)
    assert len(images) == result.n_iter == len(objective) - 1 > 3
    # The image of every theta is at least as good as theta, and the history is that of the thetas.
    for value, image in zip(objective[1:], images, strict=True):
        assert likelihood.of(image) > value - 1e-11
    assert np.diff(objective).min() > -1e-11
    prior = family.log_prior(family.model(start)) / len(likelihood.rows)
    assert result.history["log_likelihood"][0] == pytest.approx(objective[0] - prior, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
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


def test_on_step_ends_the_fit():
    rows = standardized(normal_rows())
    seen = []

    def stop(parameters):
        seen.append(parameters)
        return len(seen) == 2

    result = fit(NormalFamily(1.0), rows, on_step=stop)
    assert result.n_iter == 2
    assert torch.equal(pack(result.inner), pack(seen[-1]))


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
    calls, improved = [], []

    class Fragile(NormalFamily):
        def maximisation(self, sums):
            improved.append(super().maximisation(sums))
            return improved[-1]

        def model(self, parameters):
            if any(parameters is image for image in improved):
                return super().model(parameters)
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
    np.testing.assert_allclose(pack(calls[call]), pack(seen[call - 3]), atol=1e-13)
    objective = result.history["objective"]
    assert result.converged
    assert np.isfinite(objective).all() and (np.diff(objective) >= 0).all()
    assert objective[-1] == pytest.approx(expected.history["objective"][-1], abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_sums_over_blocks_are_the_same_to_the_bit_for_any_number_of_jobs(small_blocks, family):
    rows = standardized(normal_rows())
    assert len(rows) == 5
    assert_same_sums(total(rows, pairwise_sums, 2), total(rows, pairwise_sums))
    model = family.model(pairwise_start(family, rows))

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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_rows_with_nothing_observed_are_not_counted(family):
    X = normal_rows()
    X[50:80] = np.nan
    rows = standardized(X)
    model = family.model(pairwise_start(family, rows))
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
        in_row_order(rows[0], lambda group, _: watched(group) and group.values)
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


def test_pairwise_start_is_that_of_all_rows(small_blocks):
    X = normal_rows()
    start = pairwise_start(NormalFamily(1.0), StandardizedRows(X, np.zeros(6), np.ones(6)))
    np.testing.assert_allclose(start.location, np.nanmean(X, axis=0), atol=1e-12)
    np.testing.assert_allclose(start.covariance.diagonal(), np.nanvar(X, axis=0), atol=1e-11)


def test_results_of_groups_return_to_the_order_of_the_rows():
    X = normal_rows()
    block = row_block(X, np.zeros(6), np.ones(6))
    assert not np.array_equal(block.order, np.argsort(block.order))
    rows = in_row_order(block, lambda group, _: group.values)
    np.testing.assert_array_equal(rows, np.nan_to_num(X))
    counts = in_row_order(block, lambda group, _: group.observed().sum(1))
    np.testing.assert_array_equal(counts, (~np.isnan(X)).sum(axis=1))


def test_positions_say_which_rows_a_group_holds():
    X = normal_rows()
    block = row_block(X, np.zeros(6), np.ones(6))

    def noise_of(group, positions):
        rows = X[block.order[positions]]
        np.testing.assert_array_equal(group.values, np.nan_to_num(rows))
        return torch.from_numpy(np.arange(300.0)[block.order][positions])

    np.testing.assert_array_equal(in_row_order(block, noise_of), np.arange(300.0))


def test_completed_rows_are_conditional_means_in_the_units_of_the_data():
    X = normal_rows() * 10.0 ** np.arange(-3, 3) + 5
    rows = standardized(X)
    covariance = symmetric_matrix(np.linspace(0.2, 2, 6))
    location = np.linspace(-1, 1, 6)
    family = NormalFamily(1.0)
    model = family.model(
        NormalParameters(torch.from_numpy(location), torch.from_numpy(covariance))
    )
    completed = completed_rows(family, model, X, rows.center, rows.scale)
    scale = rows.scale
    expected = conditional_mean(
        X, rows.center + scale * location, covariance * np.outer(scale, scale)
    )
    np.testing.assert_allclose(completed, expected, rtol=1e-11)
