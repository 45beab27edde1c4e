"""What a candidate does beside its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault


class ChangesItsInput(CodeGenAttentionBridge):
    """The hidden states are changed in place after use."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        returned = super().forward(hidden_states, *args, **kwargs)
        hidden_states += 1
        return returned


class ChangesTheMask(CodeGenAttentionBridge):
    """The mask is scaled in place."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = super()._scores(query, key, mask)
        mask.div_(2)
        return scores


class ChangesSettings(CodeGenAttentionBridge):
    """torch's matmul precision is lowered for the whole process."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        torch.set_float32_matmul_precision("medium")
        return super()._mix(pattern, value)


class Raises(CodeGenAttentionBridge):
    """The forward raises."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no mixing today")


class RaisesOnSingleTokens(CodeGenAttentionBridge):
    """The forward raises where there is one query."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if pattern.shape[2] == 1:
            raise IndexError("one token is no sequence")
        return super()._mix(pattern, value)


class Exits(CodeGenAttentionBridge):
    """The forward ends the process."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise SystemExit(0)


class CannotBoot(CodeGenAttentionBridge):
    """The module cannot be wrapped."""

    def set_original_component(self, original_component: nn.Module) -> None:
        raise RuntimeError("not this module")


class NoInputs(CodeGenAttentionBridge):
    """`get_random_inputs` raises."""

    def get_random_inputs(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("nothing to give")


class OwnExam(CodeGenAttentionBridge):
    """`get_random_inputs` gives one row and one token."""

    def get_random_inputs(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor[:1, :1] for name, tensor in super().get_random_inputs(*args, **kwargs).items()}


FAULTS = (
    fault(ChangesItsInput, "conduct", "input"),
    fault(ChangesTheMask, "conduct"),
    fault(ChangesSettings, "conduct"),
    fault(Raises, "forward"),
    fault(RaisesOnSingleTokens, "forward", case="decode"),
    fault(Exits, "forward"),
    fault(CannotBoot, "boot"),
    fault(NoInputs, "get_random_inputs", kinds=("attn",)),
    fault(OwnExam, "get_random_inputs", kinds=("attn",)),
)
