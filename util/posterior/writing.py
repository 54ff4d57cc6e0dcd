"""The files of a posterior check."""

import io
from pathlib import Path

from util.atomic import write
from util.posterior.figure import figure
from util.posterior.measure import CheckResult
from util.posterior.render import markdown, to_json

NAME = "posterior"


def write_files(folder: Path, result: CheckResult, command: str) -> None:
    buffer = io.BytesIO()
    figure(result).save(buffer, format="PNG", optimize=True)
    write(folder / f"{NAME}.png", buffer.getvalue())
    write(folder / f"{NAME}.md", markdown(result, command, f"{NAME}.png"))
    write(folder / f"{NAME}.json", to_json(result, command))


def check_writable(folder: Path) -> None:
    """UserError, before minutes of work, where nothing can be written."""
    probe = folder / f".{NAME}.part"
    write(probe, "")
    probe.unlink()
