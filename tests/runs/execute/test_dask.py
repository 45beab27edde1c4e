"""A Dask cluster finds what one process finds, also when workers and schedulers are lost."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest
import yaml
from command_line import fork
from dask_clusters import JOB, dask_cluster, separate_cluster
from sweeping import DEADLY, SMALL, prepared, require_errors_in_attention, same, swept
from typer.testing import CliRunner

import cgverify
from cgverify.common import numerics
from cgverify.common.errors import CgverifyError
from cgverify.common.records import Verdict
from cgverify.plan.batches import Job
from cgverify.plan.cost.of_plan import memory
from cgverify.report.frames import write_csv
from cgverify.report.outcome import exit_code
from cgverify.runs.execute import dask
from cgverify.runs.execute.dask import Dask
from cgverify.runs.reading import read_run
from cgverify.runs.session import RunSession, verify_batches


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small plan, carried out in this process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    swept(SMALL, path)
    return path


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the workers' path. Its `once` kills the first worker that runs its attention."""
    path = tmp_path_factory.mktemp("candidates")
    (path / "once.py").write_text(
        f"import os\nos.environ['DEADLY_ONCE'] = {str(path / 'dead')!r}\nfrom deadly import DeadlyOnce as Candidate\n"
    )
    return path


@pytest.fixture(scope="module")
def scheduler(candidates: Path) -> Iterator[str]:
    """The address of a scheduler with two workers, for several runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(candidates)
        with dask_cluster(2) as address:
            yield address


def test_two_workers_find_what_one_process_finds(alone: Path, scheduler: str, tmp_path: Path) -> None:
    result = cgverify.sweep(SMALL, tmp_path / "run", threads=1, scheduler=scheduler)
    assert same(tmp_path / "run", alone)
    assert len(result.results) == len(read_run(tmp_path / "run")[1]) == 18


def test_batch_of_a_lost_worker_goes_to_another(
    scheduler: str, candidates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sys.path.insert(0, str(candidates))
    plan = {**SMALL, "candidates": "once:Candidate", "components": "attn"}
    session = swept(plan, tmp_path / "run", scheduler=scheduler)
    assert (candidates / "dead").exists()
    assert [result.verdict for result in session.ordered] == [Verdict.BITWISE] * 8
    assert "A worker was lost at blocks." in caplog.text


def test_cell_that_stops_two_workers_is_an_error(scheduler: str, tmp_path: Path) -> None:
    session = swept(DEADLY, tmp_path / "run", scheduler=scheduler)
    require_errors_in_attention(session)
    assert exit_code(session.ordered) == 3


def test_worker_with_other_versions_gets_no_work(
    scheduler: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = prepared({**SMALL, "components": "ln1", "cases": "default"}, scheduler=scheduler)
    ours = numerics.versions()
    theirs = {**ours, "torch": "1.13.1"}

    def report(versions: dict[str, str]) -> None:
        numerics.versions = lambda: versions  # type: ignore[assignment]

    with distributed.Client(scheduler, set_as_default=False) as client:
        first, second = client.scheduler_info()["workers"]
        client.run(report, theirs, workers=[first])
        assert len(list(verify_batches(plan, plan.batches))) == 4
        assert f"The worker {first} has torch 1.13.1, and the driver {ours['torch']}" in caplog.text
        client.run(report, theirs, workers=[second])
        with pytest.raises(CgverifyError, match=r"No worker is left: .* has torch 1\.13\.1, and the driver 2\."):
            list(verify_batches(plan, plan.batches))
        client.run(report, ours)


def test_candidate_missing_on_a_worker_ends_the_run(scheduler: str) -> None:
    batches = prepared(SMALL).batches
    with pytest.raises(CgverifyError, match="No module named 'nowhere'") as raised:
        list(Dask(scheduler).run(batches, Job(("nowhere:Bridge",), threads=1)))
    assert raised.value.exit_code == 2


def test_checkpoint_missing_on_a_worker_is_an_error(scheduler: str, nano: Path, tmp_path: Path) -> None:
    shutil.copytree(nano, tmp_path / "mine")
    plan = prepared({**SMALL, "models": str(tmp_path / "mine"), "components": "ln1", "layers": 0, "cases": "default"})
    shutil.rmtree(tmp_path / "mine")
    results = list(Dask(scheduler).run(plan.batches, JOB))
    assert [result.verdict for result in results] == [Verdict.ERROR] * 2
    assert "There is no folder" in results[0].findings[0].message


def test_batch_too_large_for_every_worker_is_an_error(scheduler: str) -> None:
    batches = prepared({**SMALL, "cases": "default"}).batches
    executor = Dask(scheduler, lambda batch: 1 << 50 if batch.view == "embed" else memory(batch))
    results = list(executor.run(batches, JOB))
    assert sorted(cell.id for batch in batches for cell in batch.cells) == sorted(result.cell.id for result in results)
    errors = [result for result in results if result.verdict is Verdict.ERROR]
    assert {result.cell.kind for result in errors} == {"embed"}
    assert "1125899.9 GB, and no worker declares so much" in errors[0].findings[0].message


def test_run_whose_scheduler_is_lost_can_be_resumed(alone: Path, scheduler: str, tmp_path: Path) -> None:
    with separate_cluster(1) as (address, process):
        session = RunSession.start(prepared(SMALL, scheduler=address), tmp_path / "run")
        results = session.carry_out()
        next(results)
        process.kill()
        with pytest.raises(CgverifyError, match="scheduler is gone: what arrived is kept") as raised:
            list(results)
    session.folder.close()
    assert raised.value.exit_code == 3
    assert 0 < len(read_run(tmp_path / "run")[1]) < 18
    again = RunSession.resume(prepared(SMALL, scheduler=scheduler), tmp_path / "run")
    assert len(list(again.carry_out())) < 18
    again.folder.close()
    write_csv(again.folder.path, again.ordered)
    assert same(again.folder.path, alone)


def test_worker_stops_between_cells_when_the_run_ends(scheduler: str) -> None:
    long = {**SMALL, "components": ["attn", "embed"], "layers": 0, "dtypes": "float32", "seeds": list(range(300))}
    plan = prepared(long, scheduler=scheduler)
    assert {(batch.view, len(batch.cells)) for batch in plan.batches} == {("embed", 300), (0, 600)}
    results = verify_batches(plan, plan.batches)
    assert next(results).cell.kind == "embed", "the other worker has not finished its batch"
    results.close()  # type: ignore[attr-defined]
    with distributed.Client(scheduler, set_as_default=False) as client:
        deadline = time.monotonic() + 5
        while any(busy := client.run(lambda dask_worker: dask_worker.state.executing_count).values()):
            assert time.monotonic() < deadline, busy
            time.sleep(0.1)


def test_workers_that_differ_from_the_driver_are_reported(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers that cannot reach the run folder, and that have another processor."""
    plan = prepared(
        {**SMALL, "components": "attn", "candidates": "faults:HeadsSwapped", "cases": "default", "layers": 0}
    )
    pinned = numerics.pin_numerics
    monkeypatch.setattr(numerics, "pin_numerics", lambda *a: {**pinned(*a), "cpu_capability": "AVX1024"})
    results = list(Dask(scheduler).run(plan.batches, plan.job(tmp_path / "nowhere")))
    assert {result.verdict for result in results} == {Verdict.DIVERGED}
    assert not any(finding.tensors for result in results for finding in result.findings)
    assert caplog.text.count("Some workers cannot reach the run folder") == 1
    assert caplog.text.count("and the driver AVX1024") == 1


