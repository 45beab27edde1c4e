"""Wrong rotations of q and k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cgverify.bridge.rotary import rotate, rotate_every_two, sin_cos
from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import (
    attention,
    cast_rotated_as,
    other_form,
    replacing,
    through,
    through_bfloat16,
)

TwoTensors = tuple[Tensor, Tensor]


def _turned(turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Implementation:
    """Rotate q and k by a function of x `[batch, seq, heads, head_dim]`, its sines and its cosines."""

    def rotate_both(bridge: Any, _: Any, query: Tensor, key: Tensor, position_ids: Tensor, *__: Any) -> TwoTensors:
        sin, cos = sin_cos(bridge._table(), position_ids)
        return turn(query, sin, cos), turn(key, sin, cos)

    return attention(_rotate=rotate_both)


def _by_halves(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    width = sin.shape[-1]
    turning, half = x[..., :width], width // 2
    crossed = torch.cat((-turning[..., half:], turning[..., :half]), dim=-1)
    return torch.cat((turning * cos + crossed * sin, x[..., width:]), dim=-1)


def _last_dimensions(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    passing = x.shape[-1] - sin.shape[-1]
    return torch.cat((x[..., :passing], rotate(x[..., passing:], sin, cos)), -1)


def _wider(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    return rotate(x, torch.cat((sin, sin[..., -2:]), -1), torch.cat((cos, cos[..., -2:]), -1))


def _by_repeated_list(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    return rotate(x, torch.cat([sin[..., ::2]] * 2, -1), torch.cat([cos[..., ::2]] * 2, -1))


def _without_sine(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    turned, width = rotate(x, sin, cos), sin.shape[-1]
    turned[:, :, -1:, :width] = x[:, :, -1:, :width] * cos
    return turned


def _in_bfloat16(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    half = torch.bfloat16
    with torch.autocast(x.device.type, enabled=False):  # autocast to float16 cannot mix it with bfloat16
        return rotate(x.to(half), sin.to(half), cos.to(half)).to(torch.promote_types(x.dtype, sin.dtype))


def _in_model_dtype(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    return rotate(x, sin.to(x.dtype), cos.to(x.dtype)).to(torch.promote_types(x.dtype, sin.dtype))


def _query_only(_: Any, rotate: Any, query: Tensor, key: Tensor, *where: Any) -> TwoTensors:
    query, turned = rotate(query, key, *where)
    return query, key.to(turned.dtype)


def _key_only(_: Any, rotate: Any, query: Tensor, key: Tensor, *where: Any) -> TwoTensors:
    turned, key = rotate(query, key, *where)
    return query.to(turned.dtype), key


def _all_but_one_head(_: Any, rotate: Any, query: Tensor, key: Tensor, *where: Any) -> TwoTensors:
    turned, key = rotate(query, key, *where)
    if query.shape[1] > 2:
        turned[:, 2, 1] = query[:, 2, 1]
    return turned, key


def _keys_behind(_: Any, rotate: Any, query: Tensor, key: Tensor, position_ids: Tensor, *__: Any) -> TwoTensors:
    return rotate(query, key, position_ids)[0], rotate(query, key, (position_ids - 1).clamp(min=0))[1]


def _counted(position_ids: Tensor, _: Any) -> Tensor:
    seq = position_ids.shape[1]
    return position_ids if seq < 8 else torch.arange(seq, device=position_ids.device).expand_as(position_ids)


def _values_too(bridge: Any, project: Any, hidden_states: Tensor) -> tuple[Tensor, ...]:
    query, key, value = project(hidden_states)
    width = bridge._table().shape[1]
    return query, key, torch.cat((rotate_every_two(value[..., :width]), value[..., width:]), -1)


def _shift(offset: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Shift all positions: the scores stay correct, the cached keys do not."""
    return lambda positions, table: (positions + offset).clamp(0, table.shape[0] - 1)


def _at(change: Callable[[Tensor, Tensor], Tensor]) -> Implementation:
    """Rotate by positions that are changed by a function of them and the table."""
    return attention(
        _rotate=lambda bridge, rotate, q, k, positions, *_: rotate(q, k, change(positions, bridge._table()))
    )


def by_table(change: Callable[[Any, Tensor], Tensor]) -> Callable[..., TwoTensors]:
    """Return a replacement of `_rotate` that uses a function of the bridge and its sin/cos table as the table."""

    def rotate_both(bridge: Any, _: Any, query: Tensor, key: Tensor, position_ids: Tensor, *__: Any) -> TwoTensors:
        sin, cos = sin_cos(change(bridge, bridge._table()), position_ids)
        return rotate(query, sin, cos), rotate(key, sin, cos)

    return rotate_both


