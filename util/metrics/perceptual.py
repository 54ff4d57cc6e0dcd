"""LPIPS and FID, and what a command line says about their networks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from util.errors import UserError
from util.metrics.base import Metric, MetricOptions, register

if TYPE_CHECKING:
    import torch

_LEAST_SIDES = {"vgg": 16, "alex": 31}  # of which the deepest layer has a pixel left
LPIPS_NETS = tuple(_LEAST_SIDES)
WEIGHTS = (*LPIPS_NETS, "inception")  # names of --weights


def add_metric_options(parser: argparse.ArgumentParser) -> None:
    """--lpips_net and --weights, for parse_options."""
    parser.add_argument("--lpips_net", choices=LPIPS_NETS, default="vgg", help="backbone of LPIPS")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help=f"local weights of metrics instead of a download; NAME {', '.join(WEIGHTS)}",
    )


def parse_options(args: argparse.Namespace, device: torch.device) -> MetricOptions:
    """What add_metric_options put into `args`."""
    return MetricOptions(args.lpips_net, parse_weights(args.weights), device)


def parse_weights(items: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE items -> files by name; UserError for unknown names and missing files."""
    weights = {}
    for item in items:
        name, separator, file = item.partition("=")
        if not separator or name not in WEIGHTS:
            raise UserError(f"--weights {item}: expected NAME=FILE, NAME one of {WEIGHTS}")
        if not Path(file).is_file():
            raise UserError(f"--weights {item}: no such file")
        weights[name] = Path(file)
    return weights


def _lpips(options: MetricOptions) -> Callable[..., float]:
    from models.perceptual import Lpips  # torch, which takes seconds

    return Lpips(options.lpips_net, options.weights.get(options.lpips_net), options.device)


def _fid(options: MetricOptions) -> Callable[..., float]:
    from models.perceptual import Fid

    return Fid(options.weights.get("inception"), options.device)


register(
    "lpips",
    Metric(
        "LPIPS",
        _lpips,
        higher_is_better=False,
        least_side=lambda options: _LEAST_SIDES[options.lpips_net],
        variant=lambda options: options.lpips_net,
    ),
)
register(
    "fid",
    Metric("FID", _fid, higher_is_better=False, digits=2, of_sets=True, least_images=2),
)
