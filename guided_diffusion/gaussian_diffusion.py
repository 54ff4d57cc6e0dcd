"""Noise schedules, respacing, and the Gaussian transitions of a diffusion model.

Steps are numbered 0..T-1 after respacing; the reverse process visits T-1 first. Coefficients
are kept in float64 and cast where they meet an image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.posterior_mean_variance import (
    LEARNED_VARIANCE_TYPES,
    MEAN_TYPES,
    VARIANCE_TYPES,
    limit_x0,
    x0_at_any_level,
)
from util.errors import UserError
from util.registry import Registry

# (x_t [B, 3, H, W], original timesteps [B]) -> [B, 3 or 6, H, W]
Model = Callable[[Tensor, Tensor], Tensor]

_LEAST_LEVEL = 1e-10
_SAME_TIMESTEP = 1e-4

SCHEDULES: Registry[np.ndarray] = Registry("noise_schedule")
SAMPLERS: Registry["Transition"] = Registry("sampler")


@SCHEDULES.register("linear")
def linear_betas(steps: int) -> np.ndarray:
    """Ho et al. 2020, scaled so that the process is the same for every number of steps."""
    scale = 1000 / steps
    return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)


@SCHEDULES.register("cosine")
def cosine_betas(steps: int) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)])


def respaced_timesteps(steps: int, respacing: int | str) -> np.ndarray:
    """Original timesteps that a shorter process keeps, ascending, int64.

    `respacing`: a count ("100"), counts of equal sections ("20,30,50"), "ddimN" for an integer
    stride that gives exactly N, or "" for all. Raises UserError where that cannot be done.
    """
    text = str(respacing).strip()
    if not text:
        return np.arange(steps)
    if text.startswith("ddim"):
        return _strided(steps, _count(text[4:], text))
    counts = [_count(part, text) for part in text.split(",")]
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if count > size:
            raise UserError(
                f"diffusion config: timestep_respacing {text!r}: a section of {size} steps "
                f"cannot keep {count}"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return np.array(sorted(set(kept)))


def _strided(steps: int, count: int) -> np.ndarray:
    for stride in range(1, steps):
        if len(range(0, steps, stride)) == count:
            return np.arange(0, steps, stride)
    raise UserError(
        f"diffusion config: timestep_respacing 'ddim{count}': no integer stride over {steps} "
        f"steps gives {count}"
    )


def _count(text: str, whole: str) -> int:
    if text.strip().isdigit() and int(text) > 0:
        return int(text)
    raise UserError(
        f"diffusion config: timestep_respacing {whole!r}: expected a positive count, counts "
        'separated by commas, "ddimN", or ""'
    )


@dataclass(frozen=True)
class PriorStep:
    """The unconditional prediction at one step; every tensor [B, 3, H, W]."""

    mean: Tensor  # of p(x_{t-1} | x_t)
    variance: Tensor
    log_variance: Tensor
    x0_hat: Tensor  # estimate of the clean image, limited as the config says
    eps: Tensor  # predicted noise, for epsilon models the raw network output


@dataclass(frozen=True)
class Transition:
    """x_{t-1} = mean + std * z, z standard normal; both [B, 3, H, W] (std may broadcast).

    per_x0: how the mean moves with x0_hat, d mean / d x0_hat, [B, 1, 1, 1]
    """

    mean: Tensor
    std: Tensor
    per_x0: Tensor


@dataclass(frozen=True)
class GaussianDiffusion:
    """A respaced diffusion process: its coefficients and the transitions built from them.

    `timesteps` are the original steps kept (int64 [T]), `betas` those of the shorter process
    (float64 [T]); build one with `create`.
    """

    timesteps: np.ndarray
    betas: np.ndarray
    all_alphas_cumprod: np.ndarray  # of the process before any respacing, float64
    model_mean_type: str = "epsilon"
    model_var_type: str = "learned_range"
    dynamic_threshold: bool = False
    clip_denoised: bool = True
    rescale_timesteps: bool = False
    # How x0_hat is limited where clip_denoised and dynamic_threshold do not say it
    x0_limit: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def create(
        cls,
        steps: int = 1000,
        noise_schedule: str = "linear",
        timestep_respacing: int | str = "",
        **options: Any,
    ) -> "GaussianDiffusion":
        """The process with `steps` betas of `noise_schedule`, cut to `timestep_respacing`."""
        kept = respaced_timesteps(steps, timestep_respacing)
        return cls.from_betas(SCHEDULES.get(noise_schedule)(steps), kept, **options)

    @classmethod
    def from_betas(cls, betas: np.ndarray, kept: np.ndarray, **options: Any) -> "GaussianDiffusion":
        """The process with these betas, float64 [T], cut to the timesteps `kept`, ascending."""
        return cls(np.arange(len(betas)), betas, np.cumprod(1 - betas), **options).keep(kept)

    def keep(self, steps: np.ndarray) -> "GaussianDiffusion":
        """The shorter process that visits only these steps (ascending) of this one."""
        cumulative = self.alphas_cumprod[steps]
        before = np.concatenate([[1.0], cumulative[:-1]])
        return replace(self, timesteps=self.timesteps[steps], betas=1 - cumulative / before)

    @property
    def original_steps(self) -> int:
        return len(self.all_alphas_cumprod)

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    @property
    def learns_variance(self) -> bool:
        return self.model_var_type in LEARNED_VARIANCE_TYPES

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        return np.cumprod(1 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        return np.concatenate([[1.0], self.alphas_cumprod[:-1]])

    @cached_property
    def log_betas(self) -> np.ndarray:
        return np.log(self.betas)

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t-1} | x_t, x_0); 0 at step 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """Its logarithm, with step 1's value at step 0, where the variance is 0."""
        second = self.posterior_variance[min(1, self.num_timesteps - 1)]
        return np.log(np.concatenate([[second or self.betas[0]], self.posterior_variance[1:]]))

    @cached_property
    def fixed_large_variance(self) -> np.ndarray:
        second = self.posterior_variance[min(1, self.num_timesteps - 1)]
        return np.concatenate([[second or self.betas[0]], self.betas[1:]])

    @cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        remaining = 1 - self.alphas_cumprod
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / remaining

    @cached_property
    def snr(self) -> np.ndarray:
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @cached_property
    def sqrt_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(1 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(1 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(1 / self.alphas_cumprod - 1)

    @cached_property
    def _on_device(self) -> dict[tuple, Tensor]:
        """Tables by (name, device, type): a host tensor at every step would stall a GPU."""
        return {}

    def _table(self, name: str, values: Callable[[], np.ndarray], device, dtype) -> Tensor:
        key = (name, device, dtype)
        if key not in self._on_device:
            self._on_device[key] = torch.as_tensor(values()).to(dtype).to(device)
        return self._on_device[key]

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """The table called `name` (an attribute) at steps t [B], as [B, 1, 1, 1] with the type
        and device of `like`."""
        table = self._table(name, lambda: getattr(self, name), like.device, like.dtype)
        return table[t].view(-1, *[1] * (like.ndim - 1))

    def ddim_at(self, eta: float, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of x0_hat, eps and noise in DDIM's eq. 12, each [B, 1, 1, 1]."""

        def coefficients() -> np.ndarray:
            acp, prev = self.alphas_cumprod, self.alphas_cumprod_prev
            sigma = eta * np.sqrt((1 - prev) / (1 - acp)) * np.sqrt(1 - acp / prev)
            return np.stack([np.sqrt(prev), np.sqrt(1 - prev - sigma**2), sigma])

        table = self._table(f"ddim {eta}", coefficients, like.device, like.dtype)
        x0, eps, noise = table[:, t].view(3, -1, *[1] * (like.ndim - 1)).unbind(0)
        return x0, eps, noise

    def limit(self, x0_hat: Tensor) -> Tensor:
        if self.x0_limit is not None:
            return self.x0_limit(x0_hat)
        return limit_x0(x0_hat, self.dynamic_threshold, self.clip_denoised)

    def x0_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        a = self.at("sqrt_recip_alphas_cumprod", t, x_t)
        b = self.at("sqrt_recipm1_alphas_cumprod", t, x_t)
        return a * x_t - b * eps

    def eps_from_x0(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        a = self.at("sqrt_recip_alphas_cumprod", t, x_t)
        b = self.at("sqrt_recipm1_alphas_cumprod", t, x_t)
        return (a * x_t - x0) / b

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        c1 = self.at("posterior_mean_coef1", t, x_t)
        c2 = self.at("posterior_mean_coef2", t, x_t)
        return c1 * x0 + c2 * x_t

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(acp_t) x_0 + sqrt(1 - acp_t) noise."""
        a = self.at("sqrt_alphas_cumprod", t, x0)
        b = self.at("sqrt_one_minus_alphas_cumprod", t, x0)
        return a * x0 + b * noise

    def model_timesteps(self, t: Tensor) -> Tensor:
        """What the network is told for steps t [B]: original timesteps."""
        original = self._table("timesteps", lambda: self.timesteps, t.device, torch.int64)[t]
        if self.rescale_timesteps:
            return original.float() * (1000.0 / self.original_steps)
        return original

    def denoise(self, model: Model, x: Tensor, sigma: float) -> Tensor:
        """x0_hat, limited as the config says, from x = x_0 + sigma z [B, 3, H, W] at any noise
        level: the network is told the timestep, a fraction between those it was trained on, whose
        sqrt((1 - acp) / acp) is sigma. A level beyond the first or last timestep's counts as that.
        """
        levels = 0.5 * np.log(1 / self.all_alphas_cumprod - 1)
        level = np.clip(math.log(max(sigma, _LEAST_LEVEL)), levels[0], levels[-1])
        timestep = float(np.interp(level, levels, np.arange(len(levels))))
        if abs(timestep - round(timestep)) < _SAME_TIMESTEP:  # what rounding did to it
            timestep = round(timestep)
        if self.rescale_timesteps:
            timestep *= 1000.0 / self.original_steps
        variance = math.exp(2 * level)
        a, b = math.sqrt(1 / (1 + variance)), math.sqrt(variance / (1 + variance))
        told = torch.full((len(x),), timestep, dtype=torch.float32, device=x.device)
        output = model(a * x, told)[:, : x.shape[1]]
        return self.limit(x0_at_any_level(self.model_mean_type, output, a * x, a, b))

    def predict(self, model: Model, x_t: Tensor, t: Tensor) -> PriorStep:
        """Mean and variance of p(x_{t-1} | x_t) for x_t [B, 3, H, W], steps t [B]."""
        return self.interpret(model(x_t, self.model_timesteps(t)), x_t, t)

    def interpret(self, output: Tensor, x_t: Tensor, t: Tensor) -> PriorStep:
        """The prediction that a network output [B, 3 or 6, H, W] stands for."""
        values = None
        if output.shape[1] == 2 * x_t.shape[1]:
            output, values = output.chunk(2, dim=1)
        elif self.learns_variance:
            raise UserError(
                f"model_var_type {self.model_var_type} needs a network with learn_sigma: True"
            )
        mean, x0_hat, eps = MEAN_TYPES.get(self.model_mean_type)(self, output, x_t, t)
        variance, log_variance = VARIANCE_TYPES.get(self.model_var_type)(self, values, t, x_t)
        return PriorStep(mean, variance, log_variance, x0_hat, eps)


@SAMPLERS.register("ddpm")
def ddpm(diffusion: GaussianDiffusion, prior: PriorStep, x_t: Tensor, t: Tensor) -> Transition:
    """Ancestral sampling; the last step (t = 0) adds no noise."""
    std = (0.5 * prior.log_variance).exp()
    per_x0 = diffusion.at("posterior_mean_coef1", t, x_t)
    last = (t == 0).view(-1, *[1] * (std.ndim - 1))
    return Transition(prior.mean, torch.where(last, 0.0, std), per_x0)


@SAMPLERS.register("ddim")
def ddim(
    diffusion: GaussianDiffusion, prior: PriorStep, x_t: Tensor, t: Tensor, eta: float = 0.0
) -> Transition:
    """Song et al. 2021, eq. 12 and 16, with the noise that belongs to the limited x0_hat."""
    eps = diffusion.eps_from_x0(x_t, t, prior.x0_hat)
    towards_x0, towards_eps, std = diffusion.ddim_at(eta, t, x_t)
    per_x0 = towards_x0 - towards_eps / diffusion.at("sqrt_recipm1_alphas_cumprod", t, x_t)
    return Transition(towards_x0 * prior.x0_hat + towards_eps * eps, std, per_x0)
