"""A benchmark as sections for the screen and the HTML page, and as a DataFrame for CSV.

The column `limit` is the time that the matrix products alone would take at the machine's measured rate, divided by the
bridge's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import pandas as pd

from cgverify.bench.baseline import ScenarioChange
from cgverify.bench.records import BenchRun, Measured
from cgverify.report.sections import Section

COLUMNS = [
    *("model", "component", "scenario", "dtype", "device", "batch_size", "seq_len", "cached", "candidate"),
    *("unit", "value", "reference", "ratio", "low", "high", "rounds", "tight", "same_bits", "flops"),
    *("share_of_limit", "reference_share_of_limit", "message"),
]
BITS = {True: "same", False: "other", None: ""}


def bench_frame(run: BenchRun) -> pd.DataFrame:
    """Return a row per point and candidate, with the columns `COLUMNS`. What was not measured is empty."""
    rows = [
        {"model": run.model, **each.point.model_dump(), **each.model_dump(exclude={"point"})}
        | {
            "share_of_limit": run.share_of_limit(each, each.value),
            "reference_share_of_limit": run.share_of_limit(each, each.reference),
        }
        for each in run.measured
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"flops": "Int64", "same_bits": "boolean"})


def sections(run: BenchRun, compared: Sequence[ScenarioChange] = ()) -> list[Section]:
    """Return the setting, a table per candidate and dtype, notes, and what changed since the baseline."""
    machine, numerics = run.environment.get("machine", {}), run.environment.get("numerics", {})
    rates = [f"matrix products in {name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in run.product_rates.items()]
    parts = [
        Section(
            f"{run.model} · {run.weights_origin} · {machine.get('processor')}, {machine.get('processors')} processors, "
            f"{numerics.get('threads')} threads, memory {numerics.get('memory', 'fresh')}",
            lines=[f"torch {run.environment.get('versions', {}).get('torch')}, {run.created}", *rates],
        )
    ]
    for setting, group in groupby(sorted(run.measured, key=_setting), key=_setting):
        rows = [_row(run, each) for each in group]
        parts.append(Section(setting, columns=("", "ratio", "95 %", "bridge", "HF", "limit", "bits"), rows=rows))
    failed = [f"{each.candidate}, {each.point.name}: {each.message}" for each in run.measured if each.message]
    if failed:
        parts.append(Section("Not measured", lines=failed, tone="bad"))
    loose = sum(not each.tight for each in run.measured)
    if loose:
        note = f"~ {loose} intervals were still wide when the time was over: give more time with --seconds."
        parts.append(Section(note, tone="aside"))
    by_setting = sorted(compared, key=lambda change: _setting(change.now))
    for setting, changes in groupby(by_setting, key=lambda change: _setting(change.now)):
        rows = [_change(change) for change in changes]
        title = f"{setting}, compared with the baseline"
        parts.append(Section(title, columns=("", "then", "now", "factor", "change"), rows=rows))
    return parts


def _setting(each: Measured) -> str:
    return f"{each.candidate} · {each.point.dtype} · {each.point.device}"


def _row(run: BenchRun, each: Measured) -> list[str]:
    share = run.share_of_limit(each, each.value)
    return [
        _place(each),
        _ratio(each),
        "" if each.rounds < 2 or each.low is None else f"{each.low:.3f}–{each.high:.3f}",
        amount(each.value, each.unit),
        amount(each.reference, each.unit),
        "" if share is None else f"{share:.0%}",
        BITS[each.same_bits],
    ]


def _change(change: ScenarioChange) -> list[str]:
    factor = "–" if change.factor is None else f"{change.factor:.3f}"
    return [_place(change.now), _ratio(change.before), _ratio(change.now), factor, change.change]


def _place(each: Measured) -> str:
    return f"{each.point.component} {each.point.scenario} {each.point.shape}".rstrip()


def _ratio(measured: Measured) -> str:
    if measured.ratio is None:
        return "–"
    return f"{measured.ratio:.3f}" if measured.tight else f"~{measured.ratio:.3f}"


def amount(value: float | None, unit: str) -> str:
    """Format seconds or bytes with three digits: `583 µs`, `1.4 GB`."""
    if value is None:
        return "–"
    steps = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")), "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))}[unit]
    size, name = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / size:.3g} {name}"
