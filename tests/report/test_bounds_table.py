"""The table of the largest r by stage, which docs/bounds.md publishes."""

from __future__ import annotations

import pandas as pd
from bounds_table import short, tables


def test_table_has_the_larger_r_of_both_sides_by_stage() -> None:
    rows = [
        ("default", "forward", "project_q", "float32", 0.06, 0.05),
        ("default", "forward", "project_k", "float32", 0.01, 0.07),
        ("default", "forward", "returned", "float32", 0.0, 0.0),
        ("autocast", "float16 token", "mix", "float32", 0.9961, None),
    ]
    plain, autocast = tables(pd.DataFrame(rows, columns=["case", "step", "stage", "dtype", "r", "reference_r"]))
    assert plain.splitlines()[2:] == ["| `project_q/k/v` | .07 | – | – | – |"]
    assert autocast.splitlines()[2:] == ["| `mix` | – | .996 |"]


def test_figure_within_its_bound_is_never_written_as_one() -> None:
    assert [short(r) for r in (0.001, 0.064, 0.994, 0.9996, 1.2)] == ["0", ".06", ".99", ".999", "1.20"]
