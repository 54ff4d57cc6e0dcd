"""What a run would cost, told before it starts: a few steps of its first image, timed."""

import contextlib
import dataclasses
import operator
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.dataloader import Dataset
from guided_diffusion.condition_methods import StepResult
from guided_diffusion.gaussian_diffusion import Model
from util.errors import UserError
from util.files import open_regular
from util.img_utils import to_colour
from util.runs.problems import Case
from util.runs.progress import duration
from util.runs.restoration import Restoration
from util.runs.results import Results
from util.runs.spread import Spread

_TIMED = 5  # steps, spread over all: their candidates differ
_MOST_CALLS, _ENOUGH_SECONDS = 5, 5.0  # of a network that is timed
_TRIED = 20  # images, until one can be read


@dataclass(frozen=True)
class Forecast:
    """Cost of restoring `images`, of which `finished` more need nothing."""

    images: int
    finished: int
    evaluations: float  # of the network, one image or window at a time
    seconds: float
    bytes: float
    gradients: float = 0.0  # passes back through the network

    def __add__(self, other: "Forecast") -> "Forecast":
        mine, its = dataclasses.astuple(self), dataclasses.astuple(other)
        return Forecast(*map(operator.add, mine, its))

    def __str__(self) -> str:
        done = f" ({self.finished} more are finished)" if self.finished else ""
        if not self.images:
            return f"nothing to restore{done}"
        return (
            f"{self.images} image(s) to restore{done}: {self.evaluations:,.0f} network "
            f"evaluations, about {duration(self.seconds)} on this machine, about "
            f"{self.bytes / 2**20:,.0f} MiB of files"
        )


