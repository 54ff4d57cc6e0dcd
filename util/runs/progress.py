"""A person's view of a run: two bars on a terminal, plain lines elsewhere."""

import logging
import sys
import time

from torch import Tensor
from tqdm import tqdm

from util.logger import get_logger
from util.runs.distributed import Counts, World

_REFRESH_SECONDS = 0.5  # reading the distance waits for the GPU, so it is done now and then
_LINE_SECONDS = 60.0  # between two lines about the steps of the same images
_ESTIMATE_AFTER = 3  # steps before the time left is told
_IMAGES_FORMAT = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"


class Progress:
    """Counts images and steps of this rank; rank 0 shows them, with the other ranks' images.

    images: of the whole job, mine: of this rank, steps: of one sample, samples: of one image
    """

    def __init__(
        self, images: int, mine: int, steps: int, world: World | None = None, samples: int = 1
    ) -> None:
        self.images, self.mine, self.steps, self.samples = images, mine, steps, samples
        self.world = world or World()
        self.counts = Counts()
        self._image_steps = 0  # steps done, times the images or samples they were done for
        self._saved_steps = 0  # those of them that were done before the batch in work
        self._batch_steps = 0
        self._started = self._shown = self._lined = time.perf_counter()
        self._first = self._started  # end of the first step, which also warms the device up
        self._ahead = 0  # image steps at that moment
        log = get_logger()
        shown = self.world.is_first and sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
        self._lines = self.world.is_first and not shown
        quiet = {"disable": not shown, "leave": True, "dynamic_ncols": True}
        self._images_bar = tqdm(
            total=images, desc="images", bar_format=_IMAGES_FORMAT, position=0, **quiet
        )
        self._steps_bar = tqdm(
            total=steps, desc=" steps", unit="step", position=1, **(quiet | {"leave": False})
        )

    def begin_batch(self, images: int, anew: bool = True) -> None:
        """The sampler starts on so many images; with `anew` False on more samples of those that
        are in work."""
        self._batch_steps = 0
        if anew:
            self._saved_steps = self._image_steps
        self._lined = time.perf_counter()
        self._steps_bar.reset()
        self._steps_bar.set_description_str(" steps" if images == 1 else f" steps of {images}")

    def step(self, images: int, distance: Tensor) -> None:
        """One step of `images` images is done; distance [images]."""
        now = time.perf_counter()
        self._image_steps += images
        self._batch_steps += 1
        if self._ahead == 0:
            self._first, self._ahead = now, self._image_steps
        if self._image_steps == self._ahead * (1 + _ESTIMATE_AFTER) and self._lines:
            get_logger().info("about %s to go for %d image(s)", self._left(now), self.images)
        if now - self._shown > _REFRESH_SECONDS:
            self._shown = now
            if not self._steps_bar.disable:
                self._steps_bar.set_postfix(distance=_mean(distance), refresh=False)
            self._show_images(now)
        tenth = self._batch_steps % max(1, self.steps // 10) == 0
        verbose = tenth and get_logger().isEnabledFor(logging.DEBUG)
        if self._lines and (verbose or now - self._lined > _LINE_SECONDS):
            self._lined = now
            get_logger().info(
                "  step %d/%d, distance %s", self._batch_steps, self.steps, _mean(distance)
            )
        self._steps_bar.update()
        self.world.beat(self.counts)

    def forget_steps(self) -> None:
        """The batch in work has to be done again: its steps do not count."""
        self._image_steps = self._saved_steps

    def finish(self, name: str, text: str) -> None:
        """An image is restored and saved; `text` says how well."""
        self.counts += Counts(done=1)
        self._tell(f"{name}: {text}")

    def fail(self, name: str, reason: str) -> None:
        """An image could not be restored."""
        self.counts += Counts(failed=1)
        get_logger().error("failed %s: %s", name, reason)
        self._tell(None)

    def close(self) -> None:
        self._show_images(time.perf_counter())
        self._steps_bar.close()
        self._images_bar.close()

    def _tell(self, text: str | None) -> None:
        self.world.beat(self.counts)
        now = time.perf_counter()
        if self._lines and text is not None:
            total = self._total()
            get_logger().info(
                "%d/%d %s (%s)", total.done + total.failed, self.images, text, self._pace(now)
            )
        self._show_images(now)

    def _show_images(self, now: float) -> None:
        if self._images_bar.disable:
            return
        total = self._total()
        self._images_bar.n = total.done + total.failed
        self._images_bar.set_postfix_str(f"{total.failed} failed, {self._pace(now)}", refresh=False)
        self._images_bar.refresh()

    def _total(self) -> Counts:
        return self.counts + self.world.others()

    def _pace(self, now: float) -> str:
        per_hour = self._total().done / max(now - self._started, 1e-9) * 3600
        rate = f"{per_hour:.0f} images/h, " if self.counts.done else ""
        return f"{rate}{self._left(now)} left"

    def _left(self, now: float) -> str:
        """Time left, from the steps of this rank: the ranks' shares are equal."""
        measured = self._image_steps - self._ahead
        if measured <= 0:
            return "unknown time"
        images = self.mine - self.counts.failed
        left = max(images * self.samples * self.steps - self._image_steps, 0)
        return duration((now - self._first) / measured * left)


def _mean(distance: Tensor) -> str:
    return f"{distance.mean().item():.2f}"


def duration(seconds: float) -> str:
    """A length of time for people: "45 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
