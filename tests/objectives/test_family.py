import dataclasses
from functools import reduce
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from skbilevel.numerics.row_groups import row_block
from skbilevel.objectives.factor_analysis import FactorFamily
from skbilevel.objectives.family import (
    Pairwise,
    add,
    as_arrays,
    hyper_parameters,
    multiply,
    pack,
    pairwise_sums,
    unpack,
)
from skbilevel.objectives.normal import NormalFamily
from skbilevel.objectives.student_t import StudentFamily
from tests.problems import symmetric_matrix


class Sums(NamedTuple):
    count: Tensor
    table: Tensor


@dataclasses.dataclass(frozen=True)
class Parameters:
    vector: Tensor
    matrix: Tensor
    scalar: Tensor


def incomplete(n=80, d=5, rate=0.3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    X[rng.random(X.shape) < rate] = np.nan
    X[0], X[1] = 1.0, np.nan
    return X


def pairwise(X):
    """The sums of all groups of X."""
    d = X.shape[1]
    return reduce(add, map(pairwise_sums, row_block(X, np.zeros(d), np.ones(d)).groups))


def exact_sums(covariance, means):
    """The pairwise sums of ten complete rows with these moments."""
    n = torch.full(covariance.shape, 10.0, dtype=torch.float64)
    first = 10 * torch.from_numpy(np.outer(means, np.ones(len(means))))
    return Pairwise(n, first, 10 * torch.from_numpy(covariance + np.outer(means, means)))


def test_pairwise_sums_are_over_rows_with_both_columns_observed():
    X = incomplete()
    sums = pairwise(X)
    for i in range(5):
        for j in range(5):
            both = X[~np.isnan(X[:, i]) & ~np.isnan(X[:, j])]
            assert 0 < len(both) < 80
            assert sums.n_rows[i, j].item() == len(both)
            assert sums.first[i, j].item() == pytest.approx(both[:, i].sum(), abs=1e-12)
            assert sums.second[i, j].item() == pytest.approx(both[:, i] @ both[:, j], abs=1e-12)


def test_covariance_is_that_of_the_pairs_where_it_is_definite():
    X = incomplete(800)
    expected = np.empty((5, 5))
    for i in range(5):
        for j in range(5):
            both = X[~np.isnan(X[:, i]) & ~np.isnan(X[:, j])][:, [i, j]]
            expected[i, j] = np.cov(both.T, ddof=0)[0, 1]
    values = np.linalg.eigvalsh(expected)
    assert values.min() > 1e-3 * values.mean()
    np.testing.assert_allclose(pairwise(X).covariance(floor=1e-3), expected, atol=1e-12)


@pytest.mark.parametrize("values", [[-0.5, 0.001, 1.0, 3.0], [0.5, 1.0, 2.0, 3.0]])
def test_eigenvalues_below_the_floor_are_raised_to_it_and_others_kept(values):
    covariance = symmetric_matrix(np.array(values))
    result = exact_sums(covariance, np.arange(4.0)).covariance(floor=0.1).numpy()
    _, vectors = np.linalg.eigh(covariance)
    raised = np.maximum(values, 0.1 * np.mean(values))
    np.testing.assert_allclose(result, vectors * raised @ vectors.T, atol=1e-13)


def test_floor_is_a_hundredth_of_the_mean_eigenvalue_by_default():
    result = exact_sums(np.diag([0.0, 1.0, 2.0]), np.zeros(3)).covariance()
    np.testing.assert_allclose(result, np.diag([0.01, 1.0, 2.0]), atol=1e-15)


def test_a_pair_never_observed_together_is_uncorrelated():
    X = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 0.0], [np.nan, 4.0]])
    np.testing.assert_allclose(pairwise(X).covariance(), np.diag([1.0, 4.0]), atol=1e-15)


def test_columns_without_variance_start_with_a_definite_covariance():
    covariance = pairwise(np.full((5, 2), 3.0)).covariance()
    np.testing.assert_array_equal(covariance, 1e-8 * np.eye(2))


def test_unpack_inverts_pack_in_the_order_of_the_fields():
    parameters = Parameters(
        torch.arange(3.0), torch.arange(3.0, 9.0).view(2, 3), torch.tensor(9.0)
    )
    theta = pack(parameters)
    assert torch.equal(theta, torch.arange(10.0))
    like = Parameters(torch.empty(3), torch.empty(2, 3), torch.empty(()))
    again = unpack(theta, like)
    assert type(again) is Parameters
    for field in dataclasses.fields(Parameters):
        one, other = getattr(again, field.name), getattr(parameters, field.name)
        assert one.shape == other.shape and torch.equal(one, other)


