"""`cgverify sweep` and `merge`: interruptions, shards, exit codes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from command_line import ROOT, Cli, fork
from sweeping import SMALL, same, swept
from typer.testing import CliRunner, Result

from cgverify.common.records import Verdict
from cgverify.plan.cells import Shard
from cgverify.runs.reading import read_run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder with the small plan in it."""
    monkeypatch.chdir(tmp_path)
    written(SMALL, tmp_path / "plan.yaml")
    return tmp_path


def written(described: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(described))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the small plan that was not interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    swept(SMALL, path)
    return path


def invoke(*arguments: str) -> Result:
    """Run cgverify in this process, where torch is already imported."""
    from cgverify.cli.app import app

    return CliRunner().invoke(app, list(arguments))


@pytest.mark.slow
def test_smoke_plan_passes(here: Path) -> None:
    done = invoke("sweep", str(ROOT / "configs" / "smoke.yaml"), "--output", "run", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert "192 cells" in done.stderr
    findings = pd.read_csv(here / "run" / "findings.csv")
    assert set(findings["dtype"]) == {"float32", "bfloat16"}
    assert set(findings["layer"].dropna()) == {0, 4}
    assert (findings["r"].dropna() <= 1).all()


LONGER = {**SMALL, "layers": "all", "dtypes": ["float64", "float32", "bfloat16", "float16"]}


@pytest.mark.parametrize(("plan", "kills"), [(SMALL, 3), pytest.param(LONGER, 20, marks=pytest.mark.slow)])
def test_sweep_killed_at_random_and_resumed_finds_the_same(here: Path, plan: dict[str, Any], kills: int) -> None:
    swept(plan, here / "whole")
    written(plan, here / "plan.yaml")
    arguments = ("sweep", "plan.yaml", "--output", "run", "--threads", "1", "-q", "--resume")
    draw = random.Random(kills)
    findings = here / "run" / "findings.jsonl"
    killed = finished = 0
    for _ in range(kills):
        before = size_of(findings)
        process = fork(*arguments)
        if draw.random() < 0.5:  # before the run starts, while it is planned, or within a cell
            time.sleep(draw.uniform(0, 0.2))
        else:  # while cells are written
            while process.is_alive() and size_of(findings) == before:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.01))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if (here / "run" / "run.json").exists():
            now = len(read_run(here / "run")[1])
            assert now >= finished, "finished cells are kept"
            finished = now
    last = fork(*arguments)
    last.join()
    assert last.exitcode == 0, (here / "output.txt").read_text()
    assert killed > kills / 2, "most kills hit a running process"
    assert same(here / "run", here / "whole")
    cells = [json.loads(line)["cell"] for line in findings.read_text().splitlines()]
    assert len(cells) == len(read_run(here / "run")[1]), "no cell is there twice"


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_full_disk_stops_a_sweep_that_resumes_with_room(here: Path, whole: Path) -> None:
    arguments = ("sweep", "plan.yaml", "--output", "run", "--threads", "1", "-q")
    size = (whole / "findings.jsonl").stat().st_size
    process = fork(*arguments, limit=size // 2)
    process.join()
    message = (here / "output.txt").read_text()
    assert process.exitcode == 3, message
    assert "make room, and --resume goes on" in message
    assert "Traceback" not in message
    assert 0 < len(read_run(here / "run")[1]) < 18
    again = fork(*arguments, "--resume")
    again.join()
    assert again.exitcode == 0, (here / "output.txt").read_text()
    assert same(here / "run", whole)


def test_disk_full_of_tensors_stops_a_sweep_with_a_sentence(here: Path) -> None:
    plan = {**SMALL, "candidates": "faults:HeadsSwapped", "components": "attn", "cases": "default", "layers": 0}
    written(plan, here / "plan.yaml")
    process = fork("sweep", "plan.yaml", "--output", "run", "-q", limit=20_000)
    process.join()
    message = (here / "output.txt").read_text()
    assert process.exitcode == 3, message
    assert "tensors" in message
    assert "make room, and --resume goes on" in message
    assert len(message.strip().splitlines()) == 1


def test_interrupted_sweep_with_workers_can_be_resumed(here: Path) -> None:
    plan = written({**SMALL, "seeds": list(range(20))}, here / "long.yaml")
    process = fork("sweep", str(plan), "--output", "run", "--threads", "1", "--jobs", "2")
    findings = here / "run" / "findings.jsonl"
    deadline = time.monotonic() + 60
    while not (findings.exists() and findings.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    message = (here / "output.txt").read_text()
    assert process.exitcode == 130, message
    assert "--output run --resume continues the run" in message
    assert 0 < len(read_run(here / "run")[1]) < 18 * 20


def test_four_merged_shards_equal_the_whole_run(here: Path, whole: Path) -> None:
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
    for change, message in (
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
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
        path.write_text(before)
    (here / "shard1" / "findings.jsonl").write_text("")
    unfinished = invoke("merge", *parts, "--output", "unfinished", "--format", "json")
    assert unfinished.exit_code == 3
    assert "shard 1/4 ended before it" in unfinished.output


def test_merge_without_room_leaves_nothing_and_can_be_repeated(here: Path) -> None:
    plan = {**SMALL, "candidates": "faults:HeadsSwapped", "components": "attn", "cases": "default"}
    for index in (1, 2):
        swept(plan, here / f"shard{index}", shard=Shard(index, 2))
    findings = sum((here / f"shard{index}" / "findings.jsonl").stat().st_size for index in (1, 2))
    tensors = max(file.stat().st_size for file in here.glob("shard*/tensors/*"))
    assert findings < tensors
    for limit in (findings - 1, tensors - 1):  # no room for a cell, no room for tensors
        process = fork("merge", "shard1", "shard2", "--output", "whole", limit=limit)
        process.join()
        message = (here / "output.txt").read_text()
        assert process.exitcode == 3, message
        assert "The shards are unchanged: make room, and merge again." in message
        assert len(message.strip().splitlines()) == 1
        assert not (here / "whole").exists()
        (here / "output.txt").unlink()
    assert invoke("merge", "shard1", "shard2", "--output", "whole", "-q").exit_code == 1
    again = invoke("merge", "shard1", "shard2", "--output", "whole")
    assert (again.exit_code, "not empty: give another --output.\n" in again.stderr) == (2, True)


def test_time_limit_and_first_failure_stop_a_sweep(here: Path) -> None:
    done = invoke("sweep", "plan.yaml", "--output", "run", "--threads", "1", "--max-minutes", "0")
    assert done.exit_code == 3
    assert "Time is up after 1 of 18 cells: --output run --resume continues the run" in done.stderr
    assert invoke("sweep", "plan.yaml", "--output", "run", "--threads", "1", "--resume", "-q").exit_code == 0
    plan = written({**SMALL, "candidates": "faults:HeadsSwapped", "components": "attn"}, here / "faulty.yaml")
    for number, more in enumerate(((), ("--resume",), ("--resume",)), start=1):
        stopped = invoke("sweep", str(plan), "--output", "failing", "-x", "-q", *more)
        assert stopped.exit_code == 1
        assert (
            f"Stopped at a failure after {number} of 8 cells: --output failing --resume continues the run"
            in stopped.stderr
        )
        assert len(read_run(here / "failing")[1]) == number, "each run continues to the next failure"


def test_candidate_that_changes_folder_leaves_paths_valid(with_mine: Path) -> None:
    (with_mine / "elsewhere").mkdir()
    (with_mine / "wandering.py").write_text(
        "import os\n"
        "from cgverify.bridge import CodeGenAttentionBridge\n"
        "os.chdir('elsewhere')\n"
        "class Bridge(CodeGenAttentionBridge):\n"
        "    def forward(self, *args, **kwargs):\n"
        "        os.chdir('/')\n"
        "        output = super().forward(*args, **kwargs)\n"
        "        return (output[0] * 1.01, *output[1:])\n"
    )
    plan = {"models": "./mine", "candidates": ["wandering:Bridge", "cgverify"], "components": "attn", "layers": [0, 1]}
    plan |= {"include": [{"models": "codegen-nano", "cases": ["text"], "components": ["attn"], "layers": [0]}]}
    written(plan, with_mine / "two.yaml")
    done = swept_two("run")
    assert done.exit_code == 1, done.output
    assert Path.cwd() == with_mine
    assert (with_mine / "run" / "findings.csv").exists()
    _, results = read_run(with_mine / "run")
    assert not [result for result in results if result.verdict is Verdict.ERROR]
    kept = [finding.tensors for result in results for finding in result.findings if finding.tensors]
    assert kept
    assert all((with_mine / "run" / path).exists() for path in kept)


def test_rerun_failed_runs_only_the_failures_again(here: Path) -> None:
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
    before = {result.cell.id: result for result in read_run(here / "run")[1]}
    (here / "broken").unlink()
    assert invoke(*arguments, "--rerun-failed").exit_code == 0
    after = {result.cell.id: result for result in read_run(here / "run")[1]}
    assert before.keys() == after.keys()
    assert {before[cell].verdict.fails for cell in before if before[cell] != after[cell]} == {True}
    assert {result.seconds for result in after.values() if not before[result.cell.id].verdict.fails} == {
        result.seconds for result in before.values() if not result.verdict.fails
    }, "cells that passed were not run again"


def test_missing_checkpoint_or_device_leaves_the_rest_to_run(here: Path) -> None:
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


def test_dry_run_lists_cells_and_cost_and_runs_nothing(here: Path) -> None:
    done = invoke("sweep", "plan.yaml", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "18 cells in 6 batches" in done.stdout
    assert "the longest chain" in done.stdout
    rows = invoke("sweep", "plan.yaml", "--dry-run", "--format", "csv").stdout.splitlines()
    assert len(rows) == 1 + 18
    described = json.loads(invoke("sweep", "plan.yaml", "--dry-run", "--format", "json", "--shard", "1/2").stdout)
    assert 0 < len(described["cells"]) < 18
    assert 0 < described["cost"]["longest"] < described["cost"]["seconds"]
    nightly = invoke("sweep", str(ROOT / "configs" / "nightly.yaml"), "--dry-run")
    assert "The shape of shailja/fine-tuned-codegen-2B-Verilog" in nightly.stdout
    assert not (here / "reports").exists()


def test_dry_run_prints_no_time_of_another_device(here: Path) -> None:
    plan = str(written({"models": "codegen-nano", "devices": ["mps"], "components": "attn"}, here / "mps.yaml"))
    printed = invoke("sweep", plan, "--dry-run").stdout
    assert "The time on mps is not estimated." in " ".join(printed.split())
    assert "of one thread" not in printed
    described = json.loads(invoke("sweep", plan, "--dry-run", "--format", "json").stdout)
    assert {cell["seconds"] for cell in described["cells"]} == {None}
    assert described["cost"]["untimed"] == ["mps"]


@pytest.mark.parametrize(
    ("plan", "arguments", "code", "message"),
    [
        ({"model": "codegen-nano"}, (), 2, "did you mean 'models'"),
        ({"models": "codegen-340M"}, (), 2, "did you mean 'codegen-350M'"),
        ({"models": "codegen-nano", "layers": 7}, (), 2, "has no layer 7"),
        ({"models": "codegen-nano", "dtypes": []}, (), 5, "dtypes names nothing"),
        ({"models": "codegen-nano", "exclude": [{"dtypes": "float32"}]}, (), 5, "every cell is excluded"),
        ({"models": "codegen-nano", "components": "ln_final"}, ("--shard", "9/9"), 5, "give fewer shards"),
        ({"models": "codegen-nano", "components": "attn.w"}, (), 2, "Unknown component"),
        ({"models": "codegen-nano", "weights": "rnadom"}, (), 2, "Unknown weights 'rnadom': did you mean 'random'?"),
        ({"models": "codegen-nano", "exclude": [{"models": "m"}]}, (), 2, "exclude[0] fits no cell"),
        ({"models": "codegen-nano", "limits": {"cells": 5}}, (), 2, "limits.cells allows 5"),
        ({"models": "codegen-nano", "candidates": "no:where"}, (), 2, "cannot be imported"),
        (SMALL, ("--shard", "5/4"), 2, "is not a part of a plan"),
        (SMALL, ("--shard", "half"), 2, "is not a part of a plan"),
        (SMALL, ("--resume",), 2, "give that folder"),
        (SMALL, ("--rerun-failed",), 2, "give that folder"),
        (SMALL, ("--output", ".", "--resume"), 2, "holds no run"),
        (SMALL, ("--dry-run", "--format", "xml"), 2, "Unknown --format"),
    ],
)
def test_bad_plan_or_option_is_reported_in_one_sentence(
    here: Path, plan: dict[str, Any], arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = invoke("sweep", str(written(plan, here / "bad.yaml")), "-q", *arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    if plan is not SMALL and not arguments:
        assert done.stderr.startswith(f"Error: {here / 'bad.yaml'}: "), "the message names the file of the plan"


@pytest.mark.slow
def test_dtype_regression_is_complete(cli: Cli, tmp_path: Path) -> None:
    done = cli("sweep", str(ROOT / "configs" / "dtype-regression.yaml"), "--output", "run", "--threads", "1")
    assert done.returncode == 0, done.stderr
    findings = pd.read_csv(tmp_path / "run" / "findings.csv")
    assert len(findings.groupby(["component", "dtype", "case"])) == 4 * 325


@pytest.fixture
def with_mine(here: Path, nano: Path) -> Path:
    """Write a plan of two checkpoints, one of which is a folder that can be moved away."""
    shutil.copytree(nano, here / "mine")
    plan = {"models": ["codegen-nano", "./mine"], "layers": 0, "components": ["ln1", "embed"], "cases": "default"}
    written(plan, here / "two.yaml")
    return here


def swept_two(output: str, *arguments: str) -> Result:
    return invoke("sweep", "two.yaml", "--output", output, "--threads", "1", "-q", *arguments)


def test_checkpoint_that_only_one_shard_had_prevents_merging(with_mine: Path) -> None:
    codes = [swept_two("s1", "--shard", "1/3").exit_code]
    (with_mine / "mine").rename(with_mine / "away")
    codes += [swept_two(f"s{index}", "--shard", f"{index}/3").exit_code for index in (2, 3)]
    assert codes == [0, 3, 3], "no shard passes without the checkpoint"
    for shards in (("s1", "s2", "s3"), ("s3", "s2", "s1")):
        refused = invoke("merge", *shards, "--output", "whole")
        assert refused.exit_code == 2, refused.output
        assert "./mine (auto) was available to s1 but not to s" in refused.stderr
    (with_mine / "away").rename(with_mine / "mine")
    assert [swept_two(f"s{index}", "--shard", f"{index}/3", "--resume").exit_code for index in (2, 3)] == [0, 0]
    merged = invoke("merge", "s1", "s2", "s3", "--output", "whole", "-q")
    assert merged.exit_code == 0, merged.output
    assert len(read_run(with_mine / "whole")[1]) == 4


def test_checkpoint_that_no_shard_had_is_an_error_when_merged(with_mine: Path) -> None:
    shutil.rmtree(with_mine / "mine")
    assert [swept_two(f"s{index}", "--shard", f"{index}/2").exit_code for index in (1, 2)] == [3, 3]
    merged = invoke("merge", "s1", "s2", "--output", "whole", "--format", "json")
    assert merged.exit_code == 3, merged.output
    assert json.loads(merged.stdout)["summary"]["cells"] == 3


def test_shards_of_different_plans_are_refused(here: Path) -> None:
    for index in (1, 2):
        swept({**SMALL, "components": "ln1"}, here / f"shard{index}", shard=Shard(index, 2))
    plan = here / "shard2" / "plan.jsonl"
    plan.write_text("".join(plan.read_text().splitlines(keepends=True)[:-1]))
    refused = invoke("merge", "shard1", "shard2", "--output", "whole")
    assert refused.exit_code == 2, refused.output
    assert "is a part of a plan of 4 cells" in refused.stderr


def test_run_whose_checkpoint_came_later_can_be_used(with_mine: Path) -> None:
    (with_mine / "mine").rename(with_mine / "away")
    assert swept_two("run").exit_code == 3
    (with_mine / "away").rename(with_mine / "mine")
    assert swept_two("run", "--resume").exit_code == 0
    for arguments in (("report", "run"), ("baseline", "accept", "run", "two"), ("compare", "reports/two", "run")):
        done = invoke(*arguments)
        assert done.exit_code == 0, done.output


def test_rules_about_a_missing_checkpoint_leave_the_rest_to_run(here: Path) -> None:
    absent = "shailja/fine-tuned-codegen-2B-Verilog"
    plan = {
        "models": ["codegen-nano", absent],
        "layers": 0,
        "components": "embed",
        "cases": ["default", "stress"],
        "dtypes": ["float32", "bfloat16"],
        "exclude": [
            {"models": "*[26]B*", "cases": "default"},
            {"models": "fine*2B*", "layers": 20},
            {"models": "*2B*", "dtypes": "bfloat16"},
        ],
    }
    done = invoke("sweep", str(written(plan, here / "absent.yaml")), "--output", "run", "-q", "--threads", "1")
    assert done.exit_code == 3, done.output
    _, results = read_run(here / "run")
    (stand_in,) = [result.cell for result in results if result.cell.model == absent]
    assert stand_in.dtype == "float32", "a rule removes a whole setting, or its error cell stays"
    assert len(results) == 1 + 4
