"""Results as tables: DataFrames, and the CSV files of a run folder.

Rows come in the plan's order whatever the order in which cells finished, and hold no times, so that one run is always
the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cgverify.common.records import TIMES, Cell, CellResult, Finding, Verdict

CELL = [
    *("model", "component", "layer", "kind", "candidate", "dtype", "device", "rotary_dim"),
    *("case", "seed", "batch_size", "seq_len"),
]
FINDING = [
    *("step", "tap", "stage", "verdict", "r", "reference_r", "max_abs", "max_ulp"),
    *(
        "candidate_error",
        "reference_error",
        "bits",
        "head_bits",
        "worst_head",
        "shape",
        "at",
        "message",
        "cause",
        "tensors",
    ),
]
SETTING = ["model", "candidate", "dtype", "device", "rotary_dim"]


def in_plan_order(results: Iterable[CellResult], plan: Sequence[Cell]) -> list[CellResult]:
    """The finished cells of a plan, as the plan orders them."""
    finished = {result.cell.id: result for result in results}
    return [finished[cell.id] for cell in plan if cell.id in finished]


def findings_frame(results: Iterable[CellResult]) -> pd.DataFrame:
    """One row per finding, columns `CELL` and `FINDING`."""
    return findings_by_cell(results).drop(columns="cell")


def findings_by_cell(results: Iterable[CellResult]) -> pd.DataFrame:
    """The same, and before them a column `cell` with the cell's id: not all that makes a cell is in its columns."""
    rows = [{"cell": result.cell.id, **_row(result.cell, finding)} for result in results for finding in result.findings]
    frame = pd.DataFrame(rows, columns=["cell", *CELL, *FINDING])
    return frame.astype({"layer": "Int64", "worst_head": "Int64", "rotary_dim": "string"})


def summary_frame(results: Sequence[CellResult]) -> pd.DataFrame:
    """One row per component, setting and case: see `worst_by`; and why it failed, by the first cell that did."""
    keys = [*SETTING, "component", "case"]
    summary = worst_by(findings_by_cell(results), keys)
    cells = pd.DataFrame([{**_cell(r.cell), "blame": r.blame or None} for r in results], columns=[*CELL, "blame"])
    blame = cells.astype({"rotary_dim": "string"}).groupby(keys, sort=False, dropna=False)["blame"].first()
    return summary.merge(blame.reset_index(), on=keys, how="left")


def worst_by(findings: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """For each group: cells, taps compared, a count per verdict, the worst, greatest figures, fewest bits, and where.

    Args:
        findings: see `findings_by_cell`.

    `where` is the place of the worst verdict, among equals of the greatest r. Groups stand in order of appearance.
    """
    severity = findings["verdict"].map({verdict.value: verdict.severity for verdict in Verdict})
    compared = findings["verdict"].map({verdict.value: verdict.compares for verdict in Verdict})
    flags = {verdict.value: findings["verdict"] == verdict.value for verdict in Verdict}
    marked = findings.assign(taps=compared, **flags)
    groups = marked.groupby(keys, sort=False, dropna=False)
    counted = groups[["taps", *flags]].sum().astype(int)
    greatest = groups[["r", "max_abs", "max_ulp"]].max()
    fewest = groups[["bits"]].min()
    order = findings.assign(severity=severity, r=findings["r"].fillna(-1.0)).sort_values(
        ["severity", "r"], ascending=False, kind="stable"
    )
    worst = order.groupby(keys, sort=False, dropna=False).first()
    places = worst["component"] if "component" in worst else worst.index.get_level_values("component").to_series()
    places = pd.Series(list(places), index=worst.index)
    where = [", ".join(part for part in parts if part) for parts in zip(places, worst["tap"], worst["at"], strict=True)]
    described = pd.DataFrame({"worst_verdict": worst["verdict"], "where": where}, index=worst.index)
    cells = groups["cell"].nunique().rename("cells")
    return pd.concat([cells, counted, described.reindex(counted.index), greatest, fewest], axis=1).reset_index()


def write_csv(folder: Path, results: Sequence[CellResult]) -> None:
    """`findings.csv`, `summary.csv` and `timings.csv` of finished cells in plan order."""
    findings_frame(results).to_csv(folder / "findings.csv", index=False)
    summary_frame(results).to_csv(folder / "summary.csv", index=False)
    timings = [
        {**_cell(result.cell), **{name: round(getattr(result, name), 4) for name in TIMES}} for result in results
    ]
    pd.DataFrame(timings, columns=[*CELL, *TIMES]).to_csv(folder / "timings.csv", index=False)


def _cell(cell: Cell) -> dict[str, Any]:
    return {column: getattr(cell, column) for column in CELL}


def _row(cell: Cell, finding: Finding) -> dict[str, Any]:
    described = {column: getattr(finding, column) for column in FINDING}
    described["verdict"] = finding.verdict.value
    described["shape"] = "x".join(map(str, finding.shape))
    return _cell(cell) | described
