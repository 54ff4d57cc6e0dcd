"""What a prior has to beat: the measurement itself, and the classical method of each task.

Measurements are y [B, ...] of images in [-1, 1]; baselines return [B, 3, H, W].
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.interpolate import griddata
from torch import Tensor

from guided_diffusion.linear_solvers import tikhonov
from guided_diffusion.measurements import (
    GaussianBlur,
    Inpainting,
    KernelBlur,
    Operator,
    SuperResolution,
)
from util.errors import UnsupportedError, UserError
from util.registry import Registry
from util.resizer import bicubic_matrix

# Weights of || x ||^2 in the Tikhonov problems, for noise of sigma 0.01 on [-1, 1].
TIKHONOV_WEIGHT = 1e-3
CG_ITERATIONS = 30

BASELINES: Registry[Tensor] = Registry("baseline", frozenset({"y", "operator"}))


@BASELINES.register("measurement")
def measurement(y: Tensor, operator: Operator) -> Tensor:
    """y as an image; smaller ones are enlarged by nearest neighbour."""
    image = operator.initial(y)
    if image is None:
        raise UnsupportedError(f"{type(operator).__name__}: the measurement is not an image")
    return image


@BASELINES.register("classical")
def classical(y: Tensor, operator: Operator) -> Tensor:
    """The usual method without a learned prior for this operator."""
    for kind, method in _CLASSICAL.items():
        if isinstance(operator, kind):
            return method(y, operator)
    known = ", ".join(kind.__name__ for kind in _CLASSICAL)
    raise UnsupportedError(
        f"{type(operator).__name__}: no classical baseline; there is one for {known}"
    )


def _bicubic(y: Tensor, operator: SuperResolution) -> Tensor:
    """Bicubic enlargement (a = -0.5), the border repeated."""
    c = operator.context
    rows = c.tensor(bicubic_matrix(y.shape[-2], c.height / y.shape[-2])[: c.height])
    columns = c.tensor(bicubic_matrix(y.shape[-1], c.width / y.shape[-1])[: c.width])
    return rows @ y @ columns.T


def _interpolation(y: Tensor, operator: Inpainting) -> Tensor:
    """Linear interpolation between the kept pixels, the nearest one outside their hull."""
    images = [
        _interpolate(image, mask)
        for image, mask in zip(y.cpu().numpy(), operator.masks[:, 0].cpu().numpy(), strict=True)
    ]
    return torch.from_numpy(np.stack(images)).to(y)


def _interpolate(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """image [3, H, W], mask [H, W], nonzero where kept -> [3, H, W]."""
    known = np.argwhere(mask > 0)
    if len(known) < 4:
        raise UserError(f"inpainting: {len(known)} kept pixels are too few to interpolate")
    values = image[:, mask > 0].T
    grid = tuple(np.indices(mask.shape))
    linear = griddata(known, values, grid, method="linear")
    nearest = griddata(known, values, grid, method="nearest")
    return np.where(np.isnan(linear), nearest, linear).transpose(2, 0, 1)


def _deblur(y: Tensor, operator: GaussianBlur | KernelBlur) -> Tensor:
    """Tikhonov: min || y - A x ||^2 + weight || x - mean ||^2, from each channel's mean.

    Gaussian blur in closed form, others by CG_ITERATIONS of conjugate gradients.
    """
    mean = y.mean((-2, -1), keepdim=True).expand_as(y)
    return tikhonov(operator, y, mean, TIKHONOV_WEIGHT, CG_ITERATIONS)


_CLASSICAL: dict[type[Operator], Callable[..., Tensor]] = {
    SuperResolution: _bicubic,
    Inpainting: _interpolation,
    GaussianBlur: _deblur,
    KernelBlur: _deblur,
}