class StandIn:
    """In place of a network where many runs with it are foretold: its answers cost nothing and mean
    nothing. The network itself is asked a few times for each shape of its input, to be timed.

    owed: seconds that the network would have taken, less those that timing it took
    """

    def __init__(self, network: Model) -> None:
        self.network = network
        self.owed = 0.0
        self._times: dict[Any, tuple[float, float, int]] = {}

    def __call__(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        differentiated = torch.is_grad_enabled() and x.requires_grad
        kind = (x.shape, differentiated)
        if kind not in self._times:
            self._times[kind], spent = timed(lambda: self._time(x.detach(), t, labels, kind[1]))
            self.owed -= spent
        forward, backward, channels = self._times[kind]
        self.owed += forward
        output = x.repeat(1, channels // x.shape[1], 1, 1)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._owe(backward))
        return output

    def _owe(self, seconds: float) -> None:
        self.owed += seconds

    def _time(
        self, x: Tensor, t: Tensor, labels: Sequence[Tensor], differentiated: bool
    ) -> tuple[float, float, int]:
        """Seconds forward and backward, and the channels of the output."""
        leaf = x.clone().requires_grad_(differentiated)

        def forward() -> Tensor:
            return _done(self.network(leaf, t, *labels))

        def both() -> Tensor:
            return _done(torch.autograd.grad(forward().sum(), leaf)[0])

        channels, backward = forward().shape[1], 0.0  # warms up
        once = _median_seconds(forward)
        if differentiated:
            both()
            backward = max(_median_seconds(both) - once, 0.0)
        return once, backward, channels


def _median_seconds(function: Callable[[], Any]) -> float:
    """Of a few calls, on a machine that does other things as well."""
    times: list[float] = []
    while len(times) < _MOST_CALLS and sum(times) < _ENOUGH_SECONDS:
        times.append(timed(function)[1])
    return float(np.median(times))


def forecast(
    restoration: Restoration,
    names: Sequence[str],
    finished: int = 0,
    stand_in: StandIn | None = None,
) -> Forecast:
    """The cost of restoring `names`, by this process alone; nothing is written.

    stand_in: for the network of `restoration`, else steps with it are timed

    Raises UserError where none of the first images can be read.
    """
    if not names:
        return Forecast(0, finished, 0, 0, 0)
    case, once = timed(lambda: _first_readable(restoration, names))
    # The start is known by now.
    _, reading = timed(lambda: restoration.measuring.case(case.key.name))
    samples = restoration.settings.samples
    batch = min(restoration.settings.batch_size or 1, len(names) * max(1, samples - 1))
    if restoration.settings.batch_size is None:
        batch = restoration.fitting(case, len(names))
    cost = _sample(restoration, [case] * batch, stand_in or restoration.prior.model)
    size, saving = timed(lambda: _saved_bytes(restoration, case, cost.steps))
    areas, images = _areas(restoration.dataset, names, case), len(names)
    drawn = samples * areas
    each = drawn * cost.seconds + reading + saving
    return Forecast(
        images,
        finished,
        evaluations=cost.evaluations * drawn * images,
        seconds=once - reading + each * images,
        bytes=size * areas * images,
        gradients=cost.gradients * drawn * images,
    )


T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """What function() returns, and the seconds that it took."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def _first_readable(restoration: Restoration, names: Sequence[str]) -> Case:
    reasons = []
    for name in names[:_TRIED]:
        try:
            return restoration.measuring.case(name)
        except UserError as error:
            reasons.append(str(error))
    raise UserError(f"none of the first {len(reasons)} image(s) can be restored: {reasons[0]}")


@dataclass(frozen=True)
class _Sampling:
    """Cost of one image: its steps, and what the start and all of them take."""

    steps: int
    seconds: float
    evaluations: float
    gradients: float


def _sample(restoration: Restoration, cases: list[Case], network: Model) -> _Sampling:
    """Of one of `cases`, restored together; some of the steps are done, by `network`."""
    counting = restoration.counting(network)
    stand_in = network if isinstance(network, StandIn) else None
    posed, noise = restoration.pose(cases, dataclasses.replace(restoration.prior, model=counting))
    method, problem, prior = restoration.method, posed.problem, posed.prior
    x, beginning = timed(lambda: method.start(problem, noise))
    last = method.first_step(prior.diffusion)
    chosen = sorted({round(t) for t in np.linspace(0, last, _TIMED)}, reverse=True)
    x = method.step(prior.reverse, x, last, problem, noise).x  # warms up
    found = []
    for t in chosen:
        counting.evaluations = counting.gradients = 0
        if stand_in is not None:
            stand_in.owed = 0.0

        def one(x: Tensor = x, t: int = t) -> StepResult:
            return _waited(method.step(prior.reverse, x, t, problem, noise))

        result, spent = timed(one)
        x = result.x
        owed = 0.0 if stand_in is None else stand_in.owed
        found.append((spent + owed, counting.evaluations, counting.gradients))
    whole = [
        float(np.interp(range(last + 1), chosen[::-1], values[::-1]).sum()) / len(cases)
        for values in zip(*found, strict=True)
    ]
    seconds, evaluations, gradients = whole
    return _Sampling(last + 1, seconds + beginning / len(cases), evaluations, gradients)


def _waited(result: StepResult) -> StepResult:
    _done(result.x)
    return result


def _done(values: Tensor) -> Tensor:
    float(values.detach().sum())  # a GPU has finished
    return values


@contextlib.contextmanager
def discarded() -> Iterator[Results]:
    """A results folder elsewhere, for as long as it takes to see what files come to."""
    with tempfile.TemporaryDirectory() as folder:
        yield Results(Path(folder))


def written(results: Results) -> int:
    """Bytes of the files in a results folder."""
    return sum(file.stat().st_size for file in results.root.rglob("*") if file.is_file())


def _saved_bytes(restoration: Restoration, case: Case, steps: int) -> float:
    """Of the files of an image, with one like its label for each picture that is restored."""
    view, samples = case.operator.view(case.y[None])[0], restoration.settings.samples
    picture = view if case.label is None else case.label
    with discarded() as results:
        results.save_measurement("image", case.y, view)
        results.save_restored("image", case.label, picture)
        if samples > 1:
            spread = Spread()
            for sample in (picture.cpu(), torch.zeros(picture.shape)):
                spread.add(to_colour(sample))
            results.save_spread("image", case.label, spread)
        size = written(results)
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
                with open_regular(path) as file, Image.open(file) as image:
                    found.append((name, image.width * image.height))
    first = dict(found).get(case.key.name)
    return 1.0 if first is None else sum(pixels for _, pixels in found) / len(found) / first
