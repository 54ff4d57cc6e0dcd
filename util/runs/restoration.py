"""Restore the images of a data set, batch by batch: read, measure, sample, save, record."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from data.dataloader import Dataset
from guided_diffusion.condition_methods import CONDITIONING, ConditioningMethod, StepResult
from guided_diffusion.gaussian_diffusion import Model
from guided_diffusion.measurements import KernelBlur, Operator
from guided_diffusion.precision import uncompiled
from guided_diffusion.sampling import Prior, sample
from guided_diffusion.tiling import TiledModel
from util.config.run_config import RunConfig
from util.errors import OutputError
from util.logger import get_logger
from util.randomness import ImageKey, PerImageNoise
from util.runs.background import Background
from util.runs.batching import fitting_batch, is_out_of_memory, release_memory
from util.runs.distributed import World
from util.runs.interrupt import Interrupted, StopRequest
from util.runs.manifest import Manifest
from util.runs.measuring import Measuring, Read
from util.runs.problems import Batch, Case, ProblemBuilder
from util.runs.progress import Progress
from util.runs.recording import Recorder
from util.runs.results import Results, sample_kind
from util.runs.saving import Finished, Saver, reason_of
from util.runs.settings import Settings
from util.runs.sources import Sources
from util.runs.spread import Spread

OUT_OF_MEMORY = "out of memory"  # how the reason of such a failure begins
_NO_MEMORY = object()
_READ_AHEAD = 4  # images decoded while others are restored
_MOST_WAITING = 4  # batches that images of several sizes may fill in memory


class Counting(nn.Module):
    """A network that counts the images it has seen and differentiated, and asks before each whether
    to go on: a step of a large photograph has hundreds of windows."""

    def __init__(self, model: Model, stop: StopRequest) -> None:
        super().__init__()
        self.model: Callable[..., Tensor] = model
        self.stop = stop
        self.evaluations = self.gradients = 0

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        self.stop.check()
        self.evaluations += len(x)
        output = self.model(x, t, *labels)
        if output.requires_grad:  # a method may differentiate one evaluation several times
            output.register_hook(lambda gradient: self._count_gradients(len(x)))
        return output

    def _count_gradients(self, count: int) -> None:
        self.gradients += count


class Restoration:
    """One rank's part of a run: it restores names and records what became of them."""

    def __init__(
        self,
        config: RunConfig,
        settings: Settings,
        dataset: Dataset,
        prior: Prior,
        results: Results,
        world: World | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.config, self.settings, self.dataset = config, settings, dataset
        self.prior, self.results = prior, results
        self.method: ConditioningMethod = config.task.conditioning.build(CONDITIONING)
        prior.check_method(self.method)
        self.builder = ProblemBuilder(
            config, dataset, settings.seed_of_measurement, settings.device
        )
        self.operator: Operator = self.builder.probe
        self.method.check(self.operator, self.builder.noiser)
        self.sources = Sources(dataset, config.task.mask_opt)
        self.measuring = Measuring(dataset, self.sources, self.builder, prior, self.method)
        self.world = world or World()
        self.stop = stop or StopRequest()
        self._kernel_shown = False
        self.steps = prior.num_steps or self.method.first_step(prior.diffusion) + 1
        self._sizes: dict[tuple[int, int], int] = {}  # of batches, by the size of the image
        self._at_a_time = 1  # images, or samples of them, that are in work

    def run(self, names: Sequence[str], config_hash: str, images: int | None = None) -> None:
        """Restore `names`, this rank's share of `images` in the whole job.

        config_hash: of the settings that decide the pixels, for the records

        An image that cannot be read or restored, or whose sample is not finite, is recorded as
        failed and left out. Raises Interrupted after a signal and OutputError where nothing can be
        written; everything finished before is recorded.
        """
        settings, channels = self.settings, self.prior.channels
        images = len(names) if images is None else images
        self.progress = Progress(images, len(names), self.steps, self.world, settings.samples)
        manifest = Manifest(self.results.root, self.world.rank)
        self.saver = Saver(
            settings, self.dataset, self.results, manifest, self.progress, config_hash, channels
        )
        try:
            with Background() as self.background:
                for cases in self._batches(names):
                    self._restore(cases)
        finally:
            self.progress.close()
            self.world.beat(self.progress.counts, last=True)

    def _batches(self, names: Sequence[str]) -> Iterator[list[Case]]:
        """Readable images in batches of one size; the others are recorded as failed."""
        waiting: dict[tuple, list[Case]] = {}  # by size and start
        ahead = self.background.ahead(self.measuring.read, names, _READ_AHEAD)
        for position, (name, load) in enumerate(ahead):
            self.stop.check()
            case = self._case(name, load)
            if case is _NO_MEMORY:
                yield from waiting.values()  # they may hold the memory that is missing
                waiting.clear()
                case = self._second_try(name)
            if case is None:
                continue
            kind = (case.size, case.start)
            waiting.setdefault(kind, []).append(case)
            batch_size = self.fitting(case, len(names) - position)
            if len(waiting[kind]) >= batch_size:
                yield waiting.pop(kind)
            elif sum(map(len, waiting.values())) >= _MOST_WAITING * batch_size:
                yield waiting.pop(max(waiting, key=lambda kind: len(waiting[kind])))
        yield from waiting.values()

    def _second_try(self, name: str) -> Case | None:
        release_memory(self.settings.device)
        case = self._case(name)
        if case is not _NO_MEMORY:
            return case
        self.saver.fail(name, f"{OUT_OF_MEMORY} when it was read and measured; use a smaller image")
        release_memory(self.settings.device)
        return None

    def _case(self, name: str, read: Read | None = None) -> Any:
        """The image called `name` that read() gives, measured: a Case; None if that cannot be
        done, _NO_MEMORY if not now."""
        try:
            return self.measuring.case(name, read)
        except OutputError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                return _NO_MEMORY
            self.saver.fail(name, reason_of(error))
        return None

    def fitting(self, case: Case, remaining: int) -> int:
        """Images, or samples of them, to restore at a time that look like `case`."""
        if case.size not in self._sizes:
            # Compiling for every size that is only tried would take longer than it saves.
            prior = dataclasses.replace(self.prior, model=uncompiled(self.prior.model))

            def try_steps(size: int) -> None:
                batch, noise = self.pose([case] * size, prior)
                x = self.method.start(batch.problem, noise)
                first = self.method.first_step(batch.prior.diffusion)
                for t in (first, 1, 0):
                    if t <= first:  # the late steps have the most candidates
                        x = self.method.step(batch.prior.reverse, x, t, batch.problem, noise).x

            try:
                self._sizes[case.size] = self.settings.batch_size or fitting_batch(
                    try_steps,
                    self.settings.device,
                    remaining * max(1, self.settings.samples - 1),
                )
            except OutputError:
                raise
            except Exception:  # of this image perhaps alone; restoring it will say so
                return 1
        return self._sizes[case.size]

    def _restore(self, cases: Sequence[Case]) -> None:
        """Restore a batch; where memory runs out, its halves one after the other, and where
        anything else goes wrong, its images one by one, so that an image which cannot be restored
        fails alone."""
        try:
            finished = self._restore_whole(cases)
        except (OutputError, Interrupted):
            raise
        except Exception as error:
            finished, memory, reason = None, is_out_of_memory(error), reason_of(error)
        if finished is not None:
            self.background.submit(self.saver.save, finished)
            return
        # Outside the handler: until here the exception kept the failed batch in memory.
        release_memory(self.settings.device)
        self.progress.forget_steps()
        if len(cases) == 1 and (not memory or self._at_a_time == 1):
            if memory:
                reason = f"{OUT_OF_MEMORY} with one image at a time; use a smaller model or image"
            self.saver.fail(cases[0].key.name, reason, cases[0])
            return
        size = self._at_a_time // 2 if memory else 1
        if memory:
            get_logger().warning(
                "out of memory with %d images at a time; trying %d", self._at_a_time, size
            )
            self._sizes[cases[0].size] = size
        for start in range(0, len(cases), size):
            self._restore(cases[start : start + size])

    def counting(self, network: Model | None = None) -> "Counting":
        """The network, or another in its place, counting what it is asked for."""
        return Counting(network or self.prior.model, self.stop)

    def pose(
        self, cases: Sequence[Case], prior: Prior, seeds: Sequence[int] | None = None
    ) -> tuple[Batch, PerImageNoise]:
        """The problem of cases of one size and start, and the draws that belong to them.

        seeds: one for each case; None: the run's
        """
        seeds = [self.settings.seed] * len(cases) if seeds is None else seeds
        keys = [ImageKey(k, case.key.name) for k, case in zip(seeds, cases, strict=True)]
        batch = self.builder.pose(list(cases), prior.for_images(keys))
        return batch, PerImageNoise(keys, self.settings.device)

    def _restore_whole(self, cases: Sequence[Case]) -> Finished:
        started, compiled = time.perf_counter(), self._compile_seconds()
        counting, self._at_a_time = self.counting(), len(cases)
        prior = dataclasses.replace(self.prior, model=counting)
        batch, noise = self.pose(cases, prior)
        self._show_kernel(cases[0])
        if isinstance(batch.prior.model, TiledModel) and len(batch.prior.model.tiling) > 1:
            get_logger().info(
                "%s: %dx%d, %d windows a step, %d steps",
                *(cases[0].key.name, cases[0].size[1], cases[0].size[0]),
                *(len(batch.prior.model.tiling), self.progress.steps),
            )
        outputs = [case.output for case in cases]
        record, submit = self.settings.record, self.background.submit
        recorder = Recorder(self.results, outputs, record, batch.finish, submit)
        self.progress.begin_batch(len(cases))
        x = self._sample(batch, noise, recorder.save)
        images = batch.results(x).cpu()
        spreads = self._spreads(cases, prior, images) if self.settings.samples > 1 else []
        seconds = time.perf_counter() - started
        return Finished(
            batch.cases,
            images,
            spreads,
            batch.residuals(x),
            batch.y.cpu(),
            batch.operator.view(batch.y).cpu(),
            batch.operator.saved_per_image(),
            recorder,
            {
                "seconds": (seconds - (self._compile_seconds() - compiled)) / len(cases),
                "evaluations": counting.evaluations / len(cases),
                "gradients": counting.gradients / len(cases),
            },
        )

    def _sample(
        self,
        batch: Batch,
        noise: PerImageNoise,
        record: Callable[[int, StepResult], None] = lambda t, result: None,
    ) -> Tensor:
        """The sampler's x of a batch; `record` sees every step."""

        def after_step(t: int, result: StepResult) -> None:
            self.stop.check()
            record(t, result)
            self.progress.step(len(batch.cases), result.distance)

        return sample(batch.prior, self.method, batch.problem, noise, after_step)

    def _spreads(self, cases: Sequence[Case], prior: Prior, first: Tensor) -> list[Spread]:
        """Draw the other samples of images whose `first` [B, 3, H, W] are there, and save them as
        they come. As many at a time as fit, but the first ones alone: so they are, to the last
        bit, those of a run with one sample."""
        forms, seeds = [self.saver.form(case) for case in cases], self.settings.seeds
        spreads = [Spread(form.grey) for form in forms]
        for spread, image in zip(spreads, first, strict=True):
            spread.add(image)
        at_a_time = max(1, self._sizes.get(cases[0].size, 1) // len(cases))
        for start in range(1, len(seeds), at_a_time):
            some = seeds[start : start + at_a_time]
            self._at_a_time = len(cases) * len(some)
            self.progress.begin_batch(self._at_a_time, anew=False)
            of_each = [seed for seed in some for _ in cases]
            batch, noise = self.pose([*cases] * len(some), prior, of_each)
            images = batch.results(self._sample(batch, noise)).cpu()
            for i, (seed, image) in enumerate(zip(of_each, images, strict=True)):
                j = i % len(cases)
                spreads[j].add(image)
                if spreads[j].finite:
                    what = (sample_kind(seed), cases[j].output, image, forms[j])
                    self.background.submit(self.results.save_image, *what)
        return spreads

    def _compile_seconds(self) -> float:
        return getattr(self.prior.model, "compile_seconds", 0.0)

    def _show_kernel(self, case: Case) -> None:
        """With --verbose, once: a measurement restored classically with the kernel of its file and
        with the same turned round. The residual cannot tell them apart; a look can."""
        operator = case.operator
        if not self.dataset.measured or not isinstance(operator, KernelBlur) or self._kernel_shown:
            return
        self._kernel_shown = True
        if not get_logger().isEnabledFor(logging.DEBUG):
            return
        turned = KernelBlur(operator.context, operator.kernel[::-1, ::-1])
        for kind, blur in (("as_read", operator), ("turned", turned)):
            self.results.save_image(f"kernel_{kind}", case.output, blur.classical(case.y[None])[0])
        get_logger().debug(
            "look at kernel_as_read/%s.png and kernel_turned/%s.png: the sharper one tells which "
            "--kernel_is is right",
            *(case.output, case.output),
        )
