"""Image files of any kind as sRGB pixels: depth, colour profile, colour model, transparency and
orientation.

Pillow reads them, except where it would lose something: 16-bit PNG and the TIFFs of cameras and
microscopes (planar, 12 bits, floats) go through imagecodecs and tifffile, JPEG 2000 and PPM of more
than 8 bits through imagecodecs and numpy.
"""

import io
import logging
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps

from data.colour import deep_to_srgb, eight_bit_to_srgb, inks_to_srgb, srgb_profile
from util.errors import UserError, first_line
from util.files import open_regular, read_bytes
from util.logger import get_logger

# Endings of files that are taken, and the formats that are looked for in them, whatever the ending.
IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tga", ".jp2", ".psd", ".avif"),
    }
)
_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "PPM", "GIF", "TGA", "JPEG2000", "PSD", "AVIF"),
)
# How files of these formats begin, for those without an ending.
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"RIFF", b"8BPS")
# Pillow's names for 16-bit grey, by byte order, and 32-bit integers that hold 16-bit values.
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_GREY_MODES = _DEEP_MODES | {"1", "L", "LA", "La", "F"}
_ORIENTATION = 0x0112  # EXIF tag
_UNUSED_WHITE = 15  # times the largest value: white that no pixel comes near
_PNG_HEADER = 33  # bytes of the signature and of the first chunk, IHDR

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is said once, by us


@dataclass(frozen=True)
class Picture:
    """What an image file holds, upright and in sRGB.

    pixels: uint8 or uint16 [H, W, 3]; where `alpha` is not None, not yet put on a background
    grey: the file has no colour channels
    alpha: [H, W] like pixels, the largest value is opaque
    dpi: pixels an inch, across and down, where the file says so
    """

    pixels: np.ndarray
    grey: bool = False
    alpha: np.ndarray | None = None
    dpi: tuple[float, float] | None = None

    @property
    def depth(self) -> int:
        """Bits of a value, 8 or 16."""
        return self.pixels.itemsize * 8

    @property
    def opacity(self) -> np.ndarray:
        """The alpha channel on [0, 1], float32 [H, W]; 1 where there is none."""
        if self.alpha is None:
            return np.ones(self.pixels.shape[:2], np.float32)
        return self.alpha / np.float32(np.iinfo(self.alpha.dtype).max)

    def on_white(self) -> np.ndarray:
        """The pixels with transparent parts on white."""
        if self.alpha is None:
            return self.pixels
        if self.depth == 8:
            image, alpha = Image.fromarray(self.pixels), Image.fromarray(self.alpha)
            return np.asarray(Image.composite(image, Image.new("RGB", image.size, "white"), alpha))
        white = np.iinfo(self.pixels.dtype).max
        mixed = white + (self.pixels - np.float32(white)) * self.opacity[..., None]
        return mixed.round().astype(self.pixels.dtype)


@dataclass(frozen=True)
class _Decoded:
    """What a file holds, as it lies there."""

    values: np.ndarray  # [H, W] or [H, W, 3]; integers on [0, white] or floats
    white: float  # the largest value there can be; 1 for floats
    alpha: np.ndarray | None = None  # [H, W], the same scale
    profile: bytes | None = None  # ICC
    dpi: tuple[float, float] | None = None
    grey: bool = False


def read_picture(path: str | Path) -> Picture:
    """The first picture in `path`, upright by its EXIF orientation and converted to sRGB.

    Values of more than 8 bits are kept to 16; floats must lie in [0, 1]. Raises UserError for a
    file that is unreadable, too large to be opened safely, or of unknown range.
    """
    decoded = _decode(path)
    return _deep_picture(decoded, path) if decoded.white != 255 else _picture(decoded, path)


def read_image(path: str | Path) -> Image.Image:
    """The image in `path` as 8-bit RGB, transparent parts on white; UserError as above."""
    return Image.fromarray(eight_bit(read_picture(path).on_white()))


