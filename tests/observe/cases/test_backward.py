"""The `backward` case: gradients of correct code hold, seeded faults are found where they act, upstream's are told."""

from __future__ import annotations

from typing import Any

import gradient_faults
import pytest
import torch
from hugging_face import needs_upstream
from torch.utils.checkpoint import checkpoint
from verifying import ALL_DTYPES, failed, findings, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.common.records import CellResult, Verdict
from cgverify.observe.cases.backward import leaves
from cgverify.oracle.monte_carlo import Drawn, Exact, product
from cgverify.oracle.shortcuts import NO_SHORTCUTS
from cgverify.plan import cases as plan


@pytest.fixture(scope="module")
def ours() -> list[CellResult]:
    return verify(dtypes=ALL_DTYPES, layers=[4], cases=["backward"])


def test_our_gradients_hold(ours: list[CellResult]) -> None:
    assert failed(ours) == []
    assert {r.cell.kind for r in ours} == set(plan.CASE_KINDS["backward"])


def test_every_gradient_is_judged_by_element_and_by_scale_on_both_sides(ours: list[CellResult]) -> None:
    for result in ours:
        for stage in ("gradient", "gradient_scale"):
            taps = {finding.tap for finding in result.findings if finding.stage == stage}
            assert taps == {f"grad.{name}" for name in leaves(result.cell.kind)}
    for finding in findings(ours):
        assert finding.r is not None
        assert finding.reference_r is not None
        assert max(finding.r, finding.reference_r) <= 1


def test_every_weight_of_a_block_has_a_gradient_that_is_not_nothing(ours: list[CellResult]) -> None:
    names = {"ln1", "mlp.in", "mlp.out"}
    wanted = {"hidden_states", "attn.q", "attn.k", "attn.v", "attn.o", *names, *(f"{name}.bias" for name in names)}
    assert set(leaves("block")) == wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_gradients_of_the_weights_of_attention_are_hugging_faces_bits(ours: list[CellResult], dtype: str) -> None:
    (result,) = [r for r in ours if (r.cell.kind, r.cell.layer, r.cell.dtype) == ("attn", 4, dtype)]
    for finding in result.findings:
        if finding.tap != "grad.hidden_states":
            assert finding.verdict is Verdict.BITWISE, finding


def test_sequences_of_one_token_hold() -> None:
    assert failed(verify(cases=["backward"], dtypes=["float32", "bfloat16"], batch_size=1, seq_len=1)) == []


# --- seeded faults ----------------------------------------------------------------------------------------------------


SEEDED_DTYPES = ["float64", "bfloat16"]


@pytest.fixture(scope="module")
def seeded() -> dict[tuple[str, str, str], set[str]]:
    """By fault, dtype and kind: the taps that failed."""
    names = [f"gradient_faults:{name}" for name in gradient_faults.FAULTS]
    cases = ["default", "stress", "backward"]
    results = verify(candidates=names, dtypes=SEEDED_DTYPES, cases=cases, components=["attn", "block"])
    plainly = [result for result in results if result.cell.case != "backward"]
    assert failed(plainly) == []
    return {
        (r.cell.candidate, r.cell.dtype, r.cell.kind): {finding.tap for finding in failed([r])}
        for r in results
        if r.cell.case == "backward"
    }


class Checkpointed(CodeGenAttentionBridge):
    """Computes its heads once more in the backward pass, for the memory's sake."""

    def _reconstruct_attention(self, *heads: torch.Tensor, **kwargs: Any) -> Any:
        return checkpoint(super()._reconstruct_attention, *heads, use_reentrant=False, **kwargs)


def test_hooks_that_fire_again_where_autograd_computes_again_fired_once() -> None:
    assert failed(verify(candidates=[f"{__name__}:Checkpointed"], cases=["backward"], components=["attn"])) == []


@pytest.mark.parametrize("kind", ["attn", "block"])
@pytest.mark.parametrize("dtype", SEEDED_DTYPES)
@pytest.mark.parametrize("fault", gradient_faults.FAULTS)
def test_a_fault_is_found_in_the_gradients_that_it_reaches(seeded: Any, fault: str, dtype: str, kind: str) -> None:
    found = seeded[f"gradient_faults:{fault}", dtype, kind]
    must, may = gradient_faults.FAULTS[fault]
    assert must <= found, found
    if kind == "attn":
        assert found <= must | may


# --- TransformerLens's own --------------------------------------------------------------------------------------------


@needs_upstream
def test_upstreams_gradients_of_attention_hold() -> None:
    results = verify(candidates=["transformer_lens"], cases=["backward"], components=["attn"])
    assert failed(results) == []
    assert len(list(findings(results))) == 2 * len(leaves("attn"))


def test_a_gradient_that_does_not_arrive_is_told_with_its_head() -> None:
    results = verify(candidates=["gradient_faults:KeyWeightFrozen"], cases=["backward"], components=["attn"])
    messages = [finding.message for finding in failed(results)]
    assert messages
    for message in messages:
        assert "times its bound at head " in message


# --- Monte Carlo arithmetic -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_drawn_errors_are_as_large_as_those_of_real_products_but_not_much_larger(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, 64, generator=generator).to(dtype) for _ in range(2))
    exact = product(x.double(), y.double(), dtype, Exact())
    real = ((x @ y).double() - exact).square().mean().sqrt()
    drawn = (product(x.double(), y.double(), dtype, Drawn(0, NO_SHORTCUTS)) - exact).square().mean().sqrt()
    assert 0.5 * real < drawn < 16 * real


class ShowsCopies(CodeGenAttentionBridge):
    """Shows a copy of the pattern, and uses its own unless a hook returns another tensor."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self._own = super()._pattern_of(scores, dtype)
        self._shown = self._own * 1
        return self._shown

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(self._own if pattern is self._shown else pattern, value)


@pytest.mark.parametrize("component", ["attn", "block"])
def test_tensor_shown_beside_the_computation_is_found(component: str) -> None:
    results = verify(candidates=[f"{__name__}:ShowsCopies"], components=[component], cases=["backward"])
    hook = "hook_pattern" if component == "attn" else "attn.hook_pattern"
    assert [(finding.tap, finding.stage) for finding in failed(results)] == [(hook, "conduct")]
    assert "no gradient arrives at" in failed(results)[0].message
