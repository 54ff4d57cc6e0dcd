"""The results folder of a run: every file is written under a temporary name and then moved."""

import csv
import io
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from data.image_files import eight_bit, encode_png, read_image
from util.atomic import write
from util.compute_metric import decimal, run_metrics
from util.errors import OutputError, UserError
from util.files import explained, file_mark, same_file
from util.img_utils import to_colour, to_pixels
from util.logger import get_logger
from util.metrics.base import run_metric_names
from util.runs.manifest import Record
from util.runs.spread import Spread

SHEET_ROWS = 16  # a contact sheet shows this many images at most
QUANTITIES = ("x_t", "x0_hat")  # of progress images
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_KINDS = ("input", "recon", "mean", "std", "label", "mask")  # images of one image
_ARRAYS = ("input", "std")  # that are kept as floats as well
_STD_GAIN = 4  # of the picture of a deviation, in grey levels of 255: most are below a quarter
_SHEET_CELL = 512  # pixels; larger images are shrunk
_SHEET_GAP = 8
_SHEET_HEADER = 24
KIND_TITLES = {
    **{"input": "measured", "recon": "restored", "mean": "mean of samples"},
    **{"std": "std of samples", "label": "original"},
}
RESIDUALS = ("residual", "expected_residual")
STD = "std_over_samples"  # of a value, as the mean over the image, in grey levels of 255


def mean_metrics() -> dict[str, str]:
    """Columns with metrics of the mean of several samples, and the metrics."""
    return {f"mean_{name}": name for name in run_metric_names()}


def spread_columns() -> list[str]:
    """What is said of several samples."""
    return [*mean_metrics(), STD]


def figure_columns() -> list[str]:
    """All that reports may say of a restored image."""
    return [*run_metric_names(), *RESIDUALS, *spread_columns()]


def value_of(record: Record, column: str) -> float | None:
    """What the reports say of a restored image in a column."""
    if column in spread_columns():
        return record.spread.get(column)
    return record.metrics.get(column) if column in run_metric_names() else getattr(record, column)


def kinds_of(record: Record) -> list[str]:
    """The pictures of a restored image that can be shown."""
    missing = [*([] if record.metrics else ["label"]), *([] if record.spread else ["mean", "std"])]
    return [kind for kind in KIND_TITLES if kind not in missing]


@dataclass(frozen=True)
class PictureForm:
    """How a restored image is saved."""

    grey: bool = False  # with one channel
    depth: int = 8  # bits of a value, 8 or 16
    dpi: tuple[float, float] | None = None  # pixels an inch, across and down