def test_a_vector_of_another_length_is_not_unpacked():
    like = Parameters(torch.empty(3), torch.empty(2, 3), torch.empty(()))
    with pytest.raises(RuntimeError, match="split"):
        unpack(torch.zeros(11), like)


def test_sums_are_added_and_multiplied_entry_by_entry():
    left = Sums(torch.tensor(1.0), torch.tensor([[1.0, 2.0]]))
    right = Sums(torch.tensor(10.0), torch.tensor([[-3.0, 4.0]]))
    total, half = add(left, right), multiply(left, 0.5)
    assert type(total) is type(half) is Sums
    assert (total.count.item(), total.table.tolist()) == (11.0, [[-2.0, 6.0]])
    assert (half.count.item(), half.table.tolist()) == (0.5, [[0.5, 1.0]])
    assert (left.count.item(), left.table.tolist()) == (1.0, [[1.0, 2.0]])


def test_tensors_of_a_record_become_arrays_by_name():
    arrays = as_arrays(Sums(torch.tensor(1.0), torch.eye(2)))
    assert list(arrays) == ["count", "table"]
    np.testing.assert_array_equal(arrays["table"], np.eye(2))
    parameters = Parameters(torch.zeros(1), torch.eye(2), torch.tensor(2.0))
    arrays = as_arrays(parameters)
    assert list(arrays) == ["vector", "matrix", "scalar"]
    assert arrays["scalar"].shape == () and arrays["scalar"] == 2.0


def test_a_family_is_rebuilt_from_its_hyper_parameters():
    family = FactorFamily(shrinkage=0.5, n_factors=3)
    assert hyper_parameters(family) == {"shrinkage": 0.5, "n_factors": 3}
    assert FactorFamily(**hyper_parameters(family)) == family


@pytest.mark.parametrize(
    "family",
    [NormalFamily(0.7), StudentFamily(0.7), FactorFamily(shrinkage=0.7, n_factors=2)],
    ids=lambda family: type(family).__name__,
)
def test_m_step_maximises_the_expected_complete_log_likelihood_and_the_prior(family):
    """The gradient in free coordinates vanishes at the M-step, and every other point is lower."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 4))
    X[rng.random(X.shape) < 0.3] = np.nan
    groups = [g for g in row_block(X, np.zeros(4), np.ones(4)).groups if g.n_missing < 4]
    start = family.start(reduce(add, map(pairwise_sums, groups)))
    model = family.model(start)
    sums = reduce(add, (family.expectation(group, model) for group in groups))
    best = family.maximisation(sums)

    def value(theta):
        at = family.model(family.unpack(theta, best))
        return family.complete_log_likelihood(sums, at) + family.log_prior(at)

    center = family.pack(best)
    highest = value(center)
    if not isinstance(family, FactorFamily):
        # Symmetrised directions: log S stays symmetric.
        matrix = slice(4, 20)
    for _ in range(20):
        direction = torch.from_numpy(rng.standard_normal(len(center)))
        if not isinstance(family, FactorFamily):
            square = direction[matrix].view(4, 4)
            direction[matrix] = (square + square.T).reshape(-1)
        rises = [value(center + sign * 1e-4 * direction) - highest for sign in (1, -1)]
        assert max(rises) < 0
        assert abs(rises[0] - rises[1]) < 1e-2 * abs(rises[0] + rises[1])
    assert value(family.pack(start)) < highest


@pytest.mark.parametrize(
    "family",
    [NormalFamily(0.7), StudentFamily(0.7), FactorFamily(shrinkage=0.7, n_factors=2)],
    ids=lambda family: type(family).__name__,
)
def test_rise_of_the_expected_log_likelihood_bounds_that_of_the_likelihood(family):
    """Jensen: the observed likelihood rises at least as far as its surrogate."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 4))
    X[rng.random(X.shape) < 0.3] = np.nan
    groups = [g for g in row_block(X, np.zeros(4), np.ones(4)).groups if g.n_missing < 4]
    model = family.model(family.start(reduce(add, map(pairwise_sums, groups))))
    for _ in range(4):
        sums = reduce(add, (family.expectation(group, model) for group in groups))
        after = family.model(family.maximisation(sums))
        sums_after = reduce(add, (family.expectation(group, after) for group in groups))
        prior = family.log_prior(after) - family.log_prior(model)
        surrogate = (
            family.complete_log_likelihood(sums, after)
            - family.complete_log_likelihood(sums, model)
            + prior
        )
        rise = float(sums_after.log_likelihood - sums.log_likelihood) + prior
        assert 0 < surrogate <= rise
        model = after
