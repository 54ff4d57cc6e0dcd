#!/usr/bin/env python3
"""Image quality of restored images against their labels, matched by file name.

Examples:

  python -m util.compute_metric --label results/inpainting/label --recon results/inpainting/recon

  # The paper's metrics (first: pip install -r requirements-metrics.txt)
  python -m util.compute_metric --label LABELS --recon RESTORED --metrics psnr ssim lpips fid

PSNR and SSIM are scikit-image's on 8-bit RGB pixels (data_range 255; SSIM with its default uniform
7x7 window, averaged over the channels). LPIPS takes images in [-1, 1], VGG by default. FID compares
the two sets as a whole and is biased for small ones: compare only sets of equal size.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from data.dataloader import find_images, output_name, read_image
from util.cli import add_device, command_parser, report_errors, resolve_device
from util.errors import UserError
from util.logger import get_logger
from util.perceptual import Fid, Lpips, add_metric_options, parse_weights
from util.statistics import Mean, mean_and_error

Metric = Literal["psnr", "ssim", "lpips", "fid"]
METRICS: tuple[Metric, ...] = get_args(Metric)
RUN_METRICS: tuple[Metric, ...] = ("psnr", "ssim")  # of every run: they need no other package
UNITS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID"}
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "fid": False}
DECIMALS = {"psnr": 4, "ssim": 5, "lpips": 5, "fid": 4}  # of files; terminals get fewer
_OTHER_DECIMALS = 4  # of columns that are no metrics
_SHOWN_NAMES = 5
_SSIM_WINDOW = 7  # scikit-image's default

ImageMetric = Callable[[np.ndarray, np.ndarray], float]


def psnr(label: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 [H, W, 3] images (infinite where equal)."""
    if np.array_equal(label, image):
        return float("inf")
    return float(peak_signal_noise_ratio(label, image, data_range=255))


def ssim(label: np.ndarray, image: np.ndarray) -> float:
    """Structural similarity of uint8 [H, W, 3] images, scikit-image's default 7x7 window."""
    return float(structural_similarity(label, image, channel_axis=2, data_range=255))


def ssim_is_defined(image: np.ndarray) -> bool:
    """Whether [H, W, 3] holds one window of the SSIM."""
    return min(image.shape[:2]) >= _SSIM_WINDOW


