"""The `backward` case: gradients of correct code hold, seeded faults are found where they act, upstream's are told."""

from __future__ import annotations

from typing import Any

import gradient_faults
import pytest
import torch
from hugging_face import needs_upstream
from torch.utils.checkpoint import checkpoint
from verifying import ALL_DTYPES, failed, findings, of, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.common.records import CellResult, Verdict
from cgverify.observe.cases.backward import hooks_with_gradients, leaves
from cgverify.observe.components import COMPONENTS
from cgverify.oracle.monte_carlo import Drawn, Exact, product
from cgverify.oracle.shortcuts import NO_SHORTCUTS
from cgverify.plan import cases as plan


@pytest.fixture(scope="module")
def ours() -> list[CellResult]:
    return verify(dtypes=["float32", "bfloat16"], layers=[4], cases=["backward"])


def test_our_gradients_hold(ours: list[CellResult]) -> None:
    assert failed(ours) == []
    assert {r.cell.kind for r in ours} == set(plan.CASE_KINDS["backward"])


@pytest.mark.slow
def test_our_gradients_hold_with_more_seeds_and_in_float64() -> None:
    assert failed(verify(dtypes=ALL_DTYPES, layers=[0, 2], seeds=[1, 2], cases=["backward"])) == []


NOT_WEIGHTS = {
    "attn": {"grad.attention_mask", "cached.hidden_states"},
    "block": {"grad.attention_mask", "cached.hidden_states"},
}
"""Further taps of a kind of component that are judged by element and by scale."""


def test_every_gradient_is_judged_by_element_and_by_scale(ours: list[CellResult]) -> None:
    for result in ours:
        kind = result.cell.kind
        scaled = {f"grad.{name}" for name in leaves(kind)} | NOT_WEIGHTS.get(kind, set())
        if kind != "embed":
            scaled |= {"hooked.hidden_states", "tangent.returned"}
        if kind in ("ln1", "ln_final", "attn", "mlp", "block"):
            scaled.add("second.hidden_states")
        hooks = {f"grad.{tap}" for tap in hooks_with_gradients(COMPONENTS[kind])}
        taps = {stage: {f.tap for f in result.findings if f.stage == stage} for stage in STAGES}
        assert taps == {"gradient": scaled | hooks, "gradient_scale": scaled if kind != "embed" else set()}
        for finding in result.findings:
            assert finding.r is not None
            assert finding.r <= 1
            assert (finding.reference_r is None) == (finding.tap in hooks)


STAGES = ("gradient", "gradient_scale")


def test_gradients_of_attention_are_judged_at_all_its_hooks() -> None:
    names = ("q", "k", "v", "rot_q", "rot_k", "attn_scores", "pattern", "z", "out")
    assert set(hooks_with_gradients(COMPONENTS["attn"])) == {f"hook_{name}" for name in names}


def test_every_weight_of_a_block_has_a_gradient_that_is_not_nothing(ours: list[CellResult]) -> None:
    names = {"ln1", "mlp.in", "mlp.out"}
    wanted = {"hidden_states", "attn.q", "attn.k", "attn.v", "attn.o", *names, *(f"{name}.bias" for name in names)}
    assert set(leaves("block")) == wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_of_the_weights_of_attention_are_hugging_faces_bits(ours: list[CellResult], dtype: str) -> None:
    (result,) = [r for r in ours if (r.cell.kind, r.cell.layer, r.cell.dtype) == ("attn", 4, dtype)]
    for finding in result.findings:
        if finding.tap.startswith("grad.attn."):
            assert finding.verdict is Verdict.BITWISE, finding


def test_sequences_of_one_token_hold() -> None:
    assert failed(verify(cases=["backward"], dtypes=["bfloat16"], batch_size=1, seq_len=1)) == []


# --- seeded faults ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
def seeded(request: pytest.FixtureRequest) -> dict[tuple[str, str], CellResult]:
    """By fault and kind: the result of a dtype."""
    names = [f"gradient_faults:{name}" for name in gradient_faults.FAULTS]
    cases = ["default", "backward"]
    results = verify(candidates=names, dtypes=[request.param], cases=cases, components=["attn", "block"])
    assert failed(of(results, case="default")) == []
    return {(r.cell.candidate, r.cell.kind): r for r in of(results, case="backward")}


class Checkpointed(CodeGenAttentionBridge):
    """Computes its heads once more in the backward pass, for the memory's sake, unless a cache would grow twice."""

    def _reconstruct_attention(self, *heads: torch.Tensor, **kwargs: Any) -> Any:
        if kwargs["layer_past"] is not None:
            return super()._reconstruct_attention(*heads, **kwargs)
        return checkpoint(super()._reconstruct_attention, *heads, use_reentrant=False, **kwargs)


def test_hooks_that_fire_again_where_autograd_computes_again_fired_once() -> None:
    assert failed(verify(candidates=[f"{__name__}:Checkpointed"], cases=["backward"], components=["attn"])) == []


@pytest.mark.parametrize("kind", ["attn", "block"])
@pytest.mark.parametrize("fault", gradient_faults.FAULTS)
def test_a_fault_is_found_in_the_gradients_that_it_reaches(seeded: Any, fault: str, kind: str) -> None:
    result = seeded[f"gradient_faults:{fault}", kind]
    found = {finding.tap for finding in failed([result])} & {f"grad.{name}" for name in leaves(kind)}
    must, may = gradient_faults.FAULTS[fault]
    # In bfloat16 one percent is about as large as the bound of the scale.
    if (fault, result.cell.dtype) != ("GradientScaled", "bfloat16"):
        assert must <= found, found
    if kind == "attn":
        assert found <= must | may


@pytest.mark.parametrize("fault", gradient_faults.ONE_STEP, ids=lambda fault: fault.rpartition(":")[2])
def test_fault_is_found_in_its_step_alone(fault: str) -> None:
    kind, step, taps = gradient_faults.ONE_STEP[fault]
    found = failed(verify(candidates=[fault], components=[kind], cases=["backward"], dtypes=["bfloat16"]))
    assert {finding.step for finding in found} == {step}
    assert taps <= {finding.tap for finding in found}


# --- TransformerLens's own --------------------------------------------------------------------------------------------


@needs_upstream
def test_upstreams_gradients_of_attention_hold() -> None:
    results = verify(candidates=["transformer_lens"], cases=["backward"], components=["attn"])
    assert {(finding.tap, finding.verdict) for finding in failed(results)} == {
        (f"grad.{hook}", Verdict.MISSING) for hook in ("hook_rot_q", "hook_rot_k")
    }
    assert {f"grad.{name}" for name in leaves("attn")} < {finding.tap for finding in findings(results)}


def test_a_gradient_that_does_not_arrive_is_told_with_its_head() -> None:
    results = verify(candidates=["gradient_faults:KeyWeightFrozen"], cases=["backward"], components=["attn"])
    messages = [finding.message for finding in failed(results) if finding.tap == "grad.attn.k"]
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