@dataclass
class Results:
    """Files of one run below `<save_dir>/<operator>`.

    input, recon, label: images under the path of their source, as mean, std and samples/seed_K;
    progress: a folder per image.
    What is known about the images stands in the manifest, not here.
    """

    root: Path

    def path(self, kind: str, name: str, suffix: str = ".png") -> Path:
        """Where the `kind` file of the image called `name` (no ending) lies."""
        return self.root / kind / (name + suffix)

    def marks(self, name: str, seeds: Iterable[int] = ()) -> dict[str, Any]:
        """Size, time and SHA-256 of the files of the image called `name` (no ending), its samples
        of `seeds` among them, by their paths below the folder."""
        files = [*self._files(name), *(self.path(sample_kind(seed), name) for seed in seeds)]
        paths = [p for p in files if p.is_file()]
        return {p.relative_to(self.root).as_posix(): file_mark(p) for p in paths}

    def holds(self, record: Record) -> bool:
        """Whether all that belongs to a finished image is there, as it was written."""
        if record.files:
            paths = {self.root / file: mark for file, mark in record.files.items()}
            return all(os.path.isfile(p) and same_file(p, mark) for p, mark in paths.items())
        # Recorded before files were marked: they must be there and end as such files end.
        name, kinds = record.output, ("input", "recon", "label")
        return all(_is_whole(self.path(k, name)) for k in (kinds if record.metrics else kinds[:2]))

    def _files(self, name: str) -> list[Path]:
        arrays = (self.path(kind, name, ".npy") for kind in _ARRAYS)
        return [*(self.path(kind, name) for kind in _KINDS), *arrays]

    def drop_samples(self, name: str, keep: Iterable[int] = ()) -> None:
        """Remove the samples of the image called `name`, but for those of the seeds `keep`: what
        an interrupted run with more samples, or one that failed, has left."""
        kept = {self.path(sample_kind(seed), name) for seed in keep}
        self._unlink([path for path in self._samples(name) if path not in kept])

    def _samples(self, name: str) -> list[Path]:
        return [folder / f"{name}.png" for folder in self.root.glob(sample_kind("*"))]

    def remove(self, name: str) -> None:
        """Remove the files of the image called `name` (no ending), those that are there."""
        files = [*self._files(name), *self._samples(name)]
        progress = self.root / "progress" / name
        files += [p for q in QUANTITIES for p in progress.glob(f"{q}_*.png")]
        files += progress.glob("film.*")
        self._unlink(files)

    def remove_report(self) -> None:
        """Remove what was reported of images that are no longer there."""
        self._unlink(self.root / name for name in ("metrics.csv", "contact_sheet.png"))

    def _unlink(self, files: Iterable[Path]) -> None:
        for file in files:
            with explained(file, "removed", kind=OutputError):
                file.unlink(missing_ok=True)

    def check_space(self, needed: int) -> None:
        """OutputError where less than `needed` bytes are free."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutputError(
                f"{self.root}: the results take at least {needed / 2**20:,.0f} MiB, and "
                f"{free / 2**20:,.0f} are free; free some space, choose another --save_dir, or "
                "restore fewer (--limit) or record less (--record)"
            )

    def save_run(self, config: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        """config.yaml: the exact configs, overrides included, and the settings and versions."""
        packages = ("torch", "numpy", "scipy", "pillow", "scikit-image")
        versions = {name: version(name) for name in packages}
        versions["python"] = platform.python_version()
        document = {**plain(config), "run": {**plain(run), "versions": versions}}
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        self.write_file(self.root / "config.yaml", text.encode())

    def save_array(self, stem: str, array: np.ndarray) -> None:
        """An array of the run, such as the blur kernel: .npy, and .png to look at."""
        self._write_array(self.root / f"{stem}.npy", array)
        if array.ndim == 2:
            self._write_image(self.root / f"{stem}.png", _grey(array))

    def save_mask(self, name: str, stem: str, mask: np.ndarray) -> None:
        """An array of one image, such as its mask, as a picture that can be read back."""
        self._write_image(self.path(stem, name), _grey(mask))

    def save_measurement(self, name: str, y: Tensor, view: Tensor) -> None:
        """y [C, h, w] as floats, and `view` [3, h, w] as an image."""
        self._write_array(self.path("input", name, ".npy"), y.float().cpu().numpy())
        self._write_image(self.path("input", name), to_pixels(view))

    def progress_path(self, name: str, quantity: str, step: int) -> Path:
        """Where x_t or x0_hat lies, `step` steps before the end."""
        return self.path("progress", f"{name}/{quantity}_{step:04d}")

    def save_progress(self, name: str, quantity: str, step: int, x: Tensor) -> None:
        self._write_image(self.progress_path(name, quantity, step), to_pixels(x))

    def save_image(
        self, kind: str, name: str, x: Tensor, form: PictureForm = PictureForm()
    ) -> np.ndarray:
        """Save [3, H, W] as `kind`; returns the pixels [H, W, 3] of the file, uint8."""
        pixels = _saved_pixels(x, form)
        self._write_image(self.path(kind, name), pixels[..., 0] if form.grey else pixels, form.dpi)
        return eight_bit(pixels)

    def save_restored(
        self, name: str, label: Tensor | None, recon: Tensor, form: PictureForm = PictureForm()
    ) -> dict[str, float]:
        """Restored image and label [C, H, W]; returns the metrics of their 8-bit pixels.

        Without a label there are none.
        """
        recon = to_colour(recon)
        if label is None:
            self.save_image("recon", name, recon, form)
            return {}
        label_pixels = self.save_image("label", name, to_colour(label), form)
        pixels = self.save_image("recon", name, recon, form)
        return run_metrics(label_pixels, pixels)

    def save_spread(
        self, name: str, label: Tensor | None, spread: Spread, form: PictureForm = PictureForm()
    ) -> dict[str, float]:
        """Mean of the samples as an image, their standard deviation as floats [3, H, W] and as a
        grey picture; returns `spread_columns`, the metrics where there is a label."""
        deviation = spread.deviation.numpy()
        self._write_array(self.path("std", name, ".npy"), deviation)
        levels = 127.5 * deviation.mean(0)
        shown = np.clip(_STD_GAIN * levels, 0, 255).round().astype(np.uint8)
        self._write_image(self.path("std", name), shown, form.dpi)
        pixels = self.save_image("mean", name, spread.mean, form)
        figures = {STD: float(levels.mean(dtype=np.float64))}
        if label is None:
            return figures
        metrics = run_metrics(eight_bit(_saved_pixels(to_colour(label), form)), pixels)
        return {f"mean_{metric}": value for metric, value in metrics.items()} | figures

    def save_report(self, rows: Sequence[Record]) -> None:
        """metrics.csv, mean last, and the contact sheet of the first images; where there are
        originals, of those that have one."""
        if not rows:
            self.remove_report()
            return
        rows = sorted(rows, key=lambda row: row.output)
        labelled = [row for row in rows if row.metrics]
        known = means_of(rows)
        columns = [c for c in figure_columns() if c in known]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", *columns])
        for row in labelled or rows:
            writer.writerow([row.output, *(_decimal(value_of(row, c), c) for c in columns)])
        writer.writerow(["mean", *(_decimal(known.get(c), c) for c in columns)])
        self.write_file(self.root / "metrics.csv", text.getvalue().encode(errors="surrogateescape"))
        shown = (labelled or rows)[:SHEET_ROWS]
        kinds = kinds_of(shown[0])
        titles = [KIND_TITLES[kind] for kind in kinds]
        paths = [[self.path(kind, row.output) for kind in kinds] for row in shown]
        self._write_image(self.root / "contact_sheet.png", np.asarray(contact_sheet(paths, titles)))

    def save_text(self, name: str, text: str) -> None:
        """A text file of the run."""
        self.write_file(self.root / name, text.encode(errors="backslashreplace"))

    def _write_array(self, path: Path, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array)
        self.write_file(path, buffer.getvalue())

    def _write_image(
        self, path: Path, pixels: np.ndarray, dpi: tuple[float, float] | None = None
    ) -> None:
        self.write_file(path, encode_png(pixels, dpi))

    def write_file(self, path: Path, data: bytes) -> None:
        """The file `path` appears whole or not at all; OutputError where it cannot be written."""
        advice = (
            "; free some space or choose another --save_dir. What is finished is kept: the same "
            "command goes on"
        )
        write(path, data, advice, OutputError)


def means_of(rows: Sequence[Record]) -> dict[str, float]:
    """Mean of every metric, of the residual and of `spread_columns`, over the rows that have it."""
    means = {}
    for column in figure_columns():
        values = [v for row in rows if (v := value_of(row, column)) is not None]
        if values:
            means[column] = float(np.mean(values))
    return means


def sample_kind(seed: int | str) -> str:
    """The kind of the pictures that were sampled with `seed`."""
    return f"samples/seed_{seed}"


def _saved_pixels(x: Tensor, form: PictureForm) -> np.ndarray:
    """[3, H, W] -> uint8 or uint16 [H, W, 3]; three times the same channel where `form` is grey."""
    return to_pixels(x.mean(0, keepdim=True).expand_as(x) if form.grey else x, form.depth)


def _decimal(value: float | None, column: str) -> str:
    return decimal(value, mean_metrics().get(column, column))


def plain(value: Any) -> Any:
    """`value` with tuples as lists and paths as strings, for a safe YAML writer."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, int | float | str | None) else str(value)


