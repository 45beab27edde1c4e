"""A tap that Hugging Face's side no longer shows is an error: its oracle alone is not parity."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hugging_face import TABLE_PER_MODEL
from verifying import failed, findings, of, verify

from cgverify.common.records import CellResult, Verdict
from cgverify.observe import components
from cgverify.observe.generations import installed
from cgverify.observe.taps import RecordTap
from cgverify.plan.cases import CASE_KINDS, PROMPTED

QUICK = [case for case in CASE_KINDS if case not in (*PROMPTED, "backward", "patched")]


def without(monkeypatch: pytest.MonkeyPatch, *lost: str) -> None:
    """Let attention of Hugging Face's side show some taps no longer, as one that computes them in another way."""
    generation = installed()

    def attention_taps(module: Any, record: RecordTap) -> contextlib.AbstractContextManager[None]:
        def kept(name: str, tensor: Any) -> None:
            if name not in lost:
                record(name, tensor)

        return generation.attention_taps(module, kept)

    monkeypatch.setattr(components, "installed", lambda: replace(generation, attention_taps=attention_taps))


def errors(results: list[CellResult]) -> set[str]:
    return {finding.tap for finding in findings(results) if finding.verdict is Verdict.ERROR}


@pytest.mark.parametrize("tap", ["hook_q", "hook_rot_k", "hook_attn_scores", "hook_z", "o.hook_out"])
def test_lost_tap_of_the_reference_is_an_error(tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, tap)
    results = verify(components=["attn", "block"], cases=["default"])
    assert failed(results) == []
    assert errors(of(results, kind="attn")) == {tap}
    assert errors(of(results, kind="block")) == {f"attn.{tap}"}
    (message, *_) = (finding.message for finding in findings(results) if finding.tap == tap)
    assert message.startswith(f"Hugging Face's side shows no {tap}, which it must show")


def test_fault_at_a_lost_tap_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "hook_rot_q", "hook_rot_k")
    results = verify(candidates=["faults:HalfRotation"], components=["attn"], cases=["default"])
    assert {finding.tap for finding in failed(results)} >= {"hook_rot_q", "hook_rot_k"}


@pytest.mark.skipif(not TABLE_PER_MODEL, reason="this transformers has eager attention alone")
def test_lost_tap_is_an_error_with_fused_attention_too(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "hook_rot_q")
    assert errors(verify(components=["attn"], cases=["default"], attentions=["sdpa"])) == {"hook_rot_q"}


@pytest.fixture(scope="module")
def in_every_case() -> list[CellResult]:
    return verify(cases=QUICK, dtypes=["bfloat16"])


def test_only_scale_and_normalized_have_no_counterpart(in_every_case: list[CellResult]) -> None:
    assert errors(in_every_case) == set()
    alone = {finding.tap for finding in findings(of(in_every_case, case="default")) if finding.max_abs is None}
    assert {tap.removeprefix("ln1.") for tap in alone} == {"hook_scale", "hook_normalized"}
