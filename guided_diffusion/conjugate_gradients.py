"""The method of conjugate gradients, for a batch of systems at once."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    x: Tensor | None,
    iterations: int,
    tolerance: float = 0.0,
) -> Tensor:
    """Approximate solution of apply(x) = b from the start x [B, ...], each image on its own; None
    starts from zero and saves one `apply`.

    `apply` must be linear, symmetric and positive definite; along a direction in which it turns
    out not to be, an image takes no step. An image is done when its residual is at most
    `tolerance` times b, in squared norm.
    """
    residual = b if x is None else b - apply(x)
    x = torch.zeros_like(b) if x is None else x
    direction = residual
    norm, least = _dot(residual, residual), tolerance * _dot(b, b)
    tiny = torch.finfo(b.dtype).tiny
    for _ in range(iterations):
        if tolerance and not (norm > least).any():
            break
        moved = apply(direction)
        curvature = _dot(direction, moved)
        step = torch.where(curvature > 0, norm / curvature.clamp(min=tiny), 0.0)
        if tolerance:  # an image's result must not depend on those beside it
            step = torch.where(norm > least, step, 0.0)
        x = x + step * direction
        residual = residual - step * moved
        previous, norm = norm, _dot(residual, residual)
        direction = residual + norm / previous.clamp(min=tiny) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of images [B, ...] as [B, 1, ...]."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))