def read_values(path: str | Path) -> np.ndarray:
    """The numbers in a picture that is no photograph, such as a kernel or a mask: float64 [H, W].

    No colour profile applies. Integers are brought to [0, 1], floats stay; colours are weighed
    as luma (ITU-R BT.601); transparent parts count as zero.
    """
    decoded = _decode(path)
    values = decoded.values / np.float64(decoded.white)
    if values.ndim == 3:
        values = values @ np.array([0.299, 0.587, 0.114])
    return values if decoded.alpha is None else values * (decoded.alpha / decoded.white)


def eight_bit(pixels: np.ndarray) -> np.ndarray:
    """uint16 pixels rounded to uint8; others as they are."""
    if pixels.dtype != np.uint16:
        return pixels
    # In integers, in place of copies as floats: round(p / 257).
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def encode_png(pixels: np.ndarray, dpi: tuple[float, float] | None = None) -> bytes:
    """uint8 or uint16 sRGB pixels [H, W] or [H, W, 3] as a PNG file that says so."""
    if pixels.dtype == np.uint8:
        buffer, extra = io.BytesIO(), {} if dpi is None else {"dpi": dpi}
        profile = srgb_profile() if pixels.ndim == 3 else None  # of colours
        Image.fromarray(pixels).save(buffer, format="PNG", icc_profile=profile, **extra)
        return buffer.getvalue()
    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    chunks = b""
    if pixels.ndim == 3:
        chunks += _png_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(srgb_profile()))
    if dpi is not None:
        per_metre = (round(d / 0.0254) for d in dpi)
        chunks += _png_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
    return data[:_PNG_HEADER] + chunks + data[_PNG_HEADER:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def is_picture(path: Path) -> bool:
    """Whether a file without an ending begins like a picture."""
    try:
        with open_regular(path) as file:
            return file.read(8).startswith(_BEGINNINGS)
    except UserError:
        return False


def _decode(path: str | Path) -> _Decoded:
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about odd metadata
            decoded = _decode_bytes(data, path)
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise UserError(f"{path}: not a readable image ({first_line(error)})") from None
    shape = decoded.values.shape
    if not decoded.values.size or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)):
        raise UserError(f"{path}: not a readable image (values of shape {list(shape)})")
    return decoded


def _decode_bytes(data: bytes, path: str | Path) -> _Decoded:
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.UnidentifiedImageError:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # kinds that Pillow knows not
            return _decode_tiff(data, path)
        raise UserError(f"{path}: not a readable image (no format that is known here)") from None
    with image:
        _check_pixels(image.width, image.height, path)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            get_logger().warning("%s: holds %d pictures; the first is taken", path, frames)
        if image.format == "PNG" and data[24] == 16:
            return _decode_png16(data, image)
        if image.format == "TIFF" and _is_special(image):
            return _decode_tiff(data, path)
        if image.format == "JPEG2000" and (bits := _jpeg2000_bits(data, path)) > 8:
            return _decode_deep_jpeg2000(data, image, bits)
        if image.format == "PPM" and (header := _DEEP_PPM.match(data)) and int(header[3]) > 255:
            return _decode_deep_ppm(data, header)
        return _decode_pillow(image)


