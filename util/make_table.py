#!/usr/bin/env python3
"""Make tables: run methods on tasks, score them, and write Markdown, LaTeX, CSV and a figure.

Examples:

  # Small, with the prior that ships with the project
  python -m util.make_table configs/tables/demo.yaml --limit 2

  # Your photographs, three seeds, another size
  python -m util.make_table configs/tables/demo.yaml --data_root PHOTOGRAPHS --seeds 0 1 2 \\
      --set model.image_size=256 --set diffusion.num_steps=50

  # Cells divided between eight GPUs; a paper's table is one job
  torchrun --nproc_per_node=8 -m util.make_table configs/tables/ffhq.yaml --data_root FFHQ

  # Several tables and one document about them
  python -m util.make_table configs/tables/faces64*.yaml --data_root FACES --report faces.md

Finished images are kept in --cache and used again by every table that needs them, also after an
interruption: the same command goes on where it stopped. Images are known by their names: if a
photograph is replaced by another of the same name, remove the cache.
"""

if __package__ in (None, ""):  # run by its path: modules are found from the project's folder
    import os
    import sys

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import dataclasses
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from util.atomic import write
from util.cli import (
    PRECISION_NAMES,
    add_device,
    add_plugin,
    add_set,
    command_parser,
    report_errors,
    resolve_device,
)
from util.errors import UserError
from util.logger import get_logger
from util.metrics.base import metric_names
from util.metrics.perceptual import add_metric_options, parse_options
from util.plugins import load_plugins
from util.runs.distributed import join_world, local_device
from util.runs.interrupt import StopRequest
from util.tables.cells import Runner
from util.tables.figure import figure
from util.tables.measure import Scorer, TableResult, restore_share, run_table
from util.tables.render import latex, markdown, to_csv
from util.tables.spec import TableSpec, check_spec, load_spec

_JPEG_QUALITY = 85
_MARK = "<!-- util.make_table --report writes what follows, and keeps what stands above -->"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="table configs (configs/tables/*.yaml)")
    add("--out", default="results/tables", metavar="DIR", help="where the tables are written")
    add("--cache", default="results/cells", metavar="DIR", help="where finished images are kept")
    add("--report", metavar="FILE", help="also write all tables into one Markdown file")
    add("--limit", type=int, metavar="N", help="the first N images only")
    add("--seeds", type=int, nargs="+", metavar="K", help="seeds, instead of the table's")
    add("--batch_size", type=int, metavar="B", help="images restored at a time")
    add("--precision", choices=PRECISION_NAMES, help="of the network, instead of the table's")
    add("--fast", action="store_true", help="as of sample_condition.py, but for the precision")
    add("--data_root", metavar="DIR", help="a folder of images, instead of the table's data")
    add(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"what is scored, instead of the table's: {', '.join(metric_names())}",
    )
    add_metric_options(parser)
    add("--steps", type=int, metavar="N", help="of every row: diffusion.num_steps")
    add_plugin(parser)
    add("--dry_run", action="store_true", help="restore nothing, show what --cache holds")
    add_device(parser)
    add_set(parser, " in every cell")
    return parser.parse_args(argv)


def load_table(path: str, args: argparse.Namespace) -> TableSpec:
    """The table config with the command line's changes; plug-ins come before."""
    load_plugins(args.plugins)
    spec = load_spec(path)
    changes = {
        name: getattr(args, name)
        for name in ("limit", "seeds", "batch_size", "precision", "metrics")
        if getattr(args, name) is not None
    }
    if args.data_root is not None:
        changes["data"] = {**(spec.data or {}), "name": "folder", "root": args.data_root}
    for override in args.overrides:
        if override.strip().startswith("task.conditioning"):
            raise UserError(
                f"--set {override}: the rows of a table decide methods and parameters; edit {path}"
            )
    steps = [] if args.steps is None else [f"diffusion.num_steps={args.steps}"]
    kept = [o for o in spec.set if not steps or not o.startswith("diffusion.timestep_respacing")]
    changes["set"] = [*kept, *steps, *args.overrides]
    spec = dataclasses.replace(spec, **changes)
    check_spec(spec, path)
    return spec


