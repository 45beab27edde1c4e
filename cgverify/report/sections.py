"""A report: sections for people, a DataFrame for CSV, and a value for JSON. `cgverify.report.render` makes it text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

Tone = Literal["plain", "good", "bad", "warning", "note", "aside"]
SHOWN = 20
"""The number of lines or rows of a section before the rest is only counted."""


@dataclass(frozen=True)
class Section:
    """Part of a report: a title, then lines, then a table. Each of them may be empty."""

    title: str
    lines: Sequence[str] = ()
    """A line between backticks is code in Markdown."""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """An entry that is a `Verdict` has a colour in a terminal and a sign in Markdown."""
    tone: Tone = "plain"
    wide: Sequence[str] = ()
    """Columns that a narrow terminal leaves out."""
    splits: bool = False
    """Whether a terminal that is too narrow shows several tables, each with the first column and some of the others."""


@dataclass(frozen=True)
class Report:
    """What every output format is made from. Each part is computed only if a format needs it."""

    title: str
    """The heading in Markdown. A terminal shows the sections alone."""
    sections: Callable[[], Iterable[Section]]
    frame: Callable[[], pd.DataFrame]
    value: Callable[[], object]
    """The value that JSON describes, without NaN and infinity."""
    summary: str = ""
    """One line that Markdown starts with and a terminal ends with."""
    footer: Sequence[str] = ()
    """Lines that Markdown ends with."""


def limited(lines: Sequence[str]) -> list[str]:
    """Return the first `SHOWN` lines, and a line that counts the others."""
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"… and {more} more"] if more > 0 else [])]
