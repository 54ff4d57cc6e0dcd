#!/usr/bin/env python3
"""Restore images by diffusion posterior proximal sampling (DPPS).

Examples:

  # The prior that ships with the project, on photographs that scikit-image carries
  python3 sample_condition.py --model_config=configs/demo_model_config.yaml \\
      --diffusion_config=configs/demo_diffusion_config.yaml \\
      --task_config=configs/super_resolution_config.yaml --set task.data.name=skimage --limit 1

  # The published setting for faces (first: python -m models.download ffhq)
  python3 sample_condition.py --model_config=configs/model_config.yaml \\
      --diffusion_config=configs/diffusion_config.yaml \\
      --task_config=configs/gaussian_deblur_config.yaml --gpu 0 --data_root FACES

  # DPS instead of DPPS, 8 images at a time
  python3 sample_condition.py --model_config=configs/demo_model_config.yaml \\
      --diffusion_config=configs/demo_diffusion_config.yaml \\
      --task_config=configs/inpainting_config.yaml --set task.data.name=skimage \\
      --set task.conditioning.method=ps --set task.conditioning.params.scale=4 --batch_size 8

  # A large folder on 4 GPUs; started again after an interruption it does only the rest
  torchrun --nproc_per_node=4 sample_condition.py --model_config=configs/model_config.yaml \\
      --diffusion_config=configs/diffusion_config.yaml \\
      --task_config=configs/motion_deblur_config.yaml --batch_size auto --data_root FACES

  # Photographs of any size, restored by overlapping windows of the model's size
  python3 sample_condition.py --model_config=configs/demo_model_config.yaml \\
      --diffusion_config=configs/demo_diffusion_config.yaml \\
      --task_config=configs/super_resolution_config.yaml --data_root PHOTOGRAPHS --fit tile

  # Photographs that are blurred already, by a kernel in a file; sigma is on the range [-1, 1]
  python3 sample_condition.py --model_config=configs/demo_model_config.yaml \\
      --diffusion_config=configs/demo_diffusion_config.yaml \\
      --task_config=configs/motion_deblur_config.yaml --measurements BLURRED \\
      --kernel kernel.png --border 10 --set task.measurement.noise.sigma=0.02

Exit status: 0 all images are finished, 1 some failed, 2 wrong usage or nothing can be written,
130 or 143 stopped by SIGINT or SIGTERM.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.dataloader import DATASETS, output_name
from guided_diffusion.precision import Execution
from models.prior import build_prior
from util.atomic import sweep
from util.cli import report_errors, resolve_device
from util.logger import get_logger, set_verbosity
from util.runs.arguments import load_config, parse_args
from util.runs.distributed import join_world, local_device, was_restarted
from util.runs.interrupt import Interrupted, StopRequest
from util.runs.plan import Plan, least_bytes, make_plan, result_settings
from util.runs.recording import parse_record
from util.runs.report import final_report
from util.runs.restoration import Restoration, Settings
from util.runs.results import Results


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv, __doc__)
    set_verbosity(args.quiet, args.verbose)
    with StopRequest() as stop:
        try:
            return run(args, stop)
        except Interrupted:
            return stop.exit_status


def run(args: argparse.Namespace, stop: StopRequest) -> int:
    """Restore what is to be restored and report; the exit status of the program."""
    log, started = get_logger(), time.perf_counter()
    config = load_config(args)
    wanted = (args.device or "auto") if args.gpu is None else f"cuda:{args.gpu}"
    device = resolve_device(local_device(wanted))
    dataset = config.task.data.build(DATASETS, image_size=config.model.unet.image_size)
    names = list(dataset.names)[: args.limit]
    record = parse_record(args.record)
    settings = Settings(
        args.seed,
        args.batch_size,
        record,
        device,
        args.grey,
        args.output_depth,
        args.measurement_seed,
    )
    results = Results(Path(args.save_dir) / config.task.operator.name)
    # All that can be wrong with the configs and the checkpoint is found before anything is written.
    execution = Execution(args.precision, args.compile, args.fast)
    prior = build_prior(config.model, config.diffusion, device, execution)
    world = join_world()
    restoration = Restoration(config, settings, dataset, prior, results, world, stop)

    def begin() -> Plan:
        precision = prior.model.execution.precision
        pixels = result_settings(config, settings, dataset, restoration.operator, precision)
        overwrite = args.overwrite and not was_restarted()
        plan = make_plan(results, pixels, restoration.sources, names, overwrite)
        command = {
            "seed": args.seed,
            "device": str(device),
            "batch_size": args.batch_size or "auto",
            "precision": precision,
            "compile": prior.model.execution.compile,
        }
        sweep(results.root)
        steps = restoration.method.first_step(prior.diffusion) + 1
        operator = restoration.operator
        results.check_space(least_bytes(settings, dataset, operator, len(plan.names), steps))
        results.save_run(config.raw, {**command, "record": asdict(record)})
        for stem, array in restoration.operator.saved().items():
            results.save_array(stem, array)
        return plan

    plan = world.agree(begin, device)
    if world.is_first:
        log.info("%d image(s); %s", len(names), dataset.describe_fit())
        if plan.finished:
            log.info("%d of them finished before; %d to go", plan.finished, len(plan.names))
    try:
        if plan.names:
            restoration.run(world.share_of(plan.names), plan.config, len(plan.names))
            if world.is_first:
                world.wait_for_others(stop)
    except Interrupted:
        again = "the same command without --overwrite" if args.overwrite else "the same command"
        log.warning("stopped by signal %d; %s goes on from here", stop.signal, again)
    if not world.is_first:
        return stop.exit_status or 0
    seconds = time.perf_counter() - started
    return report(results, plan, names, dataset.names, seconds, stop)


def report(
    results: Results,
    plan: Plan,
    names: Sequence[str],
    there: Sequence[str],
    seconds: float,
    stop: StopRequest,
) -> int:
    """Write the reports, say what came out; the exit status of the program.

    names: the images that were asked for; there: all images of the data set
    """
    log = get_logger()
    outcome = final_report(results, plan.config, names)
    log.info("%s", outcome.table(seconds))
    gone = {row.name for row in outcome.rows} - {output_name(name) for name in there}
    if gone:
        log.warning(
            "%d finished image(s) are no longer among the images, but count in the figures above: "
            "%s; choose another --save_dir to leave them out",
            *(len(gone), ", ".join(sorted(gone)[:5]) + ", ..." * (len(gone) > 5)),
        )
    log.info("results in %s; look at %s", results.root, results.root / "report.html")
    if outcome.failed:
        log.error("%d image(s) failed:", len(outcome.failed))
        for name, reason in outcome.failed.items():
            log.error("  %s: %s", name, reason)
    if stop.exit_status is not None:
        return stop.exit_status
    if outcome.missing:
        log.error("%d image(s) are not done; the same command goes on", len(outcome.missing))
    return 1 if outcome.failed or outcome.missing else 0


if __name__ == "__main__":
    sys.exit(main())
