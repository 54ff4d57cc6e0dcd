"""An operator that is not linear: what JPEG loses.

    python3 sample_condition.py --plugin examples/plugin_jpeg.py --data_root PHOTOGRAPHS \\
        --task denoising --set "task.measurement.operator={name: jpeg, quality: 10}" --steps 25
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import dct
from torch import Tensor

from guided_diffusion.measurements import OPERATORS, Operator, OperatorContext
from util.errors import UserError
from util.img_utils import LUMINANCE

_SIDE = 8  # pixels of a block


@OPERATORS.register("jpeg")
class Jpeg(Operator):
    """Cosine coefficients of 8x8 blocks, rounded to multiples of the tables that Pillow writes.

    quality: 1 to 100

    Colours have the resolution of the luminance (4:4:4). Rounding has the derivative 1 (a
    "straight-through" one): its own is 0, which would tell nothing of where to go.
    """

    def __init__(self, quality: int = 10, *, context: OperatorContext) -> None:
        super().__init__(context)
        if not 1 <= quality <= 100:
            raise UserError(f"jpeg: quality must be from 1 to 100, got {quality}")
        planes = np.eye(1)
        if context.channels == 3:
            red, _, blue = np.eye(3)
            y = np.array(LUMINANCE)
            planes = np.stack([y, (blue - y) / 1.772, (red - y) / 1.402])  # ITU-R BT.601
        self._planes = context.tensor(planes)
        self._colours = context.tensor(np.linalg.inv(planes))
        luminance, chrominance = _tables(quality)
        tables = np.stack([luminance, chrominance, chrominance])[: context.channels]
        self._tables = context.tensor(tables[:, None, :, None])  # [C, 1, 8, 1, 8]
        self._cosines = context.tensor(dct(np.eye(_SIDE), norm="ortho"))

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        grey_levels = 127.5 * x.reshape(-1, *x.shape[-3:]) - 0.5  # about 128 of 255
        full = F.pad(grey_levels, (0, -width % _SIDE, 0, -height % _SIDE), mode="replicate")
        planes = torch.einsum("pc,bchw->bphw", self._planes, full)
        blocks = planes.unflatten(3, (-1, _SIDE)).unflatten(2, (-1, _SIDE))  # [B, C, h, 8, w, 8]
        c = self._cosines
        levels = torch.einsum("bphiwj,ik,jl->bphkwl", blocks, c, c) / self._tables
        kept = (levels + (levels.round() - levels).detach()) * self._tables
        blocks = torch.einsum("bphkwl,ik,jl->bphiwj", kept, c, c)
        planes = blocks.flatten(4).flatten(2, 3)[..., :height, :width]
        decoded = torch.einsum("cp,bphw->bchw", self._colours, planes)
        return ((decoded + 0.5) / 127.5).reshape(x.shape)


def _tables(quality: int) -> list[np.ndarray]:
    """Of luminance and chrominance, each [8, 8]."""
    file = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE)).save(file, "JPEG", quality=quality)
    found = Image.open(file).quantization  # type: ignore[attr-defined]
    return [np.array(found[i], dtype=np.float64).reshape(_SIDE, _SIDE) for i in (0, 1)]
