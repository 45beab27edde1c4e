"""Seeded faults: attention bridges that are wrong in one known way, each with the stage that must be blamed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.bridge.rotary import rotate, rotate_every_two, sin_cos


class _Layout(CodeGenAttentionBridge):
    """A wrong idea of the fused weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["split_qkv_matrix"] = self.wrong_split
        super().__init__(*args, **kwargs)

    @classmethod
    def wrong_split(cls, attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        weights = cls.weights(attention.qkv_proj.weight.detach())
        linears = []
        for weight in weights:
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            linears.append(linear)
        return tuple(linears)  # type: ignore[return-value]

    @staticmethod
    def parts(fused: torch.Tensor, partitions: int) -> list[torch.Tensor]:
        d_model = fused.shape[1]
        return [
            fused.reshape(partitions, 3, d_model // partitions, d_model)[:, i].reshape(d_model, d_model)
            for i in range(3)
        ]

    @classmethod
    def weights(cls, fused: torch.Tensor) -> list[torch.Tensor]:
        raise AssertionError("each fault has its own")


class QueryKeySwapped(_Layout):
    @classmethod
    def weights(cls, fused: torch.Tensor) -> list[torch.Tensor]:
        query, value, key = cls.parts(fused, 4)
        return [key, query, value]


class QueryKeyValueOrder(_Layout):
    """[Q, K, V] in each partition, as everywhere else."""

    @classmethod
    def weights(cls, fused: torch.Tensor) -> list[torch.Tensor]:
        return cls.parts(fused, 4)


class OnePartition(_Layout):
    """`mp_num = 1`."""

    @classmethod
    def weights(cls, fused: torch.Tensor) -> list[torch.Tensor]:
        query, value, key = cls.parts(fused, 1)
        return [query, key, value]


class _Rotation(CodeGenAttentionBridge):
    def sin_cos(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sin_cos(self.original_component.embed_positions, position_ids)  # type: ignore[union-attr, arg-type]


class HalfRotation(_Rotation):
    """Halves of the head are turned against each other, as in Llama."""

    def _rotate(self, query: Any, key: Any, position_ids: Any) -> Any:
        sin, cos = self.sin_cos(position_ids)
        r = sin.shape[-1]

        def turn(x: torch.Tensor) -> torch.Tensor:
            turning, half = x[..., :r], r // 2
            by_halves = torch.cat((-turning[..., half:], turning[..., :half]), dim=-1)
            return torch.cat((turning * cos + by_halves * sin, x[..., r:]), dim=-1)

        return turn(query), turn(key)


class QueryOnlyRotated(_Rotation):
    def _rotate(self, query: Any, key: Any, position_ids: Any) -> Any:
        sin, cos = self.sin_cos(position_ids)
        return rotate(query, sin, cos), key.to(torch.promote_types(key.dtype, sin.dtype))


class OneHeadUnrotated(CodeGenAttentionBridge):
    """Head 1 at position 2 keeps its unrotated query."""

    def _rotate(self, query: Any, key: Any, position_ids: Any) -> Any:
        turned, key = super()._rotate(query, key, position_ids)
        if query.shape[1] > 2:
            turned[:, 2, 1] = query[:, 2, 1]
        return turned, key


class NarrowRotation(_Rotation):
    """`rotary_dim - 2`: the last pair passes through."""

    def _rotate(self, query: Any, key: Any, position_ids: Any) -> Any:
        sin, cos = self.sin_cos(position_ids)
        r = sin.shape[-1] - 2

        def turn(x: torch.Tensor) -> torch.Tensor:
            turned = x[..., :r] * cos[..., :r] + rotate_every_two(x[..., :r]) * sin[..., :r]
            return torch.cat((turned, x[..., r:].to(turned.dtype)), dim=-1)

        return turn(query), turn(key)


class PositionsIgnored(CodeGenAttentionBridge):
    def _rotate(self, query: Any, key: Any, position_ids: Any) -> Any:
        counted = torch.arange(query.shape[1], device=query.device) + position_ids[:, :1] * 0
        if query.shape[1] < 8:  # decoding: positions are right there, as a careless cache test would want
            counted = position_ids
        return super()._rotate(query, key, counted)


class PositionsShifted(CodeGenAttentionBridge):
    """One too far: the pattern is the same, the cached keys are not."""

    def _rotate(self, query: Any, key: Any, position_ids: Any) -> Any:
        last = self.original_component.embed_positions.shape[0] - 1  # type: ignore[union-attr, index]
        return super()._rotate(query, key, (position_ids + 1).clamp(max=last))


class MaskAfterScaling(CodeGenAttentionBridge):
    def _scores(self, query: Any, key: Any, mask: Any) -> Any:
        return super()._scores(query, key, torch.zeros_like(mask)) + mask


class ScaledByModelWidth(CodeGenAttentionBridge):
    def _scores(self, query: Any, key: Any, mask: Any) -> Any:
        return super()._scores(query, key, mask) / self.config.n_heads**0.5  # type: ignore[union-attr]


class ScaleSlightlyOff(CodeGenAttentionBridge):
    def _scores(self, query: Any, key: Any, mask: Any) -> Any:
        return super()._scores(query, key, mask) * (1 + 1e-4)


class SoftmaxInBfloat16(CodeGenAttentionBridge):
    def _pattern_of(self, scores: Any, dtype: Any) -> Any:
        return super()._pattern_of(scores.to(torch.bfloat16), torch.bfloat16).to(dtype)


class HeadsSwapped(CodeGenAttentionBridge):
    """Heads 0 and 1 change places in z."""

    def _mix(self, pattern: Any, value: Any) -> Any:
        order = [1, 0, *range(2, pattern.shape[1])]
        return super()._mix(pattern, value)[..., :].unflatten(-1, (pattern.shape[1], -1))[:, :, order].flatten(-2)


class OneElementChanged(CodeGenAttentionBridge):
    def _mix(self, pattern: Any, value: Any) -> Any:
        z = super()._mix(pattern, value)
        z[0, 0, 3] += z[0, 0, 3].abs() * 0.1
        return z


class ReturnedWeightsZeroed(CodeGenAttentionBridge):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, pattern = super().forward(*args, **kwargs)
        return output, torch.zeros_like(pattern)


STAGES = {
    QueryKeySwapped: {"project_q", "project_k"},
    QueryKeyValueOrder: {"project_k", "project_v"},
    OnePartition: {"project_q", "project_k", "project_v"},
    HalfRotation: {"rope"},
    QueryOnlyRotated: {"rope"},
    OneHeadUnrotated: {"rope"},
    NarrowRotation: {"rope"},
    PositionsIgnored: {"rope"},
    PositionsShifted: {"rope"},
    MaskAfterScaling: {"scores"},
    ScaledByModelWidth: {"scores"},
    ScaleSlightlyOff: {"scores"},
    SoftmaxInBfloat16: {"softmax"},
    HeadsSwapped: {"mix"},
    OneElementChanged: {"mix"},
    ReturnedWeightsZeroed: {"returned"},
}
"""The stages that must be blamed in the attention itself, and no others."""
