"""The page: what a run came to, from the verdict down to the single finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cgverify.common.printable import printable
from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.report.html.changes import changes
from cgverify.report.html.figures import difference_by_layer, errors_by_tap, ratio_by_layer
from cgverify.report.html.templating import MEANINGS, render_template, script_hash
from cgverify.report.html.worst import Axis, every_finding, overview, setting_of, tap_name, values_by_axis
from cgverify.report.outcome import counts, exit_code, failures, silent_hooks, suspects
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.changes import compare

MOST_FAILURES = 50
MOST_FINDINGS = 1000
"""Rows of the table; findings.csv holds them all."""


def render(run: Run, results: Sequence[CellResult], baseline: StoredRun | None = None) -> str:
    """The report as one HTML document.

    Args:
        results: in the order in which they are to be shown.
        baseline: a run to compare with.
    """
    total = counts(results)
    shown = overview(run, results)
    charts = [difference_by_layer(results, shown.axes), ratio_by_layer(results, shown.axes)]
    found = failures(results)
    page = render_template(
        "page.html.j2",
        run=run,
        script_hash=script_hash(),
        state=_state(results),
        meanings=MEANINGS,
        total=total,
        setting=[(name, values) for name, values in values_by_axis(run, results).items() if name != "model"],
        cells=len(results),
        taps=sum(number for verdict, number in total.items() if verdict.compares),
        failures=[(failure, failure.command(run)) for failure in found[:MOST_FAILURES]],
        more_failures=max(0, len(found) - MOST_FAILURES),
        faults=sum(failure.finding.verdict.fails for failure in found),
        refused=list(dict.fromkeys(f.message for _, f in every_finding(results) if f.verdict is Verdict.UNSUPPORTED)),
        suspects=_suspects(results),
        silent=silent_hooks(results),
        changes=None if baseline is None else changes(compare(baseline, StoredRun(run, results))),
        overview=shown,
        depth=[chart for chart in charts if chart is not None],
        no_difference=charts[0] is None,
        errors=errors_by_tap(results, shown.axes),
        table=_table(results, shown.axes),
        environment=_environment(run),
    )
    return printable(page)  # HTML has no control characters, not even escaped


def _environment(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Versions, machine and numerics flags: each part with its names and values."""
    return [
        (part, [(name, str(value)) for name, value in values.items()])
        for part, values in run.environment.items()
        if isinstance(values, dict)
    ]


def _state(results: Sequence[CellResult]) -> str:
    return {0: "held", 1: "failed", 3: "error", 5: "empty"}[exit_code(results)]


def _suspects(results: Sequence[CellResult]) -> list[str]:
    return [
        f"{cell.component}, {finding.tap}, {cell.dtype}, {cell.case}: r of the reference is {finding.reference_r:.3g}"
        for cell, finding in suspects(results)[:MOST_FAILURES]
    ]


@dataclass(frozen=True)
class Line:
    """A finding as a row of the table."""

    cell: Cell
    finding: Finding
    tap: str
    setting: tuple[str, ...]

    @property
    def message(self) -> str:
        """What is wrong with it, or where its worst element is."""
        return self.finding.message or self.finding.at


@dataclass(frozen=True)
class Table:
    """The worst findings, with what they can be filtered by."""

    lines: tuple[Line, ...]
    findings: int
    """How many there are in all."""
    axes: tuple[Axis, ...]
    verdicts: tuple[str, ...]
    components: tuple[str, ...]
    layers: tuple[str, ...]
    taps: tuple[str, ...]


def _table(results: Sequence[CellResult], axes: tuple[Axis, ...]) -> Table:
    found = sorted(every_finding(results), key=_badness)
    worst = found[:MOST_FINDINGS]
    return Table(
        lines=tuple(
            Line(cell, finding, tap_name(cell, finding) if finding.tap else "", setting_of(cell, axes))
            for cell, finding in worst
        ),
        findings=len(found),
        axes=axes,
        verdicts=tuple(verdict.value for verdict in reversed(Verdict) if any(f.verdict is verdict for _, f in worst)),
        components=tuple(dict.fromkeys(result.cell.kind for result in results)),
        layers=tuple(str(layer) for layer in sorted({c.layer for c, _ in found if c.layer is not None})),
        taps=tuple(sorted({tap_name(cell, finding) for cell, finding in worst if finding.tap})),
    )


def _badness(found: tuple[Cell, Finding]) -> tuple[int, float]:
    """Worst first."""
    _, finding = found
    return -finding.verdict.severity, -(finding.r if finding.r is not None else -1.0)
