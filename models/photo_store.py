"""Photographs to train on, and random crops of them."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.dataloader import read_image
from util.errors import UserError
from util.logger import get_logger


def held_out_split(paths: Sequence[Path], count: int) -> tuple[list[Path], list[Path]]:
    """`paths` without and with the `count` of them that are held out, chosen by their names alone.

    Raises UserError where nothing is left to train on.
    """
    if count >= len(paths):
        raise UserError(f"holdout: {count} of {len(paths)} photographs leave none to train on")
    by_name = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.name)).hexdigest())
    held_out = set(by_name[:count])
    return [p for p in paths if p not in held_out], [p for p in paths if p in held_out]


def readable(paths: Iterable[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """The photographs at `paths`, read one after the other; those that cannot be are named and left
    out."""
    for path in paths:
        try:
            yield path, read_image(path)
        except UserError as error:
            get_logger().warning("skipped: %s", error)


class PhotoStore:
    """Photographs in one flat uint8 buffer on the device; crops are gathered from it at once.

    Photographs with both sides from 2 * `min_side` are kept at half size as well. Crops come
    from those smaller than `min_side` with probability `small_share`, else from the others,
    in proportion to their pixels.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        largest_crop: int,
        device: torch.device,
        min_side: int = 256,
        small_share: float = 0.25,
    ) -> None:
        photos = []
        for _, photo in readable(paths):
            photos.append(np.asarray(photo))
            if min(photo.size) >= 2 * min_side:
                photos.append(np.asarray(photo.reduce(2)))
        found = len(photos)
        photos = [p for p in photos if min(p.shape[:2]) >= largest_crop]
        if len(photos) < found:
            too_small = found - len(photos)
            get_logger().warning(
                "%d photograph(s) or half sizes are below the largest crop", too_small
            )
        if not photos:
            raise UserError(
                f"{paths[0].parent}: no photograph is as large as the largest crop "
                f"({largest_crop} pixels); use larger photographs or smaller crops"
            )
        shapes = torch.tensor([p.shape[:2] for p in photos])
        sizes = shapes.prod(1)
        self.count = len(photos)
        self.shapes = shapes
        self.offsets = torch.cumsum(sizes, 0) - sizes
        self.pixels = torch.from_numpy(np.concatenate([p.reshape(-1, 3) for p in photos]))
        self.pixels = self.pixels.to(device)
        small = shapes.amin(1) < min_side
        self.weights = sizes.double()
        if small.any() and not small.all():
            for group, share in ((small, small_share), (~small, 1 - small_share)):
                self.weights[group] *= share / self.weights[group].sum()

    def crops(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """`count` random crops, flipped at random: float32 [count, 3, size, size] in [-1, 1]."""
        picks = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        free = self.shapes[picks] - size + 1
        corner = (torch.rand(count, 2, generator=generator) * free).long()
        flip = torch.rand(count, generator=generator) < 0.5
        along = torch.arange(size)
        rows = corner[:, :1] + along
        columns = corner[:, 1:] + torch.where(flip[:, None], along.flip(0), along)
        width = self.shapes[picks, 1][:, None, None]
        index = self.offsets[picks][:, None, None] + rows[:, :, None] * width + columns[:, None]
        crops = self.pixels[index.to(self.pixels.device)]
        return crops.permute(0, 3, 1, 2).float() / 127.5 - 1
