"""What is to be done: all images of a new run, the unfinished ones of an interrupted run."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.dataloader import Dataset, output_name
from guided_diffusion.measurements import Operator
from util.config import Component
from util.manifest import (
    Manifest,
    Record,
    check_settings,
    file_hash,
    forget,
    read_records,
    same_source,
    settings_hash,
)
from util.restoration import Settings
from util.results import Results
from util.run_config import RunConfig

_PLACES = {"root"}  # data keys that say where the images lie, not which they are
_MEMORY_KEYS = {"use_checkpoint"}  # model keys that trade memory for time


@dataclass(frozen=True)
class Plan:
    """Names to restore, in order, and the hash that their records carry."""

    names: list[str]
    config: str
    finished: int  # images that are left out, since they are finished


def result_settings(
    config: RunConfig, settings: Settings, operator: Operator, precision: str
) -> dict[str, Any]:
    """Everything that decides the pixels restored from a given image.

    The kind of device is among it, since CPU and GPU generators draw other numbers; batch size,
    device number, limit, recording and the place of the images are not.
    """
    model = dataclasses.asdict(config.model.unet)
    diffusion = dataclasses.asdict(config.diffusion)
    del diffusion["guidance"]  # what applies of it stands in conditioning
    task = config.task
    data = {k: v for k, v in task.data.params.items() if k not in _PLACES}
    return {
        "seed": settings.seed,
        "device": settings.device.type,
        "precision": precision,
        "grey": settings.grey,
        "model": {
            **{k: v for k, v in model.items() if k not in _MEMORY_KEYS},
            "checkpoint": _file_mark(config.model.model_path),
        },
        "diffusion": diffusion,
        "task": {
            "conditioning": {
                "method": task.conditioning.name,
                "params": _contents(task.conditioning.params),
            },
            "data": _contents(data),
            "operator": {
                **_component(task.operator),
                **{stem: _array_mark(a) for stem, a in operator.saved().items()},
            },
            "noise": _component(task.noise),
            "mask_opt": task.mask_opt and _contents(dataclasses.asdict(task.mask_opt)),
        },
    }


def _component(component: Component) -> dict[str, Any]:
    return {"name": component.name, **_contents(component.params)}


def _contents(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with files (kernel, mask) replaced by what they hold."""
    return {
        k: _file_mark(v) if isinstance(v, str) and Path(v).exists() else v
        for k, v in params.items()
    }


def _file_mark(path: str) -> str:
    """Of what a file, or a folder of files, holds; where it lies does not count."""
    if Path(path).is_file():
        return f"sha256 {file_hash(path)[:16]}"
    files = sorted(p for p in Path(path).rglob("*") if p.is_file())
    listing = [f"{p.relative_to(path).as_posix()} {file_hash(p)}" for p in files]
    return f"sha256 {hashlib.sha256(chr(10).join(listing).encode()).hexdigest()[:16]}"


def _array_mark(array: np.ndarray) -> str:
    return f"sha256 {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"


def make_plan(
    results: Results,
    settings: Mapping[str, Any],
    dataset: Dataset,
    names: Sequence[str],
    overwrite: bool = False,
) -> Plan:
    """Which of `names` are still to be restored into `results`.

    An image is finished when its record says so, its files are there and its source has not
    changed. Raises UserError where the folder holds results of other settings, unless
    `overwrite`, which begins anew.
    """
    if overwrite:
        forget(results.root)
    begun = check_settings(results.root, settings)
    config = settings_hash(settings)
    records = read_records(results.root, config)
    todo = [n for n in names if not _finished(results, dataset, n, records.get(n))]
    if not begun:
        Manifest(results.root).append_settings(settings)
    return Plan(todo, config, len(names) - len(todo))


def _finished(results: Results, dataset: Dataset, name: str, record: Record | None) -> bool:
    if record is None or not record.done:
        return False
    kinds = ["input", "recon", *(["label"] if record.metrics else [])]
    return all(results.path(kind, output_name(name)).is_file() for kind in kinds) and same_source(
        dataset.path(name), record.source
    )
