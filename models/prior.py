"""Priors from config files, and restoring with them from Python.

from models.prior import load_prior, restore
prior = load_prior("configs/demo_model_config.yaml", "configs/demo_diffusion_config.yaml")
operator = GaussianBlur(61, 3.0, context=OperatorContext(256, 256))
images = restore(y, operator, prior)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from guided_diffusion.condition_methods import CONDITIONING, ConditioningMethod
from guided_diffusion.measurements import OPERATORS, Operator
from guided_diffusion.noise_models import GaussianNoise, NoiseModel
from guided_diffusion.precision import AcceleratedNetwork, Execution, accelerate, uncompiled
from guided_diffusion.pretrained import Pretrained
from guided_diffusion.problem import Problem
from guided_diffusion.sampling import Callback, Prior, gradients, sample
from guided_diffusion.unet import UNetModel
from util.config.run_config import (
    DiffusionConfig,
    check_tuned,
    load_diffusion_config,
    load_model_config,
    tuned,
)
from util.config.schema import parse_component
from util.errors import UserError
from util.randomness import ImageKey, NoiseSource, PerImageNoise

_TOLD = 300  # characters of another program's message


def load_prior(
    model_config: str,
    diffusion_config: str,
    device: torch.device | str = "cpu",
    execution: Execution | None = None,
    *,
    operator: str | None = None,
) -> Prior:
    """The prior that two config files describe, its weights on `device`.

    operator: name of the operator whose `guidance` in the diffusion config, if there is any, gives
      the steps and params; with num_steps it has no part in anything
    """
    diffusion = load_diffusion_config(diffusion_config)
    params: dict[str, Any] = {}
    if operator is not None:
        OPERATORS.get(operator, "load_prior")
        if diffusion.num_steps is None:
            diffusion, params = diffusion.guided(operator)
    prior = build_prior(load_model_config(model_config), diffusion, device, execution)
    return replace(prior, params=params)


def build_prior(
    model: Pretrained,
    diffusion: DiffusionConfig,
    device: torch.device | str,
    execution: Execution | None = None,
) -> Prior:
    """The prior of checked configs, its weights on `device`, run as `execution` says.

    Default: the precision in the model config, not compiled. Raises UserError for a checkpoint
    that does not fit and for a precision that the device lacks.
    """
    device = torch.device(device)
    return Prior(
        _loaded(model, execution or Execution(), device),
        diffusion.build(model),
        diffusion.sampler,
        diffusion.eta,
        model.size_multiple(),
        model.image_size,
        num_steps=diffusion.num_steps,
        channels=model.channels,
        labels=model.labels,
    )


def _loaded(model: Pretrained, execution: Execution, device: torch.device) -> AcceleratedNetwork:
    """The network, tried once where it is not this project's own; UserError where that fails."""
    labels = model.labels([ImageKey(0, "")])
    told = [] if labels is None else [torch.tensor(labels, device=device)]
    try:
        network = model.load()
        run = accelerate(network, execution, device, model, told)
        if isinstance(network, UNetModel):
            return run
        x = torch.zeros(1, model.channels, model.image_size, model.image_size, device=device)
        with torch.no_grad():
            found = tuple(uncompiled(run)(x, torch.zeros(1, device=device), *told).shape)
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        name = type(model).__name__
        raise UserError(f"{name}: {type(error).__name__}: {str(error)[:_TOLD]}") from error
    expected = (1, model.channels * (1 + model.learns_variance), *x.shape[2:])
    if found != expected:
        raise UserError(
            f"{type(model).__name__}: of images {tuple(x.shape)} the network makes {found}; "
            f"expected {expected}"
        )
    return run


def with_process(prior: Prior, diffusion: DiffusionConfig, model: Pretrained) -> Prior:
    """The same network with another process and sampler.

    model: what the network was loaded from
    """
    return replace(
        prior,
        diffusion=diffusion.build(model),
        sampler=diffusion.sampler,
        eta=diffusion.eta,
        num_steps=diffusion.num_steps,
    )


