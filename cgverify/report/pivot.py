"""A run along one of its axes: the worst of each kind of component at each value of the axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cgverify.common.records import CellResult, Run, Verdict
from cgverify.report.frames import findings_by_cell, worst_by
from cgverify.report.numbers import figure
from cgverify.report.render import json_rows
from cgverify.report.sections import Report, Section


def pivot_report(run: Run, results: Sequence[CellResult], by: str) -> Report:
    """Return a report with a row per kind of component and value of the axis, and the columns of `worst_by`.

    Args:
        by: one of `cgverify.report.formats.PIVOTS`.
    """
    frame = worst_by(findings_by_cell(results), ["kind", by])
    return Report(
        title=f"{run.model} by {by}",
        sections=lambda: [_table(frame, by)],
        frame=lambda: frame,
        value=lambda: json_rows(frame),
    )


def _table(frame: pd.DataFrame, by: str) -> Section:
    """Return the table for people.

    Layers are rows, since there are many layers and few kinds of component. The values of any other axis are columns.
    Components outside the layers are not in a table of layers.
    """
    found = frame.dropna(subset=[by])
    down, across = (by, "kind") if by == "layer" else ("kind", by)
    columns, rows = (list(found[name].drop_duplicates()) for name in (across, down))
    entries = {(row[down], row[across]): _entry(row) for row in found.to_dict("records")}
    return Section(
        f"by {by}: the worst verdict and the greatest r over all other axes",
        columns=["layer" if by == "layer" else "component", *map(str, columns)],
        rows=[[str(row), *(entries.get((row, column), "") for column in columns)] for row in rows],
    )


def _entry(row: Mapping[Any, Any]) -> str:
    verdict = Verdict(row["worst_verdict"])
    return f"{verdict.value} {figure(row['r'])}" if verdict.compares else verdict.value
