"""Does --fast change the quality? Paired PSNR differences over photographs and seeds."""

import argparse
from typing import Any

import torch

from data.dataloader import ImageFolder
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.precision import Execution
from guided_diffusion.sampling import Prior
from models.prior import build_prior, restore, with_process
from util.benchmark.case import build_operator
from util.config.run_config import load_diffusion_config, load_model_config
from util.errors import UserError
from util.img_utils import to_pixels
from util.metrics.pixels import psnr
from util.randomness import ImageKey, PerImageNoise
from util.statistics import paired_difference


def compare_fast(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Print and return, for each task, PSNR(--fast) - PSNR(fp32): mean and 95 % interval.

    The first of --modes, where given, stands in for --fast.

    Both runs of a pair draw the same measurement and the same noise. The interval is Student's
    over photographs, whose differences are first averaged over seeds: those of one photograph
    are not independent.
    """
    if args.data_root is None:
        raise UserError("--compare_fast: needs --data_root, a folder of photographs")
    model = load_model_config(args.model_config)
    diffusion = load_diffusion_config(args.diffusion_config)
    size = args.image_size or model.image_size
    dataset = ImageFolder(args.data_root, image_size=size)
    names = dataset.names[: args.limit]
    if len(names) < 2:
        raise UserError("--compare_fast: an interval needs 2 photographs or more")
    exact = build_prior(model, diffusion, device, Execution("fp32"))
    precision, _, compiled = (args.modes or [""])[0].partition("+")
    execution = Execution(precision, bool(compiled)) if precision else Execution(fast=True)
    fast = build_prior(model, diffusion, device, execution)
    figures: dict[str, Any] = {"images": len(names), "seeds": args.seeds}
    for task in args.tasks:
        guided, params = diffusion.guided(task)
        priors = [with_process(prior, guided, model) for prior in (exact, fast)]
        found: tuple[dict[tuple[str, int], float], ...] = ({}, {})  # PSNR by image and seed
        for name in names:
            label = dataset.load(name)[None].to(device)
            for seed in range(args.seeds):
                for values, prior in zip(found, priors, strict=True):
                    key = ImageKey(seed, name)
                    values[name, seed] = _psnr(prior, task, params, label, key)
        paired = paired_difference(found[1], found[0])
        figures[task] = {
            "mean_db": paired.difference,
            "low_db": paired.low,
            "high_db": paired.high,
        }
        print(
            f"{task}: {paired.difference:+.4f} dB, 95 % interval {paired.low:+.4f} .. "
            f"{paired.high:+.4f} ({len(names)} photographs, {args.seeds} seed(s))",
            flush=True,
        )
    return figures


def _psnr(
    prior: Prior, task: str, params: dict[str, Any], label: torch.Tensor, key: ImageKey
) -> float:
    operator = build_operator(task, label.shape[-1], label.device).bind([key])
    noiser = GaussianNoise(0.01)
    y = noiser(operator(label), key.numpy("noise"))
    noise = PerImageNoise([key], label.device)
    x = restore(y, operator, prior, params=params, noiser=noiser, noise=noise)
    return psnr(to_pixels(label[0]), to_pixels(x[0]))
