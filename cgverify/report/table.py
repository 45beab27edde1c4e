"""The table on the screen: failures first, then a row per kind of component."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cgverify.common.printable import printable
from cgverify.common.records import CellResult, Run, Verdict
from cgverify.report.figures import bits, figure
from cgverify.report.frames import SETTING, findings_by_cell, worst_by
from cgverify.report.growth import growth
from cgverify.report.outcome import counts, failures, silent_hooks, suspects

SHOWN_FAILURES = 20
WIDE = 100
"""From this many columns on there is room to say where the worst element is."""
STYLES = {
    Verdict.BITWISE: "green",
    Verdict.ULP: "green",
    Verdict.BOUNDED: "green",
    Verdict.UNSUPPORTED: "yellow",
    Verdict.ERROR: "magenta",
    Verdict.MISSING: "red",
    Verdict.DIVERGED: "red",
}


Tables = Callable[[Run, Sequence[CellResult], int], list[RenderableType]]
"""What stands between failures and notices, given the console's width."""


def by_component(run: Run, results: Sequence[CellResult], width: int) -> list[RenderableType]:
    """For each setting a row per kind of component."""
    return [
        _component_table(run, setting, findings, width) for setting, findings in settings(findings_by_cell(results))
    ]


def show(console: Console, run: Run, results: Sequence[CellResult], tables: Sequence[Tables] = (by_component,)) -> None:
    """Print the whole report of a run. Sentences and commands are left unwrapped, so that they can be copied."""
    for part in (
        *_failures(run, results),
        *(part for each in tables for part in each(run, results, console.width)),
        *(Text(printable(line)) for line in growth(results)),
        *_widened(run),
        *_notices(results),
        Text(verdict_line(results), style="bold"),
    ):
        console.print(part, soft_wrap=isinstance(part, Text))


def settings(findings: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The findings of each setting in which something could be compared."""
    for setting, rows in findings.groupby(SETTING, sort=False, dropna=False):
        if not (rows["verdict"] == Verdict.UNSUPPORTED.value).all():
            yield tuple(map(str, setting)), rows


def _widened(run: Run) -> list[RenderableType]:
    """What the bounds were widened for."""
    allowed = run.environment.get("numerics", {}).get("allowed", [])
    return (
        [Text(f"bounds of products are widened, since --allow {','.join(allowed)} is on", "yellow")] if allowed else []
    )


def setting_table(run: Run, setting: tuple[str, ...]) -> Table:
    """A table without columns, whose title says what was verified."""
    model, candidate, dtype, device, rotary_dim = setting
    origin = next((one.origin for one in run.checkpoints if one.name == model), run.weights_origin)
    return Table(
        title=printable(f"{model} · {candidate} · {dtype} · {device} · rotary_dim {rotary_dim} · {origin}"),
        title_justify="left",
        title_style="bold",
    )


def _failures(run: Run, results: Sequence[CellResult]) -> list[RenderableType]:
    found = failures(results)
    lines: list[RenderableType] = []
    for failure in found[:SHOWN_FAILURES]:
        style = STYLES[failure.finding.verdict]
        lines.append(Text.from_markup(f"[{style}]{failure.finding.verdict.value}[/] {escape(failure.sentence)}"))
        lines.append(Text(f"    {failure.command(run)}", style="dim"))
    if len(found) > SHOWN_FAILURES:
        lines.append(Text(f"… and {len(found) - SHOWN_FAILURES} more: see findings.csv."))
    return lines


def _component_table(run: Run, setting: tuple[str, ...], findings: pd.DataFrame, width: int) -> Table:
    table = setting_table(run, setting)
    table.add_column("component", no_wrap=True)
    for heading in ("cells", "taps"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    for heading in ("r", "max |Δ|", "max ULP", "bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column("where", overflow="fold", max_width=60)
    for row in worst_by(findings, ["kind"]).to_dict("records"):
        said = Verdict(row["worst_verdict"])
        table.add_row(
            *(str(row[name]) for name in ("kind", "cells", "taps")),
            Text(said.value, style=STYLES[said]),
            *(figure(row[name]) for name in ("r", "max_abs", "max_ulp")),
            bits(row["bits"]),
            *([] if width < WIDE else [""] if said is Verdict.BITWISE else [printable(str(row["where"]))]),
        )
    return table


def _notices(results: Sequence[CellResult]) -> list[RenderableType]:
    refused = [finding for result in results for finding in result.findings if finding.verdict is Verdict.UNSUPPORTED]
    reasons = dict.fromkeys(finding.message for finding in refused)
    lines: list[RenderableType] = [Text(printable(f"unsupported: {reason}"), style="yellow") for reason in reasons]
    for cell, finding in suspects(results)[:SHOWN_FAILURES]:
        told = f"{cell.component}, {finding.tap}, {cell.dtype}, {cell.case}: {finding.message}"
        lines.append(Text(printable(told), "yellow"))
    for candidate, hooks in silent_hooks(results).items():
        told = f"hooks of {candidate} that never fired in a cell (not gated): {', '.join(hooks)}"
        lines.append(Text(printable(told), style="dim"))
    return lines


def verdict_line(results: Sequence[CellResult]) -> str:
    """How many cells and taps there are, and how many of each verdict."""
    total = counts(results)
    taps = sum(number for verdict, number in total.items() if verdict.compares)
    by_verdict = ", ".join(f"{number} {verdict.value}" for verdict, number in total.items() if number)
    return f"{len(results)} cells, {taps} taps compared: {by_verdict or 'nothing'}"
