"""Restore the images of a data set, batch by batch: read, measure, sample, save."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from data.dataloader import Dataset, output_name
from guided_diffusion.condition_methods import CONDITIONING, StepResult
from guided_diffusion.measurements import OPERATORS, Operator, OperatorContext
from guided_diffusion.sampling import Prior, sample
from util.logger import get_logger
from util.problems import ProblemBuilder
from util.randomness import PerImageNoise
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
    grey: bool = False  # save images whose source is grey as grey


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
        size, size, settings.device, seed=settings.seed, mask=config.task.mask_opt
    )
    return config.task.operator.build(OPERATORS, context=context)


def restore_dataset(
    config: RunConfig,
    settings: Settings,
    dataset: Dataset,
    names: Sequence[str],
    prior: Prior,
    results: Results,
) -> Outcome:
    """Measure and restore the images called `names`, and save everything about them.

    An image that cannot be read, or whose sample is not finite, is reported and left out.
    """
    method = config.task.conditioning.build(CONDITIONING)
    prior.check_method(method)
    outcome = Outcome()
    progress = _Progress(len(names), prior.diffusion.num_timesteps)
    started = time.perf_counter()
    builder = ProblemBuilder(config, dataset, prior, settings.seed, settings.device)
    for batch in builder.batches(
        names, settings.batch_size, lambda name, reason: _fail(outcome, name, reason)
    ):
        outputs = [output_name(key.name) for key in batch.keys]
        _save_measurements(results, outputs, batch.operator, batch.y)
        recorder = _Recorder(results, outputs, settings.record_every, progress, batch.finish)
        noise = PerImageNoise(batch.keys, settings.device)
        x = sample(batch.prior, method, batch.problem, noise, recorder)
        images, residuals = batch.finish(x), batch.residuals(x)
        for case, output, image, residual in zip(
            batch.cases, outputs, images, residuals, strict=True
        ):
            if not torch.isfinite(image).all():
                _fail(
                    outcome,
                    case.key.name,
                    "the sample is not finite; nothing was saved. Try a "
                    "smaller conditioning.params.scale",
                )
                continue
            grey = settings.grey and case.grey
            results.save_restored(output, case.label, image, residual, grey=grey)
            if dataset.measured and residual.misfit:
                get_logger().warning("%s: %s", case.key.name, residual.misfit)
            outcome.restored.append(case.key.name)
        results.save_report()
    progress.close()
    outcome.seconds = time.perf_counter() - started
    return outcome


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
    finish: Callable[[Tensor], Tensor]  # x0_hat of the sampler -> images

    def __call__(self, t: int, result: StepResult) -> None:
        self.progress.step(len(self.outputs), result.distance)
        if self.every and t % self.every == 0:
            for output, x0_hat in zip(self.outputs, self.finish(result.x0_hat), strict=True):
                if torch.isfinite(x0_hat).all():
                    self.results.save_progress(output, t, x0_hat)
