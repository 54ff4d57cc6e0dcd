"""The three config files of a run as typed objects, and how they are combined."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.dataloader import DATASETS
from data.masks import MaskConfig
from guided_diffusion.condition_methods import CONDITIONING
from guided_diffusion.gaussian_diffusion import SAMPLERS, SCHEDULES, GaussianDiffusion
from guided_diffusion.measurements import OPERATORS, Inpainting, Operator, OperatorContext
from guided_diffusion.noise_models import NOISES
from guided_diffusion.posterior_mean_variance import MEAN_TYPES, VARIANCE_TYPES
from guided_diffusion.pretrained import PRIORS, Pretrained
from util.config.overrides import apply_overrides
from util.config.schema import (
    Component,
    convert,
    parse_component,
    parse_dataclass,
    parse_keys,
    read_yaml,
)
from util.config.shipped import config_path, find_config
from util.errors import UserError
from util.plugins import import_all

# By name: what a config may name is registered there, and nothing else of it is used here.
for package in ("guided_diffusion", "models.priors"):
    import_all(package)

# Parameters that conditioning methods have with num_steps, where nothing else is said.
_TUNED = {"guidance_rule": "line_search", "init": "inverse"}


def tuned(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` of the method for a given number of steps: with guidance that needs no scale, and
    from an inverse of the measurement, as far as it has these and `params` do not say more."""
    keys = CONDITIONING.keys(method)
    return {**{key: value for key, value in _TUNED.items() if key in keys}, **params}


def check_tuned(params: Mapping[str, Any], *, gives_scale: bool, num_steps: bool = True) -> None:
    """UserError for what has no meaning for a given number of steps, or without a scale.

    gives_scale: whether somebody asked for a scale, and did not only leave it in a config
    """
    if num_steps and params.get("max_timestep") is not None:
        raise UserError(
            "conditioning.params.max_timestep: with num_steps the start follows from the "
            "measurement; leave it out, or give timestep_respacing instead of num_steps"
        )
    if params.get("guidance_rule") == "line_search" and gives_scale:
        raise UserError(
            "conditioning.params.scale: guidance_rule line_search has no scale; leave it out, or "
            "set conditioning.params.guidance_rule to published as well (on the command line --set "
            "task.conditioning.params.guidance_rule=published)"
        )


