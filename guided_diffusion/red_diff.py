"""Regularisation by a denoising diffusion process as a conditioning method, for comparison."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from guided_diffusion.adaptive_moments import adapted
from guided_diffusion.condition_methods import CONDITIONING, ConditioningMethod, Init, StepResult
from guided_diffusion.problem import Problem, data_gradient
from util.errors import UserError
from util.randomness import NoiseSource

_BETAS = 0.9, 0.99


@CONDITIONING.register("red-diff")
@dataclass
class RedDiff(ConditioningMethod):
    """RED-diff (Mardani et al. 2024, arXiv 2305.04391, algorithm 1): an image mu that Adam moves at
    every step down the gradient of

        mean of (y - A mu)^2 / 2 + lam sqrt((1 - acp) / acp) mean of (eps_hat - eps) mu

    with eps_hat the noise that the network finds, as a constant, in mu with the noise eps added.
    The means are over measured values and over the image's, as in the authors' program; the paper
    writes sums. The steps are those of the process, downwards, and the result is mu. For any
    operator and noise, whose level has no part in it.

    lr: length of Adam's step in each value of mu; the authors' example of 100 steps has 0.5
    lam: lambda, the weight of the prior
    init: where mu begins. Published: at A^+ y, which `inverse` is without its noise
    """

    lr: float = 0.1
    lam: float = 0.25
    init: Init = "inverse"

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.lam < 0:
            raise UserError("red-diff: lr must be positive, lam must not be negative")

    def start(self, problem: Problem, noise: NoiseSource) -> Tensor:
        """The first mu: the first guess without noise, or noise where there is none."""
        u = self.begun(problem)
        if u is None:
            return noise.normal("start", problem.diffusion.num_timesteps, problem.image_shape)
        return u

    def step(self, reverse, x_t, t, problem, noise):
        acp, mu = problem.diffusion.alphas_cumprod[t], x_t.detach()
        eps = noise.normal("step", t, mu.shape[1:])
        with torch.no_grad():
            prior, _ = reverse(sqrt(acp) * mu + sqrt(1 - acp) * eps, t)
            d = problem.distance(mu)
            weight = self.lam * sqrt(1 / acp - 1)
            count = problem.measured_values.flatten(1).sum(1).view(-1, 1, 1, 1)
            g = data_gradient(problem, mu) / count.clamp(min=1)
            g = g + weight * (prior.eps - eps) / mu[0].numel()
            mu = mu - self.lr * adapted(g, problem.memory, *_BETAS)
            return StepResult(mu, mu, d)
