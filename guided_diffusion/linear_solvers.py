"""Solving with linear operators: by their singular values where these are known, by conjugate
gradients else."""

from collections.abc import Callable

import torch
from torch import Tensor

from guided_diffusion.operator_base import LinearOperator


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, iterations: int
) -> Tensor:
    """Approximate solution of apply(x) = b from the start x [B, ...], each image on its own.

    `apply` must be linear, symmetric and positive definite.
    """
    residual = b - apply(x)
    direction = residual
    norm = _dot(residual, residual)
    tiny = torch.finfo(b.dtype).tiny
    for _ in range(iterations):
        moved = apply(direction)
        step = norm / _dot(direction, moved).clamp(min=tiny)
        x = x + step * direction
        residual = residual - step * moved
        previous, norm = norm, _dot(residual, residual)
        direction = residual + norm / previous.clamp(min=tiny) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of images [B, ...] as [B, 1, 1, 1]."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def tikhonov(
    operator: LinearOperator, y: Tensor, x0: Tensor, weight: float | Tensor, iterations: int
) -> Tensor:
    """argmin over x of || y - A x ||^2 + weight || x - x0 ||^2, images [B, 3, H, W].

    In closed form where the operator's spectrum is known (all singular values, no cut-off);
    otherwise `iterations` of conjugate gradients on the normal equations, from x0.
    """
    spectrum = operator.spectrum(cutoff=0.0)
    if spectrum is not None:
        s = spectrum.values
        c0 = spectrum.coefficients(x0)
        return spectrum.image((s * spectrum.measured(y) + weight * c0) / (s**2 + weight))

    def normal(x: Tensor) -> Tensor:
        return operator.adjoint(operator(x)) + weight * x

    return conjugate_gradients(normal, operator.adjoint(y) + weight * x0, x0, iterations)
