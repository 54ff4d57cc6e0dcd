"""The reverse process: from a measurement to restored images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guided_diffusion.condition_methods import (
    ConditioningMethod,
    Problem,
    StepResult,
    WholeImage,
)
from guided_diffusion.gaussian_diffusion import (
    SAMPLERS,
    GaussianDiffusion,
    Model,
    PriorStep,
    Transition,
)
from guided_diffusion.tiling import distance_factor
from util.errors import UserError
from util.randomness import NoiseSource

# Called after every step with (t, result); t counts down from T-1 to 0.
Callback = Callable[[int, StepResult], None]


@dataclass(frozen=True)
class Prior:
    """A diffusion model: network, process and sampler.

    `size_multiple`: sides of images must be multiples of it.
    `params`: the dpps parameters that belong to it.
    """

    model: Model
    diffusion: GaussianDiffusion
    sampler: str = "ddpm"
    eta: float = 0.0  # of the ddim sampler: 0 deterministic, 1 as noisy as ddpm
    size_multiple: int = 1
    image_size: int | None = None  # of the model: guidance scales belong to it
    params: Mapping[str, Any] = field(default_factory=dict)

    def reverse(self, x_t: Tensor, t: int) -> tuple[PriorStep, Transition]:
        """Prediction and transition at step t for x_t [B, 3, H, W]."""
        time = torch.full((len(x_t),), t, device=x_t.device)
        prior = self.diffusion.predict(self.model, x_t, time)
        options = {"eta": self.eta} if self.sampler == "ddim" else {}
        move = SAMPLERS.get(self.sampler)(self.diffusion, prior, x_t, time, **options)
        return prior, move

    def extent(self, height: int, width: int) -> WholeImage:
        """That gives guidance scales the meaning they have at the model's own size."""
        size = self.image_size
        return WholeImage(1.0 if size is None else distance_factor(height, width, size))

    def check_method(self, method: ConditioningMethod) -> None:
        """UserError where `method` cannot work with this sampler."""
        single = getattr(method, "candidates", None) == 1
        if method.needs_noise and self.sampler == "ddim" and self.eta == 0 and not single:
            raise UserError(
                "sampler ddim with eta 0 adds no noise, so all dpps candidates are the same: set "
                "diffusion.eta above 0, or task.conditioning.params.candidates to 1"
            )


def sample(
    prior: Prior,
    method: ConditioningMethod,
    problem: Problem,
    noise: NoiseSource,
    callback: Callback | None = None,
) -> Tensor:
    """Run the reverse process; returns x_0 [B, 3, H, W], not clamped.

    Every random number comes from `noise`; whatever watches the run hangs on `callback`.
    """
    x = method.start(problem, noise)
    for t in range(method.first_step(prior.diffusion), -1, -1):
        result = method.step(prior.reverse, x, t, problem, noise)
        x = result.x
        if callback is not None:
            callback(t, result)
    return x.detach()
