#!/usr/bin/env python3
"""Restore images by diffusion posterior proximal sampling (DPPS).

Examples:

  # The prior that ships with the project, on photographs that scikit-image carries
  python3 sample_condition.py --task super_resolution --set task.data.name=skimage --limit 1

  # The published setting for faces (first: python -m models.download ffhq)
  python3 sample_condition.py --model_config=configs/model_config.yaml \\
      --diffusion_config=configs/diffusion_config.yaml \\
      --task_config=configs/gaussian_deblur_config.yaml --gpu 0 --data_root FACES

  # DPS instead of DPPS, 8 images at a time
  python3 sample_condition.py --task inpainting --data_root PHOTOGRAPHS --batch_size 8 \\
      --set task.conditioning.method=ps --set task.conditioning.params.scale=4

  # A large folder on 4 GPUs; started again after an interruption it does only the rest
  torchrun --nproc_per_node=4 sample_condition.py --model_config model_config \\
      --task motion_deblur --batch_size auto --data_root FACES

  # Photographs of any size, restored by overlapping windows of the model's size
  python3 sample_condition.py --task super_resolution --data_root PHOTOGRAPHS --fit tile

  # Photographs that are blurred already, by a kernel in a file; sigma is on the range [-1, 1]
  python3 sample_condition.py --task motion_deblur --measurements BLURRED \\
      --kernel kernel.png --border 10 --set task.measurement.noise.sigma=0.02

Exit status: 0 all images are finished, 1 some failed, 2 wrong usage or nothing can be written,
130 or 143 stopped by SIGINT or SIGTERM.
"""

import argparse
import sys

from util.cli import report_errors
from util.logger import set_verbosity
from util.runs.arguments import parse_args
from util.runs.interrupt import Interrupted, StopRequest


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv, __doc__)
    set_verbosity(args.quiet, args.verbose)
    with StopRequest() as stop:
        try:
            return run(args, stop)
        except Interrupted:
            return stop.exit_status or 130


def run(args: argparse.Namespace, stop: StopRequest) -> int:
    """Restore what is to be restored and report; the exit status of the program."""
    from util.runs.loading import load_job  # torch, which takes seconds

    job = load_job(args, stop)
    names = list(job.dataset.names)[: args.limit]
    if args.plan:
        if job.world.is_first:
            print(job.foretell(names, args.overwrite))
        return 0
    plan = job.begin(names, args.overwrite)
    job.restore(plan)
    return job.report(plan, names)


if __name__ == "__main__":
    sys.exit(main())
