"""Whole checkpoints, as a user verifies them."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from command_line import Cli


@pytest.mark.parity
def test_the_main_job_holds(cli: Cli) -> None:
    done = cli("all-components", "--model", "codegen-350M", "--format", "json", "-q")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {finding["layer"] for finding in report["findings"]} == {None, *range(20)}
    assert {finding["case"] for finding in report["findings"]} == {"default", "stress", "decode"}


@pytest.mark.parity
def test_the_shipped_checkpoint_holds_in_every_dtype_and_its_attention_is_bitwise(cli: Cli) -> None:
    dtypes = "float64,float32,bfloat16,float16"
    done = cli("all-components", "--model", "codegen-nano", "--dtype", dtypes, "--format", "json", "-q")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    attention = Counter(f["verdict"] for f in findings if f["kind"].startswith("attn") and f["dtype"] != "float64")
    assert set(attention) == {"bitwise"}


@pytest.mark.slow
def test_rotary_dims_of_a_real_size_hold(cli: Cli) -> None:
    arguments = ("--rotary-dim", "16,32,64,none", "--layers", "0,7,19", "--component", "attn", "--component", "block")
    done = cli("all-components", "--model", "codegen-350M", *arguments, "--format", "json", "-q")
    assert done.returncode == 0, done.stderr
    assert {finding["rotary_dim"] for finding in json.loads(done.stdout)["findings"]} == {16, 32, 64, "none"}
