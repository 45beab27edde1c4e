"""Hooks that lie, are dead, or do not take part; and what a forward returns."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault


class ShowsHiddenScores(CodeGenAttentionBridge):
    """The hook sees scores of the future; the mask comes afterwards."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self._future = mask
        return super()._scores(query, key, mask.masked_fill(mask == torch.finfo(mask.dtype).min, 0))

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        hidden = self._future == torch.finfo(self._future.dtype).min
        return super()._pattern_of(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), dtype)


class ShowsUnscaledScores(CodeGenAttentionBridge):
    """The hook sees scores before the division."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = mask <= torch.finfo(mask.dtype).min
        unscaled = super()._scores(query, key, mask.masked_fill(hidden, 0)) * self._scale()
        return unscaled.masked_fill(hidden, torch.finfo(unscaled.dtype).min)

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return super()._pattern_of(scores / self._scale(), dtype)

    def _scale(self) -> float:
        return float(self.original_component.scale_attn)


class ShowsPatternUncast(CodeGenAttentionBridge):
    """The hook sees the pattern in float32, and the cast comes afterwards."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return super()._pattern_of(scores, scores.dtype)

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(pattern.to(value.dtype), value)


class ShowsAnotherPattern(CodeGenAttentionBridge):
    """The hook sees a uniform pattern; the real one is used."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self._real = super()._pattern_of(scores, dtype)
        return torch.full_like(self._real, 1 / self._real.shape[-1])

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(self._real, value)


class ShowsRotatedKeysAsQueries(CodeGenAttentionBridge):
    """`hook_rot_q` sees the keys."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._query, key = super()._rotate(query, key, position_ids, position_embeddings)
        return key, key

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(self._query.transpose(1, 2), key, mask)


class ShowsUnrotatedQueries(CodeGenAttentionBridge):
    """`hook_rot_q` sees the queries before the rotation."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._query, key = super()._rotate(query, key, position_ids, position_embeddings)
        return query.to(key.dtype), key

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(self._query.transpose(1, 2), key, mask)


class ShowsHeadsInAnotherOrder(CodeGenAttentionBridge):
    """`hook_pattern` sees the heads in reverse."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return super()._pattern_of(scores, dtype).flip(1)

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(pattern.flip(1), value)


class ShowsFusedInPlainOrder(CodeGenAttentionBridge):
    """`qkv.hook_out` sees q, k and v one behind another, not in the fused weight's order."""

    def _project_fused(self, fused: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden_states = fused.hook_in(hidden_states)
        projections = (self.q, self.k, self.v)
        apart = [projection.original_component(projection.hook_in(hidden_states)) for projection in projections]
        parts = fused.hook_out(torch.cat(apart, -1)).chunk(3, -1)
        return tuple(projection.hook_out(part) for projection, part in zip(projections, parts, strict=True))


class FiresTwice(CodeGenAttentionBridge):
    """`hook_pattern` fires twice in one forward."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(self.hook_pattern(pattern), value)


class RotationHooksDead(CodeGenAttentionBridge):
    """`hook_rot_q` and `hook_rot_k` never fire, as in TransformerLens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_rot_q = self.hook_rot_k = nn.Identity()


class PatternHookDead(CodeGenAttentionBridge):
    """`hook_pattern` never fires."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_pattern = nn.Identity()


class OutputHookDead(CodeGenAttentionBridge):
    """`hook_out` never fires."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook_out = nn.Identity()


class AliasesSwapped(CodeGenAttentionBridge):
    """`hook_q` leads to the values and `hook_v` to the queries."""

    hook_aliases: ClassVar[dict[str, str]] = {
        **CodeGenAttentionBridge.hook_aliases,
        "hook_q": "v.hook_out",
        "hook_v": "q.hook_out",
    }


class ChangesWhatAHookSaw(CodeGenAttentionBridge):
    """Scores are scaled in place after their hook: whoever kept the tensor has another one now."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pattern = super()._pattern_of(scores, dtype)
        scores.mul_(2)
        return pattern


class ChangesItByData(CodeGenAttentionBridge):
    """z is zeroed after its hook through `.data`, which leaves no trace in the version counter."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        output = super()._output(z)
        z.data.zero_()
        return output


class OtherWithoutHooks(CodeGenAttentionBridge):
    """A fast path without hooks that is wrong."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        return super()._output(z) * (1 if self.hook_pattern.fwd_hooks else 2)


class ReturnedWeightsZeroed(CodeGenAttentionBridge):
    """The returned pattern is zeros."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, pattern = super().forward(*args, **kwargs)
        return output, torch.zeros_like(pattern)


class ReturnsAverageWeights(CodeGenAttentionBridge):
    """The returned pattern is the heads' average."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, pattern = super().forward(*args, **kwargs)
        return output, pattern.mean(1, keepdim=True).expand_as(pattern)


class ReturnsOtherOutput(CodeGenAttentionBridge):
    """What is returned is not what `hook_out` saw."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, pattern = super().forward(*args, **kwargs)
        return output + output.abs().max(), pattern


class ReturnsMore(CodeGenAttentionBridge):
    """A tuple of three is returned."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (*super().forward(*args, **kwargs), None)


class WrongShape(CodeGenAttentionBridge):
    """The returned pattern has one head."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, pattern = super().forward(*args, **kwargs)
        return output, pattern[:, :1]


FAULTS = (
    fault(ShowsHiddenScores, "scores"),
    fault(ShowsUnscaledScores, "scores"),
    fault(ShowsPatternUncast, "softmax"),
    fault(ShowsAnotherPattern, "softmax"),
    fault(ShowsRotatedKeysAsQueries, "rope"),
    fault(ShowsUnrotatedQueries, "rope"),
    fault(ShowsHeadsInAnotherOrder, "softmax"),
    fault(ShowsFusedInPlainOrder, "qkv_layout", "project_q", "project_k", "project_v"),
    fault(FiresTwice, "conduct"),
    fault(RotationHooksDead, "rope", "patched"),
    fault(PatternHookDead, "softmax", "patched"),
    fault(OutputHookDead, "output", "patched"),
    fault(AliasesSwapped, "conduct"),
    fault(ChangesWhatAHookSaw, "conduct"),
    fault(ChangesItByData, "conduct"),
    fault(OtherWithoutHooks, "conduct"),
    fault(ReturnedWeightsZeroed, "returned"),
    fault(ReturnsAverageWeights, "returned"),
    fault(ReturnsOtherOutput, "returned", "block_sum"),
    fault(ReturnsMore, "form", "forward"),
    fault(WrongShape, "returned"),
)
