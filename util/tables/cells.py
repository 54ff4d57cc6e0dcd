"""Runs the cells of tables, reusing every image that is there.

A cell's folder is `<cache>/<hash of its config>/seed_<k>` (and the device, if it is no CPU): the
images of a results folder and `cell.json`, which says of each finished image how long it took and
what it scored.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.dataloader import DATASETS, Dataset, output_name
from guided_diffusion.precision import Execution
from guided_diffusion.sampling import Prior
from models.prior import build_prior, with_process
from util.atomic import save_atomically
from util.config.run_config import RunConfig
from util.errors import UserError
from util.logger import get_logger
from util.runs.problems import ProblemBuilder
from util.runs.restoration import NOT_FINITE, Restoration, Settings
from util.runs.results import Results
from util.tables.baselines import BASELINES
from util.tables.spec import Cell

_MANIFEST = "cell.json"
NOT_RUN = "not run yet"


@dataclass
class ImageRecord:
    """One finished image of a cell. Evaluations of the network are per image."""

    seconds: float
    evaluations: float = 0.0
    gradients: float = 0.0  # evaluations that were also differentiated
    error: str | None = None  # why there is no restored image
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class CellRun:
    """A cell with one seed, on disk."""

    root: Path
    images: dict[str, ImageRecord] = field(default_factory=dict)
    sets: dict[str, float] = field(default_factory=dict)  # metrics of sets of images (FID)

    @classmethod
    def open(cls, root: Path) -> "CellRun":
        """What the folder holds; a damaged manifest counts as none."""
        try:
            raw = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
            images = {name: ImageRecord(**record) for name, record in raw["images"].items()}
            return cls(root, images, raw["sets"])
        except FileNotFoundError:
            return cls(root)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            get_logger().warning("%s: not readable (%s); starting anew", root / _MANIFEST, error)
            return cls(root)

    def save(self) -> None:
        document = {
            "images": {name: dataclasses.asdict(r) for name, r in self.images.items()},
            "sets": self.sets,
        }
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            data = json.dumps(document, indent=1).encode()
            save_atomically(self.root / _MANIFEST, lambda file: file.write(data))
        except OSError as error:
            raise UserError(f"{self.root}: cannot be written ({error.strerror})") from None

    def path(self, kind: str, name: str) -> Path:
        """The `kind` (label, recon) picture of the image called `name`."""
        return Results(self.root).path(kind, output_name(name))

    def missing(self, names: Sequence[str]) -> list[str]:
        """Images that are still to be restored; those whose samples diverged are not."""
        return [n for n in names if not self._finished(n)]

    def _finished(self, name: str) -> bool:
        record = self.images.get(name)
        if record is None:
            return False
        if record.error is not None:  # another time there may be memory, or the missing file
            return record.error.startswith(NOT_FINITE)
        return self.path("recon", name).is_file()


@dataclass
class Outcome:
    """What became of some images of a cell."""

    restored: list[str]
    failed: dict[str, str] = field(default_factory=dict)  # name -> reason
    seconds: float = 0.0


def restore_dataset(
    cell: Cell,
    settings: Settings,
    dataset: Dataset,
    names: Sequence[str],
    prior: Prior,
    results: Results,
) -> Outcome:
    """The only place that calls the restoration pipeline."""
    restoration = Restoration(cell.config, settings, dataset, prior, results)
    for stem, array in restoration.operator.saved().items():
        results.save_array(stem, array)
    started = time.perf_counter()
    restoration.run(names, cell.key)
    seconds = time.perf_counter() - started
    return Outcome(restoration.restored, restoration.failed, seconds)


class _Counting(nn.Module):
    """A network that counts the images it has seen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.evaluations = self.gradients = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.evaluations += len(x)
        self.gradients += len(x) * x.requires_grad
        return self.model(x, t)


