"""SHA-256 of files, folders, arrays and settings: what tells one input of a run from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 1 << 20  # bytes read at a time
_SHORT = 16  # hex digits of a mark


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex; OSError where it cannot be read."""
    with open(path, "rb") as file:
        return stream_hash(file)


def stream_hash(file: BinaryIO) -> str:
    """SHA-256, in hex, of what is left to read in an open file."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def path_mark(path: str | Path) -> str:
    """Mark of what a file, or a folder of files, holds; where it lies does not count."""
    path = Path(path)
    if path.is_file():
        return _mark(file_hash(path))
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listing = "\n".join(f"{p.relative_to(path).as_posix()} {file_hash(p)}" for p in files)
    return _mark(_text_hash(listing))


def array_mark(array: np.ndarray) -> str:
    """Mark of an array's values."""
    import numpy as np

    return _mark(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hash of nested settings; the order of keys does not count, nor tuples against lists."""
    return _text_hash(json.dumps(settings, sort_keys=True, default=str))[:_SHORT]


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _mark(digest: str) -> str:
    return f"sha256 {digest[:_SHORT]}"
