"""Restoring an image that is larger than the model, by overlapping windows kept consistent.

There is one x_t, one noise and one measurement for the whole image. At every step the network
sees windows of the model's size, one after the other, and its outputs are blended with smooth
weights that sum to one (`TiledModel`); x0_hat, the mean and the variance then follow for the
whole image, and A is applied to the whole blended x0_hat. In the backward pass each window is
computed again and its vector-Jacobian product taken, so memory holds the graph of one window.

How norm, guidance and choice are taken: all three over the whole image, as the published method
takes them, which leaves no borders between windows. The guidance follows the gradient of a norm,
whose length does not depend on the number of pixels; over an image of k windows' pixels it would
move each pixel by 1 / sqrt(k) of what it does in an image of the model's size. The distance is
therefore multiplied by sqrt(k) (`distance_factor`), so that a guidance scale means the same for
every size. For an image of one window all of this is the ordinary step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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


def distance_factor(height: int, width: int, size: int) -> float:
    """Factor of the distance that keeps a guidance scale's meaning for height x width.

    The scale belongs to images of size x size. The gradient of a norm has a length that does not
    depend on the number N of pixels, so each pixel's share of it goes with 1 / sqrt(N).
    """
    return sqrt(height * width) / size
