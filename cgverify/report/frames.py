"""Results as tables: DataFrames, and the CSV files of a run folder.

Rows come in the plan's order whatever the order in which cells finished, and hold no times, so that one run is always
the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cgverify.records import Cell, CellResult, Finding, Verdict

CELL = [
    *("model", "component", "layer", "kind", "candidate", "dtype", "device", "rotary_dim"),
    *("case", "seed", "batch_size", "seq_len"),
]
FINDING = [
    *("step", "tap", "stage", "verdict", "r", "reference_r", "max_abs", "max_ulp"),
    *("candidate_error", "reference_error", "shape", "at", "message"),
]
SETTING = ["candidate", "dtype", "device", "rotary_dim"]


def in_plan_order(results: Iterable[CellResult], plan: Sequence[Cell]) -> list[CellResult]:
    """The finished cells of a plan, as the plan orders them."""
    finished = {result.cell.id: result for result in results}
    return [finished[cell.id] for cell in plan if cell.id in finished]


def findings_frame(results: Iterable[CellResult]) -> pd.DataFrame:
    """One row per finding, columns `CELL` and `FINDING`."""
    rows = [_row(result.cell, finding) for result in results for finding in result.findings]
    frame = pd.DataFrame(rows, columns=[*CELL, *FINDING])
    return frame.astype({"layer": "Int64", "rotary_dim": "string"})


def summary_frame(findings: pd.DataFrame) -> pd.DataFrame:
    """One row per component, setting and case: taps compared, a count per verdict, and the worst figures."""
    keys = [*SETTING, "component", "case"]
    rows = [
        dict(zip(keys, values, strict=True)) | worst(group)
        for values, group in findings.groupby(keys, sort=False, dropna=False)
    ]
    return pd.DataFrame(rows)


def worst(findings: pd.DataFrame) -> dict[str, Any]:
    """What a group of findings comes to: taps compared, counts of verdicts, the worst verdict, greatest figures, and where.

    `where` is the tap of the worst verdict, among equals that of the greatest r.
    """
    severity = findings["verdict"].map(lambda verdict: Verdict(verdict).severity)
    most_severe = findings[severity == severity.max()]
    r = most_severe["r"].fillna(-1.0)
    place = most_severe.loc[r.idxmax()]
    counts = findings["verdict"].value_counts()
    return {
        "taps": int(findings["verdict"].map(lambda verdict: Verdict(verdict).compares).sum()),
        **{verdict.value: int(counts.get(verdict.value, 0)) for verdict in Verdict},
        "worst_verdict": place["verdict"],
        "r": findings["r"].max(),
        "max_abs": findings["max_abs"].max(),
        "max_ulp": findings["max_ulp"].max(),
        "where": ", ".join(str(part) for part in (place["component"], place["tap"], place["at"]) if part),
    }


def write_csv(folder: Path, results: Sequence[CellResult]) -> None:
    """`findings.csv`, `summary.csv` and `timings.csv` of finished cells in plan order."""
    findings = findings_frame(results)
    findings.to_csv(folder / "findings.csv", index=False)
    summary_frame(findings).to_csv(folder / "summary.csv", index=False)
    timings = [{**_cell(result.cell), "seconds": round(result.seconds, 4)} for result in results]
    pd.DataFrame(timings, columns=[*CELL, "seconds"]).to_csv(folder / "timings.csv", index=False)


def _cell(cell: Cell) -> dict[str, Any]:
    return {column: getattr(cell, column) for column in CELL}


def _row(cell: Cell, finding: Finding) -> dict[str, Any]:
    described = {column: getattr(finding, column) for column in FINDING}
    described["verdict"] = finding.verdict.value
    described["shape"] = "x".join(map(str, finding.shape))
    return _cell(cell) | described
