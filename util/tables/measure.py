"""Runs a whole table and scores it: every cell's values, and why some cells have none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.dataloader import read_image
from util.compute_metric import read_pair
from util.errors import OutputError, UnsupportedError, UserError, described
from util.hashing import settings_hash
from util.logger import get_logger
from util.metrics.base import MetricOptions, get_metric
from util.runs.distributed import World
from util.statistics import (
    LEAST_SEEDS,
    Mean,
    Paired,
    mean_and_error,
    paired_difference,
    per_image,
    steadiness,
)
from util.tables.cells import NOT_RUN, CellRun, Runner
from util.tables.spec import Cell, TableSpec, build_cells

Values = dict[tuple[str, int], float]  # by image and seed


@dataclass
class CellResult:
    """What came out of one cell. `problem` says why there are no values; a method that cannot do
    the task at all (`unsupported`) has not failed."""

    cell: Cell
    problem: str | None = None
    unsupported: bool = False
    values: dict[str, Values] = field(default_factory=dict)  # metric -> values
    sets: dict[str, list[float]] = field(default_factory=dict)  # FID, one per seed
    seconds: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    steadiness: Mean | None = None  # per-pixel standard deviation over the seeds
    pictures: dict[str, tuple[Path, Path]] = field(default_factory=dict)  # label, restored

    def mean(self, metric: str) -> Mean | None:
        """Mean over the photographs, each averaged over its seeds first."""
        if self.problem is not None:
            return None
        if metric in self.sets:
            return Mean(float(np.mean(self.sets[metric])), None, len(self.sets[metric]))
        if not self.values.get(metric):
            return None
        return mean_and_error(list(per_image(self.values[metric]).values()))

    def against(self, other: "CellResult", metric: str) -> Paired | None:
        """Paired difference self - other; None where one of them has no values."""
        if self.problem or other.problem or not self.values.get(metric):
            return None
        return paired_difference(self.values[metric], other.values[metric])


@dataclass
class TableResult:
    """A measured table."""

    spec: TableSpec
    names: list[str]  # photographs
    cells: list[list[CellResult]]  # by row and task
    metrics: list[str]  # those that could be computed
    notes: list[str]  # about the whole table

    @property
    def failed(self) -> bool:
        """Whether a cell has no values that should have some."""
        return any(c.problem and not c.unsupported for row in self.cells for c in row)

    @property
    def problems(self) -> list[str]:
        """Reasons for dashes, without repetition, in the order of the cells."""
        found = [c.problem for row in self.cells for c in row if c.problem is not None]
        return list(dict.fromkeys(found))


class Scorer:
    """Metrics of cells; loads their networks at once, and leaves out those that it cannot load."""

    def __init__(self, metrics: Sequence[str], options: MetricOptions | None = None) -> None:
        self.options = options or MetricOptions()
        self.metrics: list[str] = []
        self.notes: list[str] = []
        self._functions: dict[str, Callable[..., float]] = {}
        for metric in metrics:
            try:
                self._functions[metric] = get_metric(metric).build(self.options)
                self.metrics.append(metric)
            except UserError as error:
                self._leave_out(metric, str(error))

    def _leave_out(self, metric: str, reason: str) -> None:
        self.notes.append(f"{get_metric(metric).title} left out: {reason}")
        get_logger().warning("%s", self.notes[-1])

    def check(self, images: int) -> None:
        """Leave out what cannot be computed for so many images."""
        for metric in list(self.metrics):
            least = get_metric(metric).least_images
            if images < least:
                self.metrics.remove(metric)
                self._leave_out(metric, f"it needs at least {least} images")

    def score(self, run: CellRun, names: Sequence[str]) -> None:
        """Fill in what is missing in `run` for these images, and keep it there."""
        for name in names:
            record, found = run.records[name], {}
            todo = [m for m in self.image_metrics if self._key(m) not in record.metrics]
            if todo:
                pair = read_pair(run.path("label", name), run.path("recon", name))
                for m in todo:
                    if get_metric(m).is_defined(pair[0], self.options):
                        found[self._key(m)] = self._functions[m](*pair)
            if found:
                run.keep(replace(record, metrics=record.metrics | found))
        for metric in self.set_metrics:
            key = self.set_key(metric, run, names)
            if key not in run.sets:
                pairs = [read_pair(run.path("label", n), run.path("recon", n)) for n in names]
                run.keep_sets({key: self._functions[metric](*zip(*pairs, strict=True))})

    def value(self, run: CellRun, name: str, metric: str) -> float | None:
        """None where the image is too small for the metric."""
        return run.records[name].metrics.get(self._key(metric))

    def _key(self, metric: str) -> str:
        variant = get_metric(metric).variant(self.options)
        return f"{metric}_{variant}" if variant else metric

    def set_key(self, metric: str, run: CellRun, names: Sequence[str]) -> str:
        """The metric and what it was computed from: names and contents of the files."""
        marks = {name: run.records[name].files for name in names}
        return f"{self._key(metric)} of {settings_hash(marks)}"

    @property
    def image_metrics(self) -> list[str]:
        return [m for m in self.metrics if not get_metric(m).of_sets]

    @property
    def set_metrics(self) -> list[str]:
        return [m for m in self.metrics if get_metric(m).of_sets]


def photographs(
    cells: Sequence[Sequence[Cell]], runner: Runner, limit: int | None
) -> tuple[list[str], list[str]]:
    """Names of the images that all cells use, and notes on those that cannot be read.

    Raises UserError where there are none, or where cells use different photographs.
    """
    datasets = [runner.dataset(cell.config) for row in cells for cell in row]
    names = list(datasets[0].names)[:limit]
    if any(list(dataset.names)[:limit] != names for dataset in datasets):
        raise UserError("the cells use different images; set `data` in the table config")
    readable, notes = [], []
    for name in names:
        try:
            datasets[0].load(name)
            readable.append(name)
        except UserError as error:
            notes.append(f"Left out: {error}")
    if not readable:
        raise UserError(f"none of the {len(names)} images can be read; the first: {notes[0]}")
    return readable, notes


def restore_share(specs: Sequence[TableSpec], runner: Runner, world: World) -> None:
    """Restore what this rank has to restore of the tables: cells and seeds in turn, those that
    tables share once. What goes wrong with a cell is said by the rank that writes the table."""
    work: dict[Any, tuple[Cell, int, list[str], int]] = {}
    for spec in specs:
        cells = build_cells(spec)
        names, _ = photographs(cells, runner, spec.limit)
        for cell in (cell for row in cells for cell in row):
            for seed in spec.seeds:
                work.setdefault((cell.key, seed), (cell, seed, names, spec.batch_size))
    share, log = list(work.values())[world.rank :: world.size], get_logger()
    for i, (cell, seed, names, batch_size) in enumerate(share):
        title = f"{cell.row.name}, {cell.task.name}, seed {seed}"
        log.info("rank %d: %d/%d %s", world.rank, i + 1, len(share), title)
        try:
            runner.run(cell, seed, names, batch_size)
        except OutputError:
            raise
        except Exception as error:
            log.warning("rank %d: %s: %s", world.rank, title, described(error))


def run_table(
    spec: TableSpec,
    runner: Runner,
    scorer: Scorer,
    on_cell: Callable[[TableResult], None] = lambda table: None,
) -> TableResult:
    """Run what is missing and score everything; `on_cell` sees the table grow."""
    cells = build_cells(spec)
    names, notes = photographs(cells, runner, spec.limit)
    scorer.check(len(names))
    results = [[CellResult(cell, NOT_RUN) for cell in row] for row in cells]
    table = TableResult(spec, names, results, scorer.metrics, [*scorer.notes, *notes])
    total = sum(len(row) for row in cells)
    done = 0
    for row in results:
        for i, result in enumerate(row):
            done += 1
            cell = result.cell
            get_logger().info("%d/%d %s, %s", done, total, cell.row.name, cell.task.name)
            row[i] = _run_cell(cell, spec, names, runner, scorer)
            if row[i].problem is not None:
                get_logger().error("  no result: %s", row[i].problem)
            on_cell(table)
    return table


def _run_cell(
    cell: Cell, spec: TableSpec, names: Sequence[str], runner: Runner, scorer: Scorer
) -> CellResult:
    result = CellResult(cell)
    try:
        runs = {seed: runner.run(cell, seed, names, spec.batch_size) for seed in spec.seeds}
        failed = [
            f"{n} (seed {seed}): {run.records[n].error}"
            for seed, run in runs.items()
            for n in names
            if run.records[n].error is not None
        ]
        if failed:
            total = len(names) * len(runs)
            result.problem = f"{len(failed)} of {total} images failed, the first: {failed[0]}"
            return result
        for seed, run in runs.items():
            _collect(result, seed, run, names, scorer)
        result.pictures = {
            n: (runs[spec.seeds[0]].path("label", n), runs[spec.seeds[0]].path("recon", n))
            for n in names
        }
        if spec.steadiness and len(spec.seeds) >= LEAST_SEEDS:
            result.steadiness = _steadiness(list(runs.values()), names)
    except Exception as error:  # any failure is the cell's: the table goes on without it
        get_logger().debug("cell failed", exc_info=True)
        result.problem = described(error)
        result.unsupported = isinstance(error, UnsupportedError)
    return result


def _collect(
    result: CellResult, seed: int, run: CellRun, names: Sequence[str], scorer: Scorer
) -> None:
    scorer.score(run, names)
    for metric in scorer.image_metrics:
        values = result.values.setdefault(metric, {})
        found = {(name, seed): scorer.value(run, name, metric) for name in names}
        values |= {key: value for key, value in found.items() if value is not None}
    for metric in scorer.set_metrics:
        result.sets.setdefault(metric, []).append(run.sets[scorer.set_key(metric, run, names)])
    for name in names:
        record = run.records[name]
        result.seconds.append(record.seconds)
        result.evaluations.append(record.evaluations)
        result.gradients.append(record.gradients)


def _steadiness(runs: Sequence[CellRun], names: Sequence[str]) -> Mean:
    per_photograph = [
        steadiness([np.asarray(read_image(run.path("recon", name))) for run in runs])
        for name in names
    ]
    return mean_and_error(per_photograph)
