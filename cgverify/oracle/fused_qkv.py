"""The rows of the fused QKV weight, and of what it makes, that belong to q, k or v, counted out head by head.

Written apart from the bridge's split, so that a mistake there cannot be repeated here: four partitions, in each
the rows of a quarter of the heads, queries first, then values, then keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

PARTITIONS = 4
ORDER = ("q", "v", "k")


@cache
def rows_of(which: str, n_heads: int, head_dim: int) -> torch.Tensor:
    """Indices `[n_heads * head_dim]` of rows of the fused weight: element h·D + i is head h's dimension i."""
    heads_each = n_heads // PARTITIONS
    rows = []
    for head in range(n_heads):
        partition, place = divmod(head, heads_each)
        start = (partition * len(ORDER) + ORDER.index(which)) * heads_each * head_dim + place * head_dim
        rows.append(torch.arange(start, start + head_dim))
    return torch.cat(rows)


def projection_weight(fused: torch.Tensor, which: str, n_heads: int) -> torch.Tensor:
    """The weight `[d_model, d_model]` of "q", "k" or "v", gathered from the fused `[3 * d_model, d_model]`."""
    return fused[rows_of(which, n_heads, fused.shape[1] // n_heads).to(fused.device)]


def projection_bias(fused: torch.Tensor, which: str, n_heads: int) -> torch.Tensor:
    """Its bias `[d_model]`, from a fused `[3 * d_model]`."""
    return fused[rows_of(which, n_heads, len(fused) // len(ORDER) // n_heads).to(fused.device)]


def joined(by_head: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the fused weight makes, `[..., 3 * d_model]`, where "q", "k" and "v" are `[..., heads, head_dim]`."""
    heads, head_dim = by_head["q"].shape[-2:]
    fused = by_head["q"].new_empty(*by_head["q"].shape[:-2], len(ORDER) * heads * head_dim)
    for which, part in by_head.items():
        fused[..., rows_of(which, heads, head_dim).to(fused.device)] = part.flatten(-2)
    return fused


def part_of(fused: torch.Tensor, which: str, n_heads: int) -> torch.Tensor:
    """The "q", "k" or "v", `[..., heads, head_dim]`, in what the fused weight made."""
    head_dim = fused.shape[-1] // len(ORDER) // n_heads
    part = fused[..., rows_of(which, n_heads, head_dim).to(fused.device)]
    return part.reshape(*fused.shape[:-1], n_heads, head_dim)
