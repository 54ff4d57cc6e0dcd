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
interruption: the same command goes on where it stopped.
"""

if __package__ in (None, ""):  # run by its path: modules are found from the project's folder
    import os
    import sys

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from util.cli import (
    PRECISION_NAMES,
    add_device,
    add_plugin,
    add_set,
    command_parser,
    report_errors,
    resolve_device,
)
from util.config.shipped import readable_config
from util.errors import UserError
from util.logger import get_logger
from util.metrics.base import get_metric, metric_names
from util.metrics.perceptual import add_metric_options, parse_options
from util.plugins import load_plugins
from util.runs.interrupt import StopRequest


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
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry_run",
        action="store_true",
        help="restore nothing and leave --out alone, show what --cache holds (also in --report)",
    )
    instead.add_argument(
        "--plan",
        action="store_true",
        help="say what is left to be restored, in what time and into how many bytes, and do "
        "nothing; the network and a few steps of every method are timed",
    )
    add_device(parser)
    add_set(parser, " in every cell")
    args = parser.parse_args(argv)
    for table in args.tables:
        readable_config(table, "table")
    return args


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    return run(args, shlex.join(["python", "-m", "util.make_table", *words]))


def run(args: argparse.Namespace, command: str) -> int:
    """Make the tables; the exit status of the program."""
    load_plugins(args.plugins)
    for metric in args.metrics or []:
        get_metric(metric, "--metrics")
    from util.runs.distributed import join_world, local_device  # torch, which takes seconds
    from util.tables.cells import Runner
    from util.tables.forecast import Forecaster
    from util.tables.loading import load_table
    from util.tables.measure import Scorer, TableResult, restore_share, run_table
    from util.tables.render import markdown
    from util.tables.writing import Writer, kept, report

    specs = [(Path(path).stem, load_table(path, args)) for path in args.tables]
    names = [name for name, _ in specs]
    if len(set(names)) < len(names):
        raise UserError(f"{' '.join(args.tables)}: tables of one name would replace each other")
    if args.report is not None:
        kept(Path(args.report))  # what cannot be read is said now
    world = join_world()
    device = resolve_device(local_device(args.device))
    runner = Runner(Path(args.cache), device, args.dry_run, args.fast)
    if args.plan:
        forecaster = Forecaster(runner)
        tables = [forecaster.table(spec, name) for name, spec in specs] if world.is_first else []
        print(*(table.text(world.size) for table in tables), sep="\n\n")
        return int(any(table.failed for table in tables))
    options = parse_options(args, device)
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
            if args.dry_run:
                table = run_table(spec, runner, scorer)
            else:
                writer = Writer(Path(args.out), name, args.fast)
                table = run_table(spec, runner, scorer, writer)
            made.append((name, table))
            print(markdown(table))
            if not args.dry_run:
                get_logger().info("wrote %s/%s.md, .tex, .csv, .png", args.out, name)
    except KeyboardInterrupt:
        get_logger().error("interrupted; the same command goes on from here")
        return 130
    if args.report is not None:
        report(Path(args.report), made, command, device, args.fast)
    return 1 if any(table.failed for _, table in made) else 0


if __name__ == "__main__":
    sys.exit(main())
