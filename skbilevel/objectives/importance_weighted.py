"""MIWAE and not-MIWAE: the importance-weighted bound and what is imputed by its weights.

======================  ==============  ============  ======================================
symbol                  code name       shape         meaning
======================  ==============  ============  ======================================
x                       values          (b, d)        rows, finite also at missing cells
s                       mask            (b, d)        True where a cell is observed
q(z | x_o)              mean, root      (b, L), ...   z = mean + root @ noise
z_k                     codes           (K, b, L)     draws of q
p(x | z_k)              observation     (K, b, d)     an `Observation` of the codes
p(s = 0 | x)            logits, link    (K, b, d)     log odds of being missing; or a
                                                      self-masking mechanism, a `Link`
x_k                     completed       (K, b, d)     rows with missing cells drawn from
                                                      p(x_m | z_k)
w_k                     log_weights     (K, b)        importance weights, in nats
alpha_k                 shares          (K, b)        w_k / (w_1 + ... + w_K)
L_K                     bound           (b,)          a lower bound of log p(x_o, s)
======================  ==============  ============  ======================================

Numbers of equations are those of a report on the paper (and of its appendix)::

    w_k = p(s | x_o, x_k) p(x_o | z_k) p(z_k) / q(z_k | x_o)                      (6), (8)
    L_K = E log (1/K) sum_k w_k                                                   (6), (18)
    E[h(x_m) | x_o, s] = sum_k alpha_k h(x_k)                                     (24)

MIWAE has no factor p(s | x). A self-masking mechanism needs no draws of x_m: its integral over
each missing cell, given z_k, is known, which makes of p(s | x_o, x_k) ::

    prod_{j observed} p(s_j = 1 | x_j)  prod_{j missing} p(s_j = 0 | z_k)         (a)
    E[x_m | x_o, s] = sum_k alpha_k E[x_m | z_k, s]                               (b)

The report's (26) has E[x_m | z_k] in the place of E[x_m | z_k, s]; where missing values differ
from others that is biased, as the weights of (6) depend on the x_k that it averages out.

Everything is deterministic given noise and uniform numbers, and works on rows one by one.

References
----------
P.-A. Mattei, J. Frellsen (2019). MIWAE: deep generative modelling and imputation of incomplete
data sets. ICML. N. B. Ipsen, P.-A. Mattei, J. Frellsen (2021). not-MIWAE: deep generative
modelling with missing not at random data. ICLR.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from skbilevel.objectives.given_missing import GivenMissing
from skbilevel.objectives.masking_links import Link
from skbilevel.objectives.observation import Observation


class Codes(NamedTuple):
    """Draws z (K, b, L) of the proposal, and log p(z) - log q(z) of them (K, b)."""

    values: Tensor
    log_ratio: Tensor


def proposed(mean: Tensor, root: Tensor, noise: Tensor) -> Codes:
    """z_k = mean + root @ noise_k, with the ratio p(z) / q(z) of eq. (6); reparameterised.

    Parameters
    ----------
    mean : Tensor of shape (b, L)
    root : Tensor of shape (b, L) or (b, L, L)
        Standard deviations, or a triangular root of the covariance.
    noise : Tensor of shape (K, b, L)
        Standard normal.
    """
    if root.dim() == mean.dim():
        values = mean + root * noise
    else:
        values = mean + torch.einsum("bij,kbj->kbi", root, noise)
    log_ratio = 0.5 * (noise.square() - values.square()).sum(-1) + _log_det(mean, root)
    return Codes(values, log_ratio)


def _log_det(mean: Tensor, root: Tensor) -> Tensor:
    """log of the determinant of the root; (b,)."""
    diagonal = root if root.dim() == mean.dim() else root.diagonal(dim1=-2, dim2=-1)
    return diagonal.abs().log().sum(-1)


def sum_where(log_terms: Tensor, cells: Tensor) -> Tensor:
    """Sum of terms (..., b, d) over those cells of each row, (b, d) of bool: (..., b)."""
    return torch.where(cells, log_terms, 0.0).sum(-1)


def log_observed_density(observation: Observation, values: Tensor, mask: Tensor) -> Tensor:
    """log p(x_o | z_k); (K, b)."""
    return sum_where(observation.log_density(values), mask)


def completed(observation: Observation, values: Tensor, mask: Tensor, uniforms: Tensor) -> Tensor:
    """x_k of eq. (5): missing cells drawn from p(x_m | z_k).

    Parameters
    ----------
    observation : Observation
        Of codes (K, b, L).
    values, mask : Tensor of shape (b, d)
    uniforms : Tensor of shape (observation.n_uniforms, K, b, d)
        In (0, 1).

    Returns
    -------
    Tensor of shape (K, b, d)
    """
    return torch.where(mask, values, observation.drawn(uniforms))


def log_mask_given_rows(logits: Tensor, mask: Tensor) -> Tensor:
    """log p(s | x) of eq. (9), from the log odds of being missing, (..., b, d): (..., b)."""
    return torch.where(mask, logsigmoid(-logits), logsigmoid(logits)).sum(-1)


def log_missing_given_codes(cells: GivenMissing, mask: Tensor) -> Tensor:
    """log of the factors of (a) that depend on z_k, those of missing cells; (K, b)."""
    return sum_where(cells.log_probability, ~mask)


def log_observed_mask(link: Link, values: Tensor, mask: Tensor) -> Tensor:
    """log of the factors of (a) that do not, those of observed cells; (b,)."""
    return sum_where(link.log_observed(values), mask)


def miwae_log_weights(
    codes: Codes, observation: Observation, values: Tensor, mask: Tensor
) -> Tensor:
    """log w_k of eq. (6) without the factor p(s | x); (K, b)."""
    return log_observed_density(observation, values, mask) + codes.log_ratio


def bound(log_weights: Tensor) -> Tensor:
    """Eqs. (6), (17): log (1/K) sum_k w_k per row, in nats. (K, b) to (b,)."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def plain_bound(log_likelihood: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """Eq. (15), the plain variational autoencoder: the mean over draws of log p(x_o, s | z_k),
    less the divergence of q from the prior in closed form.

    Parameters
    ----------
    log_likelihood : Tensor of shape (K, b)
        log p(x_o | z_k), and of the mask where there is a missing model.
    mean : Tensor of shape (b, L)
    root : Tensor of shape (b, L) or (b, L, L)

    Returns
    -------
    Tensor of shape (b,)
    """
    trace = root.square().flatten(1).sum(1)
    divergence = 0.5 * (trace + mean.square().sum(-1) - mean.shape[-1]) - _log_det(mean, root)
    return log_likelihood.mean(0) - divergence


def shares(log_weights: Tensor) -> Tensor:
    """alpha_k of eq. (24), which add up to 1 over draws; (K, b)."""
    return log_weights.softmax(0)


def effective_size(log_weights: Tensor) -> Tensor:
    """1 / sum_k alpha_k^2: as many equal weights would be as good; between 1 and K, (b,)."""
    return 1 / shares(log_weights).square().sum(0)


def expectation(values: Tensor, log_weights: Tensor) -> Tensor:
    """Eqs. (24) and (b): sum_k alpha_k values_k; (K, b, ...) and (K, b) to (b, ...).

    ``values`` are h(x_k) where the weights are those of draws x_k, and E[h(x) | z_k, s] where the
    draws are integrated out.
    """
    return torch.einsum("kb,kb...->b...", shares(log_weights), values)


def weighted_quantile(values: Tensor, log_weights: Tensor, level: float) -> Tensor:
    """The smallest value up to which the shares add up to ``level``.

    Parameters
    ----------
    values : Tensor of shape (K, b, d)
        Draws of x given z_k, and given s where the weights are collapsed ones.
    log_weights : Tensor of shape (K, b)
    level : float
        In (0, 1); 0.5 is the median, which minimises the absolute error.

    Returns
    -------
    Tensor of shape (b, d)
    """
    ascending, order = values.sort(dim=0)
    weight = shares(log_weights).unsqueeze(-1).expand_as(values).gather(0, order)
    index = (weight.cumsum(0) < level).sum(0).clamp(max=len(values) - 1)
    return ascending.gather(0, index.unsqueeze(0)).squeeze(0)


def resampled(values: Tensor, log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Sampling importance resampling: the k-th value is taken with probability alpha_k.

    Parameters
    ----------
    values : Tensor of shape (K, b, ...)
        Draws x_k of the sampled form; or codes z_k, to be completed by draws of x given z and s.
    log_weights : Tensor of shape (K, b)
    uniforms : Tensor of shape (S, b)
        In (0, 1), one for each draw and row.

    Returns
    -------
    Tensor of shape (S, b, ...)
    """
    cumulated = shares(log_weights).cumsum(0)[:-1].T.contiguous()
    index = torch.searchsorted(cumulated, uniforms.T.contiguous(), right=True).T
    return values[index, torch.arange(values.shape[1], device=values.device)]
