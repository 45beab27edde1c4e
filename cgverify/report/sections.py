"""A report: sections for people, a DataFrame for CSV, and a value for JSON. `cgverify.report.render` turns it to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

Tone = Literal["plain", "good", "bad", "warning", "note", "aside"]


@dataclass(frozen=True)
class Section:
    """Part of a report: a title, then lines, then a table. Lines and table may be empty."""

    title: str
    lines: Sequence[str] = ()
    """A line between backticks is code in Markdown."""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """A `Verdict` is an entry that has a colour in a terminal and a sign in Markdown."""
    tone: Tone = "plain"
    wide: Sequence[str] = ()
    """Columns that a narrow terminal leaves out."""


@dataclass(frozen=True)
class Report:
    """What every output format is made from. Each part is computed only if a format needs it."""

    title: str
    """The heading in Markdown. A terminal shows the sections alone."""
    sections: Callable[[], Iterable[Section]]
    frame: Callable[[], pd.DataFrame]
    value: Callable[[], object]
    """What JSON describes, without NaN and infinity."""
    summary: str = ""
    """One line that Markdown starts with and a terminal ends with."""
    footer: Sequence[str] = ()
    """Lines that Markdown ends with."""
