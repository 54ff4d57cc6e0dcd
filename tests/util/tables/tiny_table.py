"""A table small enough for tests, and the command that makes it."""

import numpy as np
import torch
import yaml
from PIL import Image

from tests import golden_data
from util import make_table

MODEL = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,1",
    "attention_resolutions": "",
    "num_head_channels": 32,
    "learn_sigma": True,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
DIFFUSION = {"timestep_respacing": 2}
TASKS = {
    "sr": {"name": "super_resolution", "scale_factor": 4},
    "blur": {"name": "motion_blur", "kernel_size": 7},
}


def write(path, value):
    path.write_text(yaml.safe_dump(value))
    return path


def change(path, **changes):
    return write(path, {**yaml.safe_load(path.read_text()), **changes})


def run(table, *options):
    root = table.parent
    options = [f"--out={root / 'out'}", f"--cache={root / 'cache'}", "--device=cpu", *options]
    return make_table.main([str(table), *options])


def write_table(tmp_path):
    """A table config of two tasks and five rows on three small images; returns its path."""
    torch.save(golden_data.network(MODEL, 0).state_dict(), tmp_path / "net.pt")
    write(tmp_path / "model.yaml", {**MODEL, "model_path": str(tmp_path / "net.pt")})
    write(tmp_path / "diffusion.yaml", DIFFUSION)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    for name, operator in TASKS.items():
        task = {
            "conditioning": {"method": "dpps", "params": {"scale": 0.5}},
            "data": {"name": "folder", "root": str(tmp_path / "data")},
            "measurement": {"operator": operator, "noise": {"name": "gaussian", "sigma": 0.01}},
        }
        write(tmp_path / f"{name}.yaml", task)
    spec = {
        "title": "A small_table",
        "model_config": str(tmp_path / "model.yaml"),
        "diffusion_config": str(tmp_path / "diffusion.yaml"),
        "metrics": ["psnr", "ssim"],
        "compare": "DPPS",
        "tasks": [{"name": name, "config": str(tmp_path / f"{name}.yaml")} for name in TASKS],
        "rows": [
            {"name": "measurement", "baseline": "measurement"},
            {"name": "classical", "baseline": "classical"},
            {"name": "DPPS", "method": "dpps"},
            {"name": "DPS", "method": "ps"},
            {"name": "DDNM+", "method": "ddnm+"},
        ],
    }
    return write(tmp_path / "small.yaml", spec)
