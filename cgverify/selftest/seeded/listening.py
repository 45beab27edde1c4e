"""Faults that depend on which hooks are attached, and hooks that are correct only in the simplest forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgverify.selftest.candidates import Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import attention, keep, rehooked


def _neighbours_values(bridge: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    one_token = pattern.shape[-2] == 1 < pattern.shape[-1]
    return mix(pattern, value.roll(1, 1) if one_token and not bridge.hook_pattern.fwd_hooks else value)


def _detached(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    watched = bridge.hook_attn_scores.fwd_hooks
    return scores(query, key, mask) if watched else scores(query.detach(), key.detach(), mask)


def _averaged(bridge: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Tensor:
    pattern: Tensor = pattern_of(scores, dtype)
    averaged = bridge.hook_pattern.fwd_hooks and not bridge.hook_attn_scores.fwd_hooks
    return pattern.mean(1, keepdim=True).expand_as(pattern).contiguous() if averaged else pattern


def _in_one_buffer(bridge: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Tensor:
    pattern: Tensor = pattern_of(scores, dtype)
    if torch.is_grad_enabled():
        return pattern
    buffer: Tensor | None = bridge.__dict__.get("_buffer")
    if buffer is None or (buffer.shape, buffer.dtype) != (pattern.shape, pattern.dtype):
        buffer = bridge.__dict__["_buffer"] = torch.empty_like(pattern)
    return buffer.copy_(pattern)


def _first_row(
    _: Any, rotate: Any, query: Tensor, key: Tensor, position_ids: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    rotated: tuple[Tensor, Tensor] = rotate(query, key, position_ids, *others)
    if len(position_ids) == len(query):
        return rotated
    return tuple(
        torch.cat((first[:1], rest[1:].to(first.dtype))) for first, rest in zip(rotated, (query, key), strict=True)
    )


_UNWATCHED: Rows = {
    "SingleTokenUnheard": (
        "A single token reads the values of the next head if no hook is attached.",
        attention(_mix=_neighbours_values),
    ),
}
_UNWATCHED_BACKWARD: Rows = {
    "DetachedUnheard": (
        "No gradient reaches q and k if no hook is attached to the scores.",
        attention(_scores=_detached),
    ),
    "pattern_cut_off": (
        "No gradient arrives at `hook_pattern`.",
        rehooked("blocks.0.attn.hook_pattern", lambda show, x: show(x.detach()) + (x - x.detach())),
    ),
}
_ONE_HOOK: Rows = {
    "AveragedForOneListener": (
        "The pattern is the average of the heads if it has a hook and the scores have none.",
        attention(_pattern_of=_averaged),
    ),
}
_BUFFER: Rows = {
    "PatternsInOneRoom": (
        "Every pattern overwrites the one before, which a hook may have kept.",
        attention(_pattern_of=_in_one_buffer),
    ),
}
_ONE_ROW: Rows = {
    "OneRowRotated": (
        "Positions that all rows of a batch share rotate the first row only.",
        attention(_rotate=_first_row),
    ),
}
_IGNORED_KEYS: Rows = {
    "DeafWithACache": (
        "What the hook of the rotated keys returns is not cached.",
        attention(
            _rotate=keep,
            _extend_cache=lambda bridge, extend, cache, key, value: extend(
                cache, bridge.kept[1].transpose(1, 2).to(key.dtype), value
            ),
        ),
    ),
}
_IGNORED_PATTERN: Rows = {
    "DeafUnderAutograd": (
        "What the hook of the pattern returns is not used while autograd records.",
        attention(
            _pattern_of=keep,
            _mix=lambda bridge, mix, pattern, value: mix(bridge.kept if torch.is_grad_enabled() else pattern, value),
        ),
    ),
}

FAULTS = (
    *named_faults(__name__, _UNWATCHED, "conduct", case="shapes"),
    *named_faults(__name__, _UNWATCHED_BACKWARD, "conduct", case="backward"),
    *named_faults(__name__, _ONE_HOOK, "conduct", "mix", "returned", case="patched"),
    *named_faults(__name__, _BUFFER, "conduct", case="state"),
    *named_faults(__name__, _ONE_ROW, "rope", case="decode"),
    *named_faults(__name__, _IGNORED_KEYS, "cache", case="patched"),
    *named_faults(__name__, _IGNORED_PATTERN, "mix", case="patched"),
)
__getattr__ = by_name(FAULTS)
