"""Settings of a training run; needs no torch, so that a wrong one is refused at once."""

from dataclasses import dataclass
from typing import Literal

from util.errors import UserError


@dataclass(frozen=True)
class CropSpec:
    """One kind of training batch."""

    size: int  # pixels, a multiple of the model's size_multiple
    batch_size: int
    share: float  # of the iterations, relative to the other kinds


@dataclass(frozen=True)
class TimestepBand:
    """Timesteps low <= t < high, drawn uniformly for `share` of the crops."""

    low: int
    high: int
    share: float  # relative to the other bands


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; see configs/train_demo_prior.yaml for their meaning."""

    model_config: str
    output: str
    run_dir: str
    data_root: str
    crops: list[CropSpec]
    iterations: int
    timesteps: list[TimestepBand]
    initial_weights: str = ""
    validation_root: str = ""
    holdout: int = 0
    augmentation: float = 0.0
    min_side: int = 256
    small_share: float = 0.25
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 6e-4
    warmup: int = 300
    ema_decay: float = 0.999
    grad_clip: float = 1.0
    vlb_weight: float = 1e-3  # over the published weight, lambda = T / 1000
    seed: int = 0
    checkpoint_every: int = 250
    compile: bool = False

    def check(self) -> None:
        """UserError for settings that cannot be trained with, whatever the network."""
        if not self.crops or any(min(c.size, c.batch_size, c.share) <= 0 for c in self.crops):
            raise UserError("crops: give at least one, with size, batch_size and share above 0")
        if not self.timesteps or any(
            not 0 <= band.low < band.high <= 1000 or band.share <= 0 for band in self.timesteps
        ):
            raise UserError(
                "timesteps: give at least one band, 0 <= low < high <= 1000, share above 0"
            )
        if min(self.iterations, self.checkpoint_every) < 1:
            raise UserError("iterations and checkpoint_every must be at least 1")
        if self.holdout < 0 or not 0 <= self.augmentation <= 1:
            raise UserError("holdout must be at least 0, augmentation a probability in [0, 1]")
