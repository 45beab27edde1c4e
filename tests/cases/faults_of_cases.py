"""Attention bridges and functions that are wrong only where one case looks, each with the case and stage to blame."""

from __future__ import annotations

from typing import Any

import torch

from cgverify.bridge import CodeGenAttentionBridge


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


class TableOfItsOwn(CodeGenAttentionBridge):
    """The table is kept as it was at boot, outside the module's buffers: `model.to(dtype)` does not reach it."""

    def set_original_component(self, original_component: torch.nn.Module) -> None:
        super().set_original_component(original_component)
        object.__setattr__(self, "_kept", original_component.embed_positions.clone())

    def _rotate(self, query: Any, key: Any, position_ids: Any) -> Any:
        original: Any = self.original_component
        current = original.embed_positions
        original.embed_positions = self._kept
        try:
            return super()._rotate(query, key, position_ids)
        finally:
            original.embed_positions = current
