"""Colour profiles: sRGB as a profile, and pixels of other profiles as sRGB."""

import io
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import imagecodecs
import numpy as np
from PIL import Image, ImageCms

from util.logger import get_logger

_TRANSFORM_FLAGS = 0x0100  # lcms: no tables in place of the profile's curves
_SAME_COLOUR = 1  # levels of 255, by which profiles of the same space differ


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, the same bytes at all times."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes([0x07, 0xD0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])  # date: 1 January 2000
    profile[84:100] = bytes(16)  # checksum, which the date is part of; zero: not computed
    return bytes(profile)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile's space to sRGB for Pillow's `mode`; None where they are the same.

    Raises PyCMSError and its kin for profiles that cannot be used.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(source, target, mode, "RGB", intent)
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, 9 if mode == "RGB" else 64).round().astype(np.uint8)
    axes = np.meshgrid(*[levels] * len(mode), indexing="ij")
    colours = np.stack(axes, -1).reshape(1, -1, len(mode))
    probe = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
    found = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
    expected = np.asarray(probe.convert("RGB")).astype(int)
    return transform if np.abs(found - expected).max() > _SAME_COLOUR else None


def eight_bit_to_srgb(image: Image.Image, profile: bytes, path: str | Path) -> Image.Image:
    """An RGB or grey image of this ICC profile in sRGB; as it is, with a warning that names `path`,
    where the profile cannot be used."""
    try:
        transform = _transform(profile, image.mode)
        return image if transform is None else cast(Any, ImageCms.applyTransform)(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return _unprofiled(image, path, error)


def deep_to_srgb(pixels: np.ndarray, profile: bytes, path: str | Path) -> np.ndarray:
    """The same for uint16 pixels [H, W] or [H, W, 3]."""
    space = "rgb" if pixels.ndim == 3 else "gray"
    try:
        if _transform(profile, "RGB" if space == "rgb" else "L") is None:
            return pixels
        return imagecodecs.cms_transform(
            np.ascontiguousarray(pixels),
            profile,
            srgb_profile(),
            colorspace=space,
            outcolorspace="rgb",
            intent=int(ImageCms.Intent.RELATIVE_COLORIMETRIC),
            flags=_TRANSFORM_FLAGS,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, RuntimeError) as error:
        return _unprofiled(pixels, path, error)


def _unprofiled(image: Any, path: str | Path, error: Exception) -> Any:
    get_logger().warning("%s: its colour profile cannot be used (%s); taken as sRGB", path, error)
    return image


def inks_to_srgb(image: Image.Image, profile: bytes) -> np.ndarray:
    """A CMYK image in sRGB; by Pillow's rule of thumb where the profile is none of inks."""
    try:
        transform = _transform(profile, "CMYK")
        return np.asarray(ImageCms.applyTransform(image, cast(Any, transform)))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return np.asarray(image.convert("RGB"))
