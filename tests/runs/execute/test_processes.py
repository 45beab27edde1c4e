"""Local processes: the same findings as one, and what becomes of workers that die."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sweeping import SMALL, prepared, swept

from cgverify.common.environment import machine
from cgverify.common.errors import CgverifyError
from cgverify.common.records import Verdict
from cgverify.plan.batches import Job, group_into_batches, unfinished_batches
from cgverify.plan.yaml_plan import parse_plan
from cgverify.report.outcome import exit_code
from cgverify.runs.execute.in_process import InProcess
from cgverify.runs.execute.processes import Processes, Queue
from cgverify.runs.session import ExecutionOptions, prepare, sweep_of


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small plan, carried out in this process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    swept(SMALL, path)
    return path


def test_two_processes_find_what_one_finds(alone: Path, tmp_path: Path) -> None:
    swept(SMALL, tmp_path / "run", jobs=2)
    for file in ("findings.csv", "summary.csv"):
        assert (tmp_path / "run" / file).read_text().splitlines() == (alone / file).read_text().splitlines()


def test_threads_are_shared_among_processes_and_recorded() -> None:
    processors = machine()["processors"]
    for jobs in (2, 3):
        prepared_run = prepare(sweep_of(parse_plan(SMALL), "small"), ExecutionOptions(jobs=jobs)).run
        assert prepared_run.environment["numerics"]["threads"] == max(1, processors // jobs)


def test_a_worker_that_dies_is_told_and_its_work_done_by_another(
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
    assert "A worker died at blocks." in caplog.text
    assert "SIGKILL" in caplog.text


def test_a_cell_that_kills_two_workers_is_an_error_and_the_rest_is_run(tmp_path: Path) -> None:
    plan = {**SMALL, "candidates": "deadly:Deadly", "cases": "default", "dtypes": "float32"}
    session = swept(plan, tmp_path / "run", jobs=2)
    verdicts = {result.cell.component: result.verdict for result in session.ordered}
    dead = {"blocks.0.attn", "blocks.3.attn"}
    assert {component for component, verdict in verdicts.items() if verdict is Verdict.ERROR} == dead
    assert set(verdicts) == dead | {"embed", "blocks.0.ln1", "blocks.3.ln1", "blocks.0.mlp.out", "blocks.3.mlp.out"}
    assert exit_code(session.ordered) == 3
    errors = [result for result in session.ordered if result.verdict is Verdict.ERROR]
    assert all("2 workers died of it (killed by SIGKILL)" in result.findings[0].message for result in errors)


def test_what_a_worker_cannot_do_for_the_whole_run_ends_it() -> None:
    batches = prepared(SMALL).batches
    with pytest.raises(CgverifyError, match="No module named 'nowhere'") as raised:
        list(Processes(2).run(batches, Job(("nowhere:Bridge",), threads=1)))
    assert raised.value.exit_code == 2


def test_weights_that_are_others_than_planned_are_an_error() -> None:
    plan = prepared({**SMALL, "layers": 0, "components": "ln1", "cases": "default"})
    (checkpoint,) = plan.found.checkpoints.values()
    batches = [replace(batch, checkpoint=checkpoint.model_copy(update={"digest": "other"})) for batch in plan.batches]
    results = list(InProcess({}).run(batches, Job(("cgverify",), threads=1)))
    assert {result.verdict for result in results} == {Verdict.ERROR}
    assert "has other weights here" in results[0].findings[0].message


def test_a_unit_is_cells_of_one_view_in_one_setting_and_is_run_whole_or_not() -> None:
    plan = prepared(SMALL)
    batches = plan.batches
    assert sorted(cell.id for batch in batches for cell in batch.cells) == sorted(cell.id for cell in plan.cells)
    for batch in batches:
        assert len({(cell.layer, cell.dtype, cell.rotary_dim, cell.device) for cell in batch.cells}) == 1
    assert len(group_into_batches(plan.cells)) == len(batches) == 6
    half = {batch.cells[0].id for batch in batches}
    assert unfinished_batches(batches, half) == [batch for batch in batches if len(batch.cells) > 1]


def test_a_worker_goes_on_with_what_it_has_in_view_and_shares_the_rest() -> None:
    batches = prepared(SMALL).batches
    queue = Queue(batches)
    first = queue.take(None, [])
    second = queue.take(None, [first.in_view])
    assert first.in_view != second.in_view
    again = queue.take(first.in_view, [second.in_view])
    assert again.in_view == first.in_view
    queue.give_back(again)
    assert queue.take(first.in_view, []) == again
    rest = []
    while queue:
        rest.append(queue.take(None, []))
    assert len(rest) == len(batches) - 3


def test_what_cells_share_is_read_once() -> None:
    """Sixty cells cost little more than what is computed for them: thirty seeds of two layers read each weight once."""
    plan = prepared({**SMALL, "components": "attn.q", "cases": "default", "seeds": list(range(30))})
    (source,) = plan.found.sources.values()
    reads: list[str] = []
    read = source.read

    def counted(name: str, shape: torch.Size) -> torch.Tensor:
        reads.append(name)
        return read(name, shape)

    source.read = counted  # type: ignore[method-assign]
    assert sum(len(batch.cells) for batch in plan.batches) == 60 * 2
    one_dtype = [batch for batch in plan.batches if batch.dtype == "float32"]
    results = list(plan.executor().run(one_dtype, Job(("cgverify",), threads=1)))
    assert len(results) == 60
    assert len(reads) == len(set(reads))
