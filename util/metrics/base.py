"""What a measure of image quality says about itself, and the table of all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from util.registry import Registry


@dataclass(frozen=True)
class MetricOptions:
    """What the command line says about metrics."""

    lpips_net: str = "vgg"
    weights: Mapping[str, Path] = field(default_factory=dict)  # local files by network
    device: Any = "cpu"


@dataclass(frozen=True)
class Metric:
    """One measure.

    build(options): the function. It takes uint8 [H, W, 3] pixels (label, restored image) and, where
      `of_sets`, two sequences of them; it returns a float. Raises UserError where a package or
      weights are missing
    digits: of tables that people read; files have two more
    of_runs: computed for every restored image of a run; needs no other package
    of_sets: compares two sets as a whole
    least_images: fewer cannot be compared
    least_side(options): of images, in pixels
    variant(options): what of the options makes it another measure, for heads and caches
    """

    title: str
    build: Callable[[MetricOptions], Callable[..., float]]
    unit: str = ""
    higher_is_better: bool = True
    digits: int = 3
    of_runs: bool = False
    of_sets: bool = False
    least_images: int = 1
    least_side: Callable[[MetricOptions], int] = lambda options: 1
    variant: Callable[[MetricOptions], str] = lambda options: ""

    @property
    def head(self) -> str:
        """Of a column."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float) -> str:
        """The value with its unit, as people read it."""
        return f"{value:.{self.digits}f} {self.unit}".rstrip()

    def is_defined(self, image: np.ndarray, options: MetricOptions) -> bool:
        """Whether [H, W, 3] is large enough."""
        return min(image.shape[:2]) >= self.least_side(options)


_METRICS: Registry[Metric] = Registry("metric")


def register(name: str, metric: Metric) -> None:
    """File `metric` under the name that --metrics and table configs use."""
    _METRICS.register(name)(lambda: metric)


def get_metric(name: str, where: str = "") -> Metric:
    """The metric called `name`; UserError naming the known ones if there is none."""
    return _METRICS.get(name, where)()


def metric_names() -> list[str]:
    return _METRICS.names()


def run_metric_names() -> list[str]:
    """Those that every run computes; a plug-in's are among them once it is loaded."""
    return [name for name in metric_names() if get_metric(name).of_runs]
