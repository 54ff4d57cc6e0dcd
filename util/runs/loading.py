"""From checked arguments to the run that they describe."""

import argparse
import os
from pathlib import Path

from data.dataloader import DATASETS
from guided_diffusion.precision import Execution
from models.prior import build_prior
from util.cli import resolve_device
from util.config.overrides import override_of
from util.config.run_config import RunConfig, load_run_config
from util.errors import UserError
from util.plugins import load_plugins
from util.runs.distributed import join_world, local_device
from util.runs.interrupt import StopRequest
from util.runs.job import Job
from util.runs.recording import parse_record
from util.runs.restoration import Restoration
from util.runs.results import Results
from util.runs.settings import Settings


def load_job(args: argparse.Namespace, stop: StopRequest) -> Job:
    """The run that the arguments describe: configs, images, checkpoint, and nothing written yet."""
    config = load_config(args)
    wanted = (args.device or "auto") if args.gpu is None else f"cuda:{args.gpu}"
    settings = Settings(
        seed=args.seed,
        batch_size=args.batch_size,
        record=parse_record(args.record),
        device=resolve_device(local_device(wanted)),
        grey=args.grey,
        output_depth=args.output_depth,
        measurement_seed=args.measurement_seed,
        samples=args.samples,
    )
    dataset = config.task.data.build(DATASETS, image_size=config.model.image_size)
    if args.compile and settings.device.type == "cpu":
        raise UserError(
            "--compile: on a processor it takes minutes and gains less than --fast; give that"
        )
    execution = Execution(args.precision, args.compile, args.fast)
    prior = build_prior(config.model, config.diffusion, settings.device, execution)
    results = Results(Path(args.save_dir) / config.task.operator.name)
    return Job(Restoration(config, settings, dataset, prior, results, join_world(), stop))


def load_config(args: argparse.Namespace) -> RunConfig:
    """The three configs with --set and the shorthands for config keys; plug-ins come before."""
    load_plugins(args.plugins)
    if args.data_root is not None and args.measurements is not None:
        raise UserError("--data_root holds clean images, --measurements degraded ones; give one")
    given = {
        "task.data.name": args.measurements and "measurements",
        "task.data.root": args.data_root or args.measurements,
        "task.data.fit": args.fit,
        "task.data.border": args.border,
        "task.measurement.operator.kernel": args.kernel,
        "task.measurement.operator.kernel_is": args.kernel_is,
        "task.measurement.mask_opt.mask": args.masks,
        "task.measurement.mask_opt.mask_is": args.mask_is,
        "task.measurement.mask_opt.keep_known": args.keep_known,
    }
    shorthands = [override_of(key, v) for key, v in given.items() if v is not None]
    overrides = [*shorthands, *args.overrides]
    if args.steps is not None:
        if any(o.strip().startswith("diffusion.timestep_respacing") for o in overrides):
            raise UserError("--steps and diffusion.timestep_respacing both say it; give one")
        if any(o.strip().startswith("diffusion.num_steps") for o in overrides):
            raise UserError("--steps and --set diffusion.num_steps say the same thing; give one")
        overrides.insert(0, f"diffusion.num_steps={args.steps}")
    config = _checked(args, overrides)
    root = config.task.data.params.get("root", "")
    chosen = any(o.strip().startswith("task.data") for o in overrides)
    if root and not chosen and not os.path.isdir(root):
        raise UserError(
            f"no folder of images: give --data_root FOLDER, or --measurements FOLDER for damaged "
            f"ones (the config names {root}, which is not there)"
        )
    data = config.task.data.name
    if args.data_root is not None and not getattr(DATASETS.get(data), "has_folder", True):
        raise UserError(f"--data_root: task.data.name {data} has no folder; leave one of them out")
    operator = config.task.operator.name
    for name in ("masks", "mask_is", "keep_known"):
        if getattr(args, name) is not None and operator != "inpainting":
            raise UserError(f"--{name}: the operator is {operator}, only inpainting has masks")
    if args.mask_is is not None and (config.task.mask_opt is None or not config.task.mask_opt.mask):
        raise UserError("--mask_is says what white means in --masks; give --masks as well")
    return config


def _checked(args: argparse.Namespace, overrides: list[str]) -> RunConfig:
    """The configs; what is wrong with an option's key is said of the option."""
    files = (args.model_config, args.diffusion_config, args.task_config)
    try:
        return load_run_config(*files, overrides)
    except UserError as error:
        for option in ("fit", "border", "kernel", "kernel_is"):
            if getattr(args, option) is not None and f'unknown key "{option}"' in str(error):
                raise UserError(f"--{option} has no part in this run: {error}") from None
        raise
