"""What goes wrong only in another setting: a cast table, a row that sees nothing, flags, autocast."""

from __future__ import annotations

import torch

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


class ResultFlagIgnored(CodeGenAttentionBridge):
    """`use_attn_result` does nothing, as in TransformerLens."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.original_component.resid_dropout(self.o(z))
        return projected


class ResultOfAnotherHead(CodeGenAttentionBridge):
    """`hook_result` sees the heads one place further; the sum is the same."""

    def _compute_per_head_result(self, z_4d: torch.Tensor, n_heads: int, d_head: int) -> torch.Tensor:
        weight = self.o.original_component.weight.unflatten(-1, (n_heads, d_head))
        per_head = torch.einsum("bshd,mhd->bshm", z_4d, weight).roll(1, 2)
        summed: torch.Tensor = self.o.hook_out(self.hook_result(per_head).sum(2))
        return summed


class SplitInputFlagIgnored(CodeGenAttentionBridge):
    """`use_split_qkv_input` and `use_attn_in` do nothing, as in TransformerLens."""

    def _is_split_qkv_fork_active(self) -> bool:
        return False


class ScoresOutsideAutocast(CodeGenAttentionBridge):
    """The product of the scores stays in float32 under autocast."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast(query.device.type, enabled=False):
            return super()._scores(query, key, mask)


FAULTS = (
    fault(TableAlwaysFloat32, "rope", case="cast_table"),
    fault(MaskedRowZeroed, "softmax", case="masked_row"),
    fault(MaskedRowNotANumber, "softmax", case="masked_row"),
    fault(ResultFlagIgnored, "result", "output", case="gated"),
    fault(ResultOfAnotherHead, "result", "output", case="gated"),
    fault(SplitInputFlagIgnored, "split_input", "input", case="gated"),
    fault(ScoresOutsideAutocast, "scores", case="autocast"),
)
