"""q and k: rotated otherwise than every two, by other angles, or from other positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from cgverify.oracle.arithmetic import SMALLEST_SUBNORMAL, UNIT_ROUNDOFF, Expected, exact_input, gamma
from cgverify.oracle.rope import rope
from cgverify.verification.diagnosis.failed import Failed
from cgverify.verification.diagnosis.rounding import LOWER


@dataclass(frozen=True)
class _Rotation:
    """One rotation of q or k."""

    x: torch.Tensor
    """`[batch, seq, heads, head_dim]`, before it."""
    table: torch.Tensor
    """`[positions, rotary_dim]`, sines before cosines."""
    positions: torch.Tensor
    """`[batch or 1, seq]`."""

    @property
    def width(self) -> int:
        return self.table.shape[-1]

    def angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sines and cosines in float64, `[batch or 1, seq, 1, rotary_dim / 2]`."""
        sin, cos = self.table[self.positions].to(torch.float64)[:, :, None, :].chunk(2, -1)
        return sin, cos

    def from_positions(self, positions: torch.Tensor) -> Expected:
        return rope(self.x, self.table, positions)


def other_rotation(broke: Failed) -> Iterator[str]:
    """The rotation not done, done from other positions, with another table, or another way."""
    source = broke.view.get(broke.stage.tap.replace("hook_rot_", "hook_"))
    if broke.stage.name != "rope" or source is None:
        return
    rotation = _Rotation(source, broke.parameters.tensor("attn.table"), broke.view["given.position_ids"])
    if broke.agrees(exact_input(source)):
        one_token = source.shape[1] == 1  # which cannot be told from one at position 0
        yield "not rotated, or as at position 0" if one_token else "not rotated"
    yield from _lower_table(broke, rotation)
    for name, way in _OTHER_WAYS:
        if broke.agrees(way(rotation)):
            yield name
    yield from _other_positions(broke, rotation)
    yield from _fewer_dimensions(broke, rotation)
    yield from _computed_in_less(broke, rotation)


def _other_positions(broke: Failed, rotation: _Rotation) -> Iterator[str]:
    positions = rotation.positions
    if broke.agrees(rotation.from_positions(positions[:1].expand_as(positions))):
        yield "all rows have the positions of the first"
    if broke.agrees(
        rotation.from_positions(torch.arange(positions.shape[1], device=positions.device).expand_as(positions))
    ):
        yield "positions are ignored and counted from 0"
    for shift in _shifts(broke, rotation):
        if broke.agrees(rotation.from_positions((positions + shift).clamp(0, len(rotation.table) - 1))):
            yield f"positions shifted by {shift:+d}"


def _shifts(broke: Failed, rotation: _Rotation) -> list[int]:
    """The shifts that the first or the last token may have, by its first head at every position of the table.

    Not more than these two: a shift may be cut off at the table's ends, but not for both.
    """
    shifts: set[int] = set()
    everywhere = torch.arange(len(rotation.table), device=rotation.positions.device)[:, None]
    for token in (0, -1):
        x, tap = rotation.x[:1, token, :1], broke.tap[:1, token, :1].to(torch.float64)
        turned = rope(x[:, None].expand(len(everywhere), -1, -1, -1), rotation.table, everywhere)
        agreeing = ((tap[:, None] - turned.value).abs() <= turned.bound).flatten(1).all(-1).nonzero().flatten()
        shifts |= set((agreeing - rotation.positions[0, token]).tolist())
    return sorted(shifts - {0}, key=abs)


def _computed_in_less(broke: Failed, rotation: _Rotation) -> Iterator[str]:
    """x, table and every operation in a lower dtype, and the result cast up, which shows in its last bits."""
    for name, dtype in LOWER.items():
        tap = broke.tap
        if torch.finfo(dtype).bits < torch.finfo(tap.dtype).bits and torch.equal(tap.to(dtype).to(tap.dtype), tap):
            would_be = rope(rotation.x.to(dtype), rotation.table.to(dtype), rotation.positions)
            if broke.agrees(would_be):
                yield f"computed in {name}"


def _lower_table(broke: Failed, rotation: _Rotation) -> Iterator[str]:
    """The table in a lower dtype than it has."""
    for name, dtype in LOWER.items():
        if torch.finfo(dtype).bits < torch.finfo(rotation.table.dtype).bits:
            cast = rotation.table.to(dtype).to(rotation.table.dtype)
            if broke.agrees(rope(rotation.x, cast, rotation.positions)):
                yield f"the sin/cos table was cast to {name}"


