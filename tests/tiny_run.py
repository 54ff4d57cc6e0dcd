"""A whole run of the program with a network small enough for tests."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

import sample_condition
from models.checkpoint import save_weights
from tests import golden_data

SIZE = 32
MODEL = {
    "image_size": SIZE,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,1",
    "learn_sigma": True,
    "attention_resolutions": "",
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
OPERATORS = {
    "super_resolution": {"name": "super_resolution", "scale_factor": 4},
    "gaussian_blur": {"name": "gaussian_blur", "kernel_size": 9, "intensity": 1.0},
    "motion_blur": {"name": "motion_blur", "kernel_size": 9},
    "inpainting": {"name": "inpainting"},
}


def write_configs(
    folder: Path, operator: str, data: dict | None = None, model: dict | None = None
) -> list[str]:
    """Config files and checkpoint in `folder`; the arguments that name them.

    model: the model config; one with keys of MODEL gets a checkpoint
    """
    model = MODEL if model is None else model
    if MODEL.keys() <= model.keys():
        architecture = {k: v for k, v in model.items() if k != "class_label"}
        weights = golden_data.network(architecture, seed=1).state_dict()
        dtype = next(iter(weights.values())).dtype
        save_weights(weights, folder / "tiny.pt", dtype)
        model = {**model, "model_path": str(folder / "tiny.pt")}
    task = {
        "conditioning": {"method": "dpps", "params": {"scale": 1.0, "n_max": 3}},
        "data": data or {"name": "folder", "root": str(folder)},
        "measurement": {
            "operator": OPERATORS[operator],
            "noise": {"name": "gaussian", "sigma": 0.05},
        },
    }
    if operator == "inpainting":
        task["measurement"]["mask_opt"] = {"mask_type": "random"}
    configs = {
        "model": model,
        "diffusion": {"timestep_respacing": 3},
        "task": task,
    }
    arguments = []
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        arguments.append(f"--{name}_config={folder / name}.yaml")
    return [*arguments, "--device=cpu", f"--save_dir={folder / 'results'}"]


def run(*arguments: object) -> int:
    return sample_condition.main([str(a) for a in arguments])


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] / 16.0
    waves = [np.sin(x + seed + c) + np.cos(y * (1 + c / 3)) for c in range(3)]
    return ((np.stack(waves, -1) + 2) * 63).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
