"""The teacher: corrections of imputed features and labels, from what is observed of a row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skbilevel.models.mlp import mlp


class MaskedAutoencoder(nn.Module):
    """T_x and T_y beside a base: r(x m, m, base), zero until it has learnt something.

    Parameters
    ----------
    n_columns : int
        Number d of features.
    n_targets : int
        Number q of targets; 0 for none.
    hidden : sequence of int
        Widths of the hidden layers.
    generator : torch.Generator
        Draws the weights.
    dtype : torch.dtype
        Of weights, input and output.
    """

    def __init__(
        self,
        n_columns: int,
        n_targets: int,
        hidden: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self._sizes = [n_columns, n_targets]
        self.layers = mlp(
            [3 * n_columns, *hidden, n_columns + n_targets],
            generator=generator,
            zero_last=True,
            dtype=dtype,
        )

    def forward(self, values: Tensor, mask: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """Corrections of features (n, d) and of targets (n, q).

        Parameters
        ----------
        values : Tensor of shape (n, d)
            Standardised rows, 0 at missing cells.
        mask : Tensor of shape (n, d)
            1 where observed.
        base : Tensor of shape (n, d)
            The rows as the base completes them.
        """
        corrections = self.layers(torch.cat([values, mask, base], dim=1))
        features, targets = corrections.split(self._sizes, dim=1)
        return features, targets
