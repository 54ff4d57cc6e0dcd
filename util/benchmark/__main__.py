"""Time the program on this machine: steps and their parts, beside the plain loop and deepinv.

  python -m util.benchmark                                       # demo network, a few minutes
  python -m util.benchmark --model_config configs/model_config.yaml --device cuda \\
      --batch_sizes 1,4,16,32 --modes fp32,tf32,bf16,bf16+compile --json h100.json
  python -m util.benchmark gpu --help                            # all that a GPU has to tell
  python -m util.benchmark --operators
  python -m util.benchmark --memory                              # peak by image size and mode
  python -m util.benchmark --compare_fast --data_root DIR --limit 16 --seeds 3

Random weights serve for speed, so no checkpoint is needed (--compare_fast reads one). The times
of one row are taken in turn, and each is a median; rows follow one another, so compare them on
a machine that does nothing else.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from util.benchmark import gpu
from util.cli import PRECISION_NAMES, add_device, command_parser, report_errors
from util.config.shipped import readable_config
from util.errors import UserError

TASKS = ("super_resolution", "gaussian_blur", "motion_blur", "inpainting")


def _list(kind: Callable) -> Callable[[str], list]:
    return lambda text: [kind(part) for part in text.split(",") if part]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--model_config",
        default="configs/demo_model_config.yaml",
        metavar="FILE",
        help="the network",
    )
    add("--image_size", type=int, metavar="S", help="side (default: the model config's)")
    add_device(parser)
    add("--threads", type=int, metavar="N", help="CPU threads")
    add("--tasks", type=_list(str), default=list(TASKS), help="comma list (default: all four)")
    add("--batch_sizes", type=_list(int), default=[1], help="comma list (default: 1)")
    add(
        "--modes",
        type=_list(str),
        help='comma list of precisions, each with "+fast", "+compile" or nothing (default: fp32, '
        "and --fast in the formats that the device has)",
    )
    add("--repeats", type=int, default=3, help="timed steps a row, the median counts")
    add("--no_plain", action="store_true", help="leave the plain loop out")
    add("--json", metavar="FILE", help="write the figures there as well")
    add("--operators", action="store_true", help="the operators on 50 candidates, nothing else")
    add("--memory", action="store_true", help="the peak of a step by image size, nothing else")
    add("--compare_fast", action="store_true", help="PSNR of --fast against fp32, and nothing else")
    add(
        "--diffusion_config",
        default="configs/demo_diffusion_config.yaml",
        metavar="FILE",
        help="--compare_fast: process and sampler",
    )
    add("--data_root", metavar="DIR", help="--compare_fast: folder of photographs")
    add("--limit", type=int, default=16, help="--compare_fast: number of photographs")
    add("--seeds", type=int, default=3, help="--compare_fast: number of seeds")
    args = parser.parse_args(argv)
    for task in args.tasks:
        if task not in TASKS:
            raise UserError(f"--tasks {task}: expected some of {', '.join(TASKS)}")
    for mode in args.modes or ():
        check_mode(mode)
    numbers = (*args.batch_sizes, args.repeats, args.limit, args.seeds)
    if min(numbers) < 1 or (args.threads is not None and args.threads < 1):
        raise UserError("--batch_sizes, --repeats, --threads, --limit, --seeds: at least 1")
    return args


def check_mode(mode: str) -> None:
    """UserError for anything but "bf16", "bf16+fast", "bf16+compile" and the like."""
    precision, plus, rest = mode.partition("+")
    if precision not in PRECISION_NAMES or rest not in (("fast", "compile") if plus else ("",)):
        raise UserError(
            f'--modes {mode}: expected {", ".join(PRECISION_NAMES)}, with "+fast" or "+compile" '
            "after it or not"
        )


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "gpu":
        return gpu.main(argv[1:])
    args = parse_args(argv)
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise UserError(f"--json {args.json}: no such folder")
    args.model_config = readable_config(args.model_config, "model")
    from util.benchmark.sweep import run  # torch, which takes seconds

    figures = run(args)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
