"""The fused weight that Q, K and V were split from, and whether it has changed since."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn


@dataclass(frozen=True)
class FusedWeight:
    """A weight `[3 * d_model, d_model]` as it was at one moment.

    torch counts a tensor's in-place changes, so an edit or a replacement shows at the cost of two comparisons. An edit
    through `.data` is not counted and cannot be seen.
    """

    weight: torch.Tensor | None
    version: int = 0

    @classmethod
    def of(cls, attention: nn.Module) -> FusedWeight:
        """As it is in a `CodeGenAttention` now."""
        weight = cast(torch.Tensor | None, cast(nn.Linear, attention.qkv_proj).weight)
        return cls(weight, _version(weight))

    def has_changed_in(self, attention: nn.Module) -> bool:
        """Whether an attention's fused weight is no longer this one."""
        if self.weight is None:
            return False
        now = cast(torch.Tensor | None, cast(nn.Linear, attention.qkv_proj).weight)
        return now is not self.weight or _version(now) != self.version

    def warn_if_changed(self, attention: nn.Module) -> None:
        if self.has_changed_in(attention):
            warnings.warn(
                "qkv_proj.weight has changed since Q, K and V were split from it, and the change has no effect: call "
                "refresh() on the attention bridge to split it anew, or edit q, k and v themselves.",
                stacklevel=2,
            )


def _version(weight: torch.Tensor | None) -> int:
    """How many in-place changes torch has counted; inference tensors have no counter."""
    return 0 if weight is None or weight.is_inference() else weight._version
