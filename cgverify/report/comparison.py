"""A run beside its baseline, in every format: what got worse first, then all that is merely different."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import pandas as pd

from cgverify.common.records import Cell, Finding
from cgverify.report import as_json
from cgverify.report.document import document
from cgverify.report.figures import figure
from cgverify.report.folds import bare_tap, folded, verdicts, with_consequences_apart
from cgverify.report.frames import CELL
from cgverify.report.github import annotate
from cgverify.report.sections import Section, Tone, counted, on_screen, shortened
from cgverify.runs.comparison.changes import Comparison, Group, Growth, Hook, Refusal
from cgverify.runs.comparison.pairs import TapPair

SHOWN = 20
GROWTH_TOLD = 2.0
"""The factor from which on a grown r is worth a line."""
COLUMNS = [
    *("change", *CELL, "step", "tap", "stage", "verdict_before", "verdict_after"),
    *("r_before", "r_after", "message"),
]


def render(format: str, comparison: Comparison, regressions: Sequence[str]) -> str:
    """The comparison as text.

    Args:
        format: a key of `FORMATS`.
        regressions: the sentences of `cgverify.runs.comparison.criteria.regressions`.
    """
    return FORMATS[format](comparison, regressions)


def _table(comparison: Comparison, regressions: Sequence[str]) -> str:
    return on_screen(sections(comparison, regressions))


def _markdown(comparison: Comparison, regressions: Sequence[str]) -> str:
    outcome = "regression" if regressions else "no regression"
    return document(f"{comparison.run.model} beside its baseline: {outcome}", sections(comparison, regressions))


def _github(comparison: Comparison, regressions: Sequence[str]) -> str:
    """Annotations: without a regression nothing but a notice, which names the versions that differ."""
    told = [("regression", "\n".join(regressions))] if regressions else []
    told += [
        (f"{fold.change.cell.component}: {' → '.join(verdicts(fold.change))}", fold.sentence)
        for fold in folded(with_consequences_apart(comparison.worse)[0])
        if regressions
    ]
    versions = [
        f"{each.name} {each.before} → {each.after}" for each in comparison.differences if each.part == "versions"
    ]
    notice = ", ".join([_verdict_line(comparison, regressions), *versions])
    return annotate(told, f"cgverify {comparison.run.model}", notice)


def _csv(comparison: Comparison, _: Sequence[str]) -> str:
    text: str = comparison_frame(comparison).to_csv(index=False)
    return text


def _json(comparison: Comparison, regressions: Sequence[str]) -> str:
    described = {
        "ok": not regressions,
        "regressions": list(regressions),
        "cells": comparison.cells,
        "taps": comparison.taps,
        "differences": [asdict(difference) for difference in comparison.differences],
        "appeared": [asdict(group) for group in comparison.appeared_groups],
        "vanished": [asdict(group) for group in comparison.vanished_groups],
        "stopped": [asdict(hook) for hook in comparison.stopped],
        "started": [asdict(hook) for hook in comparison.started],
        "times": asdict(comparison.times) if comparison.times else None,
        "changes": as_json.rows(comparison_frame(comparison)),
    }
    return json.dumps(described, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Comparison, Sequence[str]], str]] = {
    "table": _table,
    "json": _json,
    "csv": _csv,
    "markdown": _markdown,
    "github": _github,
}


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per change, columns `COLUMNS`: worse, better, grown, lost, and the cells that appeared or vanished."""
    rows = [_row("worse", change.cell, change.before, change.after) for change in comparison.worse]
    rows += [_row("better", change.cell, change.before, change.after) for change in comparison.better]
    rows += [
        _row("grown", growth.cell, None, growth.finding) | {"r_before": growth.before, "r_after": growth.after}
        for growth in comparison.grown(GROWTH_TOLD)
    ]
    rows += [_row("lost", refusal.cell, None, refusal.finding) for refusal in comparison.lost]
    rows += [_row("regained", refusal.cell, refusal.finding, None) for refusal in comparison.regained]
    for change, results in (("appeared", comparison.appeared), ("vanished", comparison.vanished)):
        rows += [_row(change, result.cell, None, None) for result in results]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"layer": "Int64", "rotary_dim": "string"})


def _row(change: str, cell: Cell, before: Finding | None, after: Finding | None) -> dict[str, object]:
    named = after or before
    return {
        "change": change,
        **{column: getattr(cell, column) for column in CELL},
        **{name: getattr(named, name) if named else "" for name in ("step", "tap", "stage")},
        "verdict_before": before.verdict.value if before else "",
        "verdict_after": after.verdict.value if after else "",
        "r_before": before.r if before else None,
        "r_after": after.r if after else None,
        "message": after.message if after else "",
    }


