"""The formats of a run's report, by name. Each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cgverify.common.records import CellResult, Run

if TYPE_CHECKING:
    from cgverify.runs.baseline import StoredRun

FORMATS = ("table", "json", "csv", "junit", "markdown", "github", "html")
WITH_BASELINE = ("markdown", "html")
"""The formats that also show what changed since a baseline."""
PIVOTS = ("dtype", "device", "case", "candidate", "rotary_dim", "attention", "layer")
"""The axes along which `cgverify.report.pivot` shows a run, in `PIVOT_FORMATS`."""
PIVOT_FORMATS = ("table", "json", "csv", "markdown")


def render_run(format: str, run: Run, results: Sequence[CellResult], baseline: StoredRun | None = None) -> str:
    """Return the report of a run as text that ends in a newline.

    Args:
        format: one of `FORMATS`.
        results: in report order.
        baseline: a run to compare with, for the formats in `WITH_BASELINE`.
    """
    match format:
        case "junit":
            from cgverify.report.junit import junit_xml

            return junit_xml(run, results)
        case "github":
            from cgverify.report.github import run_annotations

            return run_annotations(run, results)
        case "html":
            from cgverify.report.html.page import run_page

            return run_page(run, results, baseline)
        case _:
            from cgverify.report.render import render
            from cgverify.report.run import run_report

            return render(format, run_report(run, results, baseline))
