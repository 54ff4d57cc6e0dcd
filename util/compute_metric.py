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

if __package__ in (None, ""):  # run by its path: modules are found from the project's folder
    import os
    import sys

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.image_files import read_image
from util.cli import add_device, add_plugin, command_parser, report_errors, resolve_device
from util.errors import UserError
from util.files import explained
from util.logger import get_logger
from util.metrics.base import MetricOptions, get_metric, metric_names, run_metric_names
from util.metrics.perceptual import add_metric_options, parse_options
from util.plugins import load_plugins
from util.statistics import Mean, mean_and_error

_OTHER_DECIMALS = 4  # of columns that are no metrics
_SHOWN_NAMES = 5


def run_metrics(label: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """What every run computes, of uint8 [H, W, 3] images, without what they are too small for."""
    options, chosen = MetricOptions(), {name: get_metric(name) for name in run_metric_names()}
    return {
        name: metric.build(options)(label, image)
        for name, metric in chosen.items()
        if metric.is_defined(label, options)
    }


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
    from data.dataloader import find_images, output_name  # torch, which takes seconds

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
    sets: dict[str, float] = field(default_factory=dict)  # metric of the two sets -> value
    matched: Matched | None = None
    options: MetricOptions = field(default_factory=MetricOptions)
    failed: dict[str, str] = field(default_factory=dict)  # pairs that were left out -> why

    def summary(self) -> dict[str, Mean]:
        """Mean and standard error over the images, by metric; those of sets have no error."""
        rows = self.rows.values()
        metrics = dict.fromkeys(metric for row in rows for metric in row)
        found = {m: mean_and_error([row[m] for row in rows if m in row]) for m in metrics}
        return found | {m: Mean(value, None, len(self.rows)) for m, value in self.sets.items()}


def measure(
    matched: Matched,
    metrics: Sequence[str] | None = None,
    options: MetricOptions | None = None,
) -> Measured:
    """All `metrics`, else those of every run, of the matched images; UserError where one cannot be
    computed. A pair that cannot be read or differs in size is left out and named."""
    options = options or MetricOptions()
    chosen = {name: get_metric(name) for name in metrics or run_metric_names()}
    for metric in chosen.values():
        if len(matched.pairs) < metric.least_images:
            raise UserError(
                f"{metric.title} compares two distributions: it needs at least "
                f"{metric.least_images} images, got {len(matched.pairs)}; leave it out of --metrics"
            )
    functions = {name: metric.build(options) for name, metric in chosen.items()}
    log, rows, failed = get_logger(), {}, {}
    sets: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name, paths in matched.pairs.items():
        try:
            pair = read_pair(*paths)
        except UserError as error:
            failed[name] = str(error)
            continue
        for metric in chosen.values():
            if not metric.is_defined(pair[0], options):
                least = metric.least_side(options)
                log.warning("%s: no %s below %dx%d pixels", paths[0], metric.title, least, least)
        rows[name] = {
            m: f(*pair)
            for m, f in functions.items()
            if not chosen[m].of_sets and chosen[m].is_defined(pair[0], options)
        }
        if any(metric.of_sets for metric in chosen.values()):
            for images, image in zip(sets, pair, strict=True):
                images.append(image)
    if not rows:
        raise UserError(f"no pair could be compared: {next(iter(failed.values()))}")
    of_sets = {
        m: f(*sets)
        for m, f in functions.items()
        if chosen[m].of_sets and len(rows) >= chosen[m].least_images
    }
    return Measured(rows, of_sets, matched, options, failed)


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
        "variants": {m: _variant(m, measured.options) for m in summary},
        "count": len(measured.rows),
        "mean": {m: _finite(s.value) for m, s in summary.items()},
        "standard_error": {m: s.error for m, s in summary.items()},
        "images": {n: {m: _finite(v) for m, v in r.items()} for n, r in measured.rows.items()},
        "failed": measured.failed,
        "only_label": matched.only_label if matched else [],
        "only_recon": matched.only_recon if matched else [],
    }
    return json.dumps(document, indent=2) + "\n"


def decimal(value: float | None, column: str) -> str:
    """The text of a figure in a file; empty where there is none."""
    digits = get_metric(column).digits + 2 if column in metric_names() else _OTHER_DECIMALS
    return "" if value is None else f"{value:.{digits}f}"


def _finite(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)  # JSON knows no infinity


def _variant(metric: str, options: MetricOptions) -> str:
    return get_metric(metric).variant(options)


def _head(metric: str, options: MetricOptions) -> str:
    return f"{get_metric(metric).head} {_variant(metric, options)}".strip()


def to_table(measured: Measured) -> str:
    """The table for a terminal."""
    summary = measured.summary()
    width = max(len("standard error"), *(len(name) for name in measured.rows)) + 2
    heads = [_head(m, measured.options) for m in summary]
    rows = [(n, [row.get(m) for m in summary]) for n, row in measured.rows.items()]
    rows.append(("mean", [s.value for s in summary.values()]))
    rows.append(("standard error", [s.error for s in summary.values()]))
    lines = ["".ljust(width) + "".join(head.rjust(14) for head in heads)]
    for name, values in rows:
        cells = (
            "" if v is None else f"{v:.{get_metric(m).digits}f}"
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
        metavar="NAME",
        default=run_metric_names(),
        help=f"what to compute: {', '.join(metric_names())}",
    )
    add_metric_options(parser)
    add_plugin(parser)
    add_device(parser, "where LPIPS and FID run: ")
    add("--csv", metavar="FILE", help="where to write the table (default: beside --recon)")
    add("--json", metavar="FILE", help="where to write it as JSON (default: beside --recon)")
    return parser.parse_args(argv)


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    load_plugins(args.plugins)
    for metric in args.metrics:
        get_metric(metric, "--metrics")
    options = parse_options(args, resolve_device(args.device))
    matched = match_folders(args.label, args.recon)
    _report_unmatched(matched)
    measured = measure(matched, args.metrics, options)
    print(to_table(measured))
    recon = Path(args.recon).resolve()
    # Of the folders that a run makes only one is compared; others lie side by side.
    beside, name = recon.parent, "compute_metric"
    if recon.name != "recon":
        name += f"_{recon.name}"
    _write(Path(args.csv or beside / f"{name}.csv"), to_csv(measured))
    _write(Path(args.json or beside / f"{name}.json"), to_json(measured))
    if measured.failed:
        get_logger().error("%d pair(s) could not be compared:", len(measured.failed))
        for reason in measured.failed.values():
            get_logger().error("  %s", reason)
    return int(bool(measured.failed))


def _report_unmatched(matched: Matched) -> None:
    log = get_logger()
    for what, names in (("label", matched.only_label), ("restored", matched.only_recon)):
        if names:
            more = f" and {len(names) - _SHOWN_NAMES} more" * (len(names) > _SHOWN_NAMES)
            shown = ", ".join(names[:_SHOWN_NAMES])
            log.warning("%d %s file(s) without a partner: %s%s", len(names), what, shown, more)


def _write(path: Path, text: str) -> None:
    with explained(path, "written", "; choose another with --csv and --json"):
        path.write_bytes(text.encode(errors="surrogateescape"))
    get_logger().info("wrote %s", path)


if __name__ == "__main__":
    sys.exit(main())
