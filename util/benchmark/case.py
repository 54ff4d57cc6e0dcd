"""What the benchmark times, and the clock that it times with.

A Case is one task at one batch size with a network; its step is the program's own, and its parts
are what such a step consists of. A Bench fills rows of the report with their times.
"""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data.masks import MaskConfig
from guided_diffusion.condition_methods import ProximalSampling
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import OPERATORS, Operator, OperatorContext
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.problem import Problem
from guided_diffusion.sampling import Prior
from guided_diffusion.unet import UNetConfig, UNetModel
from models.checkpoint import freeze
from util.benchmark.report import Row, format_row
from util.randomness import ImageKey, PerImageNoise
from util.runs.batching import is_out_of_memory

Functions = dict[str, Callable[[], object]]


class Clock:
    """Times functions on a device, waiting for it to finish."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def ms(self, function: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        function()
        self.wait()
        return 1e3 * (time.perf_counter() - started)

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def peak_gib(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        kib = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
        return kib[0] / 2**20 if kib and self.device.type == "cpu" else None


def medians(clock: Clock, functions: Functions, repeats: int) -> dict[str, float]:
    """Median milliseconds of each function, timed in turn after one untimed call of each."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(clock.ms(function))
    return {name: statistics.median(values) for name, values in times.items()}


def count_gflop(config: UNetConfig, size: int) -> float:
    """GFLOP of one forward and backward (to the input) pass for one image, 2 per multiply-add."""
    with torch.device("meta"):
        network = freeze(UNetModel(config))
        network.set_precision(torch.float32)
        x = torch.zeros(1, 3, size, size, requires_grad=True)
        t = torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            output = network(1 * x, t)  # the counter cannot follow a leaf
            torch.autograd.grad(output, x, torch.ones_like(output))
    return counter.get_total_flops() / 1e9


def measure_peak(clock: Clock, repeats: int = 5) -> float:
    """TFLOP/s of a large bf16 matrix product, the best of some."""
    n = 8192 if clock.device.type == "cuda" else 1536
    a = torch.randn(n, n, device=clock.device, dtype=torch.bfloat16)
    a @ a
    return 2 * n**3 / min(clock.ms(lambda: a @ a) for _ in range(repeats)) / 1e9


def random_network(config: UNetConfig) -> UNetModel:
    """A network with random weights, those that start at zero included."""
    torch.manual_seed(0)
    network = UNetModel(config)
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    network.set_precision(torch.float32)
    return freeze(network)


def build_operator(task: str, size: int, device: torch.device) -> Operator:
    """The operator of a published task."""
    mask = MaskConfig(mask_type="random", mask_prob_range=(0.7, 0.9))
    context = OperatorContext(size, size, device, mask=mask)
    return OPERATORS.get(task)(context=context)


@dataclass
class Case:
    """One task at one batch size: what a step needs."""

    task: str
    prior: Prior
    batch: int
    size: int
    device: torch.device

    def __post_init__(self) -> None:
        keys = [ImageKey(0, str(i)) for i in range(self.batch)]
        self.noise = PerImageNoise(keys, self.device)
        operator = build_operator(self.task, self.size, self.device).bind(keys)
        self.method = ProximalSampling()
        self.x = torch.randn(self.batch, 3, self.size, self.size, device=self.device)
        y = operator(self.x)
        shape = (3, self.size, self.size)
        self.problem = Problem(y, operator, GaussianNoise(), self.prior.diffusion, shape)

    def step(self, t: int) -> Tensor:
        return self.method.step(self.prior.reverse, self.x, t, self.problem, self.noise).x

    def parts(self, t: int, last: int) -> Functions:
        """The parts of a step as functions; called in this order, each finds what it needs."""
        held: dict[str, Any] = {}

        def forward() -> None:
            held["x"] = self.x.detach().requires_grad_()
            held["prior"], held["move"] = self.prior.reverse(held["x"], t)

        def operator() -> None:
            x0_hat = held["prior"].x0_hat.detach().requires_grad_()
            distance = self.problem.distance(x0_hat)
            held["g"] = torch.autograd.grad(distance.sum(), x0_hat)[0]

        def backward() -> None:
            torch.autograd.grad(held["prior"].x0_hat, held["x"], held["g"])

        def candidates(step: int) -> None:
            n = self.method.num_candidates(self.prior.diffusion, step)
            move, eps = held["move"], held["prior"].eps.detach()
            args = (move.mean.detach(), move.std.detach(), eps, self.x, step, n)
            with torch.no_grad():
                self.method.choose(*args, self.problem, self.noise)

        return {
            "forward": forward,
            "operator": operator,
            "backward": backward,
            "candidates": lambda: candidates(t),
            "last_candidates": lambda: candidates(last),
        }


