"""What differs between the two forms of Hugging Face's `CodeGenAttention` that the bridge can wrap.

| | a table for each attention (transformers up to 5.23) | one table for the model (from 5.24) |
|---|---|---|
| sin/cos table | the buffer `embed_positions` | `rotary_emb` of the model, which gives `position_embeddings` |
| rotated q and k | promoted with the table, to float32 at least | cast to v's dtype |
| scores | (q·kᵀ + mask) / √D | q·kᵀ · D^−½ + mask |
| attention dropout | the module `attn_dropout` | the rate `attention_dropout` |
| keywords | those of its signature | any |

The form is chosen by what a module has, never by a version. Source: `modeling_codegen.py` in both versions.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

PositionEmbeddings = tuple[Tensor, Tensor]
"""Sine and cosine of each position's angles, `[batch or 1, seq, rotary_dim / 2]` each."""


def prepare_shared_table(model: Any) -> None:
    """Prepare a CodeGen model that has one sin/cos table for all its layers; change nothing in another model.

    Each attention gets a reference to the model's `rotary_emb`. It is a plain attribute and not a submodule, so moves
    and casts of the model reach it through the model. Attention becomes eager, which has the pattern that hooks show.
    The hooks that collect `output_attentions` are installed now: once blocks are wrapped, each attention is found on
    two paths, and would be collected twice.
    """
    transformer = model.transformer
    if not hasattr(transformer, "rotary_emb"):
        return
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    for block in transformer.h:
        object.__setattr__(block.attn, "rotary_emb", transformer.rotary_emb)
    model.set_attn_implementation("eager")
    maybe_install_capturing_hooks(transformer)


class WrappedAttention(ABC):
    """One form. Every function takes the `CodeGenAttention` that the bridge wraps."""

    takes_any_keyword: bool
    takes_position_embeddings: bool

    @abstractmethod
    def table(self, attention: Any) -> Tensor:
        """Return the sin/cos table, `[positions, rotary_dim]`, sines before cosines."""

    @abstractmethod
    def move_table(self, attention: Any, device: torch.device) -> None:
        """Move the table to a device for good, as Hugging Face does."""

    @abstractmethod
    def cast_rotated(self, rotated: Tensor, value: Tensor) -> Tensor:
        """Return rotated heads in the dtype in which they are multiplied."""

    @abstractmethod
    def cast_cached(self, key: Tensor, dtype: torch.dtype) -> Tensor:
        """Return rotated keys as they are cached; `dtype` is that of the hidden states."""

    @abstractmethod
    def mask_and_scale(self, product: Tensor, mask: Tensor, attention: Any) -> Tensor:
        """Return the scores from q·kᵀ, which is overwritten, and an additive mask, whose dtype may be wider."""

    @abstractmethod
    def drop_attention(self, pattern: Tensor, attention: Any) -> Tensor:
        """Return the pattern after the module's dropout."""


class _TablePerAttention(WrappedAttention):
    takes_any_keyword = False
    takes_position_embeddings = False

    def table(self, attention: Any) -> Tensor:
        return cast(Tensor, attention.embed_positions)

    def move_table(self, attention: Any, device: torch.device) -> None:
        attention.embed_positions = attention.embed_positions.to(device)

    def cast_rotated(self, rotated: Tensor, value: Tensor) -> Tensor:  # noqa: ARG002  the promoted dtype stays
        return rotated

    def cast_cached(self, key: Tensor, dtype: torch.dtype) -> Tensor:
        return key.to(dtype)

    def mask_and_scale(self, product: Tensor, mask: Tensor, attention: Any) -> Tensor:
        return _add(product, mask).div_(attention.scale_attn)

    def drop_attention(self, pattern: Tensor, attention: Any) -> Tensor:
        dropout = getattr(attention, "attn_dropout", None)  # a mock may have none, as in TransformerLens's bridge
        return pattern if dropout is None else cast(Tensor, dropout(pattern))


class _TablePerModel(WrappedAttention):
    takes_any_keyword = True
    takes_position_embeddings = True

    def table(self, attention: Any) -> Tensor:
        return cast(Tensor, _rotary_emb(attention).embed_positions)

    def move_table(self, attention: Any, device: torch.device) -> None:
        _rotary_emb(attention).to(device)

    def cast_rotated(self, rotated: Tensor, value: Tensor) -> Tensor:
        return rotated.to(value.dtype)

    def cast_cached(self, key: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG002  cast after the rotation
        return key

    def mask_and_scale(self, product: Tensor, mask: Tensor, attention: Any) -> Tensor:
        return _add(product.mul_(attention.scaling), mask)

    def drop_attention(self, pattern: Tensor, attention: Any) -> Tensor:
        rate = attention.attention_dropout if attention.training else 0.0
        return functional.dropout(pattern, rate, attention.training)


def _rotary_emb(attention: Any) -> Any:
    """Return the model's `rotary_emb`, or one of the attention's own if it was wrapped without its model."""
    if not hasattr(attention, "rotary_emb"):
        rotary_emb = sys.modules[type(attention).__module__].CodeGenRotaryEmbedding(attention.config)
        object.__setattr__(attention, "rotary_emb", rotary_emb.to(attention.qkv_proj.weight.device))
    return attention.rotary_emb


def _add(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the sum, in place unless the mask's dtype is wider."""
    promoted = torch.promote_types(scores.dtype, mask.dtype)
    return scores.add_(mask) if promoted == scores.dtype else scores + mask


TABLE_PER_ATTENTION = _TablePerAttention()
TABLE_PER_MODEL = _TablePerModel()


def form_of(attention: Any) -> WrappedAttention:
    """Return the form of a `CodeGenAttention`.

    Raises:
        ValueError: it has neither form.
    """
    if hasattr(attention, "embed_positions") and hasattr(attention, "scale_attn"):
        return TABLE_PER_ATTENTION
    if hasattr(attention, "scaling") and hasattr(attention, "attention_dropout"):
        return TABLE_PER_MODEL
    raise ValueError(
        f"This {type(attention).__name__} is not one that CodeGenAttentionBridge knows: it has neither embed_positions "
        "and scale_attn (transformers up to 5.23) nor scaling and attention_dropout (from 5.24)."
    )
