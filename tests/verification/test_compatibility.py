"""A bridge in TransformerLens's compatibility mode: a correct one passes, and every fault is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CodeGenForCausalLM

import cgverify
from cgverify.api import Result
from cgverify.bridge import CodeGenAttentionBridge, boot
from cgverify.bridge.booting import adapter_with, bridge_from
from cgverify.checkpoint.names import NANO
from cgverify.common.errors import UsageError
from cgverify.plan.cases import DEFAULT_CASES, SAMPLED

AXES = {"layers": 1, "components": ["embed", "attn", "mlp", "unembed"], "cases": "default"}
PARTS = {
    **dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False),
    "no_processing": True,
}


@pytest.fixture(scope="module")
def reference() -> CodeGenForCausalLM:
    """A model whose layer norms have gains and shifts that change the folded weights."""
    model = CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (*(block.ln_1 for block in model.transformer.h), model.transformer.ln_f):
            norm.weight += 0.3 * torch.randn(norm.weight.shape, generator=generator)
            norm.bias += 0.3 * torch.randn(norm.bias.shape, generator=generator)
    return model


def processed(reference: CodeGenForCausalLM, **options: bool) -> Any:
    bridge = boot(copy.deepcopy(reference))
    bridge.enable_compatibility_mode(disable_warnings=True, **options)
    return bridge


@pytest.fixture(scope="module")
def bridge(reference: CodeGenForCausalLM) -> Any:
    return processed(reference)


def failing(result: Result) -> set[tuple[str, str, str]]:
    rows = result.findings[result.findings["verdict"].isin(["diverged", "missing", "error"])]
    return set(rows[["component", "stage", "tap"]].itertuples(index=False, name=None))


def test_processed_bridge_passes_in_every_compatible_case(bridge: Any, reference: CodeGenForCausalLM) -> None:
    result = cgverify.verify(
        bridge,
        reference,
        layers=[0, 3],
        cases=["default", "stress", "decode", "masked_row", "train", "cast_table", "autocast"],
    )
    result.assert_ok()
    assert result.findings["r"].max() <= 1
    folded = result.findings[result.findings["stage"] == "fold"]
    assert set(folded["component"]) == {
        "embed",
        "unembed",
        *(f"blocks.{layer}{kind}" for layer in (0, 3) for kind in ("", ".attn", ".mlp")),
        *(f"blocks.{layer}.{kind}" for layer in (0, 3) for kind in ("attn.q", "attn.k", "attn.v", "attn.o")),
        *(f"blocks.{layer}.{kind}" for layer in (0, 3) for kind in ("mlp.in", "mlp.out")),
    }
    assert 0.01 < folded["r"].max() < 0.5, "float32 is near its bound and not beyond it"


@pytest.mark.parametrize("option", PARTS)
def test_partly_processed_bridge_passes(reference: CodeGenForCausalLM, option: str) -> None:
    cgverify.verify(processed(reference, **{option: PARTS[option]}), reference, **AXES).assert_ok()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_processed_bridge_passes_in_other_dtypes(reference: CodeGenForCausalLM, dtype: torch.dtype) -> None:
    model = copy.deepcopy(reference).to(dtype)
    cgverify.verify(processed(model), model, **AXES).assert_ok()


def test_processed_bridge_passes_with_subnormal_weights(reference: CodeGenForCausalLM) -> None:
    model = copy.deepcopy(reference)
    with torch.no_grad():
        for norm in (block.ln_1 for block in model.transformer.h):
            norm.weight.mul_(1e-4)
            norm.bias.mul_(1e-4)
    model.half()
    result = cgverify.verify(processed(model), model, **AXES)
    result.assert_ok()
    folded = result.findings[result.findings["stage"] == "fold"]
    assert folded["r"].max() > 0.3, "subnormals are what is seen here"


def _scaled(module: Any) -> None:
    module.original_component.weight.mul_(1 + 1e-5)


def _shifted(module: Any) -> None:
    module.original_component.bias[3] += 1e-4


def _biased(module: Any) -> None:
    module.original_component.bias += 0.1


def _row_off(module: Any) -> None:
    module.original_component.weight[5, 7] += 1e-4


FAULTS: dict[str, tuple[str, Callable[[Any], None], str, str]] = {
    "query weight": ("blocks.1.attn.q", _scaled, "blocks.1.attn", "attn.q.weight"),
    "query bias": ("blocks.1.attn.q", _shifted, "blocks.1.attn", "attn.q.bias"),
    "value weight": ("blocks.1.attn.v", _row_off, "blocks.1.attn", "attn.v.weight"),
    "value bias kept though folded": ("blocks.1.attn.v", _biased, "blocks.1.attn", "attn.o.bias"),
    "output bias": ("blocks.1.attn.o", _shifted, "blocks.1.attn", "attn.o.bias"),
    "MLP in": ("blocks.1.mlp.in", _row_off, "blocks.1.mlp", "mlp.in.weight"),
    "MLP out": ("blocks.1.mlp.out", _shifted, "blocks.1.mlp", "mlp.out.bias"),
    "embedding": ("embed", _row_off, "embed", "embed.weight"),
    "unembedding": ("unembed", _row_off, "unembed", "unembed.weight"),
    "unembedding's bias": ("unembed", _shifted, "unembed", "unembed.bias"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrongly_processed_weight_is_named(reference: CodeGenForCausalLM, fault: str) -> None:
    path, spoil, component, tap = FAULTS[fault]
    bridge = processed(reference)
    with torch.no_grad():
        spoil(bridge.get_submodule(path))
    result = cgverify.verify(bridge, reference, **AXES)
    assert failing(result) == {(component, "fold", tap)}
    with pytest.raises(AssertionError, match=f"{component}.*{tap} is not the reference's, folded: off by"):
        result.assert_ok()


def test_norm_folded_but_kept_is_found(reference: CodeGenForCausalLM) -> None:
    bridge = processed(reference)
    with torch.no_grad():
        bridge.blocks[1].ln1.original_component.weight.copy_(reference.transformer.h[1].ln_1.weight)
    found = failing(cgverify.verify(bridge, reference, **AXES))
    assert {("blocks.1.attn", "fold", "attn.q.weight"), ("blocks.1.mlp", "fold", "mlp.in.weight")} <= found


@pytest.mark.parametrize("path", ["blocks.1.mlp.out", "unembed", "blocks.1.attn.o"])
def test_means_without_effect_pass(reference: CodeGenForCausalLM, path: str) -> None:
    bridge = processed(reference)
    with torch.no_grad():
        bridge.get_submodule(path).original_component.bias.add_(0.25)
    cgverify.verify(bridge, reference, **AXES).assert_ok()


def test_wrong_arithmetic_with_right_weights_is_found(reference: CodeGenForCausalLM) -> None:
    bridge = processed(reference)
    attention = bridge.blocks[1].attn
    plain = attention._scores
    attention._scores = lambda *given: plain(*given) * 1.001
    assert failing(cgverify.verify(bridge, reference, **AXES)) >= {("blocks.1.attn", "scores", "hook_attn_scores")}


def test_incompatible_cases_raise_usage_error(bridge: Any, reference: CodeGenForCausalLM) -> None:
    with pytest.raises(UsageError, match="cannot be verified in backward, gated: leave that out"):
        cgverify.verify(bridge, reference, layers=0, components="attn", cases=["default", "gated", "backward"])


def test_plain_run_has_the_cases_that_the_mode_has(bridge: Any, reference: CodeGenForCausalLM) -> None:
    result = cgverify.verify(bridge, reference, layers=0, components=["attn", "block"])
    result.assert_ok()
    assert set(result.findings["case"]) == set(DEFAULT_CASES) - set(SAMPLED)


class _LowestLeftFinite(CodeGenAttentionBridge):
    def _normalize_compatibility_mask_sentinel(self, mask: Tensor) -> Tensor:
        return mask


class _LowestOfFloat32Alone(CodeGenAttentionBridge):
    def _normalize_compatibility_mask_sentinel(self, mask: Tensor) -> Tensor:
        return mask.masked_fill(mask.float() <= torch.finfo(torch.float32).min, -torch.inf)


class _BlindRowsNotANumber(CodeGenAttentionBridge):
    def _masked_softmax(self, scores: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return scores.softmax(-1)

    def _scrub_compatibility_pattern_nans(self, pattern: Tensor) -> Tensor:
        return pattern


class _BlindRowsUniform(CodeGenAttentionBridge):
    def _masked_softmax(self, scores: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return scores.masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0).softmax(-1)


@pytest.mark.parametrize(
    ("attention", "sentence"),
    [
        (_LowestLeftFinite, "scores breaks first.*cause: the lowest value of the mask is left finite"),
        (_LowestOfFloat32Alone, "scores breaks first.*cause: the lowest value of the mask is left finite"),
        (_BlindRowsNotANumber, "softmax breaks first.*not finite"),
        (_BlindRowsUniform, "softmax breaks first.*where no error is allowed"),
    ],
)
def test_other_hiding_than_minus_infinity_is_found(
    reference: CodeGenForCausalLM, attention: type[CodeGenAttentionBridge], sentence: str
) -> None:
    """The model's mask hides with the lowest finite value, which a bridge in this mode makes −∞."""
    model = copy.deepcopy(reference).to(torch.bfloat16)
    bridge = bridge_from(copy.deepcopy(model), adapter_with(attention))
    bridge.enable_compatibility_mode(disable_warnings=True)
    for component in ("attn", "block"):
        with pytest.raises(AssertionError, match=sentence):
            cgverify.verify(bridge, model, layers=1, components=component, cases="stress").assert_ok()


def test_data_in_16_bits_passes(reference: CodeGenForCausalLM) -> None:
    model = copy.deepcopy(reference).to(torch.float16)
    cgverify.verify(processed(model), model, layers=1, components="attn", cases="data").assert_ok()


def test_wrong_projection_with_a_bias_has_no_error(reference: CodeGenForCausalLM) -> None:
    """No known mistake explains it, and all of them are tried."""
    bridge = processed(reference)
    linear = bridge.blocks[1].attn.q.original_component
    linear.forward = lambda x: nn.functional.linear(x.sin(), linear.weight, linear.bias)
    result = cgverify.verify(bridge, reference, layers=1, components="attn", cases="default")
    assert ("blocks.1.attn", "project_q", "hook_q") in failing(result)
    assert "error" not in set(result.findings["verdict"])


@torch.no_grad()
def test_folding_keeps_log_probabilities(bridge: Any, reference: CodeGenForCausalLM) -> None:
    tokens = torch.arange(20).reshape(2, 10)
    ours, theirs = bridge(tokens).log_softmax(-1), reference(tokens).logits.log_softmax(-1)
    assert (ours - theirs).abs().max() < 1e-4
