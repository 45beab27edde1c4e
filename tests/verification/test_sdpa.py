"""Hugging Face's side with sdpa: the stages between q, k, v and z are one, and the bridge's pattern is still judged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional
from transformers import CodeGenForCausalLM
from verifying import failed, findings, verify

import cgverify
from cgverify.bridge import CodeGenAttentionBridge, boot
from cgverify.checkpoint.names import NANO
from cgverify.common.errors import UsageError
from cgverify.common.records import Verdict
from cgverify.observe.generations import installed
from cgverify.report.outcome import exit_code, failures

needs_sdpa = pytest.mark.skipif("sdpa" not in installed().attentions, reason="this CodeGen has eager attention alone")
SDPA = {"attentions": ["sdpa"], "components": ["attn"]}


class SwappedPattern(CodeGenAttentionBridge):
    """Shows, and uses, the pattern of the head next to the one that it belongs to."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return super()._pattern_of(scores, dtype).roll(1, 1)


@needs_sdpa
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_bridge_holds_next_to_sdpa(dtype: str) -> None:
    cases = ["stress", "decode", "masked_row", "backward"]
    results = verify(**SDPA, cases=cases, dtypes=[dtype])
    assert failed(results) == []
    taps = {finding.tap for finding in findings(results)}
    assert {"hook_attn_scores", "hook_pattern", "hook_z", "grad.attn.q"} <= taps


@needs_sdpa
def test_sdpa_reference_has_z_and_no_pattern() -> None:
    found = {finding.tap: finding for finding in findings(verify(**SDPA, cases=["stress"]))}
    assert found["hook_pattern"].reference_r is None
    assert found["hook_z"].reference_r is not None
    assert 0 < found["hook_z"].reference_r <= 1
    assert found["hook_rot_q"].verdict is Verdict.BITWISE


@needs_sdpa
def test_wrong_pattern_is_found_next_to_sdpa() -> None:
    results = verify(**SDPA, cases=["default"], candidates=[f"{__name__}:SwappedPattern"])
    assert next(finding.stage for finding in failed(results)) == "softmax"
    sentence = failures(results)[0].sentence
    assert "with sdpa attention" in sentence


@needs_sdpa
@pytest.mark.parametrize("factor", [1.01, 0.5])
def test_wrong_kernel_of_sdpa_is_suspect(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = functional.scaled_dot_product_attention

    def wrong(*args: torch.Tensor, scale: float, **kwargs: object) -> torch.Tensor:
        return right(*args, scale=scale * factor, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(functional, "scaled_dot_product_attention", wrong)
    results = verify(**SDPA, cases=["default"])
    assert exit_code(results) == 1
    assert {(finding.tap, finding.verdict) for finding in failed(results)} == {("hook_z", Verdict.SUSPECT)}


@needs_sdpa
def test_whole_model_generates_as_sdpa_does() -> None:
    (result,) = verify(attentions=["sdpa"], components=["model"], cases=["model"])
    assert failed([result]) == []
    assert any(finding.message == "8 of 8 generated tokens alike" for finding in result.findings)
    z = [finding for finding in result.findings if finding.tap == "attn.hook_z"]
    assert any(finding.max_abs for finding in z)  # another kernel rounds otherwise: sdpa was really run


@needs_sdpa
def test_pair_keeps_its_own_implementation() -> None:
    reference = CodeGenForCausalLM.from_pretrained(NANO, attn_implementation="sdpa").eval()
    bridge = boot(copy.deepcopy(reference))
    result = cgverify.verify(
        bridge, reference, layers=0, components=["attn"], cases="default", attentions=["eager", "sdpa"]
    )
    assert result.ok
    assert reference.config._attn_implementation == "sdpa"
    seen = result.findings[result.findings["tap"] == "hook_pattern"].groupby("attention")["max_abs"].count()
    assert dict(seen) == {"eager": 1, "sdpa": 0}


@pytest.mark.skipif("sdpa" in installed().attentions, reason="this CodeGen has sdpa")
def test_generation_without_sdpa_is_unsupported() -> None:
    results = verify(**SDPA, cases=["default"])
    assert exit_code(results) == 5
    (finding,) = results[0].findings
    assert "has no sdpa attention: it has eager" in finding.message


def test_dropout_is_verified_with_eager_attention_alone() -> None:
    cells = [result.cell for result in verify(attentions=["eager", "sdpa"], components=["attn"], cases=["train"])]
    assert {cell.attention for cell in cells} == {"eager"}
    with pytest.raises(UsageError, match="add eager, or a case other than train and autocast"):
        verify(**SDPA, cases=["train"])
