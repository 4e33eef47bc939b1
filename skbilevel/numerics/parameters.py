"""A ``torch.nn.Module`` as a function of one flat vector, and its state as NumPy arrays.

The flat view is for second-order products; plain training uses the module itself. Parameters
are in the order of ``module.named_parameters()``, those that are frozen included.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["assign", "flatten", "from_numpy", "functional", "to_numpy"]


def flatten(module: nn.Module) -> Tensor:
    """A copy of all parameters, one after the other; (p,), without a graph."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def functional(module: nn.Module) -> Callable[..., Any]:
    """The module as ``f(theta, *inputs)``, differentiable in theta of shape (p,) and the inputs.

    The module's own parameters are not read. Its buffers and its mode (train or eval) are, at
    each call; noise such as dropout is to be an input, or else two calls differ.
    """
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def call(theta: Tensor, *inputs: Any) -> Any:
        pieces = zip(shapes.items(), theta.split(sizes), strict=True)
        parameters = {name: piece.reshape(shape) for (name, shape), piece in pieces}
        return functional_call(module, parameters, inputs)

    return call


def assign(module: nn.Module, theta: Tensor) -> None:
    """Copy theta of shape (p,) into the parameters: the inverse of `flatten`.

    The parameters do not share memory with theta afterwards.
    """
    parameters = list(module.parameters())
    pieces = theta.detach().split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.copy_(piece.reshape(parameter.shape))


def to_numpy(module: nn.Module) -> dict[str, np.ndarray]:
    """Copies of the parameters and buffers by name, on the CPU, each in its own dtype."""
    state = module.state_dict()
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def from_numpy(module: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Load what `to_numpy` returned into a module of the same architecture.

    Values take the dtype and device of the module. A name that is missing or unknown is an error.
    """
    # A copy, because torch warns about arrays that it cannot write to, such as memory maps.
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    module.load_state_dict(tensors)
