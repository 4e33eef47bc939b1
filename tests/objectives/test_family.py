"""What all families share: where they start, their coordinates and sums, and how they draw."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from skbilevel.objectives.family import (
    Pairwise,
    add,
    as_arrays,
    as_tensors,
    first_estimate,
    pack,
    unpack,
)
from tests.problems import symmetric_matrix
from tests.reference.families import (
    climb,
    each_group,
    expectation,
    group_of,
    of_each_family,
    pairwise,
    with_holes,
)


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
    return with_holes(X, rate, rng)


def model_near(family, X):
    """The model after three steps of EM on X."""
    return family.model(climb(family, X, 3)[0])


def noise_for(family, rows, seed):
    width = family.noise_width(rows.shape[1])
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(len(rows), width)))


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
    estimate = first_estimate(pairwise(X), floor=1e-3)
    np.testing.assert_allclose(estimate.covariance, expected, atol=1e-12)
    np.testing.assert_allclose(estimate.mean, np.nanmean(X, axis=0), atol=1e-13)


@pytest.mark.parametrize("values", [[-0.5, 0.001, 1.0, 3.0], [0.5, 1.0, 2.0, 3.0]])
def test_eigenvalues_below_the_floor_are_raised_to_it_and_others_kept(values):
    covariance = symmetric_matrix(np.array(values))
    result = first_estimate(exact_sums(covariance, np.arange(4.0)), floor=0.1).covariance
    _, vectors = np.linalg.eigh(covariance)
    raised = np.maximum(values, 0.1 * np.mean(values))
    np.testing.assert_allclose(result, vectors * raised @ vectors.T, atol=1e-13)


def test_floor_is_a_hundredth_of_the_mean_eigenvalue_by_default():
    result = first_estimate(exact_sums(np.diag([0.0, 1.0, 2.0]), np.zeros(3))).covariance
    np.testing.assert_allclose(result, np.diag([0.01, 1.0, 2.0]), atol=1e-15)


def test_a_pair_never_observed_together_is_uncorrelated():
    X = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 0.0], [np.nan, 4.0]])
    estimate = first_estimate(pairwise(X))
    np.testing.assert_array_equal(estimate.mean, [2.0, 2.0])
    np.testing.assert_allclose(estimate.covariance, np.diag([1.0, 4.0]), atol=1e-15)


def test_columns_without_variance_start_with_a_definite_covariance():
    estimate = first_estimate(pairwise(np.full((5, 2), 3.0)))
    np.testing.assert_array_equal(estimate.covariance, 1e-8 * np.eye(2))


@pytest.mark.parametrize("n", [5, 80])
def test_first_estimate_is_the_eigen_decomposition_of_its_covariance(n):
    """Of NumPy's, raised: from five rows the pairwise covariance is not definite."""
    X = incomplete(n)
    sums = pairwise(X)
    counts = sums.n_rows.clamp(min=1)
    means = sums.first / counts
    raw = np.linalg.eigvalsh(sums.second / counts - means * means.T)
    assert (raw[0] < 0) == (n == 5)
    estimate = first_estimate(sums)
    values, vectors = estimate.eigenvalues.numpy(), estimate.eigenvectors.numpy()
    assert (np.diff(values) >= 0).all() and values[0] > 0
    np.testing.assert_allclose(values, np.maximum(raw, 0.01 * raw.mean()), atol=1e-13)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-14)
    covariance = estimate.covariance.numpy()
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-14)
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance), values, atol=1e-13)
    np.testing.assert_allclose(covariance @ vectors, vectors * values, atol=1e-13)


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


def test_sums_are_added_entry_by_entry():
    left = Sums(torch.tensor(1.0), torch.tensor([[1.0, 2.0]]))
    total = add(left, Sums(torch.tensor(10.0), torch.tensor([[-3.0, 4.0]])))
    assert type(total) is Sums
    assert (total.count.item(), total.table.tolist()) == (11.0, [[-2.0, 6.0]])
    assert (left.count.item(), left.table.tolist()) == (1.0, [[1.0, 2.0]])


