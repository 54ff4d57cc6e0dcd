"""Whether an operator does what operators have to do, found out before anything is restored."""

from typing import Any

import torch
from torch import Tensor

from guided_diffusion.operator_base import Operator
from util.errors import UserError, described

_TOLERANCE = 1e-3  # relative; float32 and FFTs stay far below


def check_operator(operator: Operator, name: str) -> None:
    """Try `operator`, bound to one image, on images of its size; UserError where it is wrong.

    name: what the config calls it
    """
    c = operator.context
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(3, 1, *c.shape, generator=generator) - 1
    x = x.to(c.dtype).to(c.device)
    y = _try(f"{name}: A(x)", operator, x[0])
    if not isinstance(y, Tensor) or not y.is_floating_point():
        kind = getattr(y, "dtype", type(y).__name__)
        raise UserError(
            f"{name}: A(x) is {kind}; measurements must be real floats (complex numbers as pairs, "
            "torch.view_as_real)"
        )
    if y.ndim < 2 or len(y) != 1:
        raise UserError(
            f"{name}: A(x) for x of shape {tuple(x[0].shape)} has shape {tuple(y.shape)}; its "
            "first dimension must be that of the images"
        )
    if not torch.isfinite(y).all():
        raise UserError(f"{name}: A(x) is not finite")
    several = _try(f"{name}: A(x) for candidates [m, B, {c.channels}, H, W]", operator, x)
    if several.shape != (3, *y.shape) or _differ(several[0], y):
        raise UserError(
            f"{name}: A(x) for several candidates, x {tuple(x.shape)}, is not that of each one; "
            f"write it for x [..., {c.channels}, H, W]"
        )
    view = _try(f"{name}: view(y)", operator.view, y)
    if view.ndim != 4 or view.shape[:2] != (1, 3):
        raise UserError(f"{name}: view(y) has shape {tuple(view.shape)}; expected [B, 3, h, w]")
    if operator.linear:
        _check_linear(operator, name, x, several)
    else:
        _check_derivative(operator, name, x[0])


def _check_linear(operator: Any, name: str, x: Tensor, measured: Tensor) -> None:
    if _differ(operator(x[0] + x[1]), measured[0] + measured[1]):
        raise UserError(
            f"{name}: A(x + z) is not A(x) + A(z), but the operator says that it is linear; derive "
            "it from Operator instead of LinearOperator"
        )
    u = measured[2] + measured[0].flip(-1)  # not in the direction of A(x[0])
    back = _try(f"{name}: adjoint(y)", operator.adjoint, u)
    if back.shape != x[0].shape:
        raise UserError(
            f"{name}: adjoint(y) has shape {tuple(back.shape)}; expected {tuple(x[0].shape)}"
        )
    # On the CPU: not every device has float64.
    first, u, x0, back = (v.cpu().double() for v in (measured[0], u, x[0], back))
    left, right = (first * u).sum().item(), (x0 * back).sum().item()
    size = (first.norm() * u.norm()).item()
    if abs(left - right) > _TOLERANCE * size:
        raise UserError(
            f"{name}: adjoint is not the transpose of A: <A x, u> is {left:.6g}, <x, A^T u> "
            f"{right:.6g}; leave adjoint out, and it is derived"
        )


def _check_derivative(operator: Operator, name: str, x: Tensor) -> None:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        total = operator(x).square().sum()
        if total.requires_grad and torch.autograd.grad(total, x)[0].any():
            return
    raise UserError(
        f"{name}: A(x) has no derivative, or one that is 0 everywhere, so that nothing tells where "
        "to go; where it rounds, write x + (x.round() - x).detach()"
    )


def _differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() > _TOLERANCE * b.norm().clamp(min=1e-12))


def _try(what: str, function: Any, x: Tensor) -> Any:
    try:
        with torch.no_grad():
            return function(x)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what} failed for a tensor {tuple(x.shape)}: {described(error)}"
        ) from error