# Keys that GaussianDiffusion.create takes
_OF_THE_PROCESS = (
    *("steps", "noise_schedule", "timestep_respacing", "model_mean_type", "model_var_type"),
    *("dynamic_threshold", "clip_denoised", "rescale_timesteps"),
)


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion process and sampler; the keys of a published diffusion config, and three more."""

    sampler: str = "ddpm"
    steps: int = 1000
    noise_schedule: str = "linear"
    model_mean_type: str = "epsilon"
    model_var_type: str = "learned_range"
    dynamic_threshold: bool = False
    clip_denoised: bool = True
    rescale_timesteps: bool = False
    timestep_respacing: int | str = ""
    # Instead of timestep_respacing: that many steps from where the measurement lets sampling begin,
    # with guidance that needs no scale
    num_steps: int | None = None
    eta: float = 0.0  # of the ddim sampler
    # What a dpps task uses here, by operator: conditioning.params, which replace those of the task
    # config, and timestep_respacing, which replaces the one above
    guidance: dict[str, dict[str, Any]] = field(default_factory=dict)

    def guided(self, operator: str) -> tuple["DiffusionConfig", dict[str, Any]]:
        """The config and the conditioning.params of a dpps task with this operator."""
        params = dict(self.guidance.get(operator, {}))
        respacing = params.pop("timestep_respacing", self.timestep_respacing)
        return replace(self, timestep_respacing=respacing), params

    def build(self, model: Pretrained | None = None) -> GaussianDiffusion:
        """The diffusion process, of the prior in `model` where it knows its own."""
        options = {key: getattr(self, key) for key in _OF_THE_PROCESS}
        process = (model or Pretrained()).process(options)
        if self.num_steps is not None and not 1 <= self.num_steps <= process.num_timesteps:
            raise UserError(
                f"diffusion config: num_steps {self.num_steps}: expected 1 to "
                f"{process.num_timesteps}, the steps of the process"
            )
        return process


@dataclass(frozen=True)
class TaskConfig:
    """What is measured, with what noise, of which images, and how it is restored."""

    conditioning: Component
    data: Component
    operator: Component
    noise: Component
    mask_opt: MaskConfig | None = None

    @property
    def keeps_known(self) -> bool:
        """Whether the pixels that a mask keeps are copied into the results."""
        operator: Any = OPERATORS.get(self.operator.name)
        if not (isinstance(operator, type) and issubclass(operator, Inpainting)):
            return False
        sigma = 0.0 if self.noise.name == "clean" else self.noise.settings(NOISES).get("sigma")
        measured = getattr(DATASETS.get(self.data.name), "measured", False)
        return (self.mask_opt or MaskConfig()).keeps_known(sigma, measured)


@dataclass(frozen=True)
class RunConfig:
    """All three, and the plain mapping they were read from (overrides included)."""

    model: Pretrained
    diffusion: DiffusionConfig
    task: TaskConfig
    raw: dict[str, Any]


def load_run_config(
    model_path: str | Path,
    diffusion_path: str | Path,
    task_path: str | Path,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Read and check the three files. `overrides` are "SECTION.KEY=VALUE" with SECTION model,
    diffusion or task; the diffusion config's `guidance` comes before them."""
    raw = {
        "model": _read_model(model_path),
        "diffusion": read_yaml(diffusion_path),
        "task": _read_task(task_path),
    }
    for override in overrides:
        section = override.partition("=")[0].strip().split(".")[0]
        if section not in raw:
            raise UserError(
                f"--set {override}: expected SECTION.KEY=VALUE, SECTION one of {', '.join(raw)}"
            )
    _drop_other_steps(raw["diffusion"], overrides)
    wanted = copy.deepcopy(raw)
    apply_overrides(wanted, overrides)
    for section, value in wanted.items():
        if not isinstance(value, dict):
            raise UserError(f"--set {section}: {value} is a single value, not a section")
    _drop_params_of_another_method(raw["task"], wanted["task"])
    few = wanted["diffusion"].get("num_steps") is not None
    if not few:
        _guide(raw, wanted)
    apply_overrides(raw, overrides)
    if few:
        _tune(raw["task"])
    model = _parse_model(raw["model"], str(model_path))
    config = RunConfig(
        model,
        _parse_diffusion(raw["diffusion"], str(diffusion_path), model),
        _parse_task(raw["task"], str(task_path)),
        raw,
    )
    method = config.task.conditioning
    stepped, gives_scale = config.diffusion.num_steps is not None, _gives_scale(overrides)
    check_tuned(method.params, gives_scale=gives_scale, num_steps=stepped)
    process = config.diffusion.build(config.model)
    if process.learns_variance and not config.model.learns_variance:
        raise UserError(
            f"model_var_type {process.model_var_type} needs a model config with learn_sigma: True"
        )
    return config


def _read_model(path: str | Path) -> dict[str, Any]:
    raw = read_yaml(path)
    if "model_path" in raw:
        raw["model_path"] = config_path(raw["model_path"], path)
    return raw


def _read_task(path: str | Path) -> dict[str, Any]:
    raw = read_yaml(path)
    for section, key in (
        (_within(raw, "data"), "root"),
        (_within(raw, "measurement", "operator"), "opt_yml_path"),
    ):
        if key in section:
            section[key] = config_path(section[key], path)
    return raw


