"""Images as tensors in [-1, 1], as 8-bit pixels, and the masks of inpainting."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from util.errors import UserError
from util.image_files import read_image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"})
_MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy", ".pt", ".pth"}


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> float32 [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def to_pixels(x: Tensor) -> np.ndarray:
    """[3, H, W] in [-1, 1] -> uint8 [H, W, 3]; values outside are clamped."""
    scaled = (x.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).numpy()


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """guided-diffusion's square crop: the short side is scaled to `size`, the centre kept."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class MaskConfig:
    """`mask_opt` of a task config."""

    mask_type: Literal["random", "box", "extreme"] = "random"
    mask_prob_range: tuple[float, float] = (0.7, 0.9)  # share of pixels dropped
    mask_len_range: tuple[int, int] = (128, 129)  # side of the box, upper bound exclusive
    margin: tuple[int, int] = (16, 16)  # distance of the box from the border
    image_size: int | None = None  # the published configs state it; masks follow the images
    mask: str | None = None  # image file, or folder of them by image name: white is kept

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
        if self.mask is not None and not Path(self.mask).exists():
            raise UserError(f"{self.mask}: no such mask file or folder of masks")

    @property
    def folder(self) -> Path | None:
        """The folder of masks, where there is one mask for each image."""
        return Path(self.mask) if self.mask is not None and Path(self.mask).is_dir() else None


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


def read_array(path: str, what: str) -> np.ndarray:
    """A two-dimensional float array from .npy, .pt or an image (grey, in [0, 1])."""
    try:
        if path.endswith(".npy"):
            array = np.load(path, allow_pickle=False)
        elif path.endswith((".pt", ".pth")):
            array = torch.load(path, map_location="cpu", weights_only=True).numpy()
        else:
            if not Path(path).is_file():
                raise FileNotFoundError(path)
            array = np.asarray(read_image(path).convert("L"), dtype=np.float64) / 255
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what} file") from None
    except UserError:
        raise
    except Exception as error:  # readers raise many kinds; all mean the same to the user
        raise UserError(f"{path}: not a readable {what} ({error})") from None
    array = np.squeeze(np.asarray(array, dtype=np.float64))
    if array.ndim != 2 or not np.isfinite(array).all():
        raise UserError(
            f"{path}: a {what} must be a two-dimensional array of finite numbers, "
            f"got shape {array.shape}"
        )
    return array


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


def read_mask(path: str, name: str, height: int, width: int) -> np.ndarray:
    """A mask from a file, or from the folder `path` by image name: uint8, 1 where kept.

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
    return (mask > 0.5).astype(np.uint8)
