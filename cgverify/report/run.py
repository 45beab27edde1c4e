"""A run as a report: failures first, then tables, then notices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pandas as pd

from cgverify.common.records import SETTING, CellResult, Finding, Record, Run, Verdict, setting_words
from cgverify.report.comparison import comparison_sections
from cgverify.report.frames import cell_columns, findings_by_cell, findings_frame, setting_of, worst_by
from cgverify.report.numbers import bits, counted, figure
from cgverify.report.outcome import (
    counts,
    every_finding,
    exit_code,
    failures,
    refusals,
    silent_hooks,
    suspects,
    taps_compared,
    verdict_line,
)
from cgverify.report.sections import SHOWN, Report, Section, limited
from cgverify.report.whole_model import whole_model_lines
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.changes import compare

OUTCOMES = {0: "all held", 1: "parity failure", 3: "something could not be run", 5: "nothing was compared"}

MEASURES = ("verdict", "r", "max |Δ|", "max ULP", "bits")

Tables = Callable[[Run, Sequence[CellResult]], Iterator[Section]]


def run_report(
    run: Run, results: Sequence[CellResult], baseline: StoredRun | None = None, tables: Sequence[Tables] = ()
) -> Report:
    """Return the report of a run.

    Args:
        results: in report order.
        baseline: a run to compare with. The changes since then are shown in the sections.
        tables: functions that make the tables. By default those of the run's command.
    """

    def sections() -> Iterator[Section]:
        yield from _failures(run, results)
        yield from chain(*(each(run, results) for each in tables or TABLES.get(run.command, (by_component,))))
        yield from _notices(run, results)
        if baseline is not None:
            yield from comparison_sections(compare(baseline, StoredRun(run, results)))

    versions = [f"{name} {version}" for name, version in run.environment.get("versions", {}).items()]
    return Report(
        title=f"{run.model}: {OUTCOMES[exit_code(results)]}",
        sections=sections,
        frame=lambda: findings_frame(results),
        value=lambda: _value(run, results),
        summary=verdict_line(results),
        footer=[", ".join(versions), f"weights: {run.weights_origin}"],
    )


def _failures(run: Run, results: Sequence[CellResult]) -> Iterator[Section]:
    found = failures(results)
    for failure in found[:SHOWN]:
        title = f"{failure.finding.verdict.value} {failure.sentence}"
        yield Section(title, [f"`{failure.command(run)}`"], tone="bad")
    if len(found) > SHOWN:
        yield Section(f"… and {counted(len(found) - SHOWN, 'more fault')}: see findings.csv.", tone="note")


def by_component(run: Run, results: Sequence[CellResult]) -> Iterator[Section]:
    """Yield a table for each setting, with a row per kind of component."""
    for title, findings in _compared_settings(run, results):
        rows = []
        for row in worst_by(findings, ["kind"]).to_dict("records"):
            where = "" if row["worst_verdict"] == Verdict.BITWISE else str(row["where"])
            rows.append([str(row["kind"]), str(row["cells"]), str(row["taps"]), *_measures(row), where])
        yield Section(title, columns=["component", "cells", "taps", *MEASURES, "where"], rows=rows, wide=["where"])


def by_tap(run: Run, results: Sequence[CellResult]) -> Iterator[Section]:
    """Yield a table for each setting, with a row per tap and stage: where along the computation precision is lost."""
    for title, findings in _compared_settings(run, results):
        taps = findings.groupby(["tap", "stage"], sort=False)
        rows = [
            [
                str(row["tap"]),
                str(row["stage"]),
                *_measures(row),
                _worst_head(taps.get_group((row["tap"], row["stage"]))),
            ]
            for row in worst_by(findings, ["tap", "stage"]).to_dict("records")
        ]
        yield Section(title, columns=["tap", "stage", *MEASURES, "head"], rows=rows)


def _measures(row: Mapping[Any, Any]) -> list[str]:
    """Return the entries for `MEASURES` from a row of `worst_by`."""
    figures = (figure(row[name]) for name in ("r", "max_abs", "max_ulp"))
    return [Verdict(row["worst_verdict"]), *figures, bits(row["bits"])]


def _compared_settings(run: Run, results: Sequence[CellResult]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a title and the findings of each setting in which something could be compared."""
    origins = {checkpoint.name: checkpoint.origin for checkpoint in run.checkpoints}
    for setting, own in findings_by_cell(results).groupby([*SETTING], sort=False, dropna=False):
        if (own["verdict"] == Verdict.UNSUPPORTED.value).all():
            continue
        words = setting_words(dict(zip(SETTING, setting, strict=True)))
        yield " · ".join((*words, origins.get(words[0], run.weights_origin))), own


