"""Seeded faults of the backward: the forward is correct bit for bit, and a gradient is wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from cgverify.selftest.candidates import Rows, named_candidates
from cgverify.selftest.seeded.seeding import attention
from cgverify.selftest.seeded.training import KeysDetached as KeysDetached


class _Scaled(Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return (g.to(torch.float64) * 1.01).to(g.dtype)


class _MixedBack(Function):
    @staticmethod
    def forward(ctx: Any, pattern: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(pattern, value)
        return pattern @ value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        pattern, value = ctx.saved_tensors
        return g @ value.mT, pattern @ g


def _freeze_key_weight(bridge: Any, project: Any, hidden_states: Tensor) -> tuple[Tensor, ...]:
    query, key, value = project(hidden_states)
    frozen = functional.linear(hidden_states, bridge.k.original_component.weight.detach())
    return query, frozen.unflatten(-1, key.shape[-2:]), value


def _straight_through(_: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Any:
    passed = scores.to(dtype)
    return pattern_of(scores.detach(), dtype).detach() + (passed - passed.detach()).nan_to_num(0.0)


_ROWS: Rows = {
    "KeyWeightFrozen": ("Only the weight of K gets no gradient.", attention(_project=_freeze_key_weight)),
    "GradientScaled": (
        "The gradient of z is multiplied by 1.01.",
        attention(_mix=lambda _, mix, pattern, value: _Scaled.apply(mix(pattern, value))),  # type: ignore[no-untyped-call]
    ),
    "WrongTranspose": (
        "The gradient of the values is mixed by the pattern instead of its transpose.",
        attention(_mix=lambda _, __, pattern, value: _MixedBack.apply(pattern, value).transpose(1, 2).flatten(-2)),  # type: ignore[no-untyped-call]
    ),
    "StraightThroughSoftmax": (
        "The gradient of the pattern is used as that of the scores.",
        attention(_pattern_of=_straight_through),
    ),
}
for _candidate in named_candidates(__name__, _ROWS):
    globals()[_candidate.__name__] = _candidate

FAULTS: dict[str, tuple[set[str], set[str]]] = {
    "KeysDetached": ({"grad.attn.k", "grad.hidden_states"}, {"hook_rot_k"}),
    "KeyWeightFrozen": ({"grad.attn.k"}, set()),
    "GradientScaled": (
        {"grad.attn.v"},
        {"grad.hidden_states", "grad.attn.q", "grad.attn.k", "grad.ln1", "grad.ln1.bias"},
    ),
    "WrongTranspose": ({"grad.attn.v", "grad.hidden_states"}, set()),
    "StraightThroughSoftmax": ({"grad.attn.q", "grad.attn.k", "grad.hidden_states"}, set()),
}
"""The gradients that must be blamed, and the others that may be. No other gradient may fail."""
