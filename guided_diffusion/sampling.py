"""The reverse process: from a measurement to restored images.

from guided_diffusion.sampling import load_prior, restore
prior = load_prior(
    "configs/demo_model_config.yaml", "configs/demo_diffusion_config.yaml", operator="gaussian_blur"
)
operator = GaussianBlur(61, 3.0, context=OperatorContext(256, 256))
images = restore(y, operator, prior)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import guided_diffusion.peer_methods  # noqa: F401 (registers its methods)
from guided_diffusion.condition_methods import (
    CONDITIONING,
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
from guided_diffusion.measurements import OPERATORS, Operator
from guided_diffusion.noise_models import GaussianNoise, NoiseModel
from guided_diffusion.precision import Execution, accelerate
from guided_diffusion.tiling import distance_factor
from util.checkpoint import load_model
from util.config import parse_component
from util.errors import UserError
from util.randomness import ImageKey, NoiseSource, PerImageNoise
from util.run_config import (
    DiffusionConfig,
    ModelConfig,
    load_diffusion_config,
    load_model_config,
)

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

    def with_process(self, diffusion: DiffusionConfig) -> "Prior":
        """The same network with another process and sampler."""
        return replace(
            self, diffusion=diffusion.build(), sampler=diffusion.sampler, eta=diffusion.eta
        )

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


def load_prior(
    model_config: str,
    diffusion_config: str,
    device: torch.device | str = "cpu",
    execution: Execution | None = None,
    *,
    operator: str | None = None,
) -> Prior:
    """The prior that two config files describe, its weights on `device`.

    operator: name of the operator whose guidance in the diffusion config, if there is one, gives
      the steps and params
    """
    diffusion, params = load_diffusion_config(diffusion_config), {}
    if operator is not None:
        OPERATORS.get(operator, "load_prior")
        diffusion, params = diffusion.guided(operator)
    prior = build_prior(load_model_config(model_config), diffusion, device, execution)
    return replace(prior, params=params)


def build_prior(
    model: ModelConfig,
    diffusion: DiffusionConfig,
    device: torch.device | str,
    execution: Execution | None = None,
) -> Prior:
    """The prior of checked configs, its weights on `device`, run as `execution` says.

    Default: the precision in the model config, not compiled. Raises UserError for a checkpoint
    that does not fit and for a precision that the device lacks.
    """
    device = torch.device(device)
    execution = (execution or Execution()).resolve(model.unet.use_fp16, device)
    return Prior(
        accelerate(load_model(model.unet, model.model_path), execution, device),
        diffusion.build(),
        diffusion.sampler,
        diffusion.eta,
        model.unet.size_multiple(),
        model.unet.image_size,
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


def restore(
    y: Tensor,
    operator: Operator,
    prior: Prior,
    *,
    method: str = "dpps",
    params: Mapping[str, Any] | None = None,
    noiser: NoiseModel | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Restore a batch of measurements.

    y: measurements [B, ...] of images in [-1, 1], on the prior's device
    operator: the A of y = A(x), bound to these images where it holds masks
    method, params: conditioning method and its parameters, as in a task config; params default to
      the prior's for dpps, and to the method's defaults for others
    noiser: noise model, which decides the distance (default: Gaussian)
    seed, names: what an image draws depends on (seed, its name) alone; names default to "0", "1"
    noise: another source of all random numbers
    callback: called after every step with (t, StepResult)

    Returns images [B, 3, H, W], nominally in [-1, 1], not clamped. A guidance scale means the same
    for every size (see `distance_factor`). Raises UserError for unknown methods or parameters, for
    sizes the network cannot take, for names that are not one for each measurement, and for methods
    that cannot work with the operator or the noise.
    """
    if params is None and method == "dpps":
        params = prior.params
    component = parse_component(CONDITIONING, method, params, "conditioning.params")
    chosen = component.build(CONDITIONING)
    noiser = GaussianNoise() if noiser is None else noiser
    prior.check_method(chosen)
    chosen.check(operator, noiser)
    height, width = operator.context.height, operator.context.width
    if height % prior.size_multiple or width % prior.size_multiple:
        raise UserError(
            f"images of {height}x{width}: the network needs sides that are multiples of "
            f"{prior.size_multiple}"
        )
    if noise is None:
        names = [str(i) for i in range(len(y))] if names is None else names
        if len(names) != len(y):
            raise UserError(f"restore: {len(names)} name(s) for {len(y)} measurement(s)")
        noise = PerImageNoise([ImageKey(seed, name) for name in names], y.device)
    shape, extent = (3, height, width), prior.extent(height, width)
    problem = Problem(y, operator, noiser, prior.diffusion, shape, extent)
    return sample(prior, chosen, problem, noise, callback)
