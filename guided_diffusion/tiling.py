"""Restoring an image that is larger than the model, by overlapping windows kept consistent.

There is one x_t, one noise and one measurement for the whole image. At every step the network
sees windows of the model's size, one after the other, and its outputs are blended with smooth
weights that sum to one (`TiledModel`); x0_hat, the mean and the variance then follow for the
whole image, and A is applied to the whole blended x0_hat. In the backward pass each window is
computed again and its vector-Jacobian product taken, so memory holds the graph of one window.

How norm, guidance and choice are taken (`WindowExtent`): by window, as an image of the model's
size has them. The distance is a sum of norms, each weighted as the window's output is, so that
the strength of the guidance follows the residual around a pixel and changes smoothly. The choice
is made for each part of the image where one window weighs most: candidates differ by white
noise, which has no borders, and one choice for the whole image would have to serve so many
pixels that it helped none of them. For an image of one window all of this is the ordinary step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.framing import Frame
from guided_diffusion.gaussian_diffusion import Model
from guided_diffusion.noise_models import NoiseModel
from guided_diffusion.pullback import pullback
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
        self._on_device: dict[tuple, list[tuple[slice, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def windows(self, like: Tensor) -> Iterator[Window]:
        """The windows, with weights of the type and on the device of `like`."""
        for rows, down in self._parts(self.rows, like):
            for columns, across in self._parts(self.columns, like):
                yield Window(rows, columns, torch.outer(down, across))

    def _parts(self, axis: Axis, like: Tensor) -> list[tuple[slice, Tensor]]:
        """Each window of an axis and its weights [size], copied to the device once."""
        key = (axis, like.device, like.dtype)
        if key not in self._on_device:
            parts = [slice(start, start + axis.size) for start in axis.starts]
            self._on_device[key] = [
                (part, torch.as_tensor(row[part]).to(like))
                for part, row in zip(parts, axis.weights, strict=True)
            ]
        return self._on_device[key]


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
        blended: Any = None
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
            total[..., rows, columns] += pullback(output, window, pulled)
        return total, None, None, None


class WindowExtent:
    """Norm and choice by window; takes the place of `WholeImage`.

    The image is `frame`'s part of the tiled pixels; y [B, C, h, w] is a picture of it at any
    scale, the `border` outermost pixels of which are left out.

    A norm belongs to a window's size: its gradient has a length that does not depend on the number
    of pixels. A window that shares its pixels with others, or hangs over the image, counts as
    sqrt(its pixels / size^2) of one, which keeps a guidance scale's meaning.
    """

    def __init__(self, tiling: Tiling, frame: Frame, y: Tensor, border: int = 0) -> None:
        rows = _AxisExtent.lay(tiling.rows, frame.top, frame.height, y.shape[-2], border)
        columns = _AxisExtent.lay(tiling.columns, frame.left, frame.width, y.shape[-1], border)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array, dtype=y.dtype, device=y.device)

        self._blending = tensor(tiling.rows.weights), tensor(tiling.columns.weights)
        self._weights = tensor(rows.weights), tensor(columns.weights)
        self._parts = tensor(rows.parts), tensor(columns.parts)
        self._owners = [torch.as_tensor(axis.owners, device=y.device) for axis in (rows, columns)]
        self._share = tensor(np.sqrt(np.outer(rows.pixels, columns.pixels)) / tiling.size)

    def distances(self, noiser: NoiseModel, y: Tensor, measured: Tensor) -> Tensor:
        """share || y - measured ||_window of the windows: [B, rows, columns]."""
        return self._share * noiser.distance(y, measured, self.measured_sums)

    def expected_distances(self, noiser: NoiseModel, y: Tensor, known: Tensor) -> Tensor:
        return self._share * noiser.expected_distance(known, self.measured_sums, y)

    def image_sums(self, values: Tensor) -> Tensor:
        return _sums(values, *self._blending)

    def measured_sums(self, values: Tensor) -> Tensor:
        """As image_sums, of values [..., C, h, w] like y: [..., rows, columns]."""
        return _sums(values, *self._weights)

    def blend(self, values: Tensor) -> Tensor:
        """Means of values [B, rows, columns] with the windows' weights: [B, 1, H, W]."""
        rows, columns = self._blending
        return (rows.T @ values @ columns)[:, None]

    def scores(self, residuals: Tensor) -> Tensor:
        """Squared norms [m, B, rows, columns] of the residuals [m, B, C, h, w] in each part."""
        return _sums(residuals.square(), *self._parts)

    def at_pixels(self, values: Tensor) -> Tensor:
        """Values of parts [B, rows, columns] at the tiled pixels: [B, 1, H, W]."""
        rows, columns = self._owners
        return values[:, rows][:, :, columns][:, None]


def _sums(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted sums over [..., C, h, w] for each window: [..., len(rows), len(columns)]."""
    return rows @ values.sum(-3) @ columns.T


class _AxisExtent(NamedTuple):
    """Windows along one axis, at the pixels of the tiled image and of the measurement."""

    owners: np.ndarray  # [tiled pixels], the window that weighs most
    pixels: np.ndarray  # [windows], weighted number of pixels of the image
    weights: np.ndarray  # [windows, pixels of y]
    parts: np.ndarray  # [windows, pixels of y], 1 where the window weighs most

    @classmethod
    def lay(cls, axis: Axis, first: int, length: int, measured: int, border: int) -> "_AxisExtent":
        """The image is the tiled pixels from `first`, `length` of them; `measured`: pixels of y
        without its border."""
        whole = measured + 2 * border
        at = first + ((np.arange(whole) + 0.5) * length / whole).astype(int)
        at = at[border : border + measured]
        owners = axis.weights.argmax(axis=0)
        pixels = axis.weights[:, first : first + length].sum(axis=1)
        parts = np.arange(len(axis.starts))[:, None] == owners[at]
        return cls(owners, pixels, axis.weights[:, at], parts)


def distance_factor(height: int, width: int, size: int) -> float:
    """Factor of the distance that keeps a guidance scale's meaning for height x width.

    The scale belongs to images of size x size. The gradient of a norm has a length that does not
    depend on the number N of pixels, so each pixel's share of it goes with 1 / sqrt(N).
    """
    return sqrt(height * width) / size
