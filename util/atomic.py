"""Files that appear whole or not at all."""

import os
import tempfile
import time
from pathlib import Path

from util.errors import UserError
from util.files import explained


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Read once: it can only be read by setting it, which threads would see.
_UMASK = _read_umask()


_PREFIX, _SUFFIX = ".", ".part"
_ABANDONED_SECONDS = 3600  # no file takes so long to write


def _replace(path: Path, data: bytes | memoryview) -> None:
    """Write a temporary file beside `path`, then move it there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX, suffix=_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write(
    path: Path,
    data: bytes | memoryview | str,
    advice: str = "",
    kind: type[UserError] = UserError,
) -> None:
    """Write a whole file and the folders above it; what of a file's name is no UTF-8 is escaped in
    text. Readers see the old file or the new one, never a part.

    Raises a `kind` of error, which ends with `advice`, where that cannot be done; then nothing of
    it is left behind.
    """
    data = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    with explained(path, "written", advice, kind):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)


def sweep(folder: str | Path) -> None:
    """Remove the temporary files that processes killed while writing have left below `folder`."""
    for path in Path(folder).rglob(f"{_PREFIX}*{_SUFFIX}"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
        except OSError:  # of another user, or gone already: it is only litter
            continue
