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

import torch
from torch import Tensor, nn

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.noise_levels import NoiseLevels
from guided_diffusion.posterior_mean_variance import x0_at_any_level
from guided_diffusion.pretrained import Pretrained
from guided_diffusion.sampling import Prior
from models.checkpoint import freeze
from util.errors import UserError

_STEPS, _SCHEDULE = 1000, "linear"

Denoiser = Callable[[Tensor, Tensor], Tensor]  # x [B, C, H, W], sigma [B] -> [B, C, H, W]


class DenoiserPrior(Pretrained):
    """A prior that is a denoiser. Derive from it, register it, and define `denoiser`.

    The process is the variance-preserving one with 1000 linear betas, cut to the steps that the
    diffusion config asks for: at x_t = sqrt(acp) x_0 + sqrt(1 - acp) z the denoiser is asked for
    x_t / sqrt(acp), whose noise has the same ratio to the image, sigma = sqrt((1 - acp) / acp),
    from 0.01 to 157.
    """

    def denoiser(self) -> Denoiser:
        """D, its weights loaded, on the CPU. A module, and one inside the adapters of this file, is
        moved to the device and put into evaluation mode; anything else has to see to it itself."""
        raise NotImplementedError

    def load(self) -> nn.Module:
        return freeze(_DenoiserNetwork(self.denoiser()))

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


class _Adapter(nn.Module):
    """A denoiser made of `inner`, which is moved with it if it is a module."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner


class _DenoiserNetwork(_Adapter):
    """x_t [B, C, H, W], timesteps [B] of the linear process -> x0_hat."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        acp = GaussianDiffusion.create(_STEPS, _SCHEDULE).alphas_cumprod
        self._levels = NoiseLevels(torch.from_numpy(acp))

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        sigma = self._levels.sigmas(timesteps, x_t)
        scale = (1 + sigma**2).sqrt().view(-1, 1, 1, 1)  # 1 / sqrt(acp)
        return self.inner(scale * x_t, sigma)


def denoiser_prior(
    denoiser: Denoiser,
    image_size: int,
    *,
    channels: int = 3,
    size_multiple: int = 1,
    num_steps: int | None = 25,
    clip: bool = True,
    device: torch.device | str = "cpu",
) -> Prior:
    """A prior of `denoiser`, for images of this size and others whose sides are multiples of
    size_multiple. A module is put on `device`, into evaluation mode, without gradients of weights.

    channels: 3, or 1 for grey images
    num_steps: steps from where a measurement lets sampling begin; None: all 1000
    clip: limit the clean images to [-1, 1]
    """
    if channels not in (1, 3):
        raise UserError(f"denoiser_prior: channels {channels}: expected 3, or 1 for grey images")
    options = {"model_var_type": "fixed_small", "clip_denoised": clip}
    return Prior(
        freeze(_DenoiserNetwork(denoiser)).to(device),
        DenoiserPrior().process(options),
        size_multiple=size_multiple,
        image_size=image_size,
        num_steps=num_steps,
        channels=channels,
    )


class from_unit_range(_Adapter):
    """Of a denoiser of images in [0, 1], as those of deepinv: D'(x, sigma) on that range."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 2 * self.inner((x + 1) / 2, sigma / 2) - 1


class from_flow(_Adapter):
    """Of a network of flow matching (Lipman et al. 2023, arXiv 2210.02747): v(x_s, s) = z - x_0 at
    x_s = (1 - s) x_0 + s z, s [B] from 0 to 1. For one whose time runs the other way, with noise at
    0, give lambda x, s: -v(x, 1 - s)."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma / (1 + sigma)
        share = s.view(-1, 1, 1, 1)
        x_s = (1 - share) * x
        return x_s - share * self.inner(x_s, s)


class from_timesteps(_Adapter):
    """Of a network (x_t [B, C, H, W], t [B]) trained at the timesteps of a variance-preserving
    process, told fractions between them.

    predicts: the noise, x_0, or v = sqrt(acp) z - sqrt(1 - acp) x_0
    alphas_cumprod: [T], falling
    """

    def __init__(
        self,
        predicts: Literal["epsilon", "start_x", "velocity"],
        network: Denoiser,
        alphas_cumprod: Any,
    ) -> None:
        super().__init__(network)
        self.predicts, self._levels = predicts, NoiseLevels(torch.as_tensor(alphas_cumprod))
        if predicts not in ("epsilon", "start_x", "velocity") or not self._levels.rise:
            raise UserError(
                "from_timesteps: predicts is epsilon, start_x or velocity; alphas_cumprod must fall"
            )

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        t, sigma = self._levels.timesteps(sigma, x)
        variance = sigma.view(-1, 1, 1, 1) ** 2
        a, b = (1 / (1 + variance)).sqrt(), (variance / (1 + variance)).sqrt()
        return x0_at_any_level(self.predicts, self.inner(a * x, t), a * x, a, b)
