"""A reference that is not what Hugging Face's class computes: its own side is blamed, and the pair fails."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CodeGenForCausalLM

import cgverify
from cgverify.bridge import boot
from cgverify.checkpoint.names import NANO


def _other_partitions(block: Any) -> None:
    block.attn.qkv_proj.register_forward_hook(lambda _, __, fused: fused.unflatten(-1, (8, -1)).roll(1, -2).flatten(-2))


def _scaled_output(block: Any) -> None:
    block.attn.out_proj.register_forward_hook(lambda _, __, output: output * 1.001)


def _other_activation(block: Any) -> None:
    block.mlp.act = nn.GELU()


def _other_epsilon(block: Any) -> None:
    block.ln_1.eps = 1e-3


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "torch hook on the fused projection": (_other_partitions, "project_q"),
    "torch hook on the output projection": (_scaled_output, "output"),
    "another activation": (_other_activation, "activation"),
    "another epsilon": (_other_epsilon, "layer_norm"),
}


@pytest.fixture(scope="module")
def stock() -> CodeGenForCausalLM:
    return CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()


@pytest.mark.parametrize("change", CHANGES)
def test_changed_reference_is_suspect_and_fails(stock: CodeGenForCausalLM, change: str) -> None:
    apply, stage = CHANGES[change]
    reference = copy.deepcopy(stock)
    apply(reference.transformer.h[1])
    result = cgverify.verify(
        boot(copy.deepcopy(stock)), reference, layers=1, components=["attn", "mlp", "ln1"], cases="default"
    )
    assert not result.ok
    assert result.exit_code == 1
    suspect = result.findings[result.findings["verdict"] == "suspect"]
    assert stage in set(suspect["stage"])
    assert set(result.findings["verdict"]) <= {"bitwise", "ulp", "bounded", "suspect"}
    assert suspect["message"].str.contains("of Hugging Face's side is off by").all()
    with pytest.raises(AssertionError, match="Hugging Face's side"):
        result.assert_ok()


def test_stock_reference_is_not_suspect(stock: CodeGenForCausalLM) -> None:
    result = cgverify.verify(boot(copy.deepcopy(stock)), stock, layers=1, components=["attn", "mlp"], cases="default")
    assert result.ok


def test_equal_bits_beyond_the_bound_pass_and_are_told(stock: CodeGenForCausalLM) -> None:
    reference = copy.deepcopy(stock)
    reference.transformer.h[1].mlp.act = nn.GELU()
    result = cgverify.verify(boot(copy.deepcopy(reference)), reference, layers=1, components=["mlp"], cases="default")
    activation = result.findings[result.findings["stage"] == "activation"]
    assert set(activation["verdict"]) == {"bitwise"}
    assert activation["message"].str.contains("the bridge has the same bits").all()
    assert result.ok
