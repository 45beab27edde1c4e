"""Workers are forked from a process with one thread: they find the same, open no file again, and end with it."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from command_line import fork
from sweeping import SMALL, prepared, same, swept

from cgverify.common.records import Verdict
from cgverify.plan.axes import Axes
from cgverify.plan.batches import CellBatch
from cgverify.plan.cost.of_plan import memory
from cgverify.plan.cost.share import LARGE, processes, threads_of_each
from cgverify.runs.execute.processes import Processes, may_fork, most_memory
from cgverify.runs.prepare import outline, prepare
from cgverify.runs.request import ExecutionOptions, one_checkpoint
from cgverify.runs.session import verify_batches

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers come from a fork server")

GIB = 1 << 30


def children(pid: int, count: int) -> list[psutil.Process]:
    """Wait until a process has forked a number of children, and return them."""
    parent, until = psutil.Process(pid), time.monotonic() + 60
    while time.monotonic() < until:
        found = parent.children()
        if len(found) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{len(parent.children())} children after a minute")


def test_forked_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    swept(SMALL, tmp_path / "alone")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(SMALL))
    options = ("--threads", "1", "--jobs", "2", "-q")
    process = fork("sweep", "plan.yaml", "--output", "run", *options, cwd=tmp_path, output=tmp_path / "output")
    command_line = " ".join(psutil.Process(process.pid or 0).cmdline())
    workers = children(process.pid or 0, 2)
    assert {" ".join(worker.cmdline()) for worker in workers} == {command_line}, "forks, and no server"
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()
    assert same(tmp_path / "run", tmp_path / "alone")


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    options = ("--model", "codegen-350M", "--layers", "0-9", "--jobs", "2", "--threads", "1", "-q")
    process = fork("all-components", *options, cwd=tmp_path, output=tmp_path / "output")
    workers = children(process.pid or 0, 2)
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_process_is_forked_only_where_that_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert may_fork(1, {"cpu"})
    assert not may_fork(2, {"cpu"}), "OpenMP does not survive a fork"
    assert not may_fork(1, {"cpu", "cuda:0"}), "nor does the context of a device"
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not may_fork(1, {"cpu"}), "nor do the locks of another thread"


def planned(model: str, **axes: object) -> list[CellBatch]:
    return outline(one_checkpoint("all-components", model, "auto", Axes.model_validate(axes)), ExecutionOptions())


def test_automatic_jobs_follow_processors_memory_and_work() -> None:
    batches = planned("codegen-350M")
    assert processes(batches, GIB, 64 * GIB, 4) == 4
    assert processes(batches, GIB, 512 * GIB, 200) == len({batch.in_view for batch in batches})
    assert processes(batches, GIB, 8 * GIB, 4) == 2, "a quarter of the memory"
    assert processes(batches, GIB, GIB, 4) == 1
    assert processes(batches, LARGE, 512 * GIB, 4) == 1, "threads share large products"
    assert processes(planned("codegen-350M", devices=["cuda"]), GIB, 64 * GIB, 4) == 1
    assert processes(planned("codegen-nano", cases=["default"]), GIB, 64 * GIB, 4) == 1, "a second of work"


def test_two_of_the_largest_batches_do_not_run_at_once() -> None:
    batches = planned("codegen-350M")
    most = most_memory(batches, 2)
    size = {batch.view: memory(batch) for batch in batches}
    assert size["embed"] + size["unembed"] > most
    assert size["unembed"] + size[1] <= most


def test_batch_without_room_waits_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = prepared({**SMALL, "components": "ln1", "cases": "default"})
    busy = {}
    for room in (0.0, 1e12):
        monkeypatch.setattr("cgverify.runs.execute.processes.most_memory", lambda *_, room=room: room)
        executor = Processes(2)
        results = executor.run(plan.batches, plan.job())
        busy[room] = [sum(worker.batch is not None for worker in executor._workers) for _ in results]
    assert len(busy[0.0]) == len(busy[1e12]) == len(plan.cells)
    assert set(busy[0.0]) == {0}
    assert 1 in busy[1e12]


def test_automatic_threads_depend_on_the_plan_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of_each(GIB) == 1
    assert threads_of_each(LARGE) is None
    request = one_checkpoint("all-components", "codegen-350M", "random", Axes())
    before = torch.get_num_threads()
    try:
        for processors in (1, 2, 64):
            monkeypatch.setattr("cgverify.runs.prepare.processors", lambda processors=processors: processors)
            run = prepare(request, ExecutionOptions(jobs=None))
            assert run.run.environment["numerics"]["threads"] == 1
            assert run.jobs <= processors
    finally:
        torch.set_num_threads(before)


def _verdicts_with_a_known_digest(pipe: Connection) -> None:
    plan = prepared({**SMALL, "components": "ln1", "cases": "default"}, jobs=2)
    (source,), (checkpoint,) = plan.found.sources.values(), plan.found.checkpoints.values()
    source.digest = "known"
    known = checkpoint.model_copy(update={"digest": "known"})
    batches = [replace(batch, checkpoint=known) for batch in plan.batches]
    pipe.send({result.verdict for result in verify_batches(plan, batches)})


def test_forked_worker_trusts_the_digest_that_is_known() -> None:
    """Otherwise each worker reads all of a checkpoint once more."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=_verdicts_with_a_known_digest, args=(theirs,))
    process.start()
    theirs.close()
    assert ours.recv() == {Verdict.BOUNDED}, "a known digest is no error"
    process.join()
