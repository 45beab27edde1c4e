"""q and k that are not rotated, or rotated in another way, by other angles or from other positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cgverify.observe.generations import installed
from cgverify.observe.stages import rotated_heads
from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, exact_input, gamma
from cgverify.oracle.rope import rope
from cgverify.verification.diagnosis.mismatch import Mismatch
from cgverify.verification.diagnosis.precision import LOWER


@dataclass(frozen=True)
class _Rotation:
    """The operands of one rotation of q or k."""

    x: torch.Tensor
    """The heads before the rotation, `[batch, seq, heads, head_dim]`."""
    table: torch.Tensor
    """`[positions, rotary_dim]`, sines before cosines."""
    positions: torch.Tensor
    """`[batch or 1, seq]`."""

    @property
    def width(self) -> int:
        """rotary_dim."""
        return self.table.shape[-1]

    def from_positions(self, positions: torch.Tensor) -> Expected:
        return rotated_heads(self.x, self.table, positions)

    def turned(self, x: Expected, sin: torch.Tensor, cos: torch.Tensor, partner: torch.Tensor) -> Expected:
        """Return x·cos ± x[partner]·sin in the first dimensions; minus if the partner comes later. See `oracle.rope`.

        Args:
            x: `[batch, seq, heads, head_dim]`; its own bound is turned with it.
            sin, cos: `[batch or 1, seq, 1, rotary_dim]`.
            partner: the dimension that each of the first dimensions is turned with, `[rotary_dim]`.
        """
        dtype, width = torch.promote_types(x.dtype, self.table.dtype), self.width
        sign = torch.where(partner > torch.arange(width), -1.0, 1.0).to(x.value)
        own, other = x.value[..., :width] * cos, x.value[..., partner] * sin * sign
        value, bound = x.value.clone(), x.bound.clone()
        value[..., :width] = own + other
        inherited = x.bound[..., :width] * cos.abs() + x.bound[..., partner] * sin.abs()
        rounding = gamma(2, UNIT_ROUNDOFF[dtype]) * (own.abs() + other.abs() + inherited)
        bound[..., :width] = inherited + rounding + 2 * SMALLEST_SUBNORMAL[dtype]
        return installed().cast_rotated(Expected(value, bound, dtype), self.x.dtype)


def other_rotation(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: not rotated, rotated with another table, in another way, or from other positions."""
    x = mismatch.tensors.get(mismatch.stage.tap.replace("hook_rot_", "hook_"))
    if mismatch.stage.name != "rope" or x is None:
        return
    rotation = _Rotation(x, mismatch.parameters.tensor("attn.table"), mismatch.tensors["given.position_ids"])
    if mismatch.agrees(exact_input(x)):
        one_token = x.shape[1] == 1  # as if it were at position 0
        yield "not rotated, or as at position 0" if one_token else "not rotated"
    yield from _lower_table(mismatch, rotation)
    for name, hypothesis in _other_ways(rotation):
        if mismatch.agrees(hypothesis):
            yield name
    yield from _other_positions(mismatch, rotation)
    yield from _fewer_dimensions(mismatch, rotation)
    yield from _lower_precision(mismatch, rotation)


def _lower_table(mismatch: Mismatch, rotation: _Rotation) -> Iterator[str]:
    for name, dtype in LOWER.items():
        if torch.finfo(dtype).bits < torch.finfo(rotation.table.dtype).bits:
            cast = rotation.table.to(dtype).to(rotation.table.dtype)
            if mismatch.agrees(rotated_heads(rotation.x, cast, rotation.positions)):
                yield f"the sin/cos table was cast to {name}"


