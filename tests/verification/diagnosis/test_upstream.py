"""Sentences about TransformerLens's own bridge: each divergence is named with the right stage."""

from __future__ import annotations

import pytest
from verifying import verify

DEAD = "hook_rot_q and hook_rot_k never fired"
FLAGGED = "hook_rot_q, hook_rot_k, hook_result, hook_q_input, hook_k_input, hook_v_input and hook_attn_in never fired"
CASES = ["default", "decode", "train", "gated"]

Sentences = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    dtypes = ["float64", "float32", "bfloat16", "float16"]
    results = verify(candidates=["transformer_lens"], components=["attn"], cases=CASES, dtypes=dtypes)
    return {(result.cell.dtype, result.cell.case): result.blame for result in results}


def test_upstream_in_float32_has_dead_hooks_only(sentences: Sentences) -> None:
    assert sentences["float32", "default"] == sentences["float32", "decode"] == DEAD
    assert sentences["float32", "gated"] == FLAGGED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_upstream_in_training_lacks_residual_dropout(sentences: Sentences, dtype: str) -> None:
    sentence = sentences[dtype, "train"]
    assert sentence.startswith(f"{DEAD}; dropout is missing, ")
    assert "resid_dropout breaks first, everywhere in hook_out" in sentence
    assert sentence.endswith("with the right tensor put there, the rest holds")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_upstream_in_decode_does_not_cast_rotated_keys(sentences: Sentences, dtype: str) -> None:
    sentence = sentences[dtype, "decode"]
    assert (
        f"cache_keys is float32 where it must be {dtype}; the candidate raised where the reference did not" in sentence
    )
    assert "expected m1 and m2 to have the same dtype" in sentence


def test_upstream_in_float64_overflows_the_mask_in_float32(sentences: Sentences) -> None:
    sentence = sentences["float64", "default"]
    assert "scores breaks first, at hook_attn_scores (" in sentence
    assert "which is float32 where it must be float64, with values that are not finite" in sentence
    assert sentence.endswith("with the right tensor put there, the rest holds")
