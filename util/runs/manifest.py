"""What a results folder already holds: one JSON line per image, appended when it is finished.

Each rank of a job appends to its own file, manifest.RANK.jsonl; all of them are read at the
start. Lines are of three kinds:

  {"settings": {...}, "config": HASH}   the settings that decide the pixels
  {"file": ..., "config": HASH, ...}    one image: the fields of Record
  {"sets": {...}, "config": HASH}       metrics of sets of images (FID)
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.dataloader import output_name
from util.errors import OutputError, UserError
from util.files import explained, is_run_record
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
    evaluations: float = 0.0  # of the network
    gradients: float = 0.0  # passes back through it
    residual: float | None = None  # || y - A(x) || of the restored image
    expected_residual: float | None = None  # what the stated noise alone would leave
    metrics: dict[str, float] = field(default_factory=dict)  # where there is a label
    spread: dict[str, float] = field(default_factory=dict)  # of several samples, see spread_columns
    error: str | None = None
    source: dict[str, Any] = field(default_factory=dict)  # see Sources.mark
    files: dict[str, Any] = field(default_factory=dict)  # see Results.marks

    @property
    def done(self) -> bool:
        return self.error is None

    @property
    def output(self) -> str:
        """Path of the image's result files below their folder, without ending."""
        return output_name(self.file)


_FIELDS = {f.name for f in dataclasses.fields(Record)}


class Manifest:
    """The file that one rank appends to."""

    def __init__(self, root: Path, rank: int = 0) -> None:
        self.path = root / f"manifest.{rank}.jsonl"

    def append(self, record: Record) -> None:
        line = dataclasses.asdict(record)
        if not record.spread:  # of one sample: the line is what it was before there were several
            del line["spread"]
        self._append(line)

    def append_settings(self, settings: Mapping[str, Any]) -> None:
        self._append({"settings": dict(settings), "config": settings_hash(settings)})

    def append_sets(self, sets: Mapping[str, float], config: str) -> None:
        """Metrics of sets of images, by a name that tells the set."""
        self._append({"sets": dict(sets), "config": config})

    def _append(self, line: Mapping[str, Any]) -> None:
        """On the disk when this returns. A line torn by an earlier crash is left behind."""
        data = json.dumps(line).encode() + b"\n"
        advice = "; free some space or choose another --save_dir"
        with explained(self.path, "written", advice, OutputError):
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


def read_records(root: Path, config: str) -> dict[str, Record]:
    """The latest record of every image that was restored with the settings `config`, by name.

    In one file the last line counts. Between the files of several ranks the later time does; none
    can be later than its file was written to, whatever a clock said.
    """
    records: dict[str, Record] = {}
    for path in _files(root):
        own: dict[str, Record] = {}
        for line in _lines_of(path):
            record = _record(line)
            if record is not None and record.config == config:
                own[record.file] = record
        written = path.stat().st_mtime
        for name, record in own.items():
            record = dataclasses.replace(record, time=min(record.time, written))
            known = records.get(name)
            if known is None or record.time >= known.time:
                records[name] = record
    return records


def _record(line: Mapping[str, Any]) -> Record | None:
    """The record that a line holds; None where it holds another thing, or values of other types
    than a record has."""
    try:
        record = Record(**{k: v for k, v in line.items() if k in _FIELDS})
    except TypeError:  # a field is missing
        return None
    if not _are(dict, record.metrics, record.spread, record.source, record.files):
        return None
    numbers = [record.time, record.seconds, *record.metrics.values(), *record.spread.values()]
    optional = [record.residual, record.expected_residual]
    right = (
        record.file
        and _are(str, record.file, record.config)
        and _are(str | None, record.error)
        and all(map(_is_number, numbers))
        and all(value is None or _is_number(value) for value in optional)
        and _are(dict, *record.source.values(), *record.files.values())
    )
    return record if right else None


def _are(kind: Any, *values: Any) -> bool:
    return all(isinstance(value, kind) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_sets(root: Path, config: str) -> dict[str, float]:
    """Metrics of sets of images, as `Manifest.append_sets` keeps them."""
    sets: dict[str, float] = {}
    for line in _lines(root):
        if line["config"] == config and isinstance(line.get("sets"), dict):
            sets |= {k: v for k, v in line["sets"].items() if _is_number(v)}
    return sets


def check_settings(root: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder was begun with these settings; UserError if with others.

    False: nothing is recorded in it.
    """
    config = settings_hash(settings)
    begun = False
    for line in _lines(root):
        if line.get("config") != config and _record(line) is not None:
            raise UserError(
                f"{root}: holds results of other settings ({_differences(root, line, settings)}). "
                "To replace them use --overwrite, to keep them another --save_dir"
            )
        begun = begun or line.get("config") == config
    return begun


def recorded_names(root: Path) -> set[str]:
    """Names of all images that were recorded, whatever the settings and whether done or not."""
    return {record.file for line in _lines(root) if (record := _record(line)) is not None}


def forget(root: Path) -> None:
    """Remove the manifests, so that every image is restored again."""
    for path in _files(root):
        with explained(path, "removed"):
            path.unlink(missing_ok=True)


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


def _files(root: Path) -> list[Path]:
    with explained(root, "read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(root / name for name in os.listdir(root) if is_run_record(name))
    return []


def _lines(root: Path) -> Iterator[dict[str, Any]]:
    """All whole lines of all manifests."""
    for path in _files(root):
        yield from _lines_of(path)


def _lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of one manifest; torn and foreign ones are passed over."""
    with explained(path, "read"):
        text = path.read_bytes()
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("config"), str):
            yield line
