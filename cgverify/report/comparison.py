"""The comparison of a run with its baseline as a report: what got worse first, then everything else that differs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict

import pandas as pd

from cgverify.common.records import Cell, Finding
from cgverify.report.folds import folded, split_consequences
from cgverify.report.frames import CELL, TYPES, cell_columns
from cgverify.report.numbers import counted, figure, shortened
from cgverify.report.outcome import bare_tap, place
from cgverify.report.render import json_rows
from cgverify.report.sections import SHOWN, Report, Section, Tone, limited
from cgverify.runs.comparison.changes import Comparison, Group, Growth, Hook, Refusal
from cgverify.runs.comparison.pairs import TapPair
from cgverify.runs.comparison.reference import ReferenceChange

GROWTH_SHOWN = 2.0
"""The factor from which the growth of an r is shown."""
COLUMNS = [
    *("change", *CELL, "step", "tap", "stage", "verdict_before", "verdict_after"),
    *("r_before", "r_after", "message"),
]


def comparison_report(comparison: Comparison, regressions: Sequence[str]) -> Report:
    """Return the report of a comparison.

    Args:
        regressions: the sentences of `cgverify.runs.comparison.criteria.regressions`.
    """
    outcome = "regression" if regressions else "no regression"
    return Report(
        title=f"{comparison.run.model} compared with its baseline: {outcome}",
        sections=lambda: comparison_sections(comparison, regressions),
        frame=lambda: comparison_frame(comparison),
        value=lambda: _value(comparison, regressions),
    )


def comparison_sections(comparison: Comparison, regressions: Sequence[str] | None = None) -> Iterator[Section]:
    """Yield the answer, what may explain it, what got worse, and the rest.

    Args:
        regressions: the criteria that the comparison breaks; None if there are no criteria.
    """
    tone: Tone = "bad" if regressions else "plain" if regressions is None else "good"
    yield Section(comparison_line(comparison, regressions), regressions or (), tone=tone)
    if comparison.differences:
        rows = [
            [f"{each.part}.{each.name}", shortened(each.before, 60), shortened(each.after, 60)]
            for each in comparison.differences
        ]
        yield Section("What else differs", columns=["", "baseline", "run"], rows=rows)
    if comparison.reference_changes:
        yield _reference(comparison)
    if comparison.worse:
        causes, consequences = split_consequences(comparison.worse)
        lines = _sentences(causes)
        if consequences:
            taps = ", ".join(dict.fromkeys(bare_tap(change.finding.tap) for change in consequences))
            number = counted(len(consequences), "tap")
            lines.append(f"Behind these, {number} changed though their own stages are within their bounds: {taps}.")
        yield Section(f"Worse: {counted(len(comparison.worse), 'tap')}", lines, tone="bad")
    if comparison.better:
        title = f"Better: {counted(len(comparison.better), 'tap')}"
        yield Section(title, _sentences(comparison.better), tone="good")
    if comparison.lost:
        title = f"No longer compared: {counted(len(comparison.lost), 'cell')}"
        yield Section(title, _reasons(comparison.lost), tone="bad")
    if comparison.regained:
        yield Section(f"Compared now: {counted(len(comparison.regained), 'cell')}", _reasons(comparison.regained))
    if comparison.stopped:
        yield Section("Hooks that stopped firing", _hooks(comparison.stopped), tone="bad")
    if comparison.started:
        yield Section("Hooks that fire now", _hooks(comparison.started))
    if comparison.vanished_groups:
        yield _cells("Vanished", comparison.vanished_groups)
    if comparison.appeared_groups:
        yield _cells("Appeared", comparison.appeared_groups)
    grown = comparison.grown(GROWTH_SHOWN)
    if grown:
        yield _grown(grown)
    if comparison.times is not None:
        factor = figure(comparison.times.factor)
        yield Section(f"On an equal machine the same cells took {factor} times as long", tone="aside")


def comparison_line(comparison: Comparison, regressions: Sequence[str] | None) -> str:
    compared = f"{counted(comparison.cells, 'cell')} and {counted(comparison.taps, 'tap')} compared with the baseline"
    if regressions:
        return f"Regression: {compared}"
    taps = comparison.worse, comparison.better, comparison.lost, comparison.regained
    hooks = comparison.stopped, comparison.started
    cells = comparison.vanished, comparison.appeared
    if not any((*taps, *hooks, *cells, comparison.reference_changes)):
        return f"No change: {compared}"
    return compared if regressions is None else f"No regression: {compared}"


def _sentences(changes: Iterable[TapPair]) -> list[str]:
    return limited([fold.sentence for fold in folded(changes)])


def _reasons(refusals: Iterable[Refusal]) -> list[str]:
    """Return each reason once, with a cell that has it."""
    by_reason: dict[str, list[Cell]] = {}
    for refusal in refusals:
        by_reason.setdefault(refusal.finding.message, []).append(refusal.cell)
    return limited(
        [
            f"{place(cells[0])}: {reason}"
            + (f" (and {counted(len(cells) - 1, 'more cell')})" if len(cells) > 1 else "")
            for reason, cells in by_reason.items()
        ]
    )


def _hooks(hooks: Iterable[Hook]) -> list[str]:
    return limited([f"{each.candidate}: {each.name}, in {counted(each.cells, 'cell')}" for each in hooks])


def _cells(title: str, groups: Sequence[Group]) -> Section:
    lines = [f"{group.axis} {group.value}: {counted(group.cells, 'cell')}" for group in groups]
    return Section(f"{title}: {counted(sum(group.cells for group in groups), 'cell')}", limited(lines))


def _grown(grown: Sequence[Growth]) -> Section:
    """Return a table with a row per tap and setting: where r grew most, and in which cases it grew."""
    found: dict[tuple[str, ...], list[Growth]] = {}
    for growth in grown:
        cell, finding = growth.cell, growth.finding
        key = (cell.candidate, cell.dtype, cell.device, finding.stage, bare_tap(finding.tap))
        found.setdefault(key, []).append(growth)
    rows = []
    for own in list(found.values())[:SHOWN]:
        most = max(own, key=lambda growth: (growth.cell.kind != "block", growth.factor))
        cell, finding = most.cell, most.finding
        rows.append(
            [
                f"{cell.component} {finding.tap} ({finding.stage})",
                f"{cell.candidate} {cell.dtype} {cell.device}",
                ", ".join(dict.fromkeys(growth.cell.case for growth in own)),
                *(figure(most.before), figure(most.after), f"×{figure(most.factor)}"),
            ]
        )
    title = f"r at least {GROWTH_SHOWN:g} times greater, over all layers and seeds: {counted(len(grown), 'tap')}"
    more = [f"… and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return Section(title, more, ["tap", "of", "cases", "baseline", "run", "factor"], rows)


def _reference(comparison: Comparison) -> Section:
    """Return a table with a row per stage and tap at which Hugging Face's own tensors changed."""
    redefined = [each.name for each in comparison.differences if each.part == "stages"]
    cells = [change.pair.cell for change in comparison.reference_changes]
    dtypes, cases = ({getattr(cell, axis) for cell in cells} for axis in ("dtype", "case"))
    found: dict[tuple[str, str], list[ReferenceChange]] = {}
    for change in comparison.reference_changes:
        finding = change.pair.finding
        found.setdefault((finding.stage, bare_tap(finding.tap)), []).append(change)
    rows = [
        [
            tap,
            f"{stage}, defined anew" if stage in redefined else stage,
            _all_or_names((change.pair.cell.dtype for change in own), dtypes),
            _all_or_names((change.pair.cell.case for change in own), cases),
            str(len({change.pair.cell.id for change in own})),
            figure(max((change.max_abs for change in own if change.max_abs is not None), default=None)),
        ]
        for (stage, tap), own in found.items()
    ]
    title = f"Hugging Face's own tensors differ: {counted(len(comparison.reference_changes), 'tap')}"
    more = [f"… and {len(rows) - SHOWN} more rows"] if len(rows) > SHOWN else []
    return Section(title, more, ["tap", "stage", "dtypes", "cases", "cells", "max |Δ|"], rows[:SHOWN], tone="warning")


