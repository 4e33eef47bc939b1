"""Stacks of layers: fully connected ones, and convolutions for images.

Every layer starts with uniform weights within ``+-1/sqrt(fan in)`` and no bias, from a generator
that is passed in, so that no global state is read. A stack whose last layer is zero adds nothing
to what it corrects until it has learnt something.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def dense(
    n_inputs: int,
    n_outputs: int,
    *,
    generator: torch.Generator,
    zero: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Linear:
    """A linear layer whose weights are drawn from ``generator``, or zero."""
    layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs, dtype=dtype)
    return _started(layer, generator, zero)


def convolution(
    n_inputs: int,
    n_outputs: int,
    *,
    generator: torch.Generator,
    stride: int = 1,
    zero: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the image's size, or divides it by ``stride``."""
    layer = nn.utils.skip_init(
        nn.Conv2d, n_inputs, n_outputs, kernel_size=3, stride=stride, padding=1, dtype=dtype
    )
    return _started(layer, generator, zero)


def _started(layer: Layer, generator: torch.Generator, zero: bool) -> Layer:
    """Draw the weights in place."""
    fan_in = layer.weight[0].numel()
    limit = 0.0 if zero else 1 / math.sqrt(fan_in)
    with torch.no_grad():
        layer.weight.uniform_(-limit, limit, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


def mlp(
    sizes: Sequence[int],
    *,
    generator: torch.Generator,
    activation: str = "silu",
    zero_last: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Fully connected layers with an activation between them.

    Parameters
    ----------
    sizes : sequence of int
        Widths from the input to the output; two numbers are one linear layer.
    generator : torch.Generator
        Draws the weights.
    activation : str
        A key of `ACTIVATIONS`.
    zero_last : bool
        Start as the zero function.
    dtype : torch.dtype
        Of weights, input and output.

    Returns
    -------
    nn.Sequential
        Maps (..., sizes[0]) to (..., sizes[-1]).
    """
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for index, (n_inputs, n_outputs) in enumerate(pairwise(sizes)):
        zero = zero_last and index == last
        layers.append(dense(n_inputs, n_outputs, generator=generator, zero=zero, dtype=dtype))
        if index < last:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


class ImageEncoder(nn.Module):
    """Two convolutions that halve the image, then one linear layer.

    Parameters
    ----------
    image_shape : tuple of int
        Channels, height and width; a row has their product as its number of cells.
    n_stacked : int
        Rows that are stacked as channels: 2 for values and mask.
    n_outputs : int
    n_channels : int
        Of the first convolution; the second has twice as many.
    generator, activation, zero_last, dtype
        As in `mlp`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_stacked: int,
        n_outputs: int,
        *,
        generator: torch.Generator,
        n_channels: int = 16,
        activation: str = "silu",
        zero_last: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self._shape = (n_stacked * channels, height, width)
        n_cells = 2 * n_channels * _halved(_halved(height)) * _halved(_halved(width))
        self.layers = nn.Sequential(
            convolution(self._shape[0], n_channels, stride=2, generator=generator, dtype=dtype),
            ACTIVATIONS[activation](),
            convolution(n_channels, 2 * n_channels, stride=2, generator=generator, dtype=dtype),
            ACTIVATIONS[activation](),
            nn.Flatten(),
            dense(n_cells, n_outputs, generator=generator, zero=zero_last, dtype=dtype),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (..., n_stacked * cells) to (..., n_outputs)."""
        images = rows.reshape(-1, *self._shape)
        return self.layers(images).reshape(*rows.shape[:-1], -1)


class ImageDecoder(nn.Module):
    """One linear layer to a quarter of the size, then two doublings with a convolution each.

    Parameters
    ----------
    n_inputs : int
    image_shape : tuple of int
        Channels, height and width of the output.
    n_per_cell : int
        Numbers that are wanted for every cell.
    n_channels : int
        Of the last convolution but one; the linear layer gives twice as many.
    generator, activation, zero_last, dtype
        As in `mlp`.
    """

    def __init__(
        self,
        n_inputs: int,
        image_shape: tuple[int, int, int],
        *,
        generator: torch.Generator,
        n_per_cell: int = 1,
        n_channels: int = 16,
        activation: str = "silu",
        zero_last: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        half = (_halved(height), _halved(width))
        quarter = (_halved(half[0]), _halved(half[1]))
        self._n_per_cell = n_per_cell
        self.layers = nn.Sequential(
            dense(n_inputs, 2 * n_channels * math.prod(quarter), generator=generator, dtype=dtype),
            ACTIVATIONS[activation](),
            nn.Unflatten(1, (2 * n_channels, *quarter)),
            nn.Upsample(size=half),
            convolution(2 * n_channels, n_channels, generator=generator, dtype=dtype),
            ACTIVATIONS[activation](),
            nn.Upsample(size=(height, width)),
            convolution(
                n_channels,
                channels * n_per_cell,
                generator=generator,
                zero=zero_last,
                dtype=dtype,
            ),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (..., n_inputs) to (..., cells * n_per_cell), those of a cell side by side."""
        images = self.layers(codes.reshape(-1, codes.shape[-1]))
        by_cell = images.unflatten(1, (-1, self._n_per_cell)).movedim(2, -1)
        return by_cell.reshape(*codes.shape[:-1], -1)


def _halved(size: int) -> int:
    """What a stride of 2 with a margin of 1 leaves."""
    return (size + 1) // 2
