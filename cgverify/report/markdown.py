"""A run as Markdown for `$GITHUB_STEP_SUMMARY`, which GitHub refuses as a whole above 1 MiB."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from cgverify.records import CellResult, Run, Verdict
from cgverify.report.figures import figure
from cgverify.report.frames import SETTING, findings_frame, worst_by
from cgverify.report.outcome import exit_code, failures, suspects
from cgverify.report.sections import Section, counted
from cgverify.report.table import verdict_line

LIMIT = 1000 * 1024
"""Bytes. Other steps of a job may add a few."""
SHOWN = 20
LONGEST = 1000
"""Characters of a line or a table's field: an exception may bring pages of text."""

OUTCOMES = {0: "all held", 1: "parity failure", 3: "something could not be run", 5: "nothing was compared"}


def render(run: Run, results: Sequence[CellResult]) -> str:
    """The report as text."""
    return document(f"{run.model}: {OUTCOMES[exit_code(results)]}", _sections(run, results))


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


def _sections(run: Run, results: Sequence[CellResult]) -> Iterator[Section]:
    yield Section(verdict_line(results))
    found = failures(results)
    for failure in found[:SHOWN]:
        title = f"{failure.finding.verdict.value}: {failure.cell.component}"
        yield Section(title, [failure.sentence, f"`{failure.command(run)}`"], tone="bad")
    if len(found) > SHOWN:
        yield Section(f"… and {counted(len(found) - SHOWN, 'more fault')}")
    yield from _settings(results)
    suspected = suspects(results)
    if suspected:
        lines = [f"{cell.component}, {found.tap}, {cell.dtype}, {cell.case}" for cell, found in suspected[:SHOWN]]
        yield Section(f"The reference breaks its own bound at {counted(len(suspected), 'tap')}", lines)
    versions = [f"{name} {version}" for name, version in run.environment.get("versions", {}).items()]
    yield Section("Made with", [", ".join(versions), f"weights: {run.weights_origin}"], tone="aside")


def _settings(results: Sequence[CellResult]) -> Iterator[Section]:
    columns = ["component", "cells", "taps", "worst verdict", "worst r", "max |Δ|", "max ULP", "where"]
    rows: dict[str, list[list[str]]] = {}
    for row in worst_by(findings_frame(results), [*SETTING, "kind"]).to_dict("records"):
        title = f"{row['candidate']} · {row['dtype']} · {row['device']} · rotary_dim {row['rotary_dim']}"
        rows.setdefault(title, []).append(
            [
                *(str(row[name]) for name in ("kind", "cells", "taps")),
                _mark(Verdict(row["worst_verdict"])),
                *(figure(row[name]) for name in ("r", "max_abs", "max_ulp")),
                str(row["where"]),
            ]
        )
    for title, own in rows.items():
        yield Section(title, columns=columns, rows=own)


def _mark(verdict: Verdict) -> str:
    """A sign as well as a word: a column is then read at a glance, in any colours."""
    sign = "❌" if verdict.fails else "✅" if verdict.compares else "⚠️"
    return f"{sign} {verdict.value}"


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
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
