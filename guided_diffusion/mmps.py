"""Moment matching posterior sampling as a conditioning method, for comparison."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch

from guided_diffusion.condition_methods import CONDITIONING, StepResult, ancestral
from guided_diffusion.conjugate_gradients import conjugate_gradients
from guided_diffusion.peer_methods import PeerMethod
from guided_diffusion.pullback import pullback
from util.errors import UserError


@CONDITIONING.register("mmps")
@dataclass
class MomentMatching(PeerMethod):
    """MMPS (Rozet et al. 2024, arXiv 2405.13712, section 4.2): x0_hat is replaced by

        E[x_0 | x_t, y] = x0_hat + V A^T (A V A^T + S)^-1 (y - A x0_hat)

    with S the covariance of the noise and V = (1 - acp) / sqrt(acp) J^T, J the derivative of x0_hat
    by x_t: the covariance of x_0 given x_t by Tweedie's formula. The step is that of
    `diffusion.sampler` towards it. For linear operators and any noise; where the noise follows the
    image, its variance is that of A x0_hat.

    iterations: of conjugate gradients, each a pass back through the network; one more pass gives
      the result. The authors' own library has 1
    """

    title = "MMPS"
    needs_linear = True

    iterations: int = 1

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise UserError(f"mmps: iterations must be at least 1, got {self.iterations}")

    def step(self, reverse, x_t, t, problem, noise):
        acp = problem.diffusion.alphas_cumprod[t]
        A: Any = problem.operator  # linear, as `check` has seen to
        x_t = x_t.detach().requires_grad_()
        prior, move = reverse(x_t, t)
        x0_hat = prior.x0_hat.detach()

        def covariance(v, last=False):
            passed = pullback(prior.x0_hat, x_t, v, retain_graph=not last)
            return (1 - acp) / sqrt(acp) * passed

        with torch.no_grad():
            measured = A(x0_hat)
            variance = problem.variance(measured)
            d = problem.distance(x0_hat)

            def system(u):
                return A(covariance(A.adjoint(u))) + variance * u

            solved = conjugate_gradients(system, problem.y - measured, None, self.iterations)
            shift = covariance(A.adjoint(solved), last=True)
        x = ancestral(move, t, noise) + move.per_x0 * shift
        return StepResult(x, x0_hat + shift, d)
