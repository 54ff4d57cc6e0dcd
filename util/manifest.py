"""What a results folder already holds: one JSON line per image, appended when it is finished.

Each rank of a job appends to its own file, manifest.RANK.jsonl; all of them are read at the
start. Lines are of two kinds:

  {"settings": {...}, "config": HASH}   the settings that decide the pixels
  {"file": ..., "config": HASH, ...}    one image: the fields of Record
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.hashing import settings_hash

_SHOWN_DIFFERENCES = 3
_MISSING = "nothing"


@dataclass(frozen=True)
class Record:
    """One image of a run: finished, or failed with an `error`."""

    file: str  # name in the data set
    config: str  # hash of the settings that decide the pixels
    seed: int
    time: float  # when it was finished, seconds since 1970
    seconds: float = 0.0  # that its restoration took
    residual: float | None = None  # || y - A(x) || of the restored image
    expected_residual: float | None = None  # what the stated noise alone would leave
    metrics: dict[str, float] = field(default_factory=dict)  # where there is a label
    error: str | None = None
    source: dict[str, Any] = field(default_factory=dict)  # see Sources.mark

    @property
    def done(self) -> bool:
        return self.error is None


_FIELDS = {f.name for f in dataclasses.fields(Record)}
_REQUIRED = {"file", "config", "seed", "time"}


class Manifest:
    """The file that one rank appends to."""

    def __init__(self, root: Path, rank: int = 0) -> None:
        self.path = root / f"manifest.{rank}.jsonl"

    def append(self, record: Record) -> None:
        self._append(dataclasses.asdict(record))

    def append_settings(self, settings: Mapping[str, Any]) -> None:
        self._append({"settings": dict(settings), "config": settings_hash(settings)})

    def _append(self, line: Mapping[str, Any]) -> None:
        """On the disk when this returns. A line torn by an earlier crash is left behind."""
        data = json.dumps(line).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+") as file:
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(size - 1)
                    if file.read(1) != b"\n":
                        data = b"\n" + data
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space or "
                "choose another --save_dir"
            ) from None


def read_records(root: Path, config: str) -> dict[str, Record]:
    """The latest record of every image that was restored with the settings `config`, by name."""
    records: dict[str, Record] = {}
    for line in _lines(root):
        if line.keys() >= _REQUIRED and line["config"] == config:
            record = Record(**{k: v for k, v in line.items() if k in _FIELDS})
            known = records.get(record.file)
            if known is None or record.time >= known.time:
                records[record.file] = record
    return records


def check_settings(root: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder was begun with these settings; UserError if with others.

    False: nothing is recorded in it.
    """
    config = settings_hash(settings)
    begun = False
    for line in _lines(root):
        if line.get("config") != config and "file" in line:
            raise UserError(
                f"{root}: holds results of other settings ({_differences(root, line, settings)}). "
                "To replace them use --overwrite, to keep them another --save_dir"
            )
        begun = begun or line.get("config") == config
    return begun


def recorded_names(root: Path) -> set[str]:
    """Names of all images that were recorded, whatever the settings and whether done or not."""
    return {str(line["file"]) for line in _lines(root) if "file" in line}


def forget(root: Path) -> None:
    """Remove the manifests, so that every image is restored again."""
    for path in _files(root):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be removed ({error.strerror or error})") from None


def _differences(root: Path, line: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    stored = next(
        (d["settings"] for d in _lines(root) if "settings" in d and d["config"] == line["config"]),
        None,
    )
    if stored is None:
        return "which ones is not recorded"
    now = json.loads(json.dumps(settings, default=str))
    there, here = dict(_flat(stored)), dict(_flat(now))
    different = [
        f"{key}: {there.get(key, _MISSING)} there, {here.get(key, _MISSING)} now"
        for key in [*there, *(k for k in here if k not in there)]
        if there.get(key, _MISSING) != here.get(key, _MISSING)
    ]
    more = len(different) - _SHOWN_DIFFERENCES
    return "; ".join(different[:_SHOWN_DIFFERENCES]) + (f"; {more} more" if more > 0 else "")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def holds_results(root: str | Path) -> bool:
    """Whether a run was recorded in this folder."""
    return bool(_files(Path(root)))


def _files(root: Path) -> list[Path]:
    return sorted(root.glob("manifest.*.jsonl"))


def _lines(root: Path) -> Iterator[dict[str, Any]]:
    """All whole lines of all manifests; torn ones are passed over."""
    for path in _files(root):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        for raw in text.splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict) and "config" in line:
                yield line
