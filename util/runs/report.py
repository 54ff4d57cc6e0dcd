"""report.html: the restored images to look at, sort and compare, without a network.

The page links the PNG files beside it and holds its style and script itself.
"""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from data.dataloader import output_name
from util.files import read_bytes
from util.metrics.base import get_metric, run_metric_names
from util.runs.manifest import Record, read_records
from util.runs.problems import Residual
from util.runs.results import (
    KIND_TITLES,
    RESIDUALS,
    STD,
    Results,
    figure_columns,
    kinds_of,
    mean_metrics,
    means_of,
    spread_columns,
    value_of,
)

_TEMPLATE = Path(__file__).with_name("report_template.html")
_FORMATS = {"residual": "{:.3f}", "expected_residual": "{:.3f}", "seconds": "{:.1f} s"}
_FORMATS |= {STD: "{:.2f} of 255"}


@dataclass(frozen=True)
class Outcome:
    """What became of the images that a run was asked for, and all that is finished."""

    rows: list[Record]  # everything finished in the folder with these settings, earlier runs too
    failed: dict[str, str]  # asked for: name -> reason
    missing: list[str]  # asked for, neither finished nor failed

    def table(self, seconds: float) -> str:
        return summary_table(self.rows, len(self.failed), seconds)


def final_report(results: Results, config: str, names: Sequence[str]) -> Outcome:
    """Write metrics.csv, the contact sheet and report.html from the manifests.

    config: hash of the run's settings, names: the images it was asked for
    """
    records = read_records(results.root, config)
    rows = [r for r in records.values() if r.done and results.holds(r)]
    failed = {n: r.error or "" for n in names if (r := records.get(n)) and not r.done}
    there = {row.output for row in rows}
    missing = [n for n in names if n not in failed and output_name(n) not in there]
    outcome = Outcome(rows, failed, missing)
    results.save_report(rows)
    config_text = read_bytes(results.root / "config.yaml").decode(errors="replace")
    page = report_page(f"Restored: {results.root.name}", rows, failed, config_text)
    results.save_text("report.html", page)
    return outcome


def report_page(title: str, rows: Sequence[Record], failed: Mapping[str, str], config: str) -> str:
    """The page for finished `rows` and `failed` (name -> reason); `config` is shown as text."""
    labelled = any(row.metrics for row in rows)
    found = [column for column in spread_columns() if any(column in row.spread for row in rows)]
    columns = [*(run_metric_names() if labelled else ()), *RESIDUALS, *found, "seconds"]
    page = _TEMPLATE.read_text(encoding="utf-8")
    parts = {
        "title": html.escape(title),
        "summary": _summary(rows, failed, columns),
        "sort": "".join(f'<option value="{c}">{_title(c)}</option>' for c in ["name", *columns]),
        "cards": "\n".join(_card(row, columns) for row in sorted(rows, key=lambda r: r.output)),
        "failed": _failed(failed),
        "config": html.escape(config),
    }
    # One pass over the template: what is put in is never searched for placeholders.
    for i, piece in enumerate(pieces := page.split("@@")):
        if i % 2:
            pieces[i] = parts[piece]
    return "".join(pieces)


def summary_table(rows: Sequence[Record], failed: int, seconds: float) -> str:
    """The end of a run in a few lines: counts, and mean, least and largest of every figure."""
    columns = [c for c in figure_columns() if any(value_of(r, c) is not None for r in rows)]
    lines = [f"{len(rows)} finished, {failed} failed, {seconds:.0f} s"]
    if len(rows) > 1:
        lines.append(f"  {'':17}{'mean':>10}{'least':>10}{'largest':>10}")
    for column in columns:
        values = [v for r in rows if (v := value_of(r, column)) is not None]
        figures = (sum(values) / len(values), min(values), max(values))
        cells = "".join(f"{f:10.3f}" for f in figures[: 1 if len(rows) == 1 else 3])
        lines.append(f"  {_title(column):17}{cells}")
    return "\n".join(lines)


def _misfit(row: Record) -> str:
    """A warning for the card of an image that does not fit its measurement as it should."""
    if row.residual is None:
        return ""
    told = Residual(row.residual, row.expected_residual).misfit
    return f'<p class="misfit">{html.escape(told)}</p>' if told else ""


def _title(column: str) -> str:
    if column in mean_metrics():
        return f"{_title(mean_metrics()[column])} of the mean"
    return get_metric(column).title if column in run_metric_names() else column.replace("_", " ")


def _format(column: str, value: float) -> str:
    column = mean_metrics().get(column, column)
    if column in run_metric_names():
        return get_metric(column).text(value)
    return _FORMATS[column].format(value)


def _summary(rows: Sequence[Record], failed: Mapping[str, str], columns: Sequence[str]) -> str:
    means = means_of(rows)
    cells = [f"<b>{len(rows)}</b> restored", f"<b>{len(failed)}</b> failed"]
    cells += [f"mean {_title(c)} <b>{_format(c, means[c])}</b>" for c in columns if c in means]
    return "".join(f"<span>{cell}</span>" for cell in cells)


def _card(row: Record, columns: Sequence[str]) -> str:
    kinds = {kind: KIND_TITLES[kind] for kind in kinds_of(row)}
    figures = "".join(
        f'<figure><img loading="lazy" src="{_link(kind, row.output)}" alt="{title}" '
        f'data-kind="{kind}"><figcaption>{title}</figcaption></figure>'
        for kind, title in kinds.items()
    )
    values = [(c, v) for c in columns if (v := value_of(row, c)) is not None]
    data = "".join(f' data-{c}="{v:.6g}"' for c, v in values)
    text = "".join(f"<span>{_title(c)} <b>{_format(c, v)}</b></span>" for c, v in values)
    name = html.escape(row.output)
    return (
        f'<article data-name="{name}"{data}><h2>{name}</h2><p>{text}</p>{_misfit(row)}'
        f'<div class="images">{figures}</div></article>'
    )


def _link(kind: str, name: str) -> str:
    return quote(os.fsencode(f"{kind}/{name}.png"))


def _failed(failed: Mapping[str, str]) -> str:
    if not failed:
        return ""
    items = "".join(
        f"<li><b>{html.escape(name)}</b>: {html.escape(reason)}</li>"
        for name, reason in sorted(failed.items())
    )
    return f'<section id="failed"><h2>Failed</h2><ul>{items}</ul></section>'
