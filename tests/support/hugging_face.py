"""What tests need of Hugging Face's CodeGen, whether each attention or the model has the sin/cos table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CodeGenConfig, CodeGenForCausalLM

with torch.device("meta"):
    _SMALLEST = CodeGenForCausalLM(CodeGenConfig(n_layer=1, n_embd=16, n_head=4, rotary_dim=4))
TABLE_PER_MODEL = hasattr(_SMALLEST.transformer, "rotary_emb")
needs_upstream = pytest.mark.skipif(TABLE_PER_MODEL, reason="TransformerLens 4.3 cannot run this version of CodeGen")
"""Marks a test of TransformerLens's own bridge."""


def table_owners(model: Any) -> list[Any]:
    """The modules that have `embed_positions`."""
    return [model.transformer.rotary_emb] if TABLE_PER_MODEL else [block.attn for block in model.transformer.h]


def to_dtype(model: Any, dtype: torch.dtype, *, cast_table: bool = False) -> Any:
    """Cast a model. The table stays as `from_pretrained(dtype=…)` leaves it, in float32 or wider, by default."""
    tables = [(owner, owner.embed_positions.clone()) for owner in table_owners(model)]
    model = model.to(dtype)
    if not cast_table:
        for owner, table in tables:
            owner.embed_positions = table.to(torch.promote_types(torch.float32, dtype))
    return eager(model)


def eager(model: Any) -> Any:
    """Let a model use eager attention, the only implementation with a pattern."""
    if TABLE_PER_MODEL:
        model.set_attn_implementation("eager")
    return model


def callable_by_positions(attention: Any, model: Any) -> Any:
    """Let an attention be called with `position_ids` and `layer_past`, whatever its own form takes."""
    if not TABLE_PER_MODEL:
        return attention
    forward, rotary_emb = attention.forward, model.transformer.rotary_emb

    def by_positions(
        hidden_states: torch.Tensor,
        layer_past: Any = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        position_embeddings: Any = None,
    ) -> Any:
        embeddings = position_embeddings or rotary_emb(hidden_states, position_ids=position_ids)
        return forward(hidden_states, embeddings, attention_mask=attention_mask, cache=layer_past)

    attention.forward = by_positions
    return attention


def without_embeddings(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of attention whose positions are given as `position_ids` alone."""
    return {name: value for name, value in inputs.items() if name != "position_embeddings"}
