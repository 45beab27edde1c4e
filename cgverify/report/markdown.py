"""A run as Markdown for `$GITHUB_STEP_SUMMARY`, with what changed since a baseline if there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from cgverify.common.records import CellResult, Run, Verdict
from cgverify.report import comparison
from cgverify.report.document import document
from cgverify.report.figures import figure
from cgverify.report.frames import SETTING, findings_by_cell, worst_by
from cgverify.report.outcome import exit_code, failures, suspects
from cgverify.report.sections import Section, counted
from cgverify.report.table import verdict_line
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.changes import compare

SHOWN = 20
OUTCOMES = {0: "all held", 1: "parity failure", 3: "something could not be run", 5: "nothing was compared"}


def render(run: Run, results: Sequence[CellResult], baseline: StoredRun | None = None) -> str:
    """The report as text."""
    sections = _sections(run, results)
    if baseline is not None:
        changed = compare(baseline, StoredRun(run, results))
        sections = chain(sections, comparison.sections(changed))
    return document(f"{run.model}: {OUTCOMES[exit_code(results)]}", sections)


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
    for row in worst_by(findings_by_cell(results), [*SETTING, "kind"]).to_dict("records"):
        said = (
            *(str(row[name]) for name in ("model", "candidate", "dtype", "device")),
            f"rotary_dim {row['rotary_dim']}",
        )
        title = " · ".join(said)
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
