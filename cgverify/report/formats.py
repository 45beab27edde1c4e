"""The formats of a run's report, by name: each a module with `render(run, results) -> str`, imported when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from cgverify.records import CellResult, Run

FORMATS = {
    "table": "cgverify.report.screen",
    "json": "cgverify.report.as_json",
    "csv": "cgverify.report.as_csv",
    "junit": "cgverify.report.junit",
    "markdown": "cgverify.report.markdown",
    "github": "cgverify.report.github",
    "html": "cgverify.report.html.page",
}
PIVOTS = ("dtype", "device", "case", "candidate", "rotary_dim", "layer")
"""The axes along which `cgverify.report.pivot` shows a run, in `PIVOT_FORMATS`."""
PIVOT_FORMATS = ("table", "json", "csv", "markdown")


def render(format: str, run: Run, results: Sequence[CellResult]) -> str:
    """The report as text, ending in a newline.

    Args:
        format: a key of `FORMATS`.
        results: in report order.
    """
    text: str = import_module(FORMATS[format]).render(run, results)
    return text if text.endswith("\n") else text + "\n"
