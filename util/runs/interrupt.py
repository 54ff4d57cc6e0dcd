"""SIGINT, SIGTERM and SIGHUP as a request to stop: files are finished, the report is written, then
exit."""

import os
import signal
import time
from types import FrameType
from typing import Any

from util.logger import get_logger

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
# A terminal's Ctrl-C and torchrun both signal a process, so two signals close together are one.
_SAME_REQUEST_SECONDS = 2.0


class Interrupted(Exception):
    """The run was asked to stop; raised at a point where nothing is half written."""


class StopRequest:
    """Whether a signal came. As a context manager it answers SIGINT, SIGTERM and SIGHUP (the
    terminal is gone; not where nohup had it ignored) meanwhile; a second signal, a while after the
    first, ends the program at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._received = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for name in _SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and not (
                name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN
            ):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is not None and now - self._received > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.signal is None:
            self.signal, self._received = number, now
            get_logger().warning("signal %d: stopping within a step; again to stop now", number)

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.signal is not None:
            raise Interrupted

    @property
    def exit_status(self) -> int | None:
        """130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, None without a signal."""
        return None if self.signal is None else 128 + self.signal
