"""Whole checkpoints, verified as a user does it."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from command_line import Cli


@pytest.mark.parity
def test_codegen_350m_passes(cli: Cli) -> None:
    done = cli("all-components", "--model", "codegen-350M", "--format", "json", "-q")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {finding["layer"] for finding in report["findings"]} == {None, *range(20)}
    assert {finding["case"] for finding in report["findings"]} == {"default", "stress", "decode"}


@pytest.mark.parity
def test_codegen_nano_passes_in_every_dtype_bitwise_in_attention(cli: Cli) -> None:
    dtypes = "float64,float32,bfloat16,float16"
    done = cli("all-components", "--model", "codegen-nano", "--dtype", dtypes, "--format", "json", "-q")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    attention = Counter(f["verdict"] for f in findings if f["kind"].startswith("attn") and f["dtype"] != "float64")
    assert set(attention) == {"bitwise"}


@pytest.mark.slow
def test_other_rotary_dims_of_a_real_size_pass(cli: Cli) -> None:
    arguments = ("--rotary-dim", "16,32,64,none", "--layers", "0,7,19", "--component", "attn", "--component", "block")
    done = cli("all-components", "--model", "codegen-350M", *arguments, "--format", "json", "-q")
    assert done.returncode == 0, done.stderr
    assert {finding["rotary_dim"] for finding in json.loads(done.stdout)["findings"]} == {16, 32, 64, "none"}
