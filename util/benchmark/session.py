"""What a session with a GPU measures: checks, timings, a profile."""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from guided_diffusion.measurements import OPERATORS, OperatorContext
from guided_diffusion.precision import AcceleratedNetwork, Execution, accelerate, lacks
from guided_diffusion.unet import UNetConfig
from models.checkpoint import model_config
from util.benchmark.case import Bench, count_gflop, plain_loop, random_network
from util.benchmark.report import Row, header

_CHECKED_SIDE = 64
# Largest relative difference from float32 on the processor, of output and gradient: rounding of
# the format, times what a few dozen layers make of it.
_TOLERANCES = {"fp32": 1e-3, "tf32": 3e-2, "bf16": 1e-1, "fp16": 3e-2}
_OPERATOR_TOLERANCE = 1e-4
_TASK = "gaussian_blur"  # that batches are tried on
_BATCHES = (1, 4, 16, 32, 64)
_KERNELS = 10
# Without data of their own
_OPERATORS: tuple[dict[str, Any], ...] = (
    {"name": "super_resolution", "scale_factor": 4},
    {"name": "gaussian_blur", "kernel_size": 61, "intensity": 3.0},
    {"name": "motion_blur", "kernel_size": 61, "intensity": 0.5},
    {"name": "colorization"},
    {"name": "noise"},
    {"name": "phase_retrieval", "oversample": 2.0},
)


class Session(Bench):
    """What is measured, in order of importance, until the time is over."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.end = args, time.monotonic() + 60 * args.minutes
        super().__init__(device, args.repeats)
        self.figures: dict[str, Any] = {
            "device": self.name,
            "torch": torch.__version__,
            "peak_tflops": self.peak_tflops,
            "checks": [],
            "timings": [],
            "profile": [],
            "left_out": [],
        }

    def run(self) -> None:
        configs = [(Path(path).stem, model_config(path)) for path in self.args.model_configs]
        self._check_operators()
        for name, config in configs:
            self._check_formats(name, config)
        for name, config in configs:
            self._time(name, config)
        for name, config in configs:
            self._profile(name, config)

    def _has_time(self, what: str) -> bool:
        if time.monotonic() < self.end:
            return True
        self.figures["left_out"].append(f"{what}: the time was over")
        return False

    def _modes(self) -> list[Execution]:
        """Formats that the device has; on a GPU the fast ones compiled as well, with CUDA graphs
        where a batch is small."""
        formats = [p for p in _TOLERANCES if not lacks(p, self.device)]
        modes = [Execution(p) for p in formats]
        if self.device.type == "cuda":
            return modes + [Execution(p, compile=True) for p in formats if p in ("tf32", "bf16")]
        return modes + [Execution(p, fast=True) for p in formats]

    def _check_operators(self) -> None:
        """Values and adjoints of the operators against the processor's."""
        x = torch.rand(2, 3, _CHECKED_SIDE, _CHECKED_SIDE) * 2 - 1
        for section in _OPERATORS:
            found = []
            for device in (torch.device("cpu"), self.device):
                context = OperatorContext(_CHECKED_SIDE, _CHECKED_SIDE, device)
                params = {k: v for k, v in section.items() if k != "name"}
                operator = OPERATORS.get(section["name"])(context=context, **params)
                leaf = x.to(device).requires_grad_()
                y = operator(leaf)
                pulled = torch.autograd.grad(y.square().sum(), leaf)[0]
                found.append((y.detach().cpu(), pulled.cpu()))
            error = max(_relative(a, b) for a, b in zip(found[1], found[0], strict=True))
            self._note(f"operator {section['name']}", error, _OPERATOR_TOLERANCE)

    def _check_formats(self, name: str, config: UNetConfig) -> None:
        """Output and gradient of every mode against float32 on the processor."""
        side = max(config.size_multiple(), min(_CHECKED_SIDE, self._side(config)))
        x, t = torch.randn(2, 3, side, side), torch.tensor([20, 600])
        expected = None
        for execution in self._modes():
            if not self._has_time(f"check of {name}, {_title(execution)}"):
                return
            if expected is None:
                plain = accelerate(random_network(config), Execution("fp32"), "cpu")
                expected = _both(plain, x, t)
            network = accelerate(random_network(config), execution, self.device)
            found = _both(network, x.to(self.device), t.to(self.device))
            error = max(_relative(a, b) for a, b in zip(found, expected, strict=True))
            self._note(
                f"{name}, {_title(execution)}", error, _TOLERANCES[execution.precision or ""]
            )

    def _note(self, what: str, error: float, tolerance: float) -> None:
        passed = error <= tolerance
        self.figures["checks"].append(
            {"what": what, "error": error, "tolerance": tolerance, "passed": passed}
        )
        print(f"{'ok  ' if passed else 'FAIL'} {what}: {error:.1e} (at most {tolerance:.0e})")

    def _side(self, config: UNetConfig) -> int:
        return self.args.image_size or config.image_size

    def _time(self, name: str, config: UNetConfig) -> None:
        side = self._side(config)
        gflop = count_gflop(config, side)
        print(f"\n{name}: {gflop:.0f} GFLOP a step\n{header()}", flush=True)
        plain = self._time_plain(name, config, gflop)
        for execution in self._modes():
            network = accelerate(random_network(config), execution, self.device)
            for batch in _BATCHES:
                if not self._has_time(f"{name}, {_title(execution)}, batch {batch}"):
                    break
                row = Row(_TASK, _title(execution), batch)

                def timed(row: Row = row, network: AcceleratedNetwork = network) -> None:
                    case = self.case(_TASK, network, row.batch, side)
                    self.fill(row, {"step": lambda: case.step(self.middle)}, gflop, plain)

                self._keep(name, row, timed)
                if row.note:
                    break

    def _time_plain(self, name: str, config: UNetConfig, gflop: float) -> Row | None:
        if plain_loop() is None:
            self.figures["left_out"].append("the published loop's way: it lives in tests/")
            return None
        if not self._has_time(f"{name}, the published loop's way"):
            return None
        row = Row(_TASK, "plain fp32", 1)

        def timed() -> None:
            steps = self.plain_steps(_TASK, random_network(config), self._side(config))
            self.fill(row, {"step": steps["step"]}, gflop)

        self._keep(name, row, timed)
        return row

    def _keep(self, name: str, row: Row, measure: Callable[[], None]) -> None:
        self.guard(row, measure)
        self.figures["timings"].append({"network": name, **asdict(row)})

    def _profile(self, name: str, config: UNetConfig) -> None:
        """The kernels that take longest in a step at the best mode and batch."""
        rows = [
            row
            for row in self.figures["timings"]
            if row["network"] == name and row["images_per_hour"] and row["mode"] != "plain fp32"
        ]
        if not rows or not self._has_time(f"profile of {name}"):
            return
        best = max(rows, key=lambda row: row["images_per_hour"])
        execution = next(e for e in self._modes() if _title(e) == best["mode"])
        network = accelerate(random_network(config), execution, self.device)
        case, middle = self.case(_TASK, network, best["batch"], self._side(config)), 500
        case.step(middle)
        cuda = self.device.type == "cuda"
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=kinds) as record:
            case.step(middle)
            self.clock.wait()
        spent = "self_device_time_total" if cuda else "self_cpu_time_total"
        events = record.key_averages()
        if cuda:  # operations carry the time of their kernels a second time
            events = [e for e in events if e.device_type == DeviceType.CUDA]
        events = sorted(events, key=lambda e: -getattr(e, spent, 0.0))
        total = sum(getattr(e, spent, 0.0) for e in events) or 1.0
        for event in events[:_KERNELS]:
            used = getattr(event, spent, 0.0)
            self.figures["profile"].append(
                {
                    "network": name,
                    "mode": best["mode"],
                    "batch": best["batch"],
                    "kernel": event.key,
                    "calls": event.count,
                    "ms": used / 1e3,
                    "share": used / total,
                }
            )


