"""Measured tables as Markdown, LaTeX (booktabs) and CSV."""

import csv
import io
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from guided_diffusion.noise_models import NOISES
from util.config.schema import Component
from util.metrics.base import get_metric
from util.statistics import Mean, Paired
from util.tables.measure import CellResult, TableResult
from util.tables.spec import Published, PublishedRow

_DASH = "-"
_CSV_COLUMNS = (
    *("method", "task", "metric", "mean", "standard_error", "photographs", "seeds"),
    *("seconds_per_image", "evaluations", "gradients", "problem"),
    *("sigma_on_minus_1_to_1", "sigma_on_0_to_1"),
)
_PUBLISHED_TITLE = "published, not measured here and not ranked"


@dataclass(frozen=True)
class Entry:
    """One printed value and its place in its column: 1 best, 2 second, 0 others."""

    text: str
    place: int = 0


Grid = list[list[Entry]]
_NFE = "NFE"


def _head(task: str, metric: str) -> str:
    return f"{task}: {get_metric(metric).head}"


def grid(table: TableResult) -> tuple[list[str], Grid]:
    """Column titles and entries: the name, task by task the metrics, seconds and evaluations."""
    columns: list[tuple[str, list[Entry]]] = []
    rows = table.cells
    columns.append(("Method", [Entry(row[0].cell.row.name) for row in rows]))
    for i, task in enumerate(table.spec.tasks):
        column = [row[i] for row in rows]
        for metric in table.metrics:
            columns.append((_head(task.name, metric), _ranked(table, column, metric)))
        if any(c.steadiness for c in column):
            columns.append((f"{task.name}: std over seeds", _steady(table, column)))
    columns.append(("s/image", [_average(row, "seconds", 2) for row in rows]))
    columns.append((_NFE, [_average(row, "evaluations", 0) for row in rows]))
    columns.append(("with gradient", [_average(row, "gradients", 0) for row in rows]))
    entries = [list(line) for line in zip(*(entries for _, entries in columns), strict=True)]
    return [title for title, _ in columns], entries


def published_grid(table: TableResult, head: Sequence[str]) -> list[list[str]]:
    """Rows of figures that others published, under the column titles `head` of `grid`."""
    return [
        _published_line(table, head, label, source, row)
        for label, source in zip(string.ascii_lowercase, table.spec.published, strict=False)
        for row in source.rows
    ]


def _published_line(
    table: TableResult, head: Sequence[str], label: str, source: Published, row: PublishedRow
) -> list[str]:
    texts = {
        _head(task, metric): f"{value:.{get_metric(metric).digits}f}"
        for task, values in row.values.items()
        for metric, value in values.items()
    }
    texts["Method"] = f"{row.name} [{label}]"
    if source.sigma is not None:
        texts["Method"] += f", sigma {source.sigma:g}"
    if row.nfe is not None:
        texts[_NFE] = str(row.nfe)
    return [texts.get(title, _DASH) for title in head]


def _ranked(table: TableResult, column: Sequence[CellResult], metric: str) -> list[Entry]:
    means = [cell.mean(metric) for cell in column]
    texts = [
        _dash(table, cell) if mean is None else _mean(mean, get_metric(metric).digits)
        for cell, mean in zip(column, means, strict=True)
    ]
    values = [None if m is None else m.value for m in means]
    return _placed(texts, values, get_metric(metric).higher_is_better)


def _steady(table: TableResult, column: Sequence[CellResult]) -> list[Entry]:
    """Not ranked: the measurement itself would win."""
    means = [None if c.problem else c.steadiness for c in column]
    return [
        Entry(_dash(table, c) if m is None else _mean(m, 2))
        for c, m in zip(column, means, strict=True)
    ]


def _placed(texts: Sequence[str], values: Sequence[float | None], higher: bool) -> list[Entry]:
    """Ties share a place."""
    known = sorted({v for v in values if v is not None}, reverse=higher)
    if len([v for v in values if v is not None]) < 2:
        known = []
    places = {value: i + 1 for i, value in enumerate(known[:2])}
    return [
        Entry(t, 0 if v is None else places.get(v, 0)) for t, v in zip(texts, values, strict=True)
    ]


def _dash(table: TableResult, cell: CellResult) -> str:
    if cell.problem is None:
        return _DASH
    return f"{_DASH} [{table.problems.index(cell.problem) + 1}]"


def _mean(mean: Mean, digits: int) -> str:
    error = "" if mean.error is None else f" ({mean.error:.{digits}f})"
    return f"{mean.value:.{digits}f}{error}"


