"""The settings of a run beside its configs."""

from dataclasses import dataclass, field

import torch

from util.runs.recording import RecordOptions


@dataclass(frozen=True)
class Settings:
    """What the command line adds to the configs."""

    seed: int = 0
    batch_size: int | None = 1  # None: the largest that fits
    record: RecordOptions = field(default_factory=RecordOptions)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    grey: bool = False  # save images whose source is grey as grey
    output_depth: int = 8  # bits of a value of the restored images, 8 or 16
    # Seed of the measurement (kernel, mask, noise); None: `seed`. Fixed, it lets one measurement
    # be restored several times.
    measurement_seed: int | None = None
    samples: int = 1  # of every image

    @property
    def seeds(self) -> range:
        """Of the samples of an image: what a run with that seed, and the measurement of this one,
        restores."""
        return range(self.seed, self.seed + self.samples)

    @property
    def seed_of_measurement(self) -> int:
        return self.seed if self.measurement_seed is None else self.measurement_seed
