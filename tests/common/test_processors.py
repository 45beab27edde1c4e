"""Processors that this process may use, and how the threads of torch share them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import command
from sweeping import SMALL

from cgverify.common import numerics
from cgverify.common.numerics import pin_numerics
from cgverify.common.processors import processors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups, affinity and libgomp")


def group(folder: Path, version: int, quota: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{quota.replace('max', '-1')}\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system say that this process may run on 64 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


@pytest.mark.parametrize(("version", "line", "mount"), [(1, "4:cpu,cpuacct:/a/b", "cpu"), (2, "0::/a/b", "")])
def test_processors_are_those_of_the_narrowest_group(
    many: None, tmp_path: Path, version: int, line: str, mount: str
) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(f"8:memory:/elsewhere\n{line}\n")
    assert processors(proc, groups) == 64
    for folder, quota, count in (("a", "max", 64), ("a/b", "400000", 4), ("a", "250000", 2), (".", "50000", 1)):
        group(groups / mount / folder, version, quota)
        assert processors(proc, groups) == count


def test_processors_of_a_system_without_groups_are_all(many: None, tmp_path: Path) -> None:
    assert processors(tmp_path, tmp_path) == 64


def test_threads_by_default_are_no_more_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "processors", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(3)
    assert pin_numerics(None)["threads"] == 2
    assert pin_numerics(3)["threads"] == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert pin_numerics(None)["threads"] == 3, "the user's choice"


def test_command_on_one_processor_has_one_thread() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    one = f"{min(os.sched_getaffinity(0))}"
    given = ["taskset", "-c", one, *command("env", "--format", "json")]
    done = subprocess.run(given, env=environment, capture_output=True, text=True, check=True)
    described = json.loads(done.stdout)
    assert (described["machine"]["processors"], described["numerics"]["threads"]) == (1, 1)


def spins(shown: str) -> set[int]:
    """Return how often threads of OpenMP look for work before they sleep, as each process shows it at its start."""
    return {int(count) for count in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", shown)}


def test_threads_of_a_command_and_its_workers_do_not_spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    (tmp_path / "plan.yaml").write_text(json.dumps({**SMALL, "components": "embed"}))
    given = command("sweep", "plan.yaml", "--jobs", "2", "-q")
    done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert spins(done.stderr) == {0}


@pytest.mark.parametrize(
    ("imports", "chosen", "spinning"),
    [
        ("distributed, cgverify.runs.execute.dask_worker, torch", {}, False),
        ("cgverify, torch", {"OMP_WAIT_POLICY": "ACTIVE"}, True),
    ],
)
def test_threads_of_a_dask_worker_spin_only_if_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, imports: str, chosen: dict[str, str], spinning: bool
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    given = [sys.executable, "-c", f"import {imports}"]
    environment = {**os.environ, "OMP_DISPLAY_ENV": "VERBOSE", **chosen}
    done = subprocess.run(given, env=environment, capture_output=True, text=True, check=True)
    (spun,) = spins(done.stderr)
    assert (spun > 0) == spinning


@pytest.mark.slow
@pytest.mark.skipif(processors() < 2, reason="a neighbour on the only processor takes half of the time anyway")
def test_busy_neighbour_slows_a_run_by_no_more_than_its_share(tmp_path: Path) -> None:
    """On two processors, compare a run alone with one next to a busy process. The less disturbed of two runs counts."""
    two = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}

    def seconds() -> float:
        given = command("all-components", "--model", "codegen-350M", "--layers", "0-2", "-q")
        started = time.monotonic()
        subprocess.run(["taskset", "-c", two, *given], cwd=tmp_path, env=environment, capture_output=True, check=True)
        return time.monotonic() - started

    alone = min(seconds() for _ in range(2))
    neighbour = subprocess.Popen(["taskset", "-c", two, sys.executable, "-c", "while True: pass"])
    try:
        assert min(seconds() for _ in range(2)) < 2.2 * alone
    finally:
        neighbour.kill()
        neighbour.wait()
