"""A run small enough for tests: 64x64 photographs, a tiny network with random weights."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from guided_diffusion.unet import UNetConfig, UNetModel

ROOT = Path(__file__).parent.parent
SIZE = 64
NAMES = [f"p{i}.png" for i in range(6)]
STEPS = 4
_MODEL = {
    "image_size": SIZE,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,1",
    "attention_resolutions": "",
    "num_heads": 1,
    "num_head_channels": 32,
}


def write_images(folder: Path, names: Sequence[str]) -> Path:
    """Smooth pictures, each from its name."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
        channels = [np.sin(3 * x + i), np.cos(4 * y - i), np.sin(2 * (x + y) * (i + 1))]
        Image.fromarray((127 * (np.stack(channels, -1) + 1)).astype(np.uint8)).save(path)
    return folder


def diffusers_unet(
    size: int,
    channels: int = 3,
    out: int | None = None,
    down: Sequence[str] = ("DownBlock2D", "DownBlock2D"),
) -> torch.nn.Module:
    """A tiny UNet2DModel of diffusers with random weights, a level for each block of `down`."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out or channels,
        layers_per_block=1,
        block_out_channels=(8, 16)[: len(down)],
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        norm_num_groups=4,
        attention_head_dim=8,
    )


class TinyRun:
    """Configs and checkpoint in `folder`, and the command lines that use them."""

    def __init__(self, folder: Path, steps: int = STEPS) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / "tiny.pt"
        torch.manual_seed(0)
        state = UNetModel(UNetConfig(**_MODEL)).state_dict()
        torch.save({k: 0.02 * torch.randn_like(v) for k, v in state.items()}, self.checkpoint)
        self._write("model", {**_MODEL, "model_path": str(self.checkpoint)})
        self._write("diffusion", {"steps": 1000, "timestep_respacing": steps})
        self._write(
            "task",
            {
                "conditioning": {"method": "dpps", "params": {"scale": 0.5, "n_max": 4}},
                "data": {"name": "folder", "root": "unset"},
                "measurement": {
                    "operator": {"name": "inpainting"},
                    "mask_opt": {"mask_type": "random"},
                    "noise": {"name": "gaussian", "sigma": 0.01},
                },
            },
        )

    def _write(self, name: str, config: dict) -> None:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(config))

    def arguments(self, images: Path, results: Path, *more: str) -> list[str]:
        return [
            *(f"--{name}_config={self.folder / name}.yaml" for name in ("model", "diffusion")),
            f"--task_config={self.folder / 'task'}.yaml",
            f"--data_root={images}",
            f"--save_dir={results}",
            "--device=cpu",
            *more,
        ]

    def start(self, arguments: Sequence[str], processes: int = 1) -> subprocess.Popen:
        """The program as a process (or so many of torchrun's), its output in a pipe."""
        launcher = [sys.executable]
        if processes > 1:
            port = ["--standalone", f"--nproc_per_node={processes}"]
            launcher += ["-m", "torch.distributed.run", *port]
        return subprocess.Popen(
            [*launcher, str(ROOT / "sample_condition.py"), *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def result_files(root: Path) -> dict[str, bytes]:
    """Everything below `root` that must not depend on how a run went."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(("manifest.", "config.", "report."))
    }


def records(folder: Path, operator: str = "inpainting") -> list[dict]:
    """Of the images of a run, in the order of its manifests; a line in writing is left out."""
    lines = [
        json.loads(line)
        for path in sorted((folder / operator).glob("manifest.*.jsonl"))
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return [line for line in lines if "file" in line]
