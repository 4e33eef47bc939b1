"""First and second derivatives of functions of flat vectors.

A function that does not depend on one of its arguments has gradient zero there; torch alone
raises an error. Every result is free of any graph, unless said otherwise.

References
----------
B. A. Pearlmutter (1994). Fast exact multiplication by the Hessian.
N. N. Schraudolph (2002). Fast curvature matrix-vector products for second-order gradient descent.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from skbilevel.numerics.linear_solve import Operator
from skbilevel.numerics.problem import CompositeLoss, ScalarFunction

__all__ = [
    "GradientGraph",
    "cross_vjp",
    "gauss_newton",
    "gauss_newton_at",
    "gauss_newton_matrix",
    "gauss_newton_matrix_at",
    "gauss_newton_vp",
    "grad",
    "hvp",
    "row_jacobian",
    "value_and_grad",
    "vjp",
]


def vjp(
    output: Tensor,
    inputs: tuple[Tensor, ...],
    cotangent: Tensor | None = None,
    *,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """``J'u`` for each input, from the graph that leads to `output`, which is kept.

    Parameters
    ----------
    output : Tensor
        A tensor with a graph; without one it is constant, and the result zero.
    inputs : tuple of Tensor
        Where the graph begins. One call for several inputs is one pass through the graph.
    cotangent : Tensor, shaped as `output`, default=None
        The vector u; None is 1, for a scalar output.
    create_graph : bool, default=False
        Whether the result has a graph of its own, to be differentiated again.
    """
    if not output.requires_grad:
        return tuple(torch.zeros_like(tensor, requires_grad=False) for tensor in inputs)
    return torch.autograd.grad(
        output,
        inputs,
        cotangent,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


class GradientGraph:
    """The gradient ``g = d f / d theta``, with the graph that serves every product with it.

    Building the graph costs one forward and one backward pass; each product afterwards is one
    pass through the graph, with nothing computed again.

    Parameters
    ----------
    f : callable
        ``f(theta, phi) -> scalar``, deterministic.
    theta : Tensor of shape (p,)
    phi : Tensor of shape (q,)

    Attributes
    ----------
    f : callable
    theta, phi : Tensor
        Copies in the sense of autograd: the leaves of the graph.
    value : Tensor, scalar
        f itself, without a graph.
    gradient : Tensor of shape (p,)
        Carries the graph. A solver that needs several products with one vector u gets them in
        one pass from ``vjp(graph.gradient, (graph.theta, graph.phi), u)``.
    outputs : Tensor or None
        Of the model of a `CompositeLoss`, with the graph that leads to theta and phi.
    """

    def __init__(self, f: ScalarFunction, theta: Tensor, phi: Tensor) -> None:
        self.f = f
        self.theta, self.phi = _leaf(theta), _leaf(phi)
        self.outputs: Tensor | None = None
        with torch.enable_grad():
            if isinstance(f, CompositeLoss):
                self.outputs = f.model(self.theta, self.phi)
                value = f.of_outputs(self.outputs, self.theta, self.phi)
            else:
                value = f(self.theta, self.phi)
            (self.gradient,) = vjp(value, (self.theta,), create_graph=True)
        self.value = value.detach()

    def hvp(self, v: Tensor) -> Tensor:
        """``(d2 f / d theta2) v``; (p,) to (p,)."""
        return vjp(self.gradient, (self.theta,), v)[0]

    def cross_vjp(self, u: Tensor) -> Tensor:
        """``d <g, u> / d phi``; (p,) to (q,)."""
        return vjp(self.gradient, (self.phi,), u)[0]


def value_and_grad(f: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A scalar function, and its gradient in each of its arguments, in one backward pass."""
    leaves = tuple(_leaf(arg) for arg in args)
    with torch.enable_grad():
        value = f(*leaves)
    return value.detach(), vjp(value, leaves)


