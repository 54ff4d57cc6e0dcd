"""Classical restorations: what operators can do about their measurements without a learned prior.

An operator names its own as `Operator.classical`, a baseline of the tables.
"""

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.linear_solvers import tikhonov
from guided_diffusion.operator_base import LinearOperator
from util.errors import UserError
from util.resizer import bicubic_matrix

# Of the baseline, chosen for noise of 0.01 on [-1, 1]: what is left of the noise can be looked at.
TIKHONOV_WEIGHT = 1e-3
CG_ITERATIONS = 30


def deconvolution(operator: LinearOperator, y: Tensor) -> Tensor:
    """Tikhonov: argmin over x of || y - A x ||^2 + weight || x - mean ||^2, images [B, 3, H, W].

    `mean` is each channel's. In closed form where the operator has one, others by CG_ITERATIONS
    of conjugate gradients.
    """
    return tikhonov(operator, y, _means(y), TIKHONOV_WEIGHT, CG_ITERATIONS)


def _means(y: Tensor) -> Tensor:
    return y.mean((-2, -1), keepdim=True).expand_as(y)


def bicubic(y: Tensor, factor: int, height: int, width: int) -> Tensor:
    """y [B, C, h, w] enlarged by `factor`, a = -0.5, the border repeated, and cut to
    [B, C, height, width]."""
    rows, columns = (
        torch.as_tensor(bicubic_matrix(small, float(factor))[:large]).to(y)
        for small, large in ((y.shape[-2], height), (y.shape[-1], width))
    )
    return rows @ y @ columns.T


def interpolation(y: Tensor, masks: Tensor) -> Tensor:
    """Linear interpolation between the kept pixels of y [B, 3, H, W], the nearest one outside
    their hull; masks [B, 1, H, W], nonzero where kept, at least one in every image."""
    images = [
        _interpolate(image, mask)
        for image, mask in zip(y.cpu().numpy(), masks[:, 0].cpu().numpy(), strict=True)
    ]
    return torch.from_numpy(np.stack(images)).to(y)


def _interpolate(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """image [3, H, W], mask [H, W], nonzero where kept -> [3, H, W]."""
    known = np.argwhere(mask > 0)
    if not len(known):
        raise UserError("inpainting: the mask keeps no pixel, so there is nothing to begin from")
    values = image[:, mask > 0].T
    grid = tuple(np.indices(mask.shape))
    from scipy.interpolate import griddata  # slow to import
    from scipy.spatial import QhullError

    nearest = griddata(known, values, grid, method="nearest")
    try:
        linear = griddata(known, values, grid, method="linear")
    except QhullError:  # fewer than three points, or all on one line: no triangle between them
        return nearest.transpose(2, 0, 1)
    return np.where(np.isnan(linear), nearest, linear).transpose(2, 0, 1)
