"""Hugging Face's attention and a bridge of it with equal weights."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from hugging_face import callable_by_positions, to_dtype
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CodeGenConfig, CodeGenForCausalLM, PreTrainedTokenizerFast

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.bridge.booting import adapter_with, bridge_from


def small_config(**changes: Any) -> CodeGenConfig:
    """Two blocks of four heads of size 16 with rotary_dim 8 by default."""
    given = {
        "vocab_size": 101,
        "n_positions": 64,
        "n_ctx": 64,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 8,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "architectures": ["CodeGenForCausalLM"],
    }
    return CodeGenConfig(**{**given, **changes})


def both(
    model: CodeGenForCausalLM,
    dtype: torch.dtype = torch.float32,
    layer: int = 1,
    *,
    cast_table: bool = False,
    attention: type[Any] = CodeGenAttentionBridge,
) -> tuple[Any, Any]:
    """Hugging Face's attention and the bridge's. The sin/cos table stays as `from_pretrained` leaves it by default."""
    model = to_dtype(model, dtype, cast_table=cast_table)
    bridge: Any = bridge_from(copy.deepcopy(model), adapter_with(attention))
    return callable_by_positions(model.transformer.h[layer].attn, model), bridge.blocks[layer].attn


@cache
def of_shape(heads: int, head_dim: int, rotary_dim: int, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """Both sides of one random attention of that shape, with scores that spread far from a uniform pattern."""
    torch.manual_seed(heads * head_dim + rotary_dim)
    shape = {"n_head": heads, "n_embd": heads * head_dim, "rotary_dim": rotary_dim}
    config = small_config(**shape, n_layer=1, initializer_range=1.5 / (heads * head_dim) ** 0.5)
    return both(CodeGenForCausalLM(config).eval(), dtype, layer=0, **options)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={"<|end|>": 0, **{c: i for i, c in enumerate(letters, 1)}}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|end|>")
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, **special)
