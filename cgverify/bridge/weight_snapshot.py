"""Notice that the fused weight has changed since Q, K and V were split from it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cgverify.bridge.fused_projection import can_be_split, fused_projection


@dataclass(frozen=True)
class FusedWeightSnapshot:
    """The fused weight `[3 * d_model, d_model]` at the moment when Q, K and V belonged to it.

    torch counts in-place changes of a tensor, so noticing an edit or a replacement costs two comparisons. An edit
    through `.data` is not counted and cannot be noticed.
    """

    owner: nn.Module | None = None
    weight: Tensor | None = None
    version: int = 0

    @classmethod
    def of(cls, attention: nn.Module) -> FusedWeightSnapshot:
        """Return a snapshot of a `CodeGenAttention`; an empty one if its projection is used whole."""
        owner = fused_projection(attention)
        if not can_be_split(owner):
            return cls()
        weight = owner._parameters["weight"]
        return cls(owner, weight, _version(weight))

    @property
    def has_changed(self) -> bool:
        """Whether the weight was written to or its owner now has another one."""
        if self.owner is None or self.weight is None:
            return False
        if torch.compiler.is_compiling():  # it traces with placeholders of the weights
            return False
        now = self.owner._parameters.get("weight")  # None if it has a parametrization by now
        return now is not self.weight or _version(now) != self.version

    def is_outdated_by(self, bridge: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Return whether Q, K and V no longer belong to the fused weight after an attention bridge has loaded a state.

        They do not if the state lacks some of them, and the fused weight has changed or the state has another one.
        TransformerLens puts the present fused weight into every state, which changes nothing.
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
                "refresh() on the attention bridge to split it again, or edit q, k and v themselves.",
                stacklevel=2,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Carry over how many changes there were since: the weight of a copy counts its own changes from 0."""
        return _with_changes, (self.owner, self.weight, _version(self.weight) - self.version)


def _with_changes(owner: nn.Module | None, weight: Tensor | None, changes: int) -> FusedWeightSnapshot:
    return FusedWeightSnapshot(owner, weight, _version(weight) - changes)


def _version(weight: Tensor | None) -> int:
    """Return how many in-place changes torch has counted. Inference tensors have no counter."""
    return 0 if weight is None or weight.is_inference() else weight._version
