"""Runs a posterior check: draws from methods, and what they are off by."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.condition_methods import ConditioningMethod, Init
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.sampling import Prior
from models.prior import restore
from util.errors import UnsupportedError, UserError, described
from util.logger import get_logger
from util.posterior.exact import EXACT
from util.posterior.mixture import ExactDenoiser, ModePosterior, Posterior
from util.posterior.spec import (
    BATCH,
    TIMESTEPS,
    CheckSpec,
    OperatorSpec,
    PriorSpec,
    RowSpec,
    build_method,
)
from util.randomness import CANDIDATE_BLOCK, numpy_stream, torch_stream
from util.statistics import student_interval

PUBLISHED_SIZE = 256  # pixels: guidance scales belong to it
GROUP = 8  # directions that a ratio of spreads is the mean over
SLICES = 100  # directions of the sliced distance
PLACES = ("largest", "middle", "smallest")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class BatchNoise:
    """One generator for a whole batch: these images need no streams of their own."""

    count: int
    generator: torch.Generator

    def normal(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator)

    def uniform(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        return torch.rand(self.count, *shape, generator=self.generator)

    def candidates(self, step: int, count: int, shape: Sequence[int]) -> Iterator[Tensor]:
        for start in range(0, count, CANDIDATE_BLOCK):
            block = min(CANDIDATE_BLOCK, count - start)
            yield torch.randn(block, self.count, *shape, generator=self.generator)


@dataclass(frozen=True)
class Figures:
    """What samples of one measurement are off by.

    bias: || mean - posterior's mean ||^2 over the trace of the posterior's covariance; the part
      that drawing so many samples makes is taken off, so that it may be slightly below 0
    spread: standard deviation over the posterior's, along the GROUP directions of largest, middle
      and smallest variance
    distance: sliced 2-Wasserstein distance to as many exact samples, over the posterior's standard
      deviation sqrt(trace / d)
    shares: of the samples in each mode, [K]; weights: what they should be
    """

    bias: float
    spread: tuple[float, float, float]
    distance: float
    shares: list[float]
    weights: list[float]

    @property
    def shift(self) -> float:
        """Total variation distance between shares and weights, 0 to 1."""
        return 0.5 * float(np.abs(np.subtract(self.shares, self.weights)).sum())


def figures(samples: Tensor, exact: Tensor, posterior: Posterior, slices: Tensor) -> Figures:
    """Of samples and as many exact ones, both [S, d] in the posterior's coordinates.

    slices: directions [d, L]
    """
    variances = samples.var(0)
    trace = posterior.spread.sum()
    error = (samples.mean(0) - posterior.mean).square().sum() - variances.sum() / len(samples)
    ratios = variances / posterior.spread
    d = len(ratios)
    starts = (0, (d - GROUP) // 2, d - GROUP)
    spread = [ratios[start : start + GROUP].mean().sqrt().item() for start in starts]
    gap = (samples @ slices).sort(0).values - (exact @ slices).sort(0).values
    return Figures(
        (error / trace).item(),
        (spread[0], spread[1], spread[2]),
        (gap.square().mean() / (trace / d)).sqrt().item(),
        posterior.shares(samples).mean(0).tolist(),
        posterior.weights.tolist(),
    )


@dataclass
class CellResult:
    """One row with one number of steps; `problem` says why there are no figures."""

    row: str
    steps: int | None  # None: exact samples, without a sampler
    runs: list[Figures] = field(default_factory=list)
    seconds: float = 0.0
    problem: str | None = None
    unsupported: bool = False
    shown: Tensor | None = None  # samples of the first measurement, [S, d]

    def mean(self, value: Callable[[Figures], float]) -> tuple[float, float, float]:
        """Mean over the runs and its 95 % interval."""
        values = [value(run) for run in self.runs]
        mean = float(np.mean(values))
        low, high = student_interval(values)
        return mean, mean if low is None else low, mean if high is None else high


@dataclass
class CaseResult:
    """A prior with an operator: its posterior of the first measurement and its cells."""

    prior: PriorSpec
    operator: OperatorSpec
    posterior: Posterior
    cells: list[CellResult] = field(default_factory=list)


@dataclass
class CheckResult:
    spec: CheckSpec
    cases: list[CaseResult] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(c.problem and not c.unsupported for case in self.cases for c in case.cells)


class Setting:
    """An operator and the noise, and what follows from them for every prior."""

    def __init__(self, check: CheckSpec, spec: OperatorSpec) -> None:
        self.spec, self.operator = spec, spec.build(check.context())
        self.noiser = GaussianNoise(check.sigma)
        exact = spec.build(check.context(dtype=torch.float64))
        self.mode = ModePosterior(exact, check.sigma)
        self._starts: dict[Any, int | None] = {}

    def start_timestep(self, prior: Prior, method: ConditioningMethod) -> int | None:
        """As `Prior.start_timestep`, which restores 2^16 pixels: that takes longer than sampling,
        and is done once for all methods that begin from the same guess."""
        key = (type(method).first_guess, method.init)
        if key not in self._starts:
            self._starts[key] = prior.start_timestep(method, self.operator, self.noiser)
        return self._starts[key]


class Case:
    """Measurements of images of a prior, by an operator, and their posteriors."""

    def __init__(self, spec: CheckSpec, prior: PriorSpec, setting: Setting) -> None:
        self.spec, self.prior, self.setting = spec, prior, setting
        mode = setting.mode
        weights = torch.tensor(prior.weights, dtype=torch.float64)
        means = mode.prior_means(len(weights), prior.distance)
        process = GaussianDiffusion.create(TIMESTEPS)
        self.model = ExactDenoiser(weights, means.float(), process)
        generator = self._stream("images")
        modes = torch.multinomial(weights, spec.runs, replacement=True, generator=generator)
        images = (means[modes] + mode.draw_images(spec.runs, generator)).float()
        rng = numpy_stream(spec.seed, prior.name, setting.spec.name, "noise")
        self.y = setting.noiser(setting.operator(images), rng)
        self.posteriors = [mode.given(y[None].double(), weights, means) for y in self.y]
        generator = self._stream("exact")
        self.exact = [p.draw(spec.samples, generator) for p in self.posteriors]
        slices = torch.randn(means[0].numel(), SLICES, generator=generator, dtype=torch.float64)
        self._slices = slices / slices.norm(dim=0)

    def _stream(self, *names: str) -> torch.Generator:
        return torch_stream(_CPU, self.spec.seed, self.prior.name, self.setting.spec.name, *names)

    def floor(self) -> CellResult:
        """What exact samples, drawn without a sampler, are off by."""
        generator = self._stream("floor")
        result = CellResult("exact draws", None)
        for run in range(self.spec.runs):
            self._add(result, run, self.posteriors[run].draw(self.spec.samples, generator))
        return result

    def cell(self, row: RowSpec, steps: int) -> CellResult:
        """The row's samples with so many steps."""
        result, started = CellResult(row.name, steps), time.perf_counter()
        try:
            for run in range(self.spec.runs):
                self._add(result, run, self._samples(row, steps, run))
        except Exception as error:  # any failure is the cell's: the check goes on without it
            get_logger().debug("cell failed", exc_info=True)
            result = CellResult(row.name, steps, problem=described(error))
            result.unsupported = isinstance(error, UnsupportedError)
        result.seconds = time.perf_counter() - started
        return result

    def _add(self, result: CellResult, run: int, samples: Tensor) -> None:
        if not samples.isfinite().all():
            raise UserError("the samples are not finite")
        if run == 0:
            result.shown = samples
        posterior = self.posteriors[run]
        result.runs.append(figures(samples, self.exact[run], posterior, self._slices))

    def _samples(self, row: RowSpec, steps: int, run: int) -> Tensor:
        """Of the measurement number `run`, [S, d]."""
        posterior, setting, count = self.posteriors[run], self.setting, self.spec.samples
        method = build_method(self.spec, row, self.setting.spec, steps, f'row "{row.name}"')
        init: Init = "inverse" if row.from_measurement else "noise"
        chosen = EXACT[row.method](posterior, init=init) if method is None else method
        prior = self._process(chosen, steps, row.from_measurement)
        found = []
        for first in range(0, count, BATCH):
            batch = min(BATCH, count - first)
            y = self.y[run].expand(batch, *self.y.shape[1:])
            noise = BatchNoise(batch, self._stream("sampler", str(run), str(first)))
            x = restore(
                y, setting.operator, prior, method=chosen, noiser=setting.noiser, noise=noise
            )
            found.append(posterior.coordinates(x))
        return torch.cat(found)

    def _process(self, method: ConditioningMethod, steps: int, from_measurement: bool) -> Prior:
        """The published process with the smallest variance, as the priors that ship have it, cut to
        `steps`. x0_hat is not clamped: Gaussian images do not end at -1 and 1."""
        diffusion = GaussianDiffusion.create(
            TIMESTEPS,
            timestep_respacing="" if from_measurement else steps,
            model_var_type="fixed_small",
            clip_denoised=False,
        )
        prior = Prior(self.model, diffusion, image_size=PUBLISHED_SIZE)
        if not from_measurement:
            return prior
        prior = replace(prior, num_steps=steps)
        return prior.scheduled(self.setting.start_timestep(prior, method))


def run_check(result: CheckResult) -> None:
    """Run everything; `result`, empty at first, holds what is finished."""
    spec = result.spec
    done = 0
    for operator in spec.operators:
        priors = [p for p in spec.priors if operator in spec.operators_of(p)]
        if not priors:
            continue
        setting = Setting(spec, operator)
        for prior in priors:
            case = Case(spec, prior, setting)
            cells = [case.floor()]
            result.cases.append(CaseResult(prior, operator, case.posteriors[0], cells))
            result.cases.sort(key=lambda c: spec.priors.index(c.prior))
            for row in spec.rows:
                for steps in spec.steps_of(prior, operator, row):
                    cell = case.cell(row, steps)
                    cells.append(cell)
                    done += 1
                    _tell(f"{done}/{spec.count} {prior.name}, {operator.name}", cell)


def _tell(case: str, cell: CellResult) -> None:
    took = cell.problem or f"{cell.seconds:.1f} s"
    get_logger().info("%s, %s, %s steps: %s", case, cell.row, cell.steps, took)
