"""Hooks that never fire: reported once per cell, blamed themselves, and not expected while their flag is off."""

from __future__ import annotations

from typing import Any

import torch
from verifying import failed, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.common.records import Verdict

HERE = __name__


class SilentPattern(CodeGenAttentionBridge):
    """`hook_pattern` never fires; everything is computed correctly."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_pattern = torch.nn.Identity()


def test_dead_hook_is_blamed_for_unchecked_stages() -> None:
    (result,) = verify(candidates=[f"{HERE}:SilentPattern"], components=["attn"], cases=["patched"])
    assert {(finding.tap, finding.verdict) for finding in failed([result])} == {("hook_pattern", Verdict.MISSING)}
    assert result.blame == "hook_pattern never fired"


def test_dead_hook_inside_a_patched_block_fails() -> None:
    (result,) = verify(candidates=[f"{HERE}:SilentPattern"], components=["block"], cases=["patched"])
    assert {(finding.tap, finding.verdict) for finding in failed([result])} == {("attn.hook_pattern", Verdict.MISSING)}


def test_dead_hook_is_reported_once_per_cell() -> None:
    results = verify(candidates=["transformer_lens"], components=["attn"], cases=["decode", "gated"])
    decode, gated = ([finding.tap for finding in failed([result])] for result in results)
    assert decode == ["hook_rot_q", "hook_rot_k"]
    flagged = ["hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in"]
    assert gated == ["hook_rot_q", "hook_rot_k", *flagged]
    assert results[1].blame == f"hook_rot_q, hook_rot_k, {', '.join(flagged[:-1])} and {flagged[-1]} never fired"


def test_flagged_hooks_are_not_silent_while_the_flag_is_off() -> None:
    (ours,) = verify(components=["attn"], cases=["default"])
    (block,) = verify(candidates=["transformer_lens"], components=["block"], cases=["default"])
    assert ours.silent_hooks == ()
    assert "attn.qkv.hook_out" in block.silent_hooks
    assert not any(
        hook.endswith(("hook_result", "_input", "hook_attn_in", "hook_rot_q")) for hook in block.silent_hooks
    )


def test_forward_that_raised_reports_no_silent_hooks_behind() -> None:
    (whole,) = verify(candidates=["transformer_lens"], components=["block"], cases=["default"], dtypes=["bfloat16"])
    (raised,) = verify(candidates=["transformer_lens"], components=["block"], cases=["decode"], dtypes=["bfloat16"])
    assert any("raised" in finding.message for finding in raised.findings)
    assert set(raised.silent_hooks) <= set(whole.silent_hooks)
