"""Missing models p(s | x): from complete rows to the log odds that each cell is missing.

Any module or function that maps complete rows (..., d) to such log odds (..., d) is a missing
model. Those of this file are what Ipsen, Mattei and Frellsen (2021), not-MIWAE, compare. Of self-
masking, which is integrated over the missing cells, there is only what is learnt.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from skbilevel.models.mlp import dense, mlp


def agnostic(
    n_features: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> nn.Linear:
    """Logistic in all values of the row, without a guess at the form: one linear layer."""
    return dense(n_features, n_features, generator=generator, zero=True, dtype=dtype)


def nonlinear(
    n_features: int,
    *,
    generator: torch.Generator,
    hidden: int = 64,
    activation: str = "tanh",
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """As `agnostic`, with one hidden layer."""
    sizes = [n_features, hidden, n_features]
    return mlp(sizes, generator=generator, activation=activation, zero_last=True, dtype=dtype)


class SlopeAndThreshold(nn.Module):
    """What is learnt of self-masking, where a cell is missing by its own value.

    Parameters
    ----------
    slope : Tensor of shape (d,)
        Starting values; positive where high values are missing.
    threshold : Tensor of shape (d,)
        Starting values of where half of the values are missing.
    signs : Tensor of shape (d,) or None
        1 where high values are known to be missing, -1 where low ones are: the slope keeps this
        sign. None, or 0 for a column, leaves the sign to be learnt.

    Attributes
    ----------
    threshold : Parameter of shape (d,)
    """

    signs: Tensor

    def __init__(
        self,
        slope: Tensor,
        threshold: Tensor,
        *,
        signs: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("signs", torch.zeros_like(slope) if signs is None else signs.clone())
        start = torch.where(self.signs == 0, slope, _inverse_softplus(slope.abs()))
        self.raw_slope = nn.Parameter(start)
        self.threshold = nn.Parameter(threshold.clone())

    def slope(self) -> Tensor:
        """The slope of every column, (d,), of its known sign."""
        known = self.signs * softplus(self.raw_slope)
        return torch.where(self.signs == 0, self.raw_slope, known)

    def intercept(self) -> Tensor:
        """-slope * threshold, (d,): the ratio at x = 0."""
        return -self.slope() * self.threshold


def _inverse_softplus(values: Tensor) -> Tensor:
    """x with log(1 + e^x) = values, which are lifted off 0; exact also where e^x overflows."""
    positive = values.clamp(min=1e-6)
    return positive + (-torch.expm1(-positive)).log()