def _title(execution: Execution) -> str:
    more = "+compile" if execution.compile else "+fast" if execution.fast else ""
    return f"{execution.precision}{more}"


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.float().cpu(), b.float().cpu()
    return ((a - b).norm() / b.norm().clamp(min=1e-12)).item()


def _both(network: Any, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the gradient of a fixed function of it."""
    leaf = x.clone().requires_grad_()
    output = network(leaf, t)
    pull = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)
    return output.detach(), torch.autograd.grad((output * pull).sum(), leaf)[0]


def markdown(figures: dict[str, Any]) -> str:
    """One page for people."""
    lines = [
        f"# {figures['device']}",
        "",
        f"torch {figures['torch']}; bf16 matrix product {figures['peak_tflops']:.1f} TFLOP/s.",
        "",
        "| network | mode | batch | step ms | images/h | TFLOP/s | of peak | GiB | x plain |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    forms = {
        "step_ms": ".1f",
        "images_per_hour": ".2f",
        "tflops": ".2f",
        "peak_share": ".0%",
        "peak_memory_gib": ".2f",
        "speedup": ".2f",
    }
    for row in figures["timings"]:
        cells = ["-" if row[k] is None else format(row[k], form) for k, form in forms.items()]
        cells = [row["network"], row["mode"], str(row["batch"]), *cells]
        lines.append("| " + " | ".join(cells) + " |" + (f" {row['note']}" if row["note"] else ""))
    lines += [
        "",
        "| check | largest relative difference | at most | |",
        "| --- | --- | --- | --- |",
    ]
    for check in figures["checks"]:
        word = "passed" if check["passed"] else "**failed**"
        lines.append(
            f"| {check['what']} | {check['error']:.1e} | {check['tolerance']:.0e} | {word} |"
        )
    lines += ["", "| network | kernel | calls | ms | share |", "| --- | --- | --- | --- | --- |"]
    for part in figures["profile"]:
        kernel = part["kernel"][:80].replace("|", "/")
        lines.append(
            f"| {part['network']}, {part['mode']}, batch {part['batch']} | `{kernel}` | "
            f"{part['calls']} | {part['ms']:.2f} | {part['share']:.0%} |"
        )
    lines += ["", *(f"Left out: {what}." for what in figures["left_out"])]
    return "\n".join(lines).rstrip() + "\n"