@gradients()
def restore(
    y: Tensor,
    operator: Operator,
    prior: Prior,
    *,
    method: str | ConditioningMethod = "dpps",
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
      the prior's for dpps, and to the method's defaults for others; with the prior's num_steps, to
      guidance that needs no scale. Or a method that is built already, which has no params
    noiser: noise model, which decides the distance (default: Gaussian)
    seed, names: what an image draws depends on (seed, its name) alone; names default to "0", "1"
    noise: another source of all random numbers
    callback: called after every step with (t, StepResult)

    Returns images [B, C, H, W], nominally in [-1, 1], not clamped. A guidance scale means the same
    for every size (see `distance_factor`). Raises UserError for unknown methods or parameters, for
    sizes the network cannot take, for names that are not one for each measurement, for methods
    that cannot work with the operator or the noise, and for a scale or max_timestep with the
    prior's num_steps.
    """
    if isinstance(method, ConditioningMethod):
        if params is not None:
            raise UserError("restore: params belong to a method's name, not to a method")
        chosen = method
    else:
        chosen = build_method(method, params, prior)
    noiser = GaussianNoise() if noiser is None else noiser
    prior.check_method(chosen)
    chosen.check(operator, noiser)
    channels, height, width = operator.context.shape
    if channels != prior.channels:
        raise UserError(
            f"the operator is for images of {channels} channel(s), the prior for {prior.channels}; "
            "give OperatorContext channels"
        )
    if height % prior.size_multiple or width % prior.size_multiple:
        raise UserError(
            f"images of {height}x{width}: the network needs sides that are multiples of "
            f"{prior.size_multiple}"
        )
    names = [str(i) for i in range(len(y))] if names is None else names
    if len(names) != len(y):
        raise UserError(f"restore: {len(names)} name(s) for {len(y)} measurement(s)")
    keys = [ImageKey(seed, name) for name in names]
    starts = _starts(prior, chosen, operator, noiser, len(y))
    if len(set(starts)) > 1 and (noise is not None or callback is not None):
        raise UserError(
            "restore: with these masks sampling begins at different timesteps; restore the images "
            "one at a time, or without noise and callback"
        )

    def sampled(start: int | None, keys: list[ImageKey], y: Tensor, operator: Operator) -> Tensor:
        told = prior.for_images(keys).scheduled(start)
        shape, extent = operator.context.shape, prior.extent(height, width)
        problem = Problem(y, operator, noiser, told.diffusion, shape, extent)
        source = PerImageNoise(keys, y.device) if noise is None else noise
        return sample(told, chosen, problem, source, callback)

    if len(set(starts)) == 1:
        return sampled(starts[0], keys, y, operator)
    restored = y.new_empty(len(y), *operator.context.shape)
    for start in set(starts):
        images = [i for i, other in enumerate(starts) if other == start]
        own = [keys[i] for i in images]
        restored[images] = sampled(start, own, y[images], operator.take(images))
    return restored


def _starts(
    prior: Prior, method: ConditioningMethod, operator: Operator, noiser: NoiseModel, count: int
) -> list[int | None]:
    """Where sampling begins for each of the images."""
    if prior.num_steps is None or count == 1 or not operator.differs_by_image:
        return [prior.start_timestep(method, operator, noiser)] * count
    return [prior.start_timestep(method, operator.take([i]), noiser) for i in range(count)]


def build_method(name: str, params: Mapping[str, Any] | None, prior: Prior) -> ConditioningMethod:
    """The method that `restore` takes for this name and these params."""
    if params is None and name == "dpps":
        params = prior.params
    if prior.num_steps is not None and name in CONDITIONING.names():
        given, params = params or {}, tuned(name, params or {})
        check_tuned(params, gives_scale="scale" in given)
    component = parse_component(CONDITIONING, name, params, "conditioning.params")
    return component.build(CONDITIONING)