def _worst_head(findings: pd.DataFrame) -> str:
    """Return the head with the fewest bits; nothing if all heads are exact or there are none."""
    measured = findings[findings["head_bits"].notna() & (findings["head_bits"] != float("inf"))]
    return "" if measured.empty else str(measured.sort_values("head_bits", kind="stable").iloc[0]["worst_head"])


def by_head(_: Run, results: Sequence[CellResult]) -> Iterator[Section]:
    """Yield a table for each setting, with a row per head: its fewest bits and greatest error at each tap.

    Only cells of attention outside its block are counted.
    """
    settings: dict[str, dict[str, list[Finding]]] = {}
    for cell, finding in every_finding(results):
        if cell.kind == "attn" and finding.bits_by_head:
            taps = settings.setdefault(" · ".join(setting_of(cell)), {})
            taps.setdefault(finding.tap, []).append(finding)
    for setting, taps in settings.items():
        heads = max(len(finding.bits_by_head) for own in taps.values() for finding in own)
        rows = [[str(head), *(_of_head(head, own) for own in taps.values())] for head in range(heads)]
        columns = ["head", *(tap.removeprefix("hook_") for tap in taps)]
        title = f"heads of {setting}: bits that can be trusted, greatest error"
        yield Section(title, columns=columns, rows=rows, splits=True)


def _of_head(head: int, findings: Sequence[Finding]) -> str:
    """Return `21.3 4e-07`, or `exact`."""
    seen = [one for one in findings if head < len(one.bits_by_head)]
    if not seen:
        return "–"
    error = max(one.errors_by_head[head] for one in seen)
    return bits(min(one.bits_by_head[head] for one in seen)) + (f" {error:.0e}" if error else "")


def by_call(run: Run, _: Sequence[CellResult]) -> Iterator[Section]:
    """Yield the calls of a hunt's counterexample, with the code that runs them, and what the hunt covered."""
    example = run.settings.get("counterexample")
    if example is not None:
        code = [f"`{line}`" for line in example["python"].splitlines() if line]
        yield Section(f"{example['where']} fails after", [*example["calls"], *code])
    yield Section(str(run.settings.get("covered", "nothing was covered")), [str(run.settings.get("states", ""))])


TABLES: dict[str, tuple[Tables, ...]] = {"attention": (by_tap, by_head), "fuzz": (by_call, by_component)}
"""The tables of a command. All others show `by_component`."""
DETAILED: tuple[Tables, ...] = (by_component, by_head)


def _notices(run: Run, results: Sequence[CellResult]) -> Iterator[Section]:
    for line in whole_model_lines(results):
        yield Section(line, tone="note")
    allowed = run.environment.get("numerics", {}).get("allowed", [])
    if allowed:
        widened = f"bounds of products are widened, since --allow {','.join(allowed)} is on"
        yield Section(widened, tone="warning")
    for reason in refusals(results):
        yield Section(f"unsupported: {reason}", tone="warning")
    suspected = suspects(results)
    if suspected:
        title = f"The reference breaks its own bound at {counted(len(suspected), 'tap')}"
        yield Section(title, limited(suspected), tone="warning")
    for candidate, hooks in silent_hooks(results).items():
        title = f"hooks of {candidate} that never fired in a cell (not gated): {', '.join(hooks)}"
        yield Section(title, tone="aside")


def _value(run: Run, results: Sequence[CellResult]) -> dict[str, Any]:
    """Return `{"run", "summary", "failed", "findings"}`, with NaN and infinity as strings."""
    summary = {
        "cells": len(results),
        "taps": taps_compared(results),
        **{verdict.value: number for verdict, number in counts(results).items()},
        "ok": exit_code(results) == 0,
        "silent_hooks": silent_hooks(results),
    }
    failed = [cell_columns(one.cell) | {"blame": one.blame} for one in results if one.verdict.fails]
    findings = [cell_columns(cell) | _plain(finding) for cell, finding in every_finding(results)]
    return {"run": _plain(run), "summary": summary, "failed": failed, "findings": findings}


def _plain(record: Record) -> dict[str, Any]:
    """Return a record's values for JSON. Only pydantic's own JSON writes NaN and infinity as strings."""
    plain: dict[str, Any] = json.loads(record.model_dump_json())
    return plain
