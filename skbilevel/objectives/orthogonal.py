"""Orthogonal scores: the gradient of a bilevel objective whose inner problem is a regression.

====================  ====================  ========  =============================================
symbol                code name             shape     meaning
====================  ====================  ========  =============================================
omega                 omega                 (p,)      outer parameters
O, X                  row                             an observation, and what is conditioned on
v                     prediction            scalar    h(X), of the inner problem
l_in, l_out           inner, outer          scalar    losses of a row, l(omega, v, O)
u, H, B               slope, curvature,     (n,),     d_v l_in, d_v^2 l_in, d_omega d_v l_in
                      cross                 (n,),
                                            (n, p)
d, g                  slope, direct         (n,),     d_v l_out, d_omega l_out
                                            (n, p)
J                     jacobian              (n, p)    d h / d omega = -E[B | X] / E[H | X]
a                     adjoint               (n,)      -E[d | X] / E[H | X]
c                     sensitivity           (n, p)    d a / d omega
r, D                  residual, slopes      (n,),     of a conditional moment restriction
                                            (n, p)    E[r | X] = 0, and d_omega r
rho, kappa            rho, kappa            (n,),     E[r | X] and E[D | X]
                                            (n, p)
====================  ====================  ========  =============================================

The inner problem is ``h(x) = argmin_v E[l_in(omega, v, O) | X = x]``, the outer objective
``F(omega) = E[l_out(omega, h(X), O)]``. The efficient influence function of F is that of
``l_out + a u``; its derivative along omega is the score ::

    psi = g + J d + a (B + J H) + c u,      E[psi] = grad F                                 (1)

whose mean does not move, to first order, with errors of h, J, a and c. Where
``F = 1/2 E[rho^2]`` it is ::

    psi = rho D + kappa r - rho kappa                                                       (2)

with bias ``-E[(rho_hat - rho)(kappa_hat - kappa)]``: instrumental variables, Bellman residuals and
every other conditional moment restriction are of this form.

Reference: El Khoury, Zenati, Kallus, Arbel and Bibaut (2026), Semiparametric efficient bilevel
gradient estimation, arXiv 2605.21341, for the method; of its formulas no text could be had. These
were derived anew, and tests check them on finite supports: means against finite differences, and
the score against derivatives along distributions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

# (omega (p,), prediction, row) -> scalar; rows are tensors, or dicts or tuples of tensors.
PointwiseLoss = Callable[[Tensor, Tensor, Any], Tensor]


class InnerDerivatives(NamedTuple):
    """Of l_in, row by row.

    Attributes
    ----------
    slope, curvature : Tensor of shape (n,)
        u and H.
    cross : Tensor of shape (n, p)
        B.
    curvature_slope : Tensor of shape (n,)
        d_v H.
    curvature_cross : Tensor of shape (n, p)
        d_omega H.
    """

    slope: Tensor
    curvature: Tensor
    cross: Tensor
    curvature_slope: Tensor
    curvature_cross: Tensor


class OuterDerivatives(NamedTuple):
    """Of l_out, row by row.

    Attributes
    ----------
    slope, curvature : Tensor of shape (n,)
        d and d_v d.
    direct, cross : Tensor of shape (n, p)
        g and d_omega d.
    """

    slope: Tensor
    curvature: Tensor
    direct: Tensor
    cross: Tensor


def losses_of(loss: PointwiseLoss, omega: Tensor, predictions: Tensor, rows: Any) -> Tensor:
    """Of every row, (n,), at predictions (n,)."""
    return _by_row(loss, omega, predictions, rows)


def inner_derivatives(
    loss: PointwiseLoss, omega: Tensor, predictions: Tensor, rows: Any
) -> InnerDerivatives:
    """u, H, B and the derivatives of H at predictions (n,) for rows (n, q)."""
    slope, curvature = grad(loss, 1), grad(grad(loss, 1), 1)
    parts = (slope, curvature, grad(slope, 0), grad(curvature, 1), grad(curvature, 0))
    return InnerDerivatives(*(_by_row(part, omega, predictions, rows) for part in parts))


def newton_parts(
    loss: PointwiseLoss, omega: Tensor, predictions: Tensor, rows: Any
) -> tuple[Tensor, Tensor]:
    """u and H of l_in alone, (n,) each: what a step towards h needs."""
    slope = grad(loss, 1)
    parts = (slope, grad(slope, 1))
    u, H = (_by_row(part, omega, predictions, rows) for part in parts)
    return u, H


def outer_derivatives(
    loss: PointwiseLoss, omega: Tensor, predictions: Tensor, rows: Any
) -> OuterDerivatives:
    """d, d_v d, g and d_omega d at predictions (n,) for rows (n, q)."""
    slope = grad(loss, 1)
    parts = (slope, grad(slope, 1), grad(loss, 0), grad(slope, 0))
    return OuterDerivatives(*(_by_row(part, omega, predictions, rows) for part in parts))


def bilevel_score(
    inner: InnerDerivatives,
    outer: OuterDerivatives,
    jacobian: Tensor,
    adjoint: Tensor,
    sensitivity: Tensor,
) -> Tensor:
    """Eq. (1), (n, p)."""
    through = inner.cross + jacobian * inner.curvature[:, None]
    return (
        outer.direct
        + jacobian * outer.slope[:, None]
        + adjoint[:, None] * through
        + sensitivity * inner.slope[:, None]
    )


def adjoint_gradient(inner: InnerDerivatives, outer: OuterDerivatives, adjoint: Tensor) -> Tensor:
    """g + a B, (n, p): a plug-in, functional implicit differentiation."""
    return outer.direct + adjoint[:, None] * inner.cross


def jacobian_gradient(outer: OuterDerivatives, jacobian: Tensor) -> Tensor:
    """g + J d, (n, p): the other plug-in."""
    return outer.direct + jacobian * outer.slope[:, None]


def bilevel_value(losses: Tensor, inner: InnerDerivatives, adjoint: Tensor) -> Tensor:
    """l_out + a u, (n,): the influence function of F and F itself."""
    return losses + adjoint * inner.slope


def sensitivity_target(
    inner: InnerDerivatives, outer: OuterDerivatives, jacobian: Tensor, adjoint: Tensor
) -> Tensor:
    """d_omega d + J d_v d + a (d_omega H + J d_v H), (n, p): its conditional mean over that of H
    is -c."""
    moved = inner.curvature_cross + jacobian * inner.curvature_slope[:, None]
    return outer.cross + jacobian * outer.curvature[:, None] + adjoint[:, None] * moved


def moment_score(rho: Tensor, kappa: Tensor, residual: Tensor, slopes: Tensor) -> Tensor:
    """Eq. (2), (n, p)."""
    return rho[:, None] * (slopes - kappa) + residual[:, None] * kappa


def adjoint_score(rho: Tensor, kappa: Tensor, residual: Tensor, slopes: Tensor) -> Tensor:
    """rho D, (n, p): the plug-in ``g + a B``, with an error of first order in that of rho."""
    return rho[:, None] * slopes


def jacobian_score(rho: Tensor, kappa: Tensor, residual: Tensor, slopes: Tensor) -> Tensor:
    """rho kappa, (n, p): the plug-in ``g + J d`` with E[d | X] for d."""
    return rho[:, None] * kappa


def instrument_score(rho: Tensor, kappa: Tensor, residual: Tensor, slopes: Tensor) -> Tensor:
    """kappa r, (n, p): kappa as an instrument; its error is of second order where rho = 0."""
    return residual[:, None] * kappa


# (rho, kappa, r, D) -> scores (n, p), of which r and rho, and D and kappa, are factors.
MomentScore = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
MOMENT_SCORES: dict[str, MomentScore] = {
    "orthogonal": moment_score,
    "plug_in": adjoint_score,
    "plug_in_product": jacobian_score,
    "instrument": instrument_score,
}
# What a score has of the product of nuisances, which expects their shared noise too much.
PRODUCT_SHARE = {"orthogonal": -1.0, "plug_in": 0.0, "plug_in_product": 1.0, "instrument": 0.0}


def moment_value(rho: Tensor, residual: Tensor) -> Tensor:
    """rho r - rho^2 / 2 of every row, (n,): its mean is F, and eq. (2) its derivative in omega.

    Where rho is 0 it is 0 to first order, so that its spread is no standard error near F = 0.
    """
    return rho * (residual - rho / 2)


class LinearMoments(NamedTuple):
    """The mean of a score where r = D'omega - y and D does not depend on omega: A omega - b.

    Attributes
    ----------
    matrix : Tensor of shape (p, p)
        A; that of eq. (2) is the mean of D K' + K D' - K K' with K = E[D | X].
    vector : Tensor of shape (p,)
        b; that of eq. (2) is the mean of K y + (D - K) mu with mu = E[y | X].
    """

    matrix: Tensor
    vector: Tensor


def linear_moments(
    y: Tensor, slopes: Tensor, mu: Tensor, kappa: Tensor, score: MomentScore = moment_score
) -> LinearMoments:
    """From y and mu, (n,), and D and K, (n, p): a score is linear in r and rho, and what omega_j
    has in these are D_j and K_j."""
    columns = zip(kappa.T, slopes.T, strict=True)
    matrix = torch.stack([score(k, kappa, d, slopes).mean(dim=0) for k, d in columns], dim=1)
    return LinearMoments(matrix, score(mu, kappa, y, slopes).mean(dim=0))


def _by_row(
    part: PointwiseLoss,
    omega: Tensor,
    predictions: Tensor,
    rows: Any,
) -> Tensor:
    return vmap(part, in_dims=(None, 0, 0))(omega, predictions, rows).detach()
