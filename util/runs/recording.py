"""Progress images of a run, and films made of them."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from guided_diffusion.condition_methods import StepResult
from util.errors import UserError
from util.plugins import optional
from util.runs.results import QUANTITIES, Results

FILMS = ("gif", "mp4")
_FRAME_SECONDS = 0.12
_LAST_FRAMES = 12  # the result is held for so many frames


@dataclass(frozen=True)
class RecordOptions:
    """every: steps between recorded ones, 0: none; film: "gif", "mp4" or None."""

    every: int = 0
    film: str | None = None

    def due(self, t: int) -> bool:
        return self.every > 0 and t % self.every == 0


def parse_record(text: str | None) -> RecordOptions:
    """`every=N[,gif|mp4]`, or `none`, which is the same as leaving it out.

    Raises UserError for anything else, and for mp4 without its package.
    """
    if text is None or text == "none":
        return RecordOptions()
    key, _, rest = text.partition("=")
    number, *films = rest.split(",")
    if key != "every" or not number.isdecimal() or int(number) < 1 or len(films) > 1:
        raise UserError(
            f'--record {text}: expected "every=N", "every=N,gif", "every=N,mp4" or "none"'
        )
    film = films[0] if films else None
    if film is not None and film not in FILMS:
        raise UserError(f'--record {text}: unknown film "{film}"; known: {", ".join(FILMS)}')
    if film == "mp4":
        _mp4_writer()
    return RecordOptions(int(number), film)


@dataclass
class Recorder:
    """Saves x_t and x0_hat of one batch; files are numbered by the steps that were left."""

    results: Results
    outputs: Sequence[str]
    options: RecordOptions
    finish: Callable[[Tensor], Tensor] = lambda x: x  # the sampler's x -> images
    submit: Callable[..., Any] = lambda write, *args: write(*args)  # runs it now or later
    steps: dict[str, list[int]] = field(default_factory=dict)  # recorded, by output

    def save(self, t: int, result: StepResult) -> None:
        if self.options.due(t):
            images = [self.finish(x).cpu() for x in (result.x, result.x0_hat)]
            self.submit(self._write, t, images)

    def _write(self, t: int, images: Sequence[Tensor]) -> None:
        for output, x, x0_hat in zip(self.outputs, *images, strict=True):
            if torch.isfinite(x).all() and torch.isfinite(x0_hat).all():
                for quantity, image in zip(QUANTITIES, (x, x0_hat), strict=True):
                    self.results.save_progress(output, quantity, t, image)
                self.steps.setdefault(output, []).append(t)

    def save_film(self, output: str) -> None:
        """x_t beside x0_hat, from the recorded images of one image of the batch."""
        film = self.options.film
        steps = self.steps.get(output)
        if film is None or not steps:
            return
        frames = [
            np.hstack([_read(self.results.progress_path(output, q, t)) for q in QUANTITIES])
            for t in steps
        ]
        frames += [frames[-1]] * _LAST_FRAMES
        path = self.results.path("progress", f"{output}/film", f".{film}")
        buffer = io.BytesIO()
        (_write_gif if film == "gif" else _write_mp4)(buffer, frames)
        self.results.write_file(path, buffer.getvalue())


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _write_gif(file: IO[bytes], frames: Sequence[np.ndarray]) -> None:
    first, *rest = [Image.fromarray(frame) for frame in frames]
    duration = round(_FRAME_SECONDS * 1000)
    first.save(file, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)


def _write_mp4(file: IO[bytes], frames: Sequence[np.ndarray]) -> None:
    height, width = frames[0].shape[:2]
    odd = ((0, height % 2), (0, width % 2), (0, 0))  # the codec wants even sides
    frames = [np.pad(frame, odd, mode="edge") for frame in frames]
    height, width = frames[0].shape[:2]
    with TemporaryDirectory() as folder:  # the encoder writes to a path only
        path = Path(folder) / "film.mp4"
        writer = _mp4_writer()(
            str(path),
            (width, height),
            fps=1 / _FRAME_SECONDS,
            macro_block_size=2,
            ffmpeg_log_level="error",
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        file.write(path.read_bytes())


def _mp4_writer() -> Callable[..., Any]:
    without = "--record: mp4 needs a package: pip install imageio-ffmpeg; or use gif"
    return optional("imageio_ffmpeg", without).write_frames
