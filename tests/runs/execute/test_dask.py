"""Dask clusters on loopback: the same findings as serial, and what becomes of workers and schedulers that die."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import psutil
import pytest
import torch
import yaml
from execute.dask_clusters import JOB, apart
from sweeping import SMALL, command_line, prepared, swept
from typer.testing import CliRunner

import cgverify
from cgverify.common import environment
from cgverify.common.errors import CgverifyError
from cgverify.common.records import Verdict
from cgverify.plan.batches import Job
from cgverify.plan.cost.of_plan import memory, seconds
from cgverify.report.frames import write_csv
from cgverify.report.outcome import exit_code
from cgverify.runs.execute import cluster as clusters
from cgverify.runs.execute import dask
from cgverify.runs.execute.cluster import Cluster, local_cluster
from cgverify.runs.execute.dask import Dask
from cgverify.runs.folder import read_run
from cgverify.runs.session import RunSession


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


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the workers' path; `once` kills the first worker that runs its attention."""
    path = tmp_path_factory.mktemp("candidates")
    (path / "once.py").write_text(
        f"import os\nos.environ['DEADLY_ONCE'] = {str(path / 'dead')!r}\nfrom deadly import DeadlyOnce as Candidate\n"
    )
    return path


@pytest.fixture(scope="module")
def two_workers(candidates: Path) -> Iterator[Cluster]:
    """A scheduler with two workers, which outlives runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(candidates)
        with local_cluster(2, JOB) as address:
            yield Cluster(address)


def same(one: Path, other: Path) -> bool:
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in ("findings.csv", "summary.csv"))


def test_two_workers_find_what_serial_finds(alone: Path, two_workers: Cluster, tmp_path: Path) -> None:
    swept(SMALL, tmp_path / "run", cluster=two_workers)
    assert same(tmp_path / "run", alone)
    assert len(read_run(tmp_path / "run")[1]) == 18


def test_from_python_a_scheduler_does_the_work_too(alone: Path, two_workers: Cluster, tmp_path: Path) -> None:
    result = cgverify.sweep(SMALL, tmp_path / "run", threads=1, scheduler=two_workers.scheduler)
    assert len(result.findings["component"]) > 18
    assert same(tmp_path / "run", alone)


def test_a_local_cluster_listens_on_loopback_alone(two_workers: Cluster) -> None:
    me = psutil.Process()
    ports = [port for process in [me, *me.children(recursive=True)] for port in process.net_connections()]
    listening = [port.laddr for port in ports if port.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert 8787 not in {address.port for address in listening}


def test_a_worker_that_dies_is_told_and_its_work_done_by_another(
    two_workers: Cluster, candidates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sys.path.insert(0, str(candidates))
    plan = {**SMALL, "candidates": "once:Candidate", "components": "attn"}
    session = swept(plan, tmp_path / "run", cluster=two_workers)
    assert (candidates / "dead").exists()
    assert [result.verdict for result in session.ordered] == [Verdict.BITWISE] * 8
    assert "A worker died at blocks." in caplog.text


def test_a_cell_that_kills_two_workers_is_an_error_and_the_rest_is_run(two_workers: Cluster, tmp_path: Path) -> None:
    plan = {**SMALL, "candidates": "deadly:Deadly", "cases": "default", "dtypes": "float32"}
    session = swept(plan, tmp_path / "run", cluster=two_workers)
    verdicts = {result.cell.component: result.verdict for result in session.ordered}
    dead = {"blocks.0.attn", "blocks.3.attn"}
    assert {component for component, verdict in verdicts.items() if verdict is Verdict.ERROR} == dead
    assert set(verdicts) == dead | {"embed", "blocks.0.ln1", "blocks.3.ln1", "blocks.0.mlp.out", "blocks.3.mlp.out"}
    assert exit_code(session.ordered) == 3
    errors = [result for result in session.ordered if result.verdict is Verdict.ERROR]
    assert all("2 workers died of it" in result.findings[0].message for result in errors)


def test_a_worker_with_other_versions_gets_no_work_and_both_are_named(
    two_workers: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = prepared({**SMALL, "components": "ln1", "cases": "default"}, cluster=two_workers)
    ours = environment.versions()
    theirs = {**ours, "torch": "1.13.1"}

    def older(reported: dict[str, str]) -> None:
        environment.versions = lambda: reported  # type: ignore[assignment]

    with distributed.Client(two_workers.scheduler, set_as_default=False) as client:
        first, second = client.scheduler_info()["workers"]
        client.run(older, theirs, workers=[first])
        assert len(list(plan.executor().run(plan.batches, plan.job()))) == 4
        assert f"The worker {first} has torch 1.13.1, and the driver {ours['torch']}" in caplog.text
        client.run(older, theirs, workers=[second])
        with pytest.raises(CgverifyError, match=r"No worker is left: .* has torch 1\.13\.1, and the driver 2\."):
            list(plan.executor().run(plan.batches, plan.job()))
        client.run(older, ours)


def test_what_a_worker_cannot_do_for_the_whole_run_ends_it(two_workers: Cluster) -> None:
    batches = prepared(SMALL).batches
    with pytest.raises(CgverifyError, match="No module named 'nowhere'") as raised:
        list(Dask(two_workers, memory, seconds).run(batches, Job(("nowhere:Bridge",), threads=1)))
    assert raised.value.exit_code == 2


def test_a_worker_without_the_checkpoint_says_so(two_workers: Cluster, nano: Path, tmp_path: Path) -> None:
    shutil.copytree(nano, tmp_path / "mine")
    plan = prepared({**SMALL, "models": str(tmp_path / "mine"), "components": "ln1", "layers": 0, "cases": "default"})
    shutil.rmtree(tmp_path / "mine")
    results = list(Dask(two_workers, memory, seconds).run(plan.batches, JOB))
    assert [result.verdict for result in results] == [Verdict.ERROR] * 2
    assert "There is no folder" in results[0].findings[0].message


def test_a_unit_needs_the_memory_that_a_worker_declares(two_workers: Cluster) -> None:
    batches = prepared({**SMALL, "cases": "default"}).batches
    results = list(
        Dask(two_workers, lambda batch: 1 << 50 if batch.view == "embed" else memory(batch), seconds).run(batches, JOB)
    )
    assert sorted(cell.id for batch in batches for cell in batch.cells) == sorted(result.cell.id for result in results)
    errors = [result for result in results if result.verdict is Verdict.ERROR]
    assert {result.cell.kind for result in errors} == {"embed"}
    assert "1125899.9 GB, and no worker declares so much" in errors[0].findings[0].message


def test_a_scheduler_that_vanishes_leaves_a_run_that_goes_on(alone: Path, two_workers: Cluster, tmp_path: Path) -> None:
    with apart(1) as (cluster, process):
        session = RunSession.start(prepared(SMALL, cluster=cluster), tmp_path / "run")
        results = session.carry_out()
        next(results)
        process.kill()
        with pytest.raises(CgverifyError, match="scheduler is gone: what arrived is kept") as raised:
            list(results)
    session.folder.close()
    assert raised.value.exit_code == 3
    assert 0 < len(read_run(tmp_path / "run")[1]) < 18
    again = RunSession.resume(prepared(SMALL, cluster=two_workers), tmp_path / "run")
    assert len(list(again.carry_out())) < 18
    again.folder.close()
    write_csv(again.folder.path, again.ordered)
    assert same(again.folder.path, alone)


def test_a_worker_stops_between_two_cells_when_nobody_waits_any_longer(two_workers: Cluster) -> None:
    long = {**SMALL, "components": ["attn", "embed"], "layers": 0, "dtypes": "float32", "seeds": list(range(300))}
    plan = prepared(long, cluster=two_workers)
    assert {(batch.view, len(batch.cells)) for batch in plan.batches} == {("embed", 300), (0, 600)}
    results = plan.executor().run(plan.batches, plan.job())
    assert next(results).cell.kind == "embed", "the other worker has most of its batch before it"
    results.close()  # type: ignore[attr-defined]
    with distributed.Client(two_workers.scheduler, set_as_default=False) as client:
        deadline = time.monotonic() + 5
        while any(busy := client.run(lambda dask_worker: dask_worker.state.executing_count).values()):
            assert time.monotonic() < deadline, busy
            time.sleep(0.1)


def test_what_workers_have_otherwise_than_the_driver_is_told(
    two_workers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that they do not see, a processor that computes otherwise."""
    plan = prepared(
        {**SMALL, "components": "attn", "candidates": "faults:HeadsSwapped", "cases": "default", "layers": 0}
    )
    pinned = environment.pin_numerics
    monkeypatch.setattr(environment, "pin_numerics", lambda *a: {**pinned(*a), "cpu_capability": "AVX1024"})
    results = list(Dask(two_workers, memory, seconds).run(plan.batches, plan.job(tmp_path / "nowhere")))
    assert {result.verdict for result in results} == {Verdict.DIVERGED}
    assert not any(finding.tensors for result in results for finding in result.findings)
    assert caplog.text.count("Some workers do not see the run folder") == 1
    assert caplog.text.count("and the driver AVX1024") == 1