def sections(comparison: Comparison, regressions: Sequence[str] | None = None) -> Iterator[Section]:
    """The comparison as a reader wants it: the answer, what explains it, what got worse, and the rest.

    Args:
        regressions: the criteria that it breaks; None where nobody asks whether it is a regression.
    """
    tone: Tone = "bad" if regressions else "plain" if regressions is None else "good"
    yield Section(_verdict_line(comparison, regressions), regressions or (), tone=tone)
    if comparison.differences:
        rows = [
            [f"{each.part}.{each.name}", shortened(each.before), shortened(each.after)]
            for each in comparison.differences
        ]
        yield Section("What else differs", columns=["", "baseline", "run"], rows=rows)
    if comparison.worse:
        causes, behind = with_consequences_apart(comparison.worse)
        lines = _sentences(causes)
        if behind:
            taps = ", ".join(dict.fromkeys(bare_tap(change.finding.tap) for change in behind))
            lines.append(f"Behind these, {counted(len(behind), 'tap')} changed though their own stages hold: {taps}.")
        yield Section(f"Worse: {counted(len(comparison.worse), 'tap')}", lines, tone="bad")
    if comparison.better:
        lines = _sentences(comparison.better)
        yield Section(f"Better: {counted(len(comparison.better), 'tap')}", lines, tone="good")
    if comparison.lost:
        title = f"No longer compared: {counted(len(comparison.lost), 'cell')}"
        yield Section(title, _reasons(comparison.lost), tone="bad")
    if comparison.regained:
        yield Section(f"Compared now: {counted(len(comparison.regained), 'cell')}", _reasons(comparison.regained))
    if comparison.stopped:
        yield Section("Hooks that stopped firing", _hooks(comparison.stopped), tone="bad")
    if comparison.started:
        yield Section("Hooks that fire now", _hooks(comparison.started))
    for title, groups in (("Vanished", comparison.vanished_groups), ("Appeared", comparison.appeared_groups)):
        if groups:
            yield _cells(title, groups)
    yield from _grown(comparison)
    if comparison.times is not None:
        yield Section(
            f"On an equal machine the same cells took {figure(comparison.times.factor)} times as long", tone="aside"
        )


def _sentences(changes: Iterable[TapPair]) -> list[str]:
    folds = folded(changes)
    return [fold.sentence for fold in folds[:SHOWN]] + _more(len(folds))


def _reasons(refusals: Sequence[Refusal]) -> list[str]:
    """Each reason once, with a cell that has it."""
    by_reason: dict[str, list[Cell]] = {}
    for refusal in refusals:
        by_reason.setdefault(refusal.finding.message, []).append(refusal.cell)
    lines = [
        f"{cells[0].component}, {cells[0].candidate} in {cells[0].dtype}, case {cells[0].case}: {reason}"
        + (f" (and {counted(len(cells) - 1, 'more cell')})" if len(cells) > 1 else "")
        for reason, cells in by_reason.items()
    ]
    return lines[:SHOWN] + _more(len(lines))


def _hooks(hooks: Sequence[Hook]) -> list[str]:
    lines = [f"{each.candidate}: {each.name}, in {counted(each.cells, 'cell')}" for each in hooks]
    return lines[:SHOWN] + _more(len(lines))


def _cells(title: str, groups: Sequence[Group]) -> Section:
    lines = [f"{group.axis} {group.value}: {counted(group.cells, 'cell')}" for group in groups[:SHOWN]]
    return Section(f"{title}: {counted(sum(group.cells for group in groups), 'cell')}", lines + _more(len(groups)))


def _grown(comparison: Comparison) -> Iterator[Section]:
    """A row per tap and setting: where it grew most, and in which cases it did."""
    grown = comparison.grown(GROWTH_TOLD)
    if not grown:
        return
    found: dict[tuple[str, ...], list[Growth]] = {}
    for growth in grown:
        cell, finding = growth.cell, growth.finding
        found.setdefault((cell.candidate, cell.dtype, cell.device, finding.stage, bare_tap(finding.tap)), []).append(
            growth
        )
    rows = []
    for (candidate, dtype, device, stage, _), own in list(found.items())[:SHOWN]:
        most = max(own, key=lambda growth: (growth.cell.kind != "block", growth.factor))
        cases = ", ".join(dict.fromkeys(growth.cell.case for growth in own))
        figures = figure(most.before), figure(most.after), f"×{figure(most.factor)}"
        rows.append(
            [f"{most.cell.component} {most.finding.tap} ({stage})", f"{candidate} {dtype} {device}", cases, *figures]
        )
    title = f"r at least {GROWTH_TOLD:g} times greater, over all layers and seeds: {counted(len(grown), 'tap')}"
    yield Section(title, _more(len(found)), ["tap", "of", "cases", "baseline", "run", "factor"], rows)


def _verdict_line(comparison: Comparison, regressions: Sequence[str] | None) -> str:
    compared = f"{counted(comparison.cells, 'cell')} and {counted(comparison.taps, 'tap')} compared with the baseline"
    if regressions:
        return f"Regression: {compared}"
    taps = comparison.worse, comparison.better, comparison.lost, comparison.regained
    hooks = comparison.stopped, comparison.started
    if not any((*taps, *hooks, comparison.vanished, comparison.appeared)):
        return f"No change: {compared}"
    return compared if regressions is None else f"No regression: {compared}"


def _more(number: int) -> list[str]:
    return [f"… and {number - SHOWN} more"] if number > SHOWN else []
