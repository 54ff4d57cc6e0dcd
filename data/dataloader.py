"""Data sets: named images as tensors in [-1, 1], and how they are brought to a size.

To add one, register a class with `names` and `load`; its keyword arguments are config keys.
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from util.errors import UserError
from util.image_files import has_transparency, is_grey, read_image, read_picture
from util.img_utils import IMAGE_SUFFIXES, centre_crop, to_tensor
from util.logger import get_logger
from util.manifest import holds_results
from util.registry import Registry

# Pictures all the same: a person whose camera writes them must be told that they are left out.
_OTHER_PICTURES = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".jxl", ".gif", ".raw", ".dng", ".cr2", ".nef", ".arw"}
)


def find_images(root: str | Path) -> list[Path]:
    """All image files below `root`, sorted by path; UserError if there are none.

    Links are followed. Folders that this program's results were written to are passed over: with
    --save_dir among the photographs, a second run would restore the first one's results.
    """
    root = Path(root)
    if root.is_file():
        raise UserError(f"{root}: is a file; give the folder that it lies in")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images")
    found = []
    others: Counter[str] = Counter()  # pictures of kinds that are not read, by ending
    seen: set[str] = set()  # a link to a folder above would be walked without end
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_passed_over):
        real = os.path.realpath(folder)
        if real in seen or (Path(folder) != root and holds_results(folder)):
            folders.clear()
            continue
        seen.add(real)
        found += [Path(folder) / name for name in names if _has_suffix(name, IMAGE_SUFFIXES)]
        others.update(_suffix(name) for name in names if _has_suffix(name, _OTHER_PICTURES))
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        get_logger().warning("%s: passed over, of kinds that are not read: %s", root, kinds)
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{root}: no images in this folder or below it (looked for {kinds})")
    return sorted(found)


def _passed_over(error: OSError) -> None:
    get_logger().warning("%s: not searched (%s)", error.filename, error.strerror)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _has_suffix(name: str, suffixes: Collection[str]) -> bool:
    return _suffix(name) in suffixes and not name.startswith(".")


class Dataset:
    """Images by name. A name is a relative POSIX path; results are filed under it."""

    names: Sequence[str]
    measured = False  # True: the files are measurements, there is no label
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

    def open(self, name: str) -> Image.Image:
        """The whole RGB image called `name`; UserError if it cannot be read."""
        raise NotImplementedError

    def path(self, name: str) -> Path | None:
        """The file that holds the image called `name`; None where there is none."""
        return None

    def is_grey(self, name: str) -> bool:
        """Whether the source of the image called `name` has no colour channels."""
        return False

    def load(self, name: str) -> Tensor:
        """The image called `name`, [3, H, W] in [-1, 1]: at the model's size S x S, or, where
        fit is "pad" or "tile", at its own.

        Raises UserError for an unreadable image, for one whose results would lie where another's
        do, and, where fit is "crop", for a smaller one.
        """
        first = self._first_with_output[output_name(name)]
        if name != first:
            raise UserError(
                f"{name}: would be saved as {output_name(name)}, as {first} is; rename one of them"
            )
        image = self.open(name)
        size = self.image_size
        if self.fit in ("pad", "tile"):
            return to_tensor(image)
        if self.fit == "resize":
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        elif min(image.size) < size:
            raise UserError(
                f"{name}: {image.width}x{image.height} is smaller than the model's {size}x{size}; "
                "use --fit pad to restore it at its own size, or --fit resize to enlarge it"
            )
        else:
            image = centre_crop(image, size)
        return to_tensor(image)

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
        return {output_name(name): name for name in reversed(self.names)}


def output_name(name: str) -> str:
    """Path of an image's result files below their folder, without ending."""
    return str(PurePosixPath(name).with_suffix(""))


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

    def __init__(
        self,
        root: str,
        fit: Literal["crop", "resize", "pad", "tile"] = "crop",
        overlap: int | None = None,
        *,
        image_size: int,
    ) -> None:
        super().__init__(image_size, fit, overlap)
        self.root = Path(root)
        self.names = [path.relative_to(self.root).as_posix() for path in find_images(root)]

    def path(self, name: str) -> Path:
        return self.root / name

    def open(self, name: str) -> Image.Image:
        return read_image(self.path(name))

    def is_grey(self, name: str) -> bool:
        return is_grey(self.path(name))


@DATASETS.register("measurements")
class Measurements(ImageFolder):
    """Files below `root` that are measurements themselves: small, blurred or with missing parts.

    They are never scaled or cropped. fit: "tile", or "pad" for one network evaluation of the
    whole image, which needs more memory; the same for images that are no larger than the model
    border: outermost pixels of each file that are left out of the data term
    """

    measured = True

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

    def open(self, name: str) -> Image.Image:
        """The image as stored: what lies below transparent parts is not changed."""
        return read_picture(self.path(name)).image

    def on_white(self, name: str, y: Tensor) -> Tensor:
        """The measurement `y` called `name` with its transparent parts white, as `read_image` has
        them."""
        path = self.path(name)
        return to_tensor(read_image(path)).to(y) if has_transparency(path) else y

    def known(self, name: str) -> np.ndarray:
        """Pixels that the alpha channel says are there: uint8 [H, W], 1 where more than half
        opaque; UserError where there is no such channel."""
        alpha = read_picture(self.path(name)).alpha
        if alpha is None:
            raise UserError(
                f"{name}: no alpha channel says which pixels are missing; give --masks, or save "
                "it with the missing parts transparent"
            )
        return (np.asarray(alpha) > 127).astype(np.uint8)


@DATASETS.register("skimage")
class SkimagePhotographs(Dataset):
    """Colour photographs that scikit-image carries: nothing has to be downloaded.

    `root` is accepted, so that a folder's config can be turned to this set, and not used.
    """

    names = ("astronaut", "chelsea", "coffee", "rocket")

    def __init__(
        self,
        root: str = "",
        fit: Literal["crop", "resize", "pad", "tile"] = "crop",
        overlap: int | None = None,
        *,
        image_size: int,
    ) -> None:
        super().__init__(image_size, fit, overlap)

    def open(self, name: str) -> Image.Image:
        import skimage.data

        return Image.fromarray(getattr(skimage.data, name)())
