"""What goes wrong only in another setting: a cast table, a row that sees nothing, flags."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault
from cgverify.selftest.seeded.rotation import Rotation


class TableAlwaysFloat32(Rotation):
    """A table that was cast with the model is cast up again before the rotation."""

    def _table(self) -> torch.Tensor:
        table = super()._table()
        return table.to(torch.promote_types(table.dtype, torch.float32))


class MaskedRowZeroed(CodeGenAttentionBridge):
    """A query that sees nothing attends to nothing, where Hugging Face's attends to all alike."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pattern = super()._pattern_of(scores, dtype)
        hidden = scores <= torch.finfo(dtype).min / scores.shape[-1]
        return pattern.masked_fill(hidden.all(-1, keepdim=True), 0)


class MaskedRowNotANumber(CodeGenAttentionBridge):
    """What is hidden scores −∞, so that a query that sees nothing is NaN."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        hidden = scores <= torch.finfo(dtype).min / scores.shape[-1]
        return super()._pattern_of(scores.masked_fill(hidden, -torch.inf), dtype)


class ResultsIgnored(CodeGenAttentionBridge):
    """`use_attn_result` does nothing, as in TransformerLens."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.original_component.resid_dropout(self.o(z))
        return projected


class SplitInputFlagIgnored(CodeGenAttentionBridge):
    """`use_split_qkv_input` and `use_attn_in` do nothing, as in TransformerLens."""

    def _is_split_qkv_fork_active(self) -> bool:
        return False


class TokensSeeThemselves(CodeGenAttentionBridge):
    """A query that sees nothing is let see its own key, unless it is padding: protection against NaN."""

    def _scores(self, query: Any, key: Any, mask: Any) -> Any:
        lowest = torch.finfo(mask.dtype).min
        blind = (mask == lowest).all(-1, keepdim=True)
        padding = (mask[:, :, -1:] == lowest).transpose(-1, -2)
        if mask.shape[-1] == mask.shape[-2]:
            own = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device) & blind & ~padding
            mask = mask.masked_fill(own, 0)
        return super()._scores(query, key, mask)


class TableOfItsOwn(CodeGenAttentionBridge):
    """The table is kept as it was at boot, where `model.to(dtype)` does not reach it."""

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        table: Any = original_component.embed_positions
        object.__setattr__(self, "_kept", table.clone())

    def _rotate(self, query: Any, key: Any, position_ids: Any, position_embeddings: Any = None) -> Any:
        original: Any = self.original_component
        current = original.embed_positions
        original.embed_positions = self._kept
        try:
            return super()._rotate(query, key, position_ids, position_embeddings)
        finally:
            original.embed_positions = current


class ResultsInReverse(CodeGenAttentionBridge):
    """The sum is right, and each head's result stands in another head's place."""

    def _compute_per_head_result(self, z_4d: Any, n_heads: int, d_head: int) -> Any:
        hook = self._modules["hook_result"]
        object.__setattr__(self, "hook_result", lambda result: hook(result.flip(-2)).flip(-2))
        try:
            return super()._compute_per_head_result(z_4d, n_heads, d_head)
        finally:
            object.__delattr__(self, "hook_result")


class CopiesAfterNorm(CodeGenAttentionBridge):
    """In a block, too, the copies are made of what attention is given."""

    def _project(self, hidden_states: Any) -> Any:
        self._captured_pre_ln_residual = None
        return super()._project(hidden_states)


class NormalizedTwice(CodeGenAttentionBridge):
    """ln1 goes over each head's copy once more."""

    def _apply_ln1_per_head(self, x: Any) -> Any:
        return super()._apply_ln1_per_head(super()._apply_ln1_per_head(x))


class DoublingHookPoint(HookPoint):  # type: ignore[misc]
    """Shows twice what it was given, and halves what comes back."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        halved: torch.Tensor = super().__call__(x * 2) / 2
        return halved


def branch_shown_doubled(bridge: Any) -> Any:
    """`hook_mlp_in` sees twice the residual."""
    bridge.blocks[0].hook_mlp_in.__class__ = DoublingHookPoint
    return bridge


_PROJECTIONS = ("project_q", "project_k", "project_v")

FAULTS = (
    fault(TableAlwaysFloat32, "rope", case="cast_table"),
    fault(MaskedRowZeroed, "softmax", case="masked_row"),
    fault(MaskedRowNotANumber, "softmax", case="masked_row"),
    fault(ResultsIgnored, "result", "patched", case="gated"),
    fault(SplitInputFlagIgnored, "fork", "patched", case="gated"),
    fault(TokensSeeThemselves, "scores", case="masked_row"),
    fault(TableOfItsOwn, "rope", case="cast_table"),
    fault(ResultsInReverse, "result", case="gated"),
    fault(CopiesAfterNorm, "fork", *_PROJECTIONS, kinds=("block",), case="gated"),
    fault(NormalizedTwice, *_PROJECTIONS, kinds=("block",), case="gated"),
    fault(branch_shown_doubled, "fork", "layer_norm", kinds=("block",), case="gated"),
)
