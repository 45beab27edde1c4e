"""A small plan, and functions that carry out plans."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from cgverify.common.records import Verdict
from cgverify.plan.batches import Watch, unwatched
from cgverify.plan.yaml_plan import parse_plan
from cgverify.report.frames import write_csv
from cgverify.runs.prepare import PreparedRun, prepare
from cgverify.runs.request import ExecutionOptions, sweep_of
from cgverify.runs.session import RunSession

SMALL: dict[str, Any] = {
    "models": ["codegen-nano"],
    "layers": [0, 3],
    "components": ["attn", "ln1", "mlp.out", "embed"],
    "dtypes": ["float32", "bfloat16"],
    "cases": ["default", "decode"],
}
"""A plan of 18 cells in 6 batches."""

DEADLY = {**SMALL, "candidates": "deadly:Deadly", "dtypes": "float32", "cases": ["default", "text"]}
"""A plan whose candidate kills every worker that runs its attention, alone or among the cells of a prompt."""


def prepared(plan: dict[str, Any], **options: Any) -> PreparedRun:
    """Prepare a plan, with one torch thread and the given `ExecutionOptions`."""
    return prepare(sweep_of(parse_plan(plan), "small"), ExecutionOptions(threads=1, **options))


def swept(plan: dict[str, Any], path: Path, watch: Watch = unwatched, **options: Any) -> RunSession:
    """Carry out a plan, and write its CSV files."""
    session = RunSession.start(prepared(plan, **options), path)
    for _ in session.carry_out(watch=watch):
        pass
    session.folder.close()
    write_csv(path, session.ordered)
    return session


def same(one: Path, other: Path) -> bool:
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in ("findings.csv", "summary.csv"))


def require_errors_in_attention(session: RunSession) -> None:
    """Assert that in the plan `DEADLY` exactly the cells of attention are errors, and name the lost workers."""
    assert len(session.ordered) == 14
    errors = [result for result in session.ordered if result.verdict is Verdict.ERROR]
    places = {(result.cell.component, result.cell.case) for result in errors}
    assert places == set(product(("blocks.0.attn", "blocks.3.attn"), ("default", "text")))
    assert all("2 workers were lost at it (" in result.findings[0].message for result in errors)