def _check_pixels(width: int, height: int, path: str | Path) -> None:
    """Pillow itself refuses twice as many pixels and warns before, by a filter that threads
    share."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise _too_large(path)


def _too_large(path: str | Path) -> UserError:
    return UserError(
        f"{path}: more pixels than are safe to open ({Image.MAX_IMAGE_PIXELS:,}); make it smaller, "
        "or cut it into parts"
    )


def _decode_pillow(image: Image.Image) -> _Decoded:
    profile, dpi = image.info.get("icc_profile"), _dpi(image)
    image = ImageOps.exif_transpose(image)
    grey = image.mode in _GREY_MODES
    if image.mode in _DEEP_MODES or image.mode == "F":
        return _Decoded(
            np.asarray(image), 1.0 if image.mode == "F" else 65535.0, None, profile, dpi, grey
        )
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    if image.mode == "CMYK" and profile:
        return _Decoded(inks_to_srgb(image, profile), 255, alpha, None, dpi)
    if image.mode == "L":
        return _Decoded(np.asarray(image), 255, alpha, profile, dpi, grey)
    return _Decoded(np.asarray(image.convert("RGB")), 255, alpha, profile, dpi, grey)


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    try:
        across, down = (float(d) for d in image.info.get("dpi", ()))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 1 <= across <= 1e5 and 1 <= down <= 1e5 else None


def _decode_png16(data: bytes, image: Image.Image) -> _Decoded:
    values = imagecodecs.png_decode(data)
    values = values[..., None] if values.ndim == 2 else values
    values = _upright(values, image.getexif().get(_ORIENTATION, 1))
    alpha = values[..., -1] if values.shape[2] in (2, 4) else None
    grey = values.shape[2] < 3
    profile = image.info.get("icc_profile")
    colours = values[..., 0] if grey else values[..., :3]
    return _Decoded(colours, 65535.0, alpha, profile, _dpi(image), grey)


def _jpeg2000_bits(data: bytes, path: str | Path) -> int:
    """Bits of a value, which the codestream's SIZ marker says of its first component."""
    depth = data[data.index(b"\xff\x4f\xff\x51") + 42]
    if depth & 0x80:
        raise UserError(f"{path}: a JPEG 2000 of signed values; save it with unsigned ones")
    return depth + 1


def _decode_deep_jpeg2000(data: bytes, image: Image.Image, bits: int) -> _Decoded:
    values = imagecodecs.jpeg2k_decode(data)
    values = values[..., None] if values.ndim == 2 else values
    grey = values.shape[2] < 3
    alpha = values[..., -1] if values.shape[2] in (2, 4) else None
    colours = values[..., 0] if grey else values[..., :3]
    profile = image.info.get("icc_profile")
    return _Decoded(colours, float(2**bits - 1), alpha, profile, _dpi(image), grey)


# Width, height and the largest value of a colour picture, comments between them.
_DEEP_PPM = re.compile(rb"P6" + 3 * rb"(?:\s+|#[^\n]*\n)+(\d+)" + rb"\s")


def _decode_deep_ppm(data: bytes, header: re.Match[bytes]) -> _Decoded:
    width, height, white = (int(number) for number in header.groups())
    values = np.frombuffer(data, ">u2", 3 * width * height, header.end())
    return _Decoded(values.reshape(height, width, 3).astype(np.uint16), float(white))


def _is_special(image: Any) -> bool:
    """Whether Pillow reads this TIFF wrongly or not to its full depth: values of more than 8 bits,
    planes one after the other, or several bands without colours."""
    tags = image.tag_v2
    bits, planar = tags.get(258, (1,)), tags.get(284, 1)
    bits = bits if isinstance(bits, tuple) else (bits,)
    kind, samples = tags.get(262), tags.get(277, 1)
    special = max(bits) > 8 or planar == 2 or (kind in (0, 1) and samples > 1)
    return kind in (0, 1, 2) and special


