"""Photographs from folders: found recursively, in a fixed order, as RGB."""

import os
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from util.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


def find_images(root: str | Path) -> list[Path]:
    """All image files below `root`, sorted by path; UserError if there are none."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images")
    found = [
        Path(folder) / name
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    ]
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{root}: no images in this folder or below it (looked for {kinds})")
    return sorted(found)


def read_image(path: str | Path) -> Image.Image:
    """The image in `path` as RGB, upright by its EXIF orientation; UserError if unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(
            f"{path}: more pixels than are safe to open ({Image.MAX_IMAGE_PIXELS:,})"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: not a readable image ({reason})") from None
