"""What is wrong only where nobody listens, or some do; and hooks that are right only in the plainest forward."""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens.hook_points import HookPoint

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault


class SingleTokenUnheard(CodeGenAttentionBridge):
    """A single token that nobody watches reads the values of its neighbour's head."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        alone = pattern.shape[-2] == 1 < pattern.shape[-1]
        unheard = not self.hook_pattern.fwd_hooks
        return super()._mix(pattern, value.roll(1, 1) if alone and unheard else value)


class DetachedUnheard(CodeGenAttentionBridge):
    """No gradient reaches q and k where nobody watches the scores."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heard = bool(self.hook_attn_scores.fwd_hooks)
        return super()._scores(query, key, mask) if heard else super()._scores(query.detach(), key.detach(), mask)


class AveragedForOneListener(CodeGenAttentionBridge):
    """Who watches the pattern and not the scores is shown, and given, the average of the heads."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pattern = super()._pattern_of(scores, dtype)
        averaged = self.hook_pattern.fwd_hooks and not self.hook_attn_scores.fwd_hooks
        return pattern.mean(1, keepdim=True).expand_as(pattern).contiguous() if averaged else pattern


class PatternsInOneRoom(CodeGenAttentionBridge):
    """Every pattern lies where the one before lay: whoever kept that has another one now."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pattern = super()._pattern_of(scores, dtype)
        if torch.is_grad_enabled():
            return pattern
        room: torch.Tensor | None = self.__dict__.get("_room")
        if room is None or (room.shape, room.dtype) != (pattern.shape, pattern.dtype):
            room = self.__dict__["_room"] = torch.empty_like(pattern)
        room.copy_(pattern)
        return room


class OneRowRotated(CodeGenAttentionBridge):
    """Positions that the batch shares turn its first row alone."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        turned = super()._rotate(query, key, position_ids, position_embeddings)
        if len(position_ids) == len(query):
            return turned
        query, key = (
            torch.cat((first[:1], rest[1:].to(first.dtype))) for first, rest in zip(turned, (query, key), strict=True)
        )
        return query, key


class DeafWithACache(CodeGenAttentionBridge):
    """What hooks of rotated keys return is not what is cached."""

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super()._extend_cache(cache, self._before.to(key.dtype), value)

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        query, key = super()._rotate(query, key, position_ids, position_embeddings)
        self.__dict__["_before"] = key.transpose(1, 2)
        return query, key


class DeafUnderAutograd(CodeGenAttentionBridge):
    """What the hook of the pattern returns is not used while autograd records."""

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pattern = self.__dict__["_before"] = super()._pattern_of(scores, dtype)
        return pattern

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(self._before if torch.is_grad_enabled() else pattern, value)


class CutOffHookPoint(HookPoint):  # type: ignore[misc]
    """Shows a copy that autograd does not know, and passes on what came with its gradient."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shown: torch.Tensor = super().__call__(x.detach())
        return shown + (x - x.detach())


def pattern_cut_off(bridge: Any) -> Any:
    """No gradient arrives at `hook_pattern`."""
    bridge.blocks[0].attn.hook_pattern.__class__ = CutOffHookPoint
    return bridge


FAULTS = (
    fault(SingleTokenUnheard, "conduct", case="decode"),
    fault(DetachedUnheard, "conduct", case="backward"),
    fault(AveragedForOneListener, "conduct", "mix", "returned", case="patched"),
    fault(PatternsInOneRoom, "conduct"),
    fault(OneRowRotated, "rope", case="decode"),
    fault(DeafWithACache, "cache", case="patched"),
    fault(DeafUnderAutograd, "mix", case="patched"),
    fault(pattern_cut_off, "conduct", case="backward"),
)
