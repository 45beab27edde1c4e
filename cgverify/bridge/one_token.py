"""Attention for one token without hooks: the steps of `CodeGenAttentionBridge` without the checks between them.

With one token, calls of modules, checks for hooks and views of tensors take as long as the arithmetic of a small model.
Here the same operations run in the same order on tensors of the same layout, so the bits are the same. q and k are
rotated inside the product of which they are views, since nothing else refers to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformer_lens.model_bridge.generalized_components import LinearBridge

from cgverify.bridge.fast_path import is_transformed, runs_only_forward
from cgverify.bridge.joint_projection import joint_weight
from cgverify.bridge.rotary import rotate_in_place

Steps = Sequence[tuple[str, Any]]
"""Methods of attention, by name."""

_LEFT_OUT = (
    "_reconstruct_attention",
    "_process_output",
    "_project",
    "_rotate",
    "_hooked_scores",
    "_pattern_of",
    "_apply_attn_dropout",
    "_masked_softmax",
    "_output",
    "_normalize_compatibility_mask_sentinel",
    "_scrub_compatibility_pattern_nans",
)
"""The steps that `attend_one_token` does not call."""


def steps_of(attention: type) -> Steps:
    """Return the steps of a class that `attend_one_token` does not call, as they are now."""
    return [(name, getattr(attention, name)) for name in _LEFT_OUT]


def attend_one_token(
    bridge: Any, steps: Steps, hidden_states: Tensor, mask: Tensor, cache: Any, *positions: Any
) -> tuple[Tensor, Tensor] | None:
    """Return attention's output and pattern; None unless it is one token in float32 and nothing could notice.

    Args:
        bridge: a `CodeGenAttentionBridge`.
        steps: those of `CodeGenAttentionBridge`. A bridge that has other ones needs all of its steps.
        hidden_states: `[batch, seq, d_model]`.
        mask: additive.
        cache: a `transformers` cache or None.
        positions: arguments of the bridge's `_sin_cos`.
    """
    if is_transformed() or not _has(steps, bridge):  # sizes may be tensors in a trace
        return None
    width = hidden_states.shape[-1]
    if (
        hidden_states.numel() != width
        or width * 4 % 64  # k starts at a multiple of 64 bytes, see `rotate_both`
        or type(hidden_states) is not Tensor
        or not hidden_states.dtype == mask.dtype == torch.float32
        or hidden_states.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch._C._is_any_autocast_enabled()
        or not _is_unheard(bridge)
    ):
        return None
    own = bridge.__dict__["_modules"]
    weight = joint_weight([own[name]._modules["_original_component"] for name in "qkv"])
    sin, cos = bridge._sin_cos(*positions)
    if weight is None or sin.dtype != torch.float32:
        return None
    product = functional.linear(hidden_states, weight).view(1, 1, 3, bridge.config.n_heads, -1)
    rotate_in_place(product[:, :, :2], sin, cos)
    query, key, value = product.transpose(1, 3).unbind(2)
    if cache is not None:
        key, value = bridge._extend_cache(cache, key, value)
    pattern = torch.softmax(bridge._scores(query, key, mask), -1).to(value.dtype)
    output: Tensor = own["o"]._modules["_original_component"].forward(bridge._mix(pattern, value))
    return output, pattern


def _has(steps: Steps, bridge: Any) -> bool:
    """Return whether no subclass or caller has replaced a step."""
    own, attention = bridge.__dict__, type(bridge)
    return all(getattr(attention, name) is step and name not in own for name, step in steps)


def _is_unheard(bridge: Any) -> bool:
    """Return whether hooks, flags, dropout and other modules than Linears have no part in attention."""
    modules = bridge.__dict__["_modules"].copy()
    attention = modules.pop("_original_component")
    projections = [modules.get(name) for name in ("q", "k", "v", "qkv", "o")]
    dropouts = [attention._modules[name] for name in ("attn_dropout", "resid_dropout") if name in attention._modules]
    return (
        not (attention.training or any(dropout.training for dropout in dropouts))
        and not (bridge.compatibility_mode or getattr(bridge.config, "use_attn_result", False))
        and not bridge._is_split_qkv_fork_active()
        and all(type(projection) is LinearBridge for projection in projections)
        and runs_only_forward(*modules.values(), *dropouts)
        and runs_only_forward(*(part for projection in projections for part in projection._modules.values()))
    )
