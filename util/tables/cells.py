"""Runs the cells of tables, reusing every image that is there.

A cell's folder is `<cache>/<hash of its config>/seed_<k>` (and the device, if it is no CPU): a
results folder like any other, planned, resumed and read through its manifest.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.dataloader import DATASETS, Dataset, output_name
from guided_diffusion.precision import Execution
from guided_diffusion.sampling import Prior
from models.prior import build_prior, with_process
from util.config.run_config import RunConfig
from util.errors import OutputError, UnsupportedError, UserError
from util.runs.job import Job
from util.runs.manifest import Manifest, Record, read_records, read_sets
from util.runs.plan import Plan, make_plan
from util.runs.problems import Case, ProblemBuilder
from util.runs.restoration import Restoration
from util.runs.results import Results
from util.runs.saving import NOT_FINITE
from util.runs.settings import Settings
from util.runs.sources import Sources
from util.tables.baselines import BASELINES
from util.tables.spec import Cell

NOT_RUN = "not run yet"


@dataclass
class CellRun:
    """A cell with one seed, on disk: the records of its images, by name, and metrics of sets."""

    results: Results
    config: str  # hash that the records carry
    records: dict[str, Record]
    sets: dict[str, float]

    @classmethod
    def read(cls, results: Results, config: str) -> "CellRun":
        root = results.root
        return cls(results, config, read_records(root, config), read_sets(root, config))

    def keep(self, record: Record) -> None:
        """Replace an image's record, which has more metrics now."""
        Manifest(self.results.root).append(record)
        self.records[record.file] = record

    def keep_sets(self, sets: dict[str, float]) -> None:
        Manifest(self.results.root).append_sets(sets, self.config)
        self.sets |= sets

    def path(self, kind: str, name: str) -> Path:
        """The `kind` (label, recon) picture of the image called `name`."""
        return self.results.path(kind, output_name(name))


@dataclass
class Runner:
    """Runs cells; keeps the last network and data set, which neighbouring cells share.

    With `dry_run` nothing is restored: cells that miss images raise UserError.
    """

    cache: Path
    device: torch.device
    dry_run: bool = False
    fast: bool = False

    def __post_init__(self) -> None:
        if next(self.cache.glob("*/seed_*/cell.json"), None) is not None:
            raise UserError(
                f"{self.cache}: holds cells of an older version (cell.json), which are not read; "
                "choose another --cache, or remove this one"
            )
        self._priors: dict[str, Prior] = {}
        self._datasets: dict[str, Dataset] = {}

    def dataset(self, config: RunConfig) -> Dataset:
        size = config.model.image_size
        key = f"{config.task.data} {size}"
        if key not in self._datasets:
            self._datasets[key] = config.task.data.build(DATASETS, image_size=size)
        return self._datasets[key]

    def run(self, cell: Cell, seed: int, names: Sequence[str], batch_size: int) -> CellRun:
        """The cell's images called `names`, those that are missing restored now.

        Raises whatever stops the run; images finished before that are kept.
        """
        run, plan = self.begun(cell, seed, names, dry=self.dry_run)
        if not plan.names:
            return run
        if self.dry_run:
            raise UserError(NOT_RUN)
        if cell.row.baseline:
            self._baseline(cell, seed, plan, run.results)
        else:
            job = Job(self.restoration(cell, seed, batch_size, run.results))
            job.describe({"table_row": cell.row.name})
            job.restore(plan)
        return CellRun.read(run.results, plan.config)

    def begun(
        self, cell: Cell, seed: int, names: Sequence[str], dry: bool = False
    ) -> tuple[CellRun, Plan]:
        """What the cache holds of the cell's images called `names`, and what is missing. Where
        `dry`, nothing is written."""
        # CPU and GPU generators draw other numbers, so their samples are kept apart.
        kind = self.device.type
        folder = f"seed_{seed}" if kind == "cpu" else f"seed_{seed}_{kind}"
        results = Results(self.cache / cell.key / folder)
        sources = Sources(self.dataset(cell.config), cell.config.task.mask_opt)
        settings = {"cell": cell.key, "seed": seed, "device": kind}
        plan = make_plan(results, settings, sources, names, dry=dry)
        run = CellRun.read(results, plan.config)
        plan.names[:] = [n for n in plan.names if not _diverged(run.records.get(n))]
        return run, plan

    def restoration(self, cell: Cell, seed: int, batch_size: int, results: Results) -> Restoration:
        """What restores the images of a method's cell."""
        settings = Settings(
            seed, batch_size, device=self.device, measurement_seed=cell.measurement_seed
        )
        prior, dataset = self._prior(cell), self.dataset(cell.config)
        return Restoration(cell.config, settings, dataset, prior, results)

    def baseline(self, cell: Cell, seed: int) -> Callable[[str], tuple[Case, Tensor, float]]:
        """What restores the image called so by a baseline, on the very measurement that the methods
        get: the case, the image, and the seconds of the baseline alone."""
        settings = Settings(seed, measurement_seed=cell.measurement_seed)
        dataset, method = self.dataset(cell.config), BASELINES.get(cell.row.baseline or "")
        builder = ProblemBuilder(cell.config, dataset, settings.seed_of_measurement, self.device)

        def restore(name: str) -> tuple[Case, Tensor, float]:
            case = builder.measure(name, dataset.read(name))
            started = time.perf_counter()
            y = case.y[None]
            image = method(y, case.operator, builder.noiser.equivalent_sigma(y))[0]
            return case, image, time.perf_counter() - started

        return restore

    def _baseline(self, cell: Cell, seed: int, plan: Plan, results: Results) -> None:
        manifest, restore = Manifest(results.root), self.baseline(cell, seed)
        sources = Sources(self.dataset(cell.config), cell.config.task.mask_opt)
        for name in plan.names:
            record = Record(name, plan.config, seed, time.time())
            try:
                source = sources.mark(name)
                case, image, seconds = restore(name)
                metrics = results.save_restored(case.output, case.label, image)
            except (OutputError, UnsupportedError):
                raise
            except UserError as error:
                manifest.append(dataclasses.replace(record, error=str(error)))
                continue
            files = results.marks(case.output)
            manifest.append(
                dataclasses.replace(
                    record, seconds=seconds, metrics=metrics, source=source, files=files
                )
            )

    def _prior(self, cell: Cell) -> Prior:
        model, diffusion = cell.config.model, cell.config.diffusion
        key = f"{model} {cell.precision}"
        if key not in self._priors:
            self._priors.clear()  # one network in memory at a time
            # The precision is part of what a cell is; how fast it is computed is not.
            plain = Execution(cell.precision).resolve(model.use_fp16, self.device)
            execution = dataclasses.replace(plain, fast=self.fast)
            self._priors[key] = build_prior(model, diffusion, self.device, execution)
        return with_process(self._priors[key], diffusion, model)


def _diverged(record: Record | None) -> bool:
    """Whether another try would end in the same way."""
    return record is not None and (record.error or "").startswith(NOT_FINITE)
