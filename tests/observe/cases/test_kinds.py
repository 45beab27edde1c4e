"""Sizes, state, data and whole weights: faults that only their case shows, and our bridge, which holds."""

from __future__ import annotations

from typing import Any

import kind_faults
import pytest
from transformers import CodeGenConfig
from verifying import failed, of, verify

from cgverify.common.records import CellResult
from cgverify.observe.cases.shapes import sizes
from cgverify.plan import cases as plan
from cgverify.selftest.seeded.seeding import changed

CASES = list(kind_faults.FAULTS)
FAULTS = [(case, name, kind) for case, faults in kind_faults.FAULTS.items() for name, kind in faults.items()]
ALONE = {"unembedding_row_201"}
"""Faults that other cases show as well, since every row is multiplied."""


@pytest.fixture(scope="module")
def seeded() -> dict[str, list[CellResult]]:
    """The results in the new cases and in those of a plain run before them, by fault."""
    cases = ["default", "stress", *CASES]
    return {
        name: verify(candidates=[f"kind_faults:{name}"], components=[kind], cases=cases) for _, name, kind in FAULTS
    }


@pytest.mark.parametrize(("case", "name", "kind"), FAULTS, ids=[name for _, name, _ in FAULTS])
def test_fault_shows_in_its_case_and_not_in_plain_ones(seeded: Any, case: str, name: str, kind: str) -> None:
    results = seeded[name]
    assert failed(of(results, case=case))
    if name not in ALONE:
        assert not failed([*of(results, case="default"), *of(results, case="stress")]), kind


def test_wrong_row_is_named(seeded: Any) -> None:
    messages = {finding.message for finding in failed(of(seeded["embedding_row_137"], case="weights"))}
    assert "weight is not Hugging Face's in row 137 of 256" in messages
    assert "W_E is not Hugging Face's in row 137 of 256" in messages
    assert "returned is not Hugging Face's in row 137 of 256" in messages


def test_name_that_shows_a_copy_of_a_weight_fails() -> None:
    name = "cgverify.selftest.seeded.whole_model:mlp_weight_is_a_copy"
    results = verify(candidates=[name], components=["block"], cases=["weights"])
    message = "mlp.W_out is a copy of the weight: an edit of it has no effect"
    assert [(finding.tap, finding.message) for finding in failed(results)] == [("mlp.W_out", message)]


def test_swallowed_exception_is_reported(seeded: Any) -> None:
    messages = [finding.message for finding in failed(of(seeded["hook_error_swallowed"], case="state"))]
    assert any("an exception that a hook raised at" in message for message in messages)


def test_our_bridge_holds_with_any_shape_of_the_input() -> None:
    axes: dict[str, Any] = {"cases": ["state", "data"], "components": ["attn", "embed"]}
    assert failed(verify(batch_size=1, seq_len=1, dtypes=["float32", "float64"], **axes)) == []
    assert failed(verify(batch_size=3, seq_len=5, dtypes=["bfloat16", "float16"], **axes)) == []


def test_each_size_is_verified_once_if_positions_are_few() -> None:
    for positions in (1, 16, 64):
        config = CodeGenConfig(n_positions=positions, n_embd=64, n_head=4, rotary_dim=8)
        for kind in plan.CASE_KINDS["shapes"]:
            asked = sizes(kind, config)
            assert len(set(asked)) == len(asked)
            assert max(sum(tokens) for _, tokens in asked) <= positions


def _without_hooks(bridge: Any) -> None:
    """Let the MLP be 1.01 times as large if nobody listens to it."""
    bridge.blocks[0].mlp.register_forward_hook(
        lambda mlp, _, output: output if mlp.hook_out.fwd_hooks else output * 1.01
    )


other_without_hooks = changed(_without_hooks)


def test_forward_without_hooks_is_verified_in_every_layer() -> None:
    results = verify(candidates=[f"{__name__}:other_without_hooks"], components=["mlp"], cases=["default"], layers=[1])
    assert [finding.message for finding in failed(results)] == ["returned is another tensor when no hook is attached"]