def test_interrupted_sweep_on_a_cluster_can_be_resumed(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(yaml.safe_dump({**SMALL, "seeds": list(range(20))}))
    process = fork("sweep", "plan.yaml", "--output", "run", "--threads", "1", "--scheduler", scheduler)
    findings, deadline = Path("run/findings.jsonl"), time.monotonic() + 60
    while not (findings.exists() and findings.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)  # as Ctrl-C does
    process.join(60)
    output = Path("output.txt").read_text()
    assert process.exitcode == 130, output
    assert "--output run --resume continues" in output
    assert "Traceback" not in output
    assert 0 < len(read_run(Path("run"))[1]) < 18 * 20


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--scheduler", "localhost"), 2, "--scheduler 'localhost' is not an address: write tcp://host:8786"),
        (("--scheduler", "tcp://127.0.0.1:8786", "--jobs", "2"), 2, "--jobs cannot be combined with --scheduler"),
        (("--scheduler", "tcp://127.0.0.1:9"), 3, "No Dask scheduler answers at tcp://127.0.0.1:9"),
    ],
)
def test_scheduler_that_cannot_be_used_is_one_sentence(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask, "CONNECT", 1.0)
    assert message_of_sweep(arguments, code, tmp_path, monkeypatch).startswith(f"Error: {message}")


def test_missing_distributed_names_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = message_of_sweep(("--scheduler", "tcp://127.0.0.1:8786"), 2, tmp_path, monkeypatch)
    assert message == "Error: A Dask cluster needs dask.distributed: pip install 'cgverify[dask]'.\n"


def message_of_sweep(arguments: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a sweep that must end with `code` prints on stderr."""
    from cgverify.cli.app import app

    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(yaml.safe_dump(SMALL))
    done = CliRunner().invoke(app, ["sweep", "plan.yaml", "-q", *arguments])
    assert done.exit_code == code, done.output
    return done.stderr


def test_scheduler_without_workers_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "NO_WORKERS", 0.2)
    monkeypatch.setattr(dask, "POLL", 0.1)
    with dask_cluster(0) as address, pytest.raises(CgverifyError, match="The scheduler has had no worker"):
        list(Dask(address).run(prepared(SMALL).batches, JOB))
