"""Fetch a published checkpoint.

    python -m models.download ffhq       # FFHQ 256x256, 374 MB
    python -m models.download imagenet   # ImageNet 256x256, 2.2 GB

An interrupted download goes on where it stopped when the command is repeated. The file appears
under its name only after its SHA-256 was checked. Where huggingface_hub is installed, it fetches
the file, by the mirror, proxy and token that it is set up for.
"""

import contextlib
import http.client
import os
import shutil
import stat
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from util.cli import command_parser, report_errors
from util.errors import UserError, first_line
from util.files import open_regular, shown
from util.hashing import stream_hash
from util.logger import get_logger

_REPOSITORY = "deepinv/diffunet"
SOURCE = f"https://huggingface.co/{_REPOSITORY}/resolve/main"
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Checkpoint:
    """A published file: its name at the source and here, and what proves it whole."""

    remote: str
    local: str
    size: int  # bytes
    sha256: str
    config: str  # model config that fits


CHECKPOINTS = {
    "ffhq": Checkpoint(
        "diffusion_ffhq_10m.pt",
        "ffhq_10m.pt",
        374417833,
        "81d535743156ec6be34d8668e6920da94f0614074d7793a16c8fa9e306237faa",
        "configs/model_config.yaml",
    ),
    "imagenet": Checkpoint(
        "diffusion_openai.pt",
        "imagenet256.pt",
        2211383297,
        "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        "configs/imagenet_model_config.yaml",
    ),
}


def download(checkpoint: Checkpoint, folder: Path, source: str = SOURCE) -> Path:
    """Fetch `checkpoint` into `folder` unless it is there and whole; returns its path.

    Raises UserError when the source cannot be reached or sends other bytes; what has arrived of
    an interrupted transfer stays in `<name>.part` for the next try.
    """
    target = folder / checkpoint.local
    if os.path.lexists(target):
        if _is_whole(target, checkpoint):
            return target
        raise UserError(
            f"{target}: exists, but is not the published file (SHA-256 differs); move it away "
            "and repeat the command"
        )
    url = _checked_url(f"{source}/{checkpoint.remote}")
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--folder {shown(folder)}: cannot be used ({error.strerror})") from None
    if source == SOURCE and not part.exists() and _by_hub(checkpoint, target):
        return target
    try:
        with _alone(part) as file:
            _fetch(url, file, part.stem, checkpoint.size)
            file.seek(0)
            whole = stream_hash(file) == checkpoint.sha256
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url}: {reason}; repeat the command to go on where it stopped, or fetch the file by "
            f"other means and put it at {target}"
        ) from None
    if not whole:
        part.unlink(missing_ok=True)
        raise UserError(
            f"{url}: what arrived is not the published file (SHA-256 differs) and was removed; "
            "repeat the command"
        )
    try:
        os.replace(part, target)
    except FileNotFoundError:  # another download has just finished
        if not target.is_file():
            raise
    return target


def _is_whole(path: str | Path, checkpoint: Checkpoint) -> bool:
    with open_regular(path) as file:
        return stream_hash(file) == checkpoint.sha256


def _by_hub(checkpoint: Checkpoint, target: Path) -> bool:
    """Whether huggingface_hub, where it is installed, has put the whole file at `target`."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        return False
    place = target.with_name(f".{target.name}")  # what an interrupted transfer leaves stays there
    try:
        fetched = hf_hub_download(_REPOSITORY, checkpoint.remote, local_dir=place)
        whole = _is_whole(fetched, checkpoint)
        if whole:
            os.replace(fetched, target)
        shutil.rmtree(place)
        if whole:
            return True
        reason = "sent another file"
    except Exception as error:  # of the network, the disk or the package
        reason = first_line(error)
    get_logger().info("huggingface_hub: %s; trying %s directly", reason, SOURCE)
    return False


def _checked_url(url: str) -> str:
    """`url`, escaped where it has other characters than a URL may; UserError for what is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = "" if parts.port is None else f":{parts.port}"
    except (ValueError, UnicodeError) as error:
        raise UserError(f"--source: {url}: is no URL ({error})") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"--source: {url}: expected a URL that begins with https:// or http://")
    path = urllib.parse.quote(parts.path, safe="/%")
    host = f"[{host}]" if ":" in host else host
    return urllib.parse.urlunsplit((parts.scheme, host + port, path, parts.query, ""))


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """The open file `part`, which no other download writes to at the same time.

    Raises UserError where one does, and where something else than a file has this name.
    """
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        raise UserError(f"{part}: cannot be written ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{part}: is no plain file; move it away")
    with os.fdopen(descriptor, "r+b") as file:
        if not _lock(file):
            raise UserError(f"{part}: another download is writing to it; wait for that one")
        yield file


def _lock(file: BinaryIO) -> bool:
    """Whether the file is this process's alone now; where files cannot be locked, it is taken to
    be."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _fetch(url: str, file: BinaryIO, name: str, size: int) -> None:
    """Append to the open file what is missing of the `size` bytes at `url`."""
    have = file.seek(0, os.SEEK_END)
    if have >= size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (checked)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310 (checked)
        if have and response.status != http.client.PARTIAL_CONTENT:
            have = 0  # a server that cannot resume sends everything again
            file.seek(0)
            file.truncate()
        with tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=name) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    file.flush()
    if file.tell() < size:
        raise urllib.error.URLError("the connection ended early")


@report_errors
def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument("name", choices=sorted(CHECKPOINTS), help="which checkpoint")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parent,
        help="where to put it (default: models/)",
    )
    parser.add_argument("--source", default=SOURCE, help="folder URL of a mirror")
    args = parser.parse_args(argv)
    checkpoint = CHECKPOINTS[args.name]
    path = download(checkpoint, args.folder, args.source)
    print(f"{path}: complete; use it with --model_config={checkpoint.config}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; repeat the command to go on", file=sys.stderr)
        sys.exit(130)