def test_tensors_of_a_record_become_arrays_by_name():
    arrays = as_arrays(Sums(torch.tensor(1.0), torch.eye(2)))
    assert list(arrays) == ["count", "table"]
    np.testing.assert_array_equal(arrays["table"], np.eye(2))
    parameters = Parameters(torch.zeros(1), torch.eye(2), torch.tensor(2.0))
    arrays = as_arrays(parameters)
    assert list(arrays) == ["vector", "matrix", "scalar"]
    assert arrays["scalar"].shape == () and arrays["scalar"] == 2.0


def test_tensors_are_copies_of_arrays_that_may_be_read_only():
    arrays = as_arrays(Sums(torch.tensor(1.0), torch.eye(2)))
    arrays["table"].flags.writeable = False
    tensors = as_tensors(arrays)
    assert list(tensors) == ["count", "table"]
    assert torch.equal(tensors["table"], torch.eye(2)) and tensors["count"].shape == ()
    tensors["table"][0, 0] = 5.0
    assert arrays["table"][0, 0] == 1.0


@of_each_family
def test_rows_with_nothing_observed_are_worth_nothing_and_get_the_mean(family):
    X = incomplete()
    parameters, _ = climb(family, X, 3)
    model, group = family.model(parameters), group_of(np.full(5, np.nan), 3)
    np.testing.assert_allclose(family.log_density(group, model), np.zeros(3), atol=1e-14)
    location = np.tile(parameters.location, (3, 1))
    np.testing.assert_array_equal(family.completed(group, model), location)
    assert np.abs(location).min() > 0


@of_each_family
def test_groups_and_sums_are_left_as_they_were(family):
    X = incomplete()
    model = model_near(family, X)
    for group, rows in each_group(X):
        before = group.values.clone()
        family.expectation(group, model)
        family.log_density(group, model)
        family.completed(group, model)
        family.drawn(group, family.given(group, model), noise_for(family, rows, 0))
        assert torch.equal(group.values, before)
    sums = expectation(family, X, model)
    copies = [entry.clone() for entry in sums]
    family.maximisation(sums)
    for entry, copy in zip(sums, copies, strict=True):
        assert torch.equal(entry, copy)


@of_each_family
def test_likelihood_of_a_group_is_the_sum_of_the_densities_of_its_rows(family):
    X = incomplete()
    model = model_near(family, X)
    for group, rows in each_group(X):
        density = family.log_density(group, model)
        assert density.shape == (len(rows),)
        log_likelihood = family.expectation(group, model).log_likelihood
        assert log_likelihood.item() == pytest.approx(density.sum().item(), abs=1e-11)


@of_each_family
def test_each_row_is_drawn_from_its_own_noise(family):
    X = incomplete()
    model = model_near(family, X)
    for group, rows in each_group(X):
        noise = noise_for(family, rows, 3)
        together = family.drawn(group, family.given(group, model), noise)
        for i, row in enumerate(rows):
            alone = group_of(row)
            expected = family.drawn(alone, family.given(alone, model), noise[i : i + 1])[0]
            np.testing.assert_allclose(together[i], expected, atol=1e-12)


@of_each_family
def test_draws_from_what_is_given_once_are_those_from_what_is_given_anew(family):
    """No draw changes what the next one is made from; the first noise comes again at the end."""
    X = incomplete()
    model = model_near(family, X)
    for group, rows in each_group(X):
        shared, seen = family.given(group, model), []
        for seed in (0, 1, 0):
            noise = noise_for(family, rows, seed)
            anew = family.drawn(group, family.given(group, model), noise)
            drawn = family.drawn(group, shared, noise)
            assert torch.equal(drawn, anew)
            seen.append(drawn.clone())
        assert torch.equal(seen[0], seen[2])
        assert (not torch.equal(seen[0], seen[1])) == (group.n_missing > 0)
