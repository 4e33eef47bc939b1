"""Stacks of layers: shapes, starts, and that nothing global is read or changed."""

import pytest
import torch

from skbilevel.models.mlp import ACTIVATIONS, ImageDecoder, ImageEncoder, dense, mlp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_map_widths_with_an_activation_between(activation, dtype):
    layers = mlp([3, 5, 4, 2], generator=generator(), activation=activation, dtype=dtype)
    rows = torch.linspace(-1, 1, 42, dtype=dtype).view(7, 2, 3)
    assert layers(rows).shape == (7, 2, 2) and layers(rows).dtype == dtype
    assert len(layers) == 5
    expected = rows
    for layer in (0, 2, 4):
        expected = expected @ layers[layer].weight.T + layers[layer].bias
        if layer < 4:
            expected = ACTIVATIONS[activation]()(expected)
    torch.testing.assert_close(layers(rows), expected)


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, same, other = (mlp([3, 4, 2], generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0].weight, same[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_weights_are_spread_by_the_number_of_inputs():
    weight = dense(400, 50, generator=generator()).weight.detach()
    assert weight.abs().max() <= 0.05
    assert weight.std() == pytest.approx(0.05 / 3**0.5, rel=0.02)


def test_stack_whose_last_layer_is_zero_is_zero_but_can_learn():
    layers = mlp([3, 4, 2], generator=generator(), zero_last=True)
    rows = torch.ones(5, 3)
    assert not layers(rows).any()
    layers(rows).sum().backward()
    assert layers[2].weight.grad.any()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 10), (1, 1, 5)])
@pytest.mark.parametrize("n_per_cell", [1, 3])
def test_images_of_any_size_are_encoded_and_decoded(shape, n_per_cell):
    n_cells = shape[0] * shape[1] * shape[2]
    encoder = ImageEncoder(shape, 2, 6, generator=generator(), n_channels=4)
    decoder = ImageDecoder(5, shape, generator=generator(), n_channels=4, n_per_cell=n_per_cell)
    assert encoder(torch.ones(2, 3, 2 * n_cells)).shape == (2, 3, 6)
    codes = torch.linspace(-1, 1, 30).view(2, 3, 5)
    images = decoder(codes)
    assert images.shape == (2, 3, n_cells * n_per_cell)
    torch.testing.assert_close(images[1, 2], decoder(codes[1, 2:])[0])


def test_numbers_of_a_cell_stand_side_by_side():
    decoder = ImageDecoder(2, (1, 3, 3), generator=generator(), n_per_cell=2, zero_last=True)
    with torch.no_grad():
        decoder.layers[-1].bias.copy_(torch.tensor([1.0, 2.0]))
    images = decoder(torch.ones(1, 2)).view(9, 2)
    assert (images == torch.tensor([1.0, 2.0])).all()


def test_convolution_sees_where_a_pixel_is():
    encoder = ImageEncoder((1, 8, 8), 1, 3, generator=generator(), n_channels=4)
    corner, center = torch.zeros(2, 1, 64)
    corner[0, 0], center[0, 27] = 1.0, 1.0
    assert not torch.allclose(encoder(corner), encoder(center))
