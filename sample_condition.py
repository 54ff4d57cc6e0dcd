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

Exit status: 0 all images are finished, 1 some failed, 2 wrong usage or nothing can be written,
130 or 143 stopped by SIGINT or SIGTERM.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.dataloader import DATASETS
from guided_diffusion.precision import PRECISIONS, Execution
from guided_diffusion.sampling import build_prior
from util.cli import report_errors, resolve_device
from util.distributed import join_world, local_device
from util.errors import UserError
from util.interrupt import Interrupted, StopRequest
from util.logger import get_logger, set_verbosity
from util.plan import Plan, make_plan, result_settings
from util.recording import parse_record
from util.report import final_report
from util.restoration import Restoration, Settings, build_operator
from util.results import Results
from util.run_config import RunConfig, load_run_config


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    description, _, examples = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=Formatter
    )
    add = parser.add_argument
    add("--model_config", required=True, metavar="FILE", help="network and checkpoint")
    add("--diffusion_config", required=True, metavar="FILE", help="process and sampler")
    add("--task_config", required=True, metavar="FILE", help="operator, noise, method, data")
    add("--save_dir", default="./results", metavar="DIR", help="results folder")
    add("--gpu", type=int, metavar="N", help="CUDA device; the same as --device cuda:N")
    add("--device", default="auto", help="cuda, cuda:N, mps, cpu, or auto: the best there is")
    add("--seed", type=int, default=0, help="seed of all random numbers")
    add("--batch_size", default="1", metavar="B", help="images at a time, or auto: what fits")
    add("--precision", choices=PRECISIONS, help="of the network (default: the model config's)")
    add("--compile", action="store_true", help="run the network through torch.compile")
    add("--fast", action="store_true", help="fastest precision; on CUDA also --compile and auto")
    add("--limit", type=int, metavar="N", help="restore the first N images only")
    add("--data_root", metavar="DIR", help="folder of images (task.data.root)")
    add(
        "--record",
        metavar="every=N[,gif|mp4]",
        help="save x_t and x0_hat every N steps, and a film; or none; left out: 10 of each",
    )
    add("--overwrite", action="store_true", help="restore everything anew, replacing results")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="warnings and errors only")
    loudness.add_argument("--verbose", action="store_true", help="lines about the steps as well")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override a config key, SECTION model, diffusion or task; repeatable",
    )
    args = parser.parse_args(argv)
    args.batch_size = _batch_size(args.batch_size)
    for name, least in (("limit", 1), ("gpu", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    return args


def _batch_size(text: str) -> int | None:
    """Images at a time; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'--batch_size {text}: expected a whole number from 1 up, or "auto"')
    return int(text)


def load_config(args: argparse.Namespace) -> RunConfig:
    overrides = list(args.overrides)
    if args.data_root is not None:
        overrides.append(f"task.data.root={args.data_root!r}")
    return load_run_config(args.model_config, args.diffusion_config, args.task_config, overrides)


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
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
    name = args.device if args.gpu is None else f"cuda:{args.gpu}"
    device = resolve_device(local_device(name))
    dataset = config.task.data.build(DATASETS, image_size=config.model.unet.image_size)
    dataset.check_outputs()
    names = list(dataset.names)[: args.limit]
    record = parse_record(args.record, config.diffusion.build().num_timesteps)
    if args.fast and device.type == "cuda":
        args.batch_size = None  # auto
    settings = Settings(args.seed, args.batch_size, record, device)
    operator = build_operator(config, settings)
    results = Results(Path(args.save_dir) / config.task.operator.name)
    # All that can be wrong with the configs and the checkpoint is found before anything is written.
    execution = Execution(args.precision, args.compile, args.fast)
    prior = build_prior(config.model, config.diffusion, device, execution)
    world = join_world()
    restoration = Restoration(config, settings, dataset, prior, operator, results, world, stop)

    def begin() -> Plan:
        pixels = result_settings(config, args.seed, device, operator)
        plan = make_plan(results, pixels, dataset, names, args.overwrite)
        command = {
            "seed": args.seed,
            "device": str(device),
            "batch_size": args.batch_size or "auto",
            "precision": prior.model.execution.precision,
            "compile": prior.model.execution.compile,
        }
        results.save_run(config.raw, {**command, "record": asdict(record)})
        for stem, array in operator.saved().items():
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
        log.warning("stopped by signal %d; the same command goes on from here", stop.signal)
    if not world.is_first:
        return stop.exit_status or 0
    return report(results, plan, names, time.perf_counter() - started, stop)


def report(
    results: Results, plan: Plan, names: Sequence[str], seconds: float, stop: StopRequest
) -> int:
    """Write the reports, say what came out; the exit status of the program."""
    log = get_logger()
    outcome = final_report(results, plan.config, names)
    log.info("%s", outcome.table(seconds))
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