Way = Callable[[_Rotation], Expected]
"""Another way to rotate."""


def _turned(rotation: _Rotation, x: Expected, sin: torch.Tensor, cos: torch.Tensor, partner: torch.Tensor) -> Expected:
    """x·cos ± x[partner]·sin in the first dimensions, minus where the partner stands behind; see `oracle.rope`.

    Args:
        x: `[batch, seq, heads, head_dim]`; its own bound turns with it.
        sin, cos: `[batch or 1, seq, 1, rotary_dim]`.
        partner: the dimension that each dimension turns with.
    """
    dtype, width = torch.promote_types(x.dtype, rotation.table.dtype), len(partner)
    sign = torch.where(partner > torch.arange(width), -1.0, 1.0).to(x.value)
    own, other = x.value[..., :width] * cos, x.value[..., partner] * sin * sign
    value, bound = x.value.clone(), x.bound.clone()
    value[..., :width] = own + other
    inherited = x.bound[..., :width] * cos.abs() + x.bound[..., partner] * sin.abs()
    rounding = gamma(2, UNIT_ROUNDOFF[dtype]) * (own.abs() + other.abs() + inherited) + 2 * SMALLEST_SUBNORMAL[dtype]
    bound[..., :width] = inherited + rounding
    return Expected(value, bound, dtype)


def _neighbours(width: int) -> torch.Tensor:
    return torch.arange(width) ^ 1


def _halves(width: int) -> torch.Tensor:
    return torch.arange(width).roll(width // 2)


def _for_pairs(angles: torch.Tensor) -> torch.Tensor:
    """Each twice in a row."""
    return angles.repeat_interleave(2, -1)


def _for_halves(angles: torch.Tensor) -> torch.Tensor:
    """All of them, twice over."""
    return torch.cat((angles, angles), -1)


def _as_in_neox(rotation: _Rotation) -> Expected:
    sin, cos = map(_for_halves, rotation.angles())
    return _turned(rotation, exact_input(rotation.x), sin, cos, _halves(rotation.width))


def _halves_by_pairs_angles(rotation: _Rotation) -> Expected:
    sin, cos = map(_for_pairs, rotation.angles())
    return _turned(rotation, exact_input(rotation.x), sin, cos, _halves(rotation.width))


def _pairs_by_halves_angles(rotation: _Rotation) -> Expected:
    sin, cos = map(_for_halves, rotation.angles())
    return _turned(rotation, exact_input(rotation.x), sin, cos, _neighbours(rotation.width))


def _backwards(rotation: _Rotation) -> Expected:
    sin, cos = map(_for_pairs, rotation.angles())
    return _turned(rotation, exact_input(rotation.x), -sin, cos, _neighbours(rotation.width))


def _exchanged(rotation: _Rotation) -> Expected:
    sin, cos = map(_for_pairs, rotation.angles())
    return _turned(rotation, exact_input(rotation.x), cos, sin, _neighbours(rotation.width))


def _twice(rotation: _Rotation) -> Expected:
    sin, cos = map(_for_pairs, rotation.angles())
    once = _turned(rotation, exact_input(rotation.x), sin, cos, _neighbours(rotation.width))
    return _turned(rotation, once, sin, cos, _neighbours(rotation.width))


def _last_dimensions(rotation: _Rotation) -> Expected:
    passing = rotation.x.shape[-1] - rotation.width
    turned = rope(rotation.x.roll(-passing, -1), rotation.table, rotation.positions)
    return Expected(turned.value.roll(passing, -1), turned.bound.roll(passing, -1), turned.dtype)


_OTHER_WAYS: tuple[tuple[str, Way], ...] = (
    ("rotated by halves, as in GPT-NeoX, not every two", _as_in_neox),
    ("rotated by halves, not every two, with the angles of pairs", _halves_by_pairs_angles),
    ("rotated every two with the angles of halves", _pairs_by_halves_angles),
    ("rotated backwards", _backwards),
    ("sine and cosine exchanged", _exchanged),
    ("rotated twice", _twice),
    ("the last dimensions are rotated, not the first", _last_dimensions),
)


def _fewer_dimensions(broke: Failed, rotation: _Rotation) -> Iterator[str]:
    sin, cos = rotation.table.chunk(2, -1)
    for pairs in range(1, rotation.width // 2):
        table = torch.cat((sin[:, :pairs], cos[:, :pairs]), -1)
        if broke.agrees(rope(rotation.x, table, rotation.positions)):
            yield f"only the first {2 * pairs} of {rotation.width} dimensions are rotated"
