"""How good a prior is: validation loss by noise level, denoising, unconditional samples."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.dataloader import find_images
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, Model
from guided_diffusion.sampling import Prior
from models.memory import neighbours, pairs, read_split
from models.photo_store import readable
from models.prior import build_prior
from util.cli import resolve_device
from util.config.run_config import load_diffusion_config, load_model_config
from util.errors import UserError
from util.img_utils import to_colour, to_grey, to_pixels, to_tensor
from util.logger import get_logger
from util.randomness import ImageKey, NoiseSource, PerImageNoise

VALIDATION_TIMESTEPS = (10, 50, 150, 300, 500, 700, 900)
DENOISED_TIMESTEPS = (50, 150, 300, 500)
_COLUMNS = 8  # of samples
_SHOWN_PAIRS, _PAIR_COLUMNS = 24, 6


def validation_images(
    paths: Iterable[Path], multiple: int, device: torch.device
) -> Iterator[Tensor]:
    """The photographs at `paths`, [3, H, W], cut to sides that are multiples of `multiple`; they
    are read one after the other, and those that cannot be used are named and left out."""
    for path, photograph in readable(paths):
        x = to_tensor(photograph)
        height, width = (side - side % multiple for side in x.shape[1:])
        if not height * width:
            get_logger().warning("skipped: %s: smaller than %d pixels", path, multiple)
            continue
        yield x[:, :height, :width].to(device)


@torch.no_grad()
def validation_loss(
    model: Model, diffusion: GaussianDiffusion, images: Sequence[Tensor], seed: int = 0
) -> dict[int, float]:
    """Mean squared noise error on `images` [3, H, W] at each of VALIDATION_TIMESTEPS.

    diffusion: all its steps, not respaced

    Raises UserError where there are no images.
    """
    if not images:
        raise UserError("none of the photographs to validate on could be read")
    generator = torch.Generator().manual_seed(seed)
    losses = {}
    for timestep in VALIDATION_TIMESTEPS:
        total = 0.0
        for x0 in images:
            x0 = x0[None]
            t = torch.full((1,), timestep, device=x0.device)
            eps = torch.randn(x0.shape, generator=generator).to(x0)
            step = diffusion.predict(model, diffusion.q_sample(x0, t, eps), t)
            total += (step.eps - eps).square().mean().item()
        losses[timestep] = total / len(images)
    return losses


def print_validation(losses: dict[int, float]) -> None:
    print("timestep  validation loss (mean squared noise error)")
    for timestep, loss in losses.items():
        print(f"{timestep:8d}  {loss:.5f}")


@torch.no_grad()
def denoise(
    model: Model, diffusion: GaussianDiffusion, images: Sequence[Tensor], seed: int = 0
) -> list[list[Tensor]]:
    """For each image: itself, and x_t / sqrt(acp) and x0_hat at each of DENOISED_TIMESTEPS.

    diffusion: all its steps, not respaced
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for x0 in images:
        row = [x0]
        for timestep in DENOISED_TIMESTEPS:
            t = torch.full((1,), timestep, device=x0.device)
            x_t = diffusion.q_sample(x0[None], t, torch.randn(x0.shape, generator=generator).to(x0))
            step = diffusion.predict(model, x_t, t)
            row += [x_t[0] / diffusion.alphas_cumprod[timestep] ** 0.5, step.x0_hat[0]]
        rows.append(row)
    return rows


@torch.no_grad()
def draw(
    prior: Prior,
    count: int,
    size: int,
    device: torch.device,
    seed: int = 0,
    noise: NoiseSource | None = None,
) -> Tensor:
    """Unconditional samples [count, C, size, size].

    noise: another source of the random numbers than `seed`
    """
    keys = [ImageKey(seed, f"sample {i}") for i in range(count)]
    noise = noise or PerImageNoise(keys, device)
    steps = prior.diffusion.num_timesteps
    prior = prior.for_images(keys)
    x = noise.normal("start", steps, (prior.channels, size, size))
    for t in reversed(range(steps)):
        _, move = prior.reverse(x, t)
        x = move.mean
        if t:
            x = x + move.std * noise.normal("step", t, x.shape[1:])
    return x


def sheet(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Rows of images [C, H, W] of one size as one picture; white where a row is shorter."""
    longest = max(map(len, rows))
    white = torch.ones_like(rows[0][0])
    whole = [[*row, *[white] * (longest - len(row))] for row in rows]
    return Image.fromarray(
        np.vstack([np.hstack([to_pixels(to_colour(x)) for x in row]) for row in whole])
    )


def check(args: argparse.Namespace) -> None:
    """What check_prior.py says: print figures and write pictures into `args.save_dir`."""
    device = resolve_device(args.device)
    model = load_model_config(args.model_config)
    diffusion = replace(
        load_diffusion_config(args.diffusion_config),
        timestep_respacing=args.respacing,
        num_steps=None,
    )
    prior = build_prior(model, diffusion, device)
    if any(size < 1 or size % prior.size_multiple for size in args.sizes) or args.count < 1:
        raise UserError(
            f"--sizes: multiples of {prior.size_multiple} are needed, and a --count from 1"
        )
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if args.photographs:
        found = validation_images(find_images(args.photographs), prior.size_multiple, device)
        images = list(islice(found, args.limit))
        if prior.channels == 1:
            images = [to_grey(image) for image in images]
        network = prior.for_images([ImageKey(0, "photographs")]).model
        whole = replace(diffusion, timestep_respacing="").build(model)
        if whole.num_timesteps <= max(VALIDATION_TIMESTEPS):
            raise UserError(
                f"{args.diffusion_config}: timesteps up to {max(VALIDATION_TIMESTEPS)} are looked "
                f"at, and the process has {whole.num_timesteps} steps"
            )
        print_validation(validation_loss(network, whole, images))
        for i, row in enumerate(denoise(network, whole, images[: args.shown])):
            sheet([row]).save(folder / f"denoising_{i}.png")
    for size in args.sizes:
        samples = draw(prior, args.count, size, device)
        rows = [list(samples[i : i + _COLUMNS]) for i in range(0, args.count, _COLUMNS)]
        sheet(rows).save(folder / f"samples_{size}.png")
        if args.training:
            split = read_split(args.training, args.holdout, size, prior.channels)
            _compare(samples.cpu(), *split, folder)


def _compare(samples: Tensor, trained: Tensor, held_out: Tensor, folder: Path) -> None:
    """Samples beside the photographs [N, 3, H, W] that they are nearest to, and what that says."""
    found = neighbours(samples.clamp(-1, 1), trained)
    shown = min(len(samples), _SHOWN_PAIRS)
    columns = min(shown, _PAIR_COLUMNS)
    sheet(pairs(samples[:shown], found.nearest[:shown], columns)).save(folder / "neighbours.png")
    print("median distance to the nearest training photograph over that to the tenth nearest")
    print(f"  {len(samples)} samples      {found.median_ratio:.4f}")
    if len(held_out):
        other = neighbours(held_out, trained).median_ratio
        change = 100 * (found.median_ratio / other - 1)
        print(f"  {len(held_out)} held out     {other:.4f} (samples {change:+.1f} %)")
