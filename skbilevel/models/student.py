"""The student: a prediction from rows that may have missing features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skbilevel.models.mlp import dense, mlp


class Student(nn.Module):
    """S(x m, m): a linear part, and a network beside it where there are hidden layers.

    Parameters
    ----------
    n_columns : int
        Number d of features.
    n_outputs : int
        Number q of outputs: targets, or classes as logits.
    hidden : sequence of int
        Widths of the hidden layers; none is a linear model.
    generator : torch.Generator
        Draws the weights of the network; the linear part starts at zero.
    dtype : torch.dtype
        Of weights, input and output.
    """

    def __init__(
        self,
        n_columns: int,
        n_outputs: int,
        hidden: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        n_inputs = 2 * n_columns
        self.linear = dense(n_inputs, n_outputs, zero=True, generator=generator, dtype=dtype)
        self.network = None
        if hidden:
            widths = [n_inputs, *hidden, n_outputs]
            self.network = mlp(widths, generator=generator, dtype=dtype)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Outputs (n, q) of rows (n, d), 0 at missing cells, and their mask, 1 where observed."""
        inputs = torch.cat([values, mask], dim=1)
        outputs = self.linear(inputs)
        return outputs if self.network is None else outputs + self.network(inputs)
