"""Restore the images of a data set, batch by batch: read, measure, sample, save, record."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.dataloader import Dataset, output_name
from guided_diffusion.condition_methods import (
    CONDITIONING,
    ConditioningMethod,
    Problem,
    StepResult,
)
from guided_diffusion.measurements import NOISES, OPERATORS, NoiseModel, Operator, OperatorContext
from guided_diffusion.sampling import Prior, sample
from util.batching import fitting_batch, is_out_of_memory, release_memory
from util.distributed import World
from util.errors import UserError
from util.interrupt import StopRequest
from util.logger import get_logger
from util.manifest import Manifest, Record, source_mark
from util.progress import Progress
from util.randomness import ImageKey, PerImageNoise
from util.recording import Recorder, RecordOptions
from util.results import Results
from util.run_config import RunConfig


@dataclass(frozen=True)
class Settings:
    """What the command line adds to the configs."""

    seed: int = 0
    batch_size: int | None = 1  # None: the largest that fits
    record: RecordOptions = field(default_factory=RecordOptions)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Item:
    """One image to restore."""

    key: ImageKey
    y: Tensor  # measurement [...], on the run's device
    label: Tensor | None = None  # [3, H, W] in [-1, 1], where it is known
    source: dict[str, Any] = field(default_factory=dict)  # see manifest.source_mark

    @property
    def output(self) -> str:
        return output_name(self.key.name)

    def fits(self, other: "Item") -> bool:
        """Whether both can be restored in one batch."""
        labels = [i.label.shape if i.label is not None else None for i in (self, other)]
        return self.y.shape == other.y.shape and labels[0] == labels[1]


def build_operator(config: RunConfig, settings: Settings) -> Operator:
    """The operator of the task for images of the model's size."""
    size, mask = config.model.unet.image_size, config.task.mask_opt
    context = OperatorContext(size, size, settings.device, seed=settings.seed, mask=mask)
    operator = config.task.operator.build(OPERATORS, context=context)
    if mask is not None and mask.mask is not None and Path(mask.mask).is_file():
        operator.bind([ImageKey(settings.seed, "")])  # one mask for all: it fits or nothing does
    return operator


