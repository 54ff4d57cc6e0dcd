"""The files of a posterior check."""

import io
from pathlib import Path

from util.atomic import write
from util.documents import mark, written_above
from util.posterior.figure import figure
from util.posterior.measure import CheckResult
from util.posterior.render import markdown, to_json

NAME = "posterior"
_MARK = mark("util.check_posterior")


def write_files(folder: Path, result: CheckResult, command: str) -> None:
    """The page, its picture and its figures; what was written by hand above the page's mark is
    kept."""
    buffer = io.BytesIO()
    figure(result).save(buffer, format="PNG", optimize=True)
    write(folder / f"{NAME}.png", buffer.getvalue())
    page = folder / f"{NAME}.md"
    before = written_above(page, _MARK, f"# {result.spec.title}\n\n")
    write(page, f"{before}{_MARK}\n\n{markdown(result, command, f'{NAME}.png')}")
    write(folder / f"{NAME}.json", to_json(result, command))


def check_writable(folder: Path) -> None:
    """UserError, before minutes of work, where nothing can be written, or a page is there that
    cannot be read."""
    written_above(folder / f"{NAME}.md", _MARK, "")
    probe = folder / f".{NAME}.part"
    write(probe, "")
    probe.unlink()