def test_interrupted_it_leaves_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(yaml.safe_dump({**SMALL, "seeds": list(range(20))}))
    arguments = ("sweep", "plan.yaml", "--output", "run", "--threads", "1", "--executor", "dask", "--jobs", "2")
    process = command_line(*arguments)
    findings, deadline = Path("run/findings.jsonl"), time.monotonic() + 60
    while not (findings.exists() and findings.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    workers = psutil.Process(process.pid).children(recursive=True)
    for one in [process, *workers]:  # as Ctrl-C does in a terminal
        os.kill(one.pid, signal.SIGINT)
    process.join(60)
    told = Path("output.txt").read_text()
    assert process.exitcode == 130, told
    assert "--output run --resume goes on" in told
    assert "Traceback" not in told
    assert 0 < len(read_run(Path("run"))[1]) < 18 * 20
    assert not psutil.wait_procs(workers, timeout=10)[1], "nobody goes on"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--scheduler", "localhost"), 2, "--scheduler 'localhost' is no address: write tcp://host:8786"),
        (("--scheduler", "tcp://127.0.0.1:8786", "--jobs", "2"), 2, "--jobs is for processes of this machine"),
        (("--executor", "ray"), 2, "Unknown executor 'ray'"),
        (("--scheduler", "tcp://127.0.0.1:9"), 3, "No Dask scheduler answers at tcp://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_reached_or_meant_is_told_in_one_sentence(
    arguments: tuple[str, ...], code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask, "CONNECT", 1.0)
    assert told_by(arguments, code, tmp_path, monkeypatch).startswith(f"Error: {told}")


def test_without_distributed_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None if name == "distributed" else ...)
    told = told_by(("--executor", "dask"), 2, tmp_path, monkeypatch)
    assert told == "Error: A Dask cluster needs dask.distributed: pip install 'cgverify[dask]'.\n"


def told_by(arguments: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a sweep that must end with `code` says on stderr."""
    from cgverify.cli.app import app

    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(yaml.safe_dump(SMALL))
    done = CliRunner().invoke(app, ["sweep", "plan.yaml", "-q", *arguments])
    assert done.exit_code == code, done.output
    return done.stderr


def test_nobody_waits_for_workers_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "PATIENCE", 0.2)
    monkeypatch.setattr(dask, "GLANCE", 0.1)
    with local_cluster(0, JOB) as address, pytest.raises(CgverifyError, match="The scheduler has had no worker"):
        list(Dask(Cluster(address), memory, seconds).run(prepared(SMALL).batches, JOB))