def _grey(array: np.ndarray) -> np.ndarray:
    """Non-negative [H, W] scaled so that its largest value is white."""
    scaled = np.clip(array, 0, None) / max(float(array.max()), 1e-12) * 255
    return scaled.round().astype(np.uint8)


def _is_whole(path: Path) -> bool:
    """Whether a PNG file is there and was written to its end."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _thumbnail(path: Path) -> Image.Image:
    try:
        thumbnail = read_image(path)
    except UserError as error:  # damaged since it was written; the next run makes it again
        get_logger().warning("%s; left out of the contact sheet", error)
        return Image.new("RGB", (1, 1), "white")
    thumbnail.thumbnail((_SHEET_CELL, _SHEET_CELL))
    return thumbnail


def contact_sheet(rows: Sequence[Sequence[Path]], titles: Sequence[str]) -> Image.Image:
    """Image files in rows under `titles`; small measurements are enlarged without smoothing."""
    images = [[_thumbnail(path) for path in row] for row in rows]
    widths = [image.width for row in images for image in row]
    heights = [image.height for row in images for image in row]
    cell = (max(widths), max(heights))
    pitch_x, pitch_y = cell[0] + _SHEET_GAP, cell[1] + _SHEET_GAP
    size = (pitch_x * len(titles) + _SHEET_GAP, pitch_y * len(rows) + _SHEET_HEADER)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        centre = _SHEET_GAP + column * pitch_x + cell[0] / 2
        draw.text((centre, _SHEET_HEADER / 2), title, fill="black", anchor="mm")
    for i, row in enumerate(images):
        for column, image in enumerate(row):
            image = ImageOps.contain(image, cell, Image.Resampling.NEAREST)
            sheet.paste(image, (_SHEET_GAP + column * pitch_x, _SHEET_HEADER + i * pitch_y))
    return sheet
