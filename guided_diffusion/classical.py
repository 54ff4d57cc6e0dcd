"""Classical restorations: what operators can do about their measurements without a learned prior.

An operator names its own as `Operator.classical`. They are baselines of the tables, and what
dpps can start from (`init: classical`).
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import griddata
from torch import Tensor

from guided_diffusion.linear_solvers import tikhonov
from util.errors import UserError
from util.resizer import bicubic_matrix

if TYPE_CHECKING:
    from guided_diffusion.operator_base import LinearOperator

SIGMA = 0.01  # the noise on [-1, 1] that published tasks have, and the least that is assumed
_TIKHONOV_WEIGHT = 1e-3  # of || x ||^2, for noise of SIGMA
CG_ITERATIONS = 30


def regularised(
    operator: "LinearOperator", y: Tensor, sigma: float = SIGMA, x0: Tensor | None = None
) -> Tensor:
    """Tikhonov: argmin over x of || y - A x ||^2 + weight || x - x0 ||^2, images [B, 3, H, W].

    The weight grows with the noise's variance. Default x0: each channel's mean. In closed form
    where the operator has one, others by CG_ITERATIONS of conjugate gradients.
    """
    if x0 is None:
        x0 = y.mean((-2, -1), keepdim=True).expand_as(y)
    weight = _TIKHONOV_WEIGHT * max(sigma / SIGMA, 1.0) ** 2
    return tikhonov(operator, y, x0, weight, CG_ITERATIONS)


def bicubic(y: Tensor, height: int, width: int) -> Tensor:
    """y [B, C, h, w] enlarged to [B, C, height, width], a = -0.5, the border repeated."""
    rows, columns = (
        torch.as_tensor(bicubic_matrix(small, large / small)[:large]).to(y)
        for small, large in ((y.shape[-2], height), (y.shape[-1], width))
    )
    return rows @ y @ columns.T


def interpolation(y: Tensor, masks: Tensor) -> Tensor:
    """Linear interpolation between the kept pixels of y [B, 3, H, W], the nearest one outside
    their hull; masks [B, 1, H, W], nonzero where kept."""
    images = [
        _interpolate(image, mask)
        for image, mask in zip(y.cpu().numpy(), masks[:, 0].cpu().numpy(), strict=True)
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
