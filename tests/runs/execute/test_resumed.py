"""A run that goes on after an interruption finds what an uninterrupted one finds, to the last digit."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import command

from cgverify.plan.batches import unfinished_batches
from cgverify.plan.cells import Axes
from cgverify.runs.folder import read_run
from cgverify.runs.session import ExecutionOptions, one_checkpoint, prepare


def test_what_is_left_of_a_unit_is_computed_in_the_company_of_what_is_done() -> None:
    """At this width a product of 3 cells' rows has other last digits than one of 6, so a batch is run whole again."""
    axes = Axes(layers=[0], cases=["default", "decode"], components=["blocks.0", "blocks.0.attn*"])
    planned = prepare(one_checkpoint("all-components", "codegen-350M", "random", axes), ExecutionOptions())
    done = {cell.id for cell in planned.cells[: len(planned.cells) // 2]}
    (batch,) = unfinished_batches(planned.batches, done)
    assert {cell.id for cell in batch.cells} > done
    whole = {result.cell.id: result.findings for result in planned.executor().run(planned.batches, planned.job())}
    again = {result.cell.id: result.findings for result in planned.executor().run([batch], planned.job())}
    assert again == whole


def test_units_that_are_done_are_not_read_again(folder: Path) -> None:
    axes = Axes(cases=["default"], components=["*embed"])
    planned = prepare(one_checkpoint("all-components", str(folder), "auto", axes), ExecutionOptions())
    embed, unembed = planned.cells
    (folder / "model.safetensors").unlink()  # whatever is read from now on is an error
    (result,) = planned.executor().run(unfinished_batches(planned.batches, {embed.id}), planned.job())
    assert result.cell == unembed
    assert result.verdict == "error"


RUN = ("all-components", "--model", "codegen-nano", "--case", "default,stress", "-q", "--output")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run([*command(*RUN), "run"], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return folder / "run"


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_interrupted_and_resumed_it_writes_the_same_files(whole: Path, tmp_path: Path, how: signal.Signals) -> None:
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
