"""The reverse process: from a measurement to restored images."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.condition_methods import ConditioningMethod, Reverse, StepResult
from guided_diffusion.gaussian_diffusion import (
    SAMPLERS,
    GaussianDiffusion,
    Model,
    PriorStep,
    Transition,
)
from guided_diffusion.measurements import Operator
from guided_diffusion.natural_images import expected_error
from guided_diffusion.noise_models import NoiseModel
from guided_diffusion.problem import Problem, WholeImage
from guided_diffusion.tiling import distance_factor
from util.errors import UserError
from util.randomness import ImageKey, NoiseSource

# Called after every step with (t, result); t counts down from T-1 to 0.
Callback = Callable[[int, StepResult], None]

_RHO = 7
# An error of this share of the noise's energy is drowned by it. With 0.001, 0.005 and 0.02
# restorations were within 0.6 dB: five operators, noise of 0.01 and 0.2, both priors that ship.
_DROWNED = 0.005
_LEAST_ERROR = 1e-8


@dataclass(frozen=True)
class Prior:
    """A diffusion model: network, process and sampler.

    `size_multiple`: sides of images must be multiples of it.
    `params`: the dpps parameters that belong to it.
    `num_steps`: steps of sampling from where a measurement lets it begin, see `scheduled`; None:
      all those of `diffusion`.
    """

    model: Model
    diffusion: GaussianDiffusion
    sampler: str = "ddpm"
    eta: float = 0.0  # of the ddim sampler: 0 deterministic, 1 as noisy as ddpm
    size_multiple: int = 1
    image_size: int | None = None  # of the model: guidance scales belong to it
    params: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    channels: int = 3  # of its images: 3, or 1 for grey ones
    # What the network is told of each image, a third argument [B]; None: nothing. See Pretrained
    labels: Callable[[Sequence[ImageKey]], list[int] | None] | None = None

    def __post_init__(self) -> None:
        steps, of_process = self.num_steps, self.diffusion.num_timesteps
        if steps is not None and not 1 <= steps <= of_process:
            raise UserError(f"num_steps {steps}: expected 1 to {of_process}")

    def for_images(self, keys: Sequence[ImageKey]) -> "Prior":
        """The prior whose network is told of these images what it is to be told."""
        labels = None if self.labels is None else self.labels(keys)
        if labels is None:
            return self
        return replace(self, model=_Labelled(self.model, labels), labels=None)

    @property
    def reverse(self) -> Reverse:
        """What a conditioning method asks."""
        return _Reverse(self)

    def scheduled(self, start: int | None) -> "Prior":
        """The prior whose process has `num_steps` steps, the first one at timestep `start` or, for
        None, the last of the process; itself where num_steps is None.

        The noise levels sqrt((1 - acp) / acp) are those of Karras et al. 2022, eq. 5, rho = 7,
        rounded to timesteps that differ.
        """
        if self.num_steps is None:
            return self
        levels = np.sqrt(1 / self.diffusion.alphas_cumprod - 1)
        last = len(levels) - 1 if start is None else start
        last = max(last, self.num_steps - 1)
        ends = levels[0] ** (1 / _RHO), levels[last] ** (1 / _RHO)
        wanted = np.linspace(*ends, self.num_steps) ** _RHO
        wanted[-1] = levels[last]  # also of a single step
        steps = np.interp(wanted, levels, np.arange(len(levels))).round().astype(int)
        ranks = np.arange(self.num_steps)
        steps = np.maximum.accumulate(steps - ranks) + ranks  # each at least one above the last
        steps = np.minimum(steps, last - ranks[::-1])
        return replace(self, diffusion=self.diffusion.keep(steps), num_steps=None)

    def start_timestep(
        self, method: ConditioningMethod, operator: Operator, noiser: NoiseModel
    ) -> int | None:
        """Where sampling can begin from the first guess of `method`: the first timestep whose noise
        drowns the error that such a guess has for natural images (of a black one, where the
        operator has none). None: sampling begins from noise, or `num_steps` is None.

        operator: of one image, where it differs from image to image
        """
        if self.num_steps is None or method.init == "noise":
            return None
        context = operator.context
        like = torch.empty(0, device=context.device, dtype=context.dtype)

        def guess(images: Tensor, first: int) -> Tensor:
            measured = enumerate(operator(images), first)
            y = torch.stack([noiser(m, np.random.RandomState(seed)) for seed, m in measured])
            sigma = noiser.equivalent_sigma(y, operator.measured_values(y))
            u = method.first_guess(operator, y, sigma)
            return torch.zeros_like(images) if u is None else u

        at_a_time = 1 if operator.differs_by_image else None
        with torch.no_grad():
            error = expected_error(guess, context.shape, like, at_a_time)
        # Rounded, so that images whose masks are alike can be restored in one batch.
        error = 2 ** (round(2 * math.log2(max(error, _LEAST_ERROR))) / 2)
        acp = self.diffusion.alphas_cumprod
        return min(int(np.searchsorted(1 / acp - 1, error / _DROWNED)), len(acp) - 1)

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


class _Labelled:
    """`model` with its third argument."""

    def __init__(self, model: Callable[..., Tensor], labels: Sequence[int]) -> None:
        self.model, self._labels = model, torch.tensor(labels)

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        self._labels = self._labels.to(x_t.device)
        return self.model(x_t, timesteps, self._labels)


@dataclass(frozen=True)
class _Reverse:
    prior: Prior

    def __call__(self, x_t: Tensor, t: int) -> tuple[PriorStep, Transition]:
        prior = self.prior
        time = torch.full((len(x_t),), t, device=x_t.device)
        step = prior.diffusion.predict(prior.model, x_t, time)
        options = {"eta": prior.eta} if prior.sampler == "ddim" else {}
        move = SAMPLERS.get(prior.sampler)(prior.diffusion, step, x_t, time, **options)
        return step, move

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.prior.diffusion.denoise(self.prior.model, x, sigma)


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Gradients on for what runs inside, also where the caller has them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@gradients()
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
