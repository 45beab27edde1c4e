"""The estimated time of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from command_line import ROOT
from transformers import CodeGenConfig
from verifying import verify

from cgverify.checkpoint.names import NAMED
from cgverify.common.records import Checkpoint
from cgverify.observe.cases import CASES
from cgverify.observe.components import COMPONENTS
from cgverify.observe.inputs import InputSpec
from cgverify.plan.axes import Axes
from cgverify.plan.cases import CASE_KINDS, DECODED_TOKENS, DECODING, PROMPTED, SIZES
from cgverify.plan.cells import cells
from cgverify.plan.cost.time import FORWARDS, measured_speed, seconds_of

SMALL, NANO = NAMED["codegen-350M"], NAMED["codegen-nano"]


def seconds(checkpoint: Checkpoint = SMALL, **axes: Any) -> float:
    return seconds_of(checkpoint, cells(checkpoint, Axes(**axes)))


@pytest.mark.parametrize(("case", "kind"), [(case, kind) for case, kinds in CASE_KINDS.items() for kind in kinds])
def test_forwards_of_a_case_are_those_that_it_runs(case: str, kind: str, config: CodeGenConfig) -> None:
    batch, tokens = SIZES.get(case, (2, 8))
    if spans := CASES[case].spans:
        rows = [2 * (span.stop - span.start) for span in spans(8)]
    else:
        if case in SIZES:  # which depend on the model's
            config = CodeGenConfig(n_embd=SMALL.n_embd, n_head=SMALL.n_head, vocab_size=100)
        spec = InputSpec(0, 2, 8, config.n_positions, torch.float32, 1.0, config.n_head)
        component = COMPONENTS[kind]
        inputs = CASES[case].build_inputs(component, spec, config, component.random_inputs(config))
        shapes = [next(iter(step.inputs.values())).shape for step in inputs.steps]
        rows = [shape[0] * shape[1] for shape in shapes]
    decoded = DECODED_TOKENS if case in DECODING else 0
    forwards, sequences = FORWARDS.get(case, {}).get(kind, (1, 1))
    assert forwards == len(rows)
    assert sequences * batch * (tokens + decoded) == pytest.approx(sum(rows), rel=0.1)


def test_twice_the_layers_take_twice_the_time() -> None:
    deeper = SMALL.model_copy(update={"n_layers": 40})
    axes = {"components": ["blocks.*"], "cases": ["default", "stress", "decode", "weights"]}
    assert seconds(deeper, **axes) == pytest.approx(2 * seconds(**axes))


def test_second_dtype_and_longer_sequences_take_longer() -> None:
    assert seconds(dtypes=["float32", "bfloat16"]) > seconds()
    assert seconds(seq_len=64) > 2 * seconds()


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASE_KINDS if case not in PROMPTED])
def test_estimate_of_a_case_is_within_a_factor_of_two(case: str) -> None:
    axes = {"cases": [case], "layers": [0], "components": ["blocks.*"]}
    verify(**axes)  # what is imported and set up only once is no part of the estimate
    started = time.process_time()
    verify(**axes)
    taken = time.process_time() - started
    estimated = seconds_of(NANO, cells(NANO, Axes(**axes)), measured_speed())
    assert taken / 2 < estimated < taken * 2


def test_speed_of_this_machine_can_be_measured() -> None:
    assert all(0.1 < speed < 100 for speed in measured_speed())


def test_speed_is_measured_in_one_thread() -> None:
    """A second thread would wait for processors that are busy, and the estimate would be 30 times too large."""
    script = (
        "import time\n"
        "from cgverify.plan.cost.time import measured_speed\n"
        "time.sleep(0.5)  # threads that numpy has just started spin for a moment\n"
        "process, thread = time.process_time(), time.thread_time()\n"
        "measured_speed()\n"
        "print((time.process_time() - process) / (time.thread_time() - thread))\n"
    )
    two = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=two, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5
