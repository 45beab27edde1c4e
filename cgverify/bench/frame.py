"""A benchmark as a DataFrame, a row per point and candidate."""

from __future__ import annotations

import pandas as pd

from cgverify.bench.records import BenchRun

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