def _other_ways(rotation: _Rotation) -> Iterator[tuple[str, Expected]]:
    """Yield other ways to rotate: which dimensions are turned together, and by which of the table's angles.

    An angle belongs to a pair of dimensions: neighbours in CodeGen, dimensions half the width apart in GPT-NeoX.
    """
    x, width = exact_input(rotation.x), rotation.width
    neighbour, half_away = torch.arange(width) ^ 1, torch.arange(width).roll(width // 2)
    angles = rotation.table[rotation.positions].to(torch.float64)[:, :, None, :].chunk(2, -1)
    sin, cos = (each.repeat_interleave(2, -1) for each in angles)
    sin_of_half, cos_of_half = (torch.cat((each, each), -1) for each in angles)
    yield "rotated by halves, as in GPT-NeoX, not every two", rotation.turned(x, sin_of_half, cos_of_half, half_away)
    yield "rotated by halves, not every two, with the angles of pairs", rotation.turned(x, sin, cos, half_away)
    yield "rotated every two with the angles of halves", rotation.turned(x, sin_of_half, cos_of_half, neighbour)
    yield "rotated backwards", rotation.turned(x, -sin, cos, neighbour)
    yield "sine and cosine exchanged", rotation.turned(x, cos, sin, neighbour)
    yield "rotated twice", rotation.turned(rotation.turned(x, sin, cos, neighbour), sin, cos, neighbour)
    passing = rotation.x.shape[-1] - width
    last = rotated_heads(rotation.x.roll(-passing, -1), rotation.table, rotation.positions)
    yield (
        "the last dimensions are rotated, not the first",
        Expected(last.value.roll(passing, -1), last.bound.roll(passing, -1), last.dtype),
    )


def _other_positions(mismatch: Mismatch, rotation: _Rotation) -> Iterator[str]:
    positions = rotation.positions
    if mismatch.agrees(rotation.from_positions(positions[:1].expand_as(positions))):
        yield "all rows have the positions of the first"
    from_zero = torch.arange(positions.shape[1]).expand_as(positions)
    if mismatch.agrees(rotation.from_positions(from_zero)):
        yield "positions are ignored and counted from 0"
    for shift in _shifts(mismatch, rotation):
        if mismatch.agrees(rotation.from_positions((positions + shift).clamp(0, len(rotation.table) - 1))):
            yield f"positions shifted by {shift:+d}"


def _shifts(mismatch: Mismatch, rotation: _Rotation) -> list[int]:
    """Return the shifts that agree with the first head of the first or of the last token.

    Each of the two tokens is tried at every position of the table. Two tokens suffice: a shift may be clamped at the
    end of the table for one of them, but not for both.
    """
    shifts: set[int] = set()
    everywhere = torch.arange(len(rotation.table))[:, None]
    for token in (0, -1):
        x, tap = rotation.x[:1, token, :1], mismatch.tap[:1, token, :1].to(torch.float64)
        turned = rotated_heads(x[:, None].expand(len(everywhere), -1, -1, -1), rotation.table, everywhere)
        agreeing = ((tap[:, None] - turned.value).abs() <= turned.bound).flatten(1).all(-1).nonzero().flatten()
        shifts |= set((agreeing - rotation.positions[0, token]).tolist())
    return sorted(shifts - {0}, key=abs)


def _fewer_dimensions(mismatch: Mismatch, rotation: _Rotation) -> Iterator[str]:
    sin, cos = rotation.table.chunk(2, -1)
    for pairs in range(1, rotation.width // 2):
        table = torch.cat((sin[:, :pairs], cos[:, :pairs]), -1)
        if mismatch.agrees(rotated_heads(rotation.x, table, rotation.positions)):
            yield f"only the first {2 * pairs} of {rotation.width} dimensions are rotated"


def _lower_precision(mismatch: Mismatch, rotation: _Rotation) -> Iterator[str]:
    """Try x, table and every operation in a lower dtype, if the tap's last bits show that it was cast up from there."""
    tap = mismatch.tap
    for name, dtype in LOWER.items():
        if torch.finfo(dtype).bits >= torch.finfo(tap.dtype).bits or not torch.equal(tap.to(dtype).to(tap.dtype), tap):
            continue
        if mismatch.agrees(rope(rotation.x.to(dtype), rotation.table.to(dtype), rotation.positions)):
            yield f"computed in {name}"
