"""A conditioning method of your own: a fixed step along A^T (y - A x0_hat), without a gradient of
the network.

    python3 sample_condition.py --plugin examples/plugin_method.py --task gaussian_deblur \\
        --data_root PHOTOGRAPHS --set "task.conditioning={method: pull, params: {weight: 0.5}}"
"""

from dataclasses import dataclass

import torch

from guided_diffusion.condition_methods import (
    CONDITIONING,
    ConditioningMethod,
    StepResult,
    ancestral,
)


@CONDITIONING.register("pull")
@dataclass
class Pull(ConditioningMethod):
    """x0_hat moves by `weight` A^T (y - A x0_hat), and the transition goes there."""

    weight: float = 1.0

    def step(self, reverse, x_t, t, problem, noise):
        with torch.no_grad():
            prior, move = reverse(x_t, t)
            A = problem.operator
            pulled = self.weight * A.adjoint(problem.y - A(prior.x0_hat))
            x = ancestral(move, t, noise) + move.per_x0 * pulled
            return StepResult(x, prior.x0_hat + pulled, problem.distance(prior.x0_hat))
