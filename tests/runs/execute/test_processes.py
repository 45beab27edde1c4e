"""Local processes find what one process finds, and a lost worker costs no results but its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sweeping import DEADLY, SMALL, prepared, require_errors_in_attention, same, swept

from cgverify.common.errors import CgverifyError
from cgverify.common.numerics import machine
from cgverify.common.records import Cell, Verdict
from cgverify.plan.batches import BatchWeights, CellBatch, Job, unfinished_batches
from cgverify.plan.yaml_plan import parse_plan
from cgverify.report.outcome import exit_code
from cgverify.runs.execute.batch_queue import BatchQueue
from cgverify.runs.execute.in_process import InProcess
from cgverify.runs.execute.processes import Processes
from cgverify.runs.prepare import prepare
from cgverify.runs.request import ExecutionOptions, sweep_of
from cgverify.runs.session import verify_batches


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    """They also report the cells that they observe."""
    watched: dict[int, list[Cell | None]] = {1: [], 2: []}
    swept(SMALL, tmp_path / "alone", watched[1].append)
    session = swept(SMALL, tmp_path / "run", watched[2].append, jobs=2)
    assert same(tmp_path / "run", tmp_path / "alone")
    for seen in watched.values():
        assert {cell.id for cell in seen if cell} == {cell.id for cell in session.prepared.cells}
        assert seen.count(None) == len(session.prepared.batches)


def test_processors_are_divided_among_jobs() -> None:
    processors = machine()["processors"]
    for jobs in (2, 3):
        run = prepare(sweep_of(parse_plan(SMALL), "small"), ExecutionOptions(jobs=jobs)).run
        assert run.environment["numerics"]["threads"] == max(1, processors // jobs)


def test_batch_of_a_lost_worker_goes_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "once.py").write_text(
        "import os\n"
        f"os.environ['DEADLY_ONCE'] = {str(tmp_path / 'dead')!r}\n"
        "from deadly import DeadlyOnce as Candidate\n"
    )
    monkeypatch.chdir(tmp_path)
    plan = {**SMALL, "candidates": "once:Candidate", "components": "attn"}
    session = swept(plan, tmp_path / "run", jobs=2)
    assert (tmp_path / "dead").exists()
    assert [result.verdict for result in session.ordered] == [Verdict.BITWISE] * 8
    assert "A worker was lost at blocks." in caplog.text
    assert "SIGKILL" in caplog.text


def test_cell_that_stops_two_workers_is_an_error(tmp_path: Path) -> None:
    session = swept(DEADLY, tmp_path / "run", jobs=2)
    require_errors_in_attention(session)
    assert exit_code(session.ordered) == 3


def test_candidate_missing_in_a_worker_ends_the_run() -> None:
    batches = prepared(SMALL).batches
    with pytest.raises(CgverifyError, match="No module named 'nowhere'") as raised:
        list(Processes(2).run(batches, Job(("nowhere:Bridge",), threads=1)))
    assert raised.value.exit_code == 2


def test_weights_that_changed_since_planning_are_an_error() -> None:
    plan = prepared({**SMALL, "layers": 0, "components": "ln1", "cases": "default"})
    (checkpoint,) = plan.found.checkpoints.values()
    batches = [replace(batch, checkpoint=checkpoint.model_copy(update={"digest": "other"})) for batch in plan.batches]
    results = list(InProcess({}).run(batches, Job(("cgverify",), threads=1)))
    assert {result.verdict for result in results} == {Verdict.ERROR}
    assert "has other weights here" in results[0].findings[0].message


def test_batch_is_the_cells_of_one_view_and_setting() -> None:
    plan = prepared(SMALL)
    batches = plan.batches
    assert sorted(cell.id for batch in batches for cell in batch.cells) == sorted(cell.id for cell in plan.cells)
    for batch in batches:
        assert len({(cell.layer, cell.dtype, cell.rotary_dim, cell.device) for cell in batch.cells}) == 1
    assert len(batches) == 6
    first_cells = {batch.cells[0].id for batch in batches}
    assert unfinished_batches(batches, first_cells) == [batch for batch in batches if len(batch.cells) > 1]


def test_worker_continues_with_the_weights_in_view() -> None:
    batches = prepared(SMALL).batches
    queue = BatchQueue(batches)

    def take(in_view: BatchWeights | None, *others: BatchWeights) -> CellBatch:
        batch = queue.take(in_view, others)
        assert batch is not None
        return batch

    first = take(None)
    second = take(None, first.in_view)
    assert first.in_view != second.in_view
    again = take(first.in_view, second.in_view)
    assert again.in_view == first.in_view
    queue.put_back(again)
    assert take(first.in_view) == again
    rest = []
    while queue:
        rest.append(take(None))
    assert len(rest) == len(batches) - 3


def test_weights_shared_by_cells_are_read_once() -> None:
    plan = prepared({**SMALL, "components": "attn.q", "cases": "default", "seeds": list(range(30))})
    (source,) = plan.found.sources.values()
    reads: list[str] = []
    read = source.read

    def counted(name: str, shape: torch.Size) -> torch.Tensor:
        reads.append(name)
        return read(name, shape)

    source.read = counted  # type: ignore[method-assign]
    one_dtype = [batch for batch in plan.batches if batch.dtype == "float32"]
    assert len(list(verify_batches(plan, one_dtype))) == 60, "thirty seeds of two layers"
    assert len(reads) == len(set(reads))
