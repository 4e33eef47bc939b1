"""The teacher: what it adds to a base, and what it is a function of."""

import pytest
import torch

from skbilevel.models.masked_autoencoder import MaskedAutoencoder


def teacher(n_columns=3, n_targets=2, hidden=(5, 4), seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return MaskedAutoencoder(n_columns, n_targets, hidden, generator=generator, **options)


def rows(n_rows=6, n_columns=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    values, base = torch.randn(2, n_rows, n_columns, generator=generator, dtype=dtype)
    mask = (torch.rand(n_rows, n_columns, generator=generator) < 0.6).to(dtype)
    return values * mask, mask, base


def taught(module):
    """The same module with a last layer that is not zero."""
    torch.nn.init.normal_(module.layers[-1].weight, generator=torch.Generator().manual_seed(2))
    return module


@pytest.mark.parametrize("n_targets", [0, 1, 4])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_corrections_are_zero_at_the_start_and_shaped_as_rows_and_targets(n_targets, hidden):
    features, targets = teacher(n_targets=n_targets, hidden=hidden)(*rows())
    assert torch.equal(features, torch.zeros(6, 3).double())
    assert torch.equal(targets, torch.zeros(6, n_targets).double())


def test_single_precision_goes_through():
    features, targets = teacher(dtype=torch.float32)(*rows(dtype=torch.float32))
    assert features.dtype == targets.dtype == torch.float32


def test_correction_is_the_network_of_values_mask_and_base_in_this_order():
    module = taught(teacher(hidden=(4,)))
    first, _, last = module.layers
    values, mask, base = rows()
    hidden = torch.nn.functional.silu(
        values @ first.weight[:, :3].T
        + mask @ first.weight[:, 3:6].T
        + base @ first.weight[:, 6:].T
        + first.bias
    )
    expected = hidden @ last.weight.T + last.bias
    features, targets = module(values, mask, base)
    torch.testing.assert_close(features, expected[:, :3], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(targets, expected[:, 3:], rtol=1e-12, atol=1e-14)
    assert min(features.abs().max(), targets.abs().max()) > 0.1


def test_rows_are_corrected_one_by_one():
    module, inputs = taught(teacher()), rows()
    whole = module(*inputs)
    alone = module(*(part[2:3] for part in inputs))
    for together, single in zip(whole, alone, strict=True):
        torch.testing.assert_close(together[2:3], single, rtol=1e-13, atol=1e-15)


def test_gradients_reach_every_parameter_and_every_input():
    """Once the last layer is not zero; before, they reach the last layer."""
    module = teacher()
    sum(part.sum() for part in module(*rows())).backward()
    assert [bool(each.grad.any()) for each in module.parameters()] == [False] * 4 + [True] * 2
    module, inputs = taught(teacher()), tuple(part.requires_grad_() for part in rows())
    sum(part.square().sum() for part in module(*inputs)).backward()
    assert all(each.grad.any() for each in [*module.parameters(), *inputs])


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, same, other = (teacher(seed=seed).layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
