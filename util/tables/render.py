"""Measured tables as Markdown, LaTeX (booktabs) and CSV."""

import csv
import io
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from guided_diffusion.noise_models import NOISES
from util.config.schema import Component
from util.metrics.base import get_metric
from util.statistics import Mean, Paired
from util.tables.cells import NOT_RUN
from util.tables.measure import CellResult, TableResult

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


@dataclass(frozen=True)
class Column:
    """One figure of every method. `task` and `what`: "SR x4" and "PSNR (dB)"; costs are of no
    task. `paired`: the row `compare` minus this one, where that can be said."""

    task: str
    what: str
    entries: Sequence[Entry]
    published: Sequence[str]
    paired: Sequence[str] | None = None

    @property
    def title(self) -> str:
        return f"{self.task}: {self.what}" if self.task else self.what


_NFE = "NFE"
_STEADY = "std over seeds"
_LEAST_IMAGES = 8  # an interval from fewer says nothing


def columns(table: TableResult) -> list[Column]:
    """Task by task the metrics, then seconds and evaluations."""
    found: list[Column] = []
    published = [row for source in table.spec.published for row in source.rows]
    reference = _reference(table)
    for i, task in enumerate(table.spec.tasks):
        cells = [row[i] for row in table.cells]
        for name in table.metrics:
            metric = get_metric(name)
            values = [row.values.get(task.name, {}).get(name) for row in published]
            texts = [_DASH if v is None else f"{v:.{metric.digits}f}" for v in values]
            paired = None
            if reference is not None and not metric.of_sets:
                paired = [
                    _paired(reference[i].against(cell, name), metric.digits) for cell in cells
                ]
            entries = _ranked(table, cells, name)
            found.append(Column(task.name, metric.head, entries, texts, paired))
        if any(c.steadiness for c in cells):
            found.append(
                Column(task.name, _STEADY, _steady(table, cells), [_DASH] * len(published))
            )
    for what, attribute, digits in (
        ("s/image", "seconds", 2),
        (_NFE, "evaluations", 0),
        ("with gradient", "gradients", 0),
    ):
        nfe = [row.nfe if what == _NFE else None for row in published]
        texts = [_DASH if n is None else str(n) for n in nfe]
        entries = [_average(row, attribute, digits) for row in table.cells]
        found.append(Column("", what, entries, texts))
    return found


def _reference(table: TableResult) -> Sequence[CellResult] | None:
    return next((r for r in table.cells if r[0].cell.row.name == table.spec.compare), None)


def _published_names(table: TableResult) -> list[str]:
    names = []
    for label, source in zip(string.ascii_lowercase, table.spec.published, strict=False):
        noise = "" if source.sigma is None else f", sigma {source.sigma:g}"
        names += [f"{row.name} [{label}]{noise}" for row in source.rows]
    return names


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


def _paired(paired: Paired | None, digits: int) -> str:
    if paired is None:
        return _DASH
    text = f"{paired.difference:+.{digits}f}"
    if paired.low is None or paired.n < _LEAST_IMAGES:
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
    begun = _begun(table)
    missing = [r[0].cell.row.name for i, r in enumerate(table.cells) if i not in begun]
    notes += [f"Not run yet: {', '.join(missing)}."] if missing else []
    shown = {cell.problem for i in begun for cell in table.cells[i]}
    notes += [f"[{i}] {p}" for i, p in enumerate(table.problems, 1) if p in shown]
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


def _parts(table: TableResult) -> list[tuple[str, list[Column]]]:
    """The columns of each printed table and its title: with several tasks one table for each
    metric, so that a page holds it; costs stand in the first."""
    found = columns(table)
    if len(table.spec.tasks) == 1:
        return [("", found)]
    titles = list(dict.fromkeys(c.what for c in found if c.task))
    parts = [(title, [c for c in found if c.task and c.what == title]) for title in titles]
    parts[0][1].extend(c for c in found if not c.task)
    return parts


def _head(title: str, shown: Sequence[Column]) -> list[str]:
    return [c.task if title and c.task else c.title for c in shown]


