"""The effective settings of a run, for hashes: a stated default is the same as one left out."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from data.dataloader import DATASETS
from data.masks import MaskConfig
from guided_diffusion.condition_methods import CONDITIONING
from guided_diffusion.measurements import OPERATORS
from guided_diffusion.noise_models import NOISES
from guided_diffusion.pretrained import PRIORS, Pretrained
from util.config.run_config import DiffusionConfig, RunConfig, parse_named
from util.config.schema import Component
from util.hashing import path_mark
from util.registry import ConfigKey, Registry, config_keys

_NOT_READ = {"root"}  # folders of images: what they hold is known image by image


def effective_settings(config: RunConfig) -> dict[str, Any]:
    """The three configs with every key, those that are left out with their defaults.

    Files that settings name (kernel, mask) are replaced by marks of what they hold. The folder
    of the images stands as it is written; the checkpoint is not among the settings.
    """
    task = config.task
    method = task.conditioning
    return {
        "model": _model(config),
        "diffusion": _diffusion(config.diffusion),
        "task": {
            "conditioning": {"method": method.name, "params": _method_params(method)},
            "data": _component(DATASETS, task.data),
            "operator": _component(OPERATORS, task.operator),
            "noise": _component(NOISES, task.noise),
            "mask_opt": None if task.mask_opt is None else _mask(task.mask_opt),
            # Results from before it was done stay valid where it is not.
            **({"keep_known": True} if task.keeps_known else {}),
        },
    }


def _model(config: RunConfig) -> dict[str, Any]:
    """What the prior says of itself; where its kind does not, the keys of its model config."""
    if type(config.model).settings is not Pretrained.settings:
        return config.model.settings()
    keys = dict(config.raw["model"])
    kind = keys.pop("prior")
    settings = Component(kind, keys).settings(PRIORS)
    return {"prior": kind, **_contents(settings, PRIORS.keys(kind))}


def _diffusion(diffusion: DiffusionConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(diffusion)
    del settings["guidance"]  # what applies of it stands in the other keys and in conditioning
    settings["timestep_respacing"] = str(diffusion.timestep_respacing or diffusion.steps)
    if diffusion.num_steps is None:
        del settings["num_steps"]  # results from before there was the key stay valid
    return settings


def _method_params(method: Component) -> dict[str, Any]:
    settings = _params(CONDITIONING, method)
    # Results from before there were these keys stay valid, unless they began from an inverse: that
    # is another image now.
    if settings.get("guidance_rule") == "published":
        del settings["guidance_rule"]
    if method.name == "dpps":
        settings["scale_by_steps"] = False
    elif settings.get("init") == "noise":
        del settings["init"]
    if settings.get("init") == "inverse":
        settings["inverse"] = "natural images"
    return settings


def _mask(mask: MaskConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(mask)
    del settings["keep_known"]  # see keeps_known
    if mask.mask_is == "kept":
        del settings["mask_is"]
    if mask.folder is not None:  # a mask in it belongs to its image, like the image's own file
        return {**settings, "mask": "a folder"}
    return _contents(settings, config_keys(MaskConfig))


def _component(registry: Registry[Any], component: Component) -> dict[str, Any]:
    settings = {"name": component.name, **_params(registry, component)}
    if component.name == "chain":
        parts = [parse_named(registry, part, "parts") for part in settings["parts"]]
        settings["parts"] = [_component(registry, part) for part in parts]
    return settings


def _params(registry: Registry[Any], component: Component) -> dict[str, Any]:
    settings = _contents(component.settings(registry), registry.keys(component.name))
    if settings.get("kernel_is", "") is None:
        del settings["kernel_is"]  # results from before there was the key stay valid
    return settings


def _contents(settings: Mapping[str, Any], keys: Mapping[str, ConfigKey]) -> dict[str, Any]:
    """`settings` with paths replaced by marks of what lies there."""
    return {k: path_mark(v) if _is_path(keys[k], v) else v for k, v in settings.items()}


def _is_path(key: ConfigKey, value: Any) -> bool:
    """Whether the value names something on the disk whose content counts.

    Literals ("crop") are words, whatever lies in the working folder under their name.
    """
    free_text = key.type is Any or str in (key.type, *get_args(key.type))
    return (
        free_text
        and key.name not in _NOT_READ
        and isinstance(value, str)
        and value != ""
        and Path(value).exists()
    )
