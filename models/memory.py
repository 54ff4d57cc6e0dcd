"""Whether a prior has learned its photographs by heart: samples beside their nearest neighbours.

A copy lies much nearer to one photograph than to the next ones. So the measure is the distance to
the nearest training photograph over that to the tenth nearest, held against the same of photographs
that were not trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.dataloader import find_images, read_image
from models.photo_store import held_out_split
from util.errors import UserError
from util.img_utils import to_grey, to_tensor

_NTH = 10


@dataclass(frozen=True)
class Neighbours:
    """Of images, the nearest training photographs, mirrored ones too."""

    nearest: Tensor  # [N, 3, H, W]
    ratios: Tensor  # [N], distance to the nearest over that to the tenth nearest

    @property
    def median_ratio(self) -> float:
        return self.ratios.median().item()


def neighbours(images: Tensor, training: Tensor) -> Neighbours:
    """The neighbours of images [N, 3, H, W] among training [M, 3, H, W], M at least 10, by the mean
    squared difference of their pixels."""
    both = torch.cat([training, training.flip(-1)])
    count = len(training)
    distances = torch.cdist(images.flatten(1), both.flatten(1))
    # A photograph and its mirror image count once.
    nearer = torch.minimum(distances[:, :count], distances[:, count:])
    ranked = nearer.sort(dim=1).values
    return Neighbours(both[distances.argmin(dim=1)], ranked[:, 0] / ranked[:, _NTH - 1])


def read_split(
    root: str | Path, holdout: int, size: int, channels: int = 3
) -> tuple[Tensor, Tensor]:
    """The photographs of size x size below `root`, as training with this `holdout` divides them:
    those trained on and those held out, each [N, channels, size, size].

    Raises UserError where there are too few, or where one is of another size.
    """
    parts = []
    for paths in held_out_split(find_images(root), holdout):
        images = [to_tensor(read_image(path)) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != (3, size, size):
                raise UserError(f"{path}: is not {size}x{size}, as the samples are")
        found = torch.stack(images) if images else torch.empty(0, 3, size, size)
        parts.append(to_grey(found) if channels == 1 else found)
    if len(parts[0]) < _NTH:
        raise UserError(f"{root}: fewer than {_NTH} photographs to compare with")
    return parts[0], parts[1]


def pairs(samples: Tensor, nearest: Tensor, columns: int) -> Sequence[Sequence[Tensor]]:
    """Rows of images: every sample beside its nearest photograph, `columns` pairs in a row."""
    flat = [image for pair in zip(samples, nearest, strict=True) for image in pair]
    width = 2 * columns
    return [flat[i : i + width] for i in range(0, len(flat), width)]