def grad(f: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    """The gradient of a scalar function in each of its arguments, in one backward pass."""
    return value_and_grad(f, *args)[1]


def row_jacobian(output: Tensor, theta: Tensor) -> Tensor:
    """``J = d output / d theta``, (n, p), from the graph that leads to an output of shape (n,),
    which is kept: p products, whatever n is, by differentiating ``J'v`` in v."""
    v = torch.zeros_like(output, requires_grad=True)
    (pulled,) = vjp(output, (theta,), v, create_graph=True)
    return torch.stack([vjp(part, (v,))[0] for part in pulled], dim=1)


def hvp(f: ScalarFunction, theta: Tensor, phi: Tensor, v: Tensor) -> Tensor:
    """``(d2 f / d theta2) v``; (p,) to (p,). For many v, keep a `GradientGraph`."""
    return GradientGraph(f, theta, phi).hvp(v)


def cross_vjp(f: ScalarFunction, theta: Tensor, phi: Tensor, u: Tensor) -> Tensor:
    """``d <d f / d theta, u> / d phi``; (p,) to (q,)."""
    return GradientGraph(f, theta, phi).cross_vjp(u)


def gauss_newton(
    model: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], theta: Tensor
) -> Operator:
    """The products ``v -> J' B J v`` with the generalised Gauss-Newton matrix of ``loss(model)``.

    J is the Jacobian of the model at theta and B the Hessian of the loss in the model's outputs:
    the Hessian without the curvature of the model, positive semi-definite for a convex loss.
    One forward pass is made here, and none in a product.

    Parameters
    ----------
    model : callable
        ``theta -> outputs``, of any shape.
    loss : callable
        ``outputs -> scalar``.
    theta : Tensor of shape (p,)

    Returns
    -------
    callable
        ``v -> J' B J v``; (p,) to (p,).
    """
    theta = _leaf(theta)
    with torch.enable_grad():
        return gauss_newton_at(model(theta), loss, theta)


def gauss_newton_at(outputs: Tensor, loss: Callable[[Tensor], Tensor], theta: Tensor) -> Operator:
    """The operator of `gauss_newton`, from outputs whose graph leads to theta: no forward pass."""
    with torch.enable_grad():
        z = _leaf(outputs)
        (loss_gradient,) = vjp(loss(z), (z,), create_graph=True)
        # J'w is linear in w, so that its derivative along v is J v. This "double backward" takes
        # a third to a half of the time of torch.func.jvp, which runs the model each time.
        w = torch.zeros_like(outputs, requires_grad=True)
        (pullback,) = vjp(outputs, (theta,), w, create_graph=True)

    def product(v: Tensor) -> Tensor:
        (jacobian_v,) = vjp(pullback, (w,), v)
        (curved,) = vjp(loss_gradient, (z,), jacobian_v)
        return vjp(outputs, (theta,), curved)[0]

    return product


def gauss_newton_matrix(
    model: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], theta: Tensor
) -> Tensor:
    """``J' B J``, (p, p), the matrix of the products of `gauss_newton`, for a short theta.

    J is taken row by row in one batched pass, so that memory is as that of a few
    (number of outputs, p) matrices.
    """
    theta = _leaf(theta)
    with torch.enable_grad():
        return gauss_newton_matrix_at(model(theta), loss, theta)


def gauss_newton_matrix_at(
    outputs: Tensor, loss: Callable[[Tensor], Tensor], theta: Tensor
) -> Tensor:
    """`gauss_newton_matrix` from outputs whose graph leads to theta."""
    with torch.enable_grad():
        z = _leaf(outputs)
        (loss_gradient,) = vjp(loss(z), (z,), create_graph=True)
    if not (outputs.requires_grad and loss_gradient.requires_grad):
        return theta.new_zeros(len(theta), len(theta))
    identity = torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    units = identity.view(-1, *outputs.shape)
    (jacobian,) = torch.autograd.grad(
        outputs, (theta,), units, is_grads_batched=True, retain_graph=True
    )
    directions = jacobian.T.reshape(-1, *outputs.shape)
    (curved,) = torch.autograd.grad(loss_gradient, (z,), directions, is_grads_batched=True)
    matrix = curved.reshape(len(theta), -1) @ jacobian
    return (matrix + matrix.T) / 2


def gauss_newton_vp(
    model: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
    theta: Tensor,
    v: Tensor,
) -> Tensor:
    """``J' B J v``; (p,) to (p,). For many v, keep the operator of `gauss_newton`."""
    return gauss_newton(model, loss, theta)(v)


def _leaf(tensor: Tensor) -> Tensor:
    """The same values, detached from any graph, as the start of a new one."""
    return tensor.detach().requires_grad_()
