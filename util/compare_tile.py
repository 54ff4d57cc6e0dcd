#!/usr/bin/env python3
"""Restore a photograph larger than the model by `tile`, and by windows that know nothing of each
other, from the same measurement; compare.

    python -m util.compare_tile PHOTOGRAPH --save_dir results/tile

For each task it prints the PSNR of both and how visible the borders between the independent
windows are in either: the mean jump across these borders over the mean jump between neighbouring
pixels elsewhere, divided by the same figure of the original (1: no more than chance). The picture
has a row per task: measurement, independent windows, tile, original.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.dataloader import read_image
from guided_diffusion.condition_methods import Extent, Problem, ProximalSampling, WholeImage
from guided_diffusion.framing import Frame
from guided_diffusion.measurements import OPERATORS, Inpainting, Operator, OperatorContext
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.precision import PRECISIONS, Execution
from guided_diffusion.sampling import Prior, build_prior, sample
from guided_diffusion.tiling import TiledModel, Tiling, WindowExtent
from util.cli import add_device, command_parser, report_errors, resolve_device
from util.errors import UserError
from util.img_utils import MaskConfig, to_pixels, to_tensor
from util.metrics.pixels import psnr
from util.randomness import ImageKey, PerImageNoise
from util.run_config import DiffusionConfig, load_diffusion_config, load_model_config

TASKS = ("super_resolution", "gaussian_blur", "inpainting", "motion_blur")
SIGMA = 0.01  # of the measurement noise, on [-1, 1], as in the published configs


def parts(y: Tensor, operator: Operator, size: int) -> list[tuple[slice, slice, Tensor, Operator]]:
    """The image cut into squares: where each lies, its part of y, and its own operator."""
    context = replace(operator.context, height=size, width=size)
    height, width = operator.context.height, operator.context.width
    shrunk = height // y.shape[-2]
    found = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            rows, columns = slice(top, top + size), slice(left, left + size)
            if isinstance(operator, Inpainting):
                own = Inpainting(context=context, masks=operator.masks[..., rows, columns])
            else:
                own = type(operator)(context=context)
            side = size // shrunk
            part = y[..., top // shrunk :, left // shrunk :][..., :side, :side]
            found.append((rows, columns, part, own))
    return found


def border_visibility(x: Tensor, label: Tensor, size: int) -> float:
    """How visible the borders between squares of `size` pixels are in x [3, H, W] (1: by chance).

    Ratio of the mean jump across borders to the mean jump elsewhere, over the label's ratio.
    """

    def ratio(image: Tensor) -> float:
        across, elsewhere = [], []
        for pixels in (image, image.transpose(-1, -2)):
            jumps = pixels.diff(dim=-1).abs()
            at_border = torch.arange(1, pixels.shape[-1]) % size == 0
            across.append(jumps[..., at_border].flatten())
            elsewhere.append(jumps[..., ~at_border].flatten())
        return (torch.cat(across).mean() / torch.cat(elsewhere).mean()).item()

    return ratio(x) / ratio(label)


@dataclass(frozen=True)
class Comparison:
    """A photograph measured by one task, and the two ways of restoring it."""

    operator: Operator  # of the whole image, bound to it
    y: Tensor
    prior: Prior
    method: ProximalSampling
    size: int  # of the windows, in pixels
    seed: int = 0

    @classmethod
    def measure(
        cls,
        task: str,
        label: Tensor,
        prior: Prior,
        diffusion: DiffusionConfig,
        size: int,
        seed: int = 0,
    ) -> "Comparison":
        """`label` [1, 3, H, W] measured by `task`; steps and guidance are the task's."""
        key = ImageKey(seed, "photograph")
        context = OperatorContext(*label.shape[-2:], label.device, mask=MaskConfig())
        operator = OPERATORS.get(task)(context=context).bind([key])
        y = GaussianNoise(SIGMA)(operator(label), key.numpy("noise"))
        guided, params = diffusion.guided(task)
        prior = prior.with_process(guided)
        return cls(operator, y, prior, ProximalSampling(**params), size, seed)

    def view(self) -> Tensor:
        """The measurement to look at, [3, H, W]."""
        context = self.operator.context
        seen = self.operator.view(self.y)
        return F.interpolate(seen, size=(context.height, context.width), mode="nearest")[0]

    def windows(self) -> Tensor:
        """Windows that know nothing of each other, side by side: [3, H, W]."""
        context = self.operator.context
        image = torch.zeros(3, context.height, context.width, device=self.y.device)
        for i, (rows, columns, y, operator) in enumerate(parts(self.y, self.operator, self.size)):
            restored = self._restore(y, operator, self.prior, WholeImage(), f"window {i}")
            image[:, rows, columns] = restored
        return image

    def tile(self, overlap: int) -> Tensor:
        """Windows that share `overlap` pixels, x_t and the measurement: [3, H, W]."""
        context = self.operator.context
        tiling = Tiling(context.height, context.width, self.size, overlap)
        prior = replace(self.prior, model=TiledModel(self.prior.model, tiling))
        frame = Frame(context.height, context.width, context.height, context.width)
        extent = WindowExtent(tiling, frame, self.y)
        return self._restore(self.y, self.operator, prior, extent, "photograph")

    def _restore(
        self, y: Tensor, operator: Operator, prior: Prior, extent: Extent, name: str
    ) -> Tensor:
        shape = (3, operator.context.height, operator.context.width)
        problem = Problem(y, operator, GaussianNoise(SIGMA), prior.diffusion, shape, extent)
        noise = PerImageNoise([ImageKey(self.seed, name)], y.device)
        return sample(prior, self.method, problem, noise)[0]