def _all_or_names(values: Iterable[str], everything: Collection[str]) -> str:
    names = list(dict.fromkeys(values))
    return "all" if len(names) == len(everything) > 1 else ", ".join(names)


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """Return one row per change, columns `COLUMNS`: worse, better, grown, lost, regained, appeared and vanished."""
    rows = [_row("worse", change.cell, change.before, change.after) for change in comparison.worse]
    rows += [_row("better", change.cell, change.before, change.after) for change in comparison.better]
    rows += [
        _row("grown", growth.cell, None, growth.finding) | {"r_before": growth.before, "r_after": growth.after}
        for growth in comparison.grown(GROWTH_SHOWN)
    ]
    rows += [_row("lost", refusal.cell, None, refusal.finding) for refusal in comparison.lost]
    rows += [_row("regained", refusal.cell, refusal.finding, None) for refusal in comparison.regained]
    rows += [
        _row("reference", each.pair.cell, each.pair.before, each.pair.after) for each in comparison.reference_changes
    ]
    for change, results in (("appeared", comparison.appeared), ("vanished", comparison.vanished)):
        rows += [_row(change, result.cell, None, None) for result in results]
    return pd.DataFrame(rows, columns=COLUMNS).astype(TYPES)


def _row(change: str, cell: Cell, before: Finding | None, after: Finding | None) -> dict[str, object]:
    named = after or before
    return {
        "change": change,
        **cell_columns(cell),
        **{name: getattr(named, name) if named else "" for name in ("step", "tap", "stage")},
        "verdict_before": before.verdict.value if before else "",
        "verdict_after": after.verdict.value if after else "",
        "r_before": before.r if before else None,
        "r_after": after.r if after else None,
        "message": after.message if after else "",
    }


def _value(comparison: Comparison, regressions: Sequence[str]) -> dict[str, object]:
    return {
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
        "changes": json_rows(comparison_frame(comparison)),
    }
