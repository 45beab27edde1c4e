"""Hugging Face's own code is changed, which no check of the model can see: its side is blamed, and the pair fails."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import CodeGenForCausalLM
from transformers.activations import NewGELUActivation
from transformers.models.codegen import modeling_codegen
from transformers.models.codegen.modeling_codegen import CodeGenAttention

import cgverify
from cgverify.api import Result
from cgverify.bridge import boot
from cgverify.bridge.activation import GeluNew
from cgverify.checkpoint.names import NANO

AXES = {"layers": 1, "components": ["attn", "block"], "cases": ["default", "stress"]}
stock_forward = CodeGenAttention.forward
stock_rotation = modeling_codegen.apply_rotary_pos_emb


def _without_mask(attention: Any, *args: Any, **kwargs: Any) -> Any:
    return stock_forward(attention, *args, **{**kwargs, "attention_mask": None})


def _in_bfloat16(attention: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return stock_forward(attention, *args, **kwargs)


def _with_own_product(attention: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute the output without the module `out_proj`, so that z is not seen, and 1.1 times as large."""
    projection = attention._modules.pop("out_proj")
    object.__setattr__(attention, "out_proj", lambda z: functional.linear(z, projection.weight) * 1.1)
    try:
        return stock_forward(attention, *args, **kwargs)
    finally:
        object.__delattr__(attention, "out_proj")
        attention._modules["out_proj"] = projection


def _returning(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def forward(attention: Any, *args: Any, **kwargs: Any) -> Any:
        output, *rest = stock_forward(attention, *args, **kwargs)
        return change(output), *rest

    return forward


def _rotation(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    return lambda x, sin, cos: stock_rotation(x, change(sin), cos)


CHANGED_FORWARDS: dict[str, tuple[Callable[..., Any], str]] = {
    "mask dropped": (_without_mask, "scores of Hugging Face's side is off by"),
    "kernels in bfloat16": (_in_bfloat16, "project_q of Hugging Face's side is "),
    "a module not called": (_with_own_product, "output of Hugging Face's side cannot be checked, since hook_z"),
    "other shape": (_returning(lambda output: output[..., :96]), r"has shape \[2, 8, 96\] where it must be"),
    "NaN": (_returning(lambda output: output * torch.nan), "Hugging Face's side is "),
}
CHANGED_ROTATIONS: dict[str, Callable[..., Any]] = {
    "other direction": _rotation(lambda sin: -sin),
    "angles in bfloat16": _rotation(lambda sin: sin.bfloat16().to(sin.dtype)),
}


@pytest.fixture(scope="module")
def stock() -> CodeGenForCausalLM:
    return CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def bridge(stock: CodeGenForCausalLM) -> Any:
    return boot(copy.deepcopy(stock))


def _require_suspect(result: Result, sentence: str, *others: str) -> None:
    assert not result.ok
    assert result.exit_code == 1
    assert set(result.findings["verdict"]) - {"bitwise", "ulp", "bounded"} == {"suspect", *others}
    with pytest.raises(AssertionError, match=f"^{[*others, 'suspect'][0]} .*{sentence}"):
        result.assert_ok()


@pytest.mark.parametrize("change", CHANGED_FORWARDS)
def test_changed_forward_of_the_class_is_suspect(
    stock: CodeGenForCausalLM, bridge: Any, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, sentence = CHANGED_FORWARDS[change]
    others = ["error"] if change == "a module not called" else []  # the taps of that module are not shown
    monkeypatch.setattr(CodeGenAttention, "forward", wraps(stock_forward)(forward))
    _require_suspect(cgverify.verify(bridge, stock, **{**AXES, "components": "attn"}), sentence, *others)


@pytest.mark.parametrize("change", CHANGED_ROTATIONS)
def test_changed_rotation_of_the_library_is_suspect(
    stock: CodeGenForCausalLM, bridge: Any, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_codegen, "apply_rotary_pos_emb", CHANGED_ROTATIONS[change])
    _require_suspect(cgverify.verify(bridge, stock, **AXES), "rope of Hugging Face's side is off by")


def test_stock_reference_is_not_suspect(stock: CodeGenForCausalLM, bridge: Any) -> None:
    assert cgverify.verify(bridge, stock, **AXES).ok


def test_equal_bits_beyond_the_bound_pass_and_are_shown(
    stock: CodeGenForCausalLM, bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for activation in (NewGELUActivation, GeluNew):
        monkeypatch.setattr(activation, "forward", lambda _, x: functional.gelu(x))
    result = cgverify.verify(bridge, stock, layers=1, components=["mlp"], cases="default")
    activation = result.findings[result.findings["stage"] == "activation"]
    assert set(activation["verdict"]) == {"bitwise"}
    assert activation["message"].str.contains("the bridge has the same bits").all()
    assert result.ok