def _sheet(images: Sequence[Tensor]) -> Image.Image:
    """Images [3, H, W] side by side."""
    return Image.fromarray(to_pixels(torch.cat([image.cpu() for image in images], dim=-1)))


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("photograph", help="at least as large as the model's windows; the centre is taken")
    add("--save_dir", default="results/tile", help="where the pictures go")
    add("--tasks", nargs="+", default=TASKS[:3], choices=TASKS, help="what is compared")
    add("--model_config", default="configs/demo_model_config.yaml", help="network")
    add("--diffusion_config", default="configs/demo_diffusion_config.yaml", help="steps, guidance")
    add("--overlap", type=int, help="pixels that windows share (default: a quarter window)")
    add("--seed", type=int, default=0, help="of kernel, mask, noise and samples")
    add("--precision", choices=tuple(PRECISIONS), help="of the network")
    add("--compile", action="store_true", help="run the network through torch.compile")
    add_device(parser)
    args = parser.parse_args(argv)

    device = resolve_device(args.device)
    model = load_model_config(args.model_config)
    diffusion = load_diffusion_config(args.diffusion_config)
    prior = build_prior(model, diffusion, device, Execution(args.precision, args.compile))
    size = model.unet.image_size
    label = to_tensor(read_image(args.photograph))[None].to(device)
    height, width = (side - side % size for side in label.shape[-2:])
    if min(height, width) < size or height == width == size:
        raise UserError(f"{args.photograph}: larger than {size}x{size} is needed to see borders")
    top, left = (label.shape[-2] - height) // 2, (label.shape[-1] - width) // 2
    label = label[..., top : top + height, left : left + width]

    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    overlap = size // 4 if args.overlap is None else args.overlap
    truth = to_pixels(label[0])
    for task in args.tasks:
        comparison = Comparison.measure(task, label, prior, diffusion, size, args.seed)
        restored = {"windows": comparison.windows(), "tile": comparison.tile(overlap)}
        images = [comparison.view(), *restored.values(), label[0]]
        _sheet(images).save(folder / f"{task}.png")
        for name, image in restored.items():
            _sheet([image]).save(folder / f"{task}_{name}.png")
            quality = psnr(truth, to_pixels(image))
            visible = border_visibility(image.clamp(-1, 1).cpu(), label[0].cpu(), size)
            print(f"{task}, {name}: {quality:.2f} dB, borders {visible:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