class Restoration:
    """One rank's part of a run: it restores names and records what became of them."""

    def __init__(
        self,
        config: RunConfig,
        settings: Settings,
        dataset: Dataset,
        prior: Prior,
        operator: Operator,
        results: Results,
        world: World | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.settings, self.dataset, self.prior = settings, dataset, prior
        self.operator, self.results = operator, results
        self.method: ConditioningMethod = config.task.conditioning.build(CONDITIONING)
        self.noiser: NoiseModel = config.task.noise.build(NOISES)
        prior.check_method(self.method)
        self.config_hash = ""
        self.world = world or World()
        self.stop = stop or StopRequest()
        self.manifest = Manifest(results.root, self.world.rank)
        self._limit = settings.batch_size  # lowered when memory runs out
        self._auto: dict[tuple[int, ...], int] = {}  # by the shape of y

    def run(self, names: Sequence[str], config_hash: str, images: int | None = None) -> None:
        """Restore `names`, this rank's share of `images` in the whole job.

        config_hash: what the records carry, see manifest.settings_hash

        An image that cannot be read, or whose sample is not finite, is recorded as failed and
        left out. Raises Interrupted after a signal and UserError where nothing can be written;
        everything finished before is recorded.
        """
        steps = self.prior.diffusion.num_timesteps
        images = len(names) if images is None else images
        self.config_hash = config_hash
        self.progress = Progress(images, len(names), steps, self.world)
        try:
            for batch in self._batches(names):
                self._restore(batch)
        finally:
            self.progress.close()
            self.world.beat(self.progress.counts, last=True)

    def _batches(self, names: Sequence[str]) -> Iterator[list[Item]]:
        """Readable images in batches of equal shapes; the others are recorded as failed."""
        batch: list[Item] = []
        for position, name in enumerate(names):
            self.stop.check()
            item = self._load(name)
            if item is None:
                continue
            if batch and not item.fits(batch[0]):
                yield batch
                batch = []
            batch.append(item)
            if len(batch) >= self._batch_size(item, len(names) - position):
                yield batch
                batch = []
        if batch:
            yield batch

    def _load(self, name: str) -> Item | None:
        """The image called `name`, measured; None if that cannot be done."""
        try:
            key, path = ImageKey(self.settings.seed, name), self.dataset.path(name)
            label = self.dataset.load(name)
            bound = self.operator.bind([key])
            clean = bound(label[None].to(self.settings.device))[0]
            y = self.noiser(clean, key.numpy("noise"))
            return Item(key, y, label, source_mark(path))
        except UserError as error:
            self._fail(name, str(error))
        except Exception as error:  # decoders of damaged files raise whatever they like
            if is_out_of_memory(error):
                raise
            self._fail(name, f"{name}: cannot be read ({type(error).__name__}: {error})")
        return None

    def _batch_size(self, item: Item, remaining: int) -> int:
        """Images to restore at a time that look like `item`."""
        if self._limit is not None:
            return self._limit
        shape = tuple(item.y.shape)
        if shape not in self._auto:

            def try_steps(size: int) -> None:
                problem, noise = self._problem([item] * size)
                x = self.method.start(problem, noise)
                for t in (self.prior.diffusion.num_timesteps - 1, 1, 0):
                    if t >= 0:  # the late steps have the most candidates
                        x = self.method.step(self.prior.reverse, x, t, problem, noise).x

            self._auto[shape] = fitting_batch(try_steps, self.settings.device, remaining)
        return self._auto[shape]

    def _restore(self, items: Sequence[Item]) -> None:
        """Restore a batch; where memory runs out, its halves one after the other."""
        try:
            self._restore_whole(items)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: until here the exception kept the failed batch in memory.
        release_memory(self.settings.device)
        self.progress.forget_steps(len(items))
        if len(items) == 1:
            reason = "out of memory with one image at a time; use a smaller model or image"
            self._fail(items[0].key.name, reason, items[0])
            return
        half = len(items) // 2
        get_logger().warning("out of memory with %d images at a time; trying %d", len(items), half)
        self._limit = half
        for part in (items[:half], items[half : 2 * half], items[2 * half :]):
            if part:
                self._restore(part)

    def _problem(self, items: Sequence[Item]) -> tuple[Problem, PerImageNoise]:
        keys = [item.key for item in items]
        bound = self.operator.bind(keys)
        shape = (3, bound.context.height, bound.context.width)
        y = torch.stack([item.y for item in items])
        problem = Problem(y, bound, self.noiser, self.prior.diffusion, shape)
        return problem, PerImageNoise(keys, self.settings.device)

    def _restore_whole(self, items: Sequence[Item]) -> None:
        started = time.perf_counter()
        problem, noise = self._problem(items)
        recorder = Recorder(self.results, [i.output for i in items], self.settings.record)

        def after_step(t: int, result: StepResult) -> None:
            self.stop.check()
            recorder.save(t, result)
            self.progress.step(len(items), result.distance)

        self.progress.begin_batch(len(items))
        restored = sample(self.prior, self.method, problem, noise, after_step)
        with torch.no_grad():
            residuals = problem.distance(restored.clamp(-1, 1)).tolist()
        self._save_measurements(items, problem)
        seconds = (time.perf_counter() - started) / len(items)
        for item, image, residual in zip(items, restored, residuals, strict=True):
            if torch.isfinite(image).all():
                recorder.save_film(item.output)
                self._save(item, image, residual, seconds)
            else:
                reason = "the sample is not finite; nothing was saved. Try a smaller "
                self._fail(item.key.name, reason + "conditioning.params.scale", item)

    def _save_measurements(self, items: Sequence[Item], problem: Problem) -> None:
        views = problem.operator.view(problem.y)
        for item, measurement, view in zip(items, problem.y, views, strict=True):
            self.results.save_measurement(item.output, measurement, view)
        for item, arrays in zip(items, problem.operator.saved_per_image(), strict=False):
            for stem, array in arrays.items():
                self.results.save_mask(item.output, stem, array)

    def _save(self, item: Item, image: Tensor, residual: float, seconds: float) -> None:
        metrics = self.results.save_restored(item.output, item.label, image)
        record = self._record(item.key.name, item, residual=residual, seconds=seconds)
        self.manifest.append(dataclasses.replace(record, metrics=metrics))
        words = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.3f}"}
        text = [words.get(name, name + " {:.4f}").format(v) for name, v in metrics.items()]
        self.progress.finish(item.key.name, ", ".join([*text, f"residual {residual:.3f}"]))

    def _fail(self, name: str, reason: str, item: Item | None = None) -> None:
        self.manifest.append(self._record(name, item, error=reason))
        self.progress.fail(name, reason)

    def _record(self, name: str, item: Item | None, **what: Any) -> Record:
        source = item.source if item else {}
        seed = self.settings.seed
        return Record(name, self.config_hash, seed, time.time(), source=source, **what)
