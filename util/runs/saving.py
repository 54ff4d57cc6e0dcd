"""What becomes of restored images: files and records."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.dataloader import Dataset
from util.errors import OutputError, UserError, described
from util.logger import get_logger
from util.metrics.base import get_metric
from util.runs.manifest import Manifest, Record
from util.runs.problems import Case, Residual
from util.runs.progress import Progress
from util.runs.recording import Recorder
from util.runs.results import PictureForm, Results
from util.runs.settings import Settings
from util.runs.spread import Spread

NOT_FINITE = "the sample is not finite"


@dataclass(frozen=True)
class Finished:
    """A restored batch, on the CPU, still to be saved."""

    cases: Sequence[Case]
    images: Tensor  # [B, 3, H, W], the first sample of each
    spreads: Sequence[Spread]  # of all samples, by image; none where there is one sample
    residuals: Sequence[Residual]
    y: Tensor  # [B, ...]
    views: Tensor  # of y, [B, 3, h, w]
    arrays: Sequence[dict[str, np.ndarray]]  # masks, by image
    recorder: Recorder
    cost: dict[str, float]  # seconds, evaluations and gradients of an image


def reason_of(error: Exception) -> str:
    """Why an image failed, in one line; what is our own fault also as a traceback for --verbose."""
    if isinstance(error, UserError):
        return str(error)
    get_logger().debug("%s", "".join(traceback.format_exception(error)))
    return f"{described(error)} (--verbose shows where)"


@dataclass(frozen=True)
class Saver:
    """Saves what one rank restored, records what became of it, and tells the progress.

    config: hash of the settings that decide the pixels, for the records
    channels: of the prior's images
    """

    settings: Settings
    dataset: Dataset
    results: Results
    manifest: Manifest
    progress: Progress
    config: str
    channels: int

    def form(self, case: Case) -> PictureForm:
        grey = case.grey and (self.settings.grey or self.channels == 1)
        return PictureForm(grey, self.settings.output_depth, case.dpi)

    def save(self, done: Finished) -> None:
        """Files first, then the record, so that what is recorded is there."""
        for i, case in enumerate(done.cases):
            try:
                self._save_one(done, i)
            except OutputError:
                raise
            except Exception as error:  # of a metric, say: it concerns this image alone
                self.fail(case.key.name, reason_of(error), case)

    def _save_one(self, done: Finished, i: int) -> None:
        case = done.cases[i]
        self.results.save_measurement(case.output, done.y[i], done.views[i])
        for stem, array in (done.arrays[i] if done.arrays else {}).items():
            self.results.save_mask(case.output, stem, array)
        spread = done.spreads[i] if done.spreads else None
        if torch.isfinite(done.images[i]).all() and (spread is None or spread.finite):
            self._save_film(done.recorder, case)
            self._save_image(done, i, spread)
        else:
            if spread is not None:
                self.results.drop_samples(case.output)
            reason = f"{NOT_FINITE}; nothing was saved. Try a smaller scale, or --steps"
            self.fail(case.key.name, reason, case)

    def _save_film(self, recorder: Recorder, case: Case) -> None:
        """The film of an image that is about to be saved, with it or without it."""
        try:
            recorder.save_film(case.output)
        except OutputError:
            raise
        except Exception as error:  # encoders raise whatever they like
            reason = f"{type(error).__name__}: {error}"
            get_logger().warning("%s: restored, but without a film (%s)", case.key.name, reason)

    def _save_image(self, done: Finished, i: int, spread: Spread | None) -> None:
        case, residual, others = done.cases[i], done.residuals[i], self.settings.seeds[1:]
        name, form = case.key.name, self.form(case)
        metrics = self.results.save_restored(case.output, case.label, done.images[i], form)
        what: dict[str, Any] = {"metrics": metrics, **done.cost}
        if spread is not None:
            self.results.drop_samples(case.output, keep=others)
            what["spread"] = self.results.save_spread(case.output, case.label, spread, form)
        what |= {"residual": residual.norm, "expected_residual": residual.expected}
        self._record(name, case, files=self.results.marks(case.output, others), **what)
        text = [f"{get_metric(m).title} {get_metric(m).text(v)}" for m, v in metrics.items()]
        self.progress.finish(name, ", ".join([*text, f"residual {residual.norm:.3f}"]))
        if residual.misfit:
            get_logger().warning("%s: %s", name, residual.misfit)

    def fail(self, name: str, reason: str, case: Case | None = None) -> None:
        """Record that the image called `name` could not be restored."""
        for known in (name, self.dataset.path(name)):  # every line begins with the name
            reason = reason.removeprefix(f"{known}: ")
        self._record(name, case, error=reason)
        self.progress.fail(name, reason)

    def _record(self, name: str, case: Case | None, **what: Any) -> None:
        source, seed = dict(case.source) if case else {}, self.settings.seed
        self.manifest.append(Record(name, self.config, seed, time.time(), source=source, **what))
