"""Saved tensors: one file per failed tap, from which the verdict can be computed again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from command_line import Cli
from safetensors.torch import load_file


def run(cli: Cli, out: str, *more: str) -> None:
    fault = ("--bridge", "faults:QueryKeySwapped", "--component", "blocks.0.attn", "--case", "stress")
    done = cli("all-components", "--model", "codegen-nano", *fault, "--output", out, *more)
    assert done.returncode == 1, done.stderr


def test_saved_tensors_give_the_verdict_again(cli: Cli, tmp_path: Path) -> None:
    run(cli, "one")
    run(cli, "two")
    assert (tmp_path / "one/findings.csv").read_bytes() == (tmp_path / "two/findings.csv").read_bytes()
    findings = pd.read_csv(tmp_path / "one/findings.csv")
    failed = findings[findings["verdict"] == "diverged"]
    assert set(failed["tap"]) == {"hook_q", "hook_k"}
    assert findings["tensors"].notna().sum() == len(failed) == len(list((tmp_path / "one/tensors").iterdir()))
    for row in failed.to_dict("records"):
        kept = load_file(tmp_path / "one" / row["tensors"])
        assert {"given.hidden_states", "input.hook_in", "candidate", "reference", "expected", "bound"} <= kept.keys()
        ratio = (kept["candidate"].double() - kept["expected"]).abs() / kept["bound"]
        assert float(ratio.max()) == pytest.approx(row["r"])


def test_keep_tensors_none_writes_no_files(cli: Cli, tmp_path: Path) -> None:
    run(cli, "none", "--keep-tensors", "none")
    assert not (tmp_path / "none/tensors").exists()