def _within(raw: Any, *keys: str) -> dict[str, Any]:
    """The section of `raw` at these keys; empty where there is none. Sections of other types are
    refused when they are parsed, later."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw if isinstance(raw, dict) else {}


def load_model_config(path: str | Path) -> Pretrained:
    """The prior of the model config at `path`, or of the one that ships under this name."""
    path = find_config(path, "model")
    return _parse_model(_read_model(path), str(path))


def load_diffusion_config(path: str | Path) -> DiffusionConfig:
    """The diffusion config at `path`, or the one that ships under this name."""
    path = find_config(path, "diffusion")
    return _parse_diffusion(read_yaml(path), str(path))


def _parse_model(raw: dict[str, Any], where: str) -> Pretrained:
    raw = dict(raw)
    kind = convert(raw.pop("prior", "guided_diffusion"), str, f"{where}: prior")
    PRIORS.get(kind, where)
    keys = parse_keys(PRIORS.keys(kind), raw, where)
    try:
        model = PRIORS.get(kind)(**keys)
    except UserError:
        raise
    except Exception as error:  # of a plug-in
        raise UserError(f"{where}: prior {kind}: {type(error).__name__}: {error}") from error
    size, channels = getattr(model, "image_size", None), getattr(model, "channels", None)
    if not isinstance(size, int) or size < 1 or channels not in (1, 3):
        raise UserError(
            f"{where}: prior {kind}: image_size is {size} and channels {channels}; a prior has to "
            "say the side of its images, in pixels, and whether they have 3 channels or 1"
        )
    return model


def _parse_diffusion(
    raw: dict[str, Any], where: str, model: Pretrained | None = None
) -> DiffusionConfig:
    config = parse_dataclass(DiffusionConfig, raw, where)
    for registry, name in (
        (SAMPLERS, config.sampler),
        (SCHEDULES, config.noise_schedule),
        (MEAN_TYPES, config.model_mean_type),
        (VARIANCE_TYPES, config.model_var_type),
    ):
        registry.get(name, where)
    if config.steps < 1 or not 0 <= config.eta <= 1:
        raise UserError(f"{where}: steps must be at least 1 and eta in [0, 1]")
    if config.eta and config.sampler != "ddim":
        raise UserError(f"{where}: eta belongs to sampler ddim; {config.sampler} has none")
    betas = SCHEDULES.get(config.noise_schedule)(config.steps)
    if not ((betas > 0) & (betas < 1)).all():
        raise UserError(
            f"{where}: steps: {config.steps} is too few for the {config.noise_schedule} schedule; "
            "leave steps at 1000 and choose fewer with timestep_respacing"
        )
    if config.num_steps is not None and config.timestep_respacing:
        raise UserError(
            f"{where}: num_steps and timestep_respacing both say how many steps; give one"
        )
    # With num_steps it has no part in anything.
    guidance = config.guidance if config.num_steps is None else {}
    for name, given in guidance.items():
        at = f"{where}: guidance: {name}"
        OPERATORS.get(name, f"{where}: guidance")
        if "timestep_respacing" in given:
            convert(given["timestep_respacing"], int | str, f"{at}: timestep_respacing")
        guided, params = config.guided(name)
        parse_component(CONDITIONING, "dpps", params, at)
        guided.build(model)
    config.build(model)  # a respacing that cannot be done is found here, not after the loading
    return config


def _sets(overrides: Sequence[str], key: str) -> bool:
    """Whether one of the overrides sets `key` itself."""
    return any(override.partition("=")[0].strip() == key for override in overrides)


def _gives_scale(overrides: Sequence[str]) -> bool:
    given: dict[str, Any] = {}
    of_params = [o for o in overrides if o.strip().startswith("task.conditioning.params")]
    apply_overrides(given, of_params)
    return "scale" in _within(given, "task", "conditioning", "params")


def _drop_other_steps(diffusion: dict[str, Any], overrides: Sequence[str]) -> None:
    """Where an override says how many steps, leave out what the file says of them."""
    keys = ("num_steps", "timestep_respacing")
    given = [override for override in overrides if not override.strip().endswith("=null")]
    chosen = [key for key in keys if _sets(given, f"diffusion.{key}")]
    if chosen == ["num_steps"]:
        diffusion.pop("timestep_respacing", None)
    elif chosen == ["timestep_respacing"]:
        diffusion.pop("num_steps", None)


def _tune(task: dict[str, Any]) -> None:
    """Give the task's method its `tuned` params."""
    conditioning = _within(task, "conditioning")
    method, params = conditioning.get("method"), conditioning.get("params") or {}
    if method in CONDITIONING.names() and isinstance(params, dict):
        conditioning["params"] = tuned(method, params)


