"""The formats of a run's report, by name: each a module with `render(run, results) -> str`, imported when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from cgverify.common.records import CellResult, Run

if TYPE_CHECKING:
    from cgverify.runs.baseline import StoredRun

FORMATS = {
    "table": "cgverify.report.screen",
    "json": "cgverify.report.as_json",
    "csv": "cgverify.report.as_csv",
    "junit": "cgverify.report.junit",
    "markdown": "cgverify.report.markdown",
    "github": "cgverify.report.github",
    "html": "cgverify.report.html.page",
}
WITH_BASELINE = ("markdown", "html")
"""Those that also show what changed: their `render` takes a baseline as a third argument."""
PIVOTS = ("dtype", "device", "case", "candidate", "rotary_dim", "layer")
"""The axes along which `cgverify.report.pivot` shows a run, in `PIVOT_FORMATS`."""
PIVOT_FORMATS = ("table", "json", "csv", "markdown")


def render(format: str, run: Run, results: Sequence[CellResult], baseline: StoredRun | None = None) -> str:
    """The report as text, ending in a newline.

    Args:
        format: a key of `FORMATS`.
        results: in report order.
        baseline: what to show changes from; for the formats in `WITH_BASELINE`.
    """
    show = import_module(FORMATS[format]).render
    text: str = show(run, results) if baseline is None else show(run, results, baseline)
    return text if text.endswith("\n") else text + "\n"
