"""Restore the images of a data set, batch by batch: read, measure, sample, save."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from data.dataloader import Dataset, output_name
from guided_diffusion.condition_methods import CONDITIONING, Problem, StepResult
from guided_diffusion.measurements import NOISES, OPERATORS, Operator, OperatorContext
from guided_diffusion.sampling import Prior, sample
from util.errors import UserError
from util.logger import get_logger
from util.randomness import ImageKey, PerImageNoise
from util.results import Results
from util.run_config import RunConfig

_ESTIMATE_AFTER = 3  # steps of the first batch before the time left is estimated
_REFRESH_SECONDS = 0.5  # reading the distance waits for the GPU, so it is done now and then


@dataclass(frozen=True)
class Settings:
    """What the command line adds to the configs."""

    seed: int = 0
    batch_size: int = 1
    record_every: int = 0  # steps between progress images; 0: none
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    # Seed of the measurement (kernel, mask, noise); None: `seed`. Fixed, it lets one measurement
    # be restored several times.
    measurement_seed: int | None = None

    @property
    def seed_of_measurement(self) -> int:
        return self.seed if self.measurement_seed is None else self.measurement_seed


@dataclass
class Outcome:
    """What became of the images of a run."""

    restored: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # name -> reason
    seconds: float = 0.0


def build_operator(config: RunConfig, settings: Settings) -> Operator:
    """The operator of the task for images of the model's size."""
    size = config.model.unet.image_size
    context = OperatorContext(
        size, size, settings.device, seed=settings.seed_of_measurement, mask=config.task.mask_opt
    )
    return config.task.operator.build(OPERATORS, context=context)


def restore_dataset(
    config: RunConfig,
    settings: Settings,
    dataset: Dataset,
    names: Sequence[str],
    prior: Prior,
    operator: Operator,
    results: Results,
) -> Outcome:
    """Measure and restore the images called `names`, and save everything about them.

    An image that cannot be read, or whose sample is not finite, is reported and left out.
    """
    task = config.task
    method, noiser = task.conditioning.build(CONDITIONING), task.noise.build(NOISES)
    prior.check_method(method)
    outcome = Outcome()
    progress = _Progress(len(names), prior.diffusion.num_timesteps)
    started = time.perf_counter()
    for batch in _batches(dataset, names, settings.batch_size, outcome):
        labels = torch.stack([label for _, label in batch]).to(settings.device)
        keys = [ImageKey(settings.seed_of_measurement, name) for name, _ in batch]
        bound = operator.bind(keys)
        clean = bound(labels)
        y = torch.stack([noiser(c, k.numpy("noise")) for c, k in zip(clean, keys, strict=True)])
        outputs = [output_name(key.name) for key in keys]
        _save_measurements(results, outputs, bound, y)
        recorder = _Recorder(results, outputs, settings.record_every, progress)
        problem = Problem(y, bound, noiser, prior.diffusion, tuple(labels.shape[1:]))
        noise = PerImageNoise([ImageKey(settings.seed, k.name) for k in keys], settings.device)
        restored = sample(prior, method, problem, noise, recorder)
        for key, output, label, image in zip(keys, outputs, labels, restored, strict=True):
            if not torch.isfinite(image).all():
                _fail(
                    outcome,
                    key.name,
                    "the sample is not finite; nothing was saved. Try a "
                    "smaller conditioning.params.scale",
                )
                continue
            results.save_restored(output, label, image)
            outcome.restored.append(key.name)
        results.save_report()
    progress.close()
    outcome.seconds = time.perf_counter() - started
    return outcome


def _batches(
    dataset: Dataset, names: Sequence[str], batch_size: int, outcome: Outcome
) -> Iterator[list[tuple[str, Tensor]]]:
    """Readable images in batches of (name, [3, H, W]); the others go to outcome.failed."""
    batch: list[tuple[str, Tensor]] = []
    for name in names:
        try:
            batch.append((name, dataset.load(name)))
        except UserError as error:
            _fail(outcome, name, str(error))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _fail(outcome: Outcome, name: str, reason: str) -> None:
    outcome.failed[name] = reason
    get_logger().error("skipped %s: %s", name, reason)


def _save_measurements(
    results: Results, outputs: Sequence[str], operator: Operator, y: Tensor
) -> None:
    for output, measurement, view in zip(outputs, y, operator.view(y), strict=True):
        results.save_measurement(output, measurement, view)
    for output, arrays in zip(outputs, operator.saved_per_image(), strict=False):
        for stem, array in arrays.items():
            results.save_mask(output, stem, array)


class _Progress:
    """A bar over all steps of all images, and one estimate of the whole time."""

    def __init__(self, images: int, steps: int) -> None:
        self.images, self.steps = images, steps
        self.bar = tqdm(total=images * steps, unit="step", mininterval=_REFRESH_SECONDS)
        self.done = 0
        self.started = self.shown = time.perf_counter()

    def step(self, images: int, distance: Tensor) -> None:
        self.done += 1
        now = time.perf_counter()
        if now - self.shown > _REFRESH_SECONDS:
            self.bar.set_postfix(distance=f"{distance.mean().item():.2f}", refresh=False)
            self.shown = now
        if self.done == 1:
            self.started = now  # the first step also warms the device up
        if self.done == 1 + _ESTIMATE_AFTER:
            per_step = (now - self.started) / _ESTIMATE_AFTER / images
            left = per_step * (self.images * self.steps - self.done * images)
            get_logger().info("about %s to go for %d image(s)", duration(left), self.images)
        self.bar.update(images)

    def close(self) -> None:
        self.bar.close()


def duration(seconds: float) -> str:
    """A length of time for people: "45 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class _Recorder:
    """Callback of the sampler: moves the bar and saves the progress images."""

    results: Results
    outputs: Sequence[str]
    every: int
    progress: _Progress

    def __call__(self, t: int, result: StepResult) -> None:
        self.progress.step(len(self.outputs), result.distance)
        if self.every and t % self.every == 0:
            for output, x0_hat in zip(self.outputs, result.x0_hat, strict=True):
                if torch.isfinite(x0_hat).all():
                    self.results.save_progress(output, t, x0_hat)
