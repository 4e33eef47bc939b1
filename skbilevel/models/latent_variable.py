"""Latent variable model of incomplete rows: encoder q(z | x_o) and decoder p(x | z).

Both have a linear part that can be set, and a correction by layers that start at zero. With the
parameters of a factor analysis as linear part the pair *is* that factor analysis until it has
learnt more.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from skbilevel.models.mlp import ImageDecoder, ImageEncoder, dense, mlp


class Proposal(NamedTuple):
    """q(z | x_o) of every row: z = mean + root @ noise.

    mean is (b, L). root is (b, L), standard deviations, or (b, L, L), triangular.
    """

    mean: Tensor
    root: Tensor


class Encoder(nn.Module):
    """Normal distribution of the latent code of a row, given its observed cells.

    The mean is a linear map of the filled row and a correction. The precision is that of a factor
    analysis, ``I + sum over observed j of e_j e_j'`` with rows e_j of the parameter ``evidence``,
    so it knows how much a missing cell would have told; a correction multiplies the spread.

    Parameters
    ----------
    n_features, n_latent : int
    generator : torch.Generator
        Draws the starting weights.
    hidden : sequence of int
        Widths of the correction's hidden layers; empty for none, so that the encoder is linear.
    activation : str
        A key of `skbilevel.models.mlp.ACTIVATIONS`.
    covariance : {"diagonal", "full"}
        "full" takes the whole precision of a row, at the price of one L x L factorisation;
        "diagonal" takes its diagonal, the best of all normals with independent coordinates.
    image_shape : tuple of int or None
        Channels, height and width, for a correction by convolutions.
    dtype : torch.dtype
    """

    def __init__(
        self,
        n_features: int,
        n_latent: int,
        *,
        generator: torch.Generator,
        hidden: Sequence[int] = (64,),
        activation: str = "silu",
        covariance: str = "diagonal",
        image_shape: tuple[int, int, int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self._root = ROOTS[covariance]
        self.skip = dense(n_features, n_latent, generator=generator, dtype=dtype)
        start = torch.empty(n_features, n_latent, dtype=dtype)
        # Not zero, where the gradient of the squares in the precision vanishes.
        self.evidence = nn.Parameter(start.uniform_(0.05, 0.15, generator=generator))
        self.correction: nn.Module | None = None
        if image_shape is not None:
            self.correction = ImageEncoder(
                image_shape,
                2,
                2 * n_latent,
                generator=generator,
                activation=activation,
                zero_last=True,
                dtype=dtype,
            )
        elif hidden:
            sizes = [2 * n_features, *hidden, 2 * n_latent]
            self.correction = mlp(
                sizes, generator=generator, activation=activation, zero_last=True, dtype=dtype
            )

    def forward(self, filled: Tensor, mask: Tensor) -> Proposal:
        """The proposal of every row.

        Parameters
        ----------
        filled : Tensor of shape (b, d)
            Rows with a finite guess at their missing cells.
        mask : Tensor of shape (b, d)
            1 or True where a cell is observed.

        Returns
        -------
        Proposal
            mean (b, L), root (b, L) or (b, L, L).
        """
        observed = mask.to(filled.dtype)
        mean, root = self.skip(filled), self._root(observed, self.evidence)
        if self.correction is None:
            return Proposal(mean, root)
        shift, log_stretch = self.correction(torch.cat([filled, observed], dim=-1)).chunk(2, -1)
        stretch = log_stretch.exp()
        return Proposal(mean + shift, root * (stretch if root.dim() == 2 else stretch[:, None]))


def diagonal_root(observed: Tensor, evidence: Tensor) -> Tensor:
    """One over the roots of the precision's diagonal; (b, d) and (d, L) to (b, L)."""
    return (1 + observed @ evidence.square()).rsqrt()


def full_root(observed: Tensor, evidence: Tensor) -> Tensor:
    """C^-T of the precision C C', whose square is the covariance; upper triangles (b, L, L)."""
    n_latent = evidence.shape[1]
    products = (evidence.unsqueeze(2) * evidence.unsqueeze(1)).flatten(1)
    identity = torch.eye(n_latent, dtype=evidence.dtype, device=evidence.device)
    precision = identity + (observed @ products).unflatten(1, (n_latent, n_latent))
    factor = torch.linalg.cholesky(precision)
    return torch.linalg.solve_triangular(factor.mT, identity.expand_as(factor), upper=True)


ROOTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "diagonal": diagonal_root,
    "full": full_root,
}


# Whether a decoder has a linear part, and what is added to it.
DECODERS = {
    "linear": (True, None),
    "residual": (True, "mlp"),
    "mlp": (False, "mlp"),
    "conv": (False, "conv"),
}


