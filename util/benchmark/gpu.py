"""Everything that a session with a GPU has to tell, within a time limit.

  python -m util.benchmark gpu --out gpu                        # gpu.json and gpu.md
  python -m util.benchmark gpu --device cpu --model_configs configs/demo_model_config.yaml \\
      --image_size 32 --minutes 1 --out rehearsal               # a rehearsal without one

Checks: every number format and the compiled network against float32 on the processor, and every
operator. Timings: both published architectures with random weights, images per hour at the best
batch, beside the published loop's way of doing it. A profile: the kernels that take longest. What
does not fit into the time is named and left out.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from util.cli import add_device, command_parser, report_errors, resolve_device
from util.config.shipped import readable_config
from util.errors import UserError


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--model_configs",
        nargs="+",
        default=["configs/model_config.yaml", "configs/imagenet_model_config.yaml"],
        metavar="FILE",
        help="networks, with random weights (default: the two published ones)",
    )
    add("--image_size", type=int, metavar="S", help="side (default: the model configs')")
    add("--minutes", type=float, default=9.0, metavar="M", help="time for all of it")
    add("--repeats", type=int, default=5, help="timed steps a row, the median counts")
    add("--out", default="gpu", metavar="NAME", help="write NAME.json and NAME.md")
    add_device(parser)
    args = parser.parse_args(argv)
    if args.minutes <= 0 or args.repeats < 1:
        raise UserError("--minutes must be above 0, --repeats at least 1")
    out = Path(args.out)
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out {args.out}: no such folder")
    args.model_configs = [readable_config(name, "model") for name in args.model_configs]
    from util.benchmark.session import Session, markdown  # torch, which takes seconds

    session = Session(args, resolve_device(args.device))
    figures = session.figures
    try:
        session.run()
    finally:  # what was measured before something went wrong is kept
        Path(f"{out}.json").write_text(json.dumps(figures, indent=1) + "\n")
        Path(f"{out}.md").write_text(markdown(figures))
    print(f"\n{out}.json and {out}.md written")
    return 0 if all(check["passed"] for check in figures["checks"]) else 1
