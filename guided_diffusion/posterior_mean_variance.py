"""From the network's output to the mean and variance of p(x_{t-1} | x_t).

Mean types say what the first three channels are, variance types what the rest is. Each is a
short function of (diffusion, network output, x_t, t); configs name them.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from util.errors import UserError
from util.registry import Registry


class Process(Protocol):
    """What is asked of the diffusion process; see GaussianDiffusion."""

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor: ...

    def limit(self, x0_hat: Tensor) -> Tensor: ...

    def x0_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor: ...

    def eps_from_x0(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor: ...

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...


class MeanPrediction(NamedTuple):
    """What a mean type returns, each [B, 3, H, W]."""

    mean: Tensor  # of p(x_{t-1} | x_t)
    x0_hat: Tensor  # after dynamic_threshold and clip_denoised
    eps: Tensor  # noise prediction; for epsilon models the raw network output


MEAN_TYPES: Registry[MeanPrediction] = Registry("model_mean_type")
VARIANCE_TYPES: Registry[tuple[Tensor, Tensor]] = Registry("model_var_type")

_DYNAMIC_QUANTILE = 0.95


def limit_x0(x0_hat: Tensor, dynamic_threshold: bool, clip_denoised: bool) -> Tensor:
    """Bring x0_hat [B, 3, H, W] into [-1, 1] in the ways the config asks for."""
    if dynamic_threshold:
        scale = torch.quantile(x0_hat.detach().abs().flatten(1), _DYNAMIC_QUANTILE, dim=1)
        x0_hat = (x0_hat * scale.view(-1, 1, 1, 1)).clamp(-1, 1)
    if clip_denoised:
        x0_hat = x0_hat.clamp(-1, 1)
    return x0_hat


@MEAN_TYPES.register("epsilon")
def epsilon_mean(diffusion: Process, output: Tensor, x_t: Tensor, t: Tensor):
    x0_hat = diffusion.limit(diffusion.x0_from_eps(x_t, t, output))
    return MeanPrediction(diffusion.posterior_mean(x0_hat, x_t, t), x0_hat, output)


@MEAN_TYPES.register("start_x")
def start_x_mean(diffusion: Process, output: Tensor, x_t: Tensor, t: Tensor):
    x0_hat = diffusion.limit(output)
    mean = diffusion.posterior_mean(x0_hat, x_t, t)
    return MeanPrediction(mean, x0_hat, diffusion.eps_from_x0(x_t, t, x0_hat))


@MEAN_TYPES.register("previous_x")
def previous_x_mean(diffusion: Process, output: Tensor, x_t: Tensor, t: Tensor):
    c1 = diffusion.at("posterior_mean_coef1", t, x_t)
    c2 = diffusion.at("posterior_mean_coef2", t, x_t)
    x0_hat = diffusion.limit((output - c2 * x_t) / c1)
    return MeanPrediction(output, x0_hat, diffusion.eps_from_x0(x_t, t, x0_hat))


@MEAN_TYPES.register("velocity")
def velocity_mean(diffusion: Process, output: Tensor, x_t: Tensor, t: Tensor):
    """v = sqrt(acp) eps - sqrt(1 - acp) x_0 (Salimans & Ho 2022, appendix D)."""
    a = diffusion.at("sqrt_alphas_cumprod", t, x_t)
    b = diffusion.at("sqrt_one_minus_alphas_cumprod", t, x_t)
    x0_hat = diffusion.limit(a * x_t - b * output)
    return MeanPrediction(diffusion.posterior_mean(x0_hat, x_t, t), x0_hat, b * x_t + a * output)


def x0_at_any_level(
    mean_type: str, output: Tensor, x_t: Tensor, a: float | Tensor, b: float | Tensor
) -> Tensor:
    """x0_hat, not limited, from the network's output at x_t = a x_0 + b z, a^2 + b^2 = 1."""
    if mean_type == "epsilon":
        return (x_t - b * output) / a
    if mean_type == "start_x":
        return output
    if mean_type == "velocity":
        return a * x_t - b * output
    raise UserError(
        f"model_mean_type {mean_type}: the network knows the noise levels of its process alone, "
        "and this method denoises at others"
    )


@VARIANCE_TYPES.register("fixed_small")
def fixed_small(diffusion: Process, values: Tensor | None, t: Tensor, like: Tensor):
    variance = diffusion.at("posterior_variance", t, like)
    return variance, variance.log()


@VARIANCE_TYPES.register("fixed_large")
def fixed_large(diffusion: Process, values: Tensor | None, t: Tensor, like: Tensor):
    variance = diffusion.at("fixed_large_variance", t, like)
    return variance, variance.log()


@VARIANCE_TYPES.register("learned")
def learned(diffusion: Process, values: Tensor, t: Tensor, like: Tensor):
    return values.exp(), values


@VARIANCE_TYPES.register("learned_range")
def learned_range(diffusion: Process, values: Tensor, t: Tensor, like: Tensor):
    """Interpolates between the two bounds in the log domain (Nichol & Dhariwal 2021, eq. 15)."""
    low = diffusion.at("posterior_log_variance_clipped", t, like)
    high = diffusion.at("log_betas", t, like)
    weight = (values + 1) / 2
    log_variance = weight * high + (1 - weight) * low
    return log_variance.exp(), log_variance


LEARNED_VARIANCE_TYPES = frozenset({"learned", "learned_range"})
