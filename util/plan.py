"""What is to be done: all images of a new run, the unfinished ones of an interrupted run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.dataloader import Dataset, output_name
from guided_diffusion.measurements import Operator
from util.effective import effective_settings
from util.hashing import array_mark, path_mark, settings_hash
from util.manifest import (
    Manifest,
    Record,
    check_settings,
    forget,
    read_records,
    same_source,
)
from util.restoration import Settings
from util.results import Results
from util.run_config import RunConfig

_PLACES = {"name", "root"}  # data keys that say where the images lie, not which they are


@dataclass(frozen=True)
class Plan:
    """Names to restore, in order, and the hash that their records carry."""

    names: list[str]
    config: str
    finished: int  # images that are left out, since they are finished


def result_settings(
    config: RunConfig, settings: Settings, dataset: Dataset, operator: Operator, precision: str
) -> dict[str, Any]:
    """Everything that decides the pixels restored from a given image, defaults filled in.

    The kind of device is among it, since CPU and GPU generators draw other numbers; batch size,
    device number, limit, recording and the place of the images are not.
    """
    effective = effective_settings(config)
    model, task = effective["model"], effective["task"]
    data = {k: v for k, v in task["data"].items() if k not in _PLACES}
    arrays = {stem: array_mark(a) for stem, a in operator.saved().items()}
    return {
        "seed": settings.seed,
        "device": settings.device.type,
        "precision": precision,
        "grey": settings.grey,
        "model": {**model, "checkpoint": path_mark(config.model.model_path)},
        "diffusion": effective["diffusion"],
        "task": {
            **task,
            "data": {**data, "overlap": dataset.overlap},  # its default follows the model
            "operator": {**task["operator"], **arrays},
        },
    }


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
