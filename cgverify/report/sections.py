"""A report in pieces: a title, lines, a table. The screen and Markdown each have their way of showing one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cgverify.common.printable import printable

Tone = Literal["plain", "good", "bad", "aside"]
STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "red", "aside": "dim"}


@dataclass(frozen=True)
class Section:
    """Part of a report. Lines stand before the table; a section with neither says only its title."""

    title: str
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    tone: Tone = "plain"


def on_screen(sections: Iterable[Section]) -> str:
    """The sections as text for stdout, in colour where that is a terminal. Lines are left unwrapped, to be copied."""
    console = Console()
    with console.capture() as captured:
        for section in sections:
            for part in _parts(section):
                console.print(part, soft_wrap=isinstance(part, Text))
    return captured.get()


def _parts(section: Section) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(printable(section.title), style=f"bold {STYLES[section.tone]}".strip())]
    style = "" if section.tone == "bad" else STYLES[section.tone]
    parts += [Text(f"  {printable(line)}", style=style) for line in section.lines]
    if section.columns:
        table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
        for place, column in enumerate(section.columns):
            table.add_column(printable(column), overflow="fold", justify="left" if place == 0 else "right")
        for row in section.rows:
            table.add_row(*(Text(printable(entry)) for entry in row))
        parts.append(table)
    return parts


def shortened(text: str) -> str:
    """At most 60 characters of a text."""
    return text if len(text) <= 60 else text[:59] + "…"


def counted(number: int, noun: str) -> str:
    """`1 cell`, `12 cells`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