class Writer:
    """Writes a table's files after every cell, so that an interrupted one can be looked at."""

    def __init__(self, folder: Path, name: str, fast: bool) -> None:
        self.folder, self.name, self.fast = folder, name, fast

    def __call__(self, table: TableResult) -> None:
        image = write_figure(self.folder / f"{self.name}.png", table)
        write(self.folder / f"{self.name}.md", markdown(table, image))
        write(self.folder / f"{self.name}.tex", latex(table))
        write(self.folder / f"{self.name}.csv", to_csv(table))
        lines = [
            f"# {result.cell.row.name}, {result.cell.task.name}\n"
            + result.cell.command(table.spec.seeds[0], table.spec.limit, self.fast)
            for row in table.cells
            for result in row
            if result.cell.row.method
        ]
        write(self.folder / f"{self.name}_commands.txt", "\n".join(lines) + "\n")


def write_figure(path: Path, table: TableResult) -> str | None:
    """The table's figure as a PNG or JPEG file, as its ending says, if it has one; its name."""
    picture = figure(table)
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, format=Image.registered_extensions()[path.suffix], quality=_JPEG_QUALITY)
    write(path, buffer.getvalue())
    return path.name


def report(
    path: Path,
    made: Sequence[tuple[str, TableResult]],
    command: str,
    device: torch.device,
    fast: bool,
) -> None:
    """One document with all tables; figures are written beside it. What was written by hand above
    the mark of an earlier one is kept."""
    before, marked, _ = (
        path.read_text(encoding="utf-8").partition(_MARK) if path.exists() else [""] * 3
    )
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [
        before if marked else "# Results\n\n",
        _MARK,
        "",
        "Measured by this program; `python -m util.make_table` wrote this file:",
        "",
        "    " + command,
        "",
        f"{place}, torch {torch.__version__}, {torch.get_num_threads()} thread(s). Seconds are "
        "those of the clock, whatever else ran. The commands give these numbers on such a machine; "
        "elsewhere rounding differs, and sampling amplifies that as another seed would.",
        "",
    ]
    for name, table in made:
        # A document is carried about, so its pictures are small.
        image = write_figure(path.with_name(f"{path.stem}_{name}.jpg"), table)
        cell = next((c.cell for row in table.cells for c in row if c.cell.row.method), None)
        parts.append(markdown(table, image))
        parts += [f"Photographs: {', '.join(table.names)}.", ""]
        if cell is not None:
            parts += [
                f"One cell alone ({cell.row.name}, {cell.task.name}):",
                "",
                "    " + cell.command(table.spec.seeds[0], table.spec.limit, fast),
                "",
            ]
    write(path, parts[0] + "\n".join(parts[1:]))
    get_logger().info("wrote %s", path)


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    specs = [(Path(path).stem, load_table(path, args)) for path in args.tables]
    world = join_world()
    device = resolve_device(local_device(args.device))
    options = parse_options(args, device)
    runner = Runner(Path(args.cache), device, args.dry_run, args.fast)
    made: list[tuple[str, TableResult]] = []
    # What the last table needs is missed before the first one runs.
    scorers = [Scorer(spec.metrics, options) for _, spec in specs]
    try:
        if world.size > 1 and not args.dry_run:
            with world.alive():
                restore_share([spec for _, spec in specs], runner, world)
        if not world.is_first:
            return 0
        if not args.dry_run:
            world.wait_for_others(StopRequest())  # what a lost rank has left is done below
        for (name, spec), scorer in zip(specs, scorers, strict=True):
            table = run_table(spec, runner, scorer, Writer(Path(args.out), name, args.fast))
            made.append((name, table))
            print(markdown(table))
            get_logger().info("wrote %s/%s.md, .tex, .csv, .png", args.out, name)
    except KeyboardInterrupt:
        get_logger().error("interrupted; the same command goes on from here")
        return 130
    if args.report is not None:
        words = sys.argv[1:] if argv is None else argv
        command = shlex.join(["python", "-m", "util.make_table", *words])
        report(Path(args.report), made, command, device, args.fast)
    return 1 if any(table.failed for _, table in made) else 0


if __name__ == "__main__":
    sys.exit(main())
