"""A run as CSV: the run folder's `findings.csv`. The columns are explained in docs/findings.md."""

from __future__ import annotations

from collections.abc import Sequence

from cgverify.common.records import CellResult, Run
from cgverify.report.frames import findings_frame


def render(_: Run, results: Sequence[CellResult]) -> str:
    """The report as text."""
    text: str = findings_frame(results).to_csv(index=False)
    return text
