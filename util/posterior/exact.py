"""Exact conditioning by the same sampler: what proves the ruler, and the most that guidance can do.

Both methods know the posterior, and with it x_0 given x_t and y: a mixture like the posterior, with
the likelihood of x_t = sqrt(acp) x_0 + sqrt(1 - acp) z taken in.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from guided_diffusion.condition_methods import ConditioningMethod, StepResult, ancestral
from util.posterior.mixture import Posterior


@dataclass
class ExactConditioning(ConditioningMethod):
    """posterior: of the measurement that is sampled"""

    posterior: Posterior

    def given(self, c: Tensor, acp: float) -> tuple[Tensor, Tensor, Tensor]:
        """x_0 given x_t at coordinates c [B, d], and y: weights [B, K], centres [B, K, d] and
        variances [d]."""
        known = self.posterior
        gap = (c[:, None] - sqrt(acp) * known.centres).square()
        gap = (gap / (acp * known.variances + 1 - acp)).sum(2)
        variances = 1 / (1 / known.variances + acp / (1 - acp))
        pulled = known.centres / known.variances + (sqrt(acp) / (1 - acp) * c)[:, None]
        return (known.weights.log() - 0.5 * gap).softmax(1), variances * pulled, variances


class ExactTransition(ExactConditioning):
    """x_{t-1} drawn from p(x_{t-1} | x_t, y): x_0 given x_t and y, then the process's own
    x_{t-1} given x_0 and x_t."""

    def step(self, reverse, x_t, t, problem, noise):
        diffusion, known = problem.diffusion, self.posterior
        c1, c2 = diffusion.posterior_mean_coef1[t], diffusion.posterior_mean_coef2[t]
        c = known.coordinates(x_t)
        weights, centres, variances = self.given(c, diffusion.alphas_cumprod[t])
        u = noise.uniform("step", t, (1,)).double()
        modes = (weights.cumsum(1) < u).sum(1).clamp(max=weights.shape[1] - 1)
        x0 = centres[torch.arange(len(c)), modes]
        std = (c1**2 * variances + diffusion.posterior_variance[t]).sqrt()
        moved = c1 * x0 + c2 * c + std * noise.normal("step", t, c.shape[1:])
        x0, x = (known.image(v).to(x_t) for v in (x0, moved))
        return StepResult(x, x0, problem.distance(x0))


class ExactScore(ExactConditioning):
    """The sampler's own step, towards the mean of x_0 given x_t and y in place of x0_hat."""

    def step(self, reverse, x_t, t, problem, noise):
        with torch.no_grad():
            prior, move = reverse(x_t, t)
            c = self.posterior.coordinates(x_t)
            weights, centres, _ = self.given(c, problem.diffusion.alphas_cumprod[t])
            x0 = self.posterior.image((weights[..., None] * centres).sum(1)).to(x_t)
            x = ancestral(move, t, noise) + move.per_x0 * (x0 - prior.x0_hat)
            return StepResult(x, x0, problem.distance(x0))


# By the names that rows give them. They are no methods of the registry: they cannot restore.
EXACT = {"exact": ExactTransition, "exact_score": ExactScore}
