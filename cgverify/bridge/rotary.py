"""Rotary position embedding as CodeGen computes it: GPT-J's "rotate every two".

A table row holds `[sin(p·f_0), …, sin(p·f_{r/2-1}), cos(p·f_0), …]` for position p, with the frequencies
`f_i = 10000^(-2i/r)` and r the rotary dimension. Neighbouring dimensions (2i, 2i+1) of a head form a
pair that turns by the angle p·f_i:

    x'[2i]   = x[2i] · cos - x[2i+1] · sin
    x'[2i+1] = x[2i+1] · cos + x[2i] · sin

For a head [1, 2] at the angle 90° (sin 1, cos 0) that is [-2, 1]. Source: RoFormer (Su et al. 2021), equation 34,
and `apply_rotary_pos_emb` in transformers' CodeGen. The products and the sum are rounded one by one in the same
order as there, so the results are equal to the last bit.
"""

from __future__ import annotations

import torch

from cgverify.bridge.listeners import is_plain

_SMALL = 1 << 17
"""Bytes of a rotated q up to which joining q and k is cheaper than rotating them apart."""


def check_positions(position_ids: torch.Tensor | None, *, batch: int, queries: int, table: torch.Tensor) -> None:
    """Raise ValueError for positions that cannot be looked up in a table `[positions, rotary_dim]`.

    Values are looked at on the CPU alone: elsewhere that would wait for the device, and indexing raises by itself.
    """
    if position_ids is None:
        raise ValueError(
            "CodeGenAttentionBridge needs position_ids, integers of shape [batch or 1, seq]: without them there is no "
            "rotation."
        )
    if position_ids.ndim != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != queries:
        raise ValueError(
            f"position_ids must be [batch or 1, seq] = [{batch} or 1, {queries}], not {list(position_ids.shape)}."
        )
    if position_ids.device.type != "cpu" or position_ids.numel() == 0 or torch.compiler.is_compiling():
        return
    lowest, highest = map(int, torch.aminmax(position_ids) if position_ids.numel() > 1 else [position_ids] * 2)
    if lowest < 0 or highest >= table.shape[0]:
        raise ValueError(
            f"position_ids lie between {lowest} and {highest}, and embed_positions has rows for 0 to "
            f"{table.shape[0] - 1}."
        )


def sin_cos(table: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine and cosine of each position's angles, each value twice in a row: `[batch or 1, seq, 1, rotary_dim]`.

    Args:
        table: `embed_positions`, `[positions, rotary_dim]`, sines before cosines.
        position_ids: integers `[batch or 1, seq]`.
    """
    rows = table[position_ids]
    sin, cos = rows.repeat_interleave(2, dim=-1).unsqueeze(-2).chunk(2, dim=-1)
    return sin, cos


def rotate_every_two(x: torch.Tensor) -> torch.Tensor:
    """`[…, a, b, c, d]` becomes `[…, -b, a, -d, c]`."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Turn the first `rotary_dim` dimensions of each head, pass the rest through.

    Args:
        x: `[batch, seq, heads, head_dim]`.
        sin, cos: from `sin_cos`; their last dimension is the rotary dimension.

    Returns:
        A new tensor of x's shape, in the promoted dtype of x and the table.
    """
    rotary_dim = sin.shape[-1]
    if is_plain(x):  # in place on a copy: a third of the memory that the sum of two products writes
        return _turn(_copied(x, sin.dtype), sin, cos)
    turning = x[..., :rotary_dim]
    turned = (turning * cos) + (rotate_every_two(turning) * sin)
    if rotary_dim == x.shape[-1]:
        return turned
    return torch.cat((turned, x[..., rotary_dim:]), dim=-1)


def _copied(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    promoted = torch.promote_types(x.dtype, dtype)
    return x.to(promoted, copy=True, memory_format=torch.contiguous_format)


def _turn(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """`rotate` in place. What is subtracted here is added there with its sign turned: the same bits."""
    turning = x[..., : sin.shape[-1]]
    crossed = turning * sin
    turning.mul_(cos)
    turning[..., ::2].sub_(crossed[..., 1::2])
    turning[..., 1::2].add_(crossed[..., ::2])
    return x


def rotate_both(
    query: torch.Tensor, key: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rotate` of q and k.

    What a few tokens cost is the number of operations and not their size, so they are rotated as one tensor; k then
    starts where fresh memory would, at a multiple of 64 bytes, which the kernels of the products ask for.
    """
    size = query.numel() * max(query.element_size(), sin.element_size())
    if size <= _SMALL and size % 64 == 0 and query.shape == key.shape and is_plain(query, key):
        joined = torch.stack((query, key))
        rotated = _turn(joined.to(torch.promote_types(joined.dtype, sin.dtype)), sin, cos)
        return rotated[0], rotated[1]
    if query.shape[0] > 1 and is_plain(query):  # q's heads first, as the score product would copy it
        by_head = _copied(query.transpose(1, 2), sin.dtype).transpose(1, 2)
        return _turn(by_head, sin, cos), rotate(key, sin, cos)
    return rotate(query, sin, cos), rotate(key, sin, cos)