def _decode_tiff(data: bytes, path: str | Path) -> _Decoded:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = cast(tifffile.TiffPage, file.pages[0])
        _check_pixels(page.imagewidth, page.imagelength, path)
        if page.photometric not in (0, 1, 2):
            raise UserError(
                f"{path}: a TIFF of {page.bitspersample} bits in photometric {page.photometric}; "
                "save it as RGB"
            )
        values, axes = page.asarray(), page.axes
        values = values.astype(np.uint8) if values.dtype == bool else values
        while values.ndim > 2 + ("S" in axes):  # volumes: the first layer
            values, axes = values[0], axes[1:]
        if axes.startswith("S"):
            values = np.moveaxis(values, 0, -1)
        values = values[..., None] if "S" not in axes else values
        if values.dtype.kind == "i" and page.bitspersample <= 16:
            raise UserError(f"{path}: a TIFF of signed integers; save it with unsigned ones")
        white = _tiff_white(values, page.bitspersample)
        colours = 3 if page.photometric == 2 else 1
        more = values.shape[2] - colours - _has_alpha(page, colours)
        if more > 0:
            get_logger().warning(
                "%s: %d more band(s) beside the %s are left out; save colours as RGB",
                *(path, more, "colours" if colours == 3 else "first, which is taken as grey"),
            )
        alpha = values[..., colours] if _has_alpha(page, colours) else None
        colour = values[..., :colours]
        if page.photometric == 0 and values.dtype.kind != "f":  # white is zero
            colour = (white - colour).astype(values.dtype)
        if alpha is not None and page.extrasamples[0] == 1:  # colours are multiplied by it
            share = np.maximum(alpha[..., None] / white, 1e-6)
            colour = np.minimum(colour / share, white).astype(values.dtype)
        orientation = page.tags.valueof(_ORIENTATION, 1)
        profile = page.tags.valueof(34675)
        dpi = page.get_resolution("INCH") if 282 in page.tags and 283 in page.tags else None
    colour = _upright(colour, orientation)
    alpha = None if alpha is None else _upright(alpha, orientation)
    colour = colour[..., 0] if colours == 1 else colour
    return _Decoded(colour, white, alpha, profile, dpi, colours == 1)


def _has_alpha(page: tifffile.TiffPage, colours: int) -> bool:
    return page.samplesperpixel > colours and page.extrasamples[:1] in ((1,), (2,))


def _tiff_white(values: np.ndarray, bits: int) -> float:
    if values.dtype.kind == "f":
        return 1.0
    return 65535.0 if bits > 16 else float(2**bits - 1)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Values [H, W, ...] turned as the EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        values = np.swapaxes(values, 0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _picture(decoded: _Decoded, path: str | Path) -> Picture:
    """8 bits."""
    image = Image.fromarray(decoded.values)
    if decoded.profile:
        image = eight_bit_to_srgb(image, decoded.profile, path)
    return Picture(_coloured(np.asarray(image)), decoded.grey, decoded.alpha, decoded.dpi)


def _coloured(pixels: np.ndarray) -> np.ndarray:
    """Grey pixels [H, W] as [H, W, 3], without copies; colours as they are."""
    if pixels.ndim == 3:
        return pixels
    return np.broadcast_to(pixels[..., None], (*pixels.shape, 3))


def _deep_picture(decoded: _Decoded, path: str | Path) -> Picture:
    values, white = decoded.values, decoded.white
    least, largest = float(values.min()), float(values.max())
    if not (np.isfinite([least, largest]).all() and least >= 0 and largest <= white):
        raise UserError(
            f"{path}: values from {least:g} to {largest:g}, expected 0 to {white:g}; "
            "save it with 8 or 16 bits"
        )
    if white > 1 and 0 < largest < white / _UNUSED_WHITE:
        get_logger().warning(
            "%s: the largest value is %g of %g, so the picture is nearly black; save it so that "
            "white is %g",
            *(path, largest, white, white),
        )
    pixels = _sixteen_bit(values, white)
    if decoded.profile:
        pixels = deep_to_srgb(pixels, decoded.profile, path)
    alpha = None if decoded.alpha is None else _sixteen_bit(decoded.alpha, white)
    return Picture(_coloured(pixels), decoded.grey, alpha, decoded.dpi)


def _sixteen_bit(values: np.ndarray, white: float) -> np.ndarray:
    """Values on [0, white] as uint16 on [0, 65535]."""
    if white == 65535:
        return np.ascontiguousarray(values).astype(np.uint16, copy=False)
    scaled = values.astype(np.float32) * np.float32(65535 / white)
    return np.rint(scaled, out=scaled).astype(np.uint16)