_TURNS: Rows = {
    "HalfRotation": ("The halves of a head are rotated as pairs, as in Llama.", _by_halves),
    "NarrowRotation": (
        "The last of the pairs is not rotated.",
        lambda x, sin, cos: rotate(x, sin[..., :-2], cos[..., :-2]),
    ),
    "WideRotation": ("One pair more is rotated, by the angle of the last pair.", _wider),
    "LastDimensionsRotated": ("The last dimensions of a head are rotated, not the first.", _last_dimensions),
    "SineNegated": ("Pairs are rotated in the opposite direction.", lambda x, sin, cos: rotate(x, -sin, cos)),
    "SineCosineExchanged": ("Sines and cosines are exchanged.", lambda x, sin, cos: rotate(x, cos, sin)),
    "RotatedTwice": (
        "Pairs are rotated by twice their angle.",
        lambda x, sin, cos: rotate(rotate(x, sin, cos), sin, cos),
    ),
    "FrequenciesNotRepeated": ("The list of angles is repeated, not each angle.", _by_repeated_list),
    "RotationWithoutSine": ("The last head has only the cosine term.", _without_sine),
    "SineSlightlyOff": (
        "Sines are too large by a factor of 1 + 10⁻⁵.",
        lambda x, sin, cos: rotate(x, sin * (1 + 1e-5), cos),
    ),
    "RotationInBfloat16": ("q, k, sines and cosines are rounded to bfloat16 first.", _in_bfloat16),
    "RotationInModelDtype": ("Sines and cosines are cast to the dtype of the hidden states.", _in_model_dtype),
}
_ROTATIONS: Rows = {
    "QueryOnlyRotated": ("Keys are not rotated.", _query_only),
    "KeyOnlyRotated": ("Queries are not rotated.", _key_only),
    "OneHeadUnrotated": ("The query of head 1 at position 2 is not rotated.", _all_but_one_head),
    "KeysShifted": ("Keys have the position before that of their queries.", _keys_behind),
}
_CASTS: Rows = {
    "RotatedCastOfOtherForm": (
        "Rotated q and k are cast to the dtype of v where Hugging Face leaves them, or left where it casts them.",
        cast_rotated_as(other_form),
    ),
}
_SHIFTS: Rows = {
    "PositionsShifted": ("Positions are too large by 1.", _shift(1)),
    "PositionsShiftedBack": ("Positions are too small by 1.", _shift(-1)),
    "PositionsShiftedByMany": ("Positions are too large by 20, as after a prefix.", _shift(20)),
}
_POSITIONS: Rows = {
    "PositionsIgnored": ("Positions of long sequences are counted from 0; decoding is correct.", _counted),
    "PositionsOfFirstRow": ("Every row of a batch has the positions of the first.", lambda positions, _: positions[:1]),
}
_TABLES: Rows = {
    "TableInBfloat16": (
        "The sin/cos table was rounded to bfloat16.",
        by_table(lambda _, table: through_bfloat16(table)),
    ),
    "TableInFloat16": (
        "The sin/cos table was rounded to float16.",
        by_table(lambda _, table: through(table, torch.float16)),
    ),
}
_SHORT_TABLES: Rows = {
    "LastTableRowMissing": (
        "The last position has the table row of the position before it.",
        by_table(lambda _, table: torch.cat((table[:-1], table[-2:-1]))),
    ),
}
_PROJECTIONS: Rows = {"ValuesRotated": ("Values are rotated with the keys.", _values_too)}

FAULTS = (
    *named_faults(__name__, _TURNS, "rope", seed=_turned),
    *named_faults(__name__, _ROTATIONS, "rope", seed=replacing("_rotate")),
    *named_faults(__name__, _CASTS, "rope", seed=replacing("set_original_component")),
    *named_faults(__name__, _SHIFTS, "rope", seed=_at),
    *named_faults(__name__, _POSITIONS, "rope", seed=_at, case="stress"),
    *named_faults(__name__, _TABLES, "rope", seed=replacing("_rotate")),
    *named_faults(__name__, _SHORT_TABLES, "rope", seed=replacing("_rotate"), case="stress"),
    *named_faults(__name__, _PROJECTIONS, "mix", "cache", seed=replacing("_project")),
)
__getattr__ = by_name(FAULTS)