def run_metrics(label: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """RUN_METRICS of uint8 [H, W, 3] images; SSIM is left out where they are too small for it."""
    found = {"psnr": psnr(label, image)}
    if ssim_is_defined(label):
        found["ssim"] = ssim(label, image)
    return found


@dataclass(frozen=True)
class Matched:
    """Files of two folders that have the same path below them, endings aside."""

    pairs: dict[str, tuple[Path, Path]]  # name -> label, restored
    only_label: list[str]
    only_recon: list[str]


def match_folders(label: str | Path, recon: str | Path) -> Matched:
    """Pairs by name; UserError for missing or empty folders and where nothing matches."""
    labels, recons = _by_name(label), _by_name(recon)
    common = sorted(labels.keys() & recons.keys())
    if not common:
        raise UserError(
            f"{label} and {recon}: no file names in common (for example {_first(labels)} and "
            f"{_first(recons)})"
        )
    return Matched(
        {name: (labels[name], recons[name]) for name in common},
        sorted(labels.keys() - recons.keys()),
        sorted(recons.keys() - labels.keys()),
    )


def _by_name(folder: str | Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in find_images(folder):
        name = output_name(path.relative_to(folder).as_posix())
        if name in files:
            raise UserError(f"{files[name]} and {path} have the same name; remove one")
        files[name] = path
    return files


def _first(files: Mapping[str, Path]) -> str:
    return next(iter(sorted(p.name for p in files.values())))


def read_pair(label: Path, recon: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both images as uint8 [H, W, 3]; UserError where their sizes differ."""
    pair = np.array(read_image(label)), np.array(read_image(recon))
    if pair[0].shape != pair[1].shape:
        sizes = [f"{p.shape[1]}x{p.shape[0]}" for p in pair]
        raise UserError(f"{recon}: {sizes[1]}, but its label {label} is {sizes[0]}")
    return pair


@dataclass
class Measured:
    """Metrics of a set of images."""

    rows: dict[str, dict[str, float]]  # image -> metric -> value
    fid: float | None = None
    matched: Matched | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Mean]:
        """Mean and standard error over the images, by metric; FID has no standard error."""
        metrics = list(next(iter(self.rows.values())))
        found = {m: mean_and_error([row[m] for row in self.rows.values()]) for m in metrics}
        if self.fid is not None:
            found["fid"] = Mean(self.fid, None, len(self.rows))
        return found


def image_metrics(
    names: Sequence[str], net: str, weights: Mapping[str, Path], device: Any
) -> dict[str, ImageMetric]:
    """The metrics of `names` that single images have (all but fid), ready to be called."""
    found: dict[str, ImageMetric] = {}
    for name in names:
        if name == "lpips":
            found[name] = Lpips(net, weights.get(net), device)
        elif name != "fid":
            found[name] = {"psnr": psnr, "ssim": ssim}[name]
    return found


def measure(
    matched: Matched,
    metrics: Sequence[str] = RUN_METRICS,
    net: str = "vgg",
    weights: Mapping[str, Path] | None = None,
    device: Any = "cpu",
) -> Measured:
    """All `metrics` of the matched images; UserError where one cannot be computed."""
    weights = weights or {}
    fid = None
    if "fid" in metrics:
        if len(matched.pairs) < 2:
            raise UserError(
                f"FID compares two distributions: it needs at least 2 images, got "
                f"{len(matched.pairs)}; leave fid out of --metrics"
            )
        fid = Fid(weights.get("inception"), device)
    functions = image_metrics(metrics, net, weights, device)
    rows, sets = {}, ([], [])
    for name, paths in matched.pairs.items():
        pair = read_pair(*paths)
        if "ssim" in functions and not ssim_is_defined(pair[0]):
            raise UserError(f"{paths[0]}: SSIM needs images of at least 7x7 pixels")
        rows[name] = {m: function(*pair) for m, function in functions.items()}
        if fid is not None:
            for images, image in zip(sets, pair, strict=True):
                images.append(image)
    settings = {"lpips_net": net} if "lpips" in metrics else {}
    return Measured(rows, None if fid is None else fid(*sets), matched, settings)


def to_csv(measured: Measured) -> str:
    """One line per image, then the mean and the standard error."""
    summary = measured.summary()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *summary])
    for name, row in measured.rows.items():
        writer.writerow([name, *(decimal(row.get(m), m) for m in summary)])
    writer.writerow(["mean", *(decimal(s.value, m) for m, s in summary.items())])
    writer.writerow(["standard error", *(decimal(s.error, m) for m, s in summary.items())])
    return text.getvalue()


def to_json(measured: Measured) -> str:
    """The same as an object, with the files that had no partner."""
    matched = measured.matched
    summary = measured.summary()
    document = {
        **measured.settings,
        "count": len(measured.rows),
        "mean": {m: _finite(s.value) for m, s in summary.items()},
        "standard_error": {m: s.error for m, s in summary.items()},
        "images": {n: {m: _finite(v) for m, v in r.items()} for n, r in measured.rows.items()},
        "only_label": matched.only_label if matched else [],
        "only_recon": matched.only_recon if matched else [],
    }
    return json.dumps(document, indent=2) + "\n"


def decimal(value: float | None, column: str) -> str:
    """The text of a figure in a file; empty where there is none."""
    return "" if value is None else f"{value:.{DECIMALS.get(column, _OTHER_DECIMALS)}f}"


def _finite(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)  # JSON knows no infinity


def _head(metric: str, settings: Mapping[str, Any]) -> str:
    return f"LPIPS {settings['lpips_net']}" if metric == "lpips" else UNITS[metric]


def to_table(measured: Measured) -> str:
    """The table for a terminal."""
    summary = measured.summary()
    width = max(len("standard error"), *(len(name) for name in measured.rows)) + 2
    heads = [_head(m, measured.settings) for m in summary]
    rows = [(n, [row.get(m) for m in summary]) for n, row in measured.rows.items()]
    rows.append(("mean", [s.value for s in summary.values()]))
    rows.append(("standard error", [s.error for s in summary.values()]))
    lines = ["".ljust(width) + "".join(head.rjust(14) for head in heads)]
    for name, values in rows:
        cells = (
            "" if v is None else f"{v:.{max(DECIMALS[m] - 2, 2)}f}"
            for m, v in zip(summary, values, strict=True)
        )
        lines.append(name.ljust(width) + "".join(cell.rjust(14) for cell in cells))
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--label", required=True, metavar="DIR", help="folder of true images")
    add("--recon", required=True, metavar="DIR", help="folder of restored images")
    add(
        "--metrics",
        nargs="+",
        choices=METRICS,
        default=list(RUN_METRICS),
        help="what to compute",
    )
    add_metric_options(parser)
    add_device(parser, "where LPIPS and FID run: ")
    add("--csv", metavar="FILE", help="where to write the table (default: beside --recon)")
    add("--json", metavar="FILE", help="where to write it as JSON (default: beside --recon)")
    return parser.parse_args(argv)


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    weights = parse_weights(args.weights)
    matched = match_folders(args.label, args.recon)
    _report_unmatched(matched)
    measured = measure(matched, args.metrics, args.lpips_net, weights, resolve_device(args.device))
    print(to_table(measured))
    beside = Path(args.recon).resolve().parent
    _write(Path(args.csv or beside / "compute_metric.csv"), to_csv(measured))
    _write(Path(args.json or beside / "compute_metric.json"), to_json(measured))
    return 0


def _report_unmatched(matched: Matched) -> None:
    log = get_logger()
    for what, names in (("label", matched.only_label), ("restored", matched.only_recon)):
        if names:
            more = f" and {len(names) - _SHOWN_NAMES} more" * (len(names) > _SHOWN_NAMES)
            shown = ", ".join(names[:_SHOWN_NAMES])
            log.warning("%d %s file(s) without a partner: %s%s", len(names), what, shown, more)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another with --csv and --json"
        ) from None
    get_logger().info("wrote %s", path)


if __name__ == "__main__":
    sys.exit(main())
