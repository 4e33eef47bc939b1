"""The designs of orthogonal gradients against their published figures, and against draws."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.benchmark_modules import benchmark_module

designs = benchmark_module("orthogonal_designs")

GRADIENTS = {
    "IV-poly": (1.125, -0.8333, 2.5396),
    "IV-sin": (-0.5, -0.5061, 0.0370),
    "FQE": (0.0122, -0.0353, 0.1622, -0.1962, 0.2006, -0.0569),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_is_the_published_one(name):
    assert_allclose(designs.DESIGNS[name].gradient, GRADIENTS[name], atol=6e-5)


def test_roots_and_value_are_the_published_ones():
    assert_allclose(designs.DESIGNS["IV-poly"].root, designs.W_IV, atol=1e-8)
    assert_allclose(designs.DESIGNS["IV-poly delta=1"].root, (0.749, 1, -1.730), atol=6e-4)
    value = designs.initial_features() @ designs.DESIGNS["FQE"].root
    assert value == pytest.approx(3.0200, abs=6e-5)


@pytest.mark.parametrize("name", designs.DESIGNS)
def test_nuisances_are_the_conditional_means(name):
    """What a row has less its nuisances has no mean, whatever of X it is multiplied by."""
    design = designs.DESIGNS[name]
    sample = design.draw(200_000, np.random.default_rng(0))
    of_x = np.column_stack([np.ones(len(sample.y)), sample.X, np.cos(2 * sample.X)])
    left = np.column_stack([sample.y, sample.D]) - np.column_stack([sample.mu, sample.K])
    products = (of_x[:, :, None] * left[:, None]).reshape(len(left), -1)
    stderr = products.std(axis=0) / np.sqrt(len(left))
    assert (np.abs(products.mean(axis=0)) <= 4.5 * stderr + 1e-12).all()


@pytest.mark.parametrize("name", designs.DESIGNS)
def test_moments_are_the_means_of_their_draws(name):
    design = designs.DESIGNS[name]
    sample, (A, b) = design.draw(200_000, np.random.default_rng(1)), design.moments()
    rows = sample.K[:, :, None] * np.column_stack([sample.K, sample.mu])[:, None]
    stderr = rows.std(axis=0) / np.sqrt(len(rows))
    assert (np.abs(rows.mean(axis=0) - np.column_stack([A, b])) <= 4.5 * stderr + 1e-9).all()


def test_folds_are_drawn_before_the_data():
    sample = designs.instrumental(50, np.random.default_rng(3))
    fold = np.random.default_rng(3).permutation(50) % 5
    for k, (train, test) in enumerate(sample.folds):
        assert set(fold[test]) == {k}
        assert k not in fold[train]