def markdown(table: TableResult, figure: str | None = None) -> str:
    """The tables, their footnotes, paired differences and the figure."""
    lines = [f"## {table.spec.title}", ""]
    names = _begun(table)
    for title, shown in _parts(table):
        lines += [f"### {title}", ""] if title else []
        body = [
            [name, *(_markdown_entry(c.entries[i]) for c in shown)] for i, name in names.items()
        ]
        published = [
            [_italic(name), *(_italic(c.published[i]) for c in shown)]
            for i, name in enumerate(_published_names(table))
            if any(c.published[i] != _DASH for c in shown if c.task)
        ]
        if published:
            body += [[f"*{_PUBLISHED_TITLE}:*", *[""] * len(shown)], *published]
        lines += [*_markdown_rows(["Method", *_head(title, shown)], body), ""]
    lines += [line for note in footnotes(table) for line in (note, "")]
    lines += _paired_parts(table, names)
    if figure is not None:
        lines += [f"![{table.spec.title}]({figure})", ""]
    return "\n".join(lines)


def _begun(table: TableResult) -> dict[int, str]:
    """Names of the rows, by their place, but for those of which nothing was run yet."""
    return {
        i: row[0].cell.row.name
        for i, row in enumerate(table.cells)
        if any(cell.problem != NOT_RUN for cell in row)
    }


def _paired_parts(table: TableResult, names: Mapping[int, str]) -> list[str]:
    compare = table.spec.compare
    if _reference(table) is None:
        return []
    interval = (
        ", with 95% confidence intervals (Student's t over the photographs)"
        if len(table.names) >= _LEAST_IMAGES
        else f"; no intervals, which need {_LEAST_IMAGES} photographs"
    )
    lines = [f"Paired differences on the same photographs and seeds{interval}:", ""]
    for title, shown in _parts(table):
        compared = [(c, c.paired) for c in shown if c.paired is not None]
        if not compared:
            continue
        head = [f"{compare} minus", *_head(title, [c for c, _ in compared])]
        body = [
            [name, *(paired[i] for _, paired in compared)]
            for i, name in names.items()
            if name != compare
        ]
        lines += [f"{title}:", ""] if title else []
        lines += [*_markdown_rows(head, body), ""]
    return lines


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
    found, tasks = columns(table), table.spec.tasks
    groups = [sum(c.task == task.name for c in found) for task in tasks]
    rest = len(found) - sum(groups)
    top = [""] + [
        f"\\multicolumn{{{n}}}{{c}}{{{_escape(t.name)}}}"
        for n, t in zip(groups, tasks, strict=True)
    ]
    rules, first = [], 2
    for n in groups:
        rules.append(f"\\cmidrule(lr){{{first}-{first + n - 1}}}")
        first += n
    titles = ["Method", *(_escape(c.what) for c in found)]
    wrap: dict[int, Callable[[str], str]] = {
        1: lambda s: f"\\textbf{{{s}}}",
        2: lambda s: f"\\underline{{{s}}}",
    }
    body = []
    for i, row in enumerate(table.cells):
        entries = [c.entries[i] for c in found]
        figures = [wrap.get(e.place, str)(_escape(e.text)) for e in entries]
        body.append(" & ".join([_escape(row[0].cell.row.name), *figures]) + " \\\\")
    published = _published_names(table)
    if published:
        body.append("\\midrule")
    for i, name in enumerate(published):
        texts = [name, *(c.published[i] for c in found)]
        body.append(" & ".join(f"\\textcolor{{gray}}{{{_escape(t)}}}" for t in texts) + " \\\\")
    needed = ["booktabs", *(["xcolor"] if published else [])]
    whole = f"\\multicolumn{{{len(found) + 1}}}{{p{{\\linewidth}}}}"
    below = [
        f"{whole}{{\\footnotesize {_escape(note)}}} \\\\"
        for note in (*noise_notes(table), *published_notes(table))
    ]
    comments = [f"% {line}" for note in footnotes(table) for line in note.splitlines()]
    return "\n".join(
        [
            f"% {table.spec.title}; needs \\usepackage{{{','.join(needed)}}}",
            *comments,
            f"\\begin{{tabular}}{{l{'c' * len(found)}}}",
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
