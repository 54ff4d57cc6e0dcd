"""A prior as a folder of its own, as diffusers lays it out."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from guided_diffusion.gaussian_diffusion import linear_betas
from models.checkpoint import load_state, unwrapped
from models.priors.guided_diffusion import GuidedDiffusionPrior
from models.priors.hub import OWN_CLASS, WEIGHTS
from models.priors.schedulers import MEAN_TYPES
from util.atomic import write
from util.config.run_config import DiffusionConfig, load_diffusion_config, load_model_config
from util.errors import UserError
from util.plugins import optional

_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
_PREDICTIONS = {ours: theirs for theirs, ours in MEAN_TYPES.items()}


def export_prior(
    model_config: str, diffusion_config: str, folder: Path, card: str | None = None
) -> None:
    """`export` of the prior that two config files describe; UserError for one of another kind."""
    model = load_model_config(model_config)
    if not isinstance(model, GuidedDiffusionPrior):
        raise UserError(f"{model_config}: only networks of prior: guided_diffusion are exported")
    export(model, load_diffusion_config(diffusion_config), folder, card)


def export(
    model: GuidedDiffusionPrior, diffusion: DiffusionConfig, folder: Path, card: str | None = None
) -> None:
    """Write the prior into `folder`, which is made; files of the same names are replaced.

    card: text of README.md; None: what the configs tell

    Raises UserError for weights that do not fit the architecture, and for what such a folder cannot
    say: classes, other schedules.
    """
    if model.class_cond:
        raise UserError("class_cond: such a folder has no place for the class")
    scheduler = _scheduler(diffusion, model.learn_sigma)
    network = model.load()  # that the weights fit
    stored = unwrapped(load_state(model.model_path), network.state_dict().keys(), model.model_path)
    config = {"_class_name": OWN_CLASS, **dataclasses.asdict(model.unet)}
    count = sum(p.numel() for p in network.parameters())
    files: dict[str, bytes | str] = {
        f"{WEIGHTS}.safetensors": _safetensors(stored),
        "config.json": _json(config),
        "scheduler_config.json": _json(scheduler),
        "README.md": card or _card(folder.name, model, scheduler, count),
    }
    for name, data in files.items():
        write(folder / name, data)


def _safetensors(state: Mapping[str, Tensor]) -> bytes:
    package = optional(
        "safetensors.torch", "needs safetensors: pip install -r requirements-hub.txt"
    )
    return package.save({name: value.contiguous() for name, value in state.items()})


def _scheduler(diffusion: DiffusionConfig, learns_variance: bool) -> dict[str, Any]:
    """What a scheduler_config.json says of this process."""
    if diffusion.noise_schedule not in _SCHEDULES or diffusion.model_mean_type not in _PREDICTIONS:
        raise UserError(
            f"noise_schedule {diffusion.noise_schedule} and model_mean_type "
            f"{diffusion.model_mean_type} have no name in a scheduler_config.json"
        )
    if diffusion.rescale_timesteps or diffusion.dynamic_threshold:
        raise UserError("rescale_timesteps and dynamic_threshold have no name in diffusers")
    betas = linear_betas(diffusion.steps)
    variance = diffusion.model_var_type
    if learns_variance != variance.startswith("learned"):
        variance = "learned_range" if learns_variance else "fixed_small"
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.steps,
        "beta_schedule": _SCHEDULES[diffusion.noise_schedule],
        "beta_start": betas[0],
        "beta_end": betas[-1],
        "prediction_type": _PREDICTIONS[diffusion.model_mean_type],
        "variance_type": variance,
        "clip_sample": diffusion.clip_denoised,
        "timestep_spacing": "linspace",
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _card(name: str, model: GuidedDiffusionPrior, scheduler: Mapping[str, Any], count: int) -> str:
    return f"""---
tags: [diffusion, image-restoration]
---
# {name}

An unconditional diffusion prior of images of {model.image_size}x{model.image_size}: a UNet of the
guided-diffusion kind with {count / 1e6:.1f} million parameters. Its process has
{scheduler["num_train_timesteps"]} steps of the {scheduler["beta_schedule"]} schedule (prediction:
{scheduler["prediction_type"]}, variance: {scheduler["variance_type"]}).

To restore photographs with it by DPPS, give a model config that holds

```yaml
prior: diffusers
model_path: {name}
```

What it was trained on, and under which licence it may be used, is not known here: say it in this
place.
"""
