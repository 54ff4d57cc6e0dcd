"""Standard output and error that no reader can break: `| head`, a full disk, a closed terminal.

What a program says is worth less than what it does, so a lost reader ends nothing, and characters
that a terminal's encoding lacks are escaped.
"""

import os
import sys
from typing import Any, TextIO


class _Patient:
    """A text stream whose failures to write are passed over, for good once one happened."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        """Send what is still buffered, and all that follows, to nowhere."""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115 (lives as long as the program)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_patient() -> None:
    """Let sys.stdout and sys.stderr survive closed, full and lost destinations."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            stream = open(os.devnull, "w")  # noqa: SIM115
        if isinstance(stream, _Patient):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Patient(stream))
