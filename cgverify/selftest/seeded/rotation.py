"""Wrong rotations of q and k."""

from __future__ import annotations

from typing import Any

import torch

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.bridge.rotary import rotate, rotate_every_two, sin_cos
from cgverify.selftest.entry import fault

Pair = tuple[torch.Tensor, torch.Tensor]


class Rotation(CodeGenAttentionBridge):
    """A bridge that turns q and k by `turn`."""

    def _table(self) -> torch.Tensor:
        table: torch.Tensor = self.original_component.embed_positions
        return table

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        sin, cos = sin_cos(self._table(), position_ids)
        return self.turn(query, sin, cos), self.turn(key, sin, cos)

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return rotate(x, sin, cos)


class HalfRotation(Rotation):
    """Halves of the head are turned against each other, as in Llama."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        width = sin.shape[-1]
        turning, half = x[..., :width], width // 2
        by_halves = torch.cat((-turning[..., half:], turning[..., :half]), dim=-1)
        return torch.cat((turning * cos + by_halves * sin, x[..., width:]), dim=-1)


class QueryOnlyRotated(Rotation):
    """Keys pass through."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        query, turned = super()._rotate(query, key, position_ids, position_embeddings)
        return query, key.to(turned.dtype)


class KeyOnlyRotated(Rotation):
    """Queries pass through."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        turned, key = super()._rotate(query, key, position_ids, position_embeddings)
        return query.to(turned.dtype), key


class OneHeadUnrotated(CodeGenAttentionBridge):
    """Head 1 at position 2 keeps its unrotated query."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        turned, key = super()._rotate(query, key, position_ids, position_embeddings)
        if query.shape[1] > 2:
            turned[:, 2, 1] = query[:, 2, 1]
        return turned, key


class NarrowRotation(Rotation):
    """`rotary_dim - 2`: the last pair passes through."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return rotate(x, sin[..., :-2], cos[..., :-2])


class WideRotation(Rotation):
    """`rotary_dim + 2`: one more pair turns, as fast as the last."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return rotate(x, torch.cat((sin, sin[..., -2:]), -1), torch.cat((cos, cos[..., -2:]), -1))


class LastDimensionsRotated(Rotation):
    """The last `rotary_dim` dimensions of a head turn instead of the first."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        passing = x.shape[-1] - sin.shape[-1]
        return torch.cat((x[..., :passing], rotate(x[..., passing:], sin, cos)), -1)


class SineNegated(Rotation):
    """Pairs turn the other way round."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return rotate(x, -sin, cos)


class SineCosineExchanged(Rotation):
    """A table row is read as cosines before sines."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return rotate(x, cos, sin)


class RotatedTwice(Rotation):
    """Everything turns by twice its angle."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return rotate(rotate(x, sin, cos), sin, cos)


class FrequenciesNotRepeated(Rotation):
    """Angles stand one after the other twice over, not each twice in a row."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        sin, cos = sin[..., ::2], cos[..., ::2]
        return rotate(x, torch.cat((sin, sin), -1), torch.cat((cos, cos), -1))


class RotationWithoutSine(Rotation):
    """Only the cosine part is left in one head."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        turned = rotate(x, sin, cos)
        width = sin.shape[-1]
        turned[:, :, -1:, :width] = x[:, :, -1:, :width] * cos
        return turned


class SineSlightlyOff(Rotation):
    """Sines of a frequency that is 10⁻⁵ too large, as with another base."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return rotate(x, sin * (1 + 1e-5), cos)


class PositionsIgnored(CodeGenAttentionBridge):
    """Positions are counted, but for short sequences: decoding is as a careless cache test wants it."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        counted = torch.arange(query.shape[1], device=query.device) + position_ids[:, :1] * 0
        return super()._rotate(query, key, position_ids if query.shape[1] < 8 else counted)


class PositionsOfFirstRow(CodeGenAttentionBridge):
    """Every row of a batch has the positions of the first."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        return super()._rotate(query, key, position_ids[:1])


class PositionOffset(Rotation):
    """Positions are too large by `offset`: the scores are the same, the cached keys are not."""

    offset = 0

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        last = self._table().shape[0] - 1
        return super()._rotate(query, key, (position_ids + self.offset).clamp(0, last))


class PositionsShifted(PositionOffset):
    """One too far."""

    offset = 1


class PositionsShiftedBack(PositionOffset):
    """One too few."""

    offset = -1


class PositionsShiftedByMany(PositionOffset):
    """A prefix of twenty tokens too far."""

    offset = 20


class KeysShifted(Rotation):
    """Keys stand one position behind their queries."""

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor, position_embeddings: Any = None
    ) -> Pair:
        query, _ = super()._rotate(query, key, position_ids, position_embeddings)
        return query, super()._rotate(key, key, (position_ids - 1).clamp(min=0))[0]


class RotationInBfloat16(Rotation):
    """q, k, sine and cosine are rounded to bfloat16 first."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        half = torch.bfloat16
        with torch.autocast(x.device.type, enabled=False):  # to float16 it would not have bfloat16 beside it
            return rotate(x.to(half), sin.to(half), cos.to(half)).to(torch.promote_types(x.dtype, sin.dtype))


class RotationInModelDtype(Rotation):
    """Sine and cosine are cast to the hidden states' dtype, and the result is cast up."""

    def turn(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return rotate(x, sin.to(x.dtype), cos.to(x.dtype)).to(torch.promote_types(x.dtype, sin.dtype))


class TableInBfloat16(Rotation):
    """The sin/cos table has been through bfloat16."""

    def _table(self) -> torch.Tensor:
        table = super()._table()
        return table.to(torch.bfloat16).to(table.dtype)


class TableInFloat16(Rotation):
    """The sin/cos table has been through float16."""

    def _table(self) -> torch.Tensor:
        table = super()._table()
        return table.to(torch.float16).to(table.dtype)


class LastTableRowMissing(Rotation):
    """The last position has the row of the one before it."""

    def _table(self) -> torch.Tensor:
        table = super()._table()
        return torch.cat((table[:-1], table[-2:-1]))


class ValuesRotated(Rotation):
    """Values turn with the keys."""

    def _project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = super()._project(hidden_states)
        turned = value.clone()
        turned[..., : self._table().shape[1]] = rotate_every_two(value[..., : self._table().shape[1]])
        return query, key, turned


FAULTS = (
    *(
        fault(candidate, "rope")
        for candidate in (
            *(HalfRotation, QueryOnlyRotated, KeyOnlyRotated, OneHeadUnrotated, NarrowRotation, WideRotation),
            *(LastDimensionsRotated, SineNegated, SineCosineExchanged, RotatedTwice, FrequenciesNotRepeated),
            *(RotationWithoutSine, SineSlightlyOff, PositionsShifted, PositionsShiftedBack, PositionsShiftedByMany),
            *(KeysShifted, RotationInBfloat16, RotationInModelDtype, TableInBfloat16, TableInFloat16),
        )
    ),
    *(fault(candidate, "rope", case="stress") for candidate in (PositionsIgnored, PositionsOfFirstRow)),
    fault(LastTableRowMissing, "rope", case="stress"),
    fault(ValuesRotated, "mix", "cache"),
)
