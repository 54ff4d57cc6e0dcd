"""What a run would cost, told before it starts: a few steps of its first image, timed."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.dataloader import Dataset
from guided_diffusion.condition_methods import StepResult
from util.errors import UserError
from util.img_utils import to_colour
from util.runs.problems import Case
from util.runs.progress import duration
from util.runs.restoration import Restoration
from util.runs.results import Results
from util.runs.spread import Spread

_TIMED = 5  # steps, spread over all: their candidates differ
_TRIED = 20  # images, until one can be read


@dataclass(frozen=True)
class Forecast:
    """Cost of restoring `images`, of which `finished` more need nothing."""

    images: int
    finished: int
    evaluations: float  # of the network, one image or window at a time
    seconds: float
    bytes: float

    def __str__(self) -> str:
        done = f" ({self.finished} more are finished)" if self.finished else ""
        if not self.images:
            return f"nothing to restore{done}"
        return (
            f"{self.images} image(s) to restore{done}: {self.evaluations:,.0f} network "
            f"evaluations, about {duration(self.seconds)} on this machine, about "
            f"{self.bytes / 2**20:,.0f} MiB of files"
        )


def forecast(restoration: Restoration, names: Sequence[str], finished: int = 0) -> Forecast:
    """The cost of restoring `names`, by this process alone; nothing is written.

    Raises UserError where none of the first images can be read.
    """
    if not names:
        return Forecast(0, finished, 0, 0, 0)
    case, once = _timed(lambda: _first_readable(restoration, names))
    _, reading = _timed(lambda: restoration.case(case.key.name))  # the start is known by now
    samples = restoration.settings.samples
    batch = min(restoration.settings.batch_size or 1, len(names) * max(1, samples - 1))
    if restoration.settings.batch_size is None:
        batch = restoration.fitting(case, len(names))
    steps, sampling, evaluations = _sample(restoration, [case] * batch)
    size, saving = _timed(lambda: _saved_bytes(restoration, case, steps))
    areas, images = _areas(restoration.dataset, names, case), len(names)
    each = samples * (sampling / batch) * areas + reading + saving
    return Forecast(
        images,
        finished,
        evaluations=samples * evaluations * areas * images,
        seconds=once - reading + each * images,
        bytes=size * areas * images,
    )


T = TypeVar("T")


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def _first_readable(restoration: Restoration, names: Sequence[str]) -> Case:
    reasons = []
    for name in names[:_TRIED]:
        try:
            return restoration.case(name)
        except UserError as error:
            reasons.append(str(error))
    raise UserError(f"none of the first {len(reasons)} image(s) can be restored: {reasons[0]}")


def _sample(restoration: Restoration, cases: list[Case]) -> tuple[int, float, float]:
    """Steps of the whole batch, the seconds that they take, and evaluations for an image."""
    counting = restoration.counting()
    posed, noise = restoration.pose(cases, dataclasses.replace(restoration.prior, model=counting))
    method, problem, prior = restoration.method, posed.problem, posed.prior
    x = method.start(problem, noise)
    last = method.first_step(prior.diffusion)
    timed = sorted({round(t) for t in np.linspace(0, last, _TIMED)}, reverse=True)
    x = method.step(prior.reverse, x, last, problem, noise).x  # warms up
    before, seconds = counting.evaluations, []
    for t in timed:

        def one(x: Tensor = x, t: int = t) -> StepResult:
            return _waited(method.step(prior.reverse, x, t, problem, noise))

        result, spent = _timed(one)
        x = result.x
        seconds.append(spent)
    each = (counting.evaluations - before) / len(timed) / len(cases)
    whole = np.interp(range(last + 1), timed[::-1], seconds[::-1]).sum()
    return last + 1, float(whole), each * (last + 1)


def _waited(result: StepResult) -> StepResult:
    float(result.x.sum())  # a GPU has finished
    return result


def _saved_bytes(restoration: Restoration, case: Case, steps: int) -> float:
    """Of the files of an image, with one like its label for each picture that is restored."""
    with tempfile.TemporaryDirectory() as folder:
        results = Results(Path(folder))
        view = case.operator.view(case.y[None])[0]
        results.save_measurement("image", case.y, view)
        picture = view if case.label is None else case.label
        results.save_restored("image", case.label, picture)
        samples = restoration.settings.samples
        if samples > 1:
            spread = Spread()
            for sample in (picture.cpu(), torch.zeros(picture.shape)):
                spread.add(to_colour(sample))
            results.save_spread("image", case.label, spread)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        shown = results.path("recon", "image").stat().st_size
        size += (samples - 1) * shown
    recorded = sum(restoration.settings.record.due(t) for t in range(steps))
    return size + recorded * (shown + 3 * case.size[0] * case.size[1])  # noise does not compress


def _areas(dataset: Dataset, names: Sequence[str], case: Case) -> float:
    """Mean number of pixels of the images, in those of `case`."""
    if dataset.fit not in ("pad", "tile"):
        return 1.0
    found = []
    for name in names:
        path = dataset.path(name)
        with contextlib.suppress(Exception):  # the run will say what is wrong with it
            if path is not None:
                with Image.open(path) as image:
                    found.append((name, image.width * image.height))
    first = dict(found).get(case.key.name)
    return 1.0 if first is None else sum(pixels for _, pixels in found) / len(found) / first
