"""The files of tables."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from util.atomic import write
from util.documents import mark, written_above
from util.logger import get_logger
from util.tables.figure import figure
from util.tables.measure import TableResult
from util.tables.render import latex, markdown, to_csv

_JPEG_QUALITY = 85
_MARK = mark("util.make_table --report")


class Writer:
    """Writes a table's files after every cell, so that an interrupted one can be looked at."""

    def __init__(self, folder: Path, name: str, fast: bool) -> None:
        self.folder, self.name, self.fast = folder, name, fast

    def __call__(self, table: TableResult) -> None:
        image = write_figure(self.folder / f"{self.name}.png", table)
        write(self.folder / f"{self.name}.md", markdown(table, image))
        write(self.folder / f"{self.name}.tex", latex(table))
        write(self.folder / f"{self.name}.csv", to_csv(table))
        lines = [
            f"# {result.cell.row.name}, {result.cell.task.name}\n"
            + result.cell.command(table.spec.seeds[0], table.spec.limit, self.fast)
            for row in table.cells
            for result in row
            if result.cell.row.method
        ]
        write(self.folder / f"{self.name}_commands.txt", "\n".join(lines) + "\n")


def write_figure(path: Path, table: TableResult) -> str | None:
    """The table's figure as a PNG or JPEG file, as its ending says, if it has one; its name."""
    picture = figure(table)
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, format=Image.registered_extensions()[path.suffix], quality=_JPEG_QUALITY)
    write(path, buffer.getvalue())
    return path.name


def kept(path: Path) -> str:
    """What stands above the tables in a document of them."""
    return written_above(path, _MARK, "# Results\n\n")


def report(
    path: Path,
    made: Sequence[tuple[str, TableResult]],
    command: str,
    device: torch.device,
    fast: bool,
) -> None:
    """One document with all tables; figures are written beside it. What stands above the mark of an
    earlier one, or in a file without a mark, is kept."""
    before = kept(path)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [
        _MARK,
        "",
        "Measured by this program; `python -m util.make_table` wrote this file:",
        "",
        "    " + command,
        "",
        f"{place}, torch {torch.__version__}, {torch.get_num_threads()} thread(s). Seconds are "
        "those of the clock, whatever else ran. The commands give these numbers on such a machine; "
        "elsewhere rounding differs, and sampling amplifies that as another seed would.",
        "",
    ]
    for name, table in made:
        # A document is carried about, so its pictures are small.
        image = write_figure(path.with_name(f"{path.stem}_{name}.jpg"), table)
        cell = next((c.cell for row in table.cells for c in row if c.cell.row.method), None)
        parts.append(markdown(table, image))
        parts += [f"Photographs: {', '.join(table.names)}.", ""]
        if cell is not None:
            parts += [
                f"One cell alone ({cell.row.name}, {cell.task.name}):",
                "",
                "    " + cell.command(table.spec.seeds[0], table.spec.limit, fast),
                "",
            ]
    write(path, before + "\n".join(parts))
    get_logger().info("wrote %s", path)
