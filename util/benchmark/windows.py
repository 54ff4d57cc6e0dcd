"""Photographs larger than the model, restored by `tile` and by windows that know nothing of each
other."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.dataloader import read_image
from data.masks import MaskConfig
from guided_diffusion.condition_methods import ConditioningMethod
from guided_diffusion.framing import Frame
from guided_diffusion.measurements import OPERATORS, Inpainting, Operator, OperatorContext
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.precision import Execution
from guided_diffusion.pretrained import Pretrained
from guided_diffusion.problem import Extent, Problem, WholeImage
from guided_diffusion.sampling import Prior, sample
from guided_diffusion.tiling import TiledModel, Tiling, WindowExtent
from models.prior import build_method, build_prior, with_process
from util.cli import resolve_device
from util.config.run_config import DiffusionConfig, load_diffusion_config, load_model_config
from util.errors import UserError
from util.img_utils import to_pixels, to_tensor
from util.metrics.pixels import psnr
from util.randomness import ImageKey, NoiseSource, PerImageNoise
from util.statistics import paired_difference

SIGMA = 0.01  # of the measurement noise, on [-1, 1], as in the published configs


def parts(y: Tensor, operator: Operator, size: int) -> list[tuple[slice, slice, Tensor, Operator]]:
    """The image cut into squares: where each lies, its part of y, and its own operator."""
    context = replace(operator.context, height=size, width=size)
    height, width = operator.context.height, operator.context.width
    shrunk = height // y.shape[-2]
    found: list[tuple[slice, slice, Tensor, Operator]] = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            rows, columns = slice(top, top + size), slice(left, left + size)
            if isinstance(operator, Inpainting):
                own: Operator = Inpainting(
                    context=context, masks=operator.masks[..., rows, columns]
                )
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
class NoiseOfPart:
    """What `whole` draws for images of height x width, at `rows` and `columns` of them."""

    whole: NoiseSource
    height: int
    width: int
    rows: slice
    columns: slice

    def normal(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        return self._cut(self.whole.normal(purpose, step, self._full(shape)))

    def uniform(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        return self._cut(self.whole.uniform(purpose, step, self._full(shape)))

    def candidates(self, step: int, count: int, shape: Sequence[int]) -> Iterator[Tensor]:
        return map(self._cut, self.whole.candidates(step, count, self._full(shape)))

    def _full(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape[:-2], self.height, self.width)

    def _cut(self, values: Tensor) -> Tensor:
        return values[..., self.rows, self.columns]


@dataclass(frozen=True)
class Comparison:
    """A photograph measured by one task, and the two ways of restoring it."""

    operator: Operator  # of the whole image, bound to it
    y: Tensor
    prior: Prior
    method: ConditioningMethod
    size: int  # of the windows, in pixels
    seed: int = 0

    @classmethod
    def measure(
        cls,
        task: str,
        label: Tensor,
        model: Pretrained,
        prior: Prior,
        diffusion: DiffusionConfig,
        seed: int = 0,
    ) -> "Comparison":
        """`label` [1, 3, H, W] measured by `task`, for `prior`, which was built from `model`; steps
        and guidance are the task's."""
        key = ImageKey(seed, "photograph")
        height, width = label.shape[-2:]
        context = OperatorContext(height, width, label.device, mask=MaskConfig())
        operator = OPERATORS.get(task)(context=context).bind([key])
        noiser = GaussianNoise(SIGMA)
        y = noiser(operator(label), key.numpy("noise"))
        guided, params = diffusion.guided(task)
        prior = with_process(prior, guided, model)
        method = build_method("dpps", params, prior)
        prior = prior.scheduled(prior.start_timestep(method, operator, noiser))
        return cls(operator, y, prior, method, model.image_size, seed)

    def view(self) -> Tensor:
        """The measurement to look at, [3, H, W]."""
        context = self.operator.context
        seen = self.operator.view(self.y)
        return F.interpolate(seen, size=(context.height, context.width), mode="nearest")[0]

    def windows(self) -> Tensor:
        """Windows that know nothing of each other, side by side: [3, H, W]."""
        context = self.operator.context
        image = torch.zeros(3, context.height, context.width, device=self.y.device)
        for rows, columns, y, operator in parts(self.y, self.operator, self.size):
            noise = NoiseOfPart(self._noise(), context.height, context.width, rows, columns)
            restored = self._restore(y, operator, self.prior, WholeImage(), noise)
            image[:, rows, columns] = restored
        return image

    def tile(self, overlap: int) -> Tensor:
        """Windows that share `overlap` pixels, x_t and the measurement: [3, H, W]."""
        context = self.operator.context
        tiling = Tiling(context.height, context.width, self.size, overlap)
        prior = replace(self.prior, model=TiledModel(self.prior.model, tiling))
        frame = Frame(context.height, context.width, context.height, context.width)
        extent = WindowExtent(tiling, frame, self.y)
        return self._restore(self.y, self.operator, prior, extent, self._noise())

    def _noise(self) -> PerImageNoise:
        return PerImageNoise([ImageKey(self.seed, "photograph")], self.y.device)

    def _restore(
        self, y: Tensor, operator: Operator, prior: Prior, extent: Extent, noise: NoiseSource
    ) -> Tensor:
        shape = (3, operator.context.height, operator.context.width)
        problem = Problem(y, operator, GaussianNoise(SIGMA), prior.diffusion, shape, extent)
        return sample(prior, self.method, problem, noise)[0]


