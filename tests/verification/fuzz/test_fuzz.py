"""`cgverify fuzz`: a fault that few inputs show is found, shrunk and kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cgverify.common.records import Verdict
from cgverify.verification.fuzz import Call, replay
from cgverify.verification.fuzz.hunt import in_fork

FAULT = "cgverify.selftest.seeded.sizes:BatchTakenForTokens"
CLAMPED = "cgverify.selftest.seeded.data:ScoresClamped"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cgverify", "fuzz", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_sequence_is_judged_call_by_call() -> None:
    held, failing = Call(batch=2, tokens=3), Call(batch=2, tokens=2)
    own = replay("codegen-nano", "cgverify", "attn", "float32", [held, failing, held])
    assert not own.verdict.fails, own.blame
    result = replay("codegen-nano", FAULT, "attn", "float32", [held, failing])
    assert {one.step for one in result.findings if one.verdict.fails} == {"call 2"}
    assert result.blame.startswith("mix breaks first, at hook_z")


def test_candidate_that_ends_its_process_fails() -> None:
    cell = replay("codegen-nano", "cgverify", "ln1", "float32", [Call()]).cell
    assert in_fork(lambda: os._exit(3), cell).verdict.fails
    killed = in_fork(lambda: os.kill(os.getpid(), signal.SIGKILL), cell)
    assert killed.verdict is Verdict.ERROR, "the system kills what takes too much memory"


@pytest.mark.slow
def test_fault_is_found_shrunk_and_tried_first(tmp_path: Path) -> None:
    found = run("--bridge", CLAMPED, "--component", "attn", "--minutes", "2", "--output", str(tmp_path))
    assert found.returncode == 1, found.stderr
    assert "blocks.0.attn of" in found.stdout
    (call,) = json.loads((tmp_path / "counterexample.json").read_text())["calls"]
    assert call["values"] in ("spread", "large")
    again = run("--bridge", CLAMPED, "--component", "attn", "--output", str(tmp_path), "--format", "json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["covered"]["sequences"] == 1
    other = run("--bridge", "cgverify", "--component", "attn", "--output", str(tmp_path), "--minutes", "0.05")
    assert other.returncode == 0, f"the kept sequence is tried on the bridge that was asked for: {other.stdout}"
    snippet = subprocess.run([sys.executable, tmp_path / "counterexample.py"], capture_output=True, text=True)
    assert snippet.stdout.startswith("diverged"), snippet.stderr


@pytest.mark.slow
def test_own_bridge_holds_for_some_seconds() -> None:
    done = run("--minutes", "0.1", "--dtype", "float32,bfloat16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no failure" in done.stdout
