"""The diffusion process that a scheduler config of diffusers describes.

Only what a network was trained with is read: betas, what it predicts, its variance, how x0_hat is
limited, and how timesteps are spaced. How sampling moves on is a matter of `diffusion.sampler`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import GaussianDiffusion, cosine_betas, respaced_timesteps
from util.config.schema import parse_dataclass
from util.errors import UserError

_CLASSES = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
# Of the scheduler -> of GaussianDiffusion
MEAN_TYPES = {"epsilon": "epsilon", "sample": "start_x", "v_prediction": "velocity"}


@dataclass(frozen=True)
class SchedulerConfig:
    """The keys of scheduler_config.json that are read, with the defaults of DDPMScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[float] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: Literal[
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
        "learned",
        "learned_range",
    ] = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 0

    @classmethod
    def read(cls, raw: Mapping[str, Any], where: str) -> "SchedulerConfig":
        """The config `raw`, checked; UserError for a scheduler that this program cannot do."""
        name = raw.get("_class_name")
        if name not in _CLASSES:
            raise UserError(f"{where}: scheduler {name}; this program does {', '.join(_CLASSES)}")
        if raw.get("rescale_betas_zero_snr"):
            raise UserError(
                f"{where}: rescale_betas_zero_snr: the last step would have no image in it, which "
                "this program's process cannot be"
            )
        known = {key: value for key, value in raw.items() if key in cls.__dataclass_fields__}
        config = parse_dataclass(cls, known, where)
        betas = config.betas()
        if not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise UserError(f"{where}: betas must lie between 0 and 1")
        return config

    @property
    def learns_variance(self) -> bool:
        return self.variance_type.startswith("learned")

    def betas(self) -> np.ndarray:
        """float64 [T]; diffusers' own are float32."""
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            return np.array(self.trained_betas, dtype=np.float64)
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, count)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        return cosine_betas(count)

    def timesteps(self, respacing: int | str) -> np.ndarray:
        """Timesteps kept, ascending: a plain count is spaced as the scheduler says (Lin et al.
        2024, arXiv 2305.08891, table 2), anything else as `respaced_timesteps` has it."""
        total = len(self.betas())
        text = str(respacing).strip()
        count = int(text) if text.isdigit() else 0
        if not 0 < count <= total:
            return respaced_timesteps(total, respacing)
        if self.timestep_spacing == "linspace":
            return np.linspace(0, total - 1, count).round().astype(np.int64)
        if self.timestep_spacing == "trailing":
            return (np.arange(total, 0, -total / count).round()[:count].astype(np.int64) - 1)[::-1]
        kept = np.arange(count) * (total // count) + self.steps_offset
        return np.unique(np.minimum(kept, total - 1))  # the last two may meet

    def limit(self) -> Callable[[Tensor], Tensor]:
        """How x0_hat [B, C, H, W] is limited."""
        if self.thresholding:
            return _Threshold(self.dynamic_thresholding_ratio, self.sample_max_value)
        return _Clip(self.clip_sample_range if self.clip_sample else None)

    def process(
        self, options: Mapping[str, Any], kept: np.ndarray | None = None
    ) -> GaussianDiffusion:
        """The process, cut to the timesteps `kept` or to those that the diffusion config's
        `options` ask for; a fixed variance in them stands."""
        variance, asked = self.variance_type.removesuffix("_log"), options["model_var_type"]
        return GaussianDiffusion.from_betas(
            self.betas(),
            self.timesteps(options["timestep_respacing"]) if kept is None else kept,
            model_mean_type=MEAN_TYPES[self.prediction_type],
            model_var_type=asked if asked.startswith("fixed") else variance,
            x0_limit=self.limit(),
        )


@dataclass(frozen=True)
class _Clip:
    largest: float | None

    def __call__(self, x0_hat: Tensor) -> Tensor:
        return x0_hat if self.largest is None else x0_hat.clamp(-self.largest, self.largest)


@dataclass(frozen=True)
class _Threshold:
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3)."""

    ratio: float
    largest: float

    def __call__(self, x0_hat: Tensor) -> Tensor:
        s = torch.quantile(x0_hat.detach().abs().flatten(1), self.ratio, dim=1)
        s = s.clamp(min=1, max=max(self.largest, 1)).view(-1, 1, 1, 1)
        return torch.minimum(torch.maximum(x0_hat, -s), s) / s
