"""Priors from whatever denoiser a researcher holds.

Everything becomes a denoiser D(x, sigma): x [B, C, H, W], clean images in [-1, 1] with white noise
of standard deviation sigma [B] -> the mean of the clean images given x. `denoiser_prior` makes a
prior of it for `models.prior.restore`, and `DenoiserPrior` one that a model config can name.

    prior = denoiser_prior(edm_network, image_size=64)                      # D(x, sigma) itself
    prior = denoiser_prior(from_unit_range(drunet), image_size=256)         # images in [0, 1]
    prior = denoiser_prior(from_flow(velocity), image_size=256)             # flow matching
    prior = denoiser_prior(from_timesteps("velocity", network, acp), image_size=64)
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.posterior_mean_variance import x0_at_any_level
from guided_diffusion.pretrained import Pretrained
from guided_diffusion.sampling import Prior
from util.errors import UserError

_STEPS, _SCHEDULE = 1000, "linear"

Denoiser = Callable[[Tensor, Tensor], Tensor]  # x [B, C, H, W], sigma [B] -> [B, C, H, W]


class DenoiserPrior(Pretrained):
    """A prior that is a denoiser. Derive from it, register it, and define `denoiser`.

    The process is the variance-preserving one of the diffusion config: at x_t = sqrt(acp) x_0 +
    sqrt(1 - acp) z the denoiser is asked for x_t / sqrt(acp), whose noise has the same ratio to the
    image, sigma = sqrt((1 - acp) / acp): from 0.01 to 157 for 1000 linear betas.
    """

    def denoiser(self) -> Denoiser:
        """D, its weights loaded, on the CPU; a module is moved to the device by itself."""
        raise NotImplementedError

    def load(self) -> nn.Module:
        return _DenoiserNetwork(self.denoiser()).eval().requires_grad_(False)

    def process(self, options: Mapping[str, Any]) -> GaussianDiffusion:
        variance = options["model_var_type"]
        own = {
            "steps": _STEPS,
            "noise_schedule": _SCHEDULE,
            "model_mean_type": "start_x",
            "model_var_type": variance if variance.startswith("fixed") else "fixed_small",
            "rescale_timesteps": False,
        }
        return GaussianDiffusion.create(**{**options, **own})


class _DenoiserNetwork(nn.Module):
    """x_t [B, C, H, W], timesteps [B] of the linear process -> x0_hat."""

    levels: Tensor  # log sigma of the timesteps

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        acp = GaussianDiffusion.create(_STEPS, _SCHEDULE).alphas_cumprod
        self.register_buffer("levels", torch.from_numpy(0.5 * np.log(1 / acp - 1)))

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        sigma = _interpolated(self.levels, timesteps).exp().to(x_t.dtype)
        scale = (1 + sigma**2).sqrt().view(-1, 1, 1, 1)  # 1 / sqrt(acp)
        return self.denoiser(scale * x_t, sigma)


def denoiser_prior(
    denoiser: Denoiser,
    image_size: int,
    *,
    channels: int = 3,
    size_multiple: int = 1,
    num_steps: int | None = 25,
    clip: bool = True,
) -> Prior:
    """A prior of `denoiser`, for images of this size and others whose sides are multiples of
    size_multiple.

    channels: 3, or 1 for grey images
    num_steps: steps from where a measurement lets sampling begin; None: all 1000
    clip: limit the clean images to [-1, 1]
    """
    if channels not in (1, 3):
        raise UserError(f"denoiser_prior: channels {channels}: expected 3, or 1 for grey images")
    given = _Given(denoiser, image_size, channels, size_multiple)
    options = {"model_var_type": "fixed_small", "clip_denoised": clip}
    return Prior(
        given.load(),
        given.process(options),
        size_multiple=size_multiple,
        image_size=image_size,
        num_steps=num_steps,
        channels=channels,
    )


def from_unit_range(denoiser: Denoiser) -> Denoiser:
    """Of a denoiser of images in [0, 1], as those of deepinv: D'(x, sigma) on that range."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return 2 * denoiser((x + 1) / 2, sigma / 2) - 1

    return denoise


def from_flow(velocity: Denoiser) -> Denoiser:
    """Of a network of flow matching (Lipman et al. 2023, arXiv 2210.02747): v(x_s, s) = z - x_0 at
    x_s = (1 - s) x_0 + s z, s [B] from 0 to 1. For one whose time runs the other way, with noise at
    0, give lambda x, s: -v(x, 1 - s)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma / (1 + sigma)
        share = s.view(-1, 1, 1, 1)
        x_s = (1 - share) * x
        return x_s - share * velocity(x_s, s)

    return denoise


def from_timesteps(
    predicts: Literal["epsilon", "start_x", "velocity"], network: Denoiser, alphas_cumprod: Any
) -> Denoiser:
    """Of a network (x_t [B, C, H, W], t [B]) trained at the timesteps of a variance-preserving
    process, told fractions between them.

    predicts: the noise, x_0, or v = sqrt(acp) z - sqrt(1 - acp) x_0
    alphas_cumprod: [T], falling
    """
    acp = torch.as_tensor(alphas_cumprod).double().cpu()
    levels = 0.5 * (1 / acp - 1).log()
    if predicts not in ("epsilon", "start_x", "velocity") or not (levels.diff() > 0).all():
        raise UserError(
            "from_timesteps: predicts is epsilon, start_x or velocity; alphas_cumprod must fall"
        )

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.double().log().cpu().clamp(levels[0], levels[-1])
        after = torch.searchsorted(levels, level).clamp(1, len(levels) - 1)
        low, high = levels[after - 1], levels[after]
        t = (after - 1 + (level - low) / (high - low)).to(x)
        variance = (2 * level).exp().to(x).view(-1, 1, 1, 1)
        a, b = (1 / (1 + variance)).sqrt(), (variance / (1 + variance)).sqrt()
        return x0_at_any_level(predicts, network(a * x, t), a * x, a, b)

    return denoise


class _Given(DenoiserPrior):
    def __init__(self, denoiser: Denoiser, image_size: int, channels: int, multiple: int) -> None:
        self._denoiser, self._multiple = denoiser, multiple
        self.image_size, self.channels = image_size, channels

    def size_multiple(self) -> int:
        return self._multiple

    def denoiser(self) -> Denoiser:
        return self._denoiser


def _interpolated(table: Tensor, at: Tensor) -> Tensor:
    """Values of `table` [T] at the places `at` [B], fractions included."""
    at = at.to(table.dtype).clamp(0, len(table) - 1)
    below = at.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[below], table[below + 1], at - below)
