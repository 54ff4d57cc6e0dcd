"""Statistics of restorations: standard errors, paired differences, steadiness over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np


@dataclass(frozen=True)
class Mean:
    """A mean over n images and its standard error (None for one image)."""

    value: float
    error: float | None
    n: int


def mean_and_error(values: Sequence[float]) -> Mean:
    """Mean +- standard deviation (n - 1) / sqrt(n); a value that is infinite has no error."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        raise ValueError("no values")
    mean = float(array.mean())
    if len(array) < 2 or not np.isfinite(array).all():
        return Mean(mean, None, len(array))
    return Mean(mean, float(array.std(ddof=1) / sqrt(len(array))), len(array))


@dataclass(frozen=True)
class Paired:
    """Mean of per-image differences and its confidence interval (None for one image)."""

    difference: float
    low: float | None
    high: float | None
    n: int


def per_image(values: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Values by (image, seed) -> means over the seeds by image.

    Seeds of one image are not independent of each other, so they count as one observation.
    """
    groups: dict[str, list[float]] = {}
    for (name, _), value in values.items():
        groups.setdefault(name, []).append(value)
    return {name: float(np.mean(group)) for name, group in groups.items()}


def paired_difference(
    a: Mapping[tuple[str, int], float],
    b: Mapping[tuple[str, int], float],
    confidence: float = 0.95,
) -> Paired:
    """a - b on the (image, seed) pairs that both have: Student's t interval over the images.

    Raises ValueError where they have none in common.
    """
    common = a.keys() & b.keys()
    if not common:
        raise ValueError("no image and seed in common")
    differences = list(per_image({key: a[key] - b[key] for key in sorted(common)}).values())
    low, high = student_interval(differences, confidence)
    return Paired(float(np.mean(differences)), low, high, len(differences))


def student_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float | None, float | None]:
    """Student's t interval of the mean of independent values; None for a single one, and where
    one is infinite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None, None
    if np.ptp(values) == 0:  # scipy would return nan
        return float(values[0]), float(values[0])
    from scipy import stats  # slow to import

    interval = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


LEAST_SEEDS = 5  # a standard deviation over fewer seeds says little


def steadiness(images: Sequence[np.ndarray]) -> float:
    """How much restorations of one measurement differ: the per-pixel standard deviation over the
    seeds (n - 1), averaged over pixels and channels, in grey levels of 255.

    images: uint8 [H, W, 3], one per seed. Raises ValueError for fewer than LEAST_SEEDS.
    """
    if len(images) < LEAST_SEEDS:
        raise ValueError(f"needs at least {LEAST_SEEDS} seeds, got {len(images)}")
    return float(np.stack(images).astype(np.float64).std(axis=0, ddof=1).mean())
