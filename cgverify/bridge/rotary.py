"""Rotary position embedding as CodeGen computes it: GPT-J's "rotate every two".

A table row holds `[sin(p·f_0), …, sin(p·f_{r/2-1}), cos(p·f_0), …]` for position p, with the frequencies
`f_i = 10000^(-2i/r)` and r the rotary dimension. Neighbouring dimensions (2i, 2i+1) of a head form a
pair that is rotated by the angle p·f_i:

    x'[2i]   = x[2i] · cos - x[2i+1] · sin
    x'[2i+1] = x[2i+1] · cos + x[2i] · sin

For a head [1, 2] at the angle 90° (sin 1, cos 0) that is [-2, 1]. Source: RoFormer (Su et al. 2021), equation 34,
and `apply_rotary_pos_emb` in transformers' CodeGen. The products and the sum are rounded in the order that transformers
uses, so the results are equal to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgverify.bridge.fast_path import allows_in_place, is_traced

_SMALL = 1 << 17
"""The size in bytes of a rotated q up to which joining q and k is cheaper than rotating them separately."""


def check_positions(position_ids: Tensor | None, hidden_states: Tensor, table: Tensor) -> None:
    """Raise ValueError for positions of `[batch, seq, d_model]` that are not in a table `[positions, rotary_dim]`.

    Values are checked on the CPU only. On another device that would wait for the device, and indexing raises by itself.
    """
    if position_ids is None:
        raise ValueError(
            "CodeGenAttentionBridge needs position_ids, integers of shape [batch or 1, seq], or position_embeddings, "
            "for the rotary embedding."
        )
    if is_traced():
        return
    batch, seq, _ = hidden_states.shape
    if position_ids.shape not in ((1, seq), (batch, seq)):
        raise ValueError(
            f"position_ids must be [batch or 1, seq] = [{batch} or 1, {seq}], not {list(position_ids.shape)}."
        )
    if position_ids.device.type != "cpu" or position_ids.numel() == 0 or torch.compiler.is_compiling():
        return
    lowest, highest = map(int, torch.aminmax(position_ids) if position_ids.numel() > 1 else [position_ids] * 2)
    if lowest < 0 or highest >= table.shape[0]:
        raise ValueError(
            f"position_ids are between {lowest} and {highest}, but the sin/cos table has rows for 0 to "
            f"{table.shape[0] - 1}."
        )


def check_position_embeddings(
    position_embeddings: tuple[Tensor, Tensor], hidden_states: Tensor, rotary_dim: int
) -> None:
    """Raise ValueError unless sine and cosine are `[batch or 1, seq, rotary_dim / 2]` for `[batch, seq, d_model]`."""
    if is_traced():
        return
    batch, seq, _ = hidden_states.shape
    for half in position_embeddings:
        if half.shape not in ((1, seq, rotary_dim // 2), (batch, seq, rotary_dim // 2)):
            raise ValueError(
                f"position_embeddings must be a sine and a cosine [batch or 1, seq, rotary_dim / 2] = [{batch} or 1, "
                f"{seq}, {rotary_dim // 2}], not {list(half.shape)}."
            )


def sin_cos(table: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return sine and cosine of each position's angles, every value twice in a row: `[batch or 1, seq, 1, rotary_dim]`.

    Args:
        table: `embed_positions`, `[positions, rotary_dim]`, sines before cosines.
        position_ids: integers `[batch or 1, seq]`.
    """
    sin, cos = twice(table[position_ids]).chunk(2, dim=-1)
    return sin, cos


def twice(angles: Tensor) -> Tensor:
    """Return `[…, seq, 1, 2n]` with every value of `[…, seq, n]` twice in a row."""
    return angles.repeat_interleave(2, dim=-1).unsqueeze(-2)


def rotate_every_two(x: Tensor) -> Tensor:
    """Return `[…, -b, a, -d, c]` for `[…, a, b, c, d]`."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate the first `rotary_dim` dimensions of each head; the other dimensions stay as they are.

    Args:
        x: `[batch, seq, heads, head_dim]`.
        sin, cos: from `sin_cos`; their last dimension is the rotary dimension.

    Returns:
        A new tensor of x's shape, in the promoted dtype of x and the table.
    """
    rotary_dim = sin.shape[-1]
    if allows_in_place(x):  # in place on a copy: writes a third of what the sum of two products writes
        return rotate_in_place(_promoted_copy(x, sin.dtype), sin, cos)
    rotary = x[..., :rotary_dim]  # one slice, whose gradient is summed before it is written into x's
    rotated = rotary * cos + rotate_every_two(rotary) * sin
    if not is_traced() and rotary_dim == x.shape[-1]:
        return rotated
    return torch.cat((rotated, x[..., rotary_dim:]), dim=-1)


def _promoted_copy(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(torch.promote_types(x.dtype, dtype), copy=True, memory_format=torch.contiguous_format)


def rotate_in_place(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate x itself. Subtracting a product has the same bits as adding its negative, as the formula does."""
    rotary = x[..., : sin.shape[-1]]
    crossed = rotary * sin
    rotary.mul_(cos)
    rotary[..., ::2].sub_(crossed[..., 1::2])
    rotary[..., 1::2].add_(crossed[..., ::2])
    return x


def rotate_both(query: Tensor, key: Tensor, sin: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate q and k.

    For a few tokens, the time depends on the number of operations and not on their size, so q and k are rotated as one
    tensor. The size condition starts k at a multiple of 64 bytes, as separate memory would: alignment decides the
    kernel of the products, and so the last bit.
    """
    if not allows_in_place(query, key):
        return rotate(query, sin, cos), rotate(key, sin, cos)
    size = query.numel() * max(query.element_size(), sin.element_size())
    if size <= _SMALL and size % 64 == 0 and query.shape == key.shape:
        joined = torch.stack((query, key))
        rotated = rotate_in_place(joined.to(torch.promote_types(joined.dtype, sin.dtype)), sin, cos)
        return rotated[0], rotated[1]
    if query.shape[0] > 1:  # heads before tokens, the layout that the score product needs
        by_head = _promoted_copy(query.transpose(1, 2), sin.dtype).transpose(1, 2)
        return rotate_in_place(by_head, sin, cos), rotate(key, sin, cos)
    return rotate(query, sin, cos), rotate(key, sin, cos)
