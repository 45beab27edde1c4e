"""Results as DataFrames, and the CSV files of a run folder.

Rows are in the plan's order, whatever the order in which cells finished, and contain no times, so that a run always
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cgverify.common.records import SETTING, TIMES, Cell, CellResult, Finding, Verdict, setting_words

CELL = [
    *("model", "component", "layer", "kind", "candidate", "dtype", "device", "rotary_dim", "attention"),
    *("case", "seed", "batch_size", "seq_len"),
]
FINDING = [
    *("step", "tap", "stage", "verdict", "r", "reference_r", "max_abs", "max_ulp"),
    *("candidate_error", "reference_error", "reference_digest", "bits", "head_bits", "worst_head"),
    *("shape", "at", "message", "cause", "tensors"),
]
TYPES = {"layer": "Int64", "rotary_dim": "string"}
"""Types of columns that pandas would guess wrong if they lack values."""


def in_plan_order(results: Iterable[CellResult], plan: Sequence[Cell]) -> list[CellResult]:
    """Return the finished cells of a plan in the plan's order."""
    finished = {result.cell.id: result for result in results}
    return [finished[cell.id] for cell in plan if cell.id in finished]


def setting_of(cell: Cell) -> tuple[str, ...]:
    """Return what is verified in a cell, without its component and inputs, as `setting_words` has it."""
    return setting_words({name: getattr(cell, name) for name in SETTING})


def cell_columns(cell: Cell) -> dict[str, Any]:
    return {column: getattr(cell, column) for column in CELL}


def findings_frame(results: Iterable[CellResult]) -> pd.DataFrame:
    """Return one row per finding, with the columns `CELL` and `FINDING`."""
    return findings_by_cell(results).drop(columns="cell")


def findings_by_cell(results: Iterable[CellResult]) -> pd.DataFrame:
    """Return `findings_frame` with a first column `cell`, the cell's id: the columns `CELL` do not identify a cell."""
    rows = [{"cell": result.cell.id, **_row(result.cell, finding)} for result in results for finding in result.findings]
    return pd.DataFrame(rows, columns=["cell", *CELL, *FINDING]).astype({**TYPES, "worst_head": "Int64"})


def _row(cell: Cell, finding: Finding) -> dict[str, Any]:
    described = {column: getattr(finding, column) for column in FINDING}
    described["verdict"] = finding.verdict.value
    described["shape"] = "x".join(map(str, finding.shape))
    return cell_columns(cell) | described


def summary_frame(results: Sequence[CellResult]) -> pd.DataFrame:
    """Return one row per component, setting and case: `worst_by`, and `blame` of the first cell that failed."""
    return _summary(results, findings_by_cell(results))


def _summary(results: Sequence[CellResult], findings: pd.DataFrame) -> pd.DataFrame:
    keys = [*SETTING, "component", "case"]
    summary = worst_by(findings, keys)
    rows = [{**cell_columns(result.cell), "blame": result.blame or None} for result in results]
    cells = pd.DataFrame(rows, columns=[*CELL, "blame"]).astype({"rotary_dim": "string"})
    blame = cells.groupby(keys, sort=False, dropna=False)["blame"].first()
    return summary.merge(blame.reset_index(), on=keys, how="left")


def worst_by(findings: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return for each group: cells, taps compared, a count per verdict, the worst verdict, where it is, and figures.

    `where` is the place of the worst verdict; of several, of that with the greatest r. Figures are the greatest r,
    max_abs and max_ulp, and the fewest bits. Groups are in the order of their first finding.

    Args:
        findings: see `findings_by_cell`.
    """
    severity = findings["verdict"].map({verdict.value: verdict.severity for verdict in Verdict})
    compared = findings["verdict"].map({verdict.value: verdict.compares for verdict in Verdict})
    flags = {verdict.value: findings["verdict"] == verdict.value for verdict in Verdict}
    groups = findings.assign(taps=compared, **flags).groupby(keys, sort=False, dropna=False)
    counted = groups[["taps", *flags]].sum().astype(int)
    order = findings.assign(severity=severity, r=findings["r"].astype(float).fillna(-1.0)).sort_values(
        ["severity", "r"], ascending=False, kind="stable"
    )
    worst = order.groupby(keys, sort=False, dropna=False).first()
    places = worst.reset_index()[["component", "tap", "at"]]
    where = [", ".join(part for part in parts if part) for parts in places.itertuples(index=False)]
    described = pd.DataFrame({"worst_verdict": worst["verdict"], "where": where}, index=worst.index)
    cells = groups["cell"].nunique().rename("cells")
    greatest, fewest = groups[["r", "max_abs", "max_ulp"]].max(), groups[["bits"]].min()
    return pd.concat([cells, counted, described.reindex(counted.index), greatest, fewest], axis=1).reset_index()


def write_csv(folder: Path, results: Sequence[CellResult]) -> None:
    """Write `findings.csv`, `summary.csv` and `timings.csv` of finished cells, which are in plan order."""
    findings = findings_by_cell(results)
    findings.to_csv(folder / "findings.csv", columns=[*CELL, *FINDING], index=False, lineterminator="\n")
    _summary(results, findings).to_csv(folder / "summary.csv", index=False, lineterminator="\n")
    timings = [
        {**cell_columns(result.cell), **{name: round(getattr(result, name), 4) for name in TIMES}} for result in results
    ]
    pd.DataFrame(timings, columns=[*CELL, *TIMES]).to_csv(folder / "timings.csv", index=False, lineterminator="\n")
