"""A benchmark on the screen: a table per candidate and dtype, then what changed since the baseline.

`limit` is the time that the matrix products alone would take at the machine's measured rate, over the bridge's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cgverify.bench.baseline import ScenarioChange
from cgverify.bench.records import BenchRun, Measured

BITS = {True: "same", False: "other", None: ""}


def show(console: Console, run: BenchRun, compared: Sequence[ScenarioChange] = ()) -> None:
    """Print all of it."""
    machine, numerics = run.environment.get("machine", {}), run.environment.get("numerics", {})
    console.print(
        Text(
            f"{run.model} · {run.weights_origin} · {machine.get('processor')}, {machine.get('processors')} processors, "
            f"{numerics.get('threads')} threads, memory {numerics.get('memory', 'fresh')}"
        ),
        soft_wrap=True,
    )
    for setting, group in groupby(sorted(run.measured, key=_setting), key=_setting):
        console.print(_figures(run, setting, list(group)))
    for each in run.measured:
        if each.message:
            console.print(Text(f"{each.candidate}, {each.point.name}: {each.message}", style="yellow"), soft_wrap=True)
    loose = sum(not each.tight for each in run.measured)
    if loose:
        console.print(
            Text(f"~ {loose} intervals were not tight when their time was up: --seconds gives them more."),
            soft_wrap=True,
        )
    for setting, changed in groupby(sorted(compared, key=_setting_of_change), key=_setting_of_change):
        console.print(_changes(setting, list(changed)))


def _setting(each: Measured) -> str:
    return f"{each.candidate} · {each.point.dtype} · {each.point.device}"


def _setting_of_change(change: ScenarioChange) -> str:
    return _setting(change.now)


def _figures(run: BenchRun, setting: str, measured: Sequence[Measured]) -> Table:
    table = Table(box=SIMPLE, title=setting, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("ratio", "95 %", "bridge", "HF", "limit", "bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in measured:
        share = run.share_of_limit(each, each.value)
        table.add_row(
            *(_place(each), ratio(each), interval(each)),
            *(amount(each.value, each.unit), amount(each.reference, each.unit)),
            "" if share is None else f"{share:.0%}",
            BITS[each.same_bits],
        )
    return table


def _changes(setting: str, compared: Sequence[ScenarioChange]) -> Table:
    table = Table(box=SIMPLE, title=f"{setting}, beside the baseline", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for heading in ("then", "now", "factor", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in compared:
        factor = "–" if change.factor is None else f"{change.factor:.3f}"
        table.add_row(_place(change.now), ratio(change.before), ratio(change.now), factor, change.says)
    return table


def _place(each: Measured) -> str:
    return f"{each.point.component} {each.point.scenario} {each.point.shape}".rstrip()


def ratio(measured: Measured) -> str:
    if measured.ratio is None:
        return "–"
    return f"{measured.ratio:.3f}" if measured.tight else f"~{measured.ratio:.3f}"


def interval(measured: Measured) -> str:
    if measured.rounds < 2 or measured.low is None:
        return ""
    return f"{measured.low:.3f}–{measured.high:.3f}"


def amount(value: float | None, unit: str) -> str:
    """Seconds or bytes with three digits: `583 µs`, `1.4 GB`."""
    if value is None:
        return "–"
    steps = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")), "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))}[unit]
    size, name = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / size:.3g} {name}"


COLUMNS = [
    *("model", "component", "scenario", "dtype", "device", "batch_size", "seq_len", "cached", "candidate"),
    *("unit", "value", "reference", "ratio", "low", "high", "rounds", "tight", "same_bits", "flops"),
    *("share_of_limit", "reference_share_of_limit", "message"),
]


def bench_frame(run: BenchRun) -> pd.DataFrame:
    """Columns `COLUMNS`; what was not measured is empty."""
    rows = [
        {"model": run.model, **each.point.model_dump(), **each.model_dump(exclude={"point"})}
        | {
            "share_of_limit": run.share_of_limit(each, each.value),
            "reference_share_of_limit": run.share_of_limit(each, each.reference),
        }
        for each in run.measured
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"flops": "Int64", "same_bits": "boolean"})