def _average(row: Sequence[CellResult], what: str, digits: int) -> Entry:
    values = [v for cell in row if cell.problem is None for v in getattr(cell, what)]
    return Entry(f"{np.mean(values):.{digits}f}" if values else _DASH)


def paired_grid(table: TableResult) -> tuple[list[str], list[list[str]]] | None:
    """The row `compare` minus the others, with confidence intervals; None without `compare`."""
    spec = table.spec
    reference = next((r for r in table.cells if r[0].cell.row.name == spec.compare), None)
    metrics = [m for m in table.metrics if not get_metric(m).of_sets]
    if reference is None:
        return None
    head = [f"{spec.compare} minus"]
    head += [f"{task.name}: {get_metric(m).head}" for task in spec.tasks for m in metrics]
    lines = []
    for row in table.cells:
        if row is reference:
            continue
        cells = [
            _paired(ours.against(theirs, m), get_metric(m).digits)
            for ours, theirs in zip(reference, row, strict=True)
            for m in metrics
        ]
        lines.append([row[0].cell.row.name, *cells])
    return head, lines


def _paired(paired: Paired | None, digits: int) -> str:
    if paired is None:
        return _DASH
    text = f"{paired.difference:+.{digits}f}"
    if paired.low is None:
        return text
    return f"{text} [{paired.low:+.{digits}f}, {paired.high:+.{digits}f}]"


def _sigma(sigma: float) -> str:
    return f"sigma {sigma:g} on the range [-1, 1], which is {sigma / 2:g} on [0, 1]"


def _noise(noise: Component) -> str:
    settings = noise.settings(NOISES)
    if "sigma" in settings:
        return f"Noise {_sigma(settings['sigma'])}"
    return " ".join(["Noise:", noise.name, *(f"{k} {v}" for k, v in settings.items())])


def noise_notes(table: TableResult) -> list[str]:
    """The noise of the measurements; where it differs, of which tasks, and of which rows."""
    found: dict[str, list[str]] = {}
    for column in zip(*table.cells, strict=True):
        by_noise: dict[str, list[str]] = {}
        for result in column:
            noise = _noise(result.cell.config.task.noise)
            by_noise.setdefault(noise, []).append(result.cell.row.name)
        for noise, rows in by_noise.items():
            of_rows = f" ({', '.join(rows)})" if len(by_noise) > 1 else ""
            found.setdefault(noise, []).append(column[0].cell.task.name + of_rows)
    if len(found) == 1:
        return [f"{next(iter(found))}."]
    return [f"{noise}: {'; '.join(tasks)}." for noise, tasks in found.items()]


def published_notes(table: TableResult) -> list[str]:
    """Sources of published figures, their noise, and where it is not that of this table."""
    notes = []
    for label, source in zip(string.ascii_lowercase, table.spec.published, strict=False):
        noise = (
            "noise level not stated" if source.sigma is None else f"noise {_sigma(source.sigma)}"
        )
        named = {task for row in source.rows for task in row.values}
        other = [
            result.cell.task.name
            for result in table.cells[0]
            if result.cell.task.name in named
            and source.sigma is not None
            and result.cell.config.task.noise.settings(NOISES).get("sigma") != source.sigma
        ]
        differs = f" That is not the noise of this table in {'; '.join(other)}." if other else ""
        note = f" {source.note.strip()}" if source.note.strip() else ""
        notes.append(f"[{label}] {source.source}; {noise}.{differs}{note}")
    return notes


def footnotes(table: TableResult) -> list[str]:
    """What a reader has to know, numbered reasons for dashes last."""
    spec = table.spec
    seeds = f"{len(spec.seeds)} seed(s) each"
    size = table.cells[0][0].cell.config.model.image_size
    notes = [
        f"{len(table.names)} photograph(s) at {size}x{size}, {seeds}. In brackets: standard error "
        "over the photographs. Best bold, second underlined. NFE: network evaluations per image, "
        "and how many passes back through the network there were."
    ]
    notes += noise_notes(table)
    if spec.precision is not None:
        notes.append(f"The network ran in {spec.precision}.")
    if spec.steadiness:
        enough = any(c.steadiness for row in table.cells for c in row)
        kept = "fixed" if spec.measurement_seed is not None else "drawn anew for every seed"
        notes.append(
            "Std over seeds: per-pixel standard deviation over the seeds, mean over pixels, in "
            f"grey levels of 255; measurement {kept}."
            if enough
            else "Std over seeds left out: it needs at least 5 seeds."
        )
    notes += [spec.note.strip()] if spec.note.strip() else []
    notes += table.notes
    notes += published_notes(table)
    notes += [f"[{i}] {problem}" for i, problem in enumerate(table.problems, 1)]
    return notes


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _italic(text: str) -> str:
    return text if text == _DASH else f"*{_cell(text)}*"


