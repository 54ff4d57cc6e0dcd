"""Data sets: named images as tensors in [-1, 1], and how they are brought to a size.

To add one, register a class with `names` and `open`; its keyword arguments are config keys.
"""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.image_files import IMAGE_SUFFIXES, Picture, is_picture, read_image, read_picture
from util.errors import UserError
from util.files import holds_results, shown
from util.img_utils import centre_crop, resampled, to_tensor
from util.logger import get_logger
from util.registry import Registry
from util.tensor_files import load_numpy_array

__all__ = ["DATASETS", "Dataset", "Photograph", "find_images", "output_name", "read_image"]

# Pictures all the same: a person whose camera writes them must be told that they are left out.
_OTHER_PICTURES = frozenset(
    {
        *(".heic", ".heif", ".jxl", ".jxr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
        *(".orf", ".rw2", ".raf", ".exr", ".hdr", ".svg", ".eps", ".pdf", ".ico", ".pcx", ".xcf"),
    }
)
_NUMPY_SUFFIXES = frozenset({".npy", ".npz"})  # of measurements
_LARGEST_MEASURED = 3.0  # of values that stand for [-1, 1], noise included

Fit = Literal["crop", "resize", "pad", "tile"]


def find_images(root: str | Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All image files below `root`, sorted by path; UserError if there are none.

    suffixes: endings that are taken; files without any are taken where they begin like a picture

    Links are followed. Folders that this program's results were written to are passed over: with
    --save_dir among the photographs, a second run would restore the first one's results.
    """
    if os.path.isfile(root):
        raise UserError(f"{root}: is a file; give the folder that it lies in")
    if not os.path.isdir(root):
        raise UserError(f"{shown(root)}: no such folder of images")
    root = Path(root)
    found = []
    others: Counter[str] = Counter()  # pictures of kinds that are not read, by ending
    seen: set[str] = set()  # a link to a folder above would be walked without end
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_passed_over):
        real = os.path.realpath(folder)
        results = Path(folder) != root and holds_results(folder)
        if results:
            get_logger().info("%s: passed over, it holds results of this program", folder)
        if real in seen or results:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # of two names for one folder the same is taken everywhere
        for name in names:
            path = Path(folder) / name
            if _has_suffix(name, suffixes) or (_has_suffix(name, {""}) and is_picture(path)):
                found.append(path)
            elif _has_suffix(name, _OTHER_PICTURES):
                others[_suffix(name)] += 1
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        get_logger().warning("%s: passed over, of kinds that are not read: %s", root, kinds)
    if not found:
        kinds = ", ".join(sorted(suffixes))
        raise UserError(f"{root}: no images in this folder or below it (looked for {kinds})")
    return sorted(found)


def _passed_over(error: OSError) -> None:
    get_logger().warning("%s: not searched (%s)", error.filename, error.strerror)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _is_numpy(name: str) -> bool:
    return _suffix(name) in _NUMPY_SUFFIXES


def _has_suffix(name: str, suffixes: Collection[str]) -> bool:
    return _suffix(name) in suffixes and not name.startswith(".")


@dataclass(frozen=True)
class Photograph:
    """One image of a data set, and what its file says about it; all of one reading of the file."""

    image: Tensor  # [3, H, W] in [-1, 1], transparent parts on white
    grey: bool = False  # the source has no colour channels
    stored: Tensor | None = None  # the same where transparent parts are not put on white
    opaque: np.ndarray | None = None  # uint8 [H, W], 1 where more than half opaque; None: no alpha
    depth: int = 8  # bits of a value in the file, 8 or 16
    dpi: tuple[float, float] | None = None


class Dataset:
    """Images by name. A name is a relative POSIX path; results are filed under it."""

    names: Sequence[str]
    measured = False  # True: the files are measurements, there is no label
    has_folder = True  # False: `root` means nothing
    border = 0  # outermost pixels of a measurement that are left out of the data term

    def __init__(self, image_size: int, fit: str, overlap: int | None = None) -> None:
        self.image_size = image_size
        self.fit = fit
        self.overlap = image_size // 4 if overlap is None else overlap
        if not 0 <= self.overlap < image_size:
            raise UserError(
                f"data.overlap {overlap}: must be from 0 to below the model's {image_size}"
            )
        if overlap is not None and fit != "tile":
            raise UserError(f"data.overlap: windows overlap, and there are none with fit: {fit}")

    @property
    def any_size(self) -> bool:
        """Whether images keep their own size."""
        return self.fit in ("pad", "tile")

    def open(self, name: str) -> Picture | Image.Image:
        """The whole image called `name`; UserError if it cannot be read."""
        raise NotImplementedError

    def path(self, name: str) -> Path | None:
        """The file that holds the image called `name`; None where there is none."""
        return None

    def load(self, name: str) -> Tensor:
        """The image called `name`, [3, H, W] in [-1, 1]; see `read`."""
        return self.read(name).image

    def read(self, name: str) -> Photograph:
        """The image called `name`: at the model's size S x S, or, where fit is "pad" or "tile",
        at its own.

        Raises UserError for an unreadable image, for one whose results would lie where another's
        do, and, where fit is "crop", for a smaller one.
        """
        first = self._first_with_output[result_key(name)]
        if name != first:
            raise UserError(
                f"{name}: would be saved as {output_name(name)}, as {first} is; rename one of them"
            )
        picture = self.open(name)
        if isinstance(picture, Image.Image):
            picture = Picture(np.asarray(picture.convert("RGB")))
        stored = opaque = None
        pixels = picture.on_white()
        if self.any_size:
            if picture.alpha is not None:
                stored, opaque = to_tensor(picture.pixels), (picture.opacity > 0.5).astype(np.uint8)
        else:
            pixels = self._fitted(name, pixels)
        image = to_tensor(pixels)
        return Photograph(image, picture.grey, stored, opaque, picture.depth, picture.dpi)

    def _fitted(self, name: str, pixels: np.ndarray) -> np.ndarray:
        """Pixels [H, W, 3] brought to the model's size."""
        size, (height, width) = self.image_size, pixels.shape[:2]
        if self.fit == "resize":
            lanczos = Image.Resampling.LANCZOS
            return resampled(pixels, lambda image: image.resize((size, size), lanczos))
        if min(height, width) < size:
            raise UserError(
                f"{name}: {width}x{height} is smaller than the model's {size}x{size}; "
                "use --fit pad to restore it at its own size, or --fit resize to enlarge it"
            )
        return resampled(pixels, lambda image: centre_crop(image, size))

    def describe_fit(self) -> str:
        """What happens to images of another size, for the log."""
        size = f"{self.image_size}x{self.image_size}"
        how = {
            "crop": f"scaled and cropped at the centre to {size}",
            "resize": f"squeezed to {size}",
            "pad": "restored whole at their own size",
            "tile": f"restored at their own size by windows of {size}",
        }[self.fit]
        return f"{how} (data.fit: {self.fit})"

    @cached_property
    def _first_with_output(self) -> dict[str, str]:
        """The image that each result file belongs to: the first of those with its name."""
        return {result_key(name): name for name in reversed(self.names)}


def output_name(name: str) -> str:
    """Path of an image's result files below their folder, without ending."""
    return str(PurePosixPath(name).with_suffix(""))


def result_key(name: str) -> str:
    """The same for two images whose result files would be one: on disks that do not tell capital
    letters from small ones, those count as equal."""
    output = output_name(name)
    if sys.platform in ("win32", "darwin"):
        return unicodedata.normalize("NFC", output).casefold()
    return output


DATASETS: Registry[Dataset] = Registry("data set", frozenset({"image_size"}))


@DATASETS.register("ffhq")
@DATASETS.register("imagenet")
@DATASETS.register("folder")
class ImageFolder(Dataset):
    """All images below `root`.

    fit: "crop" (guided-diffusion's: the short side is scaled to the model's size and the centre
    kept), "resize" (the whole image is squeezed or enlarged to the model's square), "pad" (its
    own size, reflected to one that the network takes and cut back afterwards) or "tile" (its own
    size, restored by windows of the model's size)
    overlap: pixels that neighbouring windows share at least; default a quarter of the model's size
    """

    suffixes = IMAGE_SUFFIXES

    def __init__(
        self, root: str, fit: Fit = "crop", overlap: int | None = None, *, image_size: int
    ) -> None:
        super().__init__(image_size, fit, overlap)
        self.root = Path(root)
        paths = find_images(root, self.suffixes)
        self.names = [path.relative_to(self.root).as_posix() for path in paths]

    def path(self, name: str) -> Path:
        return self.root / name

    def open(self, name: str) -> Picture:
        return read_picture(self.path(name))


@DATASETS.register("measurements")
class Measurements(ImageFolder):
    """Files below `root` that are measurements themselves: small, blurred or with missing parts;
    pictures, or arrays (.npy, .npz).

    They are never scaled or cropped. fit: "tile", or "pad" for one network evaluation of the
    whole image, which needs more memory; the same for images that are no larger than the model
    border: outermost pixels of each file that are left out of the data term
    """

    measured = True
    suffixes = IMAGE_SUFFIXES | _NUMPY_SUFFIXES

    def __init__(
        self,
        root: str,
        fit: Literal["pad", "tile"] = "tile",
        overlap: int | None = None,
        border: int = 0,
        *,
        image_size: int,
    ) -> None:
        super().__init__(root, fit, overlap, image_size=image_size)
        if border < 0:
            raise UserError(f"data.border must not be negative, got {border}")
        self.border = border
        arrays = {output_name(name) for name in self.names if _has_suffix(name, _NUMPY_SUFFIXES)}
        shadowed = [n for n in self.names if output_name(n) in arrays and not _is_numpy(n)]
        if shadowed:
            get_logger().info(
                "%s: %d picture(s) passed over for the array of the same name, which holds the "
                "measurement itself",
                *(root, len(shadowed)),
            )
        self.names = [name for name in self.names if name not in set(shadowed)]

    def read(self, name: str) -> Photograph:
        return self._read_array(name) if _is_numpy(name) else super().read(name)

    def _read_array(self, name: str) -> Photograph:
        """An array as a run keeps its measurements: floats [3, h, w] on [-1, 1]; unsigned integers
        count as pixels, from 0 to their largest value. Channels may come first or last."""
        path = self.path(name)
        array = np.squeeze(load_numpy_array(path, "measurement"))
        if array.ndim == 2:
            array = array[None]
        elif array.ndim == 3 and array.shape[0] not in (1, 3) and array.shape[2] in (1, 3):
            array = np.moveaxis(array, 2, 0)
        if array.ndim != 3 or array.shape[0] not in (1, 3) or not array.size:
            raise UserError(
                f"{path}: a measurement must be [h, w], [3, h, w] or [h, w, 3], got "
                f"{list(array.shape)}"
            )
        kind, depth = array.dtype, 16
        if kind.kind == "u":
            depth = min(8 * kind.itemsize, 16)
            array = array / np.float64(np.iinfo(kind).max / 2) - 1
        grey = array.shape[0] == 1
        array = np.broadcast_to(array.astype(np.float32), (3, *array.shape[1:]))
        least, largest = float(array.min()), float(array.max())
        if not np.isfinite([least, largest]).all() or max(-least, largest) > _LARGEST_MEASURED:
            raise UserError(
                f"{path}: values from {least:g} to {largest:g}; a measurement lies on [-1, 1]"
            )
        if kind.kind == "f" and least >= 0 and largest <= 1:
            get_logger().warning(
                "%s: no value is below 0; measurements lie on [-1, 1], as input/*.npy of a run",
                path,
            )
        return Photograph(torch.from_numpy(array.copy()), grey, depth=depth)


@DATASETS.register("skimage")
class SkimagePhotographs(Dataset):
    """Colour photographs that scikit-image carries: nothing has to be downloaded.

    `root` is accepted, so that a folder's config can be turned to this set, and not used.
    """

    names: tuple[str, ...] = ("astronaut", "chelsea", "coffee", "rocket")
    has_folder = False

    def __init__(
        self, root: str = "", fit: Fit = "crop", overlap: int | None = None, *, image_size: int
    ) -> None:
        super().__init__(image_size, fit, overlap)

    def open(self, name: str) -> Image.Image:
        import skimage.data

        return Image.fromarray(getattr(skimage.data, name)())


@DATASETS.register("skimage_face")
class SkimageFace(SkimagePhotographs):
    """The face of scikit-image's astronaut, aligned as those of FFHQ are: eyes level, a quarter of
    the side apart and a little above the middle."""

    names = ("astronaut_face",)

    _BETWEEN_EYES, _TILT = (225, 102), 3  # pixels, degrees
    _BOX = (141, 24, 308, 191)

    def open(self, name: str) -> Image.Image:
        photograph, how = super().open("astronaut"), Image.Resampling.BICUBIC
        return photograph.rotate(self._TILT, how, center=self._BETWEEN_EYES).crop(self._BOX)
