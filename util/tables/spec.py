"""Table configs as typed objects, and the cells they stand for."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from guided_diffusion.condition_methods import CONDITIONING
from guided_diffusion.precision import PRECISIONS
from util.config.effective import effective_settings
from util.config.overrides import override_of
from util.config.run_config import RunConfig, load_run_config
from util.config.schema import check_least, check_names, parse_dataclass, read_yaml
from util.config.shipped import config_path, find_config
from util.errors import UserError
from util.hashing import file_hash, settings_hash
from util.metrics.base import get_metric
from util.plugins import plugin_files, plugin_marks
from util.registry import did_you_mean
from util.tables.baselines import BASELINES


@dataclass(frozen=True)
class TaskSpec:
    """A column group.

    set: overrides of the configs, as --set of sample_condition.py
    params: conditioning.params of this task by method; they come before those of a row
    """

    name: str
    config: str
    set: list[str] = field(default_factory=list)
    params: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RowSpec:
    """A row: a conditioning method with settings, or a baseline of util.tables.baselines."""

    name: str
    method: str | None = None
    baseline: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    set: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PublishedRow:
    """Figures of a method that somebody published: task name -> metric -> value."""

    name: str
    values: dict[str, dict[str, float]]
    nfe: int | None = None  # network evaluations of an image


@dataclass(frozen=True)
class Published:
    """Figures of one source; they are printed below the table's own and never ranked with them.

    source: what to cite
    sigma: of its noise, on the range [-1, 1]; None: it does not state one
    note: what else a reader has to know (images, how it was measured)
    """

    source: str
    rows: list[PublishedRow]
    sigma: float | None = None
    note: str = ""


@dataclass(frozen=True)
class TableSpec:
    """A table config.

    set: overrides of every cell; those of tasks and then of rows come after them
    scale_by_steps: guidance scales (of the task config, unless task or row gives one) are
      multiplied by 1000 / T, T the number of steps
    data: replaces the `data` section of the task configs
    limit: images restored, the first ones by name (None: all)
    seeds: of the random numbers; every image is restored once per seed
    measurement_seed: of kernel, mask and noise (None: the cell's seed)
    precision: number format of the network (None: the model config's)
    compare: the row that the others are compared with, image by image
    steadiness: report the per-pixel standard deviation over the seeds (at least 5)
    figure_images: photographs per task in the figure
    note: what a reader of the table has to know
    published: figures of others, for tasks of this table
    """

    title: str
    model_config: str
    diffusion_config: str
    tasks: list[TaskSpec]
    rows: list[RowSpec]
    set: list[str] = field(default_factory=list)
    scale_by_steps: bool = False
    data: dict[str, Any] | None = None
    limit: int | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    measurement_seed: int | None = None
    batch_size: int = 1
    precision: str | None = None
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim", "lpips"])
    compare: str | None = None
    steadiness: bool = False
    figure_images: int = 2
    note: str = ""
    published: list[Published] = field(default_factory=list)


def load_spec(path: str | Path) -> TableSpec:
    """The table in a YAML file; UserError naming what is wrong with it."""
    path = find_config(path, "table")
    spec = parse_dataclass(TableSpec, read_yaml(path), str(path))
    spec = replace(
        spec,
        model_config=config_path(spec.model_config, path),
        diffusion_config=config_path(spec.diffusion_config, path),
        tasks=[replace(task, config=config_path(task.config, path)) for task in spec.tasks],
    )
    check_spec(spec, str(path))
    return spec


def check_spec(spec: TableSpec, where: str) -> None:
    """UserError for a table that cannot be made."""
    check_names(spec.rows, f"{where}: rows")
    check_names(spec.tasks, f"{where}: tasks")
    for row in spec.rows:
        at = f'{where}: row "{row.name}"'
        if (row.method is None) == (row.baseline is None):
            raise UserError(f"{at}: needs method or baseline, one of them")
        if row.method is not None:
            CONDITIONING.get(row.method, at)
        elif row.baseline is not None:
            BASELINES.get(row.baseline, at)
    if spec.compare is not None and spec.compare not in [row.name for row in spec.rows]:
        raise UserError(f'{where}: compare: there is no row "{spec.compare}"')
    if not spec.seeds or len(set(spec.seeds)) < len(spec.seeds):
        raise UserError(f"{where}: seeds: at least one is needed, and they must differ")
    if spec.precision is not None and spec.precision not in PRECISIONS:
        raise UserError(
            f'{where}: unknown precision "{spec.precision}"; known: {", ".join(PRECISIONS)}'
        )
    if not spec.metrics:
        raise UserError(f"{where}: metrics: at least one is needed")
    for metric in spec.metrics:
        get_metric(metric, f"{where}: metrics")
    _check_published(spec, where)
    check_least(spec, where, batch_size=1, figure_images=0, limit=1)


def _check_published(spec: TableSpec, where: str) -> None:
    tasks = [task.name for task in spec.tasks]
    for published in spec.published:
        for row in published.rows:
            at = f'{where}: published: "{row.name}"'
            for task, values in row.values.items():
                if task not in tasks:
                    raise UserError(f'{at}: there is no task "{task}"{did_you_mean(task, tasks)}')
                for metric in values:
                    get_metric(metric, at)


@dataclass(frozen=True)
class Cell:
    """One row on one task: what is run, for every image and seed."""

    row: RowSpec
    task: TaskSpec
    config: RunConfig
    files: tuple[str, str, str]  # model, diffusion and task config
    overrides: tuple[str, ...]
    measurement_seed: int | None
    precision: str | None = None  # of the network; None: the model config's

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides the results, the photographs and the seed aside.

        The folder of the photographs counts: equal names in two are not the same photographs.
        """
        effective = effective_settings(self.config)
        if self.row.method:
            effective["weights"] = _weights(self.config.model.files)
            if self.precision is not None:
                effective["precision"] = self.precision
        else:
            # A baseline depends on the measurement alone, so tables share it.
            task = {k: v for k, v in effective["task"].items() if k != "conditioning"}
            size = self.config.model.image_size
            effective = {"task": task, "baseline": self.row.baseline, "image_size": size}
            if self.config.model.channels != 3:  # the measurement is grey, too
                effective["channels"] = self.config.model.channels
        effective |= {"plugins": marks} if (marks := plugin_marks()) else {}
        return settings_hash({**effective, "measurement_seed": self.measurement_seed})

    def command(self, seed: int, limit: int | None, fast: bool = False) -> str:
        """The sample_condition.py command that makes the same images."""
        names = ("--model_config", "--diffusion_config", "--task_config")
        words = ["python3", "sample_condition.py"]
        words += [f"{n}={f}" for n, f in zip(names, self.files, strict=True)]
        for file in plugin_files():
            words += ["--plugin", file]
        for override in self.overrides:
            words += ["--set", override]
        words += ["--seed", str(seed)]
        if self.measurement_seed not in (None, seed):
            words += ["--measurement_seed", str(self.measurement_seed)]
        if self.precision is not None:
            # Without a precision --fast would choose one, and the images would be others.
            words += ["--precision", self.precision, *(["--fast"] if fast else [])]
        words += [] if limit is None else ["--limit", str(limit)]
        return shlex.join(words)


_hash_once = cache(file_hash)


def _weights(files: Sequence[Path]) -> str:
    """SHA-256 of a prior's files, read once per process; "missing" if one is not there."""
    try:
        return " ".join(map(_hash_once, files))
    except OSError:
        return "missing"


def build_cells(spec: TableSpec) -> list[list[Cell]]:
    """Cells by row and task; UserError where a config is wrong."""
    return [[_cell(spec, row, task) for task in spec.tasks] for row in spec.rows]


def _cell(spec: TableSpec, row: RowSpec, task: TaskSpec) -> Cell:
    files = (spec.model_config, spec.diffusion_config, task.config)
    overrides = [*spec.set, *task.set, *row.set]
    if spec.data is not None:
        overrides.insert(0, override_of("task.data", spec.data))
    if row.method is not None:
        overrides = _with_conditioning(spec, row, row.method, task, files, overrides)
    try:
        config = load_run_config(*files, overrides)
    except UserError as error:
        raise UserError(f'row "{row.name}", task "{task.name}": {error}') from None
    seed, precision = spec.measurement_seed, spec.precision
    return Cell(row, task, config, files, tuple(overrides), seed, precision)


def _with_conditioning(
    spec: TableSpec,
    row: RowSpec,
    method: str,
    task: TaskSpec,
    files: tuple[str, str, str],
    overrides: list[str],
) -> list[str]:
    """The overrides and the row's method, its guidance scale worked out."""
    given = {**task.params.get(method, {}), **row.params}
    if not spec.scale_by_steps:  # what the configs say of the method, `guidance` included
        configured = load_run_config(*files, overrides).task.conditioning
        if configured.name == method:
            given = {**configured.params, **given}
    if "scale" in CONDITIONING.keys(method):
        published = read_yaml(task.config).get("conditioning", {}).get("params", {})
        scale = given.get("scale", published.get("scale", 1.0))
        if spec.scale_by_steps:
            chosen = f"task.conditioning.method={method}"
            config = load_run_config(*files, [*overrides, chosen])
            steps = config.diffusion.num_steps or config.diffusion.build(config.model).num_timesteps
            scale = float(scale) * 1000 / steps
        given["scale"] = scale
    conditioning = {"method": method, "params": given}
    return [*overrides, override_of("task.conditioning", conditioning)]