def _markdown_entry(entry: Entry) -> str:
    text = _cell(entry.text)
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(entry.place, text)


def _markdown_rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *lines)]


def markdown(table: TableResult, figure: str | None = None) -> str:
    """The table, its footnotes, paired differences and the figure."""
    head, entries = grid(table)
    parts = [f"## {table.spec.title}", ""]
    lines = [[_markdown_entry(e) for e in line] for line in entries]
    published = published_grid(table, head)
    if published:
        lines.append([f"*{_PUBLISHED_TITLE}:*", *[""] * (len(head) - 1)])
        lines += [[_italic(text) for text in line] for line in published]
    parts += _markdown_rows(head, lines)
    parts += ["", *(line for note in footnotes(table) for line in (note, ""))]
    paired = paired_grid(table)
    if paired is not None:
        parts += [
            "Paired differences on the same photographs and seeds, with 95% confidence intervals "
            "(Student's t over the photographs):",
            "",
            *_markdown_rows(*paired),
            "",
        ]
    if figure is not None:
        parts += [f"![{table.spec.title}]({figure})", ""]
    return "\n".join(parts)


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def latex(table: TableResult) -> str:
    """A `tabular` for the booktabs package (and xcolor, where there are published figures), tasks
    as column groups; the noise below it, other footnotes as comments."""
    head, entries = grid(table)
    tasks = table.spec.tasks
    groups = [sum(h.startswith(f"{task.name}: ") for h in head) for task in tasks]
    rest = len(head) - 1 - sum(groups)
    top = [""] + [
        f"\\multicolumn{{{n}}}{{c}}{{{_escape(t.name)}}}"
        for n, t in zip(groups, tasks, strict=True)
    ]
    rules, first = [], 2
    for n in groups:
        rules.append(f"\\cmidrule(lr){{{first}-{first + n - 1}}}")
        first += n
    titles = [_escape(h.split(": ", 1)[-1]) for h in head]
    wrap: dict[int, Callable[[str], str]] = {
        1: lambda s: f"\\textbf{{{s}}}",
        2: lambda s: f"\\underline{{{s}}}",
    }
    body = [
        " & ".join(wrap.get(e.place, str)(_escape(e.text)) for e in line) + " \\\\"
        for line in entries
    ]
    published = published_grid(table, head)
    if published:
        grey = "\\textcolor{gray}"
        body.append("\\midrule")
        body += [" & ".join(f"{grey}{{{_escape(t)}}}" for t in p) + " \\\\" for p in published]
    needed = ["booktabs", *(["xcolor"] if published else [])]
    below = [
        f"\\multicolumn{{{len(head)}}}{{p{{\\linewidth}}}}{{\\footnotesize {_escape(note)}}} \\\\"
        for note in (*noise_notes(table), *published_notes(table))
    ]
    comments = [f"% {line}" for note in footnotes(table) for line in note.splitlines()]
    return "\n".join(
        [
            f"% {table.spec.title}; needs \\usepackage{{{','.join(needed)}}}",
            *comments,
            f"\\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}",
            "\\toprule",
            " & ".join(top + [""] * rest) + " \\\\",
            " ".join(rules),
            " & ".join(titles) + " \\\\",
            "\\midrule",
            *body,
            "\\bottomrule",
            *below,
            "\\end{tabular}",
            "",
        ]
    )


def to_csv(table: TableResult) -> str:
    """One line per cell and metric, numbers unrounded; cells without values say why. Figures that
    others published are not among them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    seeds = len(table.spec.seeds)
    for row in table.cells:
        for cell in row:
            names = [cell.cell.row.name, cell.cell.task.name]
            sigma = cell.cell.config.task.noise.settings(NOISES).get("sigma")
            noise = ["", ""] if sigma is None else [sigma, sigma / 2]
            if cell.problem is not None:
                writer.writerow([*names, "", "", "", "", "", "", "", "", cell.problem, *noise])
                continue
            costs = [float(np.mean(v)) for v in (cell.seconds, cell.evaluations, cell.gradients)]
            means = {m: cell.mean(m) for m in table.metrics}
            if cell.steadiness is not None:
                means["std_over_seeds"] = cell.steadiness
            for metric, mean in means.items():
                if mean is None:  # of no image large enough
                    continue
                numbers = [mean.value, "" if mean.error is None else mean.error]
                counts = [len(table.names), seeds, *costs]
                writer.writerow([*names, metric, *numbers, *counts, "", *noise])
    return text.getvalue()
