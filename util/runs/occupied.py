"""A results folder in use: runs of other settings stay out of it meanwhile."""

import contextlib
import os
from pathlib import Path

from util.errors import OutputError, UserError
from util.files import explained

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = ".lock"


class Occupied:
    """Holds `root` for a run of the settings `config` until it is closed, or the process ends.

    Until `settle` says that the run will take place, others wait. Runs of the same settings share a
    folder; they make the same files. One that is `alone`, since it removes what is there, shares it
    with none. Raises UserError where others are at work, and OutputError where the folder cannot be
    written to. What holds it is a lock of the system on a file in the folder (flock), which dies
    with the process; where there are none, nothing is held.
    """

    def __init__(self, root: Path, config: str, alone: bool = False) -> None:
        self._descriptor: int | None = None
        self._config, self._first = config, False
        if fcntl is None:
            return
        advice = "; choose another --save_dir"
        with explained(root, "written", advice, OutputError):
            root.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(root / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            self._first = self._is_first()
            if not self._first and (alone or self._read() != config):
                self.close()
                kind = "another run" if alone else "a run of other settings"
                raise UserError(f"{root}: {kind} is at work in this folder{advice}")

    def settle(self) -> None:
        """The run will take place: those of the same settings may join it."""
        if self._descriptor is not None and self._first:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, self._config.encode(), 0)
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.close()

    def _is_first(self) -> bool:
        """Whether nobody else holds the folder; from now on this run does."""
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            return False
        return True

    def _read(self) -> str:
        assert self._descriptor is not None
        return os.pread(self._descriptor, 100, 0).decode(errors="replace")
