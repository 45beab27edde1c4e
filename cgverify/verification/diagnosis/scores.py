"""Scores with another mask or with the mask added elsewhere, and any stage whose result is off by a factor."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from cgverify.observe.generations import installed
from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, bound_after_rounding, exact_input
from cgverify.verification.check import visible
from cgverify.verification.diagnosis.mismatch import Mismatch

FEWEST = 8
"""At least this many elements must agree on one factor."""


def other_mask(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: the mask is added on the other side of the scale, ignored, or used only in part."""
    if mismatch.stage.name != "scores":
        return
    query, key = _seen(mismatch, "hook_rot_q"), _key(mismatch)
    mask = mismatch.tensors.get("given.attention_mask")
    if query is None or key is None or mask is None or mask.dtype == torch.bool:
        return
    q, k = exact_input(query.transpose(1, 2)), exact_input(key)
    shortcuts = mismatch.parameters.shortcuts
    scores = installed().scores
    plain = scores(q, k, None, shortcuts)
    if mismatch.agrees(scores(q, k, mask, shortcuts)):  # in compatibility mode −∞ is expected
        yield "the lowest value of the mask is left finite"
        return
    for name, factor in (("after", 1.0), ("before", q.value.shape[-1] ** -0.5)):
        added = mask.to(torch.float64) * factor
        total, error = plain.value + added, plain.bound + 2 * UNIT_ROUNDOFF[torch.float32] * added.abs()
        if mismatch.agrees(Expected(total, bound_after_rounding(total, error, plain.dtype), plain.dtype)):
            yield f"mask {name} scaling"
    if mismatch.agrees(plain):
        yield "mask ignored"
    hidden = mask <= torch.finfo(mask.dtype).min
    for name, other in (
        ("only what the mask hides is used of it", torch.where(hidden, mask, 0)),
        ("only the causal part of the mask is used", _causal(mask)),
        ("all rows have the mask of the first", mask[:1].expand_as(mask)),
        ("only half of the mask is added", torch.where(hidden, mask, mask / 2)),
    ):
        if mismatch.agrees(scores(q, k, other, shortcuts)):
            yield name


def _other_divisors(mismatch: Mismatch) -> dict[str, float]:
    """Return the factors on the scores that follow from dividing by something other than √head_dim, by cause."""
    query = _seen(mismatch, "hook_rot_q")
    if mismatch.stage.name != "scores" or query is None:
        return {}
    heads, size = query.shape[-2:]
    rotary = mismatch.parameters.tensor("attn.table").shape[-1]
    factors = {
        "not scaled": size**0.5,
        "scaled by 1/head_dim instead of 1/sqrt(head_dim)": size**-0.5,
        "scaled by 1/sqrt(d_model) instead of 1/sqrt(head_dim)": heads**-0.5,
        "scaled by 1/sqrt(n_heads) instead of 1/sqrt(head_dim)": (size / heads) ** 0.5,
        "scaled by 1/sqrt(rotary_dim) instead of 1/sqrt(head_dim)": (size / rotary) ** 0.5,
    }
    return {name: factor for name, factor in factors.items() if factor != 1}


def _seen(mismatch: Mismatch, tap: str) -> torch.Tensor | None:
    """Return another tap of the attention that the scores belong to."""
    return mismatch.tensors.get(mismatch.stage.tap.replace("hook_attn_scores", tap))


def _key(mismatch: Mismatch) -> torch.Tensor | None:
    """Return the keys that the queries are multiplied with, `[batch, heads, keys, head_dim]`."""
    cached, seen = _seen(mismatch, "cache_keys"), _seen(mismatch, "hook_rot_k")
    return cached if cached is not None else None if seen is None else seen.transpose(1, 2)


def _causal(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask `[batch, 1, seq, keys]` that hides only the future of each query."""
    queries, keys = mask.shape[-2:]
    future = torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
    return torch.zeros_like(mask).masked_fill(future, torch.finfo(mask.dtype).min)


def scaled(mismatch: Mismatch) -> Iterator[str]:
    """Hypothesis: the tap is c·o, with a c that scores are known to be scaled by, or else with a fitted c.

    Scores may also be c·(o − m) + m, with m the mask: then the scale is wrong and the mask is added after it.
    """
    seen = visible(mismatch.stage, mismatch.tensors)
    shape = mismatch.expected.value.shape
    hidden = torch.zeros(shape, dtype=torch.bool) if seen is None else ~seen.expand(shape)
    offsets = [torch.zeros((), dtype=torch.float64)]
    mask = mismatch.tensors.get("given.attention_mask")
    if mismatch.stage.name == "scores" and mask is not None and mask.is_floating_point():
        offsets.append(mask.to(torch.float64).expand(shape).masked_fill(hidden, 0))
    for offset in offsets:
        causes = list(_scaled_around(mismatch, offset, hidden))
        if causes:
            yield from causes
            return


def _scaled_around(mismatch: Mismatch, offset: torch.Tensor, hidden: torch.Tensor) -> Iterator[str]:
    """Hypothesis: the tap is c·(o − offset) + offset.

    c is fitted to the elements that the mask does not hide, as Σ t·o / Σ o², of the tap and o without the offset. The
    bounds B of the elements leave it uncertain by up to Σ B|o| / Σ o².
    """
    value, bound = mismatch.expected.value - offset, mismatch.expected.bound
    tap = mismatch.tap.to(torch.float64) - offset
    for name, factor in _other_divisors(mismatch).items():
        if mismatch.agrees(_times(mismatch.expected, factor, 0.0, hidden, offset)):
            yield name
    if int(((value != 0) & ~hidden).sum()) < FEWEST:
        return
    square = value.masked_fill(hidden, 0).square().sum()
    factor = float((tap * value).masked_fill(hidden, 0).sum() / square)
    uncertain = float((bound * value.abs()).masked_fill(hidden, 0).sum() / square)
    differs_from_one = math.isfinite(factor) and abs(factor) > uncertain and abs(factor - 1) > 2 * uncertain
    if differs_from_one and mismatch.agrees(_times(mismatch.expected, factor, uncertain, hidden, offset)):
        opposite = abs(factor + 1) <= uncertain
        yield "the sign is reversed" if opposite else f"scaled by {_written(factor, uncertain)}"


def _times(expected: Expected, factor: float, uncertain: float, hidden: torch.Tensor, offset: torch.Tensor) -> Expected:
    """Return factor · (o − offset) + offset. Hidden elements may have any value, since the mask may be added anywhere.

    The sum with an offset is rounded as o is, whatever the factor.
    """
    scaled = (expected.value - offset) * factor
    least = 1.0 if offset.dim() else 0.0
    bound = max(abs(factor), least) * expected.bound + uncertain * (expected.value - offset).abs()
    greatest = torch.finfo(expected.dtype).max if expected.dtype.is_floating_point else 0.0
    return Expected(scaled + offset, torch.where(hidden, greatest, bound), expected.dtype)


def _written(factor: float, uncertain: float) -> str:
    """Write two digits of the factor's distance from 1, as far as they are certain: `1.001`, `-0.5`, `5.7`."""
    certain = math.floor(-math.log10(max(uncertain, 1e-15)))
    decimals = min(certain, 1 + math.ceil(-math.log10(abs(factor - 1))))
    return f"{round(factor, max(1, decimals)):g}" if decimals < 5 else f"{factor:.{decimals}f}".rstrip("0")