def plain_loop() -> Any:
    """The module of the plain loop, which lives in tests/; None where these are not installed."""
    try:
        from tests import plain_loop
    except ImportError:
        return None
    return plain_loop


def _plain_case(plain: Any, case: Case, network: UNetModel) -> Any:
    """The plain loop on the same task."""
    dense: dict[str, Callable[[], Any]] = {
        "super_resolution": lambda: plain.GatherBicubic(case.size, 4, case.device),
        "inpainting": lambda: case.problem.operator,
    }
    kernel: Any = case.problem.operator.saved().get("kernel")
    operator = dense.get(case.task, lambda: plain.DenseBlur(kernel, case.device))()
    diffusion = case.prior.diffusion
    timesteps, betas = diffusion.timesteps, diffusion.betas
    y = case.problem.y[:1]
    plain_network = plain.plain_network(network)
    return plain.PlainLoop(plain_network, timesteps, betas, operator, y, case.method.scale)


def mean_step(diffusion: GaussianDiffusion) -> tuple[int, float]:
    """The step whose number of candidates is nearest the mean over the run, and that mean."""
    method = ProximalSampling()
    numbers = [method.num_candidates(diffusion, t) for t in range(1, diffusion.num_timesteps)]
    mean = statistics.fmean(numbers)
    return 1 + min(range(len(numbers)), key=lambda i: abs(numbers[i] - mean)), mean


class Bench:
    """A device, and what all timings on it have in common."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats, self.clock = device, repeats, Clock(device)
        self.name = platform.processor() or "CPU"
        if device.type == "cuda":
            self.name = torch.cuda.get_device_name(device)
        self.diffusion = GaussianDiffusion.create()
        self.middle, self.mean_candidates = mean_step(self.diffusion)
        self.peak_tflops = measure_peak(self.clock)

    def case(self, task: str, network: Any, batch: int, size: int) -> Case:
        return Case(task, Prior(network, self.diffusion), batch, size, self.device)

    def plain_steps(self, task: str, network: UNetModel, size: int) -> Functions:
        """Steps of the plain loop, one image at a time with dense operators and recomputed
        attention, as published; none where it is not installed."""
        plain = plain_loop()
        if plain is None:
            return {}
        case = self.case(task, network.to(self.device), 1, size)
        loop = _plain_case(plain, case, network)
        return {
            "step": lambda: loop.step(case.x, self.middle, case.noise),
            "last_step": lambda: loop.step(case.x, 1, case.noise),
        }

    def fill(self, row: Row, functions: Functions, gflop: float, plain: Row | None = None) -> None:
        """Time `functions`, the step among them, and fill in what follows.

        gflop: of an image; plain: the row that the speed is held against
        """
        self.clock.reset_peak()
        times = medians(self.clock, functions, self.repeats)
        for name, value in times.items():
            setattr(row, f"{name}_ms", value)
        seconds = times["step"] / 1e3
        row.images_per_hour = 3600 * row.batch / (seconds * self.diffusion.num_timesteps)
        row.peak_memory_gib = self.clock.peak_gib()
        row.tflops = gflop * row.batch / seconds / 1e3
        row.peak_share = row.tflops / self.peak_tflops
        if plain is not None and plain.images_per_hour:
            row.speedup = row.images_per_hour / plain.images_per_hour

    def guard(self, row: Row, measure: Callable[[], None]) -> None:
        """measure() fills the row, which is printed; one that does not fit into memory says so, and
        the sweep goes on."""
        try:
            measure()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            row.note = "out of memory"
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(format_row(row), flush=True)
