"""Hooks that show and do not listen: what a hook returns is not used. Only `patched` sees that."""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens.hook_points import HookPoint

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault


class DeafHookPoint(HookPoint):  # type: ignore[misc]
    """Calls its hooks, and goes on with what it was given."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        super().__call__(x)
        return x


def _deafened(bridge: Any, hook: str) -> Any:
    """A bridge one of whose hooks, by its name in the first block or in the bridge, only shows."""
    ends = hook.startswith(("embed", "ln_final", "unembed"))
    (bridge if ends else bridge.blocks[0]).get_submodule(hook).__class__ = DeafHookPoint
    return bridge


def embedding_patch_ignored(bridge: Any) -> Any:
    """`embed.hook_out` only shows."""
    return _deafened(bridge, "embed.hook_out")


def final_norm_patch_ignored(bridge: Any) -> Any:
    """`ln_final.hook_in` only shows."""
    return _deafened(bridge, "ln_final.hook_in")


def unembedding_patch_ignored(bridge: Any) -> Any:
    """`unembed.hook_in` only shows."""
    return _deafened(bridge, "unembed.hook_in")


def attention_input_patch_ignored(bridge: Any) -> Any:
    """`attn.hook_in` only shows."""
    return _deafened(bridge, "attn.hook_in")


def fused_input_patch_ignored(bridge: Any) -> Any:
    """`attn.qkv.hook_in` only shows."""
    return _deafened(bridge, "attn.qkv.hook_in")


def fused_patch_ignored(bridge: Any) -> Any:
    """`attn.qkv.hook_out` only shows."""
    return _deafened(bridge, "attn.qkv.hook_out")


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


def branch_patch_ignored(bridge: Any) -> Any:
    """`hook_mlp_in` only shows."""
    return _deafened(bridge, "hook_mlp_in")


class OneHeadKeepsItsPattern(CodeGenAttentionBridge):
    """Head 0 attends as the pattern was before a hook changed it."""

    def _pattern_of(self, scores: Any, dtype: Any) -> Any:
        self.before = super()._pattern_of(scores, dtype)
        return self.before

    def _mix(self, pattern: Any, value: Any) -> Any:
        return super()._mix(torch.cat((self.before[:, :1], pattern[:, 1:]), dim=1), value)


class ReturnsThePatternFromBefore(CodeGenAttentionBridge):
    """z is mixed by what the hook returned, and what is returned is what it was shown."""

    def _pattern_of(self, scores: Any, dtype: Any) -> Any:
        self.before = super()._pattern_of(scores, dtype)
        return self.before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, _ = super().forward(*args, **kwargs)
        return output, self.before


class HeadsProjectTheirNeighbours(CodeGenAttentionBridge):
    """Each head takes the copy of the next one, which is the same until somebody changes one of them."""

    def _project_per_head_qkv(self, linear_bridge: Any, input_4d: Any, n_heads: int, d_head: int) -> Any:
        return super()._project_per_head_qkv(linear_bridge, input_4d.roll(1, 2), n_heads, d_head)


_MLP = ("mlp", "block")
_PROJECTIONS = ("project_q", "project_k", "project_v")

FAULTS = (
    fault(embedding_patch_ignored, "returned", kinds=("embed",), case="patched"),
    fault(final_norm_patch_ignored, "scale", "normalized", "layer_norm", kinds=("ln_final",), case="patched"),
    fault(unembedding_patch_ignored, "unembed", kinds=("unembed",), case="patched"),
    fault(attention_input_patch_ignored, "project_q", "input", case="patched"),
    fault(fused_input_patch_ignored, "input", *_PROJECTIONS, case="patched"),
    fault(fused_patch_ignored, *_PROJECTIONS, case="patched"),
    fault(query_patch_ignored, "rope", case="patched"),
    fault(key_patch_ignored, "rope", case="patched"),
    fault(value_patch_ignored, "mix", case="patched"),
    fault(rotated_query_patch_ignored, "scores", case="patched"),
    fault(rotated_key_patch_ignored, "scores", case="patched"),
    fault(scores_patch_ignored, "softmax", case="patched"),
    fault(pattern_patch_ignored, "mix", case="patched"),
    fault(z_patch_ignored, "output", case="patched"),
    fault(output_patch_ignored, "output", "returned", "block_sum", case="patched"),
    fault(pre_activation_patch_ignored, "activation", kinds=_MLP, case="patched"),
    fault(activation_patch_ignored, "mlp_out", kinds=_MLP, case="patched"),
    fault(branch_patch_ignored, "layer_norm", kinds=("block",), case="patched"),
    fault(OneHeadKeepsItsPattern, "mix", case="patched"),
    fault(ReturnsThePatternFromBefore, "returned", case="patched"),
    fault(HeadsProjectTheirNeighbours, *_PROJECTIONS, case="patched"),
)
