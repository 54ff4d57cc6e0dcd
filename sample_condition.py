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

  # Photographs of any size, restored by overlapping windows of the model's size
  python3 sample_condition.py --model_config=configs/demo_model_config.yaml \\
      --diffusion_config=configs/demo_diffusion_config.yaml \\
      --task_config=configs/super_resolution_config.yaml --data_root PHOTOGRAPHS --fit tile

  # Photographs that are blurred already, by a kernel in a file; sigma is on the range [-1, 1]
  python3 sample_condition.py --model_config=configs/demo_model_config.yaml \\
      --diffusion_config=configs/demo_diffusion_config.yaml \\
      --task_config=configs/motion_deblur_config.yaml --measurements BLURRED \\
      --kernel kernel.png --border 10 --set task.measurement.noise.sigma=0.02
"""

import argparse
import json
import sys
from pathlib import Path

from data.dataloader import DATASETS
from guided_diffusion.sampling import build_prior
from util.cli import report_errors, resolve_device
from util.errors import UserError
from util.logger import get_logger
from util.restoration import Outcome, Settings, build_operator, duration, restore_dataset
from util.results import Results
from util.run_config import RunConfig, load_run_config

_PROGRESS_IMAGES = 10  # per restored image, by default


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
    add("--batch_size", type=int, default=1, metavar="B", help="images restored at a time")
    add("--limit", type=int, metavar="N", help="restore the first N images only")
    add("--data_root", metavar="DIR", help="folder of images (task.data.root)")
    add(
        "--fit",
        metavar="HOW",
        help="images of another size: crop, resize, pad or tile (task.data.fit)",
    )
    add(
        "--measurements",
        metavar="DIR",
        help="folder of degraded images to restore; there are no labels",
    )
    add("--kernel", metavar="FILE", help="blur kernel, .npy, .pt or an image")
    add("--masks", metavar="PATH", help="mask, or folder of masks by image name: white is kept")
    add(
        "--border",
        type=int,
        metavar="N",
        help="outermost pixels of --measurements that are left out of the data term",
    )
    add("--grey", action="store_true", help="save grey images for grey sources")
    add(
        "--record_every",
        type=int,
        metavar="K",
        help=f"save x0_hat every K steps, 0: never (default: {_PROGRESS_IMAGES} images a run)",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override a config key, SECTION model, diffusion or task; repeatable",
    )
    args = parser.parse_args(argv)
    for name, least in (("batch_size", 1), ("limit", 1), ("record_every", 0), ("gpu", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    return args


def load_config(args: argparse.Namespace) -> RunConfig:
    """The three configs with --set and the shorthands for config keys."""
    given = {
        "task.data.root": args.data_root,
        "task.data": args.measurements and {"name": "measurements", "root": args.measurements},
        "task.data.fit": args.fit,
        "task.data.border": args.border,
        "task.measurement.operator.kernel": args.kernel,
        "task.measurement.mask_opt.mask": args.masks,
    }
    # JSON is YAML that quotes every path in it.
    shorthands = [f"{key}={json.dumps(v)}" for key, v in given.items() if v is not None]
    overrides = [*shorthands, *args.overrides]
    config = load_run_config(args.model_config, args.diffusion_config, args.task_config, overrides)
    operator = config.task.operator.name
    if args.masks is not None and operator != "inpainting":
        raise UserError(f"--masks: the operator is {operator}, only inpainting has masks")
    return config


@report_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    config = load_config(args)
    device = resolve_device(args.device if args.gpu is None else f"cuda:{args.gpu}")
    dataset = config.task.data.build(DATASETS, image_size=config.model.unet.image_size)
    dataset.check_outputs()
    names = list(dataset.names)[: args.limit]
    get_logger().info("%d image(s); %s", len(names), dataset.describe_fit())
    steps = config.diffusion.build().num_timesteps
    every = args.record_every
    every = max(1, steps // _PROGRESS_IMAGES) if every is None else every
    settings = Settings(args.seed, args.batch_size, every, device, args.grey)
    prior = build_prior(config.model, config.diffusion, device)
    operator = build_operator(config, settings)
    results = Results(Path(args.save_dir) / config.task.operator.name)
    results.save_run(
        config.raw, {"seed": args.seed, "device": str(device), "batch_size": args.batch_size}
    )
    for stem, array in operator.saved().items():
        results.save_array(stem, array)
    outcome = restore_dataset(config, settings, dataset, names, prior, results)
    return report(results, outcome)


def report(results: Results, outcome: Outcome) -> int:
    """Say what came out; the exit status of the program."""
    log = get_logger()
    if outcome.restored:
        shown = {"psnr": "PSNR %.2f dB", "ssim": "SSIM %.3f", "residual": "residual %.3g"}
        means = results.means()
        log.info(
            "restored %d image(s) in %s: %s; results in %s",
            len(outcome.restored),
            duration(outcome.seconds),
            ", ".join(text % means[metric] for metric, text in shown.items() if metric in means),
            results.root,
        )
    if outcome.failed:
        log.error("%d image(s) failed:", len(outcome.failed))
        for name, reason in outcome.failed.items():
            log.error("  %s: %s", name, reason)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
