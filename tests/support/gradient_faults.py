"""Seeded faults of the backward: the forward is right, bit for bit, and a gradient is not."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional

from cgverify.bridge import CodeGenAttentionBridge


class KeyDetached(CodeGenAttentionBridge):
    """No gradient reaches k, neither its weight nor what it was projected from."""

    def _rotate(self, query: Any, key: Any, position_ids: Any, position_embeddings: Any = None) -> Any:
        return super()._rotate(query, key.detach(), position_ids)


class KeyWeightFrozen(CodeGenAttentionBridge):
    """Only the weight of k gets no gradient."""

    def _project(self, hidden_states: Any) -> Any:
        query, key, value = super()._project(hidden_states)
        frozen = functional.linear(hidden_states, self.k.original_component.weight.detach())
        return query, frozen.unflatten(-1, key.shape[-2:]), value


class _Scaled(Function):
    @staticmethod
    def forward(_: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(_: Any, g: Any) -> Any:
        return (g.to(torch.float64) * 1.01).to(g.dtype)


class GradientScaled(CodeGenAttentionBridge):
    """A hundredth too large, from z on."""

    def _mix(self, pattern: Any, value: Any) -> Any:
        return _Scaled.apply(super()._mix(pattern, value))  # type: ignore[no-untyped-call]


class _MixedBack(Function):
    @staticmethod
    def forward(ctx: Any, pattern: Any, value: Any) -> Any:
        ctx.save_for_backward(pattern, value)
        return pattern @ value

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        pattern, value = ctx.saved_tensors
        return g @ value.mT, pattern @ g


class WrongTranspose(CodeGenAttentionBridge):
    """The values' gradient is mixed by the pattern, not by its transpose."""

    def _mix(self, pattern: Any, value: Any) -> Any:
        mixed: Any = _MixedBack.apply(pattern, value)  # type: ignore[no-untyped-call]
        return mixed.transpose(1, 2).flatten(-2)


class StraightThroughSoftmax(CodeGenAttentionBridge):
    """The pattern's gradient is taken for the scores'."""

    def _pattern_of(self, scores: Any, dtype: Any) -> Any:
        pattern = super()._pattern_of(scores.detach(), dtype)
        passed = scores.to(dtype)
        return pattern.detach() + (passed - passed.detach()).nan_to_num(0.0)


FAULTS: dict[type, dict[str, set[str]]] = {
    KeyDetached: {"must": {"grad.attn.k", "grad.hidden_states"}, "may": {"hook_rot_k"}},
    KeyWeightFrozen: {"must": {"grad.attn.k"}, "may": set()},
    GradientScaled: {
        "must": {"grad.attn.v"},
        "may": {"grad.hidden_states", "grad.attn.q", "grad.attn.k", "grad.ln1", "grad.ln1.bias"},
    },
    WrongTranspose: {"must": {"grad.attn.v", "grad.hidden_states"}, "may": set()},
    StraightThroughSoftmax: {"must": {"grad.attn.q", "grad.attn.k", "grad.hidden_states"}, "may": set()},
}
"""The gradients that must be blamed, and those that the fault reaches besides; no other may fail."""