def photograph(path: str, size: int) -> Tensor:
    """The centre of a photograph, [1, 3, H, W] in [-1, 1], H and W multiples of `size`."""
    label = to_tensor(read_image(path))[None]
    height, width = (side - side % size for side in label.shape[-2:])
    if min(height, width) < size or height == width == size:
        raise UserError(f"{path}: larger than {size}x{size} is needed to see borders")
    top, left = (label.shape[-2] - height) // 2, (label.shape[-1] - width) // 2
    return label[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class Figures:
    """What one way of restoring gave."""

    psnr: float  # dB
    borders: float  # border_visibility

    @classmethod
    def of(cls, image: Tensor, label: Tensor, size: int) -> "Figures":
        quality = psnr(to_pixels(label), to_pixels(image))
        return cls(quality, border_visibility(image.clamp(-1, 1).cpu(), label.cpu(), size))

    @classmethod
    def mean(cls, several: Sequence["Figures"]) -> "Figures":
        return cls(fmean(f.psnr for f in several), fmean(f.borders for f in several))

    def __str__(self) -> str:
        return f"{self.psnr:.2f} dB, borders {self.borders:.3f}"


WAYS = ("windows", "tile")
Key = tuple[str, int]  # photograph, seed


def print_means(task: str, found: dict[str, dict[Key, Figures]]) -> None:
    """The mean of each way over photographs and seeds, and of tile - windows in dB."""
    for way in WAYS:
        print(f"{task}, {way}, mean: {Figures.mean(list(found[way].values()))}", flush=True)
    tile, windows = ({k: f.psnr for k, f in found[way].items()} for way in ("tile", "windows"))
    paired = paired_difference(tile, windows)
    interval = ""
    if paired.low is not None:
        interval = f", 95 % interval {paired.low:+.2f} .. {paired.high:+.2f}"
    seeds = len(tile) // paired.n
    count = f"{paired.n} photograph(s), {seeds} seed(s)"
    print(f"{task}, tile - windows: {paired.difference:+.3f} dB{interval} ({count})", flush=True)


def _save(images: Sequence[Tensor], path: Path) -> None:
    """Images [3, H, W] side by side."""
    row = torch.cat([image.cpu() for image in images], dim=-1)
    Image.fromarray(to_pixels(row)).save(path)


def compare(args: argparse.Namespace) -> None:
    """What compare_tile.py says: print figures and write pictures into `args.save_dir`."""
    device = resolve_device(args.device)
    model = load_model_config(args.model_config)
    diffusion = load_diffusion_config(args.diffusion_config)
    size = model.image_size
    labels = {path: photograph(path, size) for path in args.photographs}
    prior = build_prior(model, diffusion, device, Execution(args.precision, args.compile))

    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    overlap = size // 4 if args.overlap is None else args.overlap
    several = len(labels) * args.seeds > 1
    for task in args.tasks:
        found: dict[str, dict[Key, Figures]] = {way: {} for way in WAYS}
        for path, seed in product(labels, range(args.seed, args.seed + args.seeds)):
            label = labels[path].to(device)
            comparison = Comparison.measure(task, label, model, prior, diffusion, seed)
            restored = {"windows": comparison.windows(), "tile": comparison.tile(overlap)}
            which = f"{Path(path).name}, seed {seed}, " if several else ""
            for way, image in restored.items():
                found[way][path, seed] = Figures.of(image, label[0], size)
                print(f"{which}{task}, {way}: {found[way][path, seed]}", flush=True)
            if seed == args.seed:
                number = f"{list(labels).index(path) + 1}_" if len(labels) > 1 else ""
                everything = [comparison.view(), *restored.values(), label[0]]
                _save(everything, folder / f"{number}{task}.png")
                for way, image in restored.items():
                    _save([image], folder / f"{number}{task}_{way}.png")
        if several:
            print_means(task, found)
