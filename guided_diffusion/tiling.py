"""Restoring an image that is larger than the model, by overlapping windows kept consistent.

There is one x_t, one noise and one measurement for the whole image. At every step the network
sees windows of the model's size, one after the other, and its outputs are blended with smooth
weights that sum to one (`TiledModel`); x0_hat, the mean and the variance then follow for the
whole image, and A is applied to the whole blended x0_hat. In the backward pass each window is
computed again and its vector-Jacobian product taken, so memory holds the graph of one window.

How norm, guidance and choice are taken (`WindowedProblem`): the guidance step follows the gradient
of a norm, whose length does not depend on the number of pixels, so one norm over a large image
would spread a step meant for one model-sized image over all of it. Therefore each window has its
own norm of the residual, with the blending weights on the measurement's pixels, and the gradient
is that of their sum; and each window chooses its own candidate, whose noise is kept where the
window's weight is the largest. For an image of one window all of this is the ordinary step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.condition_methods import Problem
from guided_diffusion.gaussian_diffusion import Model
from util.errors import UserError


@dataclass(frozen=True)
class Axis:
    """Windows of `size` pixels along `length` pixels, neighbours sharing at least `overlap`."""

    length: int
    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.size <= self.length:
            raise UserError(
                f"tile: windows of {self.size} with overlap {self.overlap} on {self.length} "
                "pixels; the overlap must be smaller than the window, the window no larger than "
                "the image"
            )

    @cached_property
    def starts(self) -> list[int]:
        """First pixel of every window, evenly spread from border to border."""
        free = self.length - self.size
        count = 1 + -(-free // (self.size - self.overlap))
        return [round(i * free / max(count - 1, 1)) for i in range(count)]

    @cached_property
    def weights(self) -> np.ndarray:
        """Weight of each window at each pixel: float64 [windows, length], columns sum to one.

        A raised cosine over the whole window, so that the network's outputs near the borders of
        a window, where it sees little of the surroundings, count least.
        """
        ramp = np.sin(np.pi * (np.arange(self.size) + 0.5) / self.size) ** 2
        weights = np.zeros((len(self.starts), self.length))
        for row, start in zip(weights, self.starts, strict=True):
            row[start : start + self.size] = ramp
        return weights / weights.sum(axis=0)


class Window(NamedTuple):
    """A square part of the image and its blending weights."""

    rows: slice
    columns: slice
    weight: Tensor  # [size, size]


class Tiling:
    """Overlapping square windows over images of height x width."""

    def __init__(self, height: int, width: int, size: int, overlap: int) -> None:
        self.size = size
        self.rows, self.columns = Axis(height, size, overlap), Axis(width, size, overlap)

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def windows(self, like: Tensor) -> Iterator[Window]:
        """The windows, with weights of the type and on the device of `like`."""
        for down, top in zip(self.rows.weights, self.rows.starts, strict=True):
            rows = slice(top, top + self.size)
            for across, left in zip(self.columns.weights, self.columns.starts, strict=True):
                columns = slice(left, left + self.size)
                weight = np.outer(down[rows], across[columns])
                yield Window(rows, columns, torch.as_tensor(weight).to(like))


class TiledModel:
    """`model` on images of any size, evaluated on the windows of `tiling`; the same signature.

    The largest input that `model` sees is [B, 3, size, size]. The gradient with respect to x_t
    is exact (up to rounding) and costs one more evaluation of each window.
    """

    def __init__(self, model: Model, tiling: Tiling) -> None:
        self.model = model
        self.tiling = tiling

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """x_t [B, 3, H, W], timesteps [B] -> [B, 3 or 6, H, W]."""
        if len(self.tiling) == 1:
            return self.model(x_t, timesteps)
        return _Blended.apply(x_t, timesteps, self.model, self.tiling)


class _Blended(torch.autograd.Function):
    """Blended outputs of the windows; the graph of a window lives while it is differentiated."""

    @staticmethod
    def forward(ctx, x_t: Tensor, timesteps: Tensor, model: Model, tiling: Tiling) -> Tensor:
        ctx.save_for_backward(x_t, timesteps)
        ctx.model, ctx.tiling = model, tiling
        blended = None
        for rows, columns, weight in tiling.windows(x_t):
            output = model(x_t[..., rows, columns], timesteps)
            if blended is None:
                blended = output.new_zeros(*output.shape[:2], *x_t.shape[-2:])
            blended[..., rows, columns] += weight * output
        return blended

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x_t, timesteps = ctx.saved_tensors
        total = torch.zeros_like(x_t)
        for rows, columns, weight in ctx.tiling.windows(x_t):
            with torch.enable_grad():
                window = x_t[..., rows, columns].detach().requires_grad_()
                output = ctx.model(window, timesteps)
            pulled = weight * gradient[..., rows, columns]
            total[..., rows, columns] += torch.autograd.grad(output, window, pulled)[0]
        return total, None, None, None


@dataclass(frozen=True)
class WindowedProblem(Problem):
    """A problem whose norm and choice are taken per window of `tiling`.

    y_rows, y_columns: where the rows and columns of y [B, C, h, w] lie in the image, in pixels
    from its first one, float64 [h] and [w]; the measurement must be an image of the same scene,
    evenly sampled
    spacing: image pixels between neighbouring pixels of y
    """

    tiling: Tiling | None = None
    y_rows: np.ndarray | None = None
    y_columns: np.ndarray | None = None
    spacing: float = 1.0

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Weights of the windows along both axes of y: [windows, h] and [windows, w]."""

        def along(axis: Axis, places: Sequence[float]) -> Tensor:
            nearest = np.clip(np.round(places).astype(int), 0, axis.length - 1)
            return torch.as_tensor(axis.weights[:, nearest]).to(self.y)

        return along(self.tiling.rows, self.y_rows), along(self.tiling.columns, self.y_columns)

    @cached_property
    def _shares(self) -> Tensor:
        """Pixels of y in each window, as a share of what an image of one window has: [R]."""
        rows, columns = (weights.sum(1) for weights in self._weights)
        whole = (self.tiling.size / self.spacing) ** 2
        return torch.outer(rows, columns).flatten() / whole

    @cached_property
    def _unit(self) -> Tensor:
        """What the noise model makes of a residual of norm one: [B]."""
        return self.noiser.distance(self.y, self.y + 1) / self.y[0].numel() ** 0.5

    def _energies(self, residual: Tensor) -> Tensor:
        """Weighted squares [..., R] of residual [..., C, h, w] in the R windows."""
        rows, columns = self._weights
        return (rows @ residual.square().sum(-3) @ columns.T).flatten(-2)

    def distance(self, x0_hat: Tensor) -> Tensor:
        """Sum over windows of sqrt(share) * norm [B].

        With the share, a residual of equal strength everywhere pulls on each pixel as it would
        in an image of one window, however much the windows overlap.
        """
        energies = self._energies(self.y - self.operator(x0_hat))
        # The gradient of a square root is infinite at 0; a perfect fit must give 0.
        safe = torch.where(energies > 0, energies, 1.0)
        norms = torch.where(energies > 0, safe.sqrt(), 0.0)
        return self._unit * (norms * self._shares.sqrt()).sum(-1)

    def scores(self, residual: Tensor) -> Tensor:
        """[m, B, R] for R windows."""
        return self._energies(residual)

    def spread(self, values: Tensor) -> Tensor:
        """[B, R] -> [B, 1, H, W]: each pixel has the value of its strongest window."""
        rows, columns = self.tiling.rows, self.tiling.columns
        grid = values.unflatten(-1, (len(rows.starts), len(columns.starts)))
        down, across = (
            torch.as_tensor(axis.weights.argmax(0), device=values.device)
            for axis in (rows, columns)
        )
        return grid[:, down][:, :, across][:, None]
