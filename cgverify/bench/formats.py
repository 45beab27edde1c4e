"""A benchmark as text, in the formats of `cgverify bench`. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from cgverify.bench import page
from cgverify.bench.baseline import ScenarioChange
from cgverify.bench.records import BenchRun
from cgverify.bench.table import bench_frame, sections
from cgverify.report.render import terminal


def render(format: str, run: BenchRun, compared: Sequence[ScenarioChange] = ()) -> str:
    """Return a benchmark as text, ending in a newline.

    Args:
        format: `table`, `json`, `csv` or `html`.
        compared: changes since a baseline, which table and html show.
    """
    if format == "json":
        return run.model_dump_json() + "\n"
    if format == "csv":
        return bench_frame(run).to_csv(index=False, lineterminator="\n")
    if format == "html":
        return page.render(run, compared) + "\n"
    return terminal(sections(run, compared))
