"""Augmentation that does not leak into what a prior draws (Karras et al. 2022, appendix F.2).

Training crops are moved, turned, stretched and recoloured at random, and the network is told how;
asked with a label of zeros, as always when it restores, it answers for photographs as they are.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.img_utils import LUMINANCE

# Standard deviation of each change, in the units of its label.
_SHIFT = 1 / 16  # of the side
_SCALE = 0.15  # octaves
_STRETCH = 0.1  # octaves, of width against height
_TURN = math.pi / 15
_BRIGHTNESS = 0.08  # of the range [-1, 1]
_CONTRAST = 0.15  # octaves
_SATURATION = 0.25  # octaves
LABELS = 8


@dataclass(frozen=True)
class Augmentation:
    """Random changes of crops, each applied to an image with `probability`."""

    probability: float

    def __call__(self, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Changed crops [B, 3, H, W] and what was done to them, labels [B, LABELS].

        A label is 0 where a change was not applied. Edges are continued by reflection.
        """
        labels = torch.randn(len(crops), LABELS, generator=generator)
        chances = torch.rand(len(crops), LABELS - 1, generator=generator) < self.probability
        # The two shifts are one change.
        labels = (labels * torch.cat([chances[:, :1], chances], dim=1)).to(crops)
        return self._coloured(self._moved(crops, labels), labels), labels

    @staticmethod
    def _moved(crops: Tensor, labels: Tensor) -> Tensor:
        shift, scale = labels[:, :2] * 2 * _SHIFT, torch.exp2(labels[:, 2] * _SCALE)
        stretch, turn = torch.exp2(labels[:, 3] * _STRETCH), labels[:, 4] * _TURN
        changed = (labels[:, :5] != 0).any(1)
        # The sampling grid asks where in the crop a pixel of the result comes from.
        cos, sin = turn.cos() / scale, turn.sin() / scale
        columns = [cos * stretch, -sin, shift[:, 0], sin * stretch, cos, shift[:, 1]]
        matrix = torch.stack(columns, dim=1).reshape(-1, 2, 3)
        grid = F.affine_grid(matrix, list(crops.shape), align_corners=False)
        moved = F.grid_sample(
            crops, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
        return torch.where(changed[:, None, None, None], moved, crops)

    @staticmethod
    def _coloured(crops: Tensor, labels: Tensor) -> Tensor:
        brightness, contrast, saturation = labels[:, 5:, None, None, None].unbind(1)
        luma = torch.tensor(LUMINANCE).to(crops)[:, None, None]
        grey = (crops * luma).sum(1, keepdim=True)
        crops = grey + (crops - grey) * torch.exp2(saturation * _SATURATION)
        return crops * torch.exp2(contrast * _CONTRAST) + brightness * _BRIGHTNESS


def label_embedding(width: int) -> nn.Linear:
    """What tells a network of embedding width `width` of the labels; at first it says nothing.

    It takes part in the training alone: without bias, labels of zeros add nothing.
    """
    embedding = nn.Linear(LABELS, width, bias=False)
    nn.init.zeros_(embedding.weight)
    return embedding
