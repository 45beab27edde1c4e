"""Turn a report to text: a terminal's table, Markdown, CSV or JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from cgverify.common.printable import printable
from cgverify.common.records import Verdict
from cgverify.report.numbers import counted, shortened
from cgverify.report.sections import Report, Section, Tone

STYLES: dict[Tone, str] = {
    "plain": "bold",
    "good": "bold green",
    "bad": "bold red",
    "warning": "yellow",
    "note": "",
    "aside": "dim",
}
VERDICT_STYLES = {
    Verdict.BITWISE: "green",
    Verdict.ULP: "green",
    Verdict.BOUNDED: "green",
    Verdict.UNSUPPORTED: "yellow",
    Verdict.ERROR: "magenta",
    Verdict.MISSING: "red",
    Verdict.SUSPECT: "red",
    Verdict.DIVERGED: "red",
}
WIDE = 100
"""The number of columns from which a terminal is wide."""
LIMIT = 1000 * 1024
"""Bytes of Markdown. GitHub refuses a job summary above 1 MiB, and other steps of the job may add to it."""
LONGEST = 1000
"""Characters of a line or a table's entry in Markdown. The message of an exception may be pages long."""


def render(format: str, report: Report) -> str:
    """Return a report as text that ends in a newline.

    Args:
        format: `table`, `markdown`, `csv` or `json`.
    """
    summary = [Section(report.summary)] if report.summary else []
    match format:
        case "table":
            return terminal([*report.sections(), *summary])
        case "markdown":
            footer = [Section("Made with", report.footer)] if report.footer else []
            return markdown(report.title, [*summary, *report.sections(), *footer])
        case "csv":
            text: str = report.frame().to_csv(index=False, lineterminator="\n")
            return text
        case _:
            return json.dumps(report.value(), allow_nan=False) + "\n"


def json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a DataFrame for JSON: null for a missing figure, the string `Infinity` for infinity."""
    infinities = {math.inf: "Infinity", -math.inf: "-Infinity"}
    shown = frame.astype(object).where(frame.notna(), None)
    return [
        {str(name): infinities.get(value, value) if isinstance(value, float) else value for name, value in row.items()}
        for row in shown.to_dict("records")
    ]


def terminal(sections: Iterable[Section]) -> str:
    """Return sections as text for stdout, in colour if that is a terminal. Lines are not wrapped, to be copied."""
    console = Console()
    with console.capture() as captured:
        for section in sections:
            if section.title:
                console.print(Text(printable(section.title), style=STYLES[section.tone]), soft_wrap=True)
            for line in section.lines:
                style = "dim" if section.tone == "aside" or _is_code(line) else ""
                text = line[1:-1] if _is_code(line) else line
                console.print(Text(f"  {printable(text)}", style=style), soft_wrap=True)
            for columns in _columns_side_by_side(section, console.width):
                console.print(_table(section, columns))
    return captured.get()


def _columns_side_by_side(section: Section, width: int) -> Iterator[list[int]]:
    """Yield the numbers of the columns of each table that a terminal shows for a section."""
    if not section.columns:
        return
    left_out = section.wide if width < WIDE else ()
    first, *others = (number for number, column in enumerate(section.columns) if column not in left_out)
    if not section.splits:
        yield [first, *others]
        return
    needed = [max(map(len, entries)) + 2 for entries in zip(section.columns, *section.rows, strict=True)]
    shown: list[int] = []
    for number in others:
        if shown and sum(needed[each] for each in (first, *shown, number)) > width:
            yield [first, *shown]
            shown = []
        shown.append(number)
    yield [first, *shown]


def _table(section: Section, columns: Sequence[int]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for number in columns:
        numeric = any(re.match(r"[~×]?\d", row[number]) for row in section.rows)
        justify: JustifyMethod = "right" if numeric and number > 0 else "left"
        table.add_column(printable(section.columns[number]), overflow="fold", justify=justify)
    for row in section.rows:
        table.add_row(*(_entry(row[number]) for number in columns))
    return table


def _entry(entry: str) -> Text:
    return Text(printable(entry), style=VERDICT_STYLES[entry] if isinstance(entry, Verdict) else "")


def markdown(title: str, sections: Iterable[Section]) -> str:
    """Return sections under a heading, as many as fit into `LIMIT`. A last line says how many do not."""
    parts, left_out = [f"## {_escaped(title)}\n"], 0
    size = len(parts[0].encode())
    for section in sections:
        part = _markdown_section(section)
        if size + len(part.encode()) > LIMIT - 200:
            left_out += 1
            continue
        parts.append(part)
        size += len(part.encode())
    if left_out:
        parts.append(f"*{counted(left_out, 'section')} left out, to stay under GitHub's limit: see findings.csv.*\n")
    return "\n".join(parts)


def _markdown_section(section: Section) -> str:
    parts = [f"### {_escaped(section.title)}"] if section.title else []
    if section.lines:
        parts.append("\n".join(f"- {_markdown_line(line)}" for line in section.lines))
    if section.columns:
        rows: list[Sequence[str]] = [section.columns, ["---"] * len(section.columns), *section.rows]
        parts.append("\n".join(f"| {' | '.join(map(_markdown_entry, row))} |" for row in rows))
    return "\n\n".join(parts) + "\n"


def _markdown_entry(entry: str) -> str:
    """Put a sign before a verdict, so that a column is read at a glance, in any colours."""
    if not isinstance(entry, Verdict):
        return _escaped(entry)
    sign = "❌" if entry.fails else "✅" if entry.compares else "⚠️"
    return f"{sign} {entry.value}"


def _markdown_line(line: str) -> str:
    if _is_code(line):
        code = _one_line(line[1:-1])
        fence = "`" * (1 + max(map(len, re.findall("`+", code)), default=0))
        return f"{fence} {code} {fence}" if len(fence) > 1 else f"`{code}`"
    return _escaped(line)


def _is_code(line: str) -> bool:
    """Return whether the whole line is between backticks."""
    return len(line) > 2 and line.startswith("`") and line.endswith("`")


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return shortened(" ".join(printable(text).split()), LONGEST)
