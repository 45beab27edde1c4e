"""What goes wrong only under autocast: an operation that leaves it, or that casts what it would have left alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault
from cgverify.selftest.seeded.precision import through


def _low(x: torch.Tensor) -> torch.dtype:
    """The dtype of autocast; x's own where that is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _product_dtype(operand: torch.Tensor) -> torch.dtype:
    """What a product of such operands must come in: autocast leaves float64 alone."""
    return operand.dtype if operand.dtype == torch.float64 else _low(operand)


def _outside(x: torch.Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


class ScoresOutsideAutocast(CodeGenAttentionBridge):
    """The product of the scores stays in float32 under autocast."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with _outside(query):
            return super()._scores(query, key, mask)


class ScoresRoundedLate(CodeGenAttentionBridge):
    """The mask is added in float32, and what comes out is rounded as the product should have been."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        low, wide = _low(query), torch.promote_types(mask.dtype, torch.float32)
        with _outside(query):
            scores = through(super()._scores(query, key, mask.to(wide)), low)
        return scores.to(torch.promote_types(low, mask.dtype))


class RotatedInLowPrecision(CodeGenAttentionBridge):
    """Rotated q and k are rounded, which their product does again: nothing behind the rotation changes."""

    def _rotate(
        self, query: Any, key: Any, position_ids: Any, position_embeddings: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        low = _low(query)
        query, key = super()._rotate(query, key, position_ids, position_embeddings)
        return through(query, low), through(key, low)


class SoftmaxInLowPrecision(CodeGenAttentionBridge):
    """The softmax is given rounded scores."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return super()._pattern_of(through(scores, _low(scores)), dtype)


class MixOutsideAutocast(CodeGenAttentionBridge):
    """Pattern and values are mixed as they are, and z is rounded: with a float32 cache the pattern is not."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        low = _product_dtype(value)
        with _outside(value):
            return super()._mix(pattern, value).to(low)


class CacheInLowPrecision(CodeGenAttentionBridge):
    """Keys go into the cache in the dtype of autocast, not in that of the hidden states."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super()._extend_cache(cache, key.to(_low(key)), value)


class KeysRoundedInCache(CodeGenAttentionBridge):
    """Keys are rounded on their way into a cache that keeps its dtype."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super()._extend_cache(cache, through(key, _low(key)), value)


class MaskInLowPrecision(CodeGenAttentionBridge):
    """The mask is rounded before it is added; what it hides stays hidden."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lowest = torch.finfo(mask.dtype).min
        return super()._scores(query, key, torch.where(mask > lowest, through(mask, _low(mask)), mask))


def norm_in_low_precision(bridge: Any) -> Any:
    """Layer norms round what they are given."""
    for module in (bridge.blocks[0].ln1.original_component, bridge.ln_final.original_component):
        module.forward = lambda x, module=module: nn.LayerNorm.forward(module, through(x, _low(x)))
    return bridge


def output_outside_autocast(bridge: Any) -> Any:
    """The output projection multiplies its weights as they are, and rounds the result alone."""
    linear = bridge.blocks[0].attn.o.original_component

    def forward(x: torch.Tensor) -> torch.Tensor:
        low = _product_dtype(linear.weight)
        with _outside(x):
            return nn.functional.linear(x.to(linear.weight.dtype), linear.weight, linear.bias).to(low)

    linear.forward = forward
    return bridge


def residual_in_low_precision(bridge: Any) -> Any:
    """The block rounds its residual before the sum."""
    block = bridge.blocks[0].original_component

    def forward(hidden_states: torch.Tensor, **context: Any) -> tuple[torch.Tensor, torch.Tensor]:
        normed = block.ln_1(hidden_states)
        output, pattern = block.attn(hidden_states=normed, **context)
        return output + block.mlp(normed) + through(hidden_states, _low(hidden_states)), pattern

    block.forward = forward
    return bridge


FAULTS = (
    *(
        fault(each, "scores", case="autocast")
        for each in (ScoresOutsideAutocast, ScoresRoundedLate, MaskInLowPrecision)
    ),
    fault(RotatedInLowPrecision, "rope", case="autocast"),
    fault(SoftmaxInLowPrecision, "softmax", case="autocast"),
    fault(MixOutsideAutocast, "mix", case="autocast"),
    fault(CacheInLowPrecision, "cache", case="autocast"),
    fault(KeysRoundedInCache, "cache", case="autocast"),
    fault(norm_in_low_precision, "layer_norm", kinds=("ln1", "ln_final", "block"), case="autocast"),
    fault(output_outside_autocast, "output", kinds=("attn.o", "attn", "block"), case="autocast"),
    fault(residual_in_low_precision, "block_sum", kinds=("block",), case="autocast"),
)
