"""Times the steps of the program and their parts, row by row."""

import argparse
import functools
import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.precision import Execution, accelerate, fastest_precision
from guided_diffusion.sampling import Prior
from guided_diffusion.unet import UNetModel
from models.checkpoint import model_config
from util.benchmark.case import (
    Case,
    Clock,
    count_gflop,
    mean_step,
    measure_peak,
    medians,
    plain_case,
    random_network,
)
from util.benchmark.compare_fast import compare_fast
from util.benchmark.deepinv import time_deepinv
from util.benchmark.operators import compare_operators
from util.benchmark.report import Report, Row, format_row, header
from util.cli import resolve_device
from util.errors import UserError
from util.runs.batching import is_out_of_memory


class Benchmark:
    """All measurements of one call."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device, self.clock = args, device, Clock(device)
        self.config = model_config(args.model_config)
        self.size = args.image_size or self.config.image_size
        if self.size % self.config.size_multiple():
            raise UserError(
                f"--image_size {self.size}: must be a multiple of {self.config.size_multiple()}"
            )
        self.diffusion = GaussianDiffusion.create()
        self.middle, mean = mean_step(self.diffusion)
        cuda = device.type == "cuda"
        self.report = Report(
            device=torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU",
            versions={"torch": torch.__version__, "python": platform.python_version()},
            threads=torch.get_num_threads(),
            image_size=self.size,
            gflop_per_image=count_gflop(self.config, self.size),
            steps=self.diffusion.num_timesteps,
            mean_candidates=mean,
            peak_tflops=measure_peak(self.clock),
        )

    def run(self) -> Report:
        plain_rows = self._plain_rows() if not self.args.no_plain else {}
        for mode in self.args.modes:
            execution = execution_of(mode)
            network = accelerate(random_network(self.config), execution, self.device)
            for batch in self.args.batch_sizes:
                for task in self.args.tasks:
                    self._measure(task, mode, batch, network, plain_rows.get(task))
        if not self.args.no_plain and not plain_rows:
            self.report.notes.append("plain loop: skipped, it lives in tests/ of the repository")
        self._deepinv()
        return self.report

    def _case(self, task: str, network, batch: int) -> Case:
        return Case(task, Prior(network, self.diffusion), batch, self.size, self.device)

    def _plain_rows(self) -> dict[str, Row]:
        try:
            from tests.plain_loop import plain_network
        except ImportError:
            return {}
        base = random_network(self.config).to(self.device)
        network, rows = plain_network(base), {}
        for task in self.args.tasks:
            row = Row(task, "plain fp32", 1)
            rows[task] = row
            self.report.rows.append(row)
            self._guard(row, functools.partial(self._time_plain, row, base, network))
        return rows

    def _time_plain(self, row: Row, base: UNetModel, network: UNetModel) -> None:
        case = self._case(row.task, base, 1)
        loop = plain_case(case, network)
        self.clock.reset_peak()
        functions = {
            "step": lambda: loop.step(case.x, self.middle, case.noise),
            "last_step": lambda: loop.step(case.x, 1, case.noise),
        }
        self._fill(row, medians(self.clock, functions, self.args.repeats), None)

    def _measure(self, task: str, mode: str, batch: int, network, plain: Row | None) -> None:
        row = Row(task, mode, batch)
        self.report.rows.append(row)

        def timed() -> None:
            case = self._case(task, network, batch)
            self.clock.reset_peak()
            functions = {
                "step": lambda: case.step(self.middle),
                "last_step": lambda: case.step(1),
                **case.parts(self.middle, 1),
            }
            self._fill(row, medians(self.clock, functions, self.args.repeats), plain)

        self._guard(row, timed)

    def _guard(self, row: Row, measure: Callable[[], None]) -> None:
        """Run it; a row that does not fit into memory says so, and the sweep goes on."""
        try:
            measure()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            row.note = "out of memory"
        if row.note and self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(format_row(row), flush=True)

    def _fill(self, row: Row, times: dict[str, float], plain: Row | None) -> None:
        for name, value in times.items():
            setattr(row, f"{name}_ms", value)
        seconds = times["step"] / 1e3
        row.images_per_hour = 3600 * row.batch / (seconds * self.report.steps)
        row.peak_memory_gib = self.clock.peak_gib()
        row.tflops = self.report.gflop_per_image * row.batch / seconds / 1e3
        row.peak_share = row.tflops / self.report.peak_tflops
        if plain is not None and plain.images_per_hour:
            row.speedup = row.images_per_hour / plain.images_per_hour

    def _deepinv(self) -> None:
        try:
            note = time_deepinv(self.config, self.size, self.device, self.clock, self.args.repeats)
        except Exception as error:  # another version of it, or no memory: the sweep stands
            note = f"deepinv: failed ({type(error).__name__}: {error})"
        self.report.notes.append(note)


def execution_of(mode: str) -> Execution:
    """What "bf16", "bf16+fast" or "bf16+compile" means."""
    precision, _, rest = mode.partition("+")
    return Execution(precision, rest == "compile", rest == "fast")


def default_modes(device: torch.device) -> list[str]:
    fastest = fastest_precision(device)
    if device.type != "cpu":
        return list(dict.fromkeys(["fp32", fastest]))
    return list(dict.fromkeys(["fp32", "fp32+fast", f"{fastest}+fast"]))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """What `args` of __main__.py ask for: print it, and return its figures."""
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.compare_fast:
        figures = compare_fast(args, device)
    elif args.operators:
        size = args.image_size or model_config(args.model_config).image_size
        figures = compare_operators(args, size, device)
    else:
        if args.modes is None:
            args.modes = default_modes(device)
        for mode in args.modes:
            execution_of(mode).resolve(False, device)
        print(header())
        report = Benchmark(args, device).run()
        print(
            f"\n{report.device}, torch {report.versions['torch']}, {report.threads} CPU thread(s); "
            f"{report.image_size}x{report.image_size}, {report.gflop_per_image:.1f} GFLOP forward "
            f"and backward; bf16 matrix product {report.peak_tflops:.3f} TFLOP/s; {report.steps} "
            f"steps, {report.mean_candidates:.1f} candidates on average",
            *report.notes,
            sep="\n",
        )
        figures = asdict(report)
    return figures