class Runner:
    """Runs cells; keeps the last network and data set, which neighbouring cells share.

    With `dry_run` nothing is restored: cells that miss images raise UserError.
    """

    def __init__(
        self,
        cache: Path,
        device: torch.device,
        dry_run: bool = False,
        compile: bool = False,
    ) -> None:
        self.dry_run = dry_run
        self.compile = compile
        self.cache = cache
        self.device = device
        self._priors: dict[str, Prior] = {}
        self._datasets: dict[str, Dataset] = {}

    def dataset(self, config: RunConfig) -> Dataset:
        size = config.model.unet.image_size
        key = f"{config.task.data} {size}"
        if key not in self._datasets:
            self._datasets[key] = config.task.data.build(DATASETS, image_size=size)
        return self._datasets[key]

    def run(self, cell: Cell, seed: int, names: Sequence[str], batch_size: int) -> CellRun:
        """The cell's images called `names`, those that are missing restored now.

        Raises whatever stops the run; images finished before that are kept.
        """
        # CPU and GPU generators draw other numbers, so their samples are kept apart.
        device = "" if self.device.type == "cpu" else f"_{self.device.type}"
        run = CellRun.open(self.cache / cell.key / f"seed_{seed}{device}")
        missing = run.missing(names)
        if not missing:
            return run
        if self.dry_run:
            raise UserError(NOT_RUN)
        settings = Settings(
            seed, batch_size, device=self.device, measurement_seed=cell.measurement_seed
        )
        work = self._baseline if cell.row.baseline else self._restore
        for done, record in work(cell, settings, missing, Results(run.root)):
            run.images.update({name: dataclasses.replace(record) for name in done.restored})
            for name, reason in done.failed.items():
                run.images[name] = dataclasses.replace(record, error=reason)
            run.sets.clear()
            run.save()
        return run

    def _restore(
        self, cell: Cell, settings: Settings, names: Sequence[str], results: Results
    ) -> Iterator[tuple[Outcome, ImageRecord]]:
        """Batch by batch, each recorded."""
        config = cell.config
        prior, dataset = self._prior(cell), self.dataset(config)
        results.save_run(config.raw, {"seed": settings.seed, "table_row": cell.row.name})
        for batch in _chunks(names, settings.batch_size):
            counting = _Counting(prior.model)
            counted = dataclasses.replace(prior, model=counting)
            compiled = prior.model.compile_seconds
            outcome = restore_dataset(cell, settings, dataset, batch, counted, results)
            seconds = outcome.seconds - (prior.model.compile_seconds - compiled)
            n = len(batch)
            record = ImageRecord(seconds / n, counting.evaluations / n, counting.gradients / n)
            yield outcome, record

    def _baseline(
        self, cell: Cell, settings: Settings, names: Sequence[str], results: Results
    ) -> Iterator[tuple[Outcome, ImageRecord]]:
        """A baseline on the very measurements that the methods get."""
        config = cell.config
        method = BASELINES.get(cell.row.baseline)
        dataset = self.dataset(config)
        builder = ProblemBuilder(config, dataset, settings.seed_of_measurement, self.device)
        for name in names:
            case = builder.measure(name, dataset.read(name))
            started = time.perf_counter()
            image = method(case.y[None], case.operator)[0]
            record = ImageRecord(time.perf_counter() - started)
            results.save_restored(case.output, case.label, image)
            yield Outcome([name]), record

    def _prior(self, cell: Cell) -> Prior:
        model, diffusion = cell.config.model, cell.config.diffusion
        key = f"{model} {cell.precision}"
        if key not in self._priors:
            self._priors.clear()  # one network in memory at a time
            execution = Execution(cell.precision, self.compile)
            self._priors[key] = build_prior(model, diffusion, self.device, execution)
        return with_process(self._priors[key], diffusion)


def _chunks(names: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield list(names[start : start + size])


def describe(error: BaseException) -> str:
    """An error as one line for a footnote."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, UserError):
        return text
    kind: Any = type(error).__name__
    return f"{kind}: {text}" if text else kind
