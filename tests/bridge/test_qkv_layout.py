"""The split of the fused weight, compared with Hugging Face's forward and with rows counted by hand."""

from __future__ import annotations

import pytest
import torch
from hugging_face import eager
from hypothesis import given
from hypothesis import strategies as st
from transformers import CodeGenConfig, CodeGenForCausalLM
from transformers.models.codegen.modeling_codegen import CodeGenAttention

from cgverify.bridge import join_weight, split_qkv_matrix, split_weight
from cgverify.observe.generations import installed
from cgverify.observe.run import call_component
from cgverify.observe.taps import Observation
from cgverify.oracle.fused_qkv import projection


def test_rows_of_the_smallest_case_by_hand() -> None:
    """d_model 8, four heads of size 2: Q0 Q0 V0 V0 K0 K0 | Q1 …, as in the module's docstring."""
    rows = torch.arange(24.0)[:, None].expand(24, 8)
    query, key, value = split_weight(rows)
    assert query[:, 0].tolist() == [0, 1, 6, 7, 12, 13, 18, 19]
    assert value[:, 0].tolist() == [2, 3, 8, 9, 14, 15, 20, 21]
    assert key[:, 0].tolist() == [4, 5, 10, 11, 16, 17, 22, 23]


@given(quarter=st.integers(1, 5), seed=st.integers(0, 9))
def test_join_undoes_split(quarter: int, seed: int) -> None:
    d_model = 4 * quarter
    fused = torch.randn(3 * d_model, d_model, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(join_weight(*split_weight(fused)), fused)


@given(heads=st.sampled_from([4, 8, 12]), head_dim=st.sampled_from([2, 6]))
def test_split_agrees_with_the_oracles(heads: int, head_dim: int) -> None:
    fused = torch.randn(3 * heads * head_dim, heads * head_dim)
    for weight, which in zip(split_weight(fused), "qkv", strict=True):
        assert torch.equal(weight, projection(fused, which, heads))


def test_linears_compute_what_split_heads_returns(config: CodeGenConfig) -> None:
    model = eager(CodeGenForCausalLM(config).eval())
    attention, hidden = model.transformer.h[0].attn, torch.randn(2, 5, config.n_embd)
    inputs = {"hidden_states": hidden, "position_ids": torch.arange(5)[None]}
    seen = Observation()
    with torch.no_grad(), installed().attention_taps(attention, seen.record):
        call_component(model, attention, "attn", inputs, None)
    for linear, which in zip(split_qkv_matrix(attention), "qkv", strict=True):
        assert torch.equal(linear(hidden), seen.taps[f"hook_{which}"].flatten(-2))


@pytest.mark.parametrize("heads", [2, 6])
def test_heads_that_do_not_fill_partitions_raise(config: CodeGenConfig, heads: int) -> None:
    config.n_head, config.n_embd = heads, 12 * heads
    with pytest.raises(ValueError, match="multiple of 4"):
        split_qkv_matrix(CodeGenAttention(config, layer_idx=0))


def test_weight_of_another_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"\[3 \* d_model, d_model\]"):
        split_weight(torch.zeros(8, 8))
