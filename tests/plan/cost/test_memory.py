"""The estimated memory of a run, compared with that of real runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import command

from cgverify.checkpoint.names import NAMED, block_parameters, parameters
from cgverify.common.records import Checkpoint
from cgverify.plan.axes import Axes
from cgverify.plan.cells import cells
from cgverify.plan.cost.memory import LIBRARIES, peak_bytes

PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
assert status == 0, status
print(usage.ru_maxrss)
"""
"""Run from a small process, since the peak of a new process is at least the memory of its parent."""

SMALL = NAMED["codegen-350M"]
LARGE = NAMED["codegen-16B"]


def peak(checkpoint: Checkpoint, width: int = 4, **axes: Any) -> int:
    return peak_bytes(checkpoint, cells(checkpoint, Axes(**axes)), width)


def test_twice_the_layers_take_no_more_memory() -> None:
    deeper = SMALL.model_copy(update={"n_layers": 40})
    assert peak(SMALL, components=["blocks.*"]) == peak(deeper, components=["blocks.*"])


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"dtypes": ["bfloat16"], "width": 2}, {}),
        ({"cases": ["default"]}, {}),
        ({"seq_len": 8}, {"seq_len": 256}),
        ({"batch_size": 1, "seq_len": 256}, {"seq_len": 256}),
        ({"cases": ["default"]}, {"cases": ["backward"]}),
        ({"components": ["blocks.*"]}, {}),
        ({"devices": ["cuda"]}, {}),  # the models take the device's memory
        ({"devices": ["cuda"]}, {"devices": ["cuda"], "dtypes": ["bfloat16"]}),  # the oracle's are cast, and its own
    ],
)
def test_smaller_run_takes_less_memory(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert peak(SMALL, **less) < peak(SMALL, **more)


def test_view_of_the_largest_takes_far_less_than_the_whole() -> None:
    taken = peak(LARGE, cases=["default"]) - LIBRARIES
    assert 2 * 4 * block_parameters(LARGE) < taken < 4 * parameters(LARGE) / 8


def test_second_candidate_takes_no_more_memory() -> None:
    assert peak(SMALL, candidates=["cgverify", "transformer_lens"]) == peak(SMALL)


@pytest.mark.parametrize("options", [pytest.param({"seq_len": 8}, marks=pytest.mark.slow), {"seq_len": 256}])
def test_peak_of_a_real_run_is_just_below_the_estimate(tmp_path: Path, options: dict[str, int]) -> None:
    arguments = [*("--model", "codegen-nano", "--layers", "0", "--case", "default", "-q", "--output", "run")]
    length = ["--seq-len", str(options["seq_len"])]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command("all-components", *arguments, *length)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = peak(NAMED["codegen-nano"], layers=[0], cases=["default"], **options)
    assert 0.5 * expected < int(done.stdout) * 1024 < 1.05 * expected
