"""Image files of any kind as 8-bit RGB: depth, colour model, transparency and orientation."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from util.errors import UserError

# Pillow's names for 16-bit grey, by byte order, and 32-bit integers that hold 16-bit values.
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_GREY_MODES = _DEEP_MODES | {"1", "L", "LA", "La", "F"}


class Picture(NamedTuple):
    """What an image file holds."""

    image: Image.Image  # RGB, upright; where `alpha` is not None, not yet put on a background
    grey: bool  # the file has no colour channels
    alpha: Image.Image | None  # "L": 255 is opaque


def read_picture(path: str | Path) -> Picture:
    """The image in `path`, upright by its EXIF orientation.

    16-bit values are scaled, not clipped; floats must lie in [0, 1]. Raises UserError for a file
    that is unreadable, too large to be opened safely, or of unknown range.
    """
    try:
        with Image.open(path) as image:
            _check_pixels(image, path)
            return _interpret(ImageOps.exif_transpose(image), path)
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: not a readable image ({reason})") from None


def _check_pixels(image: Image.Image, path: str | Path) -> None:
    """Pillow itself refuses twice as many pixels and warns before, by a filter that threads
    share."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _too_large(path)


def _too_large(path: str | Path) -> UserError:
    return UserError(f"{path}: more pixels than are safe to open ({Image.MAX_IMAGE_PIXELS:,})")


def read_image(path: str | Path) -> Image.Image:
    """The image in `path` as RGB, upright, transparent parts on white; UserError as above."""
    picture = read_picture(path)
    if picture.alpha is None:
        return picture.image
    white = Image.new("RGB", picture.image.size, "white")
    return Image.composite(picture.image, white, picture.alpha)


def is_grey(path: str | Path) -> bool:
    """Whether the file has no colour channels; reads the header alone. False if unreadable."""
    try:
        with Image.open(path) as image:
            return image.mode in _GREY_MODES
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def has_transparency(path: str | Path) -> bool:
    """Whether parts of the image may be transparent, by the header; False if unreadable."""
    try:
        with Image.open(path) as image:
            return image.has_transparency_data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _interpret(image: Image.Image, path: str | Path) -> Picture:
    grey = image.mode in _GREY_MODES
    if image.mode in _DEEP_MODES or image.mode == "F":
        image = _to_eight_bit(image, path)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    return Picture(image.convert("RGB"), grey, alpha)


def _to_eight_bit(image: Image.Image, path: str | Path) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        raise UserError(
            f"{path}: values from {values.min():g} to {values.max():g}, expected 0 to {white:g}; "
            "save it with 8 or 16 bits"
        )
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))
