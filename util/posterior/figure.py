"""The picture of a posterior check: exact and sampled posteriors, one panel for each cell."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.posterior.measure import CaseResult, CellResult, CheckResult
from util.posterior.mixture import Posterior
from util.posterior.render import shown_steps

_SIDE, _GAP, _HEADER, _FONT_SIZE = 100, 6, 34, 12
_FINE = 3  # drawn so many times as large, then shrunk
_REACH = 4.0  # standard deviations from the centre to the border of a panel
_CIRCLE = 2.0  # standard deviations of the circles
_BINS = 29
_COLOURS = 64
_DOT, _SAMPLED, _EXACT, _EMPTY = (150, 175, 215), (225, 95, 0), (0, 0, 0), (235, 235, 235)


def figure(result: CheckResult) -> Image.Image:
    """Rows of the check downwards, priors and operators across."""
    steps, cases = shown_steps(result), result.cases
    names = [row.name for row in result.spec.rows]
    font = ImageFont.load_default(_FONT_SIZE)
    margin = 3 * _GAP + int(max(font.getlength(name) for name in names))
    pitch = _SIDE + _GAP
    size = (margin + len(cases) * pitch, _HEADER + len(names) * pitch)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for j, case in enumerate(cases):
        for line, text in enumerate((case.prior.name, case.operator.name)):
            draw.text((margin + j * pitch, 2 + line * 15), text, "black", font)
    for i, name in enumerate(names):
        top = _HEADER + i * pitch
        draw.text((_GAP, top + _SIDE / 2), name, "black", font, anchor="lm")
        for j, case in enumerate(cases):
            cell = next((c for c in case.cells if (c.row, c.steps) == (name, steps)), None)
            sheet.paste(_panel(case, cell), (margin + j * pitch, top))
    return sheet.quantize(_COLOURS, dither=Image.Dither.NONE)  # a third of the bytes


def _panel(case: CaseResult, cell: CellResult | None) -> Image.Image:
    if cell is None or cell.shown is None:
        panel = Image.new("RGB", (_SIDE, _SIDE), _EMPTY)
        ImageDraw.Draw(panel).text((_SIDE / 2, _SIDE / 2), "-", "black", anchor="mm")
        return panel
    fine = _SIDE * _FINE
    panel = Image.new("RGB", (fine, fine), "white")
    draw = ImageDraw.Draw(panel)
    samples = cell.shown.numpy()
    several = len(case.prior.weights) > 1
    (_draw_modes if several else _draw_circles)(draw, fine, samples, case.posterior)
    draw.rectangle((0, 0, fine - 1, fine - 1), outline=(170, 170, 170), width=_FINE)
    return panel.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _draw_circles(draw, fine: int, samples: np.ndarray, posterior: Posterior) -> None:
    """Samples and two ellipses, along the largest and a middle direction."""
    chosen = [0, samples.shape[1] // 2]
    mean, std = posterior.mean[chosen].numpy(), posterior.spread[chosen].sqrt().numpy()
    points = (samples[:, chosen] - mean) / std

    def place(p: np.ndarray) -> list[tuple[float, float]]:
        p = p.clip(-10 * _REACH, 10 * _REACH)  # Pillow's coordinates are short
        x = fine * (0.5 + p * [0.5, -0.5] / _REACH)
        return [(float(a), float(b)) for a, b in x]

    for x, y in place(points):
        draw.ellipse((x - _FINE, y - _FINE, x + _FINE, y + _FINE), fill=_DOT)
    angles = np.linspace(0, 2 * math.pi, 100)
    circle = _CIRCLE * np.stack([np.cos(angles), np.sin(angles)], 1)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    sampled = points.mean(0) + circle * np.sqrt(values.clip(min=0)) @ vectors.T
    draw.line(place(circle), fill=_EXACT, width=_FINE)
    draw.line(place(sampled), fill=_SAMPLED, width=_FINE)


def _draw_modes(draw, fine: int, samples: np.ndarray, posterior: Posterior) -> None:
    """Density along the first direction: that of the posterior, and a histogram."""
    centres, weights = posterior.centres[:, 0].numpy(), posterior.weights.numpy()
    std = math.sqrt(posterior.variances[0].item())
    low, high = centres.min() - _REACH * std, centres.max() + _REACH * std
    x = np.linspace(low, high, 200)
    modes = np.exp(-0.5 * ((x[:, None] - centres) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    density = modes @ weights
    inside = samples[:, 0].clip(low, high)  # what lies beyond is counted at the border
    bars, edges = np.histogram(inside, _BINS, (low, high))
    heights = bars / (len(samples) * (edges[1] - edges[0]))
    top = 1.1 * max(density.max(), heights.max())

    def place(a: float, b: float) -> tuple[float, float]:
        return fine * (a - low) / (high - low), fine * (1 - b / top)

    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        draw.rectangle((*place(left, height), *place(right, 0)), fill=_DOT)
    draw.line([place(a, b) for a, b in zip(x, density, strict=True)], fill=_EXACT, width=_FINE)
