"""The rows of the fused QKV weight, and of its output, that belong to q, k or v, counted head by head.

This is independent of the bridge's split, so that a mistake there is not repeated here. There are four partitions. Each
has the rows of a quarter of the heads: queries first, then values, then keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

PARTITIONS = 4
ORDER = ("q", "v", "k")


@cache
def rows_of(which: str, n_heads: int, head_dim: int) -> torch.Tensor:
    """Return indices `[n_heads * head_dim]` of rows of the fused weight: element h·D + i is head h's dimension i."""
    heads_each = n_heads // PARTITIONS
    rows = []
    for head in range(n_heads):
        partition, place = divmod(head, heads_each)
        start = (partition * len(ORDER) + ORDER.index(which)) * heads_each * head_dim + place * head_dim
        rows.append(torch.arange(start, start + head_dim))
    return torch.cat(rows)


def projection(fused: torch.Tensor, which: str, n_heads: int) -> torch.Tensor:
    """Return the weight `[d_model, d_model]` of "q", "k" or "v" from the fused `[3 * d_model, d_model]`.

    Or the bias `[d_model]` from a fused bias `[3 * d_model]`.
    """
    return fused[rows_of(which, n_heads, len(fused) // len(ORDER) // n_heads)]


def projected_heads(fused: torch.Tensor, which: str, n_heads: int) -> torch.Tensor:
    """Return "q", "k" or "v", `[..., heads, head_dim]`, from the fused output `[..., 3 * d_model]`."""
    head_dim = fused.shape[-1] // len(ORDER) // n_heads
    own = fused[..., rows_of(which, n_heads, head_dim)]
    return own.reshape(*fused.shape[:-1], n_heads, head_dim)


def fused_output(by_head: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the fused output `[..., 3 * d_model]` from "q", "k" and "v", `[..., heads, head_dim]` each."""
    heads, head_dim = by_head["q"].shape[-2:]
    fused = by_head["q"].new_empty(*by_head["q"].shape[:-2], len(ORDER) * heads * head_dim)
    for which, part in by_head.items():
        fused[..., rows_of(which, heads, head_dim)] = part.flatten(-2)
    return fused
