"""What is to be done: all images of a new run, the unfinished ones of an interrupted run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.dataloader import Dataset, output_name, result_key
from guided_diffusion.measurements import Operator
from util.config.effective import effective_settings
from util.config.run_config import RunConfig
from util.errors import UserError
from util.hashing import array_mark, settings_hash
from util.logger import get_logger
from util.plugins import plugin_marks
from util.runs.manifest import (
    Manifest,
    Record,
    check_settings,
    forget,
    read_records,
    recorded_names,
)
from util.runs.results import Results
from util.runs.settings import Settings
from util.runs.sources import Sources

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
        "measurement_seed": settings.seed_of_measurement,
        "device": settings.device.type,
        "precision": precision,
        "grey": settings.grey,
        **({"output_depth": settings.output_depth} if settings.output_depth != 8 else {}),
        **({"samples": settings.samples} if settings.samples > 1 else {}),
        **({"plugins": marks} if (marks := plugin_marks()) else {}),
        "model": {**model, "checkpoint": config.model.mark()},
        "diffusion": effective["diffusion"],
        "task": {
            **task,
            "data": {**data, "overlap": dataset.overlap},  # its default follows the model
            "operator": {**task["operator"], **arrays},
        },
    }


def least_bytes(
    settings: Settings, dataset: Dataset, operator: Operator, images: int, steps: int
) -> int:
    """What so many results take on the disk at least: the measurements as floats, which do not
    compress, of several samples the deviations, and of the recorded steps the noisy images.

    0 where images have any size, which is not known beforehand.
    """
    if dataset.any_size:
        return 0
    side = dataset.image_size
    channels = operator.context.channels
    values = channels * (side // getattr(operator, "scale_factor", 1)) ** 2
    deviations = 3 * side**2 * (settings.samples > 1)
    recorded = sum(settings.record.due(t) for t in range(steps))
    return images * (4 * (values + deviations) + recorded * 3 * side**2)


def make_plan(
    results: Results,
    settings: Mapping[str, Any],
    sources: Sources,
    names: Sequence[str],
    overwrite: bool = False,
    dry: bool = False,
) -> Plan:
    """Which of `names` are still to be restored into `results`.

    An image is finished when its record says so, its files are there and its source has not
    changed. Raises UserError where the folder holds results of other settings, unless
    `overwrite`, which restores all of `names` anew. Where `dry`, nothing is written or removed.
    """
    if overwrite and dry:
        return Plan(list(names), settings_hash(settings), 0)
    if overwrite:
        _clear(results, settings, names)
    begun = check_settings(results.root, settings)
    config = settings_hash(settings)
    records = read_records(results.root, config)
    _check_owners(results, records, names)
    todo = [n for n in names if not _finished(results, sources, n, records.get(n))]
    if not begun and not dry:
        Manifest(results.root).append_settings(settings)
    return Plan(todo, config, len(names) - len(todo))


def _clear(results: Results, settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Remove what was restored of `names`. Everything that is recorded where that was done with
    other settings, or where others have the same names: those never lie side by side."""
    recorded = recorded_names(results.root)
    try:
        check_settings(results.root, settings)
        _check_owners(results, read_records(results.root, settings_hash(settings)), names)
        recorded &= set(names)
        begin_anew = False
    except UserError:
        begin_anew = True
    for name in recorded:
        results.remove(output_name(name))
    results.remove_report()
    if begin_anew:
        forget(results.root)
    if recorded:
        get_logger().info("--overwrite: results of %d image(s) removed", len(recorded))


def _check_owners(results: Results, records: Mapping[str, Record], names: Sequence[str]) -> None:
    """UserError where the results of one of `names` would replace those of another image."""
    first = {result_key(name): name for name in reversed(names)}
    for done in (record.file for record in records.values() if record.done):
        name = first.get(result_key(done), done)
        if name != done:
            raise UserError(
                f"{name}: {results.root} holds results of {done} under the same name; rename it, "
                "choose another --save_dir, or replace all results with --overwrite"
            )


def _finished(results: Results, sources: Sources, name: str, record: Record | None) -> bool:
    if record is None or not record.done:
        return False
    return results.holds(record) and sources.unchanged(name, record.source)
