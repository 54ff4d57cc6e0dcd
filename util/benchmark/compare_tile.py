#!/usr/bin/env python3
"""Restore photographs larger than the model by `tile`, and by windows that know nothing of each
other, from the same measurement; compare.

    python -m util.benchmark.compare_tile PHOTOGRAPH ... --save_dir results/tile

Both ways draw the same noise: they differ by what the windows know, hardly by luck. For each task
it prints the PSNR of both and how visible the borders between the independent windows are in
either: the mean jump across these borders over the mean jump between neighbouring pixels
elsewhere, divided by the same figure of the original (1: no more than chance); with several
photographs or seeds, also the mean of both and of their difference. The pictures, of the first
seed, show measurement, independent windows, tile, original.
"""

import sys
from collections.abc import Sequence

from util.cli import PRECISION_NAMES, add_device, command_parser, report_errors
from util.config.shipped import readable_config
from util.errors import UserError

TASKS = ("super_resolution", "gaussian_blur", "inpainting", "motion_blur")


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("photographs", nargs="+", help="larger than the model's windows; the centre is taken")
    add("--save_dir", default="results/tile", help="where the pictures go")
    add("--tasks", nargs="+", default=TASKS[:3], choices=TASKS, help="what is compared")
    add("--model_config", default="configs/demo_model_config.yaml", help="network")
    add("--diffusion_config", default="configs/demo_diffusion_config.yaml", help="steps, guidance")
    add("--overlap", type=int, help="pixels that windows share (default: a quarter window)")
    add("--seed", type=int, default=0, help="of kernel, mask, noise and samples; the first of them")
    add("--seeds", type=int, default=1, help="how many, from --seed on")
    add("--precision", choices=PRECISION_NAMES, help="of the network")
    add("--compile", action="store_true", help="run the network through torch.compile")
    add_device(parser)
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: at least 1 is needed")
    args.model_config = readable_config(args.model_config, "model")
    args.diffusion_config = readable_config(args.diffusion_config, "diffusion")
    from util.benchmark.windows import compare  # torch, which takes seconds

    compare(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
