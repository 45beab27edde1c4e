"""Hooks that show and do not listen: what a hook returns is not used. Only `patched` sees that."""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens.hook_points import HookPoint

from cgverify.selftest.entry import fault


class DeafHookPoint(HookPoint):  # type: ignore[misc]
    """Calls its hooks, and goes on with what it was given."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        super().__call__(x)
        return x


def _deafened(bridge: Any, hook: str) -> Any:
    bridge.blocks[0].get_submodule(hook).__class__ = DeafHookPoint
    return bridge


def attention_input_patch_ignored(bridge: Any) -> Any:
    """`attn.hook_in` only shows."""
    return _deafened(bridge, "attn.hook_in")


def query_patch_ignored(bridge: Any) -> Any:
    """`hook_q` only shows."""
    return _deafened(bridge, "attn.q.hook_out")


def key_patch_ignored(bridge: Any) -> Any:
    """`hook_k` only shows."""
    return _deafened(bridge, "attn.k.hook_out")


def value_patch_ignored(bridge: Any) -> Any:
    """`hook_v` only shows."""
    return _deafened(bridge, "attn.v.hook_out")


def rotated_query_patch_ignored(bridge: Any) -> Any:
    """`hook_rot_q` only shows."""
    return _deafened(bridge, "attn.hook_rot_q")


def rotated_key_patch_ignored(bridge: Any) -> Any:
    """`hook_rot_k` only shows."""
    return _deafened(bridge, "attn.hook_rot_k")


def scores_patch_ignored(bridge: Any) -> Any:
    """`hook_attn_scores` only shows."""
    return _deafened(bridge, "attn.hook_attn_scores")


def pattern_patch_ignored(bridge: Any) -> Any:
    """`hook_pattern` only shows."""
    return _deafened(bridge, "attn.hook_pattern")


def z_patch_ignored(bridge: Any) -> Any:
    """`hook_z` only shows."""
    return _deafened(bridge, "attn.o.hook_in")


def output_patch_ignored(bridge: Any) -> Any:
    """`attn.hook_out` only shows."""
    return _deafened(bridge, "attn.hook_out")


def pre_activation_patch_ignored(bridge: Any) -> Any:
    """`mlp.hook_pre` only shows."""
    return _deafened(bridge, "mlp.in.hook_out")


def activation_patch_ignored(bridge: Any) -> Any:
    """`mlp.hook_post` only shows."""
    return _deafened(bridge, "mlp.out.hook_in")


_MLP = ("mlp", "block")

FAULTS = (
    fault(attention_input_patch_ignored, "project_q", "input", case="patched"),
    fault(query_patch_ignored, "rope", case="patched"),
    fault(key_patch_ignored, "rope", case="patched"),
    fault(value_patch_ignored, "mix", case="patched"),
    fault(rotated_query_patch_ignored, "scores", case="patched"),
    fault(rotated_key_patch_ignored, "scores", case="patched"),
    fault(scores_patch_ignored, "softmax", case="patched"),
    fault(pattern_patch_ignored, "mix", case="patched"),
    fault(z_patch_ignored, "output", case="patched"),
    fault(output_patch_ignored, "output", "returned", case="patched"),
    fault(pre_activation_patch_ignored, "activation", kinds=_MLP, case="patched"),
    fault(activation_patch_ignored, "mlp_out", kinds=_MLP, case="patched"),
)
