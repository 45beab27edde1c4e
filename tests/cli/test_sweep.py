"""`cgverify sweep` and `merge` as processes: what survives, what fits together, how they end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import ROOT, Cli
from sweeping import SMALL, command_line, swept
from typer.testing import CliRunner, Result

from cgverify.plan import Shard
from cgverify.store import read


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the small plan in it."""
    monkeypatch.chdir(tmp_path)
    written(SMALL, tmp_path / "plan.yaml")
    return tmp_path


def written(described: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(described))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small plan carried out without a break."""
    path = tmp_path_factory.mktemp("whole") / "run"
    swept(SMALL, path)
    return path


def invoke(*arguments: str) -> Result:
    """In this process: another would spend its time on imports."""
    from cgverify.cli.app import app

    return CliRunner().invoke(app, list(arguments))


def same(one: Path, other: Path) -> bool:
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in ("findings.csv", "summary.csv"))


def test_the_smoke_plan_holds(here: Path) -> None:
    done = invoke("sweep", str(ROOT / "configs" / "smoke.yaml"), "--output", "run", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert "100 cells" in done.stderr
    findings = pd.read_csv(here / "run" / "findings.csv")
    assert set(findings["dtype"]) == {"float32", "bfloat16"}
    assert set(findings["layer"].dropna()) == {0, 4}
    assert (findings["r"] <= 1).all()


LONGER = {**SMALL, "layers": "all", "dtypes": ["float64", "float32", "bfloat16", "float16"]}


@pytest.mark.parametrize(("plan", "kills"), [(SMALL, 3), pytest.param(LONGER, 20, marks=pytest.mark.slow)])
def test_killed_at_random_and_resumed_each_time_it_finds_the_same(here: Path, plan: dict[str, Any], kills: int) -> None:
    swept(plan, here / "whole")
    written(plan, here / "plan.yaml")
    arguments = ("sweep", "plan.yaml", "--output", "run", "--threads", "1", "-q", "--resume")
    draw = random.Random(kills)
    findings = here / "run" / "findings.jsonl"
    findings.parent.mkdir()
    killed = finished = 0
    for _ in range(kills):
        before = size_of(findings)
        process = command_line(*arguments)
        if draw.random() < 0.5:  # before there is a run, or while it is planned, or somewhere in a cell
            time.sleep(draw.uniform(0, 0.2))
        else:  # while cells are written
            while process.is_alive() and size_of(findings) == before:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.01))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if (here / "run" / "run.json").exists():
            now = len(read(here / "run")[1])
            assert now >= finished, "what was finished is kept"
            finished = now
    last = command_line(*arguments)
    last.join()
    assert last.exitcode == 0, (here / "output.txt").read_text()
    assert killed > kills / 2, "it was at work when it was killed"
    assert same(here / "run", here / "whole")
    cells = [json.loads(line)["cell"] for line in findings.read_text().splitlines()]
    assert len(cells) == len(read(here / "run")[1]), "nothing stands there twice"


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_full_disk_ends_it_with_a_sentence_and_it_goes_on_when_there_is_room(here: Path, whole: Path) -> None:
    arguments = ("sweep", "plan.yaml", "--output", "run", "--threads", "1", "-q")
    size = (whole / "findings.jsonl").stat().st_size
    process = command_line(*arguments, limit=size // 2)
    process.join()
    told = (here / "output.txt").read_text()
    assert process.exitcode == 3, told
    assert "make room, and --resume goes on" in told
    assert "Traceback" not in told
    assert 0 < len(read(here / "run")[1]) < 18
    again = command_line(*arguments, "--resume")
    again.join()
    assert again.exitcode == 0, (here / "output.txt").read_text()
    assert same(here / "run", whole)


def test_a_disk_that_is_full_of_tensors_ends_it_with_a_sentence_too(here: Path) -> None:
    plan = {**SMALL, "candidates": "faults:HeadsSwapped", "components": "attn", "cases": "default", "layers": 0}
    written(plan, here / "plan.yaml")
    process = command_line("sweep", "plan.yaml", "--output", "run", "-q", limit=20_000)
    process.join()
    told = (here / "output.txt").read_text()
    assert process.exitcode == 3, told
    assert "tensors" in told
    assert "make room, and --resume goes on" in told
    assert len(told.strip().splitlines()) == 1


def test_interrupted_with_workers_it_leaves_a_run_that_goes_on(here: Path) -> None:
    plan = written({**SMALL, "seeds": list(range(20))}, here / "long.yaml")
    process = command_line("sweep", str(plan), "--output", "run", "--threads", "1", "--jobs", "2")
    findings = here / "run" / "findings.jsonl"
    deadline = time.monotonic() + 60
    while not (findings.exists() and findings.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    told = (here / "output.txt").read_text()
    assert process.exitcode == 130, told
    assert "--output run --resume goes on" in told
    assert 0 < len(read(here / "run")[1]) < 18 * 20


def test_four_shards_merged_are_the_run_that_was_not_split(here: Path, whole: Path) -> None:
    for index in range(1, 5):
        swept(SMALL, here / f"shard{index}", shard=Shard(index, 4))
    parts = [f"shard{index}" for index in (3, 1, 4, 2)]
    done = invoke("merge", *parts, "--output", "run")
    assert done.exit_code == 0, done.output
    assert same(here / "run", whole)
    assert json.loads((here / "run" / "run.json").read_text())["settings"]["shard"] is None
    lacking = invoke("merge", *parts[:3], "--output", "lacking")
    assert (lacking.exit_code, "Shard 2/4 is missing" in lacking.stderr) == (2, True)
    twice = invoke("merge", *parts[:3], "shard1", "--output", "lacking")
    assert (twice.exit_code, "are both shard 1/4" in twice.stderr) == (2, True)
    assert not (here / "lacking").exists()
    for change, told in (
        (("environment", "versions", "torch"), "other versions (torch"),
        (("environment", "numerics", "threads"), "other numerics (threads 1, now changed)"),
        (("settings", "seeds"), "another plan (seeds [0], now changed)"),
        (("checkpoints", 0, "digest"), "other weights"),
    ):
        path = here / "shard4" / "run.json"
        before = path.read_text()
        described = json.loads(before)
        owner = described
        for key in change[:-1]:
            owner = owner[key]
        owner[change[-1]] = "changed"
        path.write_text(json.dumps(described))
        refused = invoke("merge", *parts, "--output", "lacking")
        assert (refused.exit_code, told in refused.stderr) == (2, True), refused.stderr
        path.write_text(before)
    (here / "shard1" / "findings.jsonl").write_text("")
    unfinished = invoke("merge", *parts, "--output", "unfinished", "--format", "json")
    assert unfinished.exit_code == 3
    assert "shard 1/4 ended before it" in unfinished.output


def test_time_that_is_up_and_a_first_failure_stop_it(here: Path) -> None:
    done = invoke("sweep", "plan.yaml", "--output", "run", "--threads", "1", "--max-minutes", "0")
    assert done.exit_code == 3
    assert "Time is up after 1 of 18 cells: --output run --resume goes on" in done.stderr
    assert invoke("sweep", "plan.yaml", "--output", "run", "--threads", "1", "--resume", "-q").exit_code == 0
    plan = written({**SMALL, "candidates": "faults:HeadsSwapped", "components": "attn"}, here / "faulty.yaml")
    assert invoke("sweep", str(plan), "--output", "failing", "-x", "-q").exit_code == 1
    assert len(read(here / "failing")[1]) == 1


def test_what_failed_can_be_run_again_alone(here: Path) -> None:
    plan = {**SMALL, "candidates": ["cgverify", "moody:moody"], "cases": "default", "layers": 0}
    (here / "moody.py").write_text(
        "from pathlib import Path\n"
        "def moody(bridge):\n"
        "    if Path('broken').exists():\n"
        "        raise RuntimeError('not today')\n"
        "    return bridge\n"
    )
    (here / "broken").touch()
    arguments = ("sweep", str(written(plan, here / "faulty.yaml")), "--output", "run", "--threads", "1", "-q")
    assert invoke(*arguments).exit_code == 1
    before = {result.cell.id: result for result in read(here / "run")[1]}
    (here / "broken").unlink()
    assert invoke(*arguments, "--rerun-failed").exit_code == 0
    after = {result.cell.id: result for result in read(here / "run")[1]}
    assert before.keys() == after.keys()
    assert {before[cell].verdict.fails for cell in before if before[cell] != after[cell]} == {True}
    assert {result.seconds for result in after.values() if not before[result.cell.id].verdict.fails} == {
        result.seconds for result in before.values() if not result.verdict.fails
    }, "what held was not run again"


def test_a_checkpoint_or_a_device_that_is_not_here_leaves_the_rest_to_be_run(here: Path) -> None:
    plan = written(
        {**SMALL, "models": ["codegen-nano", "./nowhere"], "devices": ["cpu", "mps"], "layers": 0, "cases": "default"},
        here / "absent.yaml",
    )
    done = invoke("sweep", str(plan), "--output", "run", "--format", "json")
    assert done.exit_code == 3
    assert "./nowhere is left out: There is no folder './nowhere'" in done.stderr
    found = json.loads(done.stdout)["findings"]
    by = {(one["model"], one["device"], one["verdict"] == "error") for one in found}
    assert by == {
        ("codegen-nano", "cpu", False),
        ("codegen-nano", "mps", True),
        ("./nowhere", "cpu", True),
        ("./nowhere", "mps", True),
    }
    assert any("no mps device" in one["message"] for one in found)


def test_a_dry_run_lists_cells_and_cost_and_runs_nothing(here: Path) -> None:
    done = invoke("sweep", "plan.yaml", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "18 cells in 6 units" in done.stdout
    assert "the longest chain" in done.stdout
    rows = invoke("sweep", "plan.yaml", "--dry-run", "--format", "csv").stdout.splitlines()
    assert len(rows) == 1 + 18
    described = json.loads(invoke("sweep", "plan.yaml", "--dry-run", "--format", "json", "--shard", "1/2").stdout)
    assert 0 < len(described["cells"]) < 18
    assert 0 < described["cost"]["longest"] < described["cost"]["seconds"]
    nightly = invoke("sweep", str(ROOT / "configs" / "nightly.yaml"), "--dry-run")
    assert "Of shailja/fine-tuned-codegen-2B-Verilog" in nightly.stdout
    assert not (here / "reports").exists()


@pytest.mark.parametrize(
    ("plan", "arguments", "code", "told"),
    [
        ({"model": "codegen-nano"}, (), 2, "did you mean 'models'"),
        ({"models": "codegen-340M"}, (), 2, "did you mean 'codegen-350M'"),
        ({"models": "codegen-nano", "layers": 7}, (), 2, "has no layer 7"),
        ({"models": "codegen-nano", "dtypes": []}, (), 5, "dtypes names nothing"),
        ({"models": "codegen-nano", "exclude": [{"dtypes": "float32"}]}, (), 5, "every cell is excluded"),
        ({"models": "codegen-nano", "components": "ln_final"}, ("--shard", "9/9"), 5, "give fewer shards"),
        ({"models": "codegen-nano", "components": "attn.w"}, (), 2, "Unknown component"),
        (SMALL, ("--shard", "5/4"), 2, "is no part of a plan"),
        (SMALL, ("--shard", "half"), 2, "is no part of a plan"),
        (SMALL, ("--resume",), 2, "give the folder"),
        (SMALL, ("--rerun-failed",), 2, "give the folder"),
        (SMALL, ("--output", "nowhere", "--resume"), 2, "holds no run"),
        (SMALL, ("--dry-run", "--format", "xml"), 2, "Unknown format"),
    ],
)
def test_bad_plans_and_options_are_told_in_one_sentence(
    here: Path, plan: dict[str, Any], arguments: tuple[str, ...], code: int, told: str
) -> None:
    done = invoke("sweep", str(written(plan, here / "bad.yaml")), "-q", *arguments)
    assert done.exit_code == code, done.output
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_dtype_regression_is_complete(cli: Cli, tmp_path: Path) -> None:
    done = cli("sweep", str(ROOT / "configs" / "dtype-regression.yaml"), "--output", "run", "--threads", "1")
    assert done.returncode == 0, done.stderr
    findings = pd.read_csv(tmp_path / "run" / "findings.csv")
    assert len(findings.groupby(["component", "dtype", "case"])) == 4 * 325