def _drop_params_of_another_method(task: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Where an override chooses another method, keep of the file's params what it has as well."""
    old, new = (_within(c, "conditioning") for c in (task, wanted))
    name, params = new.get("method"), old.get("params")
    if name != old.get("method") and name in CONDITIONING.names() and isinstance(params, dict):
        known = CONDITIONING.keys(name)
        old["params"] = {key: value for key, value in params.items() if key in known}


def _guide(raw: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Write what the wanted diffusion config has of guidance for the wanted operator, if the method
    is dpps, into the sections that it concerns."""
    task = wanted["task"]
    operator = _within(task, "measurement", "operator").get("name")
    given = dict(_within(wanted["diffusion"], "guidance", str(operator)))
    if not given or _within(task, "conditioning").get("method") != "dpps":
        return
    if "timestep_respacing" in given:
        raw["diffusion"]["timestep_respacing"] = given.pop("timestep_respacing")
    conditioning = raw["task"].setdefault("conditioning", {})
    params = conditioning.get("params") or {}
    if isinstance(params, dict):
        conditioning["params"] = {**params, **given}


_LARGEST_SIGMA = 2.0


@dataclass(frozen=True)
class _Task:
    """A task config as it stands in its file."""

    conditioning: Any
    data: Any
    measurement: Any


@dataclass(frozen=True)
class _Conditioning:
    method: Any
    params: Any = None


@dataclass(frozen=True)
class _Measurement:
    operator: Any
    noise: Any
    mask_opt: Any = None


def _parse_task(raw: dict[str, Any], where: str) -> TaskConfig:
    task = parse_dataclass(_Task, raw, where)
    conditioning = parse_dataclass(_Conditioning, task.conditioning, f"{where}: conditioning")
    measurement = parse_dataclass(_Measurement, task.measurement, f"{where}: measurement")
    method, params, mask = conditioning.method, conditioning.params, measurement.mask_opt
    noise = parse_named(NOISES, measurement.noise, f"{where}: measurement.noise")
    sigma = noise.params.get("sigma")
    if isinstance(sigma, float) and sigma > _LARGEST_SIGMA:
        raise UserError(
            f"{where}: measurement.noise: sigma {sigma:g} is on the range [-1, 1], where 2 is all "
            f"there is from black to white; {sigma:g} of 255 levels are {sigma / 127.5:.3g}"
        )
    return TaskConfig(
        parse_component(CONDITIONING, method, params, f"{where}: conditioning.params"),
        parse_named(DATASETS, task.data, f"{where}: data"),
        parse_named(OPERATORS, measurement.operator, f"{where}: measurement.operator"),
        noise,
        None if mask is None else parse_dataclass(MaskConfig, mask, f"{where}: mask_opt"),
    )


def parse_named(registry: Any, raw: Any, where: str) -> Component:
    """A section whose `name` chooses the component and whose other keys are its settings."""
    if not isinstance(raw, dict):
        raise UserError(f"{where}: expected keys and values with name")
    if "name" not in raw:
        raise UserError(f"{where}: missing key name")
    rest = {k: v for k, v in raw.items() if k != "name"}
    return parse_component(registry, raw["name"], rest, where)


def build_part(section: Any, context: OperatorContext) -> Operator:
    """The operator in a section of `parts`, for OperatorContext.build_part."""
    part = parse_named(OPERATORS, section, "measurement.operator: parts")
    return part.build(OPERATORS, context=context)
