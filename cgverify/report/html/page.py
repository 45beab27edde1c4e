"""The HTML page of a run, from the outcome down to single findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cgverify.common.printable import printable
from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.report.comparison import GROWTH_SHOWN, comparison_sections
from cgverify.report.html.heat_map import Axis, axis_values, heat_map, tap_name, values_by_axis
from cgverify.report.html.run_charts import difference_by_layer, errors_by_tap, ratio_by_layer
from cgverify.report.html.templating import MEANINGS, render_template, script_hash
from cgverify.report.numbers import counted
from cgverify.report.outcome import (
    Failure,
    counts,
    every_finding,
    exit_code,
    failures,
    refusals,
    silent_hooks,
    suspects,
    taps_compared,
)
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.changes import Comparison, compare

MOST_FAILURES = 50
MOST_FINDINGS = 1000
"""Rows of the table of findings. findings.csv has all findings."""


def run_page(run: Run, results: Sequence[CellResult], baseline: StoredRun | None = None) -> str:
    """Return the page.

    Args:
        results: in report order.
        baseline: a run to compare with.
    """
    shown = heat_map(run, results)
    charts = [difference_by_layer(results, shown.axes), ratio_by_layer(results, shown.axes)]
    found = failures(results)
    comparison = None if baseline is None else compare(baseline, StoredRun(run, results))
    page = render_template(
        "page.html.j2",
        run=run,
        script_hash=script_hash(),
        **headline(results, len(results), found),
        meanings=MEANINGS,
        total=counts(results),
        setting=[(name, values) for name, values in values_by_axis(run, results).items() if name != "model"],
        cells=len(results),
        taps=taps_compared(results),
        failures=[(failure, failure.command(run)) for failure in found[:MOST_FAILURES]],
        more_failures=max(0, len(found) - MOST_FAILURES),
        refused=refusals(results),
        suspects=suspects(results)[:MOST_FAILURES],
        silent=silent_hooks(results),
        comparison=comparison,
        change_counts=_change_counts(comparison) if comparison else [],
        change_sections=list(comparison_sections(comparison)) if comparison else [],
        map=shown,
        depth=[chart for chart in charts if chart is not None],
        no_difference=charts[0] is None,
        errors=errors_by_tap(results, shown.axes),
        **_finding_table(results, shown.axes),
        environment=_environment(run),
    )
    return printable(page) + "\n"  # HTML has no control characters, not even escaped


def headline(results: Sequence[CellResult], planned: int, found: Sequence[Failure]) -> dict[str, str]:
    """Return the outcome of a run as `state`, a class of the style sheet, `outcome`, in words, and `sign`.

    Args:
        planned: the number of cells of the plan.
        found: the faults of the results, from `failures`.
    """
    code = exit_code(results)
    if code != 1 and len(results) < planned:
        words = f"Only {len(results)} of {planned} cells were verified"
        return {"state": "error", "outcome": words, "sign": "!"}
    faults = sum(failure.finding.verdict.fails for failure in found)
    state, outcome, sign = {
        0: ("held", "Every tap holds", "="),
        1: ("failed", counted(faults, "fault"), "×"),
        3: ("error", "Some cells could not be run", "!"),
        5: ("empty", "Nothing was compared", "–"),
    }[code]
    return {"state": state, "outcome": outcome, "sign": sign}


def _change_counts(comparison: Comparison) -> list[tuple[str, int, bool]]:
    """Return the name and the number of each kind of change, and whether such changes are bad news."""
    return [
        ("taps worse", len(comparison.worse), True),
        ("taps better", len(comparison.better), False),
        (f"r grew {GROWTH_SHOWN:g}× or more", len(comparison.grown(GROWTH_SHOWN)), False),
        ("hooks stopped firing", len(comparison.stopped), True),
        ("cells no longer compared", len(comparison.lost), True),
        ("cells vanished", len(comparison.vanished), True),
        ("cells appeared", len(comparison.appeared), False),
        ("versions and flags", len(comparison.differences), False),
    ]


def _environment(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return versions, machine and numerics flags: each part with its names and values."""
    return [
        (part, [(name, str(value)) for name, value in values.items()])
        for part, values in run.environment.items()
        if isinstance(values, dict)
    ]


def _finding_table(results: Sequence[CellResult], axes: tuple[Axis, ...]) -> dict[str, Any]:
    """Return the worst findings, and the names, columns and values of the filters for them."""
    found = sorted(every_finding(results), key=_badness, reverse=True)
    rows = [
        (cell, finding, tap_name(cell, finding) if finding.tap else "", axis_values(cell, axes))
        for cell, finding in found[:MOST_FINDINGS]
    ]
    verdicts = {finding.verdict for _, finding, *_ in rows}
    filters = [
        ("verdict", 0, [verdict.value for verdict in reversed(Verdict) if verdict in verdicts]),
        ("component", 1, dict.fromkeys(cell.kind for cell, _ in every_finding(results))),
        ("layer", 2, sorted({cell.layer for cell, _ in found if cell.layer is not None})),
        ("tap", 3, sorted({tap for *_, tap, _ in rows if tap})),
        *((axis.name, 5 + number, axis.values) for number, axis in enumerate(axes) if len(axis.values) > 1),
    ]
    return {"axes": axes, "rows": rows, "filters": filters, "number_of_findings": len(found)}


def _badness(found: tuple[Cell, Finding]) -> tuple[int, float]:
    _, finding = found
    return finding.verdict.severity, -1.0 if finding.r is None else finding.r
