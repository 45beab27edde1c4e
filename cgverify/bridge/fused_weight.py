"""The fused weight that Q, K and V were split from, and whether it has changed since."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn


@dataclass(frozen=True)
class FusedWeight:
    """A weight `[3 * d_model, d_model]` as it was at one moment.

    torch counts a tensor's in-place changes, so an edit or a replacement shows at the cost of two comparisons. An edit
    through `.data` is not counted and cannot be seen.
    """

    owner: nn.Module | None
    weight: torch.Tensor | None
    version: int

    @classmethod
    def of(cls, attention: nn.Module) -> FusedWeight:
        """As it is in a `CodeGenAttention` now, whose `qkv_proj` may be a bridge of the Linear already."""
        projection = cast(nn.Module, attention.qkv_proj)
        owner = cast(nn.Module, projection._modules.get("_original_component", projection))
        weight = owner._parameters["weight"]
        return cls(owner, weight, _version(weight))

    @classmethod
    def absent(cls) -> FusedWeight:
        return cls(None, None, 0)

    @property
    def has_changed(self) -> bool:
        """Whether its owner has another weight, or this one was written to."""
        if self.owner is None or self.weight is None:
            return False
        now = self.owner._parameters["weight"]
        return now is not self.weight or _version(now) != self.version

    def is_left_behind(self, bridge: nn.Module, state_dict: Mapping[str, torch.Tensor], prefix: str) -> bool:
        """Whether an attention bridge that loads a state will have another fused weight than Q, K and V belong to.

        So it is if they are not in the state, and the weight has changed or will: TransformerLens puts the weight that
        is there into every state, which changes nothing.
        """
        split = [bridge.get_submodule(which).named_parameters(prefix + which) for which in "qkv"]
        if all(name in state_dict for parameters in split for name, _ in parameters):
            return False
        every = bridge.named_parameters(prefix.removesuffix("."), remove_duplicate=False)
        given = [state_dict[name] for name, weight in every if weight is self.weight and name in state_dict]
        here = None if self.weight is None else self.weight.data_ptr()
        return self.has_changed or any(tensor.data_ptr() != here for tensor in given)

    def warn_if_changed(self) -> None:
        if self.has_changed:
            warnings.warn(
                "qkv_proj.weight has changed since Q, K and V were split from it, and the change has no effect: call "
                "refresh() on the attention bridge to split it anew, or edit q, k and v themselves.",
                stacklevel=2,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy's weight counts its changes from 0: what is carried over is how many there were since."""
        return _with_changes, (self.owner, self.weight, _version(self.weight) - self.version)

    def drop(self) -> FusedWeight:
        """Free the weight: its owner has none from now on."""
        if self.owner is not None:
            self.owner._parameters["weight"] = None
        return FusedWeight(self.owner, None, 0)


def _with_changes(owner: nn.Module | None, weight: torch.Tensor | None, changes: int) -> FusedWeight:
    return FusedWeight(owner, weight, _version(weight) - changes)


def _version(weight: torch.Tensor | None) -> int:
    """How many in-place changes torch has counted; inference tensors have no counter."""
    return 0 if weight is None or weight.is_inference() else weight._version
