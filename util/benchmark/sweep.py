"""Times the steps of the program and their parts, row by row."""

import argparse
import platform
from dataclasses import asdict
from typing import Any

import torch

from guided_diffusion.precision import AcceleratedNetwork, accelerate
from models.checkpoint import model_config
from util.benchmark.case import Bench, count_gflop, plain_loop, random_network
from util.benchmark.compare_fast import compare_fast
from util.benchmark.deepinv import time_deepinv
from util.benchmark.memory import measure_memory
from util.benchmark.modes import default_modes, execution_of
from util.benchmark.operators import compare_operators
from util.benchmark.report import Report, Row, header
from util.cli import resolve_device
from util.errors import UserError


class Benchmark(Bench):
    """All measurements of one call."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.config = args, model_config(args.model_config)
        self.size = args.image_size or self.config.image_size
        if self.size % self.config.size_multiple():
            raise UserError(
                f"--image_size {self.size}: must be a multiple of {self.config.size_multiple()}"
            )
        super().__init__(device, args.repeats)
        self.report = Report(
            device=self.name,
            versions={"torch": torch.__version__, "python": platform.python_version()},
            threads=torch.get_num_threads(),
            image_size=self.size,
            gflop_per_image=count_gflop(self.config, self.size),
            steps=self.diffusion.num_timesteps,
            mean_candidates=self.mean_candidates,
            peak_tflops=self.peak_tflops,
        )

    def run(self) -> Report:
        plain_rows: dict[str, Row] = {}
        if not self.args.no_plain and plain_loop() is None:
            self.report.notes.append("plain loop: skipped, it lives in tests/ of the repository")
        elif not self.args.no_plain:
            plain_rows = {task: self._time_plain(task) for task in self.args.tasks}
        for mode in self.args.modes:
            network = accelerate(random_network(self.config), execution_of(mode), self.device)
            for batch in self.args.batch_sizes:
                for task in self.args.tasks:
                    self._measure(Row(task, mode, batch), network, plain_rows.get(task))
        self._deepinv()
        return self.report

    def _time_plain(self, task: str) -> Row:
        row = Row(task, "plain fp32", 1)
        self.report.rows.append(row)

        def timed() -> None:
            steps = self.plain_steps(task, random_network(self.config), self.size)
            self.fill(row, steps, self.report.gflop_per_image)

        self.guard(row, timed)
        return row

    def _measure(self, row: Row, network: AcceleratedNetwork, plain: Row | None) -> None:
        self.report.rows.append(row)

        def timed() -> None:
            case = self.case(row.task, network, row.batch, self.size)
            functions = {
                "step": lambda: case.step(self.middle),
                "last_step": lambda: case.step(1),
                **case.parts(self.middle, 1),
            }
            self.fill(row, functions, self.report.gflop_per_image, plain)

        self.guard(row, timed)

    def _deepinv(self) -> None:
        try:
            note = time_deepinv(self.config, self.size, self.device, self.clock, self.args.repeats)
        except Exception as error:  # another version of it, or no memory: the sweep stands
            note = f"deepinv: failed ({type(error).__name__}: {error})"
        self.report.notes.append(note)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """What `args` of __main__.py ask for: print it, and return its figures."""
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.modes is None:
        args.modes = default_modes(device)
    for mode in args.modes:
        execution_of(mode).resolve(False, device)
    if args.compare_fast:
        figures = compare_fast(args, device)
    elif args.operators:
        size = args.image_size or model_config(args.model_config).image_size
        figures = compare_operators(args, size, device)
    elif args.memory:
        figures = measure_memory(args, device)
    else:
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
