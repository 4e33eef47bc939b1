"""Normal variables and the normal factors, called sites, that multiply them."""

from typing import NamedTuple

from torch import Tensor


class Normal(NamedTuple):
    """Means and variances of normal variables; tensors of one shape."""

    mean: Tensor
    variance: Tensor


class Sites(NamedTuple):
    """tau and nu of the factors exp(-tau x^2 / 2 + nu x); tensors of one shape."""

    precision: Tensor
    shift: Tensor
