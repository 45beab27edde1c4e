"""A whole plan on every executor, with workers and a scheduler that are killed, and a cluster started by commands."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from command_line import ROOT
from dask_clusters import dask_cluster, separate_cluster, workers_of
from sweeping import SMALL, prepared, same, swept

from cgverify.common.errors import CgverifyError
from cgverify.common.records import Verdict
from cgverify.report.frames import write_csv
from cgverify.runs.reading import read_run
from cgverify.runs.session import RunSession

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

PLAN = yaml.safe_load((ROOT / "configs" / "dtype-regression.yaml").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "run"
    swept(PLAN, path)
    return path


def test_every_executor_writes_the_same_files(alone: Path, tmp_path: Path) -> None:
    swept(PLAN, tmp_path / "processes", jobs=2)
    assert same(tmp_path / "processes", alone)
    with dask_cluster(2) as address:
        swept(PLAN, tmp_path / "dask", scheduler=address)
    assert same(tmp_path / "dask", alone)


def test_killed_workers_and_scheduler_change_no_byte(alone: Path, tmp_path: Path) -> None:
    """Kill a worker after every third result, at most once a second, and the scheduler once.

    A cell at which two workers were killed becomes an error, and is run again when the run is continued.
    """
    draw, path = random.Random(0), tmp_path / "run"
    kills, arrived, last = 0, 0, time.monotonic()
    session = RunSession.start(prepared(PLAN), path)
    while session.remaining:
        session.folder.close()
        with separate_cluster(2) as (address, process):
            session = RunSession.resume(prepared(PLAN, scheduler=address), path)
            try:
                for _ in session.carry_out():
                    arrived += 1
                    if arrived % 3 == 0 and time.monotonic() > last + 1 and (workers := workers_of(process)):
                        draw.choice(workers).kill()
                        kills, last = kills + 1, time.monotonic()
                    if arrived == 300:
                        process.kill()
            except CgverifyError as error:
                assert "scheduler is gone" in str(error)  # noqa: PT017  it is lost once, and the loop continues
                lost_at = arrived
    session.folder.close()
    write_csv(path, session.ordered)
    print(f"{kills} workers were killed; the scheduler after {lost_at} cells; {arrived} cells arrived")
    assert kills > 10
    assert same(path, alone)
    assert not [result for result in read_run(path)[1] if result.verdict is Verdict.ERROR]


def test_cluster_started_by_commands_does_the_work(tmp_path: Path) -> None:
    """Start the scheduler and a worker as docs/cluster.md does."""
    swept(SMALL, tmp_path / "alone")
    (tmp_path / "elsewhere").mkdir()
    dask = [sys.executable, "-m", "dask"]
    ends = ["--host", "127.0.0.1", "--no-dashboard"]
    address = "tcp://127.0.0.1:18786"
    processes = [
        subprocess.Popen([*dask, "scheduler", *ends, "--port", "18786"]),
        subprocess.Popen(
            [*dask, "worker", address, *ends, "--nthreads", "1", "--resources", "memory=8e9"],
            cwd=tmp_path / "elsewhere",
        ),
    ]
    try:
        time.sleep(5)
        swept(SMALL, tmp_path / "run", scheduler=address)
    finally:
        for process in reversed(processes):
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            process.wait()
    assert same(tmp_path / "run", tmp_path / "alone")
