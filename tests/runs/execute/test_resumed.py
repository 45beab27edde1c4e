"""A run that is continued after an interruption writes the same bytes as an uninterrupted run."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pandas as pd
import pytest
from command_line import fork
from sweeping import same

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


RUN = ("all-components", "--model", "codegen-nano", "--case", "default,stress", "-q", "--output", "run")


def start(folder: Path, *more: str) -> ForkServerProcess:
    return fork(*RUN, *more, cwd=folder, output=folder / "output.txt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder).join()
    return folder / "run"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_resumed_run_writes_the_same_files(whole: Path, tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path)
    findings = tmp_path / "run" / "findings.jsonl"
    deadline = time.monotonic() + 120
    while not (findings.exists() and findings.read_bytes().count(b"\n") > 30) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, how)
    process.join(120)
    assert process.exitcode == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[how]
    if how is signal.SIGINT:
        output = (tmp_path / "output.txt").read_text()
        assert "Interrupted after" in output
        assert "Traceback" not in output
        assert pd.read_csv(tmp_path / "run" / "findings.csv")["component"].nunique() > 0
    assert 30 < len(read_run(tmp_path / "run")[1]) < len(read_run(whole)[1])
    start(tmp_path, "--resume").join()
    assert same(tmp_path / "run", whole)
