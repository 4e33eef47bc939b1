import numpy as np
import pytest
import torch
from torch import nn

from skbilevel.numerics.derivatives import grad
from skbilevel.numerics.parameters import assign, flatten, from_numpy, functional, to_numpy


def network(dtype=torch.float64) -> nn.Sequential:
    """Two layers, 2 -> 3 -> 1, with a buffer of integers and buffers of floats."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)


def inputs(n=5):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, 2)))


class Tied(nn.Module):
    """x -> W' W x, one matrix used twice under two names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return nn.functional.linear(self.encoder(x), self.decoder.weight.T)


def test_flat_vector_lists_the_parameters_in_order():
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        module.bias.copy_(torch.tensor([5.0, 6.0]))
    assert flatten(module).tolist() == [1, 2, 3, 4, 5, 6]


def test_function_of_the_flat_vector_is_the_module():
    module = network()
    assert torch.equal(functional(module)(flatten(module), inputs()), module(inputs()))


def test_linear_module_is_an_affine_function_of_the_flat_vector():
    x = inputs()
    theta = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    result = functional(nn.Linear(2, 1).double())(theta, x)
    torch.testing.assert_close(result[:, 0], 2 * x[:, 0] - x[:, 1] + 0.5)


def test_gradient_in_the_flat_vector_is_that_of_the_parameters():
    module = network()
    (flat,) = grad(lambda theta: functional(module)(theta, inputs()).sum(), flatten(module))
    module(inputs()).sum().backward()
    expected = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()])
    torch.testing.assert_close(flat, expected)
    assert flat.norm() > 0.1


def test_gradient_reaches_the_inputs_too():
    module = nn.Linear(2, 1).double()
    call = functional(module)
    d_theta, d_x = grad(lambda theta, x: call(theta, x).sum(), flatten(module), inputs())
    torch.testing.assert_close(d_theta, torch.cat([inputs().sum(0), torch.tensor([5.0])]))
    torch.testing.assert_close(d_x, module.weight.detach().expand(5, 2))


def test_function_of_the_flat_vector_leaves_the_module_alone():
    module = network().eval()
    before = to_numpy(module)
    functional(module)(torch.zeros_like(flatten(module)), inputs())
    for name, array in to_numpy(module).items():
        np.testing.assert_array_equal(array, before[name])


def test_assign_inverts_flatten_and_shares_no_memory():
    module = network()
    theta = torch.arange(19, dtype=torch.float64)
    assign(module, theta)
    assert torch.equal(flatten(module), theta)
    theta.zero_()
    flatten(module).zero_()
    assert flatten(module).tolist() == list(range(19))
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("size", [18, 20])
def test_a_vector_of_the_wrong_length_is_an_error(size):
    module, theta = network(), torch.zeros(size, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="sum exactly"):
        assign(module, theta)
    with pytest.raises(RuntimeError, match="sum exactly"):
        functional(module)(theta, inputs())


def test_tied_parameters_count_once():
    module = Tied()
    assert flatten(module).numel() == 9
    theta = torch.arange(9.0)
    W, x = theta.reshape(3, 3), torch.eye(3)
    torch.testing.assert_close(functional(module)(theta, x), W.T @ W)
    copy = Tied()
    from_numpy(copy, to_numpy(module))
    assert torch.equal(copy(x), module(x))


def test_frozen_parameters_and_transposed_memory_are_flattened():
    module = nn.Linear(2, 2, bias=False).requires_grad_(False)
    module.weight.data = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T
    assert flatten(module).tolist() == [1, 2, 3, 4]
    assert not flatten(module).requires_grad


def test_state_survives_the_way_to_numpy_and_back_to_the_bit():
    module, copy = network(), network()
    module(inputs())  # moves the statistics of the batch normalisation
    assert not torch.equal(flatten(module), flatten(copy))
    from_numpy(copy, to_numpy(module))
    assert torch.equal(copy.eval()(inputs()), module.eval()(inputs()))


def test_numpy_state_is_plain_arrays_that_share_no_memory():
    module = network()
    state = to_numpy(module)
    before = flatten(module)
    for array in state.values():
        assert type(array) is np.ndarray
        array[...] = 0
    assert torch.equal(flatten(module), before)
    from_numpy(module, state)
    assert not flatten(module).any()
    state["0.weight"][...] = 1
    assert not flatten(module).any()


def test_state_takes_the_dtype_of_the_module_and_read_only_arrays():
    state = to_numpy(network(torch.float32))
    for array in state.values():
        array.flags.writeable = False
    module = network(torch.float64)
    from_numpy(module, state)
    assert flatten(module).dtype == torch.float64
    np.testing.assert_array_equal(to_numpy(module)["3.weight"], state["3.weight"])


def test_state_of_another_architecture_is_an_error():
    state = to_numpy(network())
    state["4.weight"] = state.pop("3.weight")
    with pytest.raises(RuntimeError, match=r"3\.weight"):
        from_numpy(network(), state)
