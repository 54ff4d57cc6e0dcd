"""The masks of inpainting: drawn at random, or read from files."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data.arrays import ARRAY_SUFFIXES, read_array
from data.image_files import IMAGE_SUFFIXES
from util.errors import UserError
from util.files import shown

_MASK_SUFFIXES = IMAGE_SUFFIXES | ARRAY_SUFFIXES
_LEAST_KEPT = 1e-3  # share of the pixels; a mask that keeps less says the opposite of what is meant
# Up to this sigma known pixels are better than anything that a restoration makes of them.
_EXACT_SIGMA = 0.01


@dataclass(frozen=True)
class MaskConfig:
    """`mask_opt` of a task config."""

    mask_type: Literal["random", "box", "extreme"] = "random"
    mask_prob_range: tuple[float, float] = (0.7, 0.9)  # share of pixels dropped
    mask_len_range: tuple[int, int] = (128, 129)  # side of the box, upper bound exclusive
    margin: tuple[int, int] = (16, 16)  # distance of the box from the border
    image_size: int | None = None  # the published configs state it; masks follow the images
    mask: str | None = None  # image file, or folder of them by image name
    mask_is: Literal["kept", "damage"] = "kept"  # what white (1) means in `mask`
    # Copy the known pixels of the measurement into the result; None: where their noise is zero, or
    # at most 0.01 in photographs that are damaged already
    keep_known: bool | None = None

    def __post_init__(self) -> None:
        low, high = self.mask_prob_range
        if not 0 <= low <= high <= 1:
            raise UserError(f"mask_prob_range: expected 0 <= low <= high <= 1, got {low}, {high}")
        low, high = self.mask_len_range
        if not 0 < low < high or min(self.margin) < 0:
            raise UserError(
                f"mask_len_range: expected 0 < low < high (high is excluded), got {low}, {high}; "
                "margin must not be negative"
            )
        if self.mask is not None and not os.path.exists(self.mask):
            raise UserError(f"{shown(self.mask)}: no such mask file or folder of masks")

    @property
    def folder(self) -> Path | None:
        """The folder of masks, where there is one mask for each image."""
        return Path(self.mask) if self.mask is not None and os.path.isdir(self.mask) else None

    def keeps_known(self, sigma: float | None, measured: bool) -> bool:
        """Whether known pixels are copied into the result.

        sigma: of the noise, None where it is none that has one; measured: of files
        """
        if self.keep_known is not None:
            return self.keep_known
        return sigma is not None and (sigma == 0 or (measured and sigma <= _EXACT_SIGMA))


def random_mask(
    config: MaskConfig, height: int, width: int, rng: np.random.RandomState
) -> np.ndarray:
    """A mask drawn as `config` says: uint8 [height, width], 1 where the pixel is kept."""
    if config.mask_type == "random":
        return _random_pixels(config.mask_prob_range, height, width, rng)
    box = _box(config, height, width, rng)
    return box if config.mask_type == "box" else 1 - box


def _random_pixels(
    prob_range: tuple[float, float], height: int, width: int, rng: np.random.RandomState
) -> np.ndarray:
    dropped_share = rng.uniform(*prob_range)
    total = height * width
    mask = np.ones(total, dtype=np.uint8)
    mask[rng.choice(total, int(total * dropped_share), replace=False)] = 0
    return mask.reshape(height, width)


def _box(config: MaskConfig, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
    box_height = rng.randint(*config.mask_len_range)
    box_width = rng.randint(*config.mask_len_range)
    margin_y, margin_x = config.margin
    free_y, free_x = height - margin_y - box_height, width - margin_x - box_width
    if free_y <= margin_y or free_x <= margin_x:
        raise UserError(
            f"mask_opt: a box of {box_height}x{box_width} with margin {config.margin} does not "
            f"fit into {height}x{width}; make mask_len_range or margin smaller"
        )
    top, left = rng.randint(margin_y, free_y), rng.randint(margin_x, free_x)
    mask = np.ones((height, width), dtype=np.uint8)
    mask[top : top + box_height, left : left + box_width] = 0
    return mask


def find_mask(folder: Path, name: str) -> Path:
    """The file of the mask of the image called `name`: its path below `folder`, any ending.

    UserError where there is none, or more than one.
    """
    stem = Path(name).with_suffix("")
    around = folder / stem.parent
    named = around.glob(f"{glob.escape(stem.name)}.*")  # "a.*" also finds a.b.png
    found = sorted(p for p in named if p.stem == stem.name and p.suffix.lower() in _MASK_SUFFIXES)
    if len(found) != 1:
        what = f"several masks ({', '.join(p.name for p in found)})" if found else "no mask"
        raise UserError(f"{folder}: {what} for {name} (looked for {stem}.* as image or array)")
    return found[0]


def read_mask(
    path: str, name: str, height: int, width: int, mask_is: Literal["kept", "damage"] = "kept"
) -> np.ndarray:
    """A mask from a file, or from the folder `path` by image name: uint8, 1 where kept.

    mask_is: what white, or a value above 0.5, means in the file

    Raises UserError where it is missing or not [height, width].
    """
    file = Path(path)
    if file.is_dir():
        file = find_mask(file, name)
    mask = read_array(str(file), "mask")
    if mask.shape != (height, width):
        raise UserError(
            f"{file}: the mask is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}"
        )
    white = (mask > 0.5).astype(np.uint8)
    return white if mask_is == "kept" else 1 - white


def check_kept(mask: np.ndarray, config: MaskConfig) -> None:
    """UserError for a mask from a file that keeps next to nothing."""
    if mask.mean() < _LEAST_KEPT:
        other = "damage" if config.mask_is == "kept" else "kept"
        raise UserError(
            f"the mask keeps {mask.mean():.2%} of the pixels, white being read as "
            f'"{config.mask_is}"; if white means the opposite, use --mask_is {other}'
        )