class Decoder(nn.Module):
    """What the cells of a row are distributed about, given its latent code.

    Parameters
    ----------
    n_latent, n_features : int
    generator : torch.Generator
        Draws the starting weights.
    kind : {"linear", "residual", "mlp", "conv"}
        "residual" is a linear map and a correction by layers that starts at zero.
    hidden : sequence of int
    activation : str
        A key of `skbilevel.models.mlp.ACTIVATIONS`.
    n_per_cell : int
        Numbers for every cell: 1, or the number of categories.
    image_shape : tuple of int or None
        Channels, height and width, for "conv".
    min_scale : float
        Floor of the scales, which would run to 0 on a column that is almost constant.
    dtype : torch.dtype
    """

    def __init__(
        self,
        n_latent: int,
        n_features: int,
        *,
        generator: torch.Generator,
        kind: str = "residual",
        hidden: Sequence[int] = (64,),
        activation: str = "silu",
        n_per_cell: int = 1,
        image_shape: tuple[int, int, int] | None = None,
        min_scale: float = 0.05,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        is_linear, added = DECODERS[kind]
        if (image_shape is not None) != (added == "conv"):
            raise ValueError(f"image_shape is for the decoder 'conv'; got kind={kind!r}.")
        self.min_scale = min_scale
        n_outputs = n_features * n_per_cell
        self.skip: nn.Module | None = None
        self.correction: nn.Module | None = None
        if is_linear:
            self.skip = dense(n_latent, n_outputs, generator=generator, dtype=dtype)
        if added == "mlp":
            sizes = [n_latent, *hidden, n_outputs]
            self.correction = mlp(
                sizes, generator=generator, activation=activation, zero_last=is_linear, dtype=dtype
            )
        if image_shape is not None:
            self.correction = ImageDecoder(
                n_latent,
                image_shape,
                generator=generator,
                n_per_cell=n_per_cell,
                activation=activation,
                dtype=dtype,
            )
        self.log_scale = nn.Parameter(torch.zeros(n_features, dtype=dtype))
        self.log_excess_degrees = nn.Parameter(torch.ones(n_features, dtype=dtype))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (..., L) to locations or logits, (..., d * n_per_cell)."""
        parts = [part(codes) for part in (self.skip, self.correction) if part is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def scale(self) -> Tensor:
        """Scale of every column, (d,): the floor and exp(log_scale), added in squares."""
        return (self.min_scale**2 + (2 * self.log_scale).exp()).sqrt()

    def degrees(self) -> Tensor:
        """Degrees of freedom of every column for a Student-t, (d,): above 2."""
        return 2 + self.log_excess_degrees.exp()

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Start from these scales, (d,); those near or below the floor start just above it."""
        above = (scale.square() - self.min_scale**2).clamp(min=1e-2 * self.min_scale**2 + 1e-12)
        self.log_scale.copy_(0.5 * above.log())


class FactorAnalysis(NamedTuple):
    """x = location (d,) + loadings (d, L) z + noise of variance noise_variance (d,)."""

    location: Tensor
    loadings: Tensor
    noise_variance: Tensor


class Autoencoder(NamedTuple):
    """An encoder and the decoder that belongs to it."""

    encoder: Encoder
    decoder: Decoder


def canonical(factors: FactorAnalysis) -> FactorAnalysis:
    """The same distribution with z turned so that its posterior given a row is uncorrelated."""
    scaled = factors.loadings / factors.noise_variance.sqrt().unsqueeze(1)
    rotation = torch.linalg.eigh(scaled.T @ scaled).eigenvectors
    return factors._replace(loadings=factors.loadings @ rotation)


def autoencoder_of(
    factors: FactorAnalysis,
    *,
    generator: torch.Generator,
    kind: str = "residual",
    hidden: Sequence[int] = (64,),
    activation: str = "silu",
    covariance: str = "diagonal",
    min_scale: float = 0.05,
    dtype: torch.dtype = torch.float32,
) -> Autoencoder:
    """A pair that starts as a factor analysis, and its exact posterior for complete rows.

    For incomplete rows the mean is exact if they are filled by E[x | x_o], and the covariance
    if it is "full".

    Parameters
    ----------
    factors : FactorAnalysis
    generator : torch.Generator
        Draws the weights of the corrections' hidden layers.
    kind : {"linear", "residual"}
    hidden, activation, covariance, min_scale, dtype
        As in `Encoder` and `Decoder`. Noise below ``min_scale`` is lifted to it.

    Returns
    -------
    Autoencoder
    """
    n_features, n_latent = factors.loadings.shape
    lifted = factors.noise_variance.clamp(min=1.01 * min_scale**2 + 1e-12)
    start = canonical(factors._replace(noise_variance=lifted))
    encoder = Encoder(
        n_features,
        n_latent,
        generator=generator,
        hidden=hidden,
        activation=activation,
        covariance=covariance,
        dtype=dtype,
    )
    decoder = Decoder(
        n_latent,
        n_features,
        generator=generator,
        kind=kind,
        hidden=hidden,
        activation=activation,
        min_scale=min_scale,
        dtype=dtype,
    )
    _set_posterior(encoder, start)
    _set_loadings(decoder, start)
    return Autoencoder(encoder, decoder)


@torch.no_grad()
def _set_posterior(encoder: Encoder, factors: FactorAnalysis) -> None:
    """q's mean G^-1 W' psi^-1 (x - mu) and precision G = I + W' psi^-1 W, for complete rows."""
    scaled = factors.loadings / factors.noise_variance.unsqueeze(1)
    identity = torch.eye(scaled.shape[1], dtype=scaled.dtype, device=scaled.device)
    weight = torch.linalg.solve(identity + scaled.T @ factors.loadings, scaled.T)
    encoder.skip.weight.copy_(weight)
    encoder.skip.bias.copy_(-weight @ factors.location)
    encoder.evidence.copy_(factors.loadings / factors.noise_variance.sqrt().unsqueeze(1))


@torch.no_grad()
def _set_loadings(decoder: Decoder, factors: FactorAnalysis) -> None:
    if not isinstance(decoder.skip, nn.Linear):
        raise ValueError("Only the decoders 'linear' and 'residual' can start as factor analysis.")
    decoder.skip.weight.copy_(factors.loadings)
    decoder.skip.bias.copy_(factors.location)
    decoder.set_scale(factors.noise_variance.sqrt())
