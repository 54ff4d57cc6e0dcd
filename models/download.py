"""Fetch a published checkpoint.

    python -m models.download ffhq       # FFHQ 256x256, 374 MB
    python -m models.download imagenet   # ImageNet 256x256, 2.2 GB

An interrupted download goes on where it stopped when the command is repeated. The file appears
under its name only after its SHA-256 was checked.
"""

import http.client
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from util.cli import command_parser, report_errors
from util.errors import UserError
from util.hashing import file_hash

SOURCE = "https://huggingface.co/deepinv/diffunet/resolve/main"
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
    if target.exists():
        if file_hash(target) == checkpoint.sha256:
            return target
        raise UserError(
            f"{target}: exists, but is not the published file (SHA-256 differs); move it away "
            "and repeat the command"
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    url = f"{source}/{checkpoint.remote}"
    try:
        _fetch(url, part, checkpoint.size)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url}: {reason}; repeat the command to go on where it stopped, or fetch the file by "
            f"other means and put it at {target}"
        ) from None
    if part.stat().st_size != checkpoint.size or file_hash(part) != checkpoint.sha256:
        part.unlink()
        raise UserError(
            f"{url}: what arrived is not the published file (SHA-256 differs) and was removed; "
            "repeat the command"
        )
    os.replace(part, target)
    return target


def _fetch(url: str, part: Path, size: int) -> None:
    """Append to `part` what is missing of the `size` bytes at `url`."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (https)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310 (https)
        if have and response.status != http.client.PARTIAL_CONTENT:
            have = 0  # a server that cannot resume sends everything again
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size < size:
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
