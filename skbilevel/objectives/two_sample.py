"""Scores of a hypergradient where inner and outer loss are means over samples of their own.

====================  ====================  ==========  ===========================================
symbol                code name             shape       meaning
====================  ====================  ==========  ===========================================
omega                 omega                 (p,)        outer variables
theta                 theta                 (q,)        inner parameters, at their minimum
l_in, l_out           inner, outer          scalar      losses of a row, l(omega, theta, row)
E_in, E_out                                             means over the n_in rows of the inner
                                                        sample and the n_out of the outer one
u_i                                         (q,)        d_theta l_in of a row
H_i, B_i                                    (q, q),     d_theta^2 l_in, d_omega d_theta l_in;
                                            (q, p)      H and B are their means
d_j, g_j                                    (q,), (p,)  d_theta l_out, d_omega l_out of a row
J                     jacobian              (q, p)      d theta / d omega = -H^-1 B
a                     adjoint               (q,)        -H^-1 E_out[d]
c                     sensitivity           (q, p)      d a / d omega
w_i, lambda           weights, ridge        (n,)        of rows of a linear model
k(i)                  groups                (n,)        group of a row, whose log weight moves
====================  ====================  ==========  ===========================================

With ``theta(omega) = argmin E_in[l_in]`` and ``F(omega) = E_out[l_out(omega, theta(omega))]``, the
derivative of ``a`` is ::

    c = -H^-1 {d_omega H a + (d_theta H . J) a + E_out[d_theta^2 l_out] J
               + E_out[d_omega d_theta l_out]'}                                             (1)

and the influence function of grad F is one score for the rows of each sample ::

    outer rows   g_j + J'd_j                                                                (2)
    inner rows   (B_i + H_i J)'a + c'u_i                                                    (3)

The estimate is the sum of both means. Samples are independent, so that its covariance is
``cov(scores out) / n_out + cov(scores in) / n_in``. At the minimum the mean of (3) is 0: inner
rows add nothing to the estimate, and their noise to its covariance.

For a linear model whose rows are weighted by groups, ::

    l_in = n w_i exp(omega_k(i)) [l_i(x_i'theta) + mu/2 |theta|^2],   mu = lambda / sum w   (4)

at omega = 0: each row brings its share of the ridge, so that a factor of all weights changes
nothing. Column k of B is then ``sum_i w_i (grad l_i + mu theta)`` over group k, that of
``d_omega H`` the product with the Hessian of these rows, and all of (1) to (3) are products of
rows.

Reference: El Khoury, Zenati, Kallus, Arbel and Bibaut (2026), Semiparametric efficient bilevel
gradient estimation, arXiv 2605.21341, for the method; of its formulas no text could be had. These
were derived anew, and tests check them on finite supports: means against finite differences, and
the scores against derivatives along the distributions of either sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from skbilevel.objectives.reweighting import Point, ReweightedLinear

# (omega (p,), theta (q,), row) -> scalar
RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
# right (q,) -> H^-1 right
Solve = Callable[[Tensor], Tensor]


class TwoSampleScores(NamedTuple):
    """Scores of the rows of either sample; the gradient is the sum of both means.

    Attributes
    ----------
    outer : Tensor of shape (n_out, p)
        Eq. (2).
    inner : Tensor of shape (n_in, p)
        Eq. (3).
    """

    outer: Tensor
    inner: Tensor


def two_sample_scores(
    inner: RowLoss,
    outer: RowLoss,
    omega: Tensor,
    theta: Tensor,
    rows_inner: Tensor,
    rows_outer: Tensor,
) -> TwoSampleScores:
    """Eqs (2) and (3) for any losses, by automatic differentiation.

    It makes H as a matrix, and is for a theta of at most some hundred numbers.

    Parameters
    ----------
    inner, outer : callable
        ``(omega (p,), theta (q,), row (r,)) -> scalar``, three times and twice differentiable.
        Factors of a row, such as weights, are part of its loss.
    omega : Tensor of shape (p,)
    theta : Tensor of shape (q,)
        Where the mean of ``inner`` is least: it is not solved for here.
    rows_inner, rows_outer : Tensor of shape (n_in, r) and (n_out, s)

    Returns
    -------
    TwoSampleScores

    Raises
    ------
    torch.linalg.LinAlgError
        If the mean Hessian of ``inner`` is not positive definite.
    """
    inner_slope = grad(_mean(inner, rows_inner), 1)
    outer_slope = grad(_mean(outer, rows_outer), 1)
    factor = torch.linalg.cholesky(jacrev(inner_slope, 1)(omega, theta))

    def solve(right: Tensor) -> Tensor:
        return torch.cholesky_solve(right.reshape(len(theta), -1), factor).view(right.shape)

    jacobian = -solve(jacrev(inner_slope, 0)(omega, theta))
    adjoint = -solve(outer_slope(omega, theta))

    def residual(omega: Tensor, theta: Tensor) -> Tensor:
        """H a + E_out[d], whose total derivative at a fixed a is -H c."""
        along = grad(lambda at: adjoint @ inner_slope(omega, at))(theta)
        return along + outer_slope(omega, theta)

    moved = jacrev(residual, 0)(omega, theta) + jacrev(residual, 1)(omega, theta) @ jacobian
    sensitivity = -solve(moved)

    def outer_score(row: Tensor) -> Tensor:
        direct, through = grad(outer, (0, 1))(omega, theta, row)
        return direct + jacobian.T @ through

    def inner_score(row: Tensor) -> Tensor:
        def along(omega: Tensor, theta: Tensor) -> Tensor:
            return adjoint @ grad(inner, 1)(omega, theta, row)

        cross, curved = grad(along, (0, 1))(omega, theta)
        slope = grad(inner, 1)(omega, theta, row)
        return cross + jacobian.T @ curved + sensitivity.T @ slope

    scores = vmap(outer_score)(rows_outer), vmap(inner_score)(rows_inner)
    return TwoSampleScores(*(each.detach() for each in scores))


def grouped_linear_scores(
    problem: ReweightedLinear,
    weights: Tensor,
    groups: Tensor,
    n_groups: int,
    theta: Tensor,
    solve: Solve,
) -> TwoSampleScores:
    """Eqs (2) and (3) for the losses of eq. (4), in the logarithms of the weights of groups.

    Parameters
    ----------
    problem : ReweightedLinear
        Its target rows are the outer sample.
    weights : Tensor of shape (n,)
    groups : Tensor of shape (n,), int
        From 0 to ``n_groups - 1``.
    n_groups : int
        p.
    theta : Tensor of shape (q,)
        theta*(w).
    solve : callable
        ``right (q,) -> H^-1 right``, at theta.

    Returns
    -------
    TwoSampleScores
    """
    target, judges = problem.target.at(theta), problem.target_weights
    rows = _sharing_the_ridge(problem, weights, theta)
    adjoint = -solve(target.gradient(judges))
    n_in, n_out = len(weights), len(judges)
    sizes = torch.zeros(n_groups, dtype=weights.dtype).index_add_(0, groups, weights)
    heaviest = int(sizes.argmax())
    outer, inner = weights.new_zeros(n_out, n_groups), weights.new_zeros(n_in, n_groups)
    for group in range(n_groups):
        if group == heaviest:
            continue
        members = (groups == group).to(weights.dtype)
        moving = weights * members
        jacobian = -solve(rows.gradient(moving))
        moved = (
            rows.product(moving, adjoint)
            + rows.point.third_product(weights, adjoint, jacobian)
            + target.product(judges, jacobian)
        )
        sensitivity = -solve(moved)
        of_row = (
            members * rows.slopes(adjoint)
            + rows.curvatures(adjoint, jacobian)
            + rows.slopes(sensitivity)
        )
        outer[:, group] = -n_out * judges * target.alignment(jacobian)
        inner[:, group] = n_in * weights * of_row
    # All groups together move nothing. Beside groups of next to no weight, rounding would hide it.
    for scores in (outer, inner):
        scores[:, heaviest] = -scores.sum(dim=1)
    return TwoSampleScores(outer, inner)


@dataclass(frozen=True)
class _SharingRows:
    """Rows with losses ``l_i + mu/2 |theta|^2``."""

    point: Point
    ridge: float

    def gradient(self, weights: Tensor) -> Tensor:
        """Of their weighted sum, (q,)."""
        return self.point.gradient(weights) + self.ridge * weights.sum() * self.point.theta

    def product(self, weights: Tensor, v: Tensor) -> Tensor:
        """With the Hessian of their weighted sum, (q,)."""
        return self.point.product(weights, v) + self.ridge * weights.sum() * v

    def slopes(self, v: Tensor) -> Tensor:
        """u_i'v / w_i, (n,)."""
        return self.ridge * self.point.theta.dot(v) - self.point.alignment(v)

    def curvatures(self, u: Tensor, v: Tensor) -> Tensor:
        """u'H_i v / w_i, (n,)."""
        return self.point.curvatures(u, v) + self.ridge * u.dot(v)


def _sharing_the_ridge(problem: ReweightedLinear, weights: Tensor, theta: Tensor) -> _SharingRows:
    share = problem.train.ridge / float(weights.sum())
    return _SharingRows(replace(problem.train, ridge=0.0).at(theta), share)


def _mean(loss: RowLoss, rows: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda omega, theta: vmap(loss, (None, None, 0))(omega, theta, rows).mean()
