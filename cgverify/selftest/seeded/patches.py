"""Hooks whose return value is not used, or used in part. Only `patched` sees that."""

from __future__ import annotations

import torch

from cgverify.selftest.candidates import ATTENTION, Fault, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import attention, deaf, keep

PROJECTIONS = ("project_q", "project_k", "project_v")
_MLP = ("mlp", "block")

_HOOKS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "embedding_patch_ignored": ("embed.hook_out", ("embed",), ("returned",)),
    "final_norm_patch_ignored": ("ln_final.hook_in", ("ln_final",), ("scale", "normalized", "layer_norm")),
    "unembedding_patch_ignored": ("unembed.hook_in", ("unembed",), ("unembed",)),
    "attention_input_patch_ignored": ("attn.hook_in", ATTENTION, ("project_q", "input")),
    "fused_input_patch_ignored": ("attn.qkv.hook_in", ATTENTION, ("input", *PROJECTIONS)),
    "fused_patch_ignored": ("attn.qkv.hook_out", ATTENTION, PROJECTIONS),
    "query_patch_ignored": ("attn.q.hook_out", ATTENTION, ("rope",)),
    "key_patch_ignored": ("attn.k.hook_out", ATTENTION, ("rope",)),
    "value_patch_ignored": ("attn.v.hook_out", ATTENTION, ("mix",)),
    "rotated_query_patch_ignored": ("attn.hook_rot_q", ATTENTION, ("scores",)),
    "rotated_key_patch_ignored": ("attn.hook_rot_k", ATTENTION, ("scores",)),
    "scores_patch_ignored": ("attn.hook_attn_scores", ATTENTION, ("softmax",)),
    "pattern_patch_ignored": ("attn.hook_pattern", ATTENTION, ("mix",)),
    "z_patch_ignored": ("attn.o.hook_in", ATTENTION, ("output",)),
    "output_patch_ignored": ("attn.hook_out", ATTENTION, ("output", "returned", "block_sum")),
    "pre_activation_patch_ignored": ("mlp.in.hook_out", _MLP, ("activation",)),
    "activation_patch_ignored": ("mlp.out.hook_in", _MLP, ("mlp_out",)),
    "branch_patch_ignored": ("hook_mlp_in", ("block",), ("layer_norm",)),
}
"""For each fault: the hook whose return value it ignores, the kinds of component, and the stages to blame."""


def _ignored(name: str) -> list[Fault]:
    hook, kinds, stages = _HOOKS[name]
    path = hook if hook.startswith(("embed", "ln_final", "unembed")) else f"blocks.0.{hook}"
    row: Rows = {name: (f"What `{hook}` returns is not used.", path)}
    return named_faults(__name__, row, *stages, seed=deaf, kinds=kinds, case="patched")


_MIXED: Rows = {
    "OneHeadKeepsItsPattern": (
        "Head 0 mixes by the pattern that the hook was shown; the others, by the one that it returned.",
        attention(
            _pattern_of=keep,
            _mix=lambda bridge, mix, pattern, value: mix(torch.cat((bridge.kept[:, :1], pattern[:, 1:]), dim=1), value),
        ),
    ),
}
_RETURNED: Rows = {
    "ReturnsThePatternFromBefore": (
        "z is mixed by the pattern that the hook returned; the forward returns the one that it was shown.",
        attention(
            _pattern_of=keep,
            forward=lambda bridge, forward, *args, **kwargs: (forward(*args, **kwargs)[0], bridge.kept),
        ),
    ),
}
_PROJECTED: Rows = {
    "HeadsProjectTheirNeighbours": (
        "Each head reads the input of the next one, which is equal until a hook changes one of them.",
        attention(
            _project_per_head_qkv=lambda _, project, bridge, inputs, heads, head_dim: project(
                bridge, inputs.roll(1, 2), heads, head_dim
            )
        ),
    ),
}

FAULTS = (
    *(fault for name in _HOOKS for fault in _ignored(name)),
    *named_faults(__name__, _MIXED, "mix", case="patched"),
    *named_faults(__name__, _RETURNED, "returned", case="patched"),
    *named_faults(__name__, _PROJECTED, *PROJECTIONS, case="patched"),
)
__getattr__ = by_name(FAULTS)
