"""The results folder of a run: every file is written under a temporary name and then moved."""

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw
from torch import Tensor

from util.checkpoint import save_atomically
from util.compute_metric import psnr, ssim
from util.errors import UserError
from util.img_utils import to_pixels
from util.problems import Residual

SHEET_ROWS = 16  # a contact sheet shows this many images at most
_SHEET_GAP = 8
_SHEET_HEADER = 24
METRICS = ("psnr", "ssim", "residual", "expected_residual")


@dataclass
class Results:
    """Files of one run below `<save_dir>/<operator>`.

    input, recon, label: images under the path of their source; progress: a folder per image.
    """

    root: Path
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def path(self, kind: str, name: str, suffix: str = ".png") -> Path:
        """Where the `kind` file of the image called `name` (no ending) lies."""
        return self.root / kind / (name + suffix)

    def save_run(self, config: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        """config.yaml: the exact configs, overrides included, and the settings and versions."""
        packages = ("torch", "numpy", "scipy", "pillow", "scikit-image")
        versions = {name: version(name) for name in packages}
        versions["python"] = platform.python_version()
        document = {**plain(config), "run": {**plain(run), "versions": versions}}
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        self._write(self.root / "config.yaml", text.encode())

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

    def save_progress(self, name: str, step: int, x: Tensor) -> None:
        self._write_image(self.path("progress", f"{name}/{step:04d}"), to_pixels(x))

    def save_image(self, kind: str, name: str, x: Tensor, grey: bool = False) -> np.ndarray:
        """Save [3, H, W] as `kind`, with one channel if `grey`; returns the pixels [H, W, 3]
        of the file."""
        pixels = to_pixels(x.mean(0, keepdim=True).expand_as(x) if grey else x)
        self._write_image(self.path(kind, name), pixels[..., 0] if grey else pixels)
        return pixels

    def save_restored(
        self, name: str, label: Tensor | None, recon: Tensor, residual: Residual, grey: bool = False
    ) -> None:
        """Restored image and, where there is one, label [3, H, W], and the metrics: PSNR and
        SSIM on 8-bit pixels against the label, and the residual."""
        pixels = self.save_image("recon", name, recon, grey)
        row = {"residual": residual.norm}
        if residual.expected is not None:
            row["expected_residual"] = residual.expected
        if label is not None:
            label_pixels = self.save_image("label", name, label, grey)
            row |= {"psnr": psnr(label_pixels, pixels), "ssim": ssim(label_pixels, pixels)}
        self.rows[name] = row

    def means(self) -> dict[str, float]:
        """The mean of each metric that the images have."""
        known = [m for m in METRICS if all(m in row for row in self.rows.values())]
        return {m: float(np.mean([row[m] for row in self.rows.values()])) for m in known}

    def save_report(self) -> None:
        """metrics.csv, mean last, and the contact sheet of the first images."""
        if not self.rows:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        means = self.means()
        writer.writerow(["file", *means])
        for name, row in [*sorted(self.rows.items()), ("mean", means)]:
            writer.writerow([name, *(f"{row[metric]:.5f}" for metric in means)])
        self._write(self.root / "metrics.csv", text.getvalue().encode())
        names = sorted(self.rows)[:SHEET_ROWS]
        kinds = {"input": "input", "recon": "restored"}
        if "psnr" in means:
            kinds["label"] = "label"
        rows = [[self.path(kind, n) for kind in kinds] for n in names]
        sheet = contact_sheet(rows, tuple(kinds.values()))
        self._write_image(self.root / "contact_sheet.png", np.asarray(sheet))

    def _write_array(self, path: Path, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array)
        self._write(path, buffer.getvalue())

    def _write_image(self, path: Path, pixels: np.ndarray) -> None:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        self._write(path, buffer.getvalue())

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_atomically(path, lambda file: file.write(data))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); free some space or "
                "choose another --save_dir"
            ) from None


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


def contact_sheet(rows: Sequence[Sequence[Path]], titles: Sequence[str]) -> Image.Image:
    """Image files in rows under `titles`; small measurements are enlarged without smoothing."""
    images = [[Image.open(path).convert("RGB") for path in row] for row in rows]
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
            scale = min(cell[0] / image.width, cell[1] / image.height)
            scaled = (round(image.width * scale), round(image.height * scale))
            image = image.resize(scaled, Image.Resampling.NEAREST)
            sheet.paste(image, (_SHEET_GAP + column * pitch_x, _SHEET_HEADER + i * pitch_y))
    return sheet
