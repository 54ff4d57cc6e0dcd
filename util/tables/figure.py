"""The figure of a table: one row of images per method, photographs side by side."""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from util.tables.measure import TableResult
from util.tables.render import noise_notes

_GAP = 4
_HEADER = 22
_FONT_SIZE = 13
_LARGEST = 192  # side of one picture; larger ones are shrunk
_SMALLEST = 128  # smaller ones are enlarged by whole factors, as far as they stay below


def figure(table: TableResult) -> Image.Image | None:
    """Label, then every row of the table, and the noise; None where no picture is wanted or there
    is none."""
    names = table.names[: table.spec.figure_images]
    label_of = _labels(table)
    if not names or not label_of:
        return None
    with Image.open(next(iter(label_of.values()))) as first:
        side = min(_LARGEST, max(first.size))
    side *= max(1, _SMALLEST // side)
    tasks = table.spec.tasks
    pitch = side + _GAP
    titles = ["original", *(row[0].cell.row.name for row in table.cells)]
    font = ImageFont.load_default(_FONT_SIZE)
    margin = 3 * _GAP + int(max(font.getlength(title) for title in titles))
    width = margin + len(tasks) * (len(names) * pitch + _GAP)
    letters = max(20, int(width / font.getlength("n")))
    noise = [line for note in noise_notes(table) for line in textwrap.wrap(note, letters)]
    top = _HEADER + len(titles) * pitch
    sheet = Image.new("RGB", (width, top + len(noise) * _HEADER), "white")
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(noise):
        draw.text((_GAP, top + (i + 0.5) * _HEADER), line, "black", font, anchor="lm")

    def column(i: int, j: int) -> int:
        return margin + i * (len(names) * pitch + _GAP) + j * pitch

    for i, task in enumerate(tasks):
        draw.text((column(i, 0), _HEADER / 2), task.name, "black", font, anchor="lm")
        for j, name in enumerate(names):
            _paste(sheet, label_of.get(name), (column(i, j), _HEADER), side)
    for k, title in enumerate(titles):
        draw.text((_GAP, _HEADER + k * pitch + side / 2), title, "black", font, anchor="lm")
    for k, row in enumerate(table.cells, 1):
        for i, cell in enumerate(row):
            for j, name in enumerate(names):
                at = (column(i, j), _HEADER + k * pitch)
                _paste(sheet, cell.pictures.get(name, (None, None))[1], at, side)
    return sheet


def _labels(table: TableResult) -> dict[str, Path]:
    for row in table.cells:
        for cell in row:
            if cell.pictures:
                return {name: pair[0] for name, pair in cell.pictures.items()}
    return {}


def _paste(sheet: Image.Image, path: Path | None, at: tuple[int, int], side: int) -> None:
    """A picture, or a dash on grey where the cell has none."""
    if path is None or not path.is_file():
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((*at, at[0] + side - 1, at[1] + side - 1), fill=(235, 235, 235))
        draw.text((at[0] + side / 2, at[1] + side / 2), "-", fill="black", anchor="mm")
        return
    with Image.open(path) as image:
        enlarged = side % image.width == 0 and image.width == image.height
        how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
        sheet.paste(image.convert("RGB").resize((side, side), how), at)
