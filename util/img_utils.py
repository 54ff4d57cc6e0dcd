"""Images as tensors in [-1, 1] and as pixels."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """RGB image, or uint8 or uint16 pixels [H, W, 3] -> float32 [3, H, W] in [-1, 1]."""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    half = np.float32(np.iinfo(pixels.dtype).max / 2)
    # One copy, channel by channel: photographs may be large.
    x = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
    for channel, values in enumerate(x):
        np.divide(pixels[..., channel], half, out=values, dtype=np.float32)
    x -= 1
    return torch.from_numpy(x)


def to_pixels(x: Tensor, depth: int = 8) -> np.ndarray:
    """[3, H, W] in [-1, 1] -> uint8 or uint16 [H, W, 3], by depth; values outside are clamped."""
    half, kind = (127.5, np.uint8) if depth == 8 else (32767.5, np.uint16)
    scaled = (x.detach().float().cpu().clamp(-1, 1) + 1) * half
    return scaled.round().permute(1, 2, 0).numpy().astype(kind)


LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def to_grey(x: Tensor) -> Tensor:
    """The luminance of images [..., 3, H, W], [..., 1, H, W]; of grey ones their values."""
    red, green, blue = (x[..., i : i + 1, :, :] for i in range(3))
    return red + LUMINANCE[1] * (green - red) + LUMINANCE[2] * (blue - red)


def to_colour(x: Tensor) -> Tensor:
    """Images [..., 1 or 3, H, W] as [..., 3, H, W]."""
    return x.expand(*x.shape[:-3], 3, *x.shape[-2:])


def resampled(pixels: np.ndarray, how: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Pixels [H, W, 3] after `how`, which scales and cuts a Pillow image; uint16 pixels are taken
    channel by channel as floats, since Pillow has no such colour images."""
    if pixels.dtype == np.uint8:
        return np.asarray(how(Image.fromarray(pixels)))
    channels = [
        np.asarray(how(Image.fromarray(pixels[..., c].astype(np.float32)))) for c in range(3)
    ]
    return np.stack(channels, -1).clip(0, np.iinfo(np.uint16).max).round().astype(np.uint16)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """guided-diffusion's square crop: the short side is scaled to `size`, the centre kept."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
