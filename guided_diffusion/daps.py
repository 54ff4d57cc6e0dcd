"""Decoupled annealing posterior sampling as a conditioning method, for comparison."""

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.condition_methods import CONDITIONING, Reverse, StepResult
from guided_diffusion.peer_methods import PeerMethod
from guided_diffusion.problem import Problem, data_gradient
from util.errors import UserError
from util.randomness import NoiseSource

_RHO = 7
_LEAST_SIGMA = 0.01  # where the probability flow ends


@CONDITIONING.register("daps")
@dataclass
class DAPS(PeerMethod):
    """DAPS (Zhang et al. 2025, arXiv 2407.01521, algorithm 1 and its Langevin dynamics).

    At the noise level sigma = sqrt((1 - acp) / acp) of every step of the process: `ode_steps` Euler
    steps of the probability flow from x_t to x0_hat; a Langevin chain for x_0 whose prior is
    N(x0_hat, sigma^2) and whose measurement has the standard deviation beta_y; and noise of the
    next level. The levels are those of `diffusion`, in place of the published ones (200 of them
    from 100 to 0.1); `diffusion.sampler` has no part in it. For any operator and Gaussian noise.

    ode_steps: network evaluations of a step (published: 5 or 10)
    langevin_steps: of the chain
    eta: eta_0, the chain's step size at the first level; published for each task, this one for
      super-resolution
    delta: the share of eta that is left at the last level; in between, linear in the steps
    beta_y: published for noise of 0.05. A chain with || A ||^2 eta / beta_y^2 above 2 diverges
    """

    title = "DAPS"
    needs_gaussian = True

    ode_steps: int = 5
    langevin_steps: int = 100
    eta: float = 1e-4
    delta: float = 0.01
    beta_y: float = 0.01

    def __post_init__(self) -> None:
        if self.ode_steps < 1 or self.langevin_steps < 1:
            raise UserError("daps: ode_steps and langevin_steps must be at least 1")
        if self.eta <= 0 or self.beta_y <= 0 or not 0 <= self.delta <= 1:
            raise UserError("daps: eta and beta_y must be positive, delta in [0, 1]")

    def step(self, reverse, x_t, t, problem, noise):
        diffusion = problem.diffusion
        acp, prev = diffusion.alphas_cumprod[t], diffusion.alphas_cumprod_prev[t]
        sigma = sqrt(1 / acp - 1)
        with torch.no_grad():
            x0_hat = self.probability_flow(reverse, x_t / sqrt(acp), sigma)
            d = problem.distance(x0_hat)
            x0 = self.chain(x0_hat, sigma, t, problem, noise)
            if t == 0:
                return StepResult(x0, x0_hat, d)
            z = noise.normal("step", t, x_t.shape[1:])
            return StepResult(sqrt(prev) * x0 + sqrt(1 - prev) * z, x0_hat, d)

    def probability_flow(self, reverse: Reverse, x: Tensor, sigma: float) -> Tensor:
        """x_0 from x = x_0 + sigma z [B, 3, H, W] along dx / dsigma = (x - x0_hat) / sigma (Karras
        et al. 2022, eq. 1 and 3), at levels as in their eq. 5."""
        ends = sigma ** (1 / _RHO), min(sigma, _LEAST_SIGMA) ** (1 / _RHO)
        levels = [*np.linspace(*ends, self.ode_steps) ** _RHO, 0.0]
        for level, following in pairwise(levels):
            x0_hat = reverse.denoise(x, float(level))
            x = x0_hat + float(following / level) * (x - x0_hat)
        return x

    def chain(
        self, x0_hat: Tensor, sigma: float, t: int, problem: Problem, noise: NoiseSource
    ) -> Tensor:
        """The last of `langevin_steps` Langevin steps from x0_hat [B, 3, H, W]."""
        share = (t + 1) / problem.diffusion.num_timesteps
        eta = self.eta * (self.delta + (1 - self.delta) * share)
        x0 = x0_hat
        for _ in range(self.langevin_steps):
            g = (x0 - x0_hat) / sigma**2 + data_gradient(problem, x0) / self.beta_y**2
            z = noise.normal("chain", t, x0.shape[1:])
            x0 = x0 - eta * g + sqrt(2 * eta) * z
        return x0
