"""What a run is said to take, beside what runs take."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import command

from cgverify.checkpoint.names import ARCHITECTURES, Architecture
from cgverify.plan.cells import Axes, CheckpointShape, cells
from cgverify.plan.cost.estimate import LIBRARIES, START, Estimate, duration, estimate, measured_speed

PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
assert status == 0, status
print(usage.ru_maxrss)
"""
"""Started by a small process: what a process is said to have taken at most is no less than what its parent had."""

SMALL = ARCHITECTURES["codegen-350M"]
LARGE = ARCHITECTURES["codegen-16B"]


def of(shape: Architecture, width: int = 4, speed: float = 1.0, **axes: Any) -> Estimate:
    subject = CheckpointShape("some", "", shape.n_layer, shape.rotary_dim, shape.n_positions)
    return estimate(shape, cells(subject, Axes(**axes)), width, speed)


def test_twice_the_layers_take_twice_the_time_and_no_more_memory() -> None:
    once, twice = (of(replace(SMALL, n_layer=layers), components=["blocks.*"]) for layers in (20, 40))
    assert twice.peak_bytes == once.peak_bytes
    assert twice.seconds - START == pytest.approx(2 * (once.seconds - START))


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"dtypes": ["bfloat16"], "width": 2}, {}),
        ({"cases": ["default"]}, {}),
        ({"seq_len": 8}, {"seq_len": 256}),
        ({"batch_size": 1, "seq_len": 256}, {"seq_len": 256}),
        ({"cases": ["default"]}, {"cases": ["backward"]}),
        ({"components": ["blocks.*"]}, {}),
    ],
)
def test_what_takes_less(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert of(SMALL, **less).peak_bytes < of(SMALL, **more).peak_bytes


def test_a_view_of_the_largest_is_more_than_twice_in_memory_and_far_from_whole() -> None:
    peak = of(LARGE, cases=["default"]).peak_bytes - LIBRARIES
    assert 2 * 4 * LARGE.block_parameters < peak < 4 * LARGE.parameters / 8


def test_candidates_are_seen_one_after_another_and_dtypes_too() -> None:
    assert of(SMALL, candidates=["cgverify", "transformer_lens"]).peak_bytes == of(SMALL).peak_bytes
    assert of(SMALL, dtypes=["float32", "bfloat16"], components=["blocks.*"]).seconds > of(SMALL).seconds


def test_a_slower_machine_takes_longer() -> None:
    assert of(SMALL, speed=2.0).seconds - START == pytest.approx(2 * (of(SMALL).seconds - START))
    assert 0.1 < measured_speed() < 100


@pytest.mark.parametrize("options", [{"seq_len": 8}, {"seq_len": 256}])
def test_the_peak_of_a_real_run_is_below_the_estimate_and_not_far(tmp_path: Path, options: dict[str, int]) -> None:
    arguments = [*("--model", "codegen-nano", "--layers", "0", "--case", "default", "-q", "--output", "run")]
    length = ["--seq-len", str(options["seq_len"])]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command("all-components", *arguments, *length)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = of(ARCHITECTURES["codegen-nano"], layers=[0], cases=["default"], **options).peak_bytes
    assert 0.5 * expected < int(done.stdout) * 1024 < 1.05 * expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "7 s"), (89, "89 s"), (95, "2 min"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_are_told_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
