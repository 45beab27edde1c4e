"""The sentence about a failed cell: the first stage, where, how far, why, and what the right tensor changes."""

from __future__ import annotations

import pytest
from hugging_face import needs_upstream
from verifying import failed, verify

from cgverify.common.records import CellResult
from cgverify.selftest.seeded import FAULTS

SEEDED = {fault.name: fault for fault in FAULTS}
HOLDS = "with the right tensor put there, the rest holds"

PARTS: dict[str, tuple[str, ...]] = {
    "QueryKeySwapped": (
        "project_q breaks first, everywhere in hook_q, by ",
        "cause: K stands in the place of Q",
        "1 more tap is wrong behind it",
        "with the right tensor put there, project_k is wrong too",
    ),
    "LastPartitionSwapped": (
        "at hook_q (all heads of the last partition)",
        "cause: K stands in the place of Q in all heads of the last partition",
    ),
    "ValueHeadRepeated": ("at hook_v (head 3)", "cause: head 3 has what belongs to head 2", HOLDS),
    "OneHeadUnrotated": ("at hook_rot_q (head 1, position 2, dimensions 0 to 15)", HOLDS),
    "QueryOnlyRotated": (
        "rope breaks first, at hook_rot_k (all heads, dimensions",
        "cause: not rotated",
        HOLDS,
    ),
    "PositionsShiftedByMany": ("cause: positions shifted by +20", "rope at hook_rot_k is wrong too"),
    "TableInBfloat16": ("cause: the sin/cos table was cast to bfloat16",),
    "ScaleOffByAThousandth": (
        "scores breaks first, ",
        "times as far from the oracle as the reference",
        "cause: scaled by 1.001",
        HOLDS,
    ),
    "ScaledByHeadDim": ("cause: scaled by 1/head_dim instead of 1/sqrt(head_dim)",),
    "PatternDroppedForOneHead": ("softmax breaks first, at hook_pattern (", "of head 3", HOLDS),
    "LastPositionStale": ("mix breaks first, at hook_z (all heads, position 7)", HOLDS),
    "LastRowStale": ("mix breaks first, at hook_z (all heads, batch 1 only)", HOLDS),
    "HeadsSwapped": ("cause: heads 0 and 1 have changed places", HOLDS),
    "NotANumber": ("hook_z", "with values that are not finite, or finite where they must not be"),
    "Raises": ("the candidate raised where the reference did not: RuntimeError: this forward always raises",),
}
"""The parts that the sentence about each fault must contain."""


@pytest.fixture(scope="module")
def results() -> dict[str, CellResult]:
    found = verify(
        candidates=[SEEDED[name].bridge for name in PARTS], components=["attn"], cases=["stress"], sentences=True
    )
    return {result.cell.candidate.rpartition(":")[2]: result for result in found}


@pytest.mark.parametrize("name", PARTS)
def test_seeded_fault_has_its_sentence(results: dict[str, CellResult], name: str) -> None:
    for part in PARTS[name]:
        assert part in results[name].blame
    assert "\n" not in results[name].blame


def test_returned_pattern_is_not_confirmed_by_substitution() -> None:
    """The returned pattern is not a hook. A correct bridge has no sentence."""
    right, wrong = verify(
        candidates=["faults:ReturnedWeightsZeroed", "cgverify"], components=["attn"], cases=["default"], sentences=True
    )
    assert wrong.blame.startswith("returned breaks first")
    assert "right tensor" not in wrong.blame
    assert right.blame == ""


def test_substitution_reaches_the_last_step_of_decode() -> None:
    """The chunk is the last of four steps, which share one cache."""
    (result,) = verify(
        candidates=[SEEDED["ChunkSeesItself"].bridge], components=["attn"], cases=["decode"], sentences=True
    )
    assert {finding.step for finding in failed([result])} == {"chunk"}
    assert "scores breaks first, at hook_attn_scores" in result.blame
    assert result.blame.endswith(HOLDS)


def test_ignored_patch_is_blamed_on_its_hook() -> None:
    (result,) = verify(
        candidates=[SEEDED["pattern_patch_ignored"].bridge], components=["attn"], cases=["patched"], sentences=True
    )
    assert result.blame.startswith(
        "what hook_v and hook_pattern returned was not used, or not wholly: mix breaks first"
    )


# --- TransformerLens's own bridge -------------------------------------------------------------------------------------

DEAD = "hook_rot_q and hook_rot_k never fired"
FLAGGED = "hook_rot_q, hook_rot_k, hook_result, hook_q_input, hook_k_input, hook_v_input and hook_attn_in never fired"
CASES = ["default", "decode", "train", "gated"]

Sentences = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    dtypes = ["float64", "float32", "bfloat16", "float16"]
    results = verify(candidates=["transformer_lens"], components=["attn"], cases=CASES, dtypes=dtypes, sentences=True)
    return {(result.cell.dtype, result.cell.case): result.blame for result in results}


@needs_upstream
def test_upstream_in_float32_has_dead_hooks_only(sentences: Sentences) -> None:
    assert sentences["float32", "default"] == sentences["float32", "decode"] == DEAD
    assert sentences["float32", "gated"] == FLAGGED


@needs_upstream
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_upstream_in_training_lacks_residual_dropout(sentences: Sentences, dtype: str) -> None:
    sentence = sentences[dtype, "train"]
    # In 16 bits the step with a cache raises, and takes the place of the hooks that need a flag.
    assert sentence.startswith(f"{FLAGGED if dtype == 'float32' else DEAD}; dropout is missing, ")
    assert "resid_dropout breaks first, everywhere in hook_out" in sentence
    assert sentence.endswith("with the right tensor put there, the rest holds")


@needs_upstream
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_upstream_in_decode_does_not_cast_rotated_keys(sentences: Sentences, dtype: str) -> None:
    sentence = sentences[dtype, "decode"]
    assert (
        f"cache_keys is float32 where it must be {dtype}; the candidate raised where the reference did not" in sentence
    )
    assert "expected m1 and m2 to have the same dtype" in sentence


@needs_upstream
def test_upstream_in_float64_overflows_the_mask_in_float32(sentences: Sentences) -> None:
    sentence = sentences["float64", "default"]
    assert "scores breaks first, at hook_attn_scores (" in sentence
    assert "which is float32 where it must be float64, with values that are not finite" in sentence
    assert sentence.endswith("with the right tensor put there, the rest holds")
