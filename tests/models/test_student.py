"""The student: an affine function of values and mask, and a network beside it."""

import pytest
import torch

from skbilevel.models.student import Student


def student(n_columns=3, n_outputs=2, hidden=(), seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return Student(n_columns, n_outputs, hidden, generator=generator, **options)


def rows(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(6, 3, generator=generator, dtype=dtype)
    mask = (torch.rand(6, 3, generator=generator) < 0.6).to(dtype)
    return values * mask, mask


def drawn(module):
    """With all parameters drawn at random."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return module


def test_student_without_hidden_layers_is_zero_at_first_and_affine():
    values, mask = rows()
    assert torch.equal(student()(values, mask), torch.zeros(6, 2).double())
    module = drawn(student())
    weight, bias = module.parameters()
    expected = values @ weight[:, :3].T + mask @ weight[:, 3:].T + bias
    torch.testing.assert_close(module(values, mask), expected, rtol=1e-13, atol=1e-14)
    assert expected.abs().max() > 1


@pytest.mark.parametrize("n_columns", [1, 5])
def test_linear_student_of_one_output_has_two_parameters_a_column_and_one(n_columns):
    module = student(n_columns, 1)
    assert sum(each.numel() for each in module.parameters()) == 2 * n_columns + 1


@pytest.mark.parametrize("hidden", [(4,), (4, 3)])
def test_network_is_added_to_the_linear_part(hidden):
    module, inputs = drawn(student(hidden=hidden)), rows()
    together = module(*inputs)
    network = module.network(torch.cat(inputs, dim=1))
    torch.testing.assert_close(
        together - network, module.linear(torch.cat(inputs, dim=1)), rtol=1e-12, atol=1e-13
    )
    assert together.shape == (6, 2)
    assert len(module.network) == 2 * len(hidden) + 1
    assert network.abs().max() > 0.1


def test_gradients_reach_every_parameter_and_both_inputs():
    module, inputs = student(hidden=(4,)), tuple(part.requires_grad_() for part in rows())
    module(*inputs).square().sum().backward()
    assert all(each.grad.any() for each in [*module.parameters(), *inputs])


def test_single_precision_goes_through():
    inputs = rows(dtype=torch.float32)
    assert student(hidden=(4,), dtype=torch.float32)(*inputs).dtype == torch.float32


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, same, other = (student(hidden=(4,), seed=seed).network[0].weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
