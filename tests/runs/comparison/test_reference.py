"""Hugging Face's own tensors in two runs: where they differ, by how much, and whether their definition changed."""

from __future__ import annotations

from pathlib import Path

import torch
from made_records import ENVIRONMENT, a_finding, a_result, a_run
from safetensors.torch import save_file

from cgverify.report.comparison import comparison_frame, comparison_report
from cgverify.report.render import render
from cgverify.runs.baseline import StoredRun
from cgverify.runs.comparison.changes import Comparison, compare


def compared(before: str, after: str, **environment: object) -> Comparison:
    runs = [
        StoredRun(a_run(environment={**ENVIRONMENT, **parts}), [a_result(a_finding("hook_q", reference_digest=digest))])
        for digest, parts in ((before, {}), (after, environment))
    ]
    return compare(*runs)


def test_other_digest_is_a_reference_change() -> None:
    (change,) = compared("00", "11").reference_changes
    assert change.pair.finding.tap == "hook_q"
    assert change.max_abs is None
    assert compared("00", "00").reference_changes == []


def test_run_without_digests_has_no_reference_changes() -> None:
    assert compared("", "11").reference_changes == compared("00", "").reference_changes == []


def test_reference_change_is_no_regression_and_is_reported() -> None:
    stages = {a_finding("hook_q").stage: "another formula"}
    comparison = compared("00", "11", stages=stages)
    assert comparison.worse == []
    text = render("markdown", comparison_report(comparison, []))
    assert "Hugging Face's own tensors differ: 1 tap" in text
    assert "No change" not in text
    assert "defined anew" in text
    assert list(comparison_frame(comparison)["change"]) == ["reference"]


def test_kept_tensors_give_the_distance(tmp_path: Path) -> None:
    runs = []
    for name, value in (("before", 1.0), ("after", 1.25)):
        (tmp_path / name / "tensors").mkdir(parents=True)
        tensor = torch.tensor([value, -torch.inf], dtype=torch.bfloat16)
        save_file({"reference": tensor}, tmp_path / name / "tensors" / "one")
        finding = a_finding("hook_q", reference_digest=name, tensors="tensors/one")
        runs.append(StoredRun(a_run(), [a_result(finding)], tmp_path / name))
    (change,) = compare(*runs).reference_changes
    assert change.max_abs == 0.25


def test_hidden_scores_are_not_part_of_the_distance(tmp_path: Path) -> None:
    hidden = torch.finfo(torch.float16).min
    mask, runs = torch.tensor([[[[0.0, hidden]]]], dtype=torch.float16), []
    for name, scores in (("before", [1.0, hidden / 4]), ("after", [1.5, hidden])):
        (tmp_path / name / "tensors").mkdir(parents=True)
        tensors = {"reference": torch.tensor([[[scores]]]), "given.attention_mask": mask}
        save_file(tensors, tmp_path / name / "tensors" / "one")
        finding = a_finding("hook_attn_scores", "scores", reference_digest=name, tensors="tensors/one")
        runs.append(StoredRun(a_run(), [a_result(finding)], tmp_path / name))
    (change,) = compare(*runs).reference_changes
    assert change.max_abs == 0.5
