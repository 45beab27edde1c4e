"""`cgverify attention`: tables, files and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
from command_line import Cli

from cgverify.plan.cases import CASE_KINDS, DEFAULT_CASES


def test_attention_is_shown_by_tap_and_head_with_its_cost(cli: Cli, tmp_path: Path) -> None:
    done = cli("attention", "--model", "codegen-nano", "--layers", "3", "--output", "run", "-v")
    assert done.returncode == 0, done.stderr
    assert re.search(r"hook_attn_scores +scores +bounded", done.stdout)
    assert "heads of codegen-nano" in done.stdout
    assert "oracle and judge" in done.stderr.splitlines()[-1]
    assert json.loads((tmp_path / "run/run.json").read_text())["command"] == "attention"
    findings = pd.read_csv(tmp_path / "run/findings.csv")
    assert set(findings["component"]) == {"blocks.3.attn"}
    assert set(findings["case"]) == {case for case in DEFAULT_CASES if "attn" in CASE_KINDS[case]}
    times = pd.read_csv(tmp_path / "run/timings.csv")
    assert (times[["candidate_seconds", "reference_seconds", "judging_seconds"]] > 0).all(axis=None)


def test_fault_fails_attention_and_is_in_every_report(cli: Cli, tmp_path: Path) -> None:
    fault = ("--bridge", "faults:HeadsSwapped", "--layers", "1", "--case", "default")
    done = cli("attention", "--model", "codegen-nano", *fault, "--format", "json", "--output", "run")
    assert done.returncode == 1, done.stderr
    (failed,) = json.loads(done.stdout)["failed"]
    assert failed["blame"].startswith("mix breaks first, at hook_z (all heads of the first partition), by ")
    assert pd.read_csv(tmp_path / "run/summary.csv")["blame"].tolist() == [failed["blame"]]
