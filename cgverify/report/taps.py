"""A row per tap, for a close look at one component: where along the computation precision goes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cgverify.common.printable import printable
from cgverify.common.records import CellResult, Run, Verdict
from cgverify.report.figures import bits, figure
from cgverify.report.frames import findings_frame
from cgverify.report.heads import by_head
from cgverify.report.table import STYLES, setting_table, settings


def by_tap(run: Run, results: Sequence[CellResult], width: int) -> list[RenderableType]:
    """For each setting a row per tap and stage, the worst of all cells, and then its heads."""
    tables = [_table(run, setting, findings) for setting, findings in settings(findings_frame(results))]
    return [*tables, *by_head(run, results, width)]


def _table(run: Run, setting: tuple[str, ...], findings: pd.DataFrame) -> Table:
    table = setting_table(run, setting)
    table.box, table.padding, table.show_edge = SIMPLE, (0, 0), False
    for heading in ("tap", "stage", "verdict"):
        table.add_column(heading, no_wrap=True)
    for heading in ("r", "max |Δ|", "max ULP", "bits", "head"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (tap, stage), rows in findings.groupby(["tap", "stage"], sort=False):
        said = max((Verdict(verdict) for verdict in rows["verdict"]), key=lambda verdict: verdict.severity)
        table.add_row(
            printable(str(tap)),
            printable(str(stage)),
            Text(said.value, style=STYLES[said]),
            *(figure(rows[column].max()) for column in ("r", "max_abs", "max_ulp")),
            bits(rows["bits"].min()),
            _worst_head(rows),
        )
    return table


def _worst_head(rows: pd.DataFrame) -> str:
    """The head with the fewest bits; nothing where all are exact or there are no heads."""
    measured = rows[rows["head_bits"].notna() & (rows["head_bits"] != float("inf"))]
    if measured.empty:
        return ""
    worst = measured.sort_values("head_bits", kind="stable").iloc[0]
    return str(worst["worst_head"])
