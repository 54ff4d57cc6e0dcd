"""Files that somebody else made: opened only where they are plain files of a bounded size.

A pipe among the photographs would be waited for without end, a link to /dev/zero read without end;
both look like files by their names.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from util.errors import UserError
from util.hashing import stream_hash

PROJECT = Path(__file__).resolve().parent.parent  # where this program and its configs lie
INSTALLED = not (PROJECT / "pyproject.toml").is_file()  # not a clone: its commands are dpps-...
LARGEST = 4 << 30  # bytes of a photograph, mask, kernel or config


def open_regular(path: str | Path, largest: int | None = None) -> BinaryIO:
    """The plain file at `path`, opened for reading.

    Raises UserError where there is none, where something else has that name (a folder, a pipe, a
    device), where it may not be read, and where it has more than `largest` bytes.
    """
    try:
        # A pipe without a writer would block here.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UserError(f"{shown(path)}: {_reason(error)}") from None
    status, problem = os.fstat(descriptor), ""
    if stat.S_ISDIR(status.st_mode):
        problem = "is a folder"
    elif not stat.S_ISREG(status.st_mode):
        problem = "is no plain file"
    elif largest is not None and status.st_size > largest:
        size = f"{status.st_size:,} bytes"
        problem = f"{size} are more than this kind of file has (at most {largest:,})"
    if problem:
        os.close(descriptor)
        raise UserError(f"{shown(path)}: {problem}")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | Path, largest: int = LARGEST) -> bytes:
    """What the plain file at `path` holds; UserError as above."""
    with open_regular(path, largest) as file:
        try:
            # Not read(largest): that many bytes would be set aside.
            return file.read(os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise UserError(f"{shown(path)}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


_SHOWN = 200  # characters of a name


def shown(path: str | Path) -> str:
    """A path for a message, cut where it is very long."""
    text = str(path)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


@contextlib.contextmanager
def explained(
    path: str | Path, what: str, advice: str = "", kind: type[UserError] = UserError
) -> Iterator[None]:
    """Where the system refuses something meanwhile: "PATH: cannot be WHAT (why)ADVICE" as a `kind`
    of error."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise kind(f"{shown(path)}: cannot be {what} ({reason}){advice}") from None


def file_mark(path: Path) -> dict[str, Any]:
    """Size, time and SHA-256 of a plain file; UserError where there is none."""
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        digest = stream_hash(file)
    return {"bytes": status.st_size, "mtime": status.st_mtime_ns, "sha256": digest}


def same_file(path: Path, mark: Mapping[str, Any]) -> bool:
    """Whether the file is the marked one; it is read only where its time differs."""
    if not mark:
        return True
    try:
        status = path.stat()
        if status.st_size != mark.get("bytes"):
            return False
        if status.st_mtime_ns == mark.get("mtime"):
            return True
        with open_regular(path) as file:
            return stream_hash(file) == mark.get("sha256")
    except (OSError, UserError):
        return True


_RUN_RECORDS = re.compile(r"manifest\.\d+\.jsonl")


def is_run_record(name: str) -> bool:
    """Whether a file of this name holds the records of a run, by which its folder is known."""
    return _RUN_RECORDS.fullmatch(name) is not None


def holds_results(root: str | Path) -> bool:
    """Whether a run was recorded in this folder; False for one that cannot be read."""
    try:
        return any(map(is_run_record, os.listdir(root)))
    except OSError:
        return False
