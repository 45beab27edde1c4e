"""Seeded faults that one case alone can see, each with that case and the stages to blame there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformer_lens.hook_points import HookPoint

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.cases import patched
from cgverify.components import COMPONENTS

# --- masked_row -------------------------------------------------------------------------------------------------------


class TokensSeeThemselves(CodeGenAttentionBridge):
    """A query that sees nothing is let see its own key, unless it is padding: protection against NaN."""

    def _scores(self, query: Any, key: Any, mask: Any) -> Any:
        lowest = torch.finfo(mask.dtype).min
        blind = (mask == lowest).all(-1, keepdim=True)
        padding = (mask[:, :, -1:] == lowest).transpose(-1, -2)
        if mask.shape[-1] == mask.shape[-2]:
            own = torch.eye(mask.shape[-1], dtype=torch.bool) & blind & ~padding
            mask = mask.masked_fill(own, 0)
        return super()._scores(query, key, mask)


# --- cast_table -------------------------------------------------------------------------------------------------------


class TableOfItsOwn(CodeGenAttentionBridge):
    """The table is kept as it was at boot, where `model.to(dtype)` does not reach it."""

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        object.__setattr__(self, "_kept", original_component.embed_positions.clone())  # type: ignore[operator]

    def _rotate(self, query: Any, key: Any, position_ids: Any) -> Any:
        original: Any = self.original_component
        current = original.embed_positions
        original.embed_positions = self._kept
        try:
            return super()._rotate(query, key, position_ids)
        finally:
            original.embed_positions = current


# --- gated ------------------------------------------------------------------------------------------------------------


class ResultsInReverse(CodeGenAttentionBridge):
    """The sum is right, and each head's result stands in another head's place."""

    def _compute_per_head_result(self, z_4d: Any, n_heads: int, d_head: int) -> Any:
        hook = self._modules["hook_result"]
        object.__setattr__(self, "hook_result", lambda result: hook(result.flip(-2)).flip(-2))
        try:
            return super()._compute_per_head_result(z_4d, n_heads, d_head)
        finally:
            object.__delattr__(self, "hook_result")


class ResultsIgnored(CodeGenAttentionBridge):
    """`use_attn_result` has no effect."""

    def _output(self, z: Any) -> Any:
        original: Any = self.original_component
        return original.resid_dropout(self.o(z))


class CopiesAfterNorm(CodeGenAttentionBridge):
    """In a block, too, the copies are made of what attention is given."""

    def _project(self, hidden_states: Any) -> Any:
        self._captured_pre_ln_residual = None
        return super()._project(hidden_states)


class NormalizedTwice(CodeGenAttentionBridge):
    """ln1 goes over each head's copy once more."""

    def _apply_ln1_per_head(self, x: Any) -> Any:
        return super()._apply_ln1_per_head(super()._apply_ln1_per_head(x))


# --- patched ----------------------------------------------------------------------------------------------------------


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


class OnlyShows(HookPoint):  # type: ignore[misc]
    """A hook whose return value goes nowhere."""

    def __call__(self, tensor: Any) -> Any:
        super().__call__(tensor)
        return tensor


def deaf(path: str) -> Any:
    """A function that makes one hook of a booted bridge only show."""

    def change(bridge: Any) -> Any:
        bridge.get_submodule(path).__class__ = OnlyShows
        return bridge

    return change


# A candidate is named by where it can be imported from: `case_faults:DEAF_hook_q` and so on.
DEAF = {
    kind: {tap: f"DEAF_{kind}_{tap.replace('.', '_')}" for tap in patched.hooks(COMPONENTS[kind])}
    for kind in ("attn", "mlp", "block")
}
"""By kind of component and tap: the name of the candidate whose hook there only shows."""

for kind, names in DEAF.items():
    for tap, name in names.items():
        component = COMPONENTS[kind]
        globals()[name] = deaf(f"{component.bridge_path}.{component.hook_path(tap)}")


# --- train ------------------------------------------------------------------------------------------------------------


class NoResidualDropout(CodeGenAttentionBridge):
    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        original_component.resid_dropout = nn.Identity()


class KeptValuesUnscaled(CodeGenAttentionBridge):
    def _apply_attn_dropout(self, attn_weights: Any) -> Any:
        dropped = super()._apply_attn_dropout(attn_weights)
        return dropped * 0.9 if self.training else dropped


class ScaledByOneAndP(CodeGenAttentionBridge):
    """1 + p for 1 / (1 − p), one part in a hundred off."""

    def _apply_attn_dropout(self, attn_weights: Any) -> Any:
        dropped = super()._apply_attn_dropout(attn_weights)
        return dropped * 0.99 if self.training else dropped


class DrawsOnceMore(CodeGenAttentionBridge):
    """Something else takes numbers from the random state first."""

    def _pattern_of(self, scores: Any, dtype: Any) -> Any:
        torch.rand(1)
        return super()._pattern_of(scores, dtype)


class DropsFromValuesToo(CodeGenAttentionBridge):
    def _mix(self, pattern: Any, value: Any) -> Any:
        return super()._mix(pattern, functional.dropout(value, 0.1, self.training))


_PROJECTIONS = {"project_q", "project_k", "project_v"}

FAULTS: dict[type, dict[tuple[str, str], set[str]]] = {
    TokensSeeThemselves: {("masked_row", "attn"): {"scores"}, ("masked_row", "block"): {"scores"}},
    TableOfItsOwn: {("cast_table", "attn"): {"rope"}, ("cast_table", "block"): {"rope"}},
    ResultsInReverse: {("gated", "attn"): {"result"}, ("gated", "block"): {"result"}},
    ResultsIgnored: {
        ("gated", "attn"): {"result"},
        ("gated", "block"): {"result"},
        ("patched", "attn"): {"patched"},
        ("patched", "block"): {"patched"},
    },
    CopiesAfterNorm: {("gated", "block"): {"fork"}, ("patched", "block"): {"fork", *_PROJECTIONS}},
    NormalizedTwice: {("gated", "block"): _PROJECTIONS, ("patched", "block"): _PROJECTIONS},
    HeadsProjectTheirNeighbours: {("patched", "attn"): _PROJECTIONS, ("patched", "block"): _PROJECTIONS},
    OneHeadKeepsItsPattern: {("patched", "attn"): {"mix"}},
    ReturnsThePatternFromBefore: {("patched", "attn"): {"returned"}},
    NoResidualDropout: {("train", "attn"): {"resid_dropout"}, ("train", "block"): {"resid_dropout"}},
    KeptValuesUnscaled: {("train", "attn"): {"attn_dropout"}, ("train", "block"): {"attn_dropout"}},
    ScaledByOneAndP: {("train", "attn"): {"attn_dropout"}, ("train", "block"): {"attn_dropout"}},
    DrawsOnceMore: {
        ("train", "attn"): {"attn_dropout", "resid_dropout"},
        ("train", "block"): {"attn_dropout", "resid_dropout"},
    },
    DropsFromValuesToo: {
        ("train", "attn"): {"mix", "resid_dropout"},
        ("train", "block"): {"mix", "resid_dropout"},
    },
}
"""By case and kind of component: the stages that must be blamed there. Nothing else may fail, in any case."""
