"""Documents of which a command writes a part: what people wrote above it is kept."""

from pathlib import Path

from util.errors import UserError
from util.files import read_bytes


def mark(command: str) -> str:
    """The line below which `command` writes."""
    return f"<!-- {command} writes what follows, and keeps what stands above -->"


def written_above(path: Path, line: str, otherwise: str) -> str:
    """What stands in the document at `path` above the `line` of an earlier writing, to be kept: all
    of it, where there is none yet; `otherwise`, where there is no document. UserError where it
    cannot be read."""
    if not path.exists():
        return otherwise
    try:
        text = read_bytes(path).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8; choose another file") from None
    before, marked, _ = text.partition(line)
    return before if marked or not before else before.rstrip("\n") + "\n\n"
