"""A run seen along one of its axes: components down, the axis's values across, the worst of each in between."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cgverify.common.records import CellResult, Run, Verdict
from cgverify.report import as_json
from cgverify.report.document import document
from cgverify.report.figures import figure
from cgverify.report.frames import findings_by_cell, worst_by
from cgverify.report.sections import Section, on_screen


def render(format: str, run: Run, results: Sequence[CellResult], by: str) -> str:
    """The pivot as text: table, markdown, csv, or a JSON list with an object per row of `pivot_frame`."""
    match format:
        case "table":
            return on_screen(pivot_sections(results, by))
        case "markdown":
            return document(f"{run.model} by {by}", pivot_sections(results, by))
        case "csv":
            text: str = pivot_frame(results, by).to_csv(index=False)
            return text
        case _:
            return json.dumps(as_json.rows(pivot_frame(results, by)), allow_nan=False) + "\n"


def pivot_frame(results: Sequence[CellResult], by: str) -> pd.DataFrame:
    """One row per kind of component and value of the axis, with the columns of `worst_by`."""
    return worst_by(findings_by_cell(results), ["kind", by])


def pivot_sections(results: Sequence[CellResult], by: str) -> list[Section]:
    """The pivot as a table.

    A layer is a row, since there are many of them and few kinds of component; any other value is a column. Components
    that belong to no layer have no place in a table of layers.
    """
    frame = pivot_frame(results, by).dropna(subset=[by])
    down, across = (by, "kind") if by == "layer" else ("kind", by)
    columns, rows = (list(frame[name].drop_duplicates()) for name in (across, down))
    entries = {(row[down], row[across]): _entry(row) for row in frame.to_dict("records")}
    table = [[str(row), *(entries.get((row, column), "") for column in columns)] for row in rows]
    heading = "layer" if by == "layer" else "component"
    title = f"by {by}: the worst verdict and the greatest r over everything else"
    return [Section(title, columns=[heading, *map(str, columns)], rows=table)]


def _entry(row: Mapping[Any, Any]) -> str:
    verdict = Verdict(row["worst_verdict"])
    return f"{verdict.value} {figure(row['r'])}" if verdict.compares else verdict.value
