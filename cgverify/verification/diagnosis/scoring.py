"""Scores: with another mask, or with the mask at another place."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cgverify.oracle.arithmetic import Expected, bound_after_rounding, exact_input
from cgverify.oracle.scores import scores
from cgverify.verification.diagnosis.failed import Failed


def other_mask(broke: Failed) -> Iterator[str]:
    """The mask added after the division, ignored, or used in part."""
    prefix = broke.stage.tap.removesuffix("hook_attn_scores")
    query, mask = broke.view.get(f"{prefix}hook_rot_q"), broke.view.get("given.attention_mask")
    key = _key(broke, prefix)
    if broke.stage.name != "scores" or query is None or key is None or mask is None or mask.dtype == torch.bool:
        return
    q, k = exact_input(query.transpose(1, 2)), exact_input(key)
    shortcuts = broke.parameters.shortcuts
    plain = scores(q, k, None, shortcuts)
    after = plain.value + mask.to(torch.float64)
    hidden = mask <= torch.finfo(mask.dtype).min
    if broke.agrees(Expected(after, bound_after_rounding(after, plain.bound, plain.dtype), plain.dtype)):
        yield "mask after scaling"
    if broke.agrees(plain):
        yield "mask ignored"
    for name, other in (
        ("only what the mask hides is used of it", torch.where(hidden, mask, 0)),
        ("only the causal part of the mask is used", _causal(mask)),
        ("all rows have the mask of the first", mask[:1].expand_as(mask)),
        ("only half of the mask is added", torch.where(hidden, mask, mask / 2)),
    ):
        if broke.agrees(scores(q, k, other, shortcuts)):
            yield name


def _key(broke: Failed, prefix: str) -> torch.Tensor | None:
    """The keys that are multiplied, `[batch, heads, keys, head_dim]`."""
    cached = broke.view.get(f"{prefix}cache_keys")
    seen = broke.view.get(f"{prefix}hook_rot_k")
    return cached if cached is not None else None if seen is None else seen.transpose(1, 2)


def _causal(mask: torch.Tensor) -> torch.Tensor:
    """A mask `[batch, 1, seq, keys]` of nothing but what lies in the future of each query."""
    queries, keys = mask.shape[-2:]
    future = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).triu(1 + keys - queries)
    return torch.zeros_like(mask).masked_fill(future, torch.finfo(mask.dtype).min)
