"""A measured posterior check as Markdown and as JSON."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from util.posterior.measure import (
    GROUP,
    PLACES,
    SLICES,
    CaseResult,
    CellResult,
    CheckResult,
    Figures,
)

_LARGE = 1e4
Column = tuple[str, Callable[[Figures], float], int]  # head, value, digits


def _columns(case: CaseResult) -> list[Column]:
    columns: list[Column] = [("bias", lambda f: f.bias, 3)]
    columns += [(f"spread, {place}", _spread(i), 2) for i, place in enumerate(PLACES)]
    columns.append(("distance", lambda f: f.distance, 2))
    if len(case.prior.weights) > 1:
        columns.append(("weights off by", lambda f: f.shift, 2))
    return columns


def _spread(i: int) -> Callable[[Figures], float]:
    return lambda f: f.spread[i]


def markdown(result: CheckResult, command: str, picture: str) -> str:
    """The page about the check, without its title."""
    spec = result.spec
    parts = []
    if spec.note:
        parts += [spec.note.strip(), ""]
    parts += [
        "    " + command,
        "",
        f"{spec.runs} measurements of {spec.size}x{spec.size} for each prior and operator, noise "
        f"sigma {spec.sigma:g} on the range [-1, 1], {spec.samples} samples of each measurement. "
        "After +-: 95 % intervals (Student's t over the measurements).",
        "",
        "- bias: squared distance of the samples' mean from the posterior's, over the trace of the "
        "posterior's covariance. 0 is right; what drawing finitely many samples makes is taken "
        "off. 1: as far off as a single exact sample is.",
        f"- spread: standard deviation of the samples over the posterior's, along the {GROUP} "
        "principal directions of largest, middle and smallest variance. 1 is right, less is too "
        "sure.",
        f"- distance: sliced 2-Wasserstein distance ({SLICES} directions) to as many exact "
        'samples, over the posterior\'s standard deviation. The row "exact draws" shows what it is '
        "for exact samples.",
    ]
    if any(len(prior.weights) > 1 for prior in spec.priors):
        parts.append(
            "- weights off by: total variation distance between the shares of the samples in the "
            "modes and what they should be. 0 is right, 1: all in the wrong mode."
        )
    parts.append("")
    if spec.scale_by_steps:
        parts += ["Guidance scales are those of the config x 1000 / steps.", ""]
    parts += [f"![{spec.title}]({picture})", "", _caption(result), ""]
    for case in result.cases:
        parts += _table(case)
    return "\n".join(parts).rstrip() + "\n"


def _caption(result: CheckResult) -> str:
    several = any(len(prior.weights) > 1 for prior in result.spec.priors)
    modes = (
        " With several modes: the density along the direction in which they lie, exact (line) and "
        "sampled (bars)."
        if several
        else ""
    )
    return (
        f"*The first measurement, {shown_steps(result)} steps. Dots: samples, in units of the "
        "posterior's standard deviation, along its largest (across) and a middle (up) direction; "
        f"circles of two standard deviations, exact (black) and sampled (orange).{modes}*"
    )


def shown_steps(result: CheckResult) -> int:
    """The largest number of steps that the most cells have."""
    counts = [cell.steps for case in result.cases for cell in case.cells if cell.steps]
    return max(result.spec.steps, key=lambda n: (counts.count(n), n))


def _table(case: CaseResult) -> list[str]:
    columns = _columns(case)
    heads = ["Method", "steps", *(head for head, _, _ in columns)]
    lines = [f"## {case.prior.name}, {case.operator.name}", ""]
    if len(case.prior.weights) > 1:
        weights = "; ".join(" ".join(f"{w:.2f}" for w in run.weights) for run in case.cells[0].runs)
        lines += [f"Weights of the modes given each measurement: {weights}.", ""]
    lines += [
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
    ]
    notes: list[str] = []
    for cell in case.cells:
        steps = "-" if cell.steps is None else str(cell.steps)
        if cell.problem is None:
            entries = [_entry(cell, value, digits) for _, value, digits in columns]
        else:
            if cell.problem not in notes:
                notes.append(cell.problem)
            entries = [f"- [{notes.index(cell.problem) + 1}]"] + ["-"] * (len(columns) - 1)
        lines.append(f"| {' | '.join([cell.row, steps, *entries])} |")
    lines.append("")
    for number, note in enumerate(notes, 1):
        lines += [f"[{number}] {note}", ""]
    return lines


def _entry(cell: CellResult, value: Callable[[Figures], float], digits: int) -> str:
    mean, low, high = cell.mean(value)
    if abs(mean) >= _LARGE:
        return f"{mean:.0e}"
    digits = digits if abs(mean) < 100 else 0
    return f"{mean:.{digits}f} +- {(high - low) / 2:.{digits}f}"


def to_json(result: CheckResult, command: str) -> str:
    """All figures of all measurements, a line for each cell."""
    cells = []
    for case in result.cases:
        for cell in case.cells:
            entry: dict[str, Any] = {
                "prior": case.prior.name,
                "operator": case.operator.name,
                "row": cell.row,
                "steps": cell.steps,
                "seconds": round(cell.seconds, 2),
                "problem": cell.problem,
                "measurements": [_rounded(dataclasses.asdict(run)) for run in cell.runs],
            }
            cells.append("  " + json.dumps(entry))
    head = {"command": command, "check": dataclasses.asdict(result.spec)}
    lines = ",\n".join(cells)
    return f'{json.dumps(head)[:-1]}, "cells": [\n{lines}\n]}}\n'


def _rounded(value: Any) -> Any:
    """Numbers with four digits."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}")
