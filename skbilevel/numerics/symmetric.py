"""Logarithm and exponential of symmetric matrices."""

import torch
from torch import Tensor


def symmetric_log(matrix: Tensor) -> Tensor:
    """V log(l) V' of a symmetric positive definite matrix V l V'; shape (d, d).

    Eigenvalues that are lost in rounding count as the rounding error of the largest one.
    """
    values, vectors = torch.linalg.eigh(matrix)
    rounding = torch.finfo(values.dtype).eps * values[-1]
    return (vectors * values.clamp(min=float(rounding)).log()) @ vectors.T


def symmetric_exp(matrix: Tensor) -> Tensor:
    """V exp(l) V' of a symmetric matrix V l V'; the inverse of `symmetric_log`."""
    values, vectors = torch.linalg.eigh(matrix)
    product = (vectors * values.exp()) @ vectors.T
    return (product + product.T) / 2
