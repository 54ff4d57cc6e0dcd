"""Data sets: named images at the model's size, as tensors in [-1, 1].

To add one, register a class with `names` and `load`; its keyword arguments are config keys.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image, ImageOps
from torch import Tensor

from util.errors import UserError
from util.img_utils import centre_crop, to_tensor
from util.registry import Registry

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


class Dataset:
    """Images by name. A name is a relative POSIX path; results are filed under it."""

    names: Sequence[str]

    def __init__(self, image_size: int, fit: str) -> None:
        self.image_size = image_size
        self.fit = fit

    def open(self, name: str) -> Image.Image:
        """The whole RGB image called `name`; UserError if it cannot be read."""
        raise NotImplementedError

    def path(self, name: str) -> Path | None:
        """The file that holds the image called `name`; None where there is none."""
        return None

    def load(self, name: str) -> Tensor:
        """The image called `name` at the model's size: [3, S, S] in [-1, 1].

        Raises UserError for an unreadable image and, unless fit is "resize", a smaller one.
        """
        image = self.open(name)
        size = self.image_size
        if self.fit == "resize":
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        elif min(image.size) < size:
            raise UserError(
                f"{name}: {image.width}x{image.height} is smaller than the model's {size}x{size}; "
                "use --set task.data.fit=resize to enlarge it"
            )
        else:
            image = centre_crop(image, size)
        return to_tensor(image)

    def describe_fit(self) -> str:
        """What happens to images of another size, for the log."""
        how = "squeezed to" if self.fit == "resize" else "scaled and cropped at the centre to"
        return f"{how} {self.image_size}x{self.image_size} (data.fit: {self.fit})"

    def check_outputs(self) -> None:
        """UserError if two images would write the same result file."""
        written: dict[str, str] = {}
        for name in self.names:
            other = written.setdefault(output_name(name), name)
            if other != name:
                raise UserError(
                    f"{other} and {name} would both be saved as {output_name(name)}; rename one"
                )


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
    kept) or "resize" (the whole image is squeezed or enlarged to the model's square)
    """

    def __init__(
        self, root: str, fit: Literal["crop", "resize"] = "crop", *, image_size: int
    ) -> None:
        super().__init__(image_size, fit)
        self.root = Path(root)
        self.names = [path.relative_to(self.root).as_posix() for path in find_images(root)]

    def path(self, name: str) -> Path:
        return self.root / name

    def open(self, name: str) -> Image.Image:
        return read_image(self.path(name))


@DATASETS.register("skimage")
class SkimagePhotographs(Dataset):
    """Colour photographs that scikit-image carries: nothing has to be downloaded.

    `root` is accepted, so that a folder's config can be turned to this set, and not used.
    """

    names = ("astronaut", "chelsea", "coffee", "rocket")

    def __init__(
        self,
        root: str = "",
        fit: Literal["crop", "resize"] = "crop",
        *,
        image_size: int,
    ) -> None:
        super().__init__(image_size, fit)

    def open(self, name: str) -> Image.Image:
        import skimage.data

        return Image.fromarray(getattr(skimage.data, name)())
