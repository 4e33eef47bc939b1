"""The normal with self-masking: which cells are missing enters the likelihood.

======================  ==============  ==========  ======================================
symbol                  code name       shape       meaning
======================  ==============  ==========  ======================================
mu, P                   location,       (d,),       the normal, in standardised units, and
                        matrix          (d, d)      its precision
tau, nu                 sites           (k, b)      normal factors that stand for
                                                    p(s_j = 0 | x_j) at the missing cells
E, V                    mean, variance  (k, b)      marginals of the missing cells
delta                   distance        (b,)        e_o' (S_oo)^-1 e_o
c                       limit           scalar      rows beyond delta = c n_o are pulled in
======================  ==============  ==========  ======================================

Given a row's observed cells, its missing ones are normal times one factor a cell, which
expectation propagation replaces by sites. Their normaliser gives the evidence ::

    log p(x_o, s) = log of the integral of normal times sites + sum_m log_scale
                    + sum_o log p(s_j = 1 | x_j)                                  (1)

A row far outside the ellipsoid of the others is a poor predictor of what is missing in it, and
the truncated means that it implies are extreme. It is pulled radially onto the ellipsoid ::

    x_o <- mu_o + min(1, sqrt(c n_o / delta)) (x_o - mu_o)                        (2)

Draws go from the last missing cell to the first. With L L' the precision of the missing cells,
their sites included, a cell given those already drawn is N(c_j, 1 / L_jj^2) ::

    c_j = E_j - sum_{i > j} L_ij (x_i - E_i) / L_jj                               (3)

in which sites stand for the cells yet to come. Its own site is divided out again and the true
factor put in its place, from which x_j is drawn. So no draw lies beyond a hard limit, and the
draws are exact where the sites are.
"""

import torch
from scipy.special import chdtri
from torch import Tensor

from skbilevel.numerics.row_groups import RowGroup
from skbilevel.numerics.sites import Normal, Sites
from skbilevel.objectives.given_missing import normal_given_missing
from skbilevel.objectives.masking_links import ProbitLink
from skbilevel.objectives.normal import Conditional, Precision, condition, log_normal
from skbilevel.objectives.self_masking import SelfMasking, log_observed

# Share of normal rows beyond the least limit.
_RARE = 0.002


def projected(group: RowGroup, model: Precision, limit: float, mean: Tensor) -> RowGroup:
    """Eq. (2) for the rows of a group.

    Where few cells are observed c n_o would cut into the bulk of the rows: the limit is never
    below the quantile of chi squared that one normal row in 500 exceeds. Missing cells at any
    ``mean`` (k, b) give an upper bound of delta, which tells of most rows that they are near,
    without an inverse.
    """
    if group.n_observed == 0:
        return group
    farthest = max(limit * group.n_observed, float(chdtri(group.n_observed, _RARE)))
    far = (_distance_at(group, model, mean) > farthest).nonzero().squeeze(1)
    if len(far) == 0:
        return group
    few = RowGroup(group.values[far], group.missing[:, far])
    share = (farthest / condition(few, model).distance).sqrt().clamp(max=1.0).unsqueeze(1)
    pulled = model.location + share * (few.values - model.location)
    return RowGroup(group.values.index_copy(0, far, pulled * few.observed()), group.missing)


def _distance_at(group: RowGroup, model: Precision, mean: Tensor) -> Tensor:
    """e' P e with the missing cells at ``mean``, (b,)."""
    completed = group.values.view(-1).index_copy(0, group.cells, mean.reshape(-1))
    residual = completed.view_as(group.values) - model.location
    return ((residual @ model.matrix) * residual).sum(1)


def marginals(group: RowGroup, given: Conditional, location: Tensor) -> Normal:
    """E and V (k, b) of the missing cells of a group."""
    if given.inverse is None:
        none = location.new_empty(group.missing.shape)
        return Normal(none, none)
    residual = given.residual.gather(1, group.missing.T).T
    return Normal(location[group.missing] + residual, given.inverse.diagonal)


def log_evidence(
    group: RowGroup,
    given: Conditional,
    sites: Sites,
    log_scales: Tensor,
    mechanism: SelfMasking,
    location: Tensor,
) -> Tensor:
    """Eq. (1) per row in nats; shape (b,).

    ``given`` is conditioned on the sites, and ``log_scales`` (k, b) are their factors' scales.
    """
    normal = log_normal(group.n_observed, given.log_det, given.distance)
    center = location[group.missing]
    at_center = sites.shift * center - 0.5 * sites.precision * center.square()
    of_missing = (at_center + log_scales).sum(0)
    of_observed = log_observed(group.values, mechanism).where(group.observed() > 0, 0.0)
    return normal + of_missing + of_observed.sum(1)


def drawn_in_turn(
    mean: Tensor, root: Tensor, sites: Sites, link: ProbitLink, uniforms: Tensor
) -> Tensor:
    """Eq. (3): draws (S, k, b) of the missing cells.

    Parameters
    ----------
    mean : Tensor of shape (k, b)
        E of the missing cells, sites included.
    root : Tensor of shape (b, k, k)
        L, lower triangular.
    sites : Sites of shape (k, b)
    link : ProbitLink of shape (k, b)
        The factors of the cells.
    uniforms : Tensor of shape (3, S, k, b)
        In (0, 1).
    """
    offset = torch.zeros(uniforms.shape[1:], dtype=mean.dtype)
    for j in reversed(range(len(mean))):
        pivot = root[:, j, j]
        pull = torch.einsum("bi,sib->sb", root[:, j + 1 :, j], offset[:, j + 1 :])
        center = mean[j] - pull / pivot
        rest = pivot.square() - sites.precision[j]
        location = (pivot.square() * center - sites.shift[j]) / rest
        scale = rest.rsqrt().unsqueeze(0)
        own = link.columns(torch.tensor(j))
        cell = normal_given_missing(location, scale, torch.zeros_like(scale), own)
        offset[:, j] = cell.drawn(uniforms[:, :, j]) - mean[j]
    return mean + offset
