"""Lower precision than the dtype's, where nothing else is wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.entry import fault

TF32_BITS = 13
"""Bits of a float32 mantissa that TF32 drops."""


def through(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x, rounded to another dtype and back."""
    return x.to(dtype).to(x.dtype)


def tf32(x: torch.Tensor) -> torch.Tensor:
    """x as a TF32 product takes it: a float32 loses 13 bits; other dtypes stay as they are."""
    if x.dtype != torch.float32:
        return x
    half, kept = 1 << (TF32_BITS - 1), -(1 << TF32_BITS)
    return x.contiguous().view(torch.int32).add(half).bitwise_and(kept).view(torch.float32)


class Lowered(nn.Module):
    """A Linear whose operands or result are rounded."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class TF32Operands(Lowered):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(tf32(x), tf32(self.linear.weight), self.linear.bias)


class BFloat16Result(Lowered):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return through(self.linear(x), torch.bfloat16)


class BFloat16Input(Lowered):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(through(x, torch.bfloat16))
        return result


class BFloat16Accumulator(Lowered):
    """The two halves of the sum are rounded before they are added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        parts = [nn.functional.linear(x[..., s], self.linear.weight[:, s]) for s in (slice(half), slice(half, None))]
        total = through(parts[0], torch.bfloat16) + through(parts[1], torch.bfloat16)
        return total if self.linear.bias is None else total + self.linear.bias


def _lower(bridge: Any, lowered: type[Lowered], *names: str) -> Any:
    """Put a lowered product in the place of a bridge's Linears."""
    for name in names:
        linear = bridge.blocks[0].get_submodule(name)
        linear._modules["_original_component"] = lowered(linear.original_component)
    return bridge


def projections_in_tf32(bridge: Any) -> Any:
    """Q, K and V have TF32 operands."""
    return _lower(bridge, TF32Operands, "attn.q", "attn.k", "attn.v")


def projections_in_bfloat16(bridge: Any) -> Any:
    """Q, K and V are rounded to bfloat16."""
    return _lower(bridge, BFloat16Result, "attn.q", "attn.k", "attn.v")


def projections_of_rounded_input(bridge: Any) -> Any:
    """Q, K and V are of hidden states that were rounded to bfloat16."""
    return _lower(bridge, BFloat16Input, "attn.q", "attn.k", "attn.v")


def output_in_tf32(bridge: Any) -> Any:
    """`out_proj` has TF32 operands."""
    return _lower(bridge, TF32Operands, "attn.o")


def output_accumulated_in_bfloat16(bridge: Any) -> Any:
    """`out_proj` sums two halves that were rounded to bfloat16."""
    return _lower(bridge, BFloat16Accumulator, "attn.o")


class QueryWeightsInBfloat16(CodeGenAttentionBridge):
    """The rows of Q have been through bfloat16."""

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        weight = self.q.original_component.weight
        weight.data = through(weight.data, torch.bfloat16)


class OutputWeightsInFloat16(CodeGenAttentionBridge):
    """`out_proj`'s weight has lost a bit of float16's."""

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        weight = self.o.original_component.weight
        weight.data = weight.data * (1 + 2.0**-12)


class MixInBfloat16(CodeGenAttentionBridge):
    """Pattern and values are rounded to bfloat16 before they are mixed."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(through(pattern, torch.bfloat16), through(value, torch.bfloat16))


class MixInTF32(CodeGenAttentionBridge):
    """Pattern and values are TF32 operands."""

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return super()._mix(tf32(pattern), tf32(value))


class ScoresInTF32(CodeGenAttentionBridge):
    """q and k are TF32 operands."""

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._scores(tf32(query.to(torch.float32)), tf32(key.to(torch.float32)), mask)


class OutputInBfloat16(CodeGenAttentionBridge):
    """The output has been through bfloat16."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        return through(super()._output(z), torch.bfloat16)


class OutputInFloat32(CodeGenAttentionBridge):
    """Under 32 bits, the output is left in float32."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        return super()._output(z).to(torch.promote_types(z.dtype, torch.float32))


_QKV = ("attn", "attn.q", "attn.k", "attn.v", "block")

FAULTS = (
    fault(projections_in_tf32, "project_q", kinds=("attn", "attn.q", "block")),
    fault(projections_in_bfloat16, "project_q", "project_k", "project_v", kinds=_QKV),
    fault(projections_of_rounded_input, "project_q", "project_k", "project_v", kinds=_QKV),
    fault(output_in_tf32, "output", kinds=("attn", "attn.o", "block")),
    fault(output_accumulated_in_bfloat16, "output", kinds=("attn", "attn.o", "block")),
    fault(QueryWeightsInBfloat16, "project_q", kinds=("attn", "attn.q", "block")),
    fault(OutputWeightsInFloat16, "output", kinds=("attn", "attn.o", "block")),
    fault(MixInBfloat16, "mix"),
    fault(MixInTF32, "mix"),
    fault(ScoresInTF32, "scores"),
    fault(OutputInBfloat16, "output"),
    fault(OutputInFloat32, "output"),
)
