"""Sections as Markdown for `$GITHUB_STEP_SUMMARY`, which GitHub refuses as a whole above 1 MiB."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cgverify.common.printable import printable
from cgverify.report.sections import Section, counted

LIMIT = 1000 * 1024
"""Bytes. Other steps of a job may add a few."""
LONGEST = 1000
"""Characters of a line or a table's field: an exception may bring pages of text."""


def document(title: str, sections: Iterable[Section]) -> str:
    """Sections under a heading, as many as fit into `LIMIT`, with a last line that says how many do not."""
    parts, left_out = [f"## {_text(title)}\n"], 0
    size = len(parts[0].encode())
    for section in sections:
        part = _markdown(section)
        if size + len(part.encode()) > LIMIT - 200:
            left_out += 1
            continue
        parts.append(part)
        size += len(part.encode())
    if left_out:
        parts.append(f"*{counted(left_out, 'section')} left out, to stay under GitHub's limit: see findings.csv.*\n")
    return "\n".join(parts)


def _markdown(section: Section) -> str:
    parts = [f"### {_text(section.title)}"]
    if section.lines:
        parts.append("\n".join(f"- {_line(line)}" for line in section.lines))
    if section.columns:
        rows = [
            map(_text, section.columns),
            ("---" for _ in section.columns),
            *(map(_text, row) for row in section.rows),
        ]
        parts.append("\n".join(map(_row, rows)))
    return "\n\n".join(parts) + "\n"


def _row(fields: Iterable[str]) -> str:
    return f"| {' | '.join(fields)} |"


def _line(line: str) -> str:
    """Text, or code where the whole line is between backticks."""
    if len(line) > 2 and line.startswith("`") and line.endswith("`"):
        fence = "`" * (1 + max(map(len, re.findall("`+", line[1:-1])), default=0))
        return f"{fence} {_short(line[1:-1])} {fence}" if len(fence) > 1 else f"`{_short(line[1:-1])}`"
    return _text(line)


def _text(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", _short(text))


def _short(text: str) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
