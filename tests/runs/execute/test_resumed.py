"""A run that is continued after an interruption writes the same bytes as an uninterrupted run."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import command

from cgverify.plan.axes import Axes
from cgverify.plan.batches import unfinished_batches
from cgverify.runs.prepare import prepare
from cgverify.runs.reading import read_run
from cgverify.runs.request import ExecutionOptions, one_checkpoint
from cgverify.runs.session import verify_batches


def test_batch_that_was_interrupted_is_run_whole_again() -> None:
    """At this width a product of 3 cells' rows has other last digits than a product of 6 cells' rows."""
    axes = Axes(layers=[0], cases=["default", "decode"], components=["blocks.0", "blocks.0.attn*"])
    planned = prepare(one_checkpoint("all-components", "codegen-350M", "random", axes), ExecutionOptions())
    finished = {cell.id for cell in planned.cells[: len(planned.cells) // 2]}
    (batch,) = unfinished_batches(planned.batches, finished)
    assert {cell.id for cell in batch.cells} > finished
    whole = {result.cell.id: result.findings for result in verify_batches(planned, planned.batches)}
    again = {result.cell.id: result.findings for result in verify_batches(planned, [batch])}
    assert again == whole


def test_weights_of_finished_batches_are_not_read(folder: Path) -> None:
    axes = Axes(cases=["default"], components=["*embed"])
    planned = prepare(one_checkpoint("all-components", str(folder), "auto", axes), ExecutionOptions())
    embed, unembed = planned.cells
    (folder / "model.safetensors").unlink()  # reading any weight is an error from now on
    (result,) = verify_batches(planned, unfinished_batches(planned.batches, {embed.id}))
    assert result.cell == unembed
    assert result.verdict == "error"


RUN = ("all-components", "--model", "codegen-nano", "--case", "default,stress", "-q", "--output")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run([*command(*RUN), "run"], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return folder / "run"


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_resumed_run_writes_the_same_files(whole: Path, tmp_path: Path, how: signal.Signals) -> None:
    arguments = [*command(*RUN), "run"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL)
    findings = tmp_path / "run" / "findings.jsonl"
    deadline = time.monotonic() + 120
    while not (findings.exists() and findings.read_bytes().count(b"\n") > 30) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(how)
    process.wait(timeout=120)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[how]
    assert 30 < len(read_run(tmp_path / "run")[1]) < len(read_run(whole)[1])
    subprocess.run([*arguments, "--resume"], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
    for file in ("findings.csv", "summary.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes()
